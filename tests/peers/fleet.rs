//! The fleet view with real OPAs: what each of them runs, and why it does not run the served version.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    opa_check::tarball,
    shared::raise_open_files,
    support::{
        Artifact, Engine, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, Simulated,
        TestGateway, poll_until, sentinel,
    },
};

const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];

/// How the configuration of an OPA differs.
#[derive(Debug, Clone, Copy)]
struct Client<'a> {
    /// The identity header, if it has one.
    name: Option<&'a str>,
    /// The bundles that it polls: its own name and the one of the gateway.
    bundles: &'a [(&'a str, &'a str)],
    /// The partition of its status reports, if it sends them.
    status: Option<&'a str>,
    long_polling: bool,
}

impl Client<'_> {
    fn config(&self, url: &str) -> Value {
        let mut config = json!({
            "services": { "gate": { "url": url } },
            "labels": { "region": "eu" },
            "bundles": {},
        });
        if let Some(name) = self.name {
            config["services"]["gate"]["headers"] = json!({ "Bundlegate-Client": name });
        }
        for (own, name) in self.bundles {
            let mut polling = json!({ "min_delay_seconds": 1, "max_delay_seconds": 1 });
            if self.long_polling {
                polling["long_polling_timeout_seconds"] = json!(10);
            }
            config["bundles"][own] = json!({
                "service": "gate",
                "resource": format!("/bundles/{name}"),
                "polling": polling,
            });
        }
        if let Some(partition) = self.status {
            config["status"] = json!({ "service": "gate", "partition_name": partition });
        }
        config
    }
}

struct Fixture {
    registry: Registry,
    key: KeyPair,
    gate: TestGateway,
}

impl Fixture {
    /// A gateway with the bundles `authz` and `plain`, which has no revision.
    async fn start() -> Self {
        Self::with(json!({})).await
    }

    async fn with(fleet: Value) -> Self {
        let registry = Registry::start(Kind::Debian).await;
        let key = KeyPair::generate().await;
        let fixture = Fixture {
            gate: TestGateway::start(
                GatewayConfig::trusting(&key)
                    .bundle("authz", &registry, "acme/authz:live")
                    .bundle("plain", &registry, "acme/plain:live")
                    .with("/fleet", fleet),
            )
            .await,
            registry,
            key,
        };
        fixture.push("authz", &answering("first").await).await;
        fixture.push("plain", &plain(1).await).await;
        fixture
    }

    /// Pushes and signs a version. Returns its digest once it is served.
    async fn push(&self, name: &str, artifact: &Artifact) -> String {
        let repository = format!("acme/{name}");
        let (registry, key) = (&self.registry, &self.key);
        let digest = registry
            .push(&format!("{repository}:next"), &artifact.file())
            .await;
        key.sign(registry, &format!("{repository}@{digest}")).await;
        registry
            .tag(&format!("{repository}@{digest}"), "live")
            .await;
        let is_served = |status: &Value| status["manifest"] == digest.as_str();
        self.gate.status_when(name, "served", is_served).await;
        digest
    }

    async fn opa(&self, version: OpaVersion, client: Client<'_>) -> Opa {
        Opa::start(version, &client.config(&self.gate.url)).await
    }

    /// All clients by name, or by `address` for one without a name.
    async fn clients(&self) -> BTreeMap<String, Value> {
        let text = self.gate.admin_text("/fleet?limit=1000").await;
        let mut fleet: Value = serde_json::from_str(&text).unwrap();
        let clients = fleet["clients"].as_array_mut().unwrap();
        let name = |client: &Value| match client["name"].as_str() {
            Some(name) => name.to_owned(),
            None => "address".to_owned(),
        };
        clients
            .iter_mut()
            .map(|client| (name(client), client.take()))
            .collect()
    }

