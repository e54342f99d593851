//! The alert rules and the dashboard of `config/deploy` in a real Prometheus, beside two replicas
//! that are loaded.
//!
//! Every query of the dashboard has to have an answer: Grafana shows an empty panel otherwise.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use reqwest::{
    Certificate, Client, RequestBuilder, Response,
    header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use serde_json::{Value, json};
use sigstore_verify::trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT;
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    shared::names,
    support::{
        Artifact, Ca, Engine, GatewayConfig, KeyPair, Kind, PATIENCE, Prometheus, Registry,
        TestGateway, poll_until, run,
    },
    tuf::Tuf,
};

const DASHBOARD: &str = include_str!("../../config/deploy/grafana/bundlegate.json");
const DASHBOARD_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/deploy/grafana/bundlegate.json"
);
const RULES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/deploy/prometheus/alerts.yaml"
);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TOKEN: &str = "of news";
const VERSIONS: usize = 6;

/// Alerts that follow from what [`World::start`] and [`Load::start`] do. Most of them are pending,
/// since they fire only after minutes.
const ACTIVE: [&str; 7] = [
    "BundlegateBundleRefused",
    "BundlegateBundleWithdrawn",
    "BundlegateConfigReloadFailed",
    "BundlegateOlderVersionServed",
    // The TUF repository has published its metadata for a day.
    "BundlegateTrustRootExpiry",
    "BundlegateVerificationFailures",
    "BundlegateWebhookRejected",
];

/// Alerts that nothing here gives a reason for.
const INACTIVE: [&str; 14] = [
    "BundlegateBundlePending",
    "BundlegateBundleStale",
    "BundlegateCacheUnavailable",
    "BundlegateCertificateExpiry",
    "BundlegateConnectionsNearLimit",
    "BundlegateDown",
    "BundlegateFallbackServed",
    "BundlegateFileDescriptorsNearLimit",
    "BundlegateNoReplicaReady",
    "BundlegateRegistryDenied",
    "BundlegateReplicaDown",
    "BundlegateRestarts",
    "BundlegateServerErrors",
    "BundlegateVersionsDiffer",
];

#[tokio::test]
async fn promtool_accepts_the_alert_rules_and_their_tests_pass() {
    let folder = Path::new(RULES).parent().unwrap();
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        let output = run("promtool", folder, &arguments).await;
        assert!(output.contains("SUCCESS"), "{output}");
    }
}

