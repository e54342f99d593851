//! Configurations for `bundlegate serve`, and changes of a running one.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{KeyPair, Registry, ca::Certificate};
use crate::shared::gateway::{Program, TestGateway, listener};

/// The content of a `bundlegate.yaml`, as JSON, which is YAML as well.
#[derive(Debug, Clone)]
pub(crate) struct GatewayConfig(pub(crate) Value);

impl GatewayConfig {
    /// Every client may read every bundle; the policy `release` trusts `key`; there is no bundle yet.
    pub(crate) fn trusting(key: &KeyPair) -> Self {
        Self::with_trust(json!({
            "authorities": { "release-key": { "keys": [key.public()], "tlog": "none" } },
            "policies": { "release": { "require": { "any_of": ["release-key"] } } },
        }))
    }

    /// The same with another `trust`.
    pub(crate) fn with_trust(trust: Value) -> Self {
        Self(json!({
            "version": 1,
            "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "trust": trust,
            "registries": {},
            "bundles": {},
        }))
    }

    /// Serves `name` from `artifact` (`REPOSITORY:TAG`) of `registry`, which is polled every 500 ms.
    pub(crate) fn bundle(mut self, name: &str, registry: &Registry, artifact: &str) -> Self {
        self.0["registries"][&registry.host] = registry.settings();
        self.0["bundles"][name] = json!({ "reference": registry.reference(artifact), "trust": "release", "poll": "500ms" });
        self
    }

    /// Replaces the address of `registry` by another, such as a proxy's, in all that
    /// [`Self::bundle`] has added so far.
    pub(crate) fn by_way_of(self, host: &str, registry: &Registry) -> Self {
        Self(serde_json::from_str(&self.0.to_string().replace(&registry.host, host)).unwrap())
    }

    /// Keeps blobs in a folder beside the configuration.
    pub(crate) fn cached(mut self) -> Self {
        self.0["cache"] = json!({ "directory": "cache" });
        self
    }

    /// Serves over TLS.
    pub(crate) fn secured(mut self, files: &Certificate) -> Self {
        self.0["server"]["tls"] = json!({ "certificate": files.certificate, "key": files.key });
        self
    }

    /// Sets the value at a JSON pointer whose parent exists.
    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    /// Writes `bundlegate.yaml`, by renaming a complete file over it.
    fn write(&self, folder: &TempDir) {
        let next = folder.path().join("bundlegate.yaml.new");
        fs::write(&next, serde_json::to_string_pretty(&self.0).unwrap()).unwrap();
        fs::rename(next, folder.path().join("bundlegate.yaml")).unwrap();
    }
}

impl TestGateway {
    pub(crate) async fn start(config: GatewayConfig) -> Self {
        let folder = TempDir::new().unwrap();
        config.write(&folder);
        Self::run(folder).await
    }

    /// The configuration as it is in the file.
    pub(crate) fn config(&self) -> GatewayConfig {
        let file = self.folder().join("bundlegate.yaml");
        GatewayConfig(serde_json::from_slice(&fs::read(file).unwrap()).unwrap())
    }

    /// Kills the program and starts it at the same addresses, where clients look for it, without
    /// waiting until it listens.
    pub(crate) fn relaunch(&mut self) {
        self.relaunch_with(self.config());
    }

    fn relaunch_with(&mut self, mut config: GatewayConfig) {
        config.0["server"]["listen"] = json!(self.data);
        config.0["server"]["admin"] = json!(self.admin);
        self.runner.process.kill();
        config.write(&self.runner.folder);
        self.runner.process = Program::launch(&self.runner.folder);
    }

    /// Kills the program, and starts it at the same addresses.
    pub(crate) async fn restart(&mut self) {
        self.restart_with(self.config()).await;
    }

    /// Kills the program, and starts it at the same addresses with another configuration.
    pub(crate) async fn restart_with(&mut self, config: GatewayConfig) {
        self.relaunch_with(config);
        listener(&mut self.runner.process, "admin").await;
    }

    /// Replaces the configuration as editors do, while the program runs.
    pub(crate) fn reconfigure(&self, config: &GatewayConfig) {
        config.write(&self.runner.folder);
    }

    /// The folder of the configuration; the cache is in `cache` where there is one.
    pub(crate) fn folder(&self) -> PathBuf {
        self.runner.folder.path().to_owned()
    }
}
