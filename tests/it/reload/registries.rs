//! `registries` and the files that they name, which change while bundles are served.

use super::*;
use crate::access::{Access, Scheme};

/// A gateway with the bundle `authz` from a registry that has a password, and `other` from one that
/// has none.
async fn with_password(
    registry: &FaultyRegistry,
    other: &FaultyRegistry,
    signer: &Signer,
) -> TestGateway {
    registry.protect(Access::new(Scheme::Bearer, "robot:one"));
    let mut config = config(registry);
    let host = registry.address.to_string();
    config["registries"][&host]["credentials"] =
        json!({ "username": "robot", "password_file": "password" });
    config["registries"][other.address.to_string()] = json!({ "scheme": "http" });
    config["bundles"]["other"] = json!({
        "reference": other.reference("live").to_string(), "trust": "release", "poll": "1h",
    });
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("password"), "one\n").unwrap();
    };
    TestGateway::start(files, &config).await
}

impl TestGateway {
    /// Has the registry checked, and returns what `/refresh` answers.
    pub(super) async fn refreshed(&self, name: &str) -> Value {
        let url = format!("http://{}/refresh/{name}", self.admin);
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json");
        let response = request.send().await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    /// A long poll of a client that has this version.
    pub(super) fn long_poll(&self, name: &str, etag: &str) -> tokio::task::JoinHandle<Response> {
        let request = self.asking(name, etag, 60);
        tokio::spawn(async move { request.send().await.unwrap() })
    }
}

#[tokio::test]
async fn a_password_that_is_rotated_counts_at_once_and_no_other_bundle_notices() {
    let signer = Signer::new();
    let (registry, other) = (registry(&signer).await, registry(&signer).await);
    let gateway = with_password(&registry, &other, &signer).await;
    let etag = tag(&gateway.get("", 60).await);
    let etag_of_other = tag(&gateway.get_of("other", "", 60).await);
    let polls = [
        gateway.long_poll("authz", &etag),
        gateway.long_poll("other", &etag_of_other),
    ];
    // The password has changed in the registry, and there is another version.
    registry.access(|access| access.rotate("robot:two"));
    let (digest, _) = registry.put_artifact("live", &bundle("two"));
    signer.sign_bundle(&registry, &digest);
    let refused = gateway.refreshed("authz").await;
    assert!(refused.to_string().contains("denied"), "{refused}");
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
    let requests_to_other = other.count();

    // The next poll is an hour away: only the change of the file causes the check that follows.
    gateway.write("password", "two\n");
    let read = gateway
        .said("configuration read again", |line| {
            line["registries"] == true
        })
        .await;
    assert_eq!(
        (&read["outcome"], &read["replaced"]),
        (&json!("applied"), &json!(0))
    );
    let [updated, waiting] = polls;
    let updated = updated.await.unwrap();
    assert_eq!(updated.status(), StatusCode::OK);
    assert_ne!(tag(&updated), etag);
    assert_eq!(
        gateway.bundle_status("authz").await["last_failure"],
        Value::Null
    );
    assert!(!waiting.is_finished(), "the other bundle has not changed");
    waiting.abort();
    assert_eq!(other.count(), requests_to_other);
}

#[tokio::test]
async fn a_registry_moves_to_another_user_and_options_that_are_wrong_change_nothing() {
    let signer = Signer::new();
    let (registry, other) = (registry(&signer).await, registry(&signer).await);
    let gateway = with_password(&registry, &other, &signer).await;
    let etag = tag(&gateway.get("", 60).await);
    let poll = gateway.long_poll("authz", &etag);
    let text = fs::read_to_string(gateway.path("bundlegate.yaml")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let host = registry.address.to_string();
    // A user whose password can't be read, together with a change that would be valid alone.
    config["registries"][&host]["credentials"] =
        json!({ "username": "admin", "password_file": "secret" });
    config["registries"][other.address.to_string()]["max_concurrent"] = json!(1);
    gateway.write("bundlegate.yaml", config.to_string());
    gateway
        .said("configuration refused: the one in force stays", |line| {
            line["error"]
                .to_string()
                .contains("credentials.password_file")
        })
        .await;
    assert_eq!(gateway.refreshed("authz").await["outcome"], "unchanged");
    assert_eq!(gateway.lines("configuration read again").len(), 0);

    registry.access(|access| access.rotate("admin:three"));
    let (digest, _) = registry.put_artifact("live", &bundle("two"));
    signer.sign_bundle(&registry, &digest);
    gateway.write("secret", "three");
    gateway
        .said("configuration read again", |line| {
            line["registries"] == true
        })
        .await;
    assert_eq!(gateway.refreshed("authz").await["outcome"], "changed");
    assert_ne!(tag(&poll.await.unwrap()), etag);
}
