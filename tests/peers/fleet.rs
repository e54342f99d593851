//! The fleet view with real OPAs: what each of them runs, and why it does not run the served version.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::opa_check::tarball;
use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway, poll_until,
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

    async fn is_in(&self, name: &str, bundle: &str, state: &str) -> Value {
        let is_in = |one: &Value| one["state"] == state;
        let (client, took) = self.client_when(name, bundle, state, is_in).await;
        println!("fleet | {name} | {bundle} | {state} after {took:.1?}");
        client
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
    for version in BOTH {
        for (name, client) in clients {
            let name = format!("{name}-{}", version.program());
            fixture.is_in(&name, "plain", "current").await;
            fixture.is_in(&name, "authz", "current").await;
            if client.status.is_some() {
                let has_opa = |_: &Value| true;
                let (seen, _) = fixture.client_when(&name, "authz", "known", has_opa).await;
                let reported = async || {
                    let mut clients = fixture.clients().await;
                    let client = clients.remove(&name)?;
                    client["opa"]["version"].is_string().then_some(client)
                };
                let (seen, _) = match seen["opa"]["version"].is_string() {
                    true => (seen, Duration::ZERO),
                    false => poll_until("its report", reported).await,
                };
                let expected = match version {
                    OpaVersion::Newest => "1.22.2",
                    OpaVersion::V0_70 => "0.70.0",
                };
                assert_eq!(seen["opa"]["version"], expected, "{seen:#}");
                assert_eq!(seen["opa"]["labels"], json!({ "region": "eu" }));
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
    let clients = |state| format!("bundlegate_fleet_clients{{bundle=\"authz\",state=\"{state}\"}}");
    assert_eq!(fixture.gate.metric(&clients("current")).await, 9.0);
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
        let client = fixture.is_in(&name, "plain", "failing").await;
        let by_report = |one: &Value| one["error"]["source"] == "status";
        let (client, _) = match by_report(&client["bundles"]["plain"]) {
            true => (client, Duration::ZERO),
            false => {
                fixture
                    .client_when(&name, "plain", "reported", by_report)
                    .await
            }
        };
        let error = &client["bundles"]["plain"]["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("overlapping roots"), "{error:#}");
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
        let by_report = |one: &Value| one["error"]["source"] == "status";
        let (client, took) = fixture
            .client_when(&name, "authz", "failing", by_report)
            .await;
        println!("fleet | {name} | authz | report after {took:.1?}");
        let authz = &client["bundles"]["authz"];
        assert_eq!(authz["state"], "failing");
        let message = authz["error"]["message"].as_str().unwrap();
        assert!(message.contains("authz.rego:3:"), "{message}");
        assert_eq!(authz["runs"]["revision"], "first");
    }
    for name in names("quiet") {
        let client = fixture.is_in(&name, "authz", "failing").await;
        let authz = &client["bundles"]["authz"];
        assert_eq!(authz["error"]["source"], "downloads");
        assert_eq!(authz["offered"]["manifest"], broken.as_str());
    }
    // It stays so while the clients go on asking; only real time shows that.
    for _ in 0..20 {
        for (name, client) in fixture.clients().await {
            assert_eq!(
                client["bundles"]["authz"]["state"], "failing",
                "{name}: {client:#}"
            );
        }
        sleep(Duration::from_millis(100)).await;
    }
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
