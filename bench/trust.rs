//! The cost of trust: one verification by the format of its signature, and the latency of 304s
//! while 500 bundles are re-verified.
//!
//! Compare figures of one machine with each other only; for the comparison with cosign see
//! `bench/verify`, which runs this too.
#![expect(clippy::unwrap_used, reason = "a failed setup must abort the bench")]
#![expect(
    clippy::print_stdout,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures wall-clock time, and prints it"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bundlegate::{
    bundle,
    metrics::Metrics,
    oci::{Descriptor, Layout, Reference, media_type},
    registry::{Destination, ReadLimits, Registries, RegistryMetrics, Source},
    sign::{Attachment, KeyPair, LegacySignature, SigningRequest},
    verify::{
        self, Authority, Identity, Pattern, PublicKey, Requirements, TrustPolicy, TrustRoot,
        VerificationContext, Verified,
        conformance::{ExpectedSigner, Subject, verify_bundle},
    },
};
use criterion::Criterion;
use flate2::{Compression, GzBuilder};
use serde_json::json;
use tokio::runtime::Runtime;

const LIMIT: u64 = 1 << 20;
const BUNDLES: usize = 500;
/// The duration of each latency measurement.
const WINDOW: Duration = Duration::from_secs(5);
const IDENTITY: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";
/// Valid bundles of sigstore-conformance, by their content.
const KEYLESS: [(&str, &str); 4] = [
    ("keyless, message, Rekor v1", "happy-path-v0.3"),
    ("keyless, DSSE, Rekor v1", "happy-path-intoto-in-dsse-v3"),
    ("keyless, message, Rekor v2 and TSA", "rekor2-happy-path"),
    ("keyless, DSSE, Rekor v2 and TSA", "rekor2-dsse-happy-path"),
];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    keyed(&mut criterion);
    keyless(&mut criterion);
    criterion.final_summary();
    if std::env::args().all(|argument| argument != "--test") {
        reverification_latency();
    }
}

/// Signatures by a key, verified as the gateway does, with the evidence in memory.
fn keyed(criterion: &mut Criterion) {
    let layout = SignedLayout::new();
    let reference = layout.put("v1", &tarball(0));
    let mut group = criterion.benchmark_group("verdict");
    for format in ["legacy", "bundle"] {
        layout.sign(&reference, format);
        let (pinned, evidence, manifest) = layout.runtime.block_on(async {
            let source = layout.source();
            let pinned = source.resolve(&reference).await.unwrap();
            let evidence = verify::collect(&source, &pinned, LIMIT).await.unwrap();
            (
                pinned.clone(),
                evidence,
                source.manifest(&pinned).await.unwrap(),
            )
        });
        let mut requirements =
            Requirements::any_of(vec![Authority::with_keys("team".into(), [layout.key()])]);
        requirements.formats = [if format == "legacy" {
            verify::Format::Legacy
        } else {
            verify::Format::Bundle
        }]
        .into();
        let policy = TrustPolicy::signed("release".into(), requirements).unwrap();
        group.bench_function(format!("keyed, {format}"), |bencher| {
            bencher.iter(|| {
                let verified = Verified::verify_with_report(
                    &policy,
                    &pinned,
                    manifest.clone(),
                    &evidence,
                    VerificationContext::now(),
                );
                assert!(verified.0.is_ok());
            });
        });
    }
    group.finish();
}

/// Signatures by certificates, with transparency logs and timestamps.
fn keyless(criterion: &mut Criterion) {
    let folder = std::env::var_os("BUNDLEGATE_FIXTURES")
        .map_or_else(|| "../shared/fixtures".into(), PathBuf::from);
    let suite = folder.join("sigstore-conformance/bundle-verify");
    if !suite.exists() {
        println!(
            "skipped: keyless signatures, because {} is missing",
            suite.display()
        );
        return;
    }
    let mut group = criterion.benchmark_group("verdict");
    for (name, case) in KEYLESS {
        let bundle = fs::read(suite.join(case).join("bundle.sigstore.json")).unwrap();
        let root = fs::read_to_string(suite.join(case).join("trusted_root.json"));
        let root = root
            .map_or_else(
                |_| TrustRoot::sigstore(),
                |text| TrustRoot::from_json("own", &text),
            )
            .unwrap();
        let artifact =
            fs::read(suite.join(case).join("artifact")).or_else(|_| fs::read(suite.join("a.txt")));
        let subject = Subject::Bytes(artifact.unwrap());
        let signer = ExpectedSigner::Identity(Identity {
            issuer: Pattern::exact(ISSUER).unwrap(),
            subject: Pattern::exact(IDENTITY).unwrap(),
            claims: BTreeMap::new(),
        });
        group.bench_function(name, |bencher| {
            bencher.iter(|| verify_bundle(&bundle, &subject, &signer, &root).unwrap());
        });
    }
    group.finish();
}

