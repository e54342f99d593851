//! What clients see while refreshes fail: `on_missing`, `max_stale`, `first_wait`, `Retry-After`.

use std::{fs, time::Duration};

use bundlegate::publish::OnMissing;
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cache::{index, on_disk},
    faulty::{Fault, FaultyRegistry, Hold},
    gateway::{HOUR, PATIENCE, Setup, TestGateway, bundle, eventually, tag},
    signing::Signer,
};

/// The annotation in which the cache records the last successful check.
const NOTE: &str = "dev.bundlegate.checked";

fn unwell() -> Fault {
    Fault::Status(503, vec![])
}

fn stale_after(max_stale: Duration, cache: &TempDir) -> Setup {
    let mut setup = Setup {
        cache: on_disk(cache),
        ..Setup::default()
    };
    setup.rules.max_stale = Some(max_stale);
    setup
}

async fn noted(cache: &TempDir) -> String {
    let note = || {
        index(cache)["manifests"][0]["annotations"][NOTE]
            .as_str()
            .map(str::to_owned)
    };
    eventually("a note", || note().is_some()).await;
    note().unwrap()
}

fn note(cache: &TempDir, then: Option<Timestamp>) {
    let mut index = index(cache);
    let annotations = index["manifests"][0]["annotations"]
        .as_object_mut()
        .unwrap();
    annotations.remove(NOTE);
    annotations.extend(then.map(|then| (NOTE.to_owned(), Value::from(then.to_string()))));
    fs::write(cache.path().join("index.json"), index.to_string()).unwrap();
}

