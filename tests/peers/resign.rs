//! OPA's own signatures, made here and verified by real OPAs.

mod gateway;

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

use crate::support::{OpaVersion, program, run};

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
