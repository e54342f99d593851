//! What real registries tell an endpoint about pushes, signatures and the gateway's own requests.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::support::{
    Artifact, Cosign, Format, GatewayConfig, KeyPair, Kind, Registry, TestGateway, poll_until,
};

const SECRET: &str = "Bearer of news";

/// Records what is posted to it until it is dropped.
struct Endpoint {
    url: String,
    posts: Arc<Mutex<Vec<Post>>>,
    _tasks: JoinSet<()>,
}

/// A request, and the events in it.
#[derive(Debug, Clone)]
struct Post {
    headers: Value,
    body: Value,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/events", listener.local_addr().unwrap());
        let posts = Arc::default();
        let (shared, mut tasks) = (Arc::clone(&posts), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| record(Arc::clone(&shared), request));
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            url,
            posts,
            _tasks: tasks,
        }
    }

    /// As a registry is configured to use it.
    fn settings(&self) -> Value {
        json!({
            "name": "gate", "url": self.url, "timeout": "5s", "threshold": 5, "backoff": "1s",
            "headers": { "Authorization": [SECRET] },
        })
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// The events so far, in the order in which they arrived.
    fn events(&self) -> Vec<Value> {
        let posts = self.posts();
        let bodies = posts.iter().map(|post| &post.body["events"]);
        bodies
            .flat_map(|events| events.as_array().unwrap().clone())
            .collect()
    }

    /// Waits for the event that a manifest was pushed under a tag.
    async fn pushed(&self, tag: &str) -> Value {
        let is_it = |event: &Value| {
            let target = &event["target"];
            event["action"] == "push"
                && target["tag"] == tag
                && target["repository"] == "acme/authz"
        };
        let look = async || self.events().into_iter().find(is_it);
        poll_until(&format!("the push of {tag}"), look).await.0
    }
}

async fn record(
    posts: Arc<Mutex<Vec<Post>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let headers: Value = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
        .collect();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap();
    posts.lock().unwrap().push(Post { headers, body });
    Ok(Response::new(Full::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_tells_of_tags_signatures_and_each_poll() {
    tells(Kind::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_3_tells_of_tags_signatures_and_each_poll() {
    tells(Kind::Distribution).await;
}

async fn tells(kind: Kind) {
    let (endpoint, key) = (Endpoint::start().await, KeyPair::generate().await);
    let registry = Registry::notifying(kind, endpoint.settings()).await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    let push = endpoint.pushed("live").await;
    assert_eq!(push["target"]["digest"], digest);
    is_authorized(&endpoint, kind);
    tells_of_signatures(&endpoint, &registry, &key, &digest).await;
    tells_of_polls(&endpoint, &registry, &key, &digest).await;
}

fn is_authorized(endpoint: &Endpoint, kind: Kind) {
    let version = if kind == Kind::Debian { "v1" } else { "v2" };
    let media_type = format!("application/vnd.docker.distribution.events.{version}+json");
    for Post { headers, body } in endpoint.posts() {
        assert_eq!(
            (&headers["content-type"], &headers["authorization"]),
            (&json!(media_type), &json!(SECRET)),
            "{kind:?}"
        );
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    }
}

/// The tags of signatures name the digest that they are about. A referrer itself has no tag, and
/// its event does not name its subject: where there is no index of referrers, no event tells what
/// was signed.
async fn tells_of_signatures(
    endpoint: &Endpoint,
    registry: &Registry,
    key: &KeyPair,
    digest: &str,
) {
    let (pinned, tag) = (format!("acme/authz@{digest}"), digest.replace(':', "-"));
    for (format, tag) in [
        (Format::Legacy, format!("{tag}.sig")),
        (Format::Bundle, tag),
    ] {
        key.sign_with(Cosign::V3, format, registry, &pinned).await;
        endpoint.pushed(&tag).await;
    }
    let is_referrer = |event: &Value| {
        let target = &event["target"];
        let media_type = target["mediaType"].as_str().unwrap();
        event["action"] == "push" && target["tag"].is_null() && media_type.contains("manifest")
    };
    let referrers: Vec<_> = endpoint.events().into_iter().filter(is_referrer).collect();
    assert!(!referrers.is_empty());
    for referrer in referrers {
        let target = &referrer["target"];
        let is_subject = target["digest"] == digest;
        assert!(
            is_subject || !target.to_string().contains(digest),
            "{referrer}"
        );
    }
}

/// Every HEAD of a tag is a `pull`, as every GET is: who refreshes on a `pull` polls without end.
async fn tells_of_polls(endpoint: &Endpoint, registry: &Registry, key: &KeyPair, digest: &str) {
    let before = endpoint.events().len();
    let config = GatewayConfig::trusting(key).bundle("authz", registry, "acme/authz:live");
    let gate = TestGateway::start(config).await;
    let serving = |status: &Value| status["manifest"] == digest;
    gate.status_when("authz", "serving", serving).await;
    let polls = |events: &[Value]| events.iter().filter(|event| is_poll(event)).count();
    poll_until("some polls", async || {
        (polls(&endpoint.events()[before..]) >= 5).then_some(())
    })
    .await;
    let events = endpoint.events()[before..].to_vec();
    let heads = "bundlegate_registry_requests_total{operation=\"resolve\",outcome=\"ok\",registry=\"HOST\"}";
    let heads = gate.metric(&heads.replace("HOST", &registry.host)).await;
    let told = polls(&events);
    assert!(
        f64::from(u32::try_from(told).unwrap()) <= heads,
        "{told} events of {heads} polls"
    );
    assert!(events.iter().all(|event| event["action"] == "pull"));
    // Nothing but polls once the bundle is there.
    let last = &events[events.len() - 3..];
    assert!(last.iter().all(is_poll), "{last:?}");
    let (target, request) = (&last[0]["target"], &last[0]["request"]);
    assert_eq!(
        (&target["digest"], &target["tag"]),
        (&json!(digest), &json!("live"))
    );
    let agent = request["useragent"].as_str().unwrap();
    assert!(agent.starts_with("bundlegate/"), "{agent}");
}

fn is_poll(event: &Value) -> bool {
    event["action"] == "pull" && event["request"]["method"] == "HEAD"
}
