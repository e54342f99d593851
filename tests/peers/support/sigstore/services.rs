//! The programs of a private Sigstore: what each is told, and where it listens.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer as CertificateIssuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use serde_json::json;

use super::{
    super::{Process, free_address, http, poll_until, program},
    Issuer,
};

/// The running services and their addresses.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) fulcio: String,
    pub(super) ct: String,
    pub(super) rekor: String,
    /// The log of tiles, which is Rekor's second version.
    pub(super) tiles: String,
    pub(super) timestamps: String,
    _processes: [Process; 5],
}

/// Its name in checkpoints.
pub(super) const TILES_ORIGIN: &str = "tiles.example.com";

impl Services {
    /// Starts them all, with their keys in `folder`: `fulcio.pem` is the chain of the authority,
    /// `ct.pub`, `rekor.pub` and `tiles.pub` are the logs' keys, `tsa.pem` is the chain of the
    /// one who says what time it is.
    pub(super) async fn start(folder: &Path, issuer: &Issuer) -> Self {
        make_keys(folder);
        let (base, trillian, tree, timestamps) = base(folder).await;
        let ((ct, ct_url), (rekor, rekor_url), (tiles, tiles_url)) = tokio::join!(
            ct_log(folder, &trillian, &tree),
            rekor(folder, &trillian),
            tiles(folder)
        );
        let (fulcio, fulcio_url) = fulcio(folder, issuer, &ct_url).await;
        let timestamps_url = format!("{timestamps}/api/v1/timestamp");
        keep(
            &format!("{rekor_url}/api/v1/log/publicKey"),
            &folder.join("rekor.pub"),
        )
        .await;
        keep(
            &format!("{timestamps_url}/certchain"),
            &folder.join("tsa.pem"),
        )
        .await;
        Self {
            fulcio: fulcio_url,
            ct: ct_url,
            rekor: rekor_url,
            tiles: tiles_url,
            timestamps: timestamps_url,
            _processes: [base, ct, rekor, tiles, fulcio],
        }
    }
}

/// Fulcio's authority, as the public one: an intermediate certificate below a root; and keys
/// for the logs that don't make their own.
fn make_keys(folder: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) =
            (date_time_ymd(2025, 1, 1), date_time_ymd(2045, 1, 1));
        params
    };
    let mut root = authority("a private root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let root_key = KeyPair::generate().unwrap();
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let mut intermediate = authority("a private Fulcio");
    intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    intermediate.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let intermediate = intermediate
        .signed_by(&key, &CertificateIssuer::new(root, root_key))
        .unwrap();
    let (ct, tiles) = (
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
    );
    for (name, content) in [
        ("root.pem", root_pem.clone()),
        ("fulcio.pem", intermediate.pem() + &root_pem),
        ("fulcio.key", key.serialize_pem()),
        ("ct.pub", ct.public_key_pem()),
        ("tiles.key", tiles.serialize_pem()),
        ("tiles.pub", tiles.public_key_pem()),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    fs::write(folder.join("ct.key"), ct.serialize_der()).unwrap();
}

/// Trillian with a tree for the CT log, and the authority for timestamps.
async fn base(folder: &Path) -> (Process, String, String, String) {
    let mut process = Process::start("sigstore-base", &mut peer("sigstore-base", folder));
    let trillian = process
        .line(|line| line.strip_prefix("trillian ").map(str::to_owned))
        .await;
    let (address, tree) = trillian.split_once(" tree ").unwrap();
    let timestamps = process
        .line(|line| line.strip_prefix("timestamps ").map(str::to_owned))
        .await;
    (
        process,
        address.to_owned(),
        tree.to_owned(),
        format!("http://{timestamps}"),
    )
}

async fn ct_log(folder: &Path, trillian: &str, tree: &str) -> (Process, String) {
    // Any bytes, for a text of Go's.
    let bytes = |file: &str| -> String {
        fs::read(folder.join(file))
            .unwrap()
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect()
    };
    let config = format!(
        r#"config {{
             log_id: {tree} prefix: "ct" roots_pem_file: "root.pem"
             private_key: {{ [type.googleapis.com/keyspb.PrivateKey] {{ der: "{}" }} }}
           }}"#,
        bytes("ct.key")
    );
    fs::write(folder.join("ct.config"), config).unwrap();
    let (process, address) = at_free_port("ct_server", "/", |address| {
        let mut command = peer("ct_server", folder);
        command.args(["--logtostderr", "--log_config=ct.config"]);
        command
            .arg(format!("--log_rpc_server={trillian}"))
            .arg(format!("--http_endpoint={address}"));
        command
    })
    .await;
    (process, format!("http://{address}/ct"))
}

async fn rekor(folder: &Path, trillian: &str) -> (Process, String) {
    let (host, port) = trillian.split_once(':').unwrap();
    let mut command = peer("rekor-server", folder);
    command.args([
        "serve",
        "--rekor_server.address=127.0.0.1",
        "--port=0",
        "--rekor_server.signer=memory",
    ]);
    command.args([
        "--rekor_server.hostname=rekor.example.com",
        "--enable_retrieve_api=false",
    ]);
    // All but the index for searching, which wants a database of its own.
    command.arg("--enabled_api_endpoints=getLogInfo,getPublicKey,getLogProof,createLogEntry,getLogEntryByIndex,getLogEntryByUUID");
    command
        .arg(format!("--trillian_log_server.address={host}"))
        .arg(format!("--trillian_log_server.port={port}"));
    let mut process = Process::start("rekor-server", &mut command);
    let url = process
        .line(|line| {
            Some(
                line.split_once("Serving rekor server at ")?
                    .1
                    .trim()
                    .to_owned(),
            )
        })
        .await;
    (process, url)
}

