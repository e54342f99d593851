//! Ten thousand clients, of which one in a hundred gets a version first.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Fixture, answering, checks::MetricServer, steps};
use crate::{
    shared::raise_open_files,
    support::{GatewayConfig, Prometheus, Simulated, poll_until},
};

/// Two replicas with clients that all run `first`, and a Prometheus that sees how each version does.
struct Large {
    // They end before the gateways.
    clients: Simulated,
    count: usize,
    fixture: Fixture,
    metrics: MetricServer,
    _prometheus: Prometheus,
}

impl Large {
    async fn start() -> Self {
        // Each has a connection of this process.
        let count = 10_000.min(raise_open_files() / 2);
        let metrics = MetricServer::start(GOOD).await;
        let prometheus = Prometheus::scraping(&[metrics.address], &[]).await;
        let step = json!({ "percent": 1, "ids": ["failing-*"], "soak": "10m" });
        let mut strategy = steps(json!([step]));
        strategy["checks"] = json!([{
            "name": "denials", "max": 0.02, "every": "10s",
            "query": r#"test_denials{revision="{{candidate.revision}}"}"#,
        }]);
        let mut fixture = Fixture::without_replicas().await;
        fixture.publish(&answering("first").await).await;
        for _ in 0..2 {
            let url = format!("http://{}", prometheus.address);
            let change = |config: GatewayConfig| config.with("/prometheus", json!({ "url": url }));
            fixture.add_replica(&strategy, change).await;
        }
        fixture.all_in("idle").await;
        let addresses: Vec<_> = fixture.gates.iter().map(|gate| gate.data).collect();
        let clients = Simulated::start(&addresses, "authz", count).await;
        let large = Self {
            fixture,
            clients,
            count,
            metrics,
            _prometheus: prometheus,
        };
        let first = large.tag("stable").await;
        large.all_run(&first, "first").await;
        large
    }

    /// The quoted tag of a version of the plan.
    async fn tag(&self, version: &str) -> String {
        let rollout = self.fixture.rollout(0).await;
        let tag = rollout[version]["etag"].as_str().unwrap();
        format!("\"{}\"", tag.trim_matches('"'))
    }

    async fn all_run(&self, tag: &str, name: &str) {
        let all = async || (self.clients.running(tag) == self.count).then_some(());
        let ((), took) = poll_until(&format!("all to run {name}"), all).await;
        self.fixture.tell(&format!(
            "{} clients run {name} after {took:.2?}",
            self.count
        ));
    }

    /// Pushes `second`, and waits until the clients of the first step, one in a hundred, run it.
    async fn push(&self) -> String {
        self.fixture.publish(&answering("second").await).await;
        let began = Instant::now();
        let (tag, _) = poll_until("the step", async || {
            let rollout = self.fixture.rollout(0).await;
            let tag = rollout["candidate"]["etag"].as_str()?;
            let tag = format!("\"{}\"", tag.trim_matches('"'));
            let usage = self.clients.usage(&tag);
            // No more follow.
            let is_over = usage.last?.elapsed() > Duration::from_secs(2);
            (usage.now > self.count / 200 && is_over).then_some(tag)
        })
        .await;
        let usage = self.clients.usage(&tag);
        let took = usage.last.unwrap().duration_since(began);
        self.fixture.tell(&format!(
            "{} of {} clients run second, the last one {took:.2?} after the push",
            usage.now, self.count
        ));
        tag
    }

    /// Waits until all clients run `first` again, and prints when that was.
    async fn all_are_back(&self, first: &str, second: &str, cause: &str, began: Instant) {
        self.all_run(first, "first").await;
        let last = self.clients.usage(first).last.unwrap();
        let ever = self.clients.usage(second).ever;
        self.fixture.tell(&format!(
            "none runs second {:.2?} after {cause}; {ever} of {} clients ever had it",
            last.duration_since(began),
            self.count
        ));
        assert!(ever < self.count / 50, "{ever}");
    }

    /// Stops the engine, and waits until both replicas know it.
    async fn stop_engine(&self) {
        self.fixture.engine.process.signal("STOP");
        self.fixture.tell("the engine hangs");
        let is_down = |rollout: &Value| rollout["engine"] == "down";
        for replica in 0..2 {
            let what = "no engine";
            self.fixture.rollout_when(replica, what, is_down).await;
        }
    }