/// The latency of 304s for one bundle, before and while all others are re-verified repeatedly.
fn reverification_latency() {
    let layout = SignedLayout::new();
    let mut bundles = serde_json::Map::new();
    for number in 0..BUNDLES {
        let reference = layout.put(&format!("v{number}"), &tarball(number));
        layout.sign(&reference, "bundle");
        bundles.insert(
            format!("b{number}"),
            json!({ "reference": reference.to_string(), "trust": "release", "poll": "1h" }),
        );
    }
    let gateway = GatewayProcess::start(layout.folder.path(), &bundles);
    let etag = gateway.etag("b0");
    let calm = latencies(&gateway, &etag, || {});
    let mut rounds = 0;
    let busy = latencies(&gateway, &etag, || {
        // Another policy revision each time, so that no cached verdict applies.
        rounds += 1;
        gateway.configure(rounds);
        gateway.reload();
    });
    let verdicts = gateway.verdicts();
    println!(
        "\n{BUNDLES} bundles re-verified {rounds} times ({verdicts} verdicts); latency of 304s over one connection"
    );
    println!("         requests     p50     p99     max");
    for (name, times) in [("before", &calm), ("during", &busy)] {
        println!(
            "{name:<8} {:>8} {:>7} {:>7} {:>7}",
            times.len(),
            micros(times, 0.5),
            micros(times, 0.99),
            micros(times, 1.0)
        );
    }
    println!(
        "p99 during / before: {:.2}",
        quantile(&busy, 0.99).as_secs_f64() / quantile(&calm, 0.99).as_secs_f64()
    );
}

