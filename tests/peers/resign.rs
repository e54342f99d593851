//! OPA's own signatures, made here and verified by real OPAs.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bundlegate::{
    bundle::{
        Bundle, LayerPlan, Limits, PublicKey, Signer, SigningAlgorithm, VerificationKey, Verifier,
        sign_folder,
    },
    oci::{Blob, Descriptor, Manifest, NewBlob, media_type},
};
use flate2::{Compression, write::GzEncoder};
use proptest::{
    collection::vec, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{
    Artifact, Cosign, Evidence, Format, GatewayConfig, Identity, KeyPair, Kind, Opa, OpaVersion,
    Registry, Signer as CosignSigner, Signing, Sigstore, TestGateway, http, program, run,
};

const LIMITS: Limits = Limits {
    bundle: 16 << 20,
    unpacked: 64 << 20,
    files: 1000,
    bundle_manifest: 1 << 20,
};

/// The name of the gateway's key in OPA's configuration.
const KID: &str = "gateway";

/// File names and contents, which need not be text.
type Files = Vec<(String, Vec<u8>)>;

/// The key of the gateway, in a folder.
struct GatewayKey {
    folder: TempDir,
    public: String,
    private: String,
}

impl GatewayKey {
    fn generate() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let (public, private) = (key.public_key_pem(), key.serialize_pem());
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("opa.pem"), &private).unwrap();
        fs::write(folder.path().join("opa.pub"), &public).unwrap();
        Self {
            folder,
            public,
            private,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("opa.pem")
    }

    fn signer(&self) -> Signer {
        Signer::new(self.private.as_bytes(), SigningAlgorithm::Es256, KID, "").unwrap()
    }

    fn sign(&self, tarball: Vec<u8>) -> Result<Vec<u8>, String> {
        signed_by(&self.signer(), tarball)
    }

    /// Whether `opa build` verifies a tarball with this key; the error otherwise.
    async fn verify(&self, version: OpaVersion, tarball: &Path) -> Result<(), String> {
        let folder = TempDir::new().unwrap();
        let output = Command::new(program(version.program()))
            .arg("build")
            .args(["--verification-key"])
            .arg(self.folder.path().join("opa.pub"))
            .args(["--verification-key-id", KID, "--signing-alg", "ES256"])
            .args(["--output", "out.tar.gz", "--bundle"])
            .arg(tarball)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }
}

fn signed_by(signer: &Signer, tarball: Vec<u8>) -> Result<Vec<u8>, String> {
    let blob = Blob::check(&Descriptor::of("", &tarball), tarball.into()).unwrap();
    let bundle = Bundle::open(blob, &LIMITS).map_err(|error| error.to_string())?;
    let signed = bundle.signed_by(signer);
    let signed = signed.map_err(|error| error.to_string())?;
    let size = usize::try_from(signed.blob().size()).unwrap();
    Ok(signed.blob().read_at(0, size).unwrap().to_vec())
}

/// A tarball with exactly these names.
fn tarball(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        builder
            .append_pax_extensions([("path", name.as_bytes())])
            .unwrap();
        header.set_path("x").unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, content.as_slice()).unwrap();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, &builder.into_inner().unwrap()).unwrap();
    encoder.finish().unwrap()
}

fn text(files: &[(&str, &str)]) -> Files {
    let files = files.iter();
    files
        .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()))
        .collect()
}

/// A bundle of one team in a form of its own. `answer` is in a rule and in data.
fn bundle_of(team: &str, answer: &str) -> Artifact {
    let rego = format!("package {team}\n\nanswer := \"{answer}\"\n");
    let manifest = format!("{{\"revision\":\"{answer}\",\"roots\":[\"{team}\"]}}");
    let yaml = format!("countries: [NO, SE]\nsaid: {answer}\n");
    let files = match team {
        // As `tar czf bundle.tar.gz .` names files.
        "one" => text(&[
            ("./one/p.rego", &rego),
            ("./one/cfg/data.yml", &yaml),
            ("./.manifest", &manifest),
        ]),
        // As `opa build` names them, with a signature of its own and more after the manifest.
        "two" => text(&[
            ("/two/p.rego", &rego),
            ("/two/cfg/data.yaml", &yaml),
            ("/two/cfg/data.json", "{\"n\": 1.50}"),
            ("/.manifest", &format!("{manifest} trailing: [")),
            ("/.signatures.json", "{\"signatures\":[\"e30.e30.AA\"]}"),
        ]),
        _ => text(&[
            ("three/p.rego", &rego),
            ("three/cfg/data.json", "{\"countries\": [\"NO\", \"SE\"]}"),
            ("README ü.md", "read me"),
            ("old/my-signatures.json", "{}"),
            (".manifest", &manifest),
        ]),
    };
    Artifact::raw(&tarball(&files))
}

