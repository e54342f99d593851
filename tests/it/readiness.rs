//! `/readyz` and `server.ready_after`: what a replica waits for before it takes part.

use std::{fs, time::Duration};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    faulty::{Fault, FaultyRegistry, Hold},
    gateway::bundle,
    shared::{TestGateway, poll_until},
    signing::Signer,
};

/// A configuration of bundles with these names, references and policies. `dev` is unsigned, and the
/// key of `release` is in `key.pub`.
fn config(registries: &[&FaultyRegistry], bundles: &[(&str, String, &str)]) -> Value {
    let http = |registry: &&FaultyRegistry| {
        let options = json!({ "scheme": "http", "timeouts": { "connect": "1s", "read": "1s", "total": "2s" } });
        (registry.address.to_string(), options)
    };
    let bundle = |(name, reference, trust): &(&str, String, &str)| {
        let bundle = json!({ "reference": reference, "trust": trust, "poll": "1s" });
        ((*name).to_owned(), bundle)
    };
    json!({
        "version": 1,
        "server": {
            "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ready_after": "1h",
            "drain": { "notice": "1h", "over": "0s" },
        },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": registries.iter().map(http).collect::<serde_json::Map<_, _>>(),
        "trust": {
            "authorities": { "release": { "keys": ["key.pub"], "tlog": "none" } },
            "policies": { "dev": "unsigned", "release": { "require": { "any_of": ["release"] } } },
        },
        "bundles": bundles.iter().map(bundle).collect::<serde_json::Map<_, _>>(),
    })
}

async fn started(config: &Value) -> TestGateway {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("key.pub"), Signer::new().public_pem()).unwrap();
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    TestGateway::run(folder).await
}

impl TestGateway {
    /// The status of `/readyz`, and the bundles that it waits for.
    async fn readyz(&self) -> (StatusCode, Value) {
        let response = self.admin_response("/readyz").await;
        let status = response.status();
        let mut body: Value = response.json().await.unwrap();
        (status, body["waiting_for"].take())
    }

    async fn readyz_until(&self, what: &str, status: StatusCode, waiting_for: Value) {
        let expected = (status, waiting_for);
        poll_until(what, async || {
            (self.readyz().await == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn ready_after_makes_a_replica_ready_although_a_registry_hangs() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, Fault::Stall);
    // A busy machine may need longer for the first request than a replica is unready.
    for seconds in [2, 8, 32] {
        let live = registry.reference("live").to_string();
        let mut config = config(&[&registry], &[("authz", live, "dev")]);
        config["server"]["ready_after"] = json!(format!("{seconds}s"));
        let began = Instant::now();
        let gateway = started(&config).await;
        let is_ready = async || gateway.readyz().await.0 == StatusCode::OK;
        let was_unready = !is_ready().await;
        poll_until("it is ready", async || is_ready().await.then_some(())).await;
        assert!(
            began.elapsed() >= Duration::from_secs(seconds),
            "ready after {:?}",
            began.elapsed()
        );
        if was_unready {
            return;
        }
    }
    panic!("it was ready at the first request");
}

/// One registry is dead from the start, a signature is refused, a tag is missing, access is denied,
/// and one bundle is served.
#[tokio::test]
async fn only_a_failure_that_may_pass_is_waited_for_and_no_bundle_that_a_reload_adds() {
    let (registry, dead) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    for name in ["served", "unsigned", "locked"] {
        registry.put_artifact(name, &bundle(name));
    }
    registry.fail("manifests/locked", usize::MAX, Fault::Status(403, vec![]));
    let hold = Hold::default();
    dead.fail("", usize::MAX, Fault::Held(hold.clone()));
    let reference = |tag: &str| registry.reference(tag).to_string();
    let late = |tag: &str| dead.reference(tag).to_string();
    let mut bundles = vec![
        ("served", reference("served"), "dev"),
        ("refused", reference("unsigned"), "release"),
        ("missing", reference("missing"), "dev"),
        ("locked", reference("locked"), "dev"),
        ("late", late("live"), "dev"),
    ];
    let both = [&registry, &dead];
    let mut gateway = started(&config(&both, &bundles)).await;
    let unready = StatusCode::SERVICE_UNAVAILABLE;
    gateway
        .readyz_until("it waits for one", unready, json!(["late"]))
        .await;
    // Also after a check has failed.
    let failed = |status: &Value| status["last_failure"]["class"] == "transient";
    gateway.status_when("late", "it has failed", failed).await;
    assert_eq!(gateway.readyz().await, (unready, json!(["late"])));

    // Before the replica has ever been ready.
    let add = |name: &'static str, bundles: &mut Vec<_>| {
        bundles.push((name, late("other"), "dev"));
        let file = gateway.runner.folder.path().join("bundlegate.yaml");
        fs::write(file, config(&both, bundles).to_string()).unwrap();
    };
    add("early", &mut bundles);
    let is_known = |status: &Value| status.is_object();
    gateway.status_when("early", "it is known", is_known).await;
    assert_eq!(gateway.readyz().await, (unready, json!(["late"])));
    dead.put_artifact("live", &bundle("late"));
    hold.release();
    gateway
        .readyz_until("it is ready", StatusCode::OK, json!([]))
        .await;
    // And afterwards.
    dead.heal();
    dead.fail("", usize::MAX, Fault::Stall);
    add("later", &mut bundles);
    gateway.status_when("later", "it is known", is_known).await;
    assert_eq!(gateway.readyz().await.0, StatusCode::OK);

    // The drain lasts until its client leaves.
    let _connected = TcpStream::connect(gateway.data).await.unwrap();
    poll_until("it is connected", async || {
        (gateway.metric("bundlegate_connections").await == 1.0).then_some(())
    })
    .await;
    gateway.runner.process.signal("TERM");
    gateway.readyz_until("it drains", unready, json!([])).await;
    gateway.runner.process.kill();
}