#[tokio::test]
async fn a_registry_in_trouble_stops_neither_200_nor_304() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    registry.put_artifact("live", &one);
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail("", usize::MAX, unwell());
    eventually("a failed check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "transient");
    assert_eq!(gate.get("", 0).await.bytes().await.unwrap(), one);
    for wait in [0, 1] {
        let unchanged = gate.get(&etag, wait).await;
        assert_eq!(
            (unchanged.status(), tag(&unchanged)),
            (StatusCode::NOT_MODIFIED, etag.clone())
        );
    }
    // No check can tell which of the two is behind, so a tag that the client once had is enough.
    let disagreeing = gate.get(&format!("\"another\", {etag}"), 0).await;
    assert_eq!(
        (disagreeing.status(), tag(&disagreeing)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    assert_eq!(gate.get("\"another\"", 0).await.bytes().await.unwrap(), one);
    assert_eq!(gate.state(), "serving");
}

#[tokio::test]
async fn on_missing_keep_serves_a_deleted_tag_and_on_missing_withdraw_does_not() {
    for (on_missing, status, state) in [
        (OnMissing::Keep, StatusCode::OK, "serving"),
        (OnMissing::Withdraw, StatusCode::NOT_FOUND, "withdrawn"),
    ] {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup::default();
        setup.rules.on_missing = on_missing;
        let gate = TestGateway::with(&registry, setup).await;
        let first = gate.get("", 0).await;
        assert_eq!(first.status(), StatusCode::OK);
        registry.remove("manifests/live");
        eventually("the tag is missed", || gate.last_failure().is_some()).await;
        assert_eq!(gate.last_failure().unwrap().class, "not_found");
        assert_eq!(
            (gate.get("", 0).await.status(), gate.state()),
            (status, state)
        );
        // A tag that comes back is served, even with the same digest.
        registry.put_artifact("live", &bundle("one"));
        eventually("the alarm ends", || gate.last_failure().is_none()).await;
        assert_eq!(tag(&gate.get("", 0).await), tag(&first));
    }
}

#[tokio::test]
async fn max_stale_ends_what_no_check_confirms() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    setup.rules.max_stale = Some(Duration::from_secs(2));
    let gate = TestGateway::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    registry.fail("", usize::MAX, unwell());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let error = gate.refusal().await;
    assert_eq!(error["reason"], "withdrawn");
    assert!(
        error["message"].as_str().unwrap().contains("max_stale"),
        "{error}"
    );
    registry.heal();
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
}

/// The check was about to confirm a version that is no longer served.
#[tokio::test]
async fn what_a_slow_check_confirms_after_max_stale_is_served_again_at_once() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    (setup.rules.poll, setup.rules.max_stale) = (HOUR, Some(Duration::from_secs(2)));
    let gate = TestGateway::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    let hold = Hold::default();
    registry.fail("manifests/live", 1, Fault::Held(hold.clone()));
    // A client with another version causes a check.
    let disagreeing = tokio::spawn(gate.asking("\"another\"", 60).send());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    hold.release();
    let served = timeout(PATIENCE, disagreeing)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(served.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_restart_does_not_prolong_max_stale() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let gate = TestGateway::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    let etag = tag(&gate.get("", 60).await);
    // The time is recorded again when later checks confirm the version.
    let first = noted(&cache).await;
    eventually("a later note", || {
        index(&cache)["manifests"][0]["annotations"][NOTE] != first
    })
    .await;
    registry.fail("", usize::MAX, unwell());
    eventually("a failed check", || gate.last_failure().is_some()).await;
    gate.end(cache.path()).await;

    // The rest of the four seconds is left, and then the version is withdrawn.
    let gate = TestGateway::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let error = gate.refusal().await;
    assert_eq!(
        error["message"], "no successful check for 4s (max_stale)",
        "{error}"
    );
    gate.end(cache.path()).await;

    // The next process does not start the time again either …
    let gate = TestGateway::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    eventually("its first word", || gate.state() != "pending").await;
    assert_eq!(gate.refusal().await["message"], error["message"]);
    // … but needs only a check that confirms the version.
    let fetched = registry.asked("blobs/").len();
    registry.heal();
    assert_eq!(tag(&gate.get("", 60).await), etag);
    assert_eq!(registry.asked("blobs/").len(), fetched);
}

#[tokio::test]
async fn a_restart_within_max_stale_serves_from_disk_for_what_is_left() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let gate = TestGateway::with(&registry, stale_after(HOUR, &cache)).await;
    let etag = tag(&gate.get("", 60).await);
    noted(&cache).await;
    gate.end(cache.path()).await;
    registry.fail("", usize::MAX, unwell());
    let now = Timestamp::now();
    for (hours_ago, state) in [(0.5, "serving"), (2.0, "withdrawn"), (-1000.0, "serving")] {
        let then = now - SignedDuration::from_secs_f64(hours_ago * 3600.0);
        note(&cache, Some(then));
        let gate = TestGateway::with(&registry, stale_after(HOUR, &cache)).await;
        eventually(state, || gate.state() == state).await;
        gate.end(cache.path()).await;
        let kept = noted(&cache).await.parse::<Timestamp>().unwrap();
        assert!(
            kept == then || (hours_ago < 0.0 && kept >= now),
            "{then} became {kept}"
        );
    }
    // An entry of an older release has no time: its time starts now, and only once.
    note(&cache, None);
    let gate = TestGateway::with(&registry, stale_after(HOUR, &cache)).await;
    assert_eq!(tag(&gate.get("", 60).await), etag);
    assert!(noted(&cache).await.parse::<Timestamp>().unwrap() >= now);
    gate.end(cache.path()).await;
    // Without `max_stale` the time is removed, because it would be wrong one day.
    let gate = TestGateway::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..Setup::default()
        },
    )
    .await;
    assert_eq!(tag(&gate.get("", 60).await), etag);
    eventually("the note goes", || {
        index(&cache)["manifests"][0]["annotations"][NOTE].is_null()
    })
    .await;
}