const TEAMS: [&str; 3] = ["one", "two", "three"];

/// Who signs the artifacts of a team with cosign.
enum Author {
    Key(KeyPair),
    Keyless(Identity),
}

impl Author {
    /// The authority of the configuration for this author.
    fn authority(&self, sigstore: &Sigstore) -> Value {
        match self {
            Self::Key(key) => json!({ "keys": [key.public()], "tlog": "none" }),
            Self::Keyless(identity) => json!({ "keyless": {
                "root": "corp",
                "issuer": sigstore.issuer.of(identity),
                "subject": identity.subject(),
            } }),
        }
    }

    async fn sign(&self, sigstore: &Sigstore, registry: &Registry, name: &str) {
        match self {
            Self::Key(key) => key.sign(registry, name).await,
            Self::Keyless(identity) => {
                let how = Signing {
                    cosign: Cosign::V3,
                    format: Format::Bundle,
                    signer: CosignSigner::Keyless(identity.clone()),
                    evidence: Evidence::LogAndTime,
                };
                sigstore.sign(&how, registry, name).await;
            }
        }
    }
}

/// Three teams, each with an author of its own, behind a gateway with one key for OPA.
struct Fixture {
    sigstore: Sigstore,
    authors: [Author; 3],
    registry: Registry,
    gate: TestGateway,
    key: GatewayKey,
}

impl Fixture {
    async fn start() -> Self {
        let (sigstore, registry, team_key) = tokio::join!(
            Sigstore::start(),
            Registry::start(Kind::Distribution),
            KeyPair::generate()
        );
        let authors = [
            Author::Key(team_key),
            Author::Keyless(Identity::person("ann@example.com")),
            Author::Keyless(Identity::release_job()),
        ];
        let key = GatewayKey::generate();
        let mut config = GatewayConfig::with_trust(trust(&authors, &sigstore));
        for team in TEAMS {
            config = config
                .bundle(team, &registry, &format!("acme/{team}:live"))
                .with(&format!("/bundles/{team}/trust"), json!(team))
                .with(
                    &format!("/bundles/{team}/resign"),
                    json!({ "key": key.file(), "kid": KID }),
                );
        }
        let fixture = Self {
            gate: TestGateway::start(config.cached()).await,
            sigstore,
            authors,
            registry,
            key,
        };
        for team in TEAMS {
            fixture.publish(team, "first").await;
        }
        fixture
    }

    async fn publish(&self, team: &str, answer: &str) {
        let artifact = bundle_of(team, answer);
        let name = format!("acme/{team}:{answer}");
        let digest = self.registry.push(&name, &artifact.file()).await;
        let pinned = format!("acme/{team}@{digest}");
        let place = TEAMS.iter().position(|one| *one == team).unwrap();
        let author = &self.authors[place];
        author.sign(&self.sigstore, &self.registry, &pinned).await;
        self.registry.tag(&pinned, "live").await;
    }

    /// The configuration of an OPA with all bundles, of which it requires signatures by one key.
    fn opa_config(&self) -> Value {
        let bundle = |team: &str| {
            json!({
                "service": "gate",
                "resource": format!("/bundles/{team}"),
                "signing": { "keyid": KID },
                "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 30 },
            })
        };
        let bundles: BTreeMap<_, _> = TEAMS.map(|team| (team, bundle(team))).into();
        json!({
            "services": { "gate": { "url": self.gate.url } },
            "keys": { KID: { "algorithm": "ES256", "key": self.key.public } },
            "bundles": bundles,
        })
    }
}