#[tokio::test]
async fn the_dashboard_follows_the_schema_of_grafana() {
    let folder = Path::new(DASHBOARD_FILE).parent().unwrap();
    let output = run("dashboard-schema", folder, &["bundlegate.json"]).await;
    let panels: BTreeSet<_> = queries().into_iter().map(|(panel, _)| panel).collect();
    let (panels, queries) = (panels.len(), queries().len());
    assert_eq!(output, format!("{panels} panels, {queries} queries"));
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_alert() {
    let mut world = World::start().await;
    let _load = Load::start(&world);
    let targets = world.replicas.each_ref().map(|replica| replica.admin);
    let mut prometheus = Prometheus::scraping(&targets, &[Path::new(RULES)]).await;
    world.reload().await;

    let queries = queries();
    assert!(queries.len() > 50, "{}", queries.len());
    let began = Instant::now();
    for (panel, expression) in &queries {
        let what = format!("an answer for the panel {panel:?}: {expression}");
        poll_until(&what, async || answered(&prometheus, expression).await).await;
    }
    println!(
        "dashboard | all {} queries have an answer | after {:.0} s",
        queries.len(),
        began.elapsed().as_secs_f64()
    );
    variables_have_values(&prometheus).await;

    poll_until("all alerts to be evaluated", async || {
        let others = alerts(&prometheus, |rule| rule["health"] != "ok").await;
        others.is_empty().then_some(())
    })
    .await;
    alerts_read_what_exists(&prometheus).await;
    for name in ACTIVE {
        poll_until(&format!("{name} to be active"), async || {
            active(&prometheus).await.contains(name).then_some(())
        })
        .await;
    }
    let now = active(&prometheus).await;
    for name in INACTIVE {
        assert!(!now.contains(name), "{name} is active: {now:?}");
    }
    world.replicas[1].runner.process.kill();
    poll_until("the alert about a replica that is down", async || {
        active(&prometheus)
            .await
            .contains("BundlegateReplicaDown")
            .then_some(())
    })
    .await;
    println!(
        "dashboard | active alerts | {:?}",
        active(&prometheus).await
    );
    assert!(!prometheus.has_ended());
}

/// Two replicas, which trust the same key and a root of a TUF repository, and serve over TLS.
struct World {
    registry: Arc<Registry>,
    replicas: [TestGateway; 2],
    http: Client,
    _tuf: Tuf,
    _engine: Engine,
    _ca: Ca,
    _folder: TempDir,
}

impl World {
    /// The bundle `authz` has some versions, of `forged` a newer one is signed by another key, and
    /// `unsigned` has no signature. Of `staged` a newer version is being rolled out.
    async fn start() -> Self {
        let (mut registry, key) = (
            Registry::start(Kind::Distribution).await,
            KeyPair::generate().await,
        );
        for number in 0..VERSIONS {
            push(&registry, &format!("authz:v{number}"), Some(&key)).await;
        }
        registry.tag("acme/authz:v0", "live").await;
        push(&registry, "forged:live", Some(&key)).await;
        push(&registry, "unsigned:live", None).await;
        push(&registry, "staged:live", Some(&key)).await;

        let tuf = Tuf::start(SIGSTORE_PRODUCTION_TRUSTED_ROOT).await;
        let (ca, folder) = (Ca::new(), TempDir::new().unwrap());
        let root = folder.path().join("root.json");
        fs::write(&root, tuf.bytes("1.root.json")).unwrap();
        let token = folder.path().join("token");
        fs::write(&token, TOKEN).unwrap();
        let trust = json!({
            "roots": { "corp": { "tuf": { "url": tuf.url().as_str(), "root": root } } },
            "authorities": {
                "release-key": { "keys": [key.public()], "tlog": "none" },
                "ci": { "keyless": {
                    "root": "corp", "issuer": "https://issuer.example", "subject": "ci@corp.example",
                } },
            },
            "policies": { "release": { "require": { "any_of": ["release-key", "ci"] } } },
        });
        let mut config = GatewayConfig::with_trust(trust)
            .cached()
            .secured(&ca.issue("gate"));
        for bundle in ["authz", "forged", "unsigned", "staged"] {
            config = config.bundle(bundle, &registry, &format!("acme/{bundle}:live"));
        }
        let engine = Engine::start().await;
        roll_out_staged(&mut config, &engine);
        config.0["webhooks"] = json!([{
            "name": "lan", "kind": "distribution", "bearer_token_file": token,
        }]);
        let replicas = [
            TestGateway::start(config.clone()).await,
            TestGateway::start(config).await,
        ];
        let url = format!("http://{}/webhooks/lan", replicas[0].admin);
        registry.notify(&url, &format!("Bearer {TOKEN}")).await;
        for replica in &replicas {
            for (bundle, state) in [("forged", "serving"), ("unsigned", "withdrawn")] {
                replica
                    .status_when(bundle, state, |status| status["state"] == state)
                    .await;
            }
        }
        push(&registry, "forged:live", Some(&KeyPair::generate().await)).await;
        for replica in &replicas {
            let is_known = |status: &Value| status["rollout"]["phase"] == "idle";
            replica.status_when("staged", "a plan", is_known).await;
        }
        push(&registry, "staged:live", Some(&key)).await;
        let pem = fs::read(ca.file()).unwrap();
        let http = Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .tls_certs_only([Certificate::from_pem(&pem).unwrap()]);
        Self {
            registry: Arc::new(registry),
            replicas,
            http: http.build().unwrap(),
            _tuf: tuf,
            _engine: engine,
            _ca: ca,
            _folder: folder,
        }
    }

    /// One replica applies a new configuration, and the other one refuses it.
    async fn reload(&self) {
        let [first, second] = &self.replicas;
        let settings = json!({ "max_wait": "2m" });
        first.reconfigure(&first.config().with("/long_poll", settings));
        second.reconfigure(&second.config().with("/long_pull", json!({})));
        for (replica, outcome) in [(first, "applied"), (second, "refused")] {
            let series = format!("bundlegate_config_reloads_total{{outcome=\"{outcome}\"}}");
            poll_until(&series, async || {
                (replica.metric(&series).await > 0.0).then_some(())
            })
            .await;
        }
    }
}

/// Has the bundle `staged` rolled out to clients that can't activate it, with a check that has no answer.
fn roll_out_staged(config: &mut GatewayConfig, engine: &Engine) {
    let url = format!("redis://127.0.0.1:{}", engine.port);
    config.0["shared"] = json!({ "url": url, "timeout": "2s" });
    config.0["prometheus"] = json!({ "url": "http://127.0.0.1:1" });
    let check = json!({ "name": "denials", "query": "vector(0)", "max": 0, "every": "10s" });
    config.0["rollouts"] = json!({ "slow": {
        "steps": [{ "ids": ["canary"], "approve": true }], "max_failures": 1000, "checks": [check],
    } });
    config.0["bundles"]["staged"]["rollout"] = json!("slow");
}

/// Pushes a new artifact, and signs it.
async fn push(registry: &Registry, name: &str, key: Option<&KeyPair>) {
    let artifact = Artifact::answering(&format!("{name} {}", fastrand::u64(..))).await;
    let name = format!("acme/{name}");
    let digest = registry.push(&name, &artifact.file()).await;
    let (repository, _) = name.split_once(':').unwrap();
    if let Some(key) = key {
        key.sign(registry, &format!("{repository}@{digest}")).await;
    }
}

/// Requests of every kind, until this is dropped.
struct Load(#[expect(dead_code, reason = "its drop ends the tasks")] JoinSet<()>);

impl Load {
    fn start(world: &World) -> Self {
        let mut tasks = JoinSet::new();
        for replica in &world.replicas {
            let requests = Requests {
                http: world.http.clone(),
                data: replica.url.clone(),
                admin: format!("http://{}", replica.admin),
            };
            tasks.spawn(requests.clone().of_clients());
            tasks.spawn(requests.waiting());
        }
        tasks.spawn(move_tag(Arc::clone(&world.registry)));
        Self(tasks)
    }
}

/// Requests to one replica.
#[derive(Clone)]
struct Requests {
    http: Client,
    data: String,
    admin: String,
}

impl Requests {
    /// Downloads, comparisons, and requests that are refused.
    async fn of_clients(self) {
        loop {
            let tag = tag_of(&sent(self.bundle("authz")).await);
            sent(self.bundle("authz").header(IF_NONE_MATCH, &tag)).await;
            sent(self.bundle("none")).await;
            // It is offered the candidate, and goes on with what it runs.
            let canary = self.bundle("staged").header("Bundlegate-Client", "canary");
            sent(canary.header(IF_NONE_MATCH, "\"another\"")).await;
            sent(self.bundle("authz").bearer_auth("wrong")).await;
            let webhook = self.http.post(format!("{}/webhooks/lan", self.admin));
            sent(webhook.bearer_auth("wrong").body("{}")).await;
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Long polls, which end with a new version or at their deadline.
    async fn waiting(self) {
        let mut tag = String::new();
        loop {
            for wait in [1, 4] {
                let request = self.bundle("authz").header(IF_NONE_MATCH, &tag);
                let prefer = format!("modes=snapshot,delta;wait={wait}");
                tag = tag_of(&sent(request.header("Prefer", prefer)).await);
            }
        }
    }

    fn bundle(&self, name: &str) -> RequestBuilder {
        self.http.get(format!("{}/bundles/{name}", self.data))
    }
}

/// One replica is killed while there is load; its clients go on.
async fn sent(request: RequestBuilder) -> Option<Response> {
    let response = request.send().await.ok();
    if response.is_none() {
        sleep(Duration::from_millis(200)).await;
    }
    response
}

fn tag_of(response: &Option<Response>) -> String {
    let tag = response
        .as_ref()
        .and_then(|response| response.headers().get(ETAG));
    tag.map_or_else(String::new, |tag| tag.to_str().unwrap().to_owned())
}

/// Lets the tag `live` name one version after the other.
async fn move_tag(registry: Arc<Registry>) {
    let http = crate::support::http();
    let url = |tag: &str| format!("http://{}/v2/acme/authz/manifests/{tag}", registry.host);
    for number in (0..VERSIONS).cycle() {
        let read = http
            .get(url(&format!("v{number}")))
            .header(ACCEPT, MANIFEST);
        let manifest = read.send().await.unwrap().bytes().await.unwrap();
        let put = http.put(url("live")).header(CONTENT_TYPE, MANIFEST);
        put.body(manifest)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        sleep(Duration::from_millis(1500)).await;
    }
}

/// The queries of the dashboard with all jobs, replicas and bundles, each with the title of its
/// panel.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = substituted(target["expr"].as_str().unwrap());
            assert!(!expression.contains('$'), "{title}: {expression}");
            queries.push((title.to_owned(), expression));
        }
    }
    queries
}

/// As Grafana replaces variables whose value is "All", and the interval of rates.
fn substituted(expression: &str) -> String {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut expression = expression.replace("$__rate_interval", "30s");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(all) = variable["allValue"].as_str() {
            let name = variable["name"].as_str().unwrap();
            expression = expression.replace(&format!("${name}"), all);
        }
    }
    expression
}

