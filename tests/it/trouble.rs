//! What clients see while the registry is in trouble, or has nothing fit to serve.

use std::time::Duration;

use bundlegate::watch::OnMissing;
use reqwest::StatusCode;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gate::{Gate, HOUR, PATIENCE, Setup, bundle, error, eventually, tag},
    signing::Signer,
};

fn unwell() -> Fault {
    Fault::Status(503, vec![])
}

#[tokio::test]
async fn a_registry_in_trouble_stops_neither_200_nor_304() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    registry.put_artifact("live", &one);
    let gate = Gate::before(&registry, Duration::from_millis(100)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail("", usize::MAX, unwell());
    eventually("a failed check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "transient");
    assert_eq!(gate.get("", 0).await.bytes().await.unwrap(), one);
    for wait in [0, 1] {
        let unchanged = gate.get(&etag, wait).await;
        assert_eq!((unchanged.status(), tag(&unchanged)), (StatusCode::NOT_MODIFIED, etag.clone()));
    }
    // Nobody can say who is behind, so what the client has once had will do.
    let disagreeing = gate.get(&format!("\"another\", {etag}"), 0).await;
    assert_eq!((disagreeing.status(), tag(&disagreeing)), (StatusCode::NOT_MODIFIED, etag));
    assert_eq!(gate.get("\"another\"", 0).await.bytes().await.unwrap(), one);
    assert_eq!(gate.state(), "serving");
}

#[tokio::test]
async fn a_deleted_tag_is_an_alarm_and_no_more_unless_it_is_to_withdraw() {
    for (on_missing, status, state) in
        [(OnMissing::Keep, StatusCode::OK, "serving"), (OnMissing::Withdraw, StatusCode::NOT_FOUND, "withdrawn")]
    {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup::default();
        setup.rules.on_missing = on_missing;
        let gate = Gate::with(&registry, setup).await;
        let first = gate.get("", 0).await;
        assert_eq!(first.status(), StatusCode::OK);
        registry.remove("manifests/live");
        eventually("the tag is missed", || gate.last_failure().is_some()).await;
        assert_eq!(gate.last_failure().unwrap().class, "not_found");
        assert_eq!((gate.get("", 0).await.status(), gate.state()), (status, state));
        // A tag that comes back is served, even with the digest of before.
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
    let gate = Gate::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    registry.fail("", usize::MAX, unwell());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let refused = gate.get("", 0).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let error = error(refused).await;
    assert_eq!(error["reason"], "withdrawn");
    assert!(error["message"].as_str().unwrap().contains("max_stale"), "{error}");
    registry.heal();
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
}

/// The check was about to say "unchanged" of something that is served no more.
#[tokio::test]
async fn what_a_slow_check_confirms_after_max_stale_is_served_again_at_once() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    (setup.rules.poll, setup.rules.max_stale) = (HOUR, Some(Duration::from_secs(2)));
    let gate = Gate::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    registry.fail("manifests/live", 1, Fault::Slow(Duration::from_secs(4)));
    // Whoever disagrees makes it look.
    let disagreeing = tokio::spawn(gate.asking("\"another\"", 60).send());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let served = timeout(PATIENCE, disagreeing).await.unwrap().unwrap().unwrap();
    assert_eq!(served.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_cold_start_without_a_registry_waits_and_then_says_what_is_pending() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, unwell());
    let gate = Gate::before(&registry, Duration::from_millis(100)).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let began = Instant::now();
    let pending = gate.get("", 0).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?} are not first_wait", began.elapsed());
    assert_eq!(pending.status(), StatusCode::NOT_FOUND);
    let error = error(pending).await;
    assert_eq!((&error["reason"], &error["bundle"]), (&"pending".into(), &"authz/main".into()));
    assert!(error["message"].as_str().unwrap().contains("HTTP 503"), "{error}");
    // With `wait` there is time until the registry recovers.
    let (found, ()) = tokio::join!(gate.get("", 60), async {
        sleep(Duration::from_millis(500)).await;
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
    let mut setup = Setup { policy: signer.policy(), ..Setup::default() };
    setup.rules.first_wait = HOUR;
    let gate = Gate::with(&registry, setup).await;
    eventually("a verdict", || gate.state() == "withdrawn").await;
    let refused = timeout(PATIENCE, gate.get("", 0)).await.expect("not at once");
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let error = error(refused).await;
    assert_eq!(error["reason"], "withdrawn");
    assert!(error["message"].as_str().unwrap().contains(digest.as_str()), "{error}");
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    let (signed, ()) = tokio::join!(gate.get("", 60), async {
        eventually("the client waits", || gate.waiters() == 1).await;
        signer.sign_legacy(&registry, &digest);
    });
    assert_eq!(signed.status(), StatusCode::OK);
    assert_eq!(signed.headers()["bundlegate-signer"], "release");
}

#[tokio::test]
async fn while_the_registry_asks_for_patience_nobody_makes_it_look_again() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, Duration::from_millis(50)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail("", usize::MAX, Fault::Status(429, vec![("retry-after", "600".into())]));
    eventually("a refused check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "rate_limited");
    let asked = registry.asked("").len();
    // Twenty intervals, and a client that would like to know.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(gate.get(&format!("\"another\", {etag}"), 0).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(registry.asked("").len(), asked);
}

#[tokio::test]
async fn a_known_defect_is_not_fetched_again_because_of_trouble_of_another_kind() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"no tarball");
    let gate = Gate::before(&registry, Duration::from_millis(50)).await;
    let class = || gate.last_failure().map(|failure| failure.class);
    eventually("a defect", || class() == Some("defect")).await;
    let fetched = registry.asked("blobs/").len();
    registry.fail("manifests/live", usize::MAX, Fault::Status(404, vec![]));
    eventually("other trouble", || class() == Some("not_found")).await;
    registry.heal();
    eventually("the defect again", || class() == Some("defect")).await;
    assert_eq!(registry.asked("blobs/").len(), fetched);
}
