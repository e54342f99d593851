//! What a real Prometheus says about a version.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::{BOTH, Client, Fixture, answering, steps};
use crate::support::{GatewayConfig, Prometheus, poll_until};

/// Metrics that a Prometheus scrapes, until it is dropped.
pub(super) struct MetricServer {
    pub(super) address: SocketAddr,
    text: Arc<Mutex<String>>,
    _tasks: JoinSet<()>,
}

impl MetricServer {
    pub(super) async fn start(text: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let text = Arc::new(Mutex::new(text.to_owned()));
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&text));
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let body = shared.lock().unwrap().clone();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
                     Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Self {
            address,
            text,
            _tasks: tasks,
        }
    }

    pub(super) fn set(&self, text: &str) {
        text.clone_into(&mut self.text.lock().unwrap());
    }
}

/// The bundles of the test with the queries of their checks, by whose results they are named.
const QUERIES: [(&str, &str); 4] = [
    (
        "good",
        r#"0 * test_denials{revision="{{candidate.revision}}"}"#,
    ),
    ("bad", r#"test_denials{revision="{{candidate.revision}}"}"#),
    (
        "nan",
        r#"test_denials{revision="{{candidate.revision}}"} * 0 / 0"#,
    ),
    (
        "empty",
        r#"test_denials{revision="{{candidate.revision}} of another"}"#,
    ),
];

struct Checked {
    fixture: Fixture,
    prometheus: Prometheus,
    _metrics: MetricServer,
}

impl Checked {
    async fn start() -> Self {
        let samples =
            ["second", "third"].map(|it| format!("test_denials{{revision=\"{it}\"}} 0.5\n"));
        let metrics = MetricServer::start(&samples.concat()).await;
        let prometheus = Prometheus::scraping(&[metrics.address], &[]).await;
        poll_until("the first sample", async || {
            let samples = prometheus.samples("test_denials").await.unwrap();
            (samples.len() == 2).then_some(())
        })
        .await;
        let mut fixture = Fixture::without_replicas().await;
        fixture.publish(&answering("first").await).await;
        let strategy = steps(json!([{ "ids": ["canary-*"], "soak": "3s" }]));
        for _ in 0..2 {
            let (url, reference) = (
                format!("http://{}", prometheus.address),
                fixture.registry.reference("acme/authz:live"),
            );
            let change = |config: GatewayConfig| {
                let mut config = config.with("/prometheus", json!({ "url": url }));
                for (name, query) in QUERIES {
                    let mut strategy = strategy.clone();
                    strategy["deadline"] = json!("25s");
                    strategy["checks"] = json!([{
                        "name": "denials", "query": query, "max": 0.02, "every": "10s", "failures": 2,
                    }]);
                    let bundle = json!({
                        "reference": reference, "trust": "release", "poll": "500ms", "rollout": name,
                    });
                    config = config.with(&format!("/rollouts/{name}"), strategy);
                    config = config.with(&format!("/bundles/{name}"), bundle);
                }
                config
            };
            fixture.add_replica(&strategy, change).await;
        }
        Self {
            fixture,
            prometheus,
            _metrics: metrics,
        }
    }

    async fn rollout(&self, replica: usize, bundle: &str) -> Value {
        let path = format!("/rollouts/{bundle}");
        let text = self.fixture.gates[replica].admin_text(&path).await;
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Waits until both replicas show that a roll-out has ended like this, and returns its last transition.
    async fn ends(&self, bundle: &str, phase: &str, candidate: &str) -> Value {
        let mut last = Value::Null;
        for replica in 0..2 {
            let what = format!("{bundle} to be {phase} with {candidate}");
            let (rollout, took) = poll_until(&what, async || {
                let rollout = self.rollout(replica, bundle).await;
                let version = match phase {
                    "idle" => &rollout["stable"],
                    _ => &rollout["candidate"],
                };
                let is_it = rollout["phase"] == phase && version["revision"] == candidate;
                is_it.then_some(rollout)
            })
            .await;
            last = rollout["history"]
                .as_array()
                .unwrap()
                .last()
                .unwrap()
                .clone();
            self.fixture.tell(&format!(
                "{bundle}: {phase} after {took:.1?}: {}; checks {}",
                last["reason"], rollout["criteria"]["checks"]
            ));
        }
        last
    }
}

/// Acceptance test 16.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_out_of_range_rolls_back_and_one_without_a_result_does_nothing_until_the_deadline()
{
    let mut checked = Checked::start().await;
    let fixture = &checked.fixture;
    let mut opas = Vec::new();
    for (number, (bundle, _)) in QUERIES.iter().enumerate() {
        let bundles = [*bundle];
        for kind in ["canary", "other"] {
            let name = format!("{kind}-{bundle}");
            let client = Client {
                bundles: &bundles,
                ..Client::named(&name)
            };
            let opa = fixture.opa(BOTH[number % 2], number % 2, client).await;
            fixture.answers(&name, &opa, "first").await;
            opas.push((kind, *bundle, opa));
        }
    }
    fixture.publish(&answering("second").await).await;
    let failed = checked.ends("bad", "rolled_back", "second").await;
    assert_eq!(failed["cause"], "check", "{failed:#}");
    assert!(
        failed["reason"].as_str().unwrap().contains("0.5"),
        "{failed:#}"
    );
    checked.ends("good", "idle", "second").await;
    for bundle in ["nan", "empty"] {
        let paused = checked.ends(bundle, "paused", "second").await;
        assert_eq!(paused["cause"], "deadline", "{paused:#}");
    }
    for (kind, bundle, opa) in &opas {
        let answer = match (*kind, *bundle) {
            (_, "good") | ("canary", "nan" | "empty") => "second",
            _ => "first",
        };
        fixture
            .answers(&format!("{kind}-{bundle}"), opa, answer)
            .await;
    }

    checked.prometheus.kill();
    let fixture = &checked.fixture;
    fixture.publish(&answering("third").await).await;
    for (bundle, _) in QUERIES {
        let paused = checked.ends(bundle, "paused", "third").await;
        assert_eq!(paused["cause"], "deadline", "{paused:#}");
    }
    for (kind, bundle, opa) in &opas {
        let answer = match (*kind, *bundle) {
            ("canary", _) => "third",
            (_, "good") => "second",
            _ => "first",
        };
        fixture
            .answers(&format!("{kind}-{bundle}"), opa, answer)
            .await;
    }
    fixture.have_sent_no_server_errors().await;
}
