//! `resign` and `opa_signature`: what is served of a bundle, and what a changed key file does.

use bundlegate::bundle::{Bundle, Contents, Limits};
use bundlegate::oci::{Blob, Descriptor};

use super::*;
use crate::command::Author;

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 100,
    bundle_manifest: 1 << 20,
};

fn key_pair() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().unwrap()
}

/// The entity tag, and the names of the files.
async fn served(gateway: &TestGateway, etag: &str) -> (String, Vec<String>) {
    let response = gateway.get(etag, 60).await;
    assert_eq!(response.status(), StatusCode::OK);
    let etag = tag(&response);
    let bytes = response.bytes().await.unwrap();
    let blob = Blob::check(&Descriptor::of("", &bytes), bytes).unwrap();
    let contents = Contents::of(&Bundle::open(blob, &LIMITS).unwrap()).unwrap();
    let names = contents.files.into_iter().map(|(name, _)| name);
    (etag, names.collect())
}

#[tokio::test]
async fn a_changed_key_signs_anew_and_replicas_with_one_key_have_one_tag() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let mut config = config(&registry);
    config["cache"] = json!({ "directory": "cache" });
    config["bundles"]["authz"]["resign"] = json!({ "key": "opa.pem", "kid": "gateway" });
    let opa = key_pair().serialize_pem();
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("opa.pem"), &opa).unwrap();
    };
    let gateway = TestGateway::start(files, &config).await;
    let (etag, names) = served(&gateway, "").await;
    assert_eq!(names.last().unwrap(), ".signatures.json");
    let replica = TestGateway::start(files, &config).await;
    assert_eq!(served(&replica, "").await.0, etag);

    // A long poll gets the version that is signed by the new key, without a push.
    let held = gateway.long_poll("authz", &etag);
    gateway.write("opa.pem", key_pair().serialize_pem());
    let response = held.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_ne!(tag(&response), etag);
    let log = gateway.log();
    let log = serde_json::to_string(&log).unwrap();
    assert!(!log.contains("PRIVATE"), "{log}");
}

#[tokio::test]
async fn a_version_without_a_signature_by_a_known_key_is_never_served() {
    let signer = Signer::new();
    let registry = FaultyRegistry::start().await;
    let author = Author::new();
    author.write("policy/p.rego", "package p\n\nx := 1\n");
    let team = key_pair();
    author.write("team.pem", &team.serialize_pem());
    let signed = |kid: &str| {
        let built = author.line(&format!(
            "build policy -t reg.example/a:v1 --signing-key team.pem --signing-alg ES256 --signing-kid {kid}"
        ));
        assert_eq!(built.code, 0, "{}", built.stderr);
        let saved = author.line(&format!("save reg.example/a:v1 -o {kid}.tar.gz"));
        assert_eq!(saved.code, 0, "{}", saved.stderr);
        fs::read(author.path(&format!("{kid}.tar.gz"))).unwrap()
    };
    let push = |bytes: Vec<u8>| {
        let (digest, _) = registry.put_artifact("live", &bytes);
        signer.sign_bundle(&registry, &digest);
        digest
    };
    push(signed("team"));
    let mut config = config(&registry);
    config["cache"] = json!({ "directory": "cache" });
    config["bundles"]["authz"]["poll"] = json!("100ms");
    config["bundles"]["authz"]["opa_signature"] = json!("verify");
    config["bundles"]["authz"]["opa_keys"] = json!([{ "file": "team.pub", "kid": "team" }]);
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("team.pub"), team.public_key_pem()).unwrap();
    };
    let gateway = TestGateway::start(files, &config).await;
    let (etag, _) = served(&gateway, "").await;
    for (bytes, reason) in [
        (
            bundle("unsigned").to_vec(),
            "the bundle has no OPA signature (.signatures.json)",
        ),
        (
            signed("other"),
            "the OPA signature names the key \"other\", which opa_keys does not have",
        ),
    ] {
        let digest = push(bytes);
        let status = gateway
            .status_when("authz", "refused", |status| {
                status["last_failure"]["digest"] == digest.to_string()
            })
            .await;
        let failure = &status["last_failure"];
        assert_eq!(
            (&failure["class"], &failure["step"]),
            (&json!("defect"), &json!("open"))
        );
        assert!(
            failure["message"].as_str().unwrap().starts_with(reason),
            "{failure}"
        );
        assert_eq!(status["state"], "serving");
        assert_eq!(status["etag"], etag);
    }
}
