//! Patterns that are added, changed and removed in the configuration of a running gateway.

use tokio::task::JoinHandle;

use super::*;

/// A pattern over all tags of the repository, beside the bundle of the base configuration.
fn with_pattern(registry: &FaultyRegistry) -> Value {
    let mut config = config(registry);
    config["patterns"] = json!([{
        "resource": "teams/{tag}",
        "reference": format!("{}/acme/authz:{{tag}}", registry.address),
        "trust": "release",
        "poll": "1h",
    }]);
    config
}

async fn start(signer: &Signer, config: &Value) -> TestGateway {
    let keys = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("unused.pub"), Signer::new().public_pem()).unwrap();
    };
    TestGateway::start(keys, config).await
}

/// A request of a client that runs the version with this tag, once it is held.
async fn held(gateway: &TestGateway, name: &str, etag: &str) -> JoinHandle<Response> {
    let request = gateway.asking(name, etag, 120);
    let held = tokio::spawn(async move { request.send().await.unwrap() });
    gateway
        .status_when(name, "a held request", |status| status["waiters"] == 1)
        .await;
    held
}

async fn is_applied(gateway: &TestGateway, config: &Value) {
    let applied = || {
        let lines = gateway.lines("configuration read again").into_iter();
        lines.filter(|line| line["outcome"] == "applied")
    };
    let before = applied().count();
    gateway.write("bundlegate.yaml", config.to_string());
    gateway
        .until("it is applied", async || applied().nth(before))
        .await;
}

#[tokio::test]
async fn a_key_that_is_revoked_withdraws_bundles_on_demand_and_other_options_leave_them() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let mut config = with_pattern(&registry);
    let gateway = start(&signer, &config).await;
    let etag = tag(&gateway.get_of("teams/live", "", 60).await);
    let held = held(&gateway, "teams/live", &etag).await;
    config["patterns"][0]["idle"] = json!("2h");
    config["patterns"][0]["max"] = json!(5);
    is_applied(&gateway, &config).await;
    assert!(!held.is_finished());
    dead(&registry);
    let keys = json!([{ "file": "key.pub", "revoked": true }, "unused.pub"]);
    config["trust"]["authorities"]["release"]["keys"] = keys;
    is_applied(&gateway, &config).await;
    gateway
        .status_when("teams/live", "it is withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    let refused = gateway.get_of("teams/live", &etag, 0).await;
    assert_eq!(error(refused).await["reason"], "withdrawn");
    held.abort();
}

/// The registry is dead meanwhile, so nothing but the version that is served can be served.
#[tokio::test]
async fn another_poll_interval_takes_no_version_away_and_is_in_force_once_the_registry_answers() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let mut config = with_pattern(&registry);
    let gateway = start(&signer, &config).await;
    let etag = tag(&gateway.get_of("teams/live", "", 60).await);
    let held = held(&gateway, "teams/live", &etag).await;
    registry.refuse("", 503, "");
    config["patterns"][0]["poll"] = json!("200ms");
    is_applied(&gateway, &config).await;
    for _ in 0..3 {
        assert_eq!(tag(&gateway.get_of("teams/live", "", 0).await), etag);
    }
    assert!(!held.is_finished());
    registry.heal();
    let (digest, _) = registry.put_artifact("live", &bundle("two"));
    signer.sign_bundle(&registry, &digest);
    let changed = held.await.unwrap();
    assert_eq!(changed.bytes().await.unwrap(), bundle("two"));
    assert_eq!(
        gateway.bundle_status("teams/live").await["state"],
        "serving"
    );
}

#[tokio::test]
async fn patterns_come_and_go_while_requests_are_held() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let base = config(&registry);
    let gateway = start(&signer, &base).await;
    let etag = tag(&gateway.get("", 60).await);
    let unknown = error(gateway.get_of("teams/live", "", 0).await).await;
    assert_eq!(unknown["reason"], "not_found");
    let patterns = with_pattern(&registry);
    is_applied(&gateway, &patterns).await;
    assert_eq!(tag(&gateway.get_of("teams/live", "", 60).await), etag);
    let hold = |name| {
        let request = gateway.asking(name, &etag, 120);
        tokio::spawn(async move { request.send().await.unwrap() })
    };
    let (configured, on_demand) = (hold("authz"), hold("teams/live"));
    for name in ["authz", "teams/live"] {
        gateway
            .status_when(name, "a held request", |status| status["waiters"] == 1)
            .await;
    }
    // A name that is configured now continues under its own configuration.
    let mut both = patterns.clone();
    both["bundles"]["teams/live"] = both["bundles"]["authz"].clone();
    is_applied(&gateway, &both).await;
    gateway
        .status_when("teams/live", "it is configured", |status| {
            status["pattern"].is_null() && status["state"] == "serving"
        })
        .await;
    assert!(!on_demand.is_finished());
    is_applied(&gateway, &base).await;
    let gone = on_demand.await.unwrap();
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    assert_eq!(error(gone).await, unknown);
    assert!(!configured.is_finished());
    assert_eq!(gateway.bundle_status("teams/live").await, Value::Null);
    configured.abort();
}
