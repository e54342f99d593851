//! `long_poll.bandwidth` and `long_poll.spread`, with bandwidths that are exhausted by one body
//! unless a test says otherwise.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    faulty::FaultyRegistry,
    gateway::{InProcess, Setup, TestGateway, bundle, eventually, tag},
};

type Gate = TestGateway<InProcess>;

/// A gateway that serves version one, and the entity tag of that. The bandwidth is used up.
async fn exhausted(registry: &FaultyRegistry, setup: Setup) -> (Gate, String) {
    registry.put_artifact("live", &bundle("one"));
    let setup = Setup {
        bandwidth: 1,
        ..setup
    };
    let gate = Gate::with(registry, setup).await;
    // At least one body is sent at once, whatever the bandwidth.
    let etag = tag(&gate.get("", 0).await);
    (gate, etag)
}

fn delayed(gate: &Gate) -> u64 {
    gate.count("bundlegate_paced_requests")
}

async fn until_delayed(gate: &Gate, count: u64) {
    let what = format!("{count} requests that wait for the bandwidth");
    eventually(&what, || delayed(gate) == count).await;
}

#[tokio::test]
async fn a_change_and_a_stampede_take_as_long_as_the_bandwidth_requires() {
    const CLIENTS: usize = 10;
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let setup = Setup {
        bandwidth: two.len() as u64 * 10,
        ..Setup::default()
    };
    let gate = Gate::with(&registry, setup).await;
    let etag = tag(&gate.get("", 0).await);
    for tags in [&*etag, ""] {
        let began = Instant::now();
        let mut requests = JoinSet::new();
        for _ in 0..CLIENTS {
            requests.spawn(gate.asking(tags, 60).send());
        }
        if !tags.is_empty() {
            gate.until_waiting(CLIENTS as i64).await;
            registry.put_artifact("live", &two);
        }
        while let Some(response) = requests.join_next().await {
            let response = response.unwrap().unwrap();
            assert_eq!(response.bytes().await.unwrap(), two);
        }
        // A body each 100 ms, with a burst of two.
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(790), "{took:?}");
        assert_eq!(delayed(&gate), 0);
    }
}

#[tokio::test]
async fn a_body_that_waits_is_sent_at_the_deadline_of_its_request() {
    let registry = FaultyRegistry::start().await;
    let (gate, etag) = exhausted(&registry, Setup::default()).await;
    // What has no body is answered at once.
    let path = format!("/bundles/{}", gate.name());
    let head = gate.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(gate.get(&etag, 0).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(delayed(&gate), 0);
    // `first_wait` is two seconds, and a wait of three is held as long.
    let began = Instant::now();
    let (plain, polling, ()) =
        tokio::join!(gate.get("", 0), gate.get("", 3), until_delayed(&gate, 2));
    assert!(began.elapsed() >= Duration::from_millis(900));
    for response in [plain, polling] {
        assert_eq!(response.bytes().await.unwrap(), bundle("one"));
    }
    assert_eq!(delayed(&gate), 0);
}

#[tokio::test]
async fn a_drain_releases_clients_that_wait_and_sends_them_the_newest_version() {
    let registry = FaultyRegistry::start().await;
    let (mut gate, etag) = exhausted(&registry, Setup::default()).await;
    let waiting = tokio::spawn(gate.asking("", 60).send());
    until_delayed(&gate, 1).await;
    registry.put_artifact("live", &bundle("two"));
    let is_new = || gate.status().etag.is_some_and(|served| served != etag);
    eventually("version two", is_new).await;
    assert_eq!(delayed(&gate), 1);
    gate.begin_to_drain();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.bytes().await.unwrap(), bundle("two"));
    gate.until_drained().await;
}

/// Without the wait for the bandwidth, a tag further back in the list is answered with 304 here.
#[tokio::test]
async fn a_client_that_goes_back_to_an_earlier_version_gets_its_bytes_in_any_case() {
    let registry = FaultyRegistry::start().await;
    let (mut gate, etag) = exhausted(&registry, Setup::default()).await;
    let tags = format!("\"another\", {etag}");
    let waiting = tokio::spawn(gate.asking(&tags, 60).send());
    until_delayed(&gate, 1).await;
    gate.begin_to_drain();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.bytes().await.unwrap(), bundle("one"));
}

/// A rollback to what the client runs leaves nothing to send.
#[tokio::test]
async fn a_client_whose_version_comes_back_while_it_waits_is_held_as_before() {
    let registry = FaultyRegistry::start().await;
    let (mut gate, etag) = exhausted(&registry, Setup::default()).await;
    let waiting = tokio::spawn(gate.asking(&etag, 60).send());
    gate.until_waiting(1).await;
    registry.put_artifact("live", &bundle("two"));
    until_delayed(&gate, 1).await;
    registry.put_artifact("live", &bundle("one"));
    until_delayed(&gate, 0).await;
    assert_eq!(gate.waiters(), 1);
    gate.begin_to_drain();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(
        (response.status(), tag(&response)),
        (StatusCode::NOT_MODIFIED, etag)
    );
}

#[tokio::test]
async fn beyond_the_limit_of_held_requests_a_body_is_sent_at_once_and_not_refused() {
    let registry = FaultyRegistry::start().await;
    let setup = Setup {
        max_connections: 10,
        ..Setup::default()
    };
    let (gate, _) = exhausted(&registry, setup).await;
    let mut waiting = JoinSet::new();
    for _ in 0..9 {
        waiting.spawn(gate.asking("", 60).send());
    }
    until_delayed(&gate, 9).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    assert_eq!(delayed(&gate), 9);
    // Those who leave wait no longer.
    waiting.shutdown().await;
    until_delayed(&gate, 0).await;
}

#[tokio::test]
async fn a_spread_delays_the_clients_that_a_change_wakes() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let setup = Setup {
        spread: Duration::from_secs(3600),
        ..Setup::default()
    };
    let gate = Gate::with(&registry, setup).await;
    eventually("version one", || gate.state() == "serving").await;
    let etag = tag(&gate.get("", 60).await);
    let mut waiting = JoinSet::new();
    for _ in 0..5 {
        waiting.spawn(gate.asking(&etag, 300).send());
    }
    gate.until_waiting(5).await;
    registry.put_artifact("live", &bundle("two"));
    eventually("a delayed request", || delayed(&gate) > 0).await;
    // What is answered without a change is not delayed.
    let new = gate.get("", 60).await;
    assert_eq!(new.bytes().await.unwrap(), bundle("two"));
    waiting.shutdown().await;
    until_delayed(&gate, 0).await;
}
