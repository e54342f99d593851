//! Ten thousand clients.

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
        let metrics = MetricServer::start("test_denials{revision=\"second\"} 0.01\n").await;
        let prometheus = Prometheus::scraping(&[metrics.address], &[]).await;
        let mut strategy = steps(json!([{ "percent": 1, "soak": "1m" }]));
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
        let (tag, took) = poll_until("the step", async || {
            let rollout = self.fixture.rollout(0).await;
            let tag = format!(
                "\"{}\"",
                rollout["candidate"]["etag"].as_str()?.trim_matches('"')
            );
            let clients = &rollout["criteria"]["clients"];
            let running = self.clients.running(&tag);
            let is_counted = clients["acknowledged"].as_u64() == Some(running as u64);
            (running > self.count / 200 && is_counted).then_some(tag)
        })
        .await;
        let running = self.clients.running(&tag);
        self.fixture.tell(&format!(
            "{running} of {} clients run second after {took:.2?}",
            self.count
        ));
        tag
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_takes_a_version_back_from_one_client_in_a_hundred() {
    let large = Large::start().await;
    let first = large.tag("stable").await;
    let second = large.push().await;
    large.metrics.set("test_denials{revision=\"second\"} 0.4\n");
    let began = Instant::now();
    large.fixture.tell("the metric is out of range");
    let most = async || {
        let most = large.clients.running(&second);
        let rollout = large.fixture.rollout(0).await;
        (rollout["phase"] == "rolled_back").then_some(most)
    };
    let (running, took) = poll_until("the roll-out to halt", most).await;
    large.fixture.tell(&format!(
        "halted after {took:.2?}, with {running} clients on second"
    ));
    large.all_run(&first, "first").await;
    large.fixture.tell(&format!(
        "all are back {:.2?} after the metric",
        began.elapsed()
    ));
    large.fixture.all_in("rolled_back").await;
    let rollout = large.fixture.rollout(1).await;
    let history = rollout["history"].as_array().unwrap();
    assert_eq!(history.last().unwrap()["cause"], "check", "{rollout:#}");
    assert!(running < large.count / 50, "{running}");
    large.fixture.have_sent_no_server_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_keeps_a_version_at_one_client_in_a_hundred() {
    let large = Large::start().await;
    let first = large.tag("stable").await;
    let second = large.push().await;
    let before = large.clients.running(&second);
    large.fixture.engine.process.signal("STOP");
    large.fixture.tell("the engine hangs");
    large.metrics.set("test_denials{revision=\"second\"} 0.4\n");
    let down = |rollout: &Value| rollout["engine"] == "down";
    large.fixture.rollout_when(0, "no engine", down).await;
    // Only real time shows that no client is moved.
    for _ in 0..20 {
        assert_eq!(large.clients.running(&second), before);
        assert_eq!(large.clients.running(&first), large.count - before);
        sleep(Duration::from_secs(1)).await;
    }
    large.fixture.engine.process.signal("CONT");
    let began = Instant::now();
    large.fixture.tell("the engine goes on");
    large.fixture.all_in("rolled_back").await;
    large.all_run(&first, "first").await;
    large.fixture.tell(&format!(
        "all are back {:.2?} after the engine",
        began.elapsed()
    ));
    large.fixture.have_sent_no_server_errors().await;
}
