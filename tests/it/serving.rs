//! From a registry to a client: watcher, store and server as `serve` wires them.

use std::{fs, sync::Arc, time::Duration};

use bundlegate::{
    bundle,
    catalog::Catalog,
    metrics::Metrics,
    server::{Clients, Drain, LongPoll, Options, Server},
    store::{self, Store},
    verify::TrustPolicy,
    watch::{OnMissing, Pipeline, Rules, Watcher},
};
use reqwest::{Response, StatusCode};
use tokio::{task::JoinSet, time::Instant};

use crate::faulty::FaultyRegistry;

struct Gate {
    url: String,
    http: reqwest::Client,
    _tasks: JoinSet<()>,
}

impl Gate {
    async fn before(registry: &FaultyRegistry, poll: Duration) -> Self {
        let metrics = Metrics::new().unwrap();
        let limits = bundle::Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 100 };
        let cache = store::Options { directory: None, disk: 0, memory: 1 << 20 };
        let pipeline = Pipeline {
            name: "authz/main".into(),
            reference: registry.reference("live"),
            source: registry.source(),
            policy: Arc::new(TrustPolicy::Unsigned { name: "test".into() }),
            store: Store::open(cache, metrics.clone()),
            limits,
            evidence_limit: 1 << 20,
            metrics: metrics.clone(),
        };
        let first_wait = Duration::from_secs(2);
        let confirm_within = Duration::ZERO;
        let rules = Rules { poll, confirm_within, on_missing: OnMissing::Keep, max_stale: None, first_wait };
        let (watcher, handle) = Watcher::new(pipeline, rules);
        let mut clients = Clients::default();
        clients.allow(&["**".to_owned()], None).unwrap();
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            max_connections: 100,
            ready_after: Duration::from_secs(30),
            drain: Drain { notice: Duration::ZERO, over: Duration::ZERO },
            long_poll: LongPoll { max_wait: Duration::from_secs(300), first_wait },
            clients,
        };
        let server = Server::bind(options, Catalog::new([handle]), metrics).await.unwrap();
        let url = format!("http://{}/bundles/authz/main", server.data_address().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(watcher.run());
        tasks.spawn(server.run(std::future::pending()));
        Self { url, http: reqwest::Client::new(), _tasks: tasks }
    }

    async fn get(&self, tags: &str, wait: u32) -> Response {
        let mut request = self.http.get(&self.url);
        if !tags.is_empty() {
            request = request.header("if-none-match", tags);
        }
        if wait > 0 {
            request = request.header("prefer", format!("modes=snapshot,delta;wait={wait}"));
        }
        request.send().await.unwrap()
    }
}

fn bundle(text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.json"), format!("{{\"value\": \"{text}\"}}")).unwrap();
    let limits = bundle::Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 100 };
    bundle::pack(folder.path(), &limits).unwrap().bundle.blob().in_memory().unwrap().to_vec()
}

fn tag(response: &Response) -> String {
    response.headers()["etag"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_moved_tag_wakes_a_long_poll_and_the_bytes_are_the_registrys() {
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let gate = Gate::before(&registry, Duration::from_millis(200)).await;
    let first = gate.get("", 0).await;
    assert_eq!(first.headers()["content-type"], "application/vnd.openpolicyagent.bundles");
    let etag = tag(&first);
    assert_eq!(first.bytes().await.unwrap(), one);
    let unchanged = gate.get(&etag, 0).await;
    assert_eq!((unchanged.status(), tag(&unchanged)), (StatusCode::NOT_MODIFIED, etag.clone()));
    let (woken, ()) = tokio::join!(gate.get(&etag, 60), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        registry.put_artifact("live", &two);
    });
    assert_eq!(woken.bytes().await.unwrap(), two);
}

#[tokio::test]
async fn one_second_of_waiting_is_held_half_of_it_and_ends_with_the_tag_compared() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, Duration::from_secs(60)).await;
    let etag = tag(&gate.get("", 0).await);
    let began = Instant::now();
    let held = gate.get(&etag, 1).await;
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!((held.status(), tag(&held)), (StatusCode::NOT_MODIFIED, etag));
}

/// The first tag is what the client runs; that it once had ours too does not make it right.
#[tokio::test]
async fn a_client_that_differs_gets_what_the_registry_says_after_one_more_look() {
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let gate = Gate::before(&registry, Duration::from_secs(60)).await;
    let old = tag(&gate.get("", 0).await);
    // Another replica has seen the push already, and served it.
    registry.put_artifact("live", &two);
    let ahead = gate.get(&format!("\"another\", {old}"), 30).await;
    assert_eq!(ahead.bytes().await.unwrap(), two);
    // Now the client is ahead no more, and a rollback is served although it knows the tag.
    let new = tag(&gate.get("", 0).await);
    registry.put_artifact("live", &one);
    let back = gate.get(&format!("\"another\", {new}, {old}"), 30).await;
    assert_eq!(back.bytes().await.unwrap(), one);
}