/// Each team has the policy of its own author.
fn trust(authors: &[Author; 3], sigstore: &Sigstore) -> Value {
    let (mut authorities, mut policies) = (json!({}), json!({}));
    for (team, author) in TEAMS.iter().zip(authors) {
        authorities[team] = author.authority(sigstore);
        policies[team] = json!({ "require": { "any_of": [team] } });
    }
    let roots = json!({ "corp": { "trusted_root": sigstore.trusted_root() } });
    json!({ "roots": roots, "authorities": authorities, "policies": policies })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_opa_accepts_what_three_identities_have_signed_with_one_key() {
    let mut fixture = Fixture::start().await;
    let config = fixture.opa_config();
    let mut opas = Vec::new();
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        opas.push(Opa::start(version, &config).await);
    }
    for opa in &opas {
        for team in TEAMS {
            opa.decides(&format!("{team}/answer"), &json!("first"))
                .await;
            // By the YAML rules of OPA 0.70, `NO` would be false.
            opa.decides(&format!("{team}/cfg/countries"), &json!(["NO", "SE"]))
                .await;
        }
    }

    // One team rotates its key, and another one has a new author. No OPA notices.
    fixture.authors[0] = Author::Key(KeyPair::generate().await);
    fixture.authors[1] = Author::Keyless(Identity::person("ben@example.com"));
    let trust = trust(&fixture.authors, &fixture.sigstore);
    let config = fixture.gate.config().with("/trust", trust);
    fixture.gate.reconfigure(&config);
    for team in ["one", "two"] {
        fixture.publish(team, "second").await;
    }
    for opa in &opas {
        opa.decides("one/answer", &json!("second")).await;
        opa.decides("two/answer", &json!("second")).await;
        opa.decides("three/answer", &json!("first")).await;
    }
    refuses_what_was_changed(&fixture).await;
}

/// A bundle that was changed on its way, and one that was never signed.
async fn refuses_what_was_changed(fixture: &Fixture) {
    let url = format!("{}/bundles/three", fixture.gate.url);
    let served = http().get(url).send().await.unwrap().bytes().await.unwrap();
    let folder = TempDir::new().unwrap();
    let intact = folder.path().join("intact.tar.gz");
    fs::write(&intact, &served).unwrap();
    let mut files = Files::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*served));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        files.push((name, content));
    }
    let write = |name: &str, files: &Files| {
        let path = folder.path().join(name);
        fs::write(&path, tarball(files)).unwrap();
        path
    };
    let mut changed = files.clone();
    let rego = changed.iter_mut().find(|(name, _)| name.ends_with(".rego"));
    rego.unwrap().1 = b"package three\n\nanswer := \"forged\"\n".to_vec();
    let changed = write("changed.tar.gz", &changed);
    files.retain(|(name, _)| name != ".signatures.json");
    let unsigned = write("unsigned.tar.gz", &files);
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        fixture.key.verify(version, &intact).await.unwrap();
        for (file, words) in [
            (&changed, "three/p.rego: digest mismatch"),
            (&unsigned, "bundle missing .signatures.json file"),
        ] {
            let resource = format!("file://{}", file.display());
            let config = json!({
                "keys": { KID: { "algorithm": "ES256", "key": fixture.key.public } },
                "bundles": { "three": { "resource": resource, "signing": { "keyid": KID } } },
            });
            let opa = Opa::start(version, &config).await;
            opa.fails_with(words).await;
            assert_eq!(opa.decision("three/answer").await, None);
        }
    }
}

/// `signing` without `keyid`, which OPA before 1.21.3 takes for "not required".
#[tokio::test(flavor = "multi_thread")]
async fn an_opa_with_two_keys_follows_the_gateway_from_one_to_the_other() {
    let fixture = Fixture::start().await;
    let next = GatewayKey::generate();
    let mut config = fixture.opa_config();
    config["keys"]["next"] = json!({ "algorithm": "ES256", "key": next.public });
    for team in TEAMS {
        config["bundles"][team]["signing"] = json!({});
    }
    let opa = Opa::start(OpaVersion::Newest, &config).await;
    opa.decides("one/answer", &json!("first")).await;
    let resign = json!({ "key": next.file(), "kid": "next" });
    let config = fixture.gate.config().with("/bundles/one/resign", resign);
    fixture.gate.reconfigure(&config);
    fixture.publish("one", "second").await;
    opa.decides("one/answer", &json!("second")).await;
}

