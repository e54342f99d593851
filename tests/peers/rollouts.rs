//! Staged roll-outs with real OPAs, a real engine and several replicas: which client gets which version, and what
//! happens when a version, the engine, a replica or the trust in a version fails.

mod checks;
mod engine;
mod failures;
mod operators;
mod restarts;
mod rings;
mod scale;
mod trust;

use std::{
    collections::BTreeMap,
    env, fs,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    opa_check::tarball,
    support::{
        Artifact, Engine, GatewayConfig, KeyPair, Kind, Link, Opa, OpaVersion, PATIENCE, Registry,
        TestGateway, http, poll_until,
    },
};

const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];
/// Whether what must not happen is awaited for as long as the acceptance tests say.
const FULL_TIMES: &str = "BUNDLEGATE_FULL_TIMES";
/// The token of the configured client `canary`.
const TOKEN: &str = "c4nary";
/// How long a replica waits for the engine, on however busy a machine.
const TIMEOUT: &str = "2s";
const VERSION: &str = "org.opencontainers.image.version";

/// How the configuration of an OPA differs.
#[derive(Debug, Clone, Copy)]
struct Client<'a> {
    /// The identity header.
    name: &'a str,
    token: Option<&'a str>,
    bundles: &'a [&'a str],
    has_status: bool,
    long_polling: bool,
    /// Whether it keeps the tags of earlier versions for ten minutes.
    supersedes: bool,
}

/// A time in seconds: shorter in the suite than where [`FULL_TIMES`] is set.
fn duration(short: u64, full: u64) -> Duration {
    let is_full = env::var_os(FULL_TIMES).is_some();
    Duration::from_secs(if is_full { full } else { short })
}

impl<'a> Client<'a> {
    /// One that takes `authz` by long poll.
    fn named(name: &'a str) -> Self {
        Self {
            name,
            token: None,
            bundles: &["authz"],
            has_status: false,
            long_polling: true,
            supersedes: false,
        }
    }

    fn config(&self, url: &str) -> Value {
        let mut polling = json!({ "min_delay_seconds": 1, "max_delay_seconds": 1 });
        if self.long_polling {
            polling["long_polling_timeout_seconds"] = json!(10);
        }
        if self.supersedes {
            polling["superseded_etag_ttl_seconds"] = json!(600);
        }
        let mut service = json!({ "url": url, "headers": { "Bundlegate-Client": self.name } });
        if let Some(token) = self.token {
            service["credentials"] = json!({ "bearer": { "token": token } });
        }
        let mut config = json!({ "services": { "gate": service }, "bundles": {} });
        for name in self.bundles {
            config["bundles"][name] = json!({
                "service": "gate", "resource": format!("/bundles/{name}"), "polling": polling,
            });
        }
        if self.has_status {
            config["status"] = json!({ "service": "gate" });
        }
        config
    }

    async fn start(&self, version: OpaVersion, url: &str) -> Opa {
        Opa::start(version, &self.config(url)).await
    }
}

/// A registry, an engine, and replicas with a path of their own to it.
struct Fixture {
    registry: Registry,
    key: KeyPair,
    engine: Engine,
    links: Vec<Link>,
    gates: Vec<TestGateway>,
    folder: TempDir,
    began: Instant,
}

impl Fixture {
    /// Replicas that serve the version `first` of `authz`, and roll out later ones by this strategy.
    async fn start(replicas: usize, strategy: Value) -> Self {
        let mut fixture = Self::without_replicas().await;
        fixture.publish(&answering("first").await).await;
        for _ in 0..replicas {
            fixture.add_replica(&strategy, |config| config).await;
        }
        fixture.all_in("idle").await;
        fixture
    }

