//! `server.ready_after`: a registry that hangs keeps a replica out of rotation only for a time.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gate::PATIENCE,
};

const READY_AFTER: Duration = Duration::from_secs(4);

/// A running program, killed on drop.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn ready_after_makes_a_replica_ready_although_a_registry_hangs() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, Fault::Stall);
    let folder = TempDir::new().unwrap();
    let config = json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ready_after": format!("{}s", READY_AFTER.as_secs()) },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": { "authz": { "reference": registry.reference("live").to_string(), "trust": "dev" } },
    });
    let file = folder.path().join("bundlegate.yaml");
    fs::write(&file, config.to_string()).unwrap();
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::piped());
    let mut serving = Serving(command.spawn().unwrap());
    let mut lines = BufReader::new(serving.0.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let admin = tokio::task::spawn_blocking(move || {
        let address = lines.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            (line["listener"] == "admin").then(|| line["address"].as_str().map(str::to_owned))?
        });
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        address
    });
    let url = format!("http://{}/readyz", admin.await.unwrap().unwrap());
    let mut refused = 0;
    let ready = async {
        while reqwest::get(&url).await.unwrap().status() != StatusCode::OK {
            refused += 1;
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("never ready");
    assert!(
        refused > 0 && began.elapsed() >= READY_AFTER,
        "ready after {:?}",
        began.elapsed()
    );
}
