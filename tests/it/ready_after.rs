//! `server.ready_after`: a registry that hangs keeps a replica out of rotation only for a time.

use std::{fs, time::Duration};

use reqwest::StatusCode;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    faulty::{Fault, FaultyRegistry},
    shared::{TestGateway, poll_until},
};

#[tokio::test]
async fn ready_after_makes_a_replica_ready_although_a_registry_hangs() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, Fault::Stall);
    // A busy machine may need longer for the first request than a replica is unready.
    for seconds in [2, 8, 32] {
        let folder = TempDir::new().unwrap();
        let config = json!({
            "version": 1,
            "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ready_after": format!("{seconds}s") },
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "registries": { registry.address.to_string(): { "scheme": "http" } },
            "trust": { "policies": { "dev": "unsigned" } },
            "bundles": { "authz": { "reference": registry.reference("live").to_string(), "trust": "dev" } },
        });
        fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
        let began = Instant::now();
        let gateway = TestGateway::run(folder).await;
        let is_ready = async || gateway.admin_response("/readyz").await.status() == StatusCode::OK;
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