    async fn without_replicas() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("canary.tokens"), format!("{TOKEN}\n")).unwrap();
        Self {
            registry: Registry::start(Kind::Debian).await,
            key: KeyPair::generate().await,
            engine: Engine::start().await,
            links: Vec::new(),
            gates: Vec::new(),
            folder,
            began: Instant::now(),
        }
    }

    /// Starts another replica, with `change` made to its configuration.
    async fn add_replica(
        &mut self,
        strategy: &Value,
        change: impl FnOnce(GatewayConfig) -> GatewayConfig,
    ) {
        let link = Link::to(self.engine.port).await;
        let config = change(self.config(link.port, strategy));
        self.gates.push(TestGateway::start(config).await);
        self.links.push(link);
    }

    /// The configuration of a replica that reaches the engine at this port.
    fn config(&self, port: u16, strategy: &Value) -> GatewayConfig {
        let tokens = self.folder.path().join("canary.tokens");
        let clients = json!([
            { "name": "canary", "bearer_token_file": tokens, "bundles": ["**"] },
            { "name": "anyone", "anonymous": true, "bundles": ["**"] },
        ]);
        GatewayConfig::trusting(&self.key)
            .bundle("authz", &self.registry, "acme/authz:live")
            .cached()
            .with("/clients", clients)
            .with(
                "/shared",
                json!({ "url": format!("redis://127.0.0.1:{port}/0"), "timeout": TIMEOUT }),
            )
            .with("/rollouts", json!({ "careful": strategy }))
            .with("/bundles/authz/rollout", json!("careful"))
    }

    async fn publish(&self, artifact: &Artifact) -> String {
        self.publish_as("authz", artifact, &[]).await
    }

    /// Pushes and signs a version, and moves the tag to it. Returns the manifest's digest.
    async fn publish_as(&self, name: &str, artifact: &Artifact, flags: &[&str]) -> String {
        let digest = self.push(name, artifact, flags).await;
        let pinned = format!("acme/{name}@{digest}");
        self.registry.tag(&pinned, "live").await;
        self.tell(&format!("the tag names {}", &digest[7..15]));
        digest
    }

    /// Pushes and signs a version.
    async fn push(&self, name: &str, artifact: &Artifact, flags: &[&str]) -> String {
        let next = format!("acme/{name}:next");
        let file = artifact.file();
        let digest = self.registry.push_with(&next, &file, flags).await;
        let pinned = format!("acme/{name}@{digest}");
        self.key.sign(&self.registry, &pinned).await;
        digest
    }

    /// Prints a measurement, with the time since the start.
    fn tell(&self, what: &str) {
        eprintln!(
            "rollouts | {:6.2?} s | {what}",
            self.began.elapsed().as_secs_f64()
        );
    }

    async fn opa(&self, version: OpaVersion, replica: usize, client: Client<'_>) -> Opa {
        client.start(version, &self.gates[replica].url).await
    }

    /// Waits until an OPA has this policy.
    async fn answers(&self, name: &str, opa: &Opa, answer: &str) {
        let took = opa.answers(answer).await;
        self.tell(&format!(
            "{name} ({:?}) decides {answer} after {took:.2?}",
            opa.version
        ));
    }

    /// The roll-out of `authz` as a replica shows it.
    async fn rollout(&self, replica: usize) -> Value {
        let text = self.gates[replica].admin_text("/rollouts/authz").await;
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Waits until the roll-out that a replica shows satisfies `wanted`, and returns it.
    async fn rollout_when(
        &self,
        replica: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let look = async || Some(self.rollout(replica).await).filter(&wanted);
        let (rollout, took) = poll_until(&format!("{what} at replica {replica}"), look).await;
        self.tell(&format!("replica {replica}: {what} after {took:.2?}"));
        rollout
    }

    /// Waits until all replicas show this phase.
    async fn all_in(&self, phase: &str) {
        for replica in 0..self.gates.len() {
            let is_in = |rollout: &Value| rollout["phase"] == phase;
            self.rollout_when(replica, phase, is_in).await;
        }
    }

    /// Waits until a replica shows this step, from 1, of a roll-out that progresses.
    async fn step(&self, replica: usize, step: u64) -> Value {
        let is_in = |rollout: &Value| rollout["phase"] == "progressing" && rollout["step"] == step;
        self.rollout_when(replica, &format!("step {step}"), is_in)
            .await
    }

    /// Waits until the leader shows a roll-out that satisfies `wanted`.
    async fn leader_when(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let look = async || {
            for replica in 0..self.gates.len() {
                let rollout = self.rollout(replica).await;
                if rollout["leader"] == true && wanted(&rollout) {
                    return Some(rollout);
                }
            }
            None
        };
        let (rollout, took) = poll_until(&format!("{what} at the leader"), look).await;
        self.tell(&format!("the leader: {what} after {took:.2?}"));
        rollout
    }

    /// Runs `bundlegate rollout` as an operator at a replica. Returns the exit code and the output.
    async fn operate(&self, replica: usize, arguments: &[&str]) -> (i32, String) {
        let admin = format!("http://{}", self.gates[replica].admin);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command
            .arg("rollout")
            .args(arguments)
            .args(["--admin", &admin]);
        command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env("USER", "ops");
        let ended = timeout(2 * PATIENCE, command.output()).await;
        let output = ended.expect("the command ends").unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let code = output.status.code().unwrap();
        self.tell(&format!(
            "bundlegate rollout {} → {code}",
            arguments.join(" ")
        ));
        (code, text)
    }

    /// Runs `bundlegate rollout` at a replica, and expects that it succeeds.
    async fn operates(&self, replica: usize, arguments: &[&str]) -> String {
        let (code, text) = self.operate(replica, arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    /// What a client gets that runs this version, or none: the status, the header and the tag. It has downloaded
    /// all of it.
    async fn get(&self, replica: usize, name: &str, runs: Option<&str>) -> (u16, String, String) {
        let gate = &self.gates[replica];
        let url = format!("{}/bundles/authz", gate.url);
        let mut request = gate.http.get(url).header("Bundlegate-Client", name);
        if let Some(tag) = runs {
            request = request.header("If-None-Match", tag);
        }
        let response = request.timeout(PATIENCE).send().await.unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        let (variant, tag) = (header("Bundlegate-Rollout"), header("ETag"));
        let status = response.status().as_u16();
        response.bytes().await.unwrap();
        (status, variant, tag)
    }

    /// The configuration of all replicas with another value at a JSON pointer, while they run.
    fn reconfigure(&self, pointer: &str, value: &Value) {
        for gate in &self.gates {
            gate.reconfigure(&gate.config().with(pointer, value.clone()));
        }
    }

    /// No request for a bundle was answered with a server error.
    async fn have_sent_no_server_errors(&self) {
        for gate in &self.gates {
            let metrics = gate.admin_text("/metrics").await;
            let failed = metrics.lines().find(|line| {
                line.starts_with("bundlegate_http_requests_total") && line.contains("code=\"5")
            });
            assert_eq!(failed, None);
        }
    }
}

/// Decisions of an OPA, in the order in which they changed.
type History = Arc<Mutex<Vec<String>>>;

/// What OPAs decide from now on, in the order in which it changes.
struct Observed {
    histories: BTreeMap<String, History>,
    tasks: JoinSet<()>,
}

impl Observed {
    fn start(opas: &[(&str, &Opa)]) -> Self {
        let (mut histories, mut tasks) = (BTreeMap::new(), JoinSet::new());
        for (name, opa) in opas {
            let history = History::default();
            let url = format!("http://{}/v1/data/authz/answer", opa.address);
            tasks.spawn(observe(url, Arc::clone(&history)));
            histories.insert((*name).to_owned(), history);
        }
        Self { histories, tasks }
    }

    /// The decisions of an OPA, from the first one.
    fn of(&self, name: &str) -> Vec<String> {
        let history = self.histories[name]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        history.clone()
    }

    /// Waits for this time, and returns all decisions.
    async fn end_after(mut self, time: Duration) -> BTreeMap<String, Vec<String>> {
        // Only real time shows that nothing changes.
        sleep(time).await;
        self.tasks.shutdown().await;
        let names = self.histories.keys();
        names.map(|name| (name.clone(), self.of(name))).collect()
    }
}

async fn observe(url: String, history: History) {
    let http = http();
    loop {
        if let Ok(response) = http.get(&url).send().await
            && let Ok(body) = response.bytes().await
            && let Ok(body) = serde_json::from_slice::<Value>(&body)
        {
            let answer = body["result"].as_str().unwrap_or("none").to_owned();
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
            if history.last() != Some(&answer) {
                history.push(answer);
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// A strategy with these steps for OPAs that poll every second.
fn steps(steps: Value) -> Value {
    json!({ "poll": "1s", "steps": steps })
}

/// A version of `authz`: what it answers is its revision.
async fn answering(answer: &str) -> Artifact {
    rooted(answer, "authz", &["authz"]).await
}

/// A version of a bundle that claims these roots.
async fn rooted(answer: &str, package: &str, roots: &[&str]) -> Artifact {
    let manifest = json!({ "roots": roots }).to_string();
    let policy = format!("package {package}\n\nanswer := \"{answer}\"\n");
    Artifact::built(
        answer,
        &[(".manifest", &manifest), ("policy.rego", &policy)],
    )
    .await
}

/// A version of `authz` that OPA can't compile, which the gateway does not notice without `opa_check`.
fn broken() -> Artifact {
    let policy = "package authz\n\nanswer := x if y == z\n";
    let manifest = r#"{"revision": "broken", "roots": ["authz"], "rego_version": 1}"#;
    Artifact::raw(&tarball(&[(".manifest", manifest), ("authz.rego", policy)]))
}
