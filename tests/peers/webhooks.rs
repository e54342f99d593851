//! From a push to the decision of a real OPA, by notifications of real registries, by changes of a
//! layout folder, and by polling.
//!
//! `BUNDLEGATE_PUSHES=100` measures more than the few pushes of a test run. Figures are printed.
//! Ten signed versions are pushed in turn.

use std::{env, fs, time::Duration};

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    Artifact, Author, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, PATIENCE, Registry,
    TestGateway, http, run,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TOKEN: &str = "of news";

fn pushes() -> usize {
    env::var("BUNDLEGATE_PUSHES").map_or(4, |text| text.parse().unwrap())
}

/// How many versions are pushed in turn.
fn versions() -> usize {
    (pushes() + 1).min(10)
}

fn answer(number: usize) -> String {
    let number = number % versions();
    format!("answer-{number}")
}

/// Pushes signed artifacts under the tags `v0`, `v1` …, and `live` as `v0`.
async fn prepare(registry: &Registry, key: &KeyPair) {
    for number in 0..versions() {
        let artifact = Artifact::answering(&answer(number)).await;
        let name = format!("acme/authz:v{number}");
        let digest = registry.push(&name, &artifact.file()).await;
        key.sign(registry, &format!("acme/authz@{digest}")).await;
    }
    registry.tag("acme/authz:v0", "live").await;
}

/// Puts the manifest of `v<number>` under the tag `live`: the last request of a push. Returns when
/// the registry has answered.
async fn push(registry: &Registry, number: usize) -> Instant {
    let http = http();
    let url = |tag: &str| format!("http://{}/v2/acme/authz/manifests/{tag}", registry.host);
    let read = http
        .get(url(&format!("v{}", number % versions())))
        .header(ACCEPT, MANIFEST);
    let manifest = read.send().await.unwrap().error_for_status().unwrap();
    let manifest = manifest.bytes().await.unwrap();
    let put = http.put(url("live")).header(CONTENT_TYPE, MANIFEST);
    put.body(manifest)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    Instant::now()
}

/// Waits until OPA decides by the version `number`.
async fn enforced(opa: &Opa, number: usize, pushed: Instant) -> Duration {
    let wanted = json!(answer(number));
    while opa.decision("authz/answer").await.as_ref() != Some(&wanted) {
        assert!(
            pushed.elapsed() < PATIENCE,
            "version {number} is not enforced"
        );
        sleep(Duration::from_millis(2)).await;
    }
    pushed.elapsed()
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share).ceil() as usize;
        times[index.clamp(1, times.len()) - 1].as_millis()
    };
    println!(
        "push | {what}, {} pushes | median {} ms, p99 {} ms, longest {} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// A gateway that gets notifications of `registry`, and otherwise polls once an hour.
async fn notified(registry: &mut Registry, key: &KeyPair) -> TestGateway {
    let mut config = GatewayConfig::trusting(key)
        .bundle("authz", registry, "acme/authz:live")
        .with("/bundles/authz/poll", json!("1h"));
    let token = registry.folder().join("webhook.token");
    fs::write(&token, TOKEN).unwrap();
    config.0["webhooks"] = json!([{
        "name": "lan", "kind": "distribution", "bearer_token_file": token, "listener": "data",
    }]);
    let gate = TestGateway::start(config).await;
    let url = format!("{}/webhooks/lan", gate.url);
    registry.notify(&url, &format!("Bearer {TOKEN}")).await;
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_a_real_registry_is_enforced_at_once() {
    for kind in [Kind::Debian, Kind::Distribution] {
        let (mut registry, key) = (Registry::start(kind).await, KeyPair::generate().await);
        prepare(&registry, &key).await;
        let gate = notified(&mut registry, &key).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers(&answer(0)).await;
        let mut times = Vec::new();
        for number in 1..=pushes() {
            let pushed = push(&registry, number).await;
            times.push(enforced(&opa, number, pushed).await);
            // One check a second: a push that comes sooner waits for that.
            sleep(Duration::from_millis(1100)).await;
        }
        tell(&format!("webhook of {kind:?}"), times);
        let status: Value = serde_json::from_str(&gate.admin_text("/status").await).unwrap();
        let events = &status["webhooks"]["lan"]["events"];
        assert!(
            events["matched"].as_u64() >= Some(pushes() as u64),
            "{events}"
        );
        assert_eq!(events["unauthorized"], Value::Null, "{events}");
    }
}

/// A push is refused until its signature arrives, which is a push of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_follows_its_push_is_noticed() {
    for kind in [Kind::Debian, Kind::Distribution] {
        let (mut registry, key) = (Registry::start(kind).await, KeyPair::generate().await);
        let first = Artifact::answering("first").await;
        let digest = registry.push("acme/authz:live", &first.file()).await;
        key.sign(&registry, &format!("acme/authz@{digest}")).await;
        let gate = notified(&mut registry, &key).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers("first").await;
        let second = Artifact::answering("second").await;
        let digest = registry.push("acme/authz:live", &second.file()).await;
        let refused = |status: &Value| status["last_failure"]["class"] == "evidence";
        gate.status_when("authz", "refused", refused).await;
        key.sign(&registry, &format!("acme/authz@{digest}")).await;
        opa.answers("second").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_layout_is_enforced_at_once() {
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    prepare(&registry, &key).await;
    let author = Author::new();
    for number in 0..versions() {
        let from = registry.reference(&format!("acme/authz:v{number}"));
        let to = format!("oci-layout:layout:v{number}");
        author.run(&["copy", "--plain-http", &from, &to]).await.ok();
    }
    let layout = author.path("layout");
    let tag = async |number: usize| {
        let from = format!("layout:v{}", number % versions());
        run(
            "oras",
            author.home(),
            &["tag", "--oci-layout", &from, "live"],
        )
        .await;
        Instant::now()
    };
    tag(0).await;
    let mut config = GatewayConfig::trusting(&key);
    config.0["bundles"]["authz"] = json!({
        "reference": format!("oci-layout:{}:live", layout.display()), "trust": "release",
        "poll": "1h",
    });
    let gate = TestGateway::start(config).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers(&answer(0)).await;
    let mut times = Vec::new();
    for number in 1..=pushes() {
        let changed = tag(number).await;
        times.push(enforced(&opa, number, changed).await);
    }
    tell("change of a layout", times);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_notifications_a_push_is_enforced_after_the_next_poll() {
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    prepare(&registry, &key).await;
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .with("/bundles/authz/poll", json!("1s"));
    let gate = TestGateway::start(config).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers(&answer(0)).await;
    let mut times = Vec::new();
    for number in 1..=pushes() {
        // At any moment of the interval.
        sleep(Duration::from_millis(fastrand::u64(0..1000))).await;
        let pushed = push(&registry, number).await;
        times.push(enforced(&opa, number, pushed).await);
    }
    tell("polling every 1 s", times);
}