async fn tiles(folder: &Path) -> (Process, String) {
    let (process, address) = at_free_port("rekor-tiles", "/healthz", |address| {
        let mut command = peer("rekor-tiles", folder);
        command.args([
            "serve",
            "--storage-dir=tiles",
            "--signer-filepath=tiles.key",
            "--http-metrics-port=0",
        ]);
        // The log integrates entries as fast as it can.
        command.args([
            "--hostname",
            TILES_ORIGIN,
            "--batch-max-age=10ms",
            "--checkpoint-interval=100ms",
        ]);
        at_both(
            command,
            address,
            [
                "--http-address",
                "--http-port",
                "--grpc-address",
                "--grpc-port",
            ],
        )
    })
    .await;
    (process, format!("http://{address}"))
}

async fn fulcio(folder: &Path, issuer: &Issuer, ct: &str) -> (Process, String) {
    let (people, jobs) = (issuer.people(), issuer.jobs());
    let config = json!({
        "OIDCIssuers": {
            &people: { "IssuerURL": people, "ClientID": "sigstore", "Type": "email" },
            &jobs: { "IssuerURL": jobs, "ClientID": "sigstore", "Type": "ci-provider", "CIProvider": "github" },
        },
        // The public Fulcio maps GitHub's claims in this way.
        "CIIssuerMetadata": { "github": {
            "DefaultTemplateValues": { "url": "https://github.com", "environment": "" },
            "SubjectAlternativeNameTemplate": "{{ .url }}/{{ .job_workflow_ref }}",
            "ExtensionTemplates": EXTENSIONS.iter().copied().collect::<BTreeMap<_, _>>(),
        } },
    });
    fs::write(folder.join("fulcio.json"), config.to_string()).unwrap();
    let (process, address) = at_free_port("fulcio", "/healthz", |address| {
        let mut command = peer("fulcio", folder);
        command.args([
            "serve",
            "--ca=fileca",
            "--fileca-cert=fulcio.pem",
            "--fileca-key=fulcio.key",
        ]);
        command.args([
            "--fileca-key-passwd=",
            "--fileca-watch=false",
            "--config-path=fulcio.json",
            "--metrics-port=0",
        ]);
        command.args(["--ct-log-public-key-path=ct.pub", "--ct-log-url", ct]);
        command.args(["--legacy-unix-domain-socket=fulcio.socket"]);
        at_both(
            command,
            address,
            ["--host", "--port", "--grpc-host", "--grpc-port"],
        )
    })
    .await;
    (process, format!("http://{address}"))
}

/// A peer that finds nothing of the machine's own settings.
fn peer(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(program(name));
    command.current_dir(folder).env_clear().env("HOME", folder);
    command
}

/// Starts a program that does not tell which port it got at one that was free a moment ago,
/// and waits until it answers there.
async fn at_free_port(
    name: &str,
    path: &str,
    command: impl Fn(&str) -> Command,
) -> (Process, String) {
    let client = http();
    for _ in 0..10 {
        let address = free_address();
        let mut process = Process::start(name, &mut command(&address));
        let url = format!("http://{address}{path}");
        let (up, _) = poll_until(name, async || match client.get(&url).send().await {
            Ok(answer) => answer.status().is_success().then_some(true),
            Err(_) => process.has_ended().then_some(false),
        })
        .await;
        // Another program may have taken the port, and have answered.
        if up && !process.has_ended() {
            return (process, address);
        }
        assert!(
            process.log().contains("address already in use"),
            "{}",
            process.log()
        );
    }
    panic!("no port for {name}");
}

/// Tells a program where to listen: at `http`, and for gRPC at another address that was free a
/// moment ago.
fn at_both(mut command: Command, http: &str, flags: [&str; 4]) -> Command {
    let grpc = free_address();
    let parts = [http, &grpc]
        .into_iter()
        .flat_map(|address| address.split(':'));
    for (flag, part) in flags.into_iter().zip(parts) {
        command.args([flag, part]);
    }
    command
}

/// Keeps what is found at `url`.
async fn keep(url: &str, file: &PathBuf) {
    let answer = http()
        .get(url)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    fs::write(file, answer.bytes().await.unwrap()).unwrap();
}

/// Extensions of a certificate, and the claims that they are made of.
const EXTENSIONS: &[(&str, &str)] = &[
    ("GithubWorkflowTrigger", "event_name"),
    ("GithubWorkflowSHA", "sha"),
    ("GithubWorkflowName", "workflow"),
    ("GithubWorkflowRepository", "repository"),
    ("GithubWorkflowRef", "ref"),
    ("BuildSignerURI", "{{ .url }}/{{ .job_workflow_ref }}"),
    ("BuildSignerDigest", "job_workflow_sha"),
    ("RunnerEnvironment", "runner_environment"),
    ("SourceRepositoryURI", "{{ .url }}/{{ .repository }}"),
    ("SourceRepositoryDigest", "sha"),
    ("SourceRepositoryRef", "ref"),
    ("SourceRepositoryIdentifier", "repository_id"),
    (
        "SourceRepositoryOwnerURI",
        "{{ .url }}/{{ .repository_owner }}",
    ),
    ("SourceRepositoryOwnerIdentifier", "repository_owner_id"),
    ("BuildConfigURI", "{{ .url }}/{{ .workflow_ref }}"),
    ("BuildConfigDigest", "workflow_sha"),
    ("BuildTrigger", "event_name"),
    (
        "RunInvocationURI",
        "{{ .url }}/{{ .repository }}/actions/runs/{{ .run_id }}/attempts/{{ .run_attempt }}",
    ),
    (
        "SourceRepositoryVisibilityAtSigning",
        "repository_visibility",
    ),
    ("DeploymentEnvironment", "environment"),
];