/// Sends a request as soon as the last one is answered, and calls `disturb` once a second.
fn latencies(gateway: &GatewayProcess, etag: &str, mut disturb: impl FnMut()) -> Vec<Duration> {
    let mut stream = TcpStream::connect(gateway.data).unwrap();
    stream.set_nodelay(true).unwrap();
    let request =
        format!("GET /bundles/b0 HTTP/1.1\r\nHost: gate\r\nIf-None-Match: {etag}\r\n\r\n");
    let (began, mut times, mut next) = (Instant::now(), Vec::new(), Instant::now());
    while began.elapsed() < WINDOW {
        if Instant::now() >= next {
            disturb();
            next += Duration::from_secs(1);
        }
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        times.push(asked.elapsed());
        assert!(
            answer.starts_with(b"HTTP/1.1 304 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    times.sort_unstable();
    times
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len() - 1;
    sorted[((last as f64) * share).round() as usize]
}

fn micros(sorted: &[Duration], share: f64) -> String {
    format!("{} µs", quantile(sorted, share).as_micros())
}

/// An OCI layout in a temporary folder, and a key that signs its artifacts.
struct SignedLayout {
    folder: tempfile::TempDir,
    key: KeyPair,
    registries: Registries,
    runtime: Runtime,
}

impl SignedLayout {
    fn new() -> Self {
        let limits = ReadLimits {
            manifest: LIMIT,
            evidence: LIMIT,
            bundle: LIMIT,
        };
        let registries = Registries::new(
            BTreeMap::new(),
            limits,
            RegistryMetrics::new(&Metrics::new()).unwrap(),
        );
        let (folder, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        fs::write(folder.path().join("key.pub"), key.public_pem()).unwrap();
        Self {
            folder,
            key,
            registries,
            runtime: Runtime::new().unwrap(),
        }
    }

    fn key(&self) -> PublicKey {
        PublicKey::from_pem(self.key.public_pem()).unwrap()
    }

    fn reference(&self, tag: &str) -> Reference {
        format!(
            "oci-layout:{}:{tag}",
            self.folder.path().join("layout").display()
        )
        .parse()
        .unwrap()
    }

    fn source(&self) -> Source {
        self.registries
            .source(self.reference("v").repository())
            .unwrap()
    }

    fn destination(&self) -> Destination {
        self.registries
            .destination(self.reference("v").repository())
            .unwrap()
    }

    fn put(&self, tag: &str, tarball: &[u8]) -> Reference {
        let layout = Layout::create(self.folder.path().join("layout")).unwrap();
        layout.write_blob(tarball).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": Descriptor::of(media_type::EMPTY, b"{}"),
            "layers": [Descriptor::of(media_type::LAYER_TAR_GZIP, tarball)],
        });
        let manifest = manifest.to_string();
        layout.write_blob(manifest.as_bytes()).unwrap();
        let mut index = layout.index().unwrap();
        index.set(
            tag,
            Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes()),
        );
        layout.write_index(&index).unwrap();
        self.reference(tag)
    }

    fn sign(&self, reference: &Reference, format: &str) {
        self.runtime.block_on(async {
            let source = self.source();
            let pinned = source.resolve(reference).await.unwrap();
            let claim = SigningRequest::of(source.manifest(&pinned).await.unwrap().descriptor());
            if format == "legacy" {
                let signature =
                    LegacySignature::sign(&self.key, &claim, "r.example/acme/authz").unwrap();
                signature
                    .append(&pinned, &source, &self.destination())
                    .await
                    .unwrap();
            } else {
                let attachment = Attachment::sign(&self.key, &claim).unwrap();
                attachment
                    .attach(&pinned, &self.destination())
                    .await
                    .unwrap();
            }
        });
    }
}

fn tarball(number: usize) -> Vec<u8> {
    let data = json!({ "number": number }).to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    let mut tarball = tar::Builder::new(GzBuilder::new().write(Vec::new(), Compression::fast()));
    tarball
        .append_data(&mut header, "data.json", data.as_bytes())
        .unwrap();
    let tarball = tarball.into_inner().unwrap().finish().unwrap();
    assert!(
        tarball.len()
            < usize::try_from(
                bundle::Limits {
                    bundle: LIMIT,
                    unpacked: LIMIT,
                    files: 10,
                    bundle_manifest: LIMIT
                }
                .bundle
            )
            .unwrap()
    );
    tarball
}

/// A `bundlegate serve` process.
struct GatewayProcess {
    child: Child,
    folder: PathBuf,
    bundles: serde_json::Map<String, serde_json::Value>,
    data: SocketAddr,
    admin: SocketAddr,
}

impl GatewayProcess {
    fn start(folder: &Path, bundles: &serde_json::Map<String, serde_json::Value>) -> Self {
        let config = folder.join("bundlegate.json");
        write_config(&config, bundles, 0);
        let mut child = Command::new(env!("CARGO_BIN_EXE_bundlegate"))
            .args(["serve", "--config"])
            .arg(&config)
            .env_remove("BUNDLEGATE_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut data, mut admin) = (None, None);
        while data.is_none() || admin.is_none() {
            let line: serde_json::Value =
                serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            let text = line.to_string();
            let address = || -> Option<SocketAddr> {
                let fields = line.get("fields").unwrap_or(&line);
                fields.get("address")?.as_str()?.parse().ok()
            };
            match (text.contains("\"listening\""), text.contains("\"admin\"")) {
                (true, true) => admin = address(),
                (true, false) => data = address(),
                _ => {}
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        let gateway = Self {
            child,
            folder: folder.to_owned(),
            bundles: bundles.clone(),
            data: data.unwrap(),
            admin: admin.unwrap(),
        };
        while !gateway.get(gateway.admin, "/metrics").contains(&format!(
            "bundle=\"b{}\",state=\"serving\"}} 1",
            BUNDLES - 1
        )) {
            std::thread::sleep(Duration::from_millis(100));
        }
        gateway
    }

    fn configure(&self, round: usize) {
        write_config(&self.folder.join("bundlegate.json"), &self.bundles, round);
    }

    fn reload(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    fn etag(&self, bundle: &str) -> String {
        let answer = self.get(self.data, &format!("/bundles/{bundle}"));
        let line = answer
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("etag: "))
            .unwrap();
        line[6..].trim().to_owned()
    }

    fn verdicts(&self) -> u64 {
        let metrics = self.get(self.admin, "/metrics");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("bundlegate_verifications_total"));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    fn get(&self, address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(file: &Path, bundles: &serde_json::Map<String, serde_json::Value>, round: usize) {
    let config = json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "all", "anonymous": true, "bundles": ["**"] }],
        "trust": {
            "authorities": { "team": { "keys": ["key.pub"], "tlog": "none" } },
            "policies": { "release": { "require": { "any_of": ["team"] },
                "revoked_digests": [format!("sha256:{round:064x}")] } },
        },
        "bundles": bundles,
    });
    let temporary = file.with_extension("tmp");
    fs::write(&temporary, config.to_string()).unwrap();
    fs::rename(temporary, file).unwrap();
}
