//! Two replicas behind one address, one of which hardly ever polls the registry; and signatures and
//! transfers that are good only at the second check.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    Artifact, Balancer, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Proxy, Registry,
    TestGateway, long_polling, poll_until,
};

/// Long enough for a client that two replicas throw back and forth to do so thousands of times.
const WATCHED: Duration = Duration::from_secs(4);
/// Each OPA has a bundle name of its own, so that the balancer's log tells them apart.
const OPAS: [(&str, OpaVersion, Option<u32>); 3] = [
    ("newest", OpaVersion::Newest, None),
    ("superseding", OpaVersion::Newest, Some(600)),
    ("old", OpaVersion::V0_70, None),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_push_a_rollback_and_restarts_cost_every_opa_two_downloads_at_most() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let [first, second] = [
        signed(&registry, &key, "first").await,
        signed(&registry, &key, "second").await,
    ];
    registry.tag(&first, "live").await;
    let [eager, lazy] = [
        replica(&registry, &key, "500ms").await,
        replica(&registry, &key, "1h").await,
    ];
    let balancer = Balancer::before(&[&eager, &lazy]).await;
    let mut fixture = Fixture {
        balancer,
        replicas: [eager, lazy],
        opas: Vec::new(),
    };
    for (name, version, superseded) in OPAS {
        let mut config = long_polling(&fixture.balancer.url, name);
        let polling = &mut config["bundles"][name]["polling"];
        polling["long_polling_timeout_seconds"] = json!(8);
        if let Some(seconds) = superseded {
            polling["superseded_etag_ttl_seconds"] = json!(seconds);
        }
        fixture
            .opas
            .push((name, Opa::start(version, &config).await));
    }
    fixture.settles("the start", "first", async |_| {}).await;
    fixture
        .settles("a push", "second", async |_| {
            registry.tag(&second, "live").await
        })
        .await;
    fixture
        .settles("a rollback", "first", async |_| {
            registry.tag(&first, "live").await
        })
        .await;
    fixture
        .settles("a restart of the eager one", "first", async |replicas| {
            replicas[0].restart().await
        })
        .await;
    fixture
        .settles("a push again", "second", async |_| {
            registry.tag(&second, "live").await
        })
        .await;
    fixture
        .settles("a restart of the lazy one", "second", async |replicas| {
            replicas[1].restart().await
        })
        .await;
    fixture
        .settles("a rollback again", "first", async |_| {
            registry.tag(&first, "live").await
        })
        .await;
    fixture
        .settles("a restart after a rollback", "first", async |replicas| {
            replicas[0].restart().await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_second_of_long_polling_is_no_more_than_three_requests_a_second() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    registry
        .tag(&signed(&registry, &key, "first").await, "live")
        .await;
    let [one, two] = [
        replica(&registry, &key, "500ms").await,
        replica(&registry, &key, "1h").await,
    ];
    let balancer = Balancer::before(&[&one, &two]).await;
    let mut opas = Vec::new();
    for (name, version, _) in OPAS {
        let mut config = long_polling(&balancer.url, name);
        config["bundles"][name]["polling"]["long_polling_timeout_seconds"] = json!(1);
        let opa = Opa::start(version, &config).await;
        opa.answers("first").await;
        opas.push((name, opa));
    }
    let paths = OPAS.map(|(name, ..)| format!("/bundles/{name}"));
    let before = paths.each_ref().map(|path| balancer.answers(path).len());
    let began = Instant::now();
    // The rate of requests is measured, so the time must pass.
    sleep(Duration::from_secs(8)).await;
    let after = paths.each_ref().map(|path| balancer.answers(path).len());
    let seconds = began.elapsed().as_secs_f64();
    for ((path, before), after) in paths.iter().zip(before).zip(after) {
        let rate = (after - before) as f64 / seconds;
        println!(
            "replicas | {path} | long_polling_timeout_seconds: 1 | {rate:.2} requests a second"
        );
        assert!(after > before, "{path} has fallen silent");
        assert!(rate <= 3.0, "{path}: {rate} requests a second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_ten_seconds_after_its_push_is_served_within_an_interval() {
    const INTERVAL: Duration = Duration::from_secs(20);
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let digest = registry
        .push(
            "acme/authz:live",
            &Artifact::answering("first").await.file(),
        )
        .await;
    let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
    let gate = TestGateway::start(config.with("/bundles/authz/poll", json!("20s"))).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    gate.status_when("authz", "refused", |status| status["state"] == "withdrawn")
        .await;
    // The pause between checks grows in the time until the signature.
    sleep(Duration::from_secs(10)).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let took = opa.answers("first").await;
    println!(
        "replicas | signed 10 s after its push | decided {:.1} s after its signature",
        took.as_secs_f64()
    );
    assert!(took < INTERVAL, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_arrives_corrupt_once_is_served_at_the_next_try() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let pinned = signed(&registry, &key, "first").await;
    registry.tag(&pinned, "live").await;
    let manifest = registry
        .oras(&["manifest", "fetch", &registry.reference(&pinned)])
        .await;
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let proxy = Proxy::spoiling(&registry.host, &format!("/blobs/{layer}"), 1).await;
    let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
    let began = Instant::now();
    let config = config
        .by_way_of(&proxy.host, &registry)
        .with("/bundles/authz/poll", json!("1h"));
    let gate = TestGateway::start(config).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers("first").await;
    assert_eq!(proxy.left(), 0, "nothing was spoilt");
    let log = gate.log();
    assert!(
        log.iter()
            .any(|line| line["class"] == "transient" && line["step"] == "fetch"),
        "{log:#?}"
    );
    println!(
        "replicas | one corrupt transfer | decided {:.1} s after the start",
        began.elapsed().as_secs_f64()
    );
}

struct Fixture {
    balancer: Balancer,
    replicas: [TestGateway; 2],
    opas: Vec<(&'static str, Opa)>,
}

impl Fixture {
    /// After `change`, every OPA decides `answer`, still does so a while later, and has
    /// downloaded at most twice; both replicas serve what OPAs decide by.
    async fn settles(
        &mut self,
        what: &str,
        answer: &str,
        change: impl AsyncFnOnce(&mut [TestGateway; 2]),
    ) {
        let before: Vec<_> = self
            .opas
            .iter()
            .map(|(name, _)| self.downloads(name))
            .collect();
        let began = Instant::now();
        change(&mut self.replicas).await;
        for (_, opa) in &self.opas {
            opa.answers(answer).await;
        }
        let decided = began.elapsed();
        let [eager, lazy] = &self.replicas;
        poll_until("both replicas to agree", async || {
            let (one, other) = (
                eager.bundle_status("newest").await,
                lazy.bundle_status("newest").await,
            );
            (one["etag"].is_string() && one["etag"] == other["etag"]).then_some(())
        })
        .await;
        let agreed = began.elapsed();
        // Only real time shows that no further download follows.
        sleep(WATCHED).await;
        for ((name, opa), before) in self.opas.iter().zip(before) {
            assert_eq!(
                opa.decision("authz/answer").await,
                Some(json!(answer)),
                "{name} after {what}"
            );
            let downloads = self.downloads(name) - before;
            println!("replicas | {what} | {name} | {downloads} downloads");
            assert!(downloads <= 2, "{name} after {what}: {downloads} downloads");
        }
        let (decided, agreed) = (decided.as_secs_f64(), agreed.as_secs_f64());
        println!(
            "replicas | {what} | all decide after {decided:.1} s, replicas agree after {agreed:.1} s"
        );
    }

    fn downloads(&self, name: &str) -> usize {
        self.balancer
            .answers(&format!("/bundles/{name}"))
            .into_iter()
            .filter(|status| *status == 200)
            .count()
    }
}

async fn replica(registry: &Registry, key: &KeyPair, poll: &str) -> TestGateway {
    let mut config = GatewayConfig::trusting(key).cached();
    for (name, ..) in OPAS {
        config = config
            .bundle(name, registry, "acme/authz:live")
            .with(&format!("/bundles/{name}/poll"), json!(poll));
    }
    TestGateway::start(config).await
}

/// Pushes and signs a version under a tag of its own, and returns its pinned reference.
async fn signed(registry: &Registry, key: &KeyPair, answer: &str) -> String {
    let artifact = Artifact::answering(answer).await;
    let pinned = format!(
        "acme/authz@{}",
        registry
            .push(&format!("acme/authz:{answer}"), &artifact.file())
            .await
    );
    key.sign(registry, &pinned).await;
    pinned
}