/// A new private key for an algorithm, and what verifies its signatures.
fn key_files(algorithm: SigningAlgorithm) -> (String, String) {
    if algorithm.is_symmetric() {
        let secret = "0123456789abcdef".repeat(4);
        return (secret.clone(), secret);
    }
    let kind = match &algorithm.name()[..2] {
        "ES" => match algorithm {
            SigningAlgorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            SigningAlgorithm::Es384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            _ => &rcgen::PKCS_ECDSA_P521_SHA512,
        },
        _ => &rcgen::PKCS_RSA_SHA256,
    };
    let key = rcgen::KeyPair::generate_for(kind).unwrap();
    (key.serialize_pem(), key.public_key_pem())
}

/// An artifact with one layer, and whether the gateway accepts OPA's signature in it.
fn accepts(layer: Vec<u8>, key: VerificationKey) -> Result<(), String> {
    let descriptor = Descriptor::of(media_type::LAYER_TAR_GZIP, &layer);
    let manifest = json!({
        "schemaVersion": 2,
        "config": Descriptor::of(media_type::EMPTY, b"{}"),
        "layers": [descriptor],
    });
    let manifest = Manifest::parse(manifest.to_string().into(), None, 1 << 20).unwrap();
    let layer = Blob::check(&descriptor, layer.into()).unwrap();
    let plan = LayerPlan::of(&manifest, None).unwrap();
    let plan = plan.verified_by(Verifier::new(vec![key]).map(Arc::new));
    let assembled = plan.assemble(&[layer], &LIMITS, NewBlob::system_space());
    assembled.map(drop).map_err(|error| error.to_string())
}

/// Both ways: signed here and verified by OPA, and signed by OPA and verified here.
#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_is_that_of_opa() {
    let files = text(&[
        ("p/p.rego", "package p\n\nx := 1\n"),
        ("q/data.json", "{\"a\": 1.50}"),
    ]);
    for (name, algorithm) in SigningAlgorithm::ALL {
        let (private, public) = key_files(algorithm);
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("key.pem"), &private).unwrap();
        fs::write(path("key.pub"), &public).unwrap();
        for (name, content) in &files {
            let path = path("sources").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let signer = Signer::new(private.as_bytes(), algorithm, "default", "").unwrap();
        fs::write(
            path("ours.tar.gz"),
            signed_by(&signer, tarball(&files)).unwrap(),
        )
        .unwrap();
        for version in [OpaVersion::Newest, OpaVersion::V0_70] {
            let verify = format!(
                "build -b ours.tar.gz --verification-key key.pub --signing-alg {name} -o verified.tar.gz"
            );
            let verify: Vec<_> = verify.split(' ').collect();
            run(version.program(), folder.path(), &verify).await;
            let sign = format!(
                "build -b sources --signing-key key.pem --signing-alg {name} -o theirs.tar.gz"
            );
            let sign: Vec<_> = sign.split(' ').collect();
            run(version.program(), folder.path(), &sign).await;
            let key = |kid: &str| VerificationKey {
                kid: kid.to_owned(),
                scope: String::new(),
                key: PublicKey::parse(public.as_bytes(), algorithm).unwrap(),
            };
            let theirs = fs::read(path("theirs.tar.gz")).unwrap();
            let accepted = accepts(theirs.clone(), key("default"));
            // OPA 0.70 makes the salt of PSS longer than RFC 7518 allows, and OPA 1.22 refuses that.
            let is_valid = version == OpaVersion::Newest || !name.starts_with("PS");
            assert_eq!(
                accepted.is_ok(),
                is_valid,
                "{version:?} {name}: {accepted:?}"
            );
            accepts(theirs, key("other")).unwrap_err();
        }
    }
}

