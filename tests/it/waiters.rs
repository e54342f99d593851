//! Many clients with one registry.

use std::{collections::BTreeMap, time::Duration};

use reqwest::StatusCode;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{PATIENCE, Setup, TestGateway, bundle, eventually, tag, wishing},
    signing::Signer,
};

#[tokio::test]
async fn a_thousand_cold_requests_cost_the_registry_as_much_as_one() {
    let registry = FaultyRegistry::start().await;
    let signer = Signer::new();
    let one = bundle("one");
    let (digest, _) = registry.put_artifact("live", &one);
    signer.sign_legacy(&registry, &digest);
    signer.sign_bundle(&registry, &digest);
    // Slower than a thousand requests, so that the bundle is pending for all of them.
    registry.fail("manifests/live", 1, Fault::Slow(Duration::from_secs(1)));
    let mut setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    setup.rules.first_wait = Duration::from_secs(60);
    let gate = TestGateway::with(&registry, setup).await;
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let mut requests = JoinSet::new();
    for number in 0..1000 {
        let url = format!("http://{}/bundles/{}", gate.data, gate.name());
        let request = wishing(http.get(url), "", if number % 2 == 0 { 0 } else { 60 });
        requests.spawn(async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            response.bytes().await.unwrap()
        });
    }
    while let Some(body) = requests.join_next().await {
        assert_eq!(body.unwrap(), one);
    }
    let mut times = BTreeMap::new();
    for asked in registry
        .asked("")
        .into_iter()
        .filter(|asked| asked.method == "GET")
    {
        *times.entry(asked.path).or_insert(0) += 1;
    }
    assert!(
        times.values().all(|times| *times == 1),
        "more than once: {times:#?}"
    );
    let count = |part: &str| times.keys().filter(|path| path.contains(part)).count();
    // The artifact; two signatures; the list of referrers, the referrer and the `.sig`.
    assert_eq!((count("blobs/"), count("manifests/live")), (3, 1));
    assert_eq!(
        (
            count("referrers/"),
            count("manifests/sha256:"),
            count(".sig")
        ),
        (1, 1, 1),
        "{times:#?}"
    );
}

#[tokio::test]
async fn a_held_request_whose_client_disconnects_is_no_waiter() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    let etag = tag(&gate.get("", 0).await);
    let waiting = [gate.asking(&etag, 60), gate.asking(&etag, 60)]
        .map(|request| tokio::spawn(request.send()));
    eventually("two wait", || gate.waiters() == 2).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("no request is held", || gate.waiters() == 0).await;
}

/// OPA before 1.16 leaves an idle connection behind with every poll. A connection with a held
/// request is never evicted.
#[tokio::test]
async fn idle_connections_are_evicted_at_max_connections() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::with(
        &registry,
        Setup {
            max_connections: 3,
            ..Setup::default()
        },
    )
    .await;
    let tag = tag(&gate.get("", 0).await);
    let waiting = tokio::spawn(gate.asking(&tag, 60).send());
    eventually("it waits", || gate.waiters() == 1).await;
    let mut others = Vec::new();
    for _ in 0..6 {
        // Each client has its own pool, and so its own connection, which stays open.
        let other = reqwest::Client::new();
        let answer = other
            .get(format!("http://{}/bundles/{}", gate.data, gate.name()))
            .send();
        assert_eq!(
            timeout(PATIENCE, answer).await.unwrap().unwrap().status(),
            200
        );
        others.push(other);
    }
    assert!(!waiting.is_finished());
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}