    /// Waits until what a client runs of a bundle satisfies `wanted`. Returns the client, and how long
    /// that took.
    async fn client_when(
        &self,
        name: &str,
        bundle: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> (Value, Duration) {
        let look = async || {
            let client = self.clients().await.remove(name)?;
            wanted(&client["bundles"][bundle]).then_some(client)
        };
        poll_until(&format!("{name} to be {what}"), look).await
    }

    /// Waits until an OPA of this version has reported itself, and returns the client.
    async fn reported(&self, name: &str, version: OpaVersion) -> Value {
        let reported = async || {
            let client = self.clients().await.remove(name)?;
            client["opa"]["version"].is_string().then_some(client)
        };
        let (client, _) = poll_until(&format!("the report of {name}"), reported).await;
        let expected = match version {
            OpaVersion::Newest => "1.22.2",
            OpaVersion::V0_70 => "0.70.0",
        };
        assert_eq!(client["opa"]["version"], expected, "{client:#}");
        assert_eq!(client["opa"]["labels"], json!({ "region": "eu" }));
        client
    }

    /// Waits until an OPA reports that it can't activate a bundle, and returns the message.
    async fn message_of(&self, name: &str, bundle: &str) -> String {
        let by_report = |one: &Value| one["error"]["source"] == "status";
        let failing = self.client_when(name, bundle, "failing", by_report);
        let (client, took) = failing.await;
        println!("fleet | {name} | {bundle} | report after {took:.1?}");
        let client_bundle = &client["bundles"][bundle];
        assert_eq!(client_bundle["state"], "failing", "{client:#}");
        client_bundle["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn is_in(&self, name: &str, bundle: &str, state: &str) -> Value {
        let is_in = |one: &Value| one["state"] == state;
        let (client, took) = self.client_when(name, bundle, state, is_in).await;
        println!("fleet | {name} | {bundle} | {state} after {took:.1?}");
        client
    }

    /// Clients go on asking for `authz`, and none of them runs the served version.
    async fn all_stay_failing(&self) {
        // Only real time shows that.
        for _ in 0..20 {
            for (name, client) in self.clients().await {
                let state = &client["bundles"]["authz"]["state"];
                assert_eq!(state, "failing", "{name}: {client:#}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn reports(&self, outcome: &str) -> f64 {
        let sample = format!("bundlegate_fleet_reports_total{{outcome=\"{outcome}\"}}");
        self.gate.metric(&sample).await
    }
}

/// Acceptance tests 1, 2, 3, 9 and 10.
#[tokio::test(flavor = "multi_thread")]
async fn every_opa_shows_what_it_runs_with_or_without_status() {
    let fixture = Fixture::start().await;
    let both: &[(&str, &str)] = &[("authz", "authz"), ("plain", "plain")];
    let own: &[(&str, &str)] = &[("mine", "authz"), ("yours", "plain")];
    let client = |name, bundles, status| Client {
        name,
        bundles,
        status,
        long_polling: false,
    };
    let began = Instant::now();
    let clients = [
        ("opa-status", client(Some("opa-status"), both, Some(""))),
        (
            "opa-partition",
            client(Some("opa-partition"), both, Some("eu/shop")),
        ),
        ("opa-own", client(Some("opa-own"), own, Some(""))),
        ("opa-silent", client(Some("opa-silent"), both, None)),
    ];
    let mut opas = Vec::new();
    for version in BOTH {
        for (name, client) in clients {
            let name = format!("{name}-{}", version.program());
            let client = Client {
                name: Some(&name),
                ..client
            };
            opas.push(fixture.opa(version, client).await);
        }
        // A variable that is not set: the literal from one OPA, nothing from the other.
        let undefined = client(Some("${BUNDLEGATE_UNDEFINED}"), both, None);
        opas.push(fixture.opa(version, undefined).await);
    }
    // Two of them are one client, which runs nothing once more when the second one starts.
    for opa in &opas {
        opa.answers("first").await;
        opa.decides("plain/answer", &json!(1)).await;
    }
    for bundle in ["authz", "plain"] {
        fixture.is_in("address", bundle, "current").await;
    }
    for version in BOTH {
        for (name, client) in clients {
            let name = format!("{name}-{}", version.program());
            fixture.is_in(&name, "plain", "current").await;
            fixture.is_in(&name, "authz", "current").await;
            if client.status.is_some() {
                let seen = fixture.reported(&name, version).await;
                assert_eq!(seen["identified_by"], "header");
            }
        }
    }
    println!(
        "fleet | {} OPAs known after {:.1?}",
        opas.len(),
        began.elapsed()
    );
    let clients = fixture.clients().await;
    // Those without an identity have one address between them.
    assert_eq!(clients.len(), 9, "{clients:#?}");
    assert_eq!(clients["address"]["identified_by"], "address");
    let status = fixture.gate.bundle_status("plain").await;
    for (name, client) in &clients {
        let (authz, plain) = (&client["bundles"]["authz"], &client["bundles"]["plain"]);
        assert_eq!(authz["runs"]["revision"], "first", "{name}");
        assert_eq!(plain["runs"]["revision"], Value::Null, "{name}");
        assert_eq!(plain["runs"]["manifest"], status["manifest"], "{name}");
        assert!(plain["since"].is_string());
    }
    // A report that precedes the first request for a bundle, as of a plugin that starts, has no client
    // yet. From now on each one has.
    let unmatched = fixture.reports("unmatched").await;
    let accepted = fixture.reports("accepted").await;
    poll_until("further reports", async || {
        (fixture.reports("accepted").await >= accepted + 12.0).then_some(())
    })
    .await;
    assert_eq!(fixture.reports("unmatched").await, unmatched);
    let current = "bundlegate_fleet_clients{bundle=\"authz\",state=\"current\"}";
    assert_eq!(fixture.gate.metric(current).await, 9.0);
}

/// Acceptance tests 4, 5 and 6.
#[tokio::test(flavor = "multi_thread")]
async fn an_opa_that_cannot_activate_a_version_is_failing_until_it_runs_the_served_one() {
    let fixture = Fixture::start().await;
    let authz: &[(&str, &str)] = &[("authz", "authz")];
    let both: &[(&str, &str)] = &[("authz", "authz"), ("plain", "plain")];
    let mut opas = Vec::new();
    for version in BOTH {
        for (name, bundles, status) in [
            ("status", authz, Some("")),
            ("quiet", authz, None),
            ("both", both, Some("")),
        ] {
            let name = format!("{name}-{}", version.program());
            let client = Client {
                name: Some(&name),
                bundles,
                status,
                long_polling: true,
            };
            opas.push(fixture.opa(version, client).await);
        }
    }
    for opa in &opas {
        opa.answers("first").await;
    }
    let names = |kind: &str| BOTH.map(|version| format!("{kind}-{}", version.program()));

    // The new version of `plain` claims the root of `authz`: only OPAs with both can't have it.
    let overlapping = rooted("overlapping", &["plain", "authz/more"], "package plain\n");
    fixture.push("plain", &overlapping.await).await;
    for name in names("both") {
        let message = fixture.message_of(&name, "plain").await;
        assert!(message.contains("overlapping roots"), "{message}");
        let client = fixture.is_in(&name, "plain", "failing").await;
        assert_eq!(client["bundles"]["authz"]["state"], "current");
    }
    for name in [names("status"), names("quiet")].concat() {
        fixture.is_in(&name, "authz", "current").await;
    }
    fixture.push("plain", &plain(2).await).await;
    for name in names("both") {
        let client = fixture.is_in(&name, "plain", "current").await;
        assert_eq!(client["bundles"]["plain"]["error"], Value::Null);
    }

    // A version that does not compile, which the gateway does not notice without `opa_check`.
    let broken = fixture
        .push("authz", &Artifact::raw(&unsafe_variable()))
        .await;
    for name in [names("status"), names("both")].concat() {
        let message = fixture.message_of(&name, "authz").await;
        assert!(message.contains("authz.rego:3:"), "{message}");
        let client = fixture.is_in(&name, "authz", "failing").await;
        let authz = &client["bundles"]["authz"];
        assert_eq!(authz["runs"]["revision"], "first");
    }
    for name in names("quiet") {
        let client = fixture.is_in(&name, "authz", "failing").await;
        let authz = &client["bundles"]["authz"];
        assert_eq!(authz["error"]["source"], "downloads");
        assert_eq!(authz["offered"]["manifest"], broken.as_str());
    }
    fixture.all_stay_failing().await;
    fixture.push("authz", &answering("third").await).await;
    for kind in ["status", "quiet", "both"] {
        for name in names(kind) {
            let client = fixture.is_in(&name, "authz", "current").await;
            assert_eq!(client["bundles"]["authz"]["runs"]["revision"], "third");
            assert_eq!(client["bundles"]["authz"]["error"], Value::Null);
        }
    }
    for opa in &opas {
        opa.answers("third").await;
    }
}

/// Acceptance test 7, without its measurement: beyond the rate OPAs are answered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn reports_beyond_the_rate_are_answered_unread_and_opas_go_on_polling() {
    let fixture = Fixture::with(json!({ "status": { "rate": 1 } })).await;
    let bundles: &[(&str, &str)] = &[("authz", "authz"), ("plain", "plain")];
    let mut opas = Vec::new();
    for version in BOTH {
        let client = Client {
            name: Some(version.program()),
            bundles,
            status: Some(""),
            long_polling: false,
        };
        opas.push(fixture.opa(version, client).await);
    }
    poll_until("reports to be dropped", async || {
        (fixture.reports("dropped").await >= 3.0).then_some(())
    })
    .await;
    fixture.push("authz", &answering("second").await).await;
    for opa in &opas {
        let took = opa.answers("second").await;
        println!("fleet | {:?} | second after {took:.1?}", opa.version);
        fixture
            .is_in(opa.version.program(), "authz", "current")
            .await;
    }
}

/// A version of `authz`: what it answers is its revision.
async fn answering(answer: &str) -> Artifact {
    let policy = format!("package authz\n\nanswer := \"{answer}\"\n");
    rooted(answer, &["authz"], &policy).await
}

/// A version of `plain`, without a revision.
async fn plain(answer: u32) -> Artifact {
    let policy = format!("package plain\n\nanswer := {answer}\n");
    rooted("", &["plain"], &policy).await
}

async fn rooted(revision: &str, roots: &[&str], policy: &str) -> Artifact {
    let manifest = json!({ "roots": roots }).to_string();
    let files = [(".manifest", &*manifest), ("policy.rego", policy)];
    Artifact::built(revision, &files).await
}

/// A bundle that OPA can't compile, and that is made without `opa`, which would refuse to build it.
fn unsafe_variable() -> Vec<u8> {
    let policy = "package authz\n\nanswer := x if y == z\n";
    let manifest = r#"{"revision": "broken", "roots": ["authz"], "rego_version": 1}"#;
    tarball(&[(".manifest", manifest), ("authz.rego", policy)])
}

/// A replica of a gateway with `authz` and these bundles, which shares its fleet view by this key.
async fn replica(registry: &Registry, key: &KeyPair, shared: &Value, more: &[&str]) -> TestGateway {
    let mut config = GatewayConfig::trusting(key).bundle("authz", registry, "acme/authz:live");
    for name in more {
        config = config.bundle(name, registry, &format!("acme/{name}:live"));
    }
    TestGateway::start(config.with("/shared", shared.clone())).await
}

/// Two replicas that share their clients, with an OPA of each version at each of them.
struct Replicas {
    registry: Registry,
    key: KeyPair,
    shared: Value,
    gates: Vec<TestGateway>,
    opas: Vec<(String, Opa)>,
}

impl Replicas {
    async fn start(shared: Value) -> Self {
        let mut replicas = Self::without_opas(shared, &[]).await;
        for index in 0..replicas.gates.len() {
            for version in BOTH {
                let name = format!("{}-{index}", version.program());
                replicas
                    .opa(version, &name, index, &[("authz", "authz")])
                    .await;
            }
        }
        replicas
    }

    /// `more`: further bundles.
    async fn without_opas(shared: Value, more: &[&str]) -> Self {
        let registry = Registry::start(Kind::Debian).await;
        let key = KeyPair::generate().await;
        let mut replicas = Self {
            gates: Vec::new(),
            registry,
            key,
            shared,
            opas: Vec::new(),
        };
        replicas.push(&answering("first").await).await;
        if more.contains(&"plain") {
            replicas.push_to("plain", &plain(1).await).await;
        }
        for _ in 0..2 {
            let gate = replica(&replicas.registry, &replicas.key, &replicas.shared, more).await;
            replicas.gates.push(gate);
        }
        replicas
    }

    /// Starts an OPA at a replica, with status reports.
    async fn opa(
        &mut self,
        version: OpaVersion,
        name: &str,
        replica: usize,
        bundles: &[(&str, &str)],
    ) {
        let client = Client {
            name: Some(name),
            bundles,
            status: Some(""),
            long_polling: true,
        };
        let opa = Opa::start(version, &client.config(&self.gates[replica].url)).await;
        self.opas.push((name.to_owned(), opa));
    }

    /// Waits until all simulated clients run the version with this revision.
    async fn all_run(&self, simulated: &Simulated, revision: &str, count: usize) {
        let is_served = |status: &Value| status["revision"] == revision;
        let status = self.gates[0]
            .status_when("authz", revision, is_served)
            .await;
        let tag = status["etag"].as_str().unwrap();
        let all = async || (simulated.running(tag) == count).then_some(());
        let ((), took) = poll_until(&format!("all to run {revision}"), all).await;
        println!("fleet | {count} simulated clients run {revision} after {took:.2?}");
    }

    async fn push(&self, artifact: &Artifact) {
        self.push_to("authz", artifact).await;
    }

    async fn push_to(&self, name: &str, artifact: &Artifact) {
        let (registry, key) = (&self.registry, &self.key);
        let next = format!("acme/{name}:next");
        let digest = registry.push(&next, &artifact.file()).await;
        key.sign(registry, &format!("acme/{name}@{digest}")).await;
        registry.tag(&format!("acme/{name}@{digest}"), "live").await;
    }

    /// Waits until both replicas show these states and this scope, and says how long that took.
    async fn show(&self, what: &str, scope: &str, states: &[(&str, u64)]) {
        for (index, gate) in self.gates.iter().enumerate() {
            let shown = async || {
                let fleet: Value = serde_json::from_str(&gate.admin_text("/fleet").await).unwrap();
                let counts = &fleet["bundles"]["authz"]["states"];
                let mut states = states.iter();
                let is_shown = fleet["scope"] == scope
                    && states.all(|(state, clients)| counts[state] == *clients);
                is_shown.then_some(())
            };
            let ((), took) = poll_until(&format!("{what} at replica {index}"), shown).await;
            println!("fleet | {what} | replica {index} shows it after {took:.2?}");
        }
    }

    async fn answer(&self, answer: &str) {
        for (name, opa) in &self.opas {
            println!(
                "fleet | {name} | {answer} after {:.2?}",
                opa.answers(answer).await
            );
        }
    }

    /// A client that asks for `authz`, as a replica shows it.
    async fn client(&self, replica: usize, name: &str) -> Value {
        let path = format!("/fleet?search={name}&bundle=authz");
        let text = self.gates[replica].admin_text(&path).await;
        let mut fleet: Value = serde_json::from_str(&text).unwrap();
        let clients = fleet["clients"].as_array_mut().unwrap();
        let found = clients.iter_mut().find(|client| client["name"] == name);
        found.map(Value::take).unwrap_or_default()
    }

    /// Stops the first OPA, `opa-0` at the first replica, and starts one of this name at the other one.
    async fn restart_first_opa(&mut self) {
        let before = self.client(1, "opa-0").await;
        drop(self.opas.remove(0));
        let gone = async || {
            let client = self.client(0, "opa-0").await;
            (client["bundles"]["authz"]["waiting"] == 0).then_some(client)
        };
        let (stopped, took) = poll_until("the stopped OPA to be gone", gone).await;
        println!("fleet | a stopped OPA | no request is held after {took:.2?}");
        assert_eq!(
            stopped["bundles"]["authz"]["state"], "current",
            "{stopped:#}"
        );
        let bundles = &[("authz", "authz")];
        self.opa(OpaVersion::Newest, "opa-0", 1, bundles).await;
        self.answer("fourth").await;
        let restarted = async || {
            let client = self.client(0, "opa-0").await;
            let is_other = client["opa"]["id"] != before["opa"]["id"];
            (is_other && client["bundles"]["authz"]["state"] == "current").then_some(())
        };
        let ((), took) = poll_until("the restarted OPA at the other replica", restarted).await;
        println!("fleet | an OPA that restarts at the other replica | shown after {took:.2?}");
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

/// Acceptance tests 8, 19 and 20, as far as they concern the view.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_show_the_whole_fleet_and_an_engine_that_fails_delays_no_client() {
    let mut engine = Engine::start().await;
    let url = format!("redis://127.0.0.1:{}/0", engine.port);
    let mut replicas = Replicas::start(json!({ "url": url })).await;
    replicas
        .show("the start", "shared", &[("current", 4)])
        .await;
    replicas.push(&answering("second").await).await;
    replicas.answer("second").await;
    replicas.show("a push", "shared", &[("current", 4)]).await;
    replicas.push(&Artifact::raw(&unsafe_variable())).await;
    replicas
        .show("a broken version", "shared", &[("failing", 4)])
        .await;
    let text = replicas.gates[0].admin_text("/fleet?state=failing").await;
    let failing: Value = serde_json::from_str(&text).unwrap();
    for client in failing["clients"].as_array().unwrap() {
        let error = &client["bundles"]["authz"]["error"];
        assert_eq!(error["source"], "status", "{client:#}");
        assert!(client["opa"]["version"].is_string());
    }

    engine.process.signal("STOP");
    replicas
        .show("an engine that hangs", "replica", &[("failing", 4)])
        .await;
    let report = json!({ "labels": { "id": "x" }, "bundles": {} }).to_string();
    for gate in &replicas.gates {
        let began = Instant::now();
        let request = gate.http.post(format!("{}/status", gate.url));
        let response = request.body(report.clone()).send().await.unwrap();
        assert_eq!(response.status(), 204);
        println!(
            "fleet | a report while the engine hangs | {:.2?}",
            began.elapsed()
        );
    }
    replicas.push(&answering("third").await).await;
    replicas.answer("third").await;
    engine.process.signal("CONT");
    replicas
        .show("an engine that goes on", "shared", &[("current", 4)])
        .await;

    engine.process.kill();
    replicas
        .show("an engine that is gone", "replica", &[])
        .await;
    replicas.push(&answering("fourth").await).await;
    replicas.answer("fourth").await;
    engine.restart_empty().await;
    replicas
        .show("an empty engine", "shared", &[("current", 4)])
        .await;
    engine.command(&["FLUSHALL"]);
    replicas
        .show("an emptied engine", "shared", &[("current", 4)])
        .await;
    // A replica that starts now knows the clients of the others, as soon as they have written them again.
    let shared = replicas.shared.clone();
    let third = replica(&replicas.registry, &replicas.key, &shared, &[]).await;
    replicas.gates.push(third);
    replicas
        .show("a new replica", "shared", &[("current", 4)])
        .await;
    let text = replicas.gates[2].admin_text("/fleet?limit=10").await;
    let fleet: Value = serde_json::from_str(&text).unwrap();
    for client in fleet["clients"].as_array().unwrap() {
        assert_eq!(
            client["bundles"]["authz"]["runs"]["revision"], "fourth",
            "{client:#}"
        );
        assert!(client["opa"]["version"].is_string(), "{client:#}");
    }
    replicas.have_sent_no_server_errors().await;
}

/// 20 OPAs and 10 000 simulated clients on two replicas.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_fleet_is_shown_as_it_changes() {
    const OPAS: usize = 20;
    // Each has a connection of this process.
    let count = 10_000.min(raise_open_files() / 2);
    let engine = Engine::start().await;
    let shared = json!({ "url": format!("redis://127.0.0.1:{}/0", engine.port) });
    let mut replicas = Replicas::without_opas(shared, &["plain"]).await;
    let addresses: Vec<_> = replicas.gates.iter().map(|gate| gate.data).collect();
    for number in 0..OPAS {
        let bundles: &[(&str, &str)] = match number % 4 {
            0 | 1 => &[("authz", "authz")],
            _ => &[("authz", "authz"), ("plain", "plain")],
        };
        let name = format!("opa-{number}");
        replicas
            .opa(BOTH[number % 2], &name, number % 4 / 2, bundles)
            .await;
    }
    let simulated = Simulated::start(&addresses, "authz", count).await;
    let all = (OPAS + count) as u64;
    replicas.answer("first").await;
    replicas.all_run(&simulated, "first", count).await;
    replicas
        .show("the start", "shared", &[("current", all)])
        .await;

    replicas.push(&answering("second").await).await;
    replicas.answer("second").await;
    replicas.all_run(&simulated, "second", count).await;
    replicas.show("a push", "shared", &[("current", all)]).await;

    // It claims the root of `plain`, so that the OPAs with both bundles can't activate it.
    let policy = "package authz\n\nanswer := \"third\"\n";
    replicas
        .push(&rooted("third", &["authz", "plain/more"], policy).await)
        .await;
    replicas.all_run(&simulated, "third", count).await;
    let failing = OPAS as u64 / 2;
    // OPA itself has to notice it first, on a machine that all clients share.
    let opas = replicas.opas.iter().enumerate();
    for (_, (_, opa)) in opas.filter(|(number, _)| number % 4 >= 2) {
        opa.fails_with("overlapping roots").await;
    }
    let states = [("current", all - failing), ("failing", failing)];
    replicas
        .show("a version that some can't activate", "shared", &states)
        .await;
    for gate in &replicas.gates {
        let sample = "bundlegate_fleet_clients{bundle=\"authz\",state=\"failing\"}";
        assert_eq!(gate.metric(sample).await, failing as f64);
        let page = gate.admin_text("/").await;
        assert!(
            page.contains("detected overlapping roots"),
            "the page has no error"
        );
    }
    replicas.push(&answering("fourth").await).await;
    replicas.answer("fourth").await;
    replicas
        .show("the next version", "shared", &[("current", all)])
        .await;

    replicas.restart_first_opa().await;
    replicas
        .show("a restart", "shared", &[("current", all)])
        .await;
    replicas.have_sent_no_server_errors().await;
}

/// Acceptance test 21, as far as it concerns the view.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_the_engine_leaves_the_view_complete() {
    let folder = TempDir::new().unwrap();
    let mut primary = Engine::start().await;
    let source = primary.port.to_string();
    let _replica = Engine::with(&["--replicaof", "127.0.0.1", &source]).await;
    let (_sentinel, port) = sentinel(&folder, &primary, None).await;
    let nodes = [format!("127.0.0.1:{port}")];
    let shared = json!({ "url": "redis:///0", "sentinel": { "master": "main", "nodes": nodes } });
    let replicas = Replicas::start(shared).await;
    replicas
        .show("the start", "shared", &[("current", 4)])
        .await;
    primary.process.kill();
    replicas.show("no primary", "replica", &[]).await;
    replicas.push(&answering("second").await).await;
    replicas.answer("second").await;
    replicas
        .show("another primary", "shared", &[("current", 4)])
        .await;
    replicas.have_sent_no_server_errors().await;
}