/// The number of random bundles.
fn cases() -> usize {
    env::var("CASES").map_or(500, |cases| cases.parse().unwrap())
}

/// A string of JSON as it may be in a file: odd characters, as they are or escaped.
fn json_string() -> impl Strategy<Value = Vec<u8>> {
    let piece = select(vec![
        &b"a"[..],
        b"Z9_-.",
        b"/",
        b"\\/",
        b"\\\"",
        b"\\\\",
        b"\\b\\f\\n\\r\\t",
        b"\\u0000\\u001f",
        b"\\u007F\x7f",
        b"<>&\\u003c",
        "é\u{2028}\u{2029}😀\u{feff}".as_bytes(),
        b"\\u2028\\u2029",
        b"\\ud83d\\ude00",
        b"\\ud800",
        b"\\udc00x",
        b"\xff\xc3",
        b" ",
    ]);
    vec(piece, 0..5).prop_map(|pieces| {
        let inner = pieces.concat();
        [b"\"", inner.as_slice(), b"\""].concat()
    })
}

fn json_value() -> impl Strategy<Value = Vec<u8>> {
    let number = select(vec![
        &b"0"[..],
        b"-0",
        b"-0.0",
        b"1.0",
        b"1.50",
        b"1e3",
        b"1E+03",
        b"1e-7",
        b"12345678901234567890123",
        b"0.1000000000000000055511151231257827",
        b"-9007199254740993",
    ]);
    let word = select(vec![&b"null"[..], b"true", b"false"]);
    let leaf = prop_oneof![
        number.prop_map(<[u8]>::to_vec),
        word.prop_map(<[u8]>::to_vec),
        json_string()
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let items = vec(inner.clone(), 0..4)
            .prop_map(|items| [b"[ ", items.join(&b",\n"[..]).as_slice(), b"]"].concat());
        prop_oneof![items, json_object(inner)]
    })
}

fn json_object(value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let member = (json_string(), value).prop_map(|(key, value)| [key, value].join(&b" :"[..]));
    vec(member, 0..4)
        .prop_map(|members| [b"{", members.join(&b", "[..]).as_slice(), b"}\n"].concat())
}

/// Data in YAML that versions of OPA read differently.
fn yaml() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "a: NO\n",
        "b: [yes, On, ~, null]\n",
        "c: 0777\n",
        "d: 12345678901234567890\n",
        "e: 1_000\n",
        "f: 2001-01-01\n",
        "g: |\n  text\n   more\n",
        "\"h\\u2028\": 'it''s'\n",
        "i: .inf2\n",
        "j: 0x1F\n",
        "k: {x: 1.10, y: 1e3}\n",
    ]);
    vec(line, 0..6).prop_map(|mut lines| {
        lines.sort_unstable();
        lines.dedup();
        let text = lines.concat();
        if text.is_empty() {
            b"{}\n".to_vec()
        } else {
            text.into_bytes()
        }
    })
}

