//! Long polling: a moved tag, the wait, and the client's own entity tags.

use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::Instant;

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{TestGateway, bundle, tag},
};

#[tokio::test]
async fn a_moved_tag_wakes_a_long_poll_and_the_bytes_are_the_registrys() {
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let gate = TestGateway::before(&registry, Duration::from_millis(200)).await;
    let first = gate.get("", 0).await;
    assert_eq!(
        first.headers()["content-type"],
        "application/vnd.openpolicyagent.bundles"
    );
    let etag = tag(&first);
    assert_eq!(first.bytes().await.unwrap(), one);
    let unchanged = gate.get(&etag, 0).await;
    assert_eq!(
        (unchanged.status(), tag(&unchanged)),
        (StatusCode::NOT_MODIFIED, etag.clone())
    );
    let (woken, ()) = tokio::join!(gate.get(&etag, 60), async {
        gate.until_waiting(1).await;
        registry.put_artifact("live", &two);
    });
    assert_eq!(woken.bytes().await.unwrap(), two);
}

#[tokio::test]
async fn one_second_of_waiting_is_held_half_of_it_and_ends_with_the_tag_compared() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_secs(60)).await;
    let etag = tag(&gate.get("", 0).await);
    let began = Instant::now();
    let held = gate.get(&etag, 1).await;
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!(
        (held.status(), tag(&held)),
        (StatusCode::NOT_MODIFIED, etag)
    );
}

/// The first tag is what the client runs; that it once had ours too does not make it right.
#[tokio::test]
async fn confirm_within_answers_a_client_with_another_version_after_a_registry_check() {
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let gate = TestGateway::before(&registry, Duration::from_secs(60)).await;
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

/// An outage must not make the gateway forget that it still owes an answer.
#[tokio::test]
async fn confirm_within_answers_once_the_registry_is_back() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    let old = tag(&gate.get("", 0).await);
    registry.fail("manifests/live", 6, Fault::Status(503, vec![]));
    let began = Instant::now();
    let answer = gate.get("\"another\"", 290).await;
    assert_eq!((answer.status().as_u16(), tag(&answer)), (200, old));
    assert!(
        began.elapsed() < Duration::from_secs(200),
        "only the deadline answered it"
    );
    assert_eq!(
        registry.asked("manifests/live").len().min(8),
        8,
        "no outage was there to wait for"
    );
}