    /// The plan on both replicas says that the roll-out has ended like this.
    async fn was_halted_by(&self, cause: &str) {
        self.fixture.all_in("rolled_back").await;
        for replica in 0..2 {
            let rollout = self.fixture.rollout(replica).await;
            let history = rollout["history"].as_array().unwrap();
            assert_eq!(history.last().unwrap()["cause"], cause, "{rollout:#}");
        }
        self.fixture.have_sent_no_server_errors().await;
    }

    /// A client of the step downloads the version twice, as it can't activate it.
    async fn download_twice(&self, replica: usize, first: &str, second: &str) {
        let name = format!("failing-{replica}");
        for _ in 0..2 {
            let (status, variant, tag) = self.fixture.get(replica, &name, Some(first)).await;
            assert_eq!((status, &*variant, &*tag), (200, "candidate", second));
        }
    }

    /// That client goes on with the earlier version.
    async fn ask_again(&self, replica: usize, first: &str) {
        let name = format!("failing-{replica}");
        // Later than the download by the clock of the replica, which counts milliseconds.
        sleep(Duration::from_millis(10)).await;
        let (status, ..) = self.fixture.get(replica, &name, Some(first)).await;
        assert_eq!(status, 304);
    }
}

const GOOD: &str = "test_denials{revision=\"second\"} 0.01\n";
const BAD: &str = "test_denials{revision=\"second\"} 0.4\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_check_takes_a_version_back_from_one_client_in_a_hundred() {
    let large = Large::start().await;
    let first = large.tag("stable").await;
    let second = large.push().await;
    let running = large.clients.running(&second);
    let is_counted =
        |rollout: &Value| rollout["criteria"]["clients"]["acknowledged"] == json!(running);
    for replica in 0..2 {
        let what = "all of them are counted";
        large.fixture.rollout_when(replica, what, is_counted).await;
    }
    large.metrics.set(BAD);
    let began = Instant::now();
    large.fixture.tell("the metric is out of range");
    let is_halted = |rollout: &Value| rollout["phase"] == "rolled_back";
    large.fixture.leader_when("halted", is_halted).await;
    large
        .all_are_back(&first, &second, "the metric", began)
        .await;
    large.was_halted_by("check").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_keeps_a_version_at_one_client_in_a_hundred() {
    let large = Large::start().await;
    let first = large.tag("stable").await;
    let second = large.push().await;
    large.stop_engine().await;
    let before = large.clients.running(&second);
    large.metrics.set(BAD);
    // Only real time shows that no client is moved.
    for _ in 0..20 {
        assert_eq!(large.clients.running(&second), before);
        assert_eq!(large.clients.running(&first), large.count - before);
        sleep(Duration::from_secs(1)).await;
    }
    large.fixture.engine.process.signal("CONT");
    let began = Instant::now();
    large.fixture.tell("the engine goes on");
    large
        .all_are_back(&first, &second, "the engine", began)
        .await;
    large.was_halted_by("check").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_client_halts_its_replica_while_the_engine_hangs() {
    let large = Large::start().await;
    let first = large.tag("stable").await;
    let second = large.push().await;
    for replica in 0..2 {
        large.download_twice(replica, &first, &second).await;
    }
    large.stop_engine().await;
    let began = Instant::now();
    for replica in 0..2 {
        large.ask_again(replica, &first).await;
    }
    large.fixture.tell("a client of each replica has failed");
    let is_halted = |rollout: &Value| rollout["halted_here"] == true;
    for replica in 0..2 {
        let what = "halted here";
        large.fixture.rollout_when(replica, what, is_halted).await;
    }
    large
        .all_are_back(&first, &second, "the failures", began)
        .await;
    // The plan does not say so before the engine answers.
    assert_eq!(large.fixture.rollout(0).await["phase"], "progressing");
    large.fixture.engine.process.signal("CONT");
    large.fixture.tell("the engine goes on");
    large.was_halted_by("failures").await;
    assert_eq!(large.clients.running(&first), large.count);
}