#[tokio::test]
async fn first_wait_holds_requests_of_a_cold_start_and_ends_with_pending() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, unwell());
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let began = Instant::now();
    let error = gate.refusal().await;
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?} are not first_wait",
        began.elapsed()
    );
    assert_eq!(
        (&error["reason"], &error["bundle"]),
        (&"pending".into(), &"authz/main".into())
    );
    assert!(
        error["message"].as_str().unwrap().contains("HTTP 503"),
        "{error}"
    );
    // With `wait` the request is held until the registry recovers.
    let (found, ()) = tokio::join!(gate.get("", 60), async {
        gate.until_waiting(1).await;
        registry.put_artifact("live", &bundle("one"));
        registry.heal();
    });
    assert_eq!(found.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_refused_is_404_at_once_and_with_wait_200_the_moment_it_is_signed() {
    let registry = FaultyRegistry::start().await;
    let signer = Signer::new();
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    setup.rules.first_wait = HOUR;
    let gate = TestGateway::with(&registry, setup).await;
    eventually("a verdict", || gate.state() == "withdrawn").await;
    let error = timeout(PATIENCE, gate.refusal())
        .await
        .expect("not at once");
    assert_eq!(error["reason"], "withdrawn");
    assert!(
        error["message"].as_str().unwrap().contains(digest.as_str()),
        "{error}"
    );
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    let (signed, ()) = tokio::join!(gate.get("", 60), async {
        eventually("the client waits", || gate.waiters() == 1).await;
        signer.sign_legacy(&registry, &digest);
    });
    assert_eq!(signed.status(), StatusCode::OK);
    assert_eq!(signed.headers()["bundlegate-signer"], "release");
}

#[tokio::test]
async fn during_retry_after_no_client_causes_another_check() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail(
        "",
        usize::MAX,
        Fault::Status(429, vec![("retry-after", "600".into())]),
    );
    eventually("a refused check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "rate_limited");
    let asked = registry.asked("").len();
    // Only real time shows that nothing is asked: for twenty intervals, and then for a client that
    // runs another version.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        gate.get(&format!("\"another\", {etag}"), 0).await.status(),
        StatusCode::NOT_MODIFIED
    );
    assert_eq!(registry.asked("").len(), asked);
}

#[tokio::test]
async fn a_retry_after_of_an_hour_withdraws_no_healthy_bundle() {
    for wish in [
        "3600",
        "4294967296",
        "soon",
        "-1",
        "Fri, 01 Jan 2100 00:00:00 GMT",
    ] {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup::default();
        setup.rules.max_stale = Some(Duration::from_secs(4));
        let gate = TestGateway::with(&registry, setup).await;
        eventually("it is served", || gate.state() == "serving").await;
        let mut states = gate.subscribe();
        states.borrow_and_update();
        registry.fail(
            "HEAD",
            1,
            Fault::Status(429, vec![("retry-after", wish.into())]),
        );
        eventually("a refused check", || gate.refreshes("rate_limited") > 0).await;
        let confirmed = gate.refreshes("unchanged");
        eventually("the next check", || gate.refreshes("unchanged") > confirmed).await;
        assert!(
            !states.has_changed().unwrap() && gate.state() == "serving",
            "{wish}: withdrawn meanwhile"
        );
    }
}

/// The answer is a page of five million bytes, for example of a proxy.
#[tokio::test]
async fn one_answer_that_is_too_long_does_not_keep_a_version_out() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    let (digest, _) = registry.put_artifact("live", &one);
    for name in ["live", digest.as_str()] {
        registry.fail(
            &format!("GET /v2/acme/authz/manifests/{name}"),
            1,
            Fault::Replace(vec![b' '; 5 << 20].into()),
        );
    }
    let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
    let served = timeout(PATIENCE, gate.get("", 60)).await.unwrap();
    assert_eq!(served.bytes().await.unwrap(), one);
    assert_eq!(gate.refreshes("too_large"), 0, "{:?}", gate.last_failure());
}

#[tokio::test]
async fn a_known_defect_is_not_fetched_again_because_of_trouble_of_another_kind() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"no tarball");
    let gate = TestGateway::before(&registry, Duration::from_millis(50)).await;
    let class = || gate.last_failure().map(|failure| failure.class);
    eventually("a defect", || class() == Some("defect")).await;
    let fetched = registry.asked("blobs/").len();
    registry.fail("manifests/live", usize::MAX, Fault::Status(404, vec![]));
    eventually("other trouble", || class() == Some("not_found")).await;
    registry.heal();
    eventually("the defect again", || class() == Some("defect")).await;
    assert_eq!(registry.asked("blobs/").len(), fetched);
}
