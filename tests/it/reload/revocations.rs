//! One edit that revokes or removes trust and also re-points or renames bundles.

use super::*;

/// One edit revokes trust and renames authority, policy and bundles. One bundle keeps its name and
/// gets another reference, the other one is renamed.
#[tokio::test]
async fn what_one_edit_revokes_or_removes_counts_for_bundles_that_it_re_points_or_renames() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let digest = registry
        .held("manifests/live")
        .map(|(_, bytes)| Digest::sha256(&bytes))
        .unwrap();
    for what in [
        "a key",
        "a key under another name",
        "a digest",
        "a digest of what is unsigned",
    ] {
        let key = |folder: &TempDir| {
            fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
            let unused = Signer::new().public_pem();
            fs::write(folder.path().join("unused.pub"), unused).unwrap();
        };
        let config = before(what, &registry);
        let gateway = TestGateway::start(key, &config).await;
        let etag = tag(&gateway.get("", 60).await);
        let is_served =
            async || (gateway.bundle_status("second").await["state"] == "serving").then_some(());
        gateway.until("the second is served", is_served).await;
        dead(&registry);
        let config = edited(what, config, &registry, &digest);
        gateway.write("bundlegate.yaml", config.to_string());
        let read = gateway
            .said("configuration read again", |line| {
                line["outcome"] == "applied"
            })
            .await;
        let counts =
            ["bundles", "added", "replaced", "removed"].map(|key| read[key].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 1, 1], "{what}");
        gateway
            .status_when("authz", "it is withdrawn", |status| {
                status["state"] == "withdrawn"
            })
            .await;
        assert_eq!(
            gateway.get(&etag, 0).await.status(),
            StatusCode::NOT_FOUND,
            "{what}"
        );
        assert_eq!(
            error(gateway.get_of("second", &etag, 0).await).await["reason"],
            "not_found",
            "{what}"
        );
        assert_eq!(gateway.bundle_status("second").await, Value::Null, "{what}");
        // The version is not served under the other name either, once the registry answers.
        registry.heal();
        let refused = async || {
            (gateway.bundle_status("second-v2").await["state"] == "withdrawn").then_some(())
        };
        gateway
            .until("it is refused under the other name", refused)
            .await;
    }
}

/// Two bundles from one reference.
fn before(what: &str, registry: &FaultyRegistry) -> Value {
    let mut config = config(registry);
    // With a short timeout, a request that the dead registry holds ends soon.
    config["registries"][registry.address.to_string()]["timeouts"] = json!({ "read": "1s" });
    if what == "a digest of what is unsigned" {
        config["trust"]["policies"]["dev"] = json!("unsigned");
        config["bundles"]["authz"]["trust"] = json!("dev");
    }
    config["bundles"]["second"] = config["bundles"]["authz"].clone();
    config
}

/// Revokes `what`, and renames the policy. `authz` gets another reference, `second` another name.
fn edited(what: &str, mut config: Value, registry: &FaultyRegistry, digest: &Digest) -> Value {
    let revoked = json!([{ "file": "key.pub", "revoked": true }]);
    let (authority, keys, digests) = match what {
        "a key" => ("release", revoked, json!([])),
        "a key under another name" => ("signers", revoked, json!([])),
        _ => ("signers", json!(["unused.pub"]), json!([digest])),
    };
    let mut bundle = config["bundles"]["authz"].clone();
    bundle["trust"] = json!("renamed");
    config["trust"] = json!({
        "authorities": { authority: { "keys": keys, "tlog": "none" } },
        "policies": { "renamed": {
            "require": { "any_of": [authority] },
            "revoked_digests": digests,
        } },
    });
    let mut re_pointed = bundle.clone();
    re_pointed["reference"] = json!(registry.reference("next").to_string());
    config["bundles"] = json!({ "authz": re_pointed, "second-v2": bundle });
    config
}

#[tokio::test]
async fn a_trust_root_that_one_edit_removes_counts_for_a_bundle_that_it_re_points() {
    let forge = Sigstore::new();
    let registry = FaultyRegistry::start().await;
    let mut config = signed_by_certificate(&registry, &forge);
    let files = |folder: &TempDir| {
        fs::write(
            folder.path().join("root.json"),
            forge.trusted_root().to_string(),
        )
        .unwrap();
        fs::write(folder.path().join("key.pub"), Signer::new().public_pem()).unwrap();
    };
    let gateway = TestGateway::start(files, &config).await;
    gateway.get("", 60).await;
    dead(&registry);
    let mut bundle = config["bundles"]["authz"].clone();
    bundle["trust"] = json!("renamed");
    config["trust"] = json!({
        "authorities": { "signers": { "keys": ["key.pub"], "tlog": "none" } },
        "policies": { "renamed": { "require": { "any_of": ["signers"] } } },
    });
    bundle["reference"] = json!(registry.reference("next").to_string());
    config["bundles"] = json!({ "authz": bundle });
    gateway.write("bundlegate.yaml", config.to_string());
    gateway
        .status_when("authz", "it is withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
}

/// The other half: a version that no edit revokes is served further.
#[tokio::test]
async fn a_bundle_that_is_re_pointed_with_its_policy_renamed_is_served_until_the_other_version_is_there()
 {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let mut config = config(&registry);
    let gateway = TestGateway::start(key, &config).await;
    let etag = tag(&gateway.get("", 60).await);
    let mut bundle = config["bundles"]["authz"].clone();
    bundle["trust"] = json!("renamed");
    config["trust"]["policies"] = json!({ "renamed": { "require": { "any_of": ["release"] } } });
    bundle["reference"] = json!(registry.reference("next").to_string());
    config["bundles"] = json!({ "authz": bundle });
    gateway.write("bundlegate.yaml", config.to_string());
    gateway
        .said("configuration read again", |line| line["replaced"] == 1)
        .await;
    let missing = |status: &Value| status["last_failure"]["class"] == "not_found";
    let status = gateway
        .status_when("authz", "the other reference names nothing", missing)
        .await;
    assert_eq!(
        (&status["state"], &status["reference"]),
        (&json!("serving"), &bundle["reference"])
    );
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
    let (digest, _) = registry.put_artifact("next", &crate::gateway::bundle("two"));
    signer.sign_bundle(&registry, &digest);
    config["bundles"]["authz"]["poll"] = json!("1s");
    gateway.write("bundlegate.yaml", config.to_string());
    let served = |status: &Value| status["manifest"] == digest.to_string();
    let status = gateway
        .status_when("authz", "the other version is served", served)
        .await;
    assert_eq!(
        (&status["policy"], &status["last_failure"]),
        (&json!("renamed"), &Value::Null)
    );
    assert_ne!(tag(&gateway.get(&etag, 60).await), etag);
}
