//! A configuration that changes while the program serves it.

mod authentication;
mod bundles;
mod certificates;
mod clients;
mod configuration;
mod everything;
mod patterns;
mod registries;
mod resign;
mod revocations;
mod settings;
mod trust;
mod tuf;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bundlegate::oci::Digest;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, ISSUER, SUBJECT, Sigstore, statement},
    gateway::{TestGateway, bundle, error, tag, wishing},
    shared::poll_until,
    signing::Signer,
};

/// A configuration with the bundle `authz` from `registry`, which is signed by the key in `key.pub`
/// and polled once an hour.
fn config(registry: &FaultyRegistry) -> Value {
    json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": {
            "authorities": { "release": { "keys": ["key.pub"], "tlog": "none" } },
            "policies": { "release": { "require": { "any_of": ["release"] } } },
        },
        "bundles": { "authz": {
            "reference": registry.reference("live").to_string(), "trust": "release", "poll": "1h",
        } },
    })
}

/// Pushes an artifact that a certificate signs, and configures the root that supports it as `corp`.
fn signed_by_certificate(registry: &FaultyRegistry, forge: &Sigstore) -> Value {
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let signer = forge.signer();
    let (by, envelope) = (
        By::Certificate(&signer),
        Envelope::sign(&signer.key, &statement(&digest)),
    );
    let signature = envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]);
    let entry = registry.put_referrer(&digest, signature.to_string().as_bytes(), |_| {});
    registry.list_referrers(&digest, &json!([entry]));
    let mut config = config(registry);
    config["trust"]["roots"] = json!({ "corp": { "trusted_root": "root.json" } });
    config["trust"]["authorities"]["release"] =
        json!({ "keyless": { "root": "corp", "issuer": ISSUER, "subject": SUBJECT } });
    config
}

impl TestGateway {
    /// Runs `bundlegate serve` in a folder with these `files` and this configuration.
    async fn start(files: impl FnOnce(&TempDir), config: &Value) -> Self {
        let folder = TempDir::new().unwrap();
        files(&folder);
        fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
        Self::run(folder).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.runner.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn hang_up(&self) {
        self.runner.process.signal("HUP");
    }

    /// Waits for a line of the log.
    async fn said(&self, message: &str, like: impl Fn(&Value) -> bool) -> Value {
        self.until(message, async || {
            self.lines(message).into_iter().find(&like)
        })
        .await
    }

    /// The lines of the log so far that have this message.
    fn lines(&self, message: &str) -> Vec<Value> {
        let mut lines = self.log();
        lines.retain(|line| line["message"] == message);
        lines
    }

    async fn get(&self, tags: &str, wait: u32) -> Response {
        self.get_of("authz", tags, wait).await
    }

    async fn get_of(&self, name: &str, tags: &str, wait: u32) -> Response {
        self.asking(name, tags, wait).send().await.unwrap()
    }

    /// A request for a bundle, not yet sent.
    fn asking(&self, name: &str, tags: &str, wait: u32) -> RequestBuilder {
        let request = self.http.get(format!("{}/bundles/{name}", self.url));
        wishing(request, tags, wait)
    }

    async fn until<T>(&self, what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
        poll_until(what, look).await.0
    }
}

/// A registry with a bundle that `signer` has signed.
async fn registry(signer: &Signer) -> FaultyRegistry {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    registry
}

/// Makes the registry silent: it neither answers nor refuses a request from now on, so that a
/// verdict which is reached then is reached from stored evidence.
fn dead(registry: &FaultyRegistry) {
    registry.fail("", usize::MAX, Fault::Stall);
}

async fn is_withdrawn_soon(gateway: &TestGateway, how: &str) {
    let began = Instant::now();
    let status = gateway
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    println!("{how}: withdrawn {:?} after the change", began.elapsed());
    // Evidence is collected again at once. Where the registry answers, that check may have failed as
    // well by the time the status is read.
    let class = &status["last_failure"]["class"];
    assert!(class == "distrusted" || class == "evidence", "{status}");
    assert!(
        status["last_failure"]["message"]
            .as_str()
            .unwrap()
            .contains("signature by another key"),
        "{status}"
    );
    assert_eq!(
        status["refused"]["signatures"][0]["verified"], false,
        "{status}"
    );
}
