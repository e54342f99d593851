//! Real OPAs.

use std::{env, fs, net::TcpListener, os::unix::fs::symlink, process::Command, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Process, http, poll_until, program};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpaVersion {
    Newest,
    V0_70,
}

/// `opa run --server` on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Opa {
    pub(crate) version: OpaVersion,
    pub(crate) address: String,
    process: Process,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Opa {
    /// Starts with `config` as its configuration file.
    pub(crate) async fn start(version: OpaVersion, config: &Value) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self::launch(
            version,
            folder,
            "opa run --server --config-file config.json",
        )
        .await
    }

    /// Starts by a shell command that says `opa run --server`.
    pub(crate) async fn by_command(version: OpaVersion, command: &str) -> Self {
        Self::launch(version, TempDir::new().unwrap(), command).await
    }

    async fn launch(version: OpaVersion, folder: TempDir, command: &str) -> Self {
        symlink(program(version.program()), folder.path().join("opa")).unwrap();
        let path = format!(
            "{}:{}",
            folder.path().display(),
            env::var("PATH").unwrap_or_default()
        );
        let http = http();
        // OPA does not tell which port it got, so it is given one that was free a moment ago.
        for _ in 0..10 {
            let address = free_address();
            let line = format!("exec {command} --addr {address} {}", version.no_telemetry());
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &line])
                .current_dir(folder.path())
                .env("HOME", folder.path())
                .env("PATH", &path);
            let mut process = Process::start(version.program(), &mut shell);
            let url = format!("http://{address}/health");
            let (up, _) = poll_until("OPA's start", async || match http.get(&url).send().await {
                Ok(_) => Some(true),
                Err(_) => process.has_ended().then_some(false),
            })
            .await;
            if up {
                return Self {
                    version,
                    address,
                    process,
                    http,
                    _folder: folder,
                };
            }
            assert!(
                process.log().contains("address already in use"),
                "{}",
                process.log()
            );
        }
        panic!("no port for OPA");
    }

    /// One that takes the bundle `name` from `url` by long poll.
    pub(crate) async fn polling(version: OpaVersion, url: &str, name: &str) -> Self {
        Self::start(version, &long_polling(url, name)).await
    }

    /// The value of `data` at `path`, such as `authz/answer`.
    pub(crate) async fn decision(&self, path: &str) -> Option<Value> {
        let url = format!("http://{}/v1/data/{path}", self.address);
        let body = self.http.get(url).send().await.ok()?.bytes().await.ok()?;
        let mut body: Value = serde_json::from_slice(&body).ok()?;
        body.get_mut("result").map(Value::take)
    }

    /// Waits until OPA logs that it can't load or activate a bundle in these words, and returns the
    /// line. `…` stands for any text.
    pub(crate) async fn fails_with(&self, words: &str) -> String {
        let is_failure = |line: &&str| {
            let kinds = ["Bundle load failed: ", "Bundle activation failed: "];
            kinds.iter().any(|kind| line.contains(kind))
                && words.split('…').all(|part| line.contains(part))
        };
        let (line, _) = poll_until(&format!("OPA to fail with {words:?}"), async || {
            let log = self.process.log();
            log.lines().find(is_failure).map(str::to_owned)
        })
        .await;
        line
    }

    /// Waits until `data.authz.answer` is `answer`, and says how long that took.
    pub(crate) async fn answers(&self, answer: &str) -> Duration {
        self.decides("authz/answer", &json!(answer)).await
    }

    /// Waits until what `data` holds under `path` is `wanted`, and says how long that took.
    pub(crate) async fn decides(&self, path: &str, wanted: &Value) -> Duration {
        let what = format!("{:?} to decide {path} = {wanted}", self.version);
        poll_until(&what, async || {
            self.decision(path)
                .await
                .filter(|decision| decision == wanted)
        })
        .await
        .1
    }
}

impl OpaVersion {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Newest => "opa",
            Self::V0_70 => "opa-0.70",
        }
    }

    /// The configuration that keeps OPA from contacting the Internet.
    pub(crate) fn no_telemetry(self) -> &'static str {
        match self {
            Self::Newest => "--skip-version-check",
            Self::V0_70 => "--disable-telemetry",
        }
    }
}

/// An OPA configuration with one bundle, by long poll.
pub(crate) fn long_polling(url: &str, name: &str) -> Value {
    json!({
        "services": { "gate": { "url": url } },
        "bundles": { name: {
            "service": "gate",
            "resource": format!("/bundles/{name}"),
            "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 30 },
        } },
    })
}

/// A loopback address that nobody listens on.
pub(crate) fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}
