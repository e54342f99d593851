//! `server`, `long_poll`, `limits` and `cache`, which change while bundles are served.

use super::*;

impl TestGateway {
    /// Changes the configuration, and waits until it is applied. `changed` is the field of the log
    /// that says so.
    async fn reconfigure(&self, config: &Value, changed: &str) {
        const READ: &str = "configuration read again";
        let before = self.lines(READ).len();
        self.write("bundlegate.yaml", config.to_string());
        self.until(changed, async || {
            let lines = self.lines(READ);
            let mut later = lines.iter().skip(before);
            later.any(|line| line[changed] == true).then_some(())
        })
        .await;
    }

    async fn connections(&self) -> usize {
        self.metric("bundlegate_connections").await as usize
    }
}

/// A gateway with a signed bundle, its configuration, and the entity tag of the bundle.
async fn serving(registry: &FaultyRegistry, signer: &Signer) -> (TestGateway, Value, String) {
    let config = config(registry);
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let gateway = TestGateway::start(key, &config).await;
    let etag = tag(&gateway.get("", 60).await);
    (gateway, config, etag)
}

#[tokio::test]
async fn a_shorter_wait_counts_for_new_requests_and_those_that_are_held_stay_held() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let (gateway, mut config, etag) = serving(&registry, &signer).await;
    let held = gateway.long_poll("authz", &etag);
    gateway
        .until("the request is held", async || {
            let waiters = gateway
                .metric(r#"bundlegate_waiters{bundle="authz"}"#)
                .await;
            (waiters == 1.0).then_some(())
        })
        .await;
    config["long_poll"] = json!({ "max_wait": "1s" });
    gateway.reconfigure(&config, "server").await;
    let reply = gateway.get(&etag, 300).await;
    assert_eq!(reply.status(), StatusCode::NOT_MODIFIED);
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test]
async fn fewer_connections_close_idle_ones_and_leave_long_polls_alone() {
    const CLIENTS: usize = 6;
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let (gateway, mut config, etag) = serving(&registry, &signer).await;
    let held = gateway.long_poll("authz", &etag);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| reqwest::Client::builder().no_proxy().build().unwrap())
        .collect();
    let url = format!("{}/bundles/authz", gateway.url);
    let ask_all = async || {
        for client in &clients {
            let response = client.get(&url).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            response.bytes().await.unwrap();
        }
    };
    ask_all().await;
    assert!(gateway.connections().await > CLIENTS);
    config["server"]["max_connections"] = json!(3);
    gateway.reconfigure(&config, "server").await;
    gateway
        .until("idle connections are closed", async || {
            (gateway.connections().await <= 3).then_some(())
        })
        .await;
    assert!(!held.is_finished());
    // Each of them connects again, and closes one that is idle.
    ask_all().await;
    assert!(gateway.connections().await <= 3);
    config["server"]["max_connections"] = json!(100);
    gateway.reconfigure(&config, "server").await;
    ask_all().await;
    assert!(gateway.connections().await > CLIENTS);
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test]
async fn other_limits_are_those_of_the_next_version_and_what_is_served_stays() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let (gateway, mut config, etag) = serving(&registry, &signer).await;
    let held = gateway.long_poll("authz", &etag);
    config["limits"] = json!({ "files": 3 });
    config["cache"] = json!({ "memory": "1MiB" });
    gateway.reconfigure(&config, "limits").await;
    let files =
        ["a", "b", "c", "d"].map(|name| (format!("{name}.rego"), format!("package {name}")));
    let files = files
        .each_ref()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    let (digest, _) = registry.put_artifact("live", &crate::gateway::packed(&files));
    signer.sign_bundle(&registry, &digest);
    let refused = gateway.refreshed("authz").await;
    assert!(refused.to_string().contains("limits.files"), "{refused}");
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
    assert!(!held.is_finished());
    config["limits"] = json!({ "files": 100 });
    gateway.reconfigure(&config, "limits").await;
    let updated = held.await.unwrap();
    assert_eq!(updated.status(), StatusCode::OK);
    assert_ne!(tag(&updated), etag);
}
