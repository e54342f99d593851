//! Registry requests caused by a thousand clients.

use std::{collections::BTreeMap, fs, time::Duration};

use bundlegate::oci::Digest;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, PATIENCE, Proxy, Registry, TestGateway,
};

pub(crate) const CLIENTS: usize = 1000;
const POLL: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_cold_clients_cost_one_get_of_each_thing_and_then_one_head_an_interval() {
    // This registry has the referrers API, so that both signature formats are found at once.
    let registry = Registry::start(Kind::Referrers).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    let pinned = format!("acme/authz@{digest}");
    key.sign_with(Cosign::V3, Format::Bundle, &registry, &pinned)
        .await;
    key.sign_with(Cosign::V2, Format::Legacy, &registry, &pinned)
        .await;
    let (gets, heads) = (registry.asked("GET"), registry.asked("HEAD"));
    // The registry is silent until a thousand clients wait for it.
    let proxy = Proxy::before(&registry.host).await;
    proxy.hold();
    let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
    let config = config
        .by_way_of(&proxy.host, &registry)
        .with("/bundles/authz/poll", json!("1s"));
    let gate = TestGateway::start(config).await;
    let mut crowd = Crowd::ask(&gate, "authz", None);
    waiting(&gate).await;
    proxy.release();
    let tags = crowd.answers(200).await;
    assert_eq!(tags.len(), 1, "{tags:?}");
    let cost = since(&gets, registry.asked("GET"));
    assert!(
        cost.values().all(|times| *times == 1),
        "more than once: {cost:#?}"
    );
    let count = |part: &str| cost.keys().filter(|path| path.contains(part)).count();
    // Manifests: the artifact's by its tag, the referrer's, and whatever the `.sig` tag and the
    // referrers tag name, if anything. Blobs: the bundle and a signature in either format.
    let by_digest = count(&format!("/manifests/{digest}"));
    assert_eq!(
        (count("/manifests/live"), by_digest, count("/blobs/")),
        (1, 0, 3),
        "{cost:#?}"
    );
    println!(
        "crowd | {CLIENTS} cold clients | {} different GETs at the registry, each once:",
        cost.len()
    );
    for path in cost.keys() {
        println!("crowd |   {path}");
    }
    assert_eq!(
        since(&heads, registry.asked("HEAD"))
            .keys()
            .filter(|path| !path.ends_with("/live"))
            .count(),
        0
    );

    let mut crowd = Crowd::ask(&gate, "authz", tags.keys().next().cloned());
    waiting(&gate).await;
    waits_cost_one_head_an_interval(&registry, &gate).await;
    // And all of them get the next version.
    let artifact = Artifact::answering("second").await;
    let second = registry.push("acme/authz:second", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{second}")).await;
    let (gets, moved) = (registry.asked("GET"), Instant::now());
    registry.tag(&format!("acme/authz@{second}"), "live").await;
    assert_eq!(crowd.answers(200).await.len(), 1);
    println!(
        "crowd | {CLIENTS} waiting clients | all have the next version {:.1} s after the tag moved",
        moved.elapsed().as_secs_f64()
    );
    let layer = Digest::sha256(&fs::read(artifact.file()).unwrap());
    let cost = since(&gets, registry.asked("GET"));
    assert_eq!(
        cost.iter()
            .filter(|(path, _)| path.ends_with(layer.as_str()))
            .map(|(_, times)| times)
            .sum::<usize>(),
        1
    );
}

/// Counts the requests at the registry while all clients wait.
async fn waits_cost_one_head_an_interval(registry: &Registry, gate: &TestGateway) {
    let (gets, heads, began) = (
        registry.asked("GET"),
        registry.asked("HEAD"),
        Instant::now(),
    );
    // The number of requests in a time is measured, so the time must pass.
    sleep(10 * POLL).await;
    let asked: usize = since(&heads, registry.asked("HEAD")).values().sum();
    let intervals = began.elapsed().as_secs_f64() / POLL.as_secs_f64();
    assert_eq!(
        gate.bundle_status("authz").await["waiters"],
        CLIENTS,
        "they no longer wait"
    );
    println!("crowd | {CLIENTS} waiting clients | {asked} HEADs in {intervals:.1} intervals");
    assert!(
        asked >= 1 && asked as f64 <= intervals + 1.0,
        "{asked} HEADs in {intervals} intervals"
    );
    assert_eq!(since(&gets, registry.asked("GET")), BTreeMap::new());
}

/// The paths that were requested more often than before, and how much more often.
fn since(
    before: &BTreeMap<String, usize>,
    mut after: BTreeMap<String, usize>,
) -> BTreeMap<String, usize> {
    for (path, times) in &mut after {
        *times -= before.get(path).copied().unwrap_or_default();
    }
    after.retain(|_, times| *times > 0);
    after
}

async fn waiting(gate: &TestGateway) {
    gate.status_when("authz", "all wait", |status| status["waiters"] == CLIENTS)
        .await;
}

/// A thousand requests at a time, each over a connection of its own.
pub(crate) struct Crowd(JoinSet<(u16, String)>);

impl Crowd {
    pub(crate) fn ask(gate: &TestGateway, bundle: &str, etag: Option<String>) -> Self {
        let url = format!("{}/bundles/{bundle}", gate.url);
        let mut requests = JoinSet::new();
        for _ in 0..CLIENTS {
            // Reading the system's certificates a thousand times would take longest of all.
            let http = reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([])
                .timeout(5 * PATIENCE)
                .build()
                .unwrap();
            let mut request = http
                .get(&url)
                .header("prefer", "modes=snapshot,delta;wait=300");
            if let Some(etag) = &etag {
                request = request.header("if-none-match", etag);
            }
            requests.spawn(async move {
                let response = request.send().await.unwrap();
                let etag = response
                    .headers()
                    .get("etag")
                    .map(|etag| etag.to_str().unwrap().to_owned());
                (response.status().as_u16(), etag.unwrap_or_default())
            });
        }
        Self(requests)
    }

    /// No request has been answered yet.
    pub(crate) fn is_untouched(&mut self) {
        let answered = self.0.try_join_next();
        assert!(answered.is_none(), "a client was answered: {answered:?}");
    }

    /// Every answer has this status; gives the entity tags and how many had them.
    async fn answers(&mut self, status: u16) -> BTreeMap<String, usize> {
        let mut tags = BTreeMap::new();
        while let Some(answer) = self.0.join_next().await {
            let (answered, etag) = answer.unwrap();
            assert_eq!(answered, status);
            *tags.entry(etag).or_default() += 1;
        }
        tags
    }
}
