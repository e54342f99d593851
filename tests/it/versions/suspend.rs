//! `suspend`: what is served stays, without a check of the registry.

use reqwest::StatusCode;

use super::*;

/// Makes the registry silent.
fn dead(registry: &FaultyRegistry) {
    registry.fail("", usize::MAX, Fault::Stall);
}

fn suspended() -> Setup {
    Setup {
        suspend: true,
        ..Setup::default()
    }
}

#[tokio::test]
async fn a_suspended_bundle_stays_served_without_a_check_until_it_is_resumed() {
    let registry = FaultyRegistry::start().await;
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    setup.rules.max_stale = Some(std::time::Duration::from_secs(1));
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&one).await;
    gate.suspend(true);
    assert_eq!(gate.shown().await["suspended"], true);
    let before = registry.asked("manifests/live").len();
    let (two, _) = registry.put_artifact("live", &bundle("two"));
    // A client with another version waits for a check until its deadline, of two seconds, which is
    // after `max_stale`.
    let answer = gate.get("\"another\"", 0).await;
    assert_eq!(answer.headers()["bundlegate-manifest"], one.to_string());
    // One check may have been under way.
    let checks = registry.asked("manifests/live").len() - before;
    assert!(checks <= 1, "{checks}");
    assert_eq!(gate.state(), "serving");
    gate.suspend(false);
    let status = gate.until_serving(&two).await;
    assert_eq!(status["suspended"], false);
}

#[tokio::test]
async fn after_a_restart_a_suspended_bundle_is_served_from_disk_and_the_replica_is_ready() {
    let (registry, cache) = (FaultyRegistry::start().await, tempfile::tempdir().unwrap());
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    let cached = |setup: Setup| Setup {
        cache: bundlegate::store::Options {
            directory: Some(cache.path().to_owned()),
            ..setup.cache
        },
        ..setup
    };
    let gate = TestGateway::with(&registry, cached(Setup::default())).await;
    gate.until_serving(&one).await;
    gate.end(cache.path()).await;
    dead(&registry);
    let before = registry.asked("").len();
    let gate = TestGateway::with(&registry, cached(suspended())).await;
    let status = gate.until_serving(&one).await;
    assert_eq!(
        (&status["suspended"], &status["last_check"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        gate.admin_response("/readyz").await.status(),
        StatusCode::OK
    );
    assert_eq!(gate.get("", 0).await.status(), StatusCode::OK);
    assert_eq!(registry.asked("").len(), before);
}

#[tokio::test]
async fn a_suspended_bundle_without_a_stored_version_is_pending_and_says_why() {
    let registry = FaultyRegistry::start().await;
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::with(&registry, suspended()).await;
    let ready = async || {
        let ready = gate.admin_response("/readyz").await.status() == StatusCode::OK;
        ready.then_some(())
    };
    crate::shared::poll_until("it is ready", ready).await;
    let answer = gate.get("", 0).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let error = error(answer).await;
    assert_eq!(error["reason"], "pending");
    assert!(
        error["message"].as_str().unwrap().contains("suspended"),
        "{error}"
    );
    assert!(registry.asked("").is_empty());
    gate.suspend(false);
    gate.until_serving(&one).await;
}

#[tokio::test]
async fn a_registry_that_asked_for_a_pause_is_not_asked_when_a_bundle_is_resumed() {
    let registry = FaultyRegistry::start().await;
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::with(&registry, Setup::default()).await;
    gate.until_serving(&one).await;
    let wait = vec![("retry-after", "600".to_owned())];
    registry.fail("", usize::MAX, Fault::Status(429, wait));
    gate.until_failed("rate_limited").await;
    let asked = registry.asked("").len();
    gate.suspend(true);
    gate.suspend(false);
    // Only real time shows that nothing is asked.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert_eq!(registry.asked("").len(), asked);
}

#[tokio::test]
async fn a_change_of_trust_withdraws_a_suspended_bundle_and_restores_it_without_the_registry() {
    let (registry, signer, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &one);
    let setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    gate.until_serving(&one).await;
    gate.suspend(true);
    dead(&registry);
    gate.trust(other.policy());
    let status = gate.until_failed("distrusted").await;
    assert_eq!(
        (&status["state"], &status["suspended"]),
        (&json!("withdrawn"), &json!(true))
    );
    gate.trust(signer.policy());
    gate.until_serving(&one).await;
}