/// A bundle with odd names, data and a manifest. The names of a folder's files have no prefix.
fn files(prefixes: &'static [&'static str]) -> impl Strategy<Value = Files> {
    let prefix = || select(prefixes);
    let name = |folder: &'static str, base: &'static str| {
        prefix().prop_map(move |prefix| format!("{prefix}{folder}{base}"))
    };
    let manifest =
        (name("", ".manifest"), json_object(json_value())).prop_map(|(name, metadata)| {
            let text = [
                b"{\"revision\": \"r\\u0001\", \"metadata\":",
                metadata.as_slice(),
                b"}",
            ];
            (name, text.concat())
        });
    let data = (name("a/", "data.json"), json_object(json_value()));
    let nested = (name("b/ü x/", "data.json"), json_value());
    let yaml = (select(vec!["data.yaml", "data.yml"]), prefix(), yaml())
        .prop_map(|(base, prefix, text)| (format!("{prefix}c/{base}"), text));
    let other = (
        select(vec![
            "README.md",
            "d/odd \u{2028}\t'\"$.txt",
            "e/x.json",
            "f/x.manifest.bak",
        ]),
        prefix(),
        vec(any::<u8>(), 0..64),
    )
        .prop_map(|(name, prefix, content)| (format!("{prefix}{name}"), content));
    let rego = name("p/", "p.rego").prop_map(|name| (name, b"package p\n\nx := 1\n".to_vec()));
    (
        proptest::option::of(manifest),
        proptest::option::of(data),
        proptest::option::of(nested),
        proptest::option::of(yaml),
        proptest::option::of(other),
        rego,
    )
        .prop_map(|(manifest, data, nested, yaml, other, rego)| {
            let optional = [manifest, data, nested, yaml, other];
            optional.into_iter().flatten().chain([rego]).collect()
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_verifies_the_signatures_of_random_bundles() {
    let key = Arc::new(GatewayKey::generate());
    let mut runner = TestRunner::default();
    let strategy = files(&["", "/", "./"]);
    let signed: Vec<_> = (0..cases())
        .map(|_| {
            let files = strategy.new_tree(&mut runner).unwrap().current();
            let signed = key.sign(tarball(&files));
            let signed = signed.unwrap_or_else(|error| panic!("{error}: {}", shown(&files)));
            (files, signed)
        })
        .collect();
    // Another key of the same name verifies none of them.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bundle.tar.gz");
    fs::write(&file, &signed[0].1).unwrap();
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        let refused = GatewayKey::generate().verify(version, &file).await;
        let error = refused.unwrap_err();
        assert!(error.contains("verify"), "{version:?}: {error}");
    }
    // Two processes at a time. Every tenth is verified by OPA 0.70 as well.
    let (even, odd): (Vec<_>, Vec<_>) = signed
        .into_iter()
        .enumerate()
        .partition(|(at, _)| at % 2 == 0);
    let verify = async |half: Vec<(usize, (Files, Vec<u8>))>| {
        let folder = TempDir::new().unwrap();
        for (at, (files, signed)) in half {
            let file = folder.path().join("bundle.tar.gz");
            fs::write(&file, signed).unwrap();
            let versions = match at % 10 {
                0 | 1 => &[OpaVersion::Newest, OpaVersion::V0_70][..],
                _ => &[OpaVersion::Newest],
            };
            for version in versions {
                let verified = key.verify(*version, &file).await;
                verified.unwrap_or_else(|error| panic!("{version:?}: {error}: {}", shown(&files)));
            }
        }
    };
    tokio::join!(verify(even), verify(odd));
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_a_folder_are_those_of_opa_sign() {
    let key = GatewayKey::generate();
    let mut runner = TestRunner::default();
    let strategy = files(&[""]);
    for _ in 0..cases().div_ceil(5) {
        let files = strategy.new_tree(&mut runner).unwrap().current();
        let folder = TempDir::new().unwrap();
        for (name, content) in &files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let (ours, count) = sign_folder(folder.path(), &key.signer(), 1 << 20).unwrap();
        assert_eq!(count, files.len());
        let key_file = key.file();
        let arguments = ["sign", "--signing-alg", "ES256", "--signing-key"];
        let arguments = [&arguments[..], &[key_file.to_str().unwrap(), "-b", "."]].concat();
        run("opa", folder.path(), &arguments).await;
        let theirs = fs::read_to_string(folder.path().join(".signatures.json")).unwrap();
        assert_eq!(claims(&ours), claims(&theirs), "{}", shown(&files));
    }
}

/// The hash and its algorithm by file.
fn claims(file: &str) -> BTreeMap<String, (Value, Value)> {
    let file: Value = serde_json::from_str(file).unwrap();
    let token = file["signatures"][0].as_str().unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap());
    let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
    let files = claims["files"].as_array().unwrap().iter();
    files
        .map(|file| {
            let name = file["name"].as_str().unwrap().to_owned();
            (name, (file["hash"].clone(), file["algorithm"].clone()))
        })
        .collect()
}

fn shown(files: &Files) -> String {
    let files = files.iter();
    files
        .map(|(name, content)| format!("\n{name:?}: {}", content.escape_ascii()))
        .collect()
}