/// Whether the answer to a query has a number. A quantile of nothing is none.
async fn answered(prometheus: &Prometheus, expression: &str) -> Option<()> {
    let samples = prometheus.samples(expression).await;
    let samples = samples.unwrap_or_else(|error| panic!("{expression}: {error}"));
    let is_finite = |sample: &String| sample.parse::<f64>().unwrap().is_finite();
    samples.iter().any(is_finite).then_some(())
}

/// The variables are `label_values(SELECTOR, LABEL)`.
async fn variables_have_values(prometheus: &Prometheus) {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut found = 0;
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(definition) = variable["definition"].as_str() else {
            continue;
        };
        let definition = substituted(definition);
        let arguments = definition.strip_prefix("label_values(").unwrap();
        let (selector, label) = arguments
            .strip_suffix(')')
            .unwrap()
            .rsplit_once(", ")
            .unwrap();
        let path = format!("label/{label}/values");
        let values = prometheus
            .get(&path, &[("match[]", selector)])
            .await
            .unwrap();
        assert!(!values.as_array().unwrap().is_empty(), "{definition}");
        found += 1;
    }
    assert_eq!(found, 3);
}

/// An alert that reads a metric or a label that does not exist would never fire.
async fn alerts_read_what_exists(prometheus: &Prometheus) {
    let known = prometheus.get("labels", &[]).await.unwrap();
    for rule in rules(prometheus).await {
        let read = names(rule["query"].as_str().unwrap());
        for metric in &read.metrics {
            let samples = prometheus.samples(metric).await.unwrap();
            assert!(!samples.is_empty(), "{}: no {metric}", rule["name"]);
        }
        for label in &read.labels {
            // Service discovery in Kubernetes adds it.
            let is_known = label == "pod" || known.as_array().unwrap().contains(&json!(label));
            assert!(is_known, "{}: no label {label}", rule["name"]);
        }
    }
}

/// The alerts, all of which have been loaded.
async fn rules(prometheus: &Prometheus) -> Vec<Value> {
    let data = prometheus.get("rules", &[("type", "alert")]).await.unwrap();
    let groups = data["groups"].as_array().unwrap().iter();
    let rules: Vec<_> = groups
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect();
    let written = fs::read_to_string(RULES).unwrap();
    assert_eq!(rules.len(), written.matches("- alert: ").count());
    rules
}

/// The names of the alerts with this property.
async fn alerts(prometheus: &Prometheus, has: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let rules = rules(prometheus).await;
    for rule in &rules {
        let error = rule["lastError"].as_str().unwrap_or_default();
        assert!(error.is_empty(), "{}: {error}", rule["name"]);
    }
    let found = rules.iter().filter(|rule| has(rule));
    found
        .map(|rule| rule["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn active(prometheus: &Prometheus) -> BTreeSet<String> {
    alerts(prometheus, |rule| rule["state"] != "inactive").await
}
