//! The product: `bundlegate serve`.

use std::{fs, path::PathBuf, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{KeyPair, Process, Registry, ca::Certificate, eventually, http};

/// A `bundlegate.yaml` in the making, as a JSON value, which is YAML as well.
#[derive(Debug, Clone)]
pub(crate) struct GateConfig(pub(crate) Value);

impl GateConfig {
    /// Everybody may read everything; `release` trusts `key`; nothing is served yet.
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

    /// Serves `name` from `artifact` (`REPOSITORY:TAG`) of `registry`, looking every 500 ms.
    pub(crate) fn bundle(mut self, name: &str, registry: &Registry, artifact: &str) -> Self {
        self.0["registries"][&registry.host] = registry.settings();
        self.0["bundles"][name] = json!({ "reference": registry.reference(artifact), "trust": "release", "poll": "500ms" });
        self
    }

    /// Reaches `registry` by another address, such as a proxy's; after [`Self::bundle`].
    pub(crate) fn by_way_of(self, host: &str, registry: &Registry) -> Self {
        Self(serde_json::from_str(&self.0.to_string().replace(&registry.host, host)).unwrap())
    }

    /// Keeps blobs in a folder beside the configuration.
    pub(crate) fn cached(mut self) -> Self {
        self.0["cache"] = json!({ "directory": "cache" });
        self
    }

    /// Speaks TLS to clients.
    pub(crate) fn secured(mut self, files: &Certificate) -> Self {
        self.0["server"]["tls"] = json!({ "certificate": files.certificate, "key": files.key });
        self
    }

    /// Sets the value at a JSON pointer whose parent is there.
    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[key] = value;
        self
    }
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Where OPAs come.
    pub(crate) url: String,
    pub(crate) config: GateConfig,
    pub(crate) process: Process,
    admin: String,
    http: reqwest::Client,
    folder: TempDir,
}

impl Gate {
    pub(crate) async fn start(mut config: GateConfig) -> Self {
        let folder = TempDir::new().unwrap();
        let mut process = launch(&folder, &config);
        let (data, admin) = (
            listener(&mut process, "data").await,
            listener(&mut process, "admin").await,
        );
        let scheme = if config.0["server"].get("tls").is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{data}");
        // So that it comes back where clients look for it.
        config.0["server"]["listen"] = data.into();
        config.0["server"]["admin"] = admin.as_str().into();
        Self {
            url,
            config,
            process,
            admin,
            http: http(),
            folder,
        }
    }

    /// Kills it and starts it at the same addresses, without waiting until it listens.
    pub(crate) fn relaunch(&mut self) {
        self.process.kill();
        self.process = launch(&self.folder, &self.config);
    }

    /// Starts again at the same addresses, with `config` as it is now.
    pub(crate) async fn restart(&mut self) {
        self.relaunch();
        listener(&mut self.process, "admin").await;
    }

    /// Puts a new configuration in the place of the old one, as editors do, while it runs.
    pub(crate) fn reconfigure(&mut self, config: GateConfig) {
        let next = self.folder.path().join("bundlegate.yaml.new");
        fs::write(&next, serde_json::to_string_pretty(&config.0).unwrap()).unwrap();
        fs::rename(next, self.folder.path().join("bundlegate.yaml")).unwrap();
        self.config = config;
    }

    /// The folder of the configuration; the cache is in `cache` where there is one.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Where operators and Prometheus look.
    pub(crate) fn admin_address(&self) -> &str {
        &self.admin
    }

    /// The body of a path of the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        self.http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    /// What `/status` says of a bundle.
    pub(crate) async fn status(&self, name: &str) -> Value {
        let mut status: Value = serde_json::from_str(&self.admin("/status").await).unwrap();
        status["bundles"][name].take()
    }

    /// Waits until `/status` of a bundle satisfies `wanted`, and gives it.
    pub(crate) async fn status_when(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let what = format!("{name}: {what}");
        let look = async || {
            last = self.status(name).await;
            wanted(&last).then(|| last.clone())
        };
        eventually(&what, look).await.0
    }

    /// A sample of `/metrics`, by its name with labels as they stand there; 0 if absent.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.admin("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The log so far, line by line.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.process
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

fn launch(folder: &TempDir, config: &GateConfig) -> Process {
    let file = folder.path().join("bundlegate.yaml");
    fs::write(&file, serde_json::to_string_pretty(&config.0).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    Process::start(
        "bundlegate",
        command.arg("serve").arg("--config").arg(&file),
    )
}

/// The address of a listener, from the line `listening`.
async fn listener(process: &mut Process, name: &str) -> String {
    let find = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let told = line["message"] == "listening" && line["listener"] == name;
        told.then(|| line["address"].as_str().unwrap().to_owned())
    };
    process.line(find).await
}
