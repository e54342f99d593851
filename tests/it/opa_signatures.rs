//! OPA's own signatures: on the command line (`build --signing-key`, `sign --opa`), and of a version on
//! disk.

use std::{fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bundlegate::{
    bundle::{PublicKey, Signer, SigningAlgorithm, VerificationKey, Verifier},
    watch::ArtifactOptions,
};
use serde_json::{Value, json};

use crate::{
    cache::on_disk,
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry},
    gateway::{InProcess, Setup, TestGateway, bundle, eventually},
};

fn author() -> Author {
    let author = Author::with(&[
        ("policy/p.rego", "package p\n\nx := 1\n"),
        ("policy/cfg/data.yaml", "a: 1\n"),
        ("secret", "0123456789abcdef0123456789abcdef"),
    ]);
    let key = rcgen::KeyPair::generate().unwrap();
    author.write("opa.pem", &key.serialize_pem());
    author.write("opa.pub", &key.public_key_pem());
    author
}

/// The header and the claims of a signature file.
fn decoded(file: &str) -> (Value, Value) {
    let file: Value = serde_json::from_str(file).unwrap();
    let token = file["signatures"][0].as_str().unwrap();
    let mut parts = token.split('.').map(|part| {
        let part = URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&part).unwrap_or_default()
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

fn names(claims: &Value) -> Vec<&str> {
    let files = claims["files"].as_array().unwrap().iter();
    files.map(|file| file["name"].as_str().unwrap()).collect()
}

/// The signature file in a tarball.
fn signature_in(tarball: &[u8]) -> String {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(tarball));
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries
        .find(|entry| &*entry.path_bytes() == b".signatures.json")
        .unwrap();
    let mut content = String::new();
    std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
    content
}

#[track_caller]
fn fails(ran: &Ran, code: i32, message: &str) {
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
    assert!(ran.stderr.contains(message), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
}

#[test]
fn a_build_is_signed_with_the_flags_of_opa_build() {
    let author = author();
    let ran = author.line(
        "build policy -t reg.example/a:v1 --signing-key opa.pem --signing-alg ES256 --verification-key-id team --scope write",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("4 files"), "{ran:?}");
    let ran = author.line("save reg.example/a:v1 -o bundle.tar.gz");
    assert_eq!(ran.code, 0, "{ran:?}");
    let tarball = fs::read(author.path("bundle.tar.gz")).unwrap();
    let (header, claims) = decoded(&signature_in(&tarball));
    assert_eq!(header, json!({ "alg": "ES256", "kid": "team" }));
    assert_eq!(claims["scope"], "write");
    assert_eq!(names(&claims), ["p.rego", ".manifest", "cfg/data.json"]);

    let ran =
        author.line("build policy -t reg.example/a:v2 --signing-key secret --signing-alg HS256");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains(
            "--signing-alg HS256: every OPA that can check the signature can forge one; prefer ES256"
        ),
        "{ran:?}"
    );
    for (flags, code, message) in [
        (
            "--signing-key opa.pem",
            1,
            "--signing-key opa.pem: it has an ECDSA key on P-256, but RS256 needs an RSA key; name the right file, or another --signing-alg",
        ),
        ("--signing-key none.pem", 1, "--signing-key none.pem"),
        (
            "--signing-key opa.pem --signing-alg EdDSA",
            2,
            "\"EdDSA\" is not one of ES256, ES384,",
        ),
        ("--signing-alg ES256", 2, "--signing-key"),
    ] {
        let ran = author.line(&format!("build policy -t reg.example/a:v3 {flags}"));
        fails(&ran, code, message);
    }
    let listed = author.line("images --json");
    assert!(!listed.stdout.contains("v3"), "{listed:?}");
}

#[test]
fn sign_opa_writes_the_signature_of_a_folder() {
    let author = author();
    let ran = author.line("sign --opa --key opa.pem --signing-alg ES256 policy");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.stdout,
        "policy/.signatures.json\n2 files, signed by default (ES256)\n"
    );
    let file = fs::read_to_string(author.path("policy/.signatures.json")).unwrap();
    let (header, claims) = decoded(&file);
    assert_eq!(header, json!({ "alg": "ES256", "kid": "default" }));
    assert_eq!(names(&claims), ["cfg/data.yaml", "p.rego"]);
    // It does not sign itself, and can be put elsewhere.
    let ran = author.line("sign --opa --key opa.pem --signing-alg ES256 policy -o . --json");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        report,
        json!({ "file": "./.signatures.json", "files": 2, "algorithm": "ES256", "kid": "default" })
    );
    for (line, code, message) in [
        (
            "sign --opa --key opa.pem reg.example/a:v1",
            1,
            "--opa reg.example/a:v1: no such folder; name one, or omit --opa to sign an artifact",
        ),
        (
            "sign --key opa.pem policy",
            1,
            "policy: a folder; sign it for OPA with --opa, or name an artifact",
        ),
        ("sign --opa --key opa.pem --legacy policy", 2, "--legacy"),
        (
            "sign --key opa.pem --scope write reg.example/a:v1",
            2,
            "--opa",
        ),
        (
            "sign --opa --key opa.pub --signing-alg ES256 policy",
            1,
            "--key opa.pub: it has a PEM block \"PUBLIC KEY\" instead of PRIVATE KEY,",
        ),
    ] {
        fails(&author.line(line), code, message);
    }
    author.write("policy/data.json", "{");
    let ran = author.line("sign --opa --key opa.pem --signing-alg ES256 policy");
    fails(&ran, 1, "policy/data.json");
}

/// The key of a replica. Two of the same secret are equal.
fn signer(kid: &str) -> Arc<Signer> {
    let secret = b"0123456789abcdef0123456789abcdef";
    Arc::new(Signer::new(secret, SigningAlgorithm::Hs256, kid, "").unwrap())
}

/// A stored version is signed or verified by the configuration of the restart, before it is served.
#[tokio::test]
async fn what_lies_on_disk_is_signed_and_verified_by_the_keys_of_now() {
    let registry = FaultyRegistry::start().await;
    let cache = tempfile::tempdir().unwrap();
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let gate = async |artifact: ArtifactOptions| {
        let setup = Setup {
            artifact,
            cache: on_disk(&cache),
            ..Setup::default()
        };
        TestGateway::with(&registry, setup).await
    };
    let signing = |kid: &str| ArtifactOptions {
        signer: Some(signer(kid)),
        ..ArtifactOptions::default()
    };
    let tag = async |gate: &TestGateway<InProcess>| {
        let is_it = || gate.status().manifest.as_ref() == Some(&digest);
        eventually("the version is served", is_it).await;
        gate.status().etag.unwrap()
    };
    let first = gate(signing("gateway")).await;
    let etag = tag(&first).await;
    first.end(cache.path()).await;
    registry.fail("", usize::MAX, Fault::Status(500, vec![]));
    let again = gate(signing("gateway")).await;
    assert_eq!(tag(&again).await, etag);
    again.end(cache.path()).await;
    let other = gate(signing("other")).await;
    assert_ne!(tag(&other).await, etag);
    other.end(cache.path()).await;
    let key = VerificationKey {
        kid: "team".to_owned(),
        scope: String::new(),
        key: PublicKey::parse(b"secret", SigningAlgorithm::Hs256).unwrap(),
    };
    let strict = gate(ArtifactOptions {
        opa_verifier: Verifier::new(vec![key]).map(Arc::new),
        ..signing("gateway")
    });
    let strict = strict.await;
    eventually("a failure", || strict.last_failure().is_some()).await;
    assert_eq!(strict.status().manifest, None);
}
