//! Trust policies that change while a bundle is served.

use std::{sync::Arc, time::Duration};

use bundlegate::{
    oci::Digest,
    verify::{Authority, AuthorityKey, AuthorityKind, Requirements, TlogPolicy, TrustPolicy},
};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::spawn_blocking, time::Instant};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gate::{Gate, HOUR, Setup, bundle, error, eventually, tag},
    refresh_failures::{HangingDisk, blob_path, index, on_disk},
    signing::{Signer, any_of},
};

/// One that answers no request any more, and refuses none either.
fn dead(registry: &FaultyRegistry) {
    registry.fail("", usize::MAX, Fault::Stall);
}

/// Looks at the registry once an hour: what happens sooner happens for another reason.
fn seldom(policy: TrustPolicy) -> Setup {
    let mut setup = Setup {
        policy,
        ..Setup::default()
    };
    setup.rules.poll = HOUR;
    setup
}

/// Trusts a key until then, and others for ever.
fn until(then: Timestamp, key: &Signer, others: &[&Signer]) -> TrustPolicy {
    let mut keys: Vec<_> = others
        .iter()
        .map(|signer| AuthorityKey::from(signer.key()))
        .collect();
    keys.push(AuthorityKey {
        not_after: Some(then),
        ..AuthorityKey::from(key.key())
    });
    let authority = Authority {
        name: "release".into(),
        kind: AuthorityKind::Keys(keys),
        tlog: TlogPolicy::None,
        root: None,
    };
    TrustPolicy::signed("p".into(), Requirements::any_of(vec![authority])).unwrap()
}

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

/// Notes every entity tag that the server could have sent.
fn spy(gate: &Gate) -> Arc<std::sync::Mutex<Vec<String>>> {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (mut state, noted) = (gate.subscribe(), Arc::clone(&seen));
    tokio::spawn(async move {
        loop {
            noted.lock().unwrap().extend(
                state
                    .borrow_and_update()
                    .snapshot()
                    .map(|one| one.etag().to_owned()),
            );
            if state.changed().await.is_err() {
                return;
            }
        }
    });
    seen
}

/// What the cache folder says that this policy has accepted.
fn kept_by(cache: &TempDir, policy: &TrustPolicy) -> Vec<Digest> {
    let (index, revision) = (index(cache), policy.revision().to_string());
    let entries = index["manifests"].as_array().unwrap().iter();
    let ours = entries.filter(|entry| entry["annotations"]["dev.bundlegate.policy"] == *revision);
    ours.map(|entry| entry["digest"].as_str().unwrap().parse().unwrap())
        .collect()
}

/// Lets a thread go on, even if the test fails.
struct Release(Arc<Semaphore>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[tokio::test]
async fn a_revoked_key_is_withdrawn_at_once_though_the_registry_is_dead() {
    let (registry, revoked, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    revoked.sign_bundle(&registry, &digest);
    for during in ["a check that hangs", "the time between two checks"] {
        registry.heal();
        let mut setup = Setup {
            policy: any_of(&[&revoked, &other]),
            ..Setup::default()
        };
        if during != "a check that hangs" {
            setup.rules.poll = HOUR;
        }
        let gate = Gate::with(&registry, setup).await;
        let served = gate.get("", 60).await;
        assert_eq!(served.status(), StatusCode::OK);
        let etag = tag(&served);
        dead(&registry);
        let asked = registry.asked("HEAD").len();
        if during == "a check that hangs" {
            eventually("a check", || registry.asked("HEAD").len() > asked).await;
        }
        let began = Instant::now();
        gate.trust(other.policy());
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
        println!(
            "during {during}: withdrawn {:?} after the revocation",
            began.elapsed()
        );

        let failure = gate.last_failure().unwrap();
        assert_eq!(
            (failure.class, failure.digest.as_deref()),
            ("distrusted", Some(digest.as_str()))
        );
        assert!(
            failure.message.contains("signature by another key"),
            "{}",
            failure.message
        );
        let status = gate.status();
        assert_eq!(status.policy_revision, *other.policy().revision());
        let refused = &gate.shown().await["refused"];
        assert_eq!(
            (&refused["digest"], &refused["verified"]),
            (&digest.as_str().into(), &false.into())
        );
        let checks = refused["signatures"][0]["checks"].as_array().unwrap();
        let failed = checks.iter().find(|check| check["ok"] == false).unwrap();
        assert_eq!(failed["check"], "signature", "{refused}");
        assert!(status.verdict.is_none() && status.signers.is_empty());

        let gone = gate.get(&etag, 0).await;
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
        let error = error(gone).await;
        assert_eq!(
            (&error["reason"], &error["message"]),
            (&"withdrawn".into(), &failure.message.into())
        );
        // With `wait` it is held: something may be there again in time.
        let began = Instant::now();
        assert_eq!(gate.get(&etag, 2).await.status(), StatusCode::NOT_FOUND);
        assert!(
            began.elapsed() >= Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn a_policy_that_accepts_what_is_served_wakes_no_client_and_asks_no_registry() {
    let (registry, signer, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_legacy(&registry, &digest);
    let cache = tempfile::tempdir().unwrap();
    let both = any_of(&[&signer, &other]);
    let gate = Gate::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..seldom(both.clone())
        },
    )
    .await;
    let etag = tag(&gate.get("", 60).await);
    eventually("it is kept", || kept_by(&cache, &both) == [digest.clone()]).await;
    let (before, asked) = (gate.status(), registry.asked("").len());
    let mut state = gate.subscribe();
    state.mark_unchanged();
    let (held, ()) = tokio::join!(gate.get(&etag, 2), async {
        eventually("somebody waits", || gate.waiters() == 1).await;
        gate.trust(signer.policy());
        eventually("it is judged again", || {
            gate.status()
                .verdict
                .is_some_and(|verdict| verdict.policy_revision == *signer.policy().revision())
        })
        .await;
        assert!(
            gate.waiters() == 1 && !state.has_changed().unwrap(),
            "somebody was woken"
        );
    });
    assert_eq!(
        (held.status(), tag(&held)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    let after = gate.status();
    assert_eq!(
        (after.state.label(), &after.since, &after.manifest),
        ("serving", &before.since, &before.manifest)
    );
    assert_eq!(after.policy_revision, *signer.policy().revision());
    assert_eq!(registry.asked("").len(), asked, "the registry was asked");
    eventually("the disk says by what", || {
        kept_by(&cache, &signer.policy()) == [digest.clone()]
    })
    .await;
}

#[tokio::test]
async fn what_was_withdrawn_comes_back_with_the_policy_though_the_registry_is_dead() {
    let (registry, signer, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    let cache = tempfile::tempdir().unwrap();
    let gate = Gate::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..seldom(signer.policy())
        },
    )
    .await;
    let etag = tag(&gate.get("", 60).await);
    dead(&registry);
    gate.trust(other.policy());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    eventually("the disk forgets it", || {
        kept_by(&cache, &signer.policy()).is_empty()
    })
    .await;
    // Another policy that does not trust it changes nothing.
    gate.trust(any_of(&[&other, &Signer::new()]));
    assert_eq!(gate.get("", 0).await.status(), StatusCode::NOT_FOUND);
    gate.trust(signer.policy());
    let again = gate.get("", 60).await;
    assert_eq!((again.status(), tag(&again)), (StatusCode::OK, etag));
    assert_eq!(gate.state(), "serving");
    eventually("the disk has it again", || {
        kept_by(&cache, &signer.policy()) == [digest.clone()]
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_on_the_same_digest_is_served_again_at_once() {
    let (registry, old, new) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, layer) = registry.put_artifact("live", &bundle("one"));
    old.sign_legacy(&registry, &digest);
    let gate = Gate::with(&registry, seldom(old.policy())).await;
    let etag = tag(&gate.get("", 60).await);
    assert_eq!(gate.status().signers[0].identity, old.key().identity());
    let (held, ()) = tokio::join!(gate.get(&etag, 4), async {
        eventually("somebody waits", || gate.waiters() == 1).await;
        // The evidence in hand is by the old key alone, so it has to be collected afresh.
        new.sign_legacy(&registry, &digest);
        let began = Instant::now();
        gate.trust(new.policy());
        let by_the_new = || {
            gate.status()
                .signers
                .iter()
                .any(|signer| signer.identity == new.key().identity())
        };
        eventually("it is served by the new key", by_the_new).await;
        println!("served again {:?} after the rotation", began.elapsed());
        assert_eq!(gate.waiters(), 1, "somebody was woken");
    });
    assert_eq!(
        (held.status(), tag(&held)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    assert!(gate.last_failure().is_none() && gate.status().rejected.is_none());
    assert_eq!(
        registry.asked(layer.digest.as_str()).len(),
        1,
        "the bundle was fetched anew"
    );
}

#[tokio::test]
async fn what_was_refused_or_absent_is_looked_at_again_when_the_policy_changes() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let gate = Gate::with(&registry, seldom(signer.policy())).await;
    eventually("nothing there", || gate.state() == "withdrawn").await;
    registry.put_artifact("live", &bundle("one"));
    gate.trust(TrustPolicy::unsigned("dev".into()));
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    // The other way round: what was served for nothing needs a signature now.
    gate.trust(signer.policy());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    assert_eq!(
        gate.last_failure().unwrap().message.split(" (").next(),
        Some("no signature")
    );
}

/// A bundle that is too large is not fetched again, until somebody changes something.
#[tokio::test]
async fn a_known_defect_is_checked_again_under_another_policy() {
    let (registry, signer, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, layer) = registry.put_artifact("live", b"no bundle");
    signer.sign_bundle(&registry, &digest);
    let gate = Gate::with(
        &registry,
        Setup {
            policy: signer.policy(),
            ..Setup::default()
        },
    )
    .await;
    let looks = |wanted: usize| {
        let registry = &registry;
        async move { eventually("looks", || registry.asked("HEAD").len() >= wanted).await }
    };
    looks(3).await;
    assert_eq!(gate.last_failure().unwrap().class, "defect");
    // By tag while no version is known, and by digest afterwards.
    let judged = || {
        let by = |name: &str| registry.asked(&format!("GET /v2/acme/authz/manifests/{name}"));
        by("live").len() + by(digest.as_str()).len()
    };
    assert_eq!(
        (judged(), registry.asked(layer.digest.as_str()).len()),
        (1, 1)
    );
    gate.trust(any_of(&[&signer, &other]));
    eventually("it is judged again", || judged() == 2).await;
    looks(registry.asked("HEAD").len() + 3).await;
    assert_eq!(judged(), 2, "and again and again");
}

/// The pause is a bundle that takes its time on the way.
#[tokio::test]
async fn what_was_verified_before_a_revocation_and_fetched_after_it_is_never_served() {
    let (registry, revoked, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    other.sign_legacy(&registry, &one);
    let gate = Gate::with(
        &registry,
        Setup {
            policy: any_of(&[&revoked, &other]),
            ..Setup::default()
        },
    )
    .await;
    let etag = tag(&gate.get("", 60).await);
    let seen = spy(&gate);

    let two = Digest::sha256(&bundle("two"));
    registry.fail(two.as_str(), 1, Fault::Slow(Duration::from_secs(1)));
    let (digest, _) = registry.put_artifact("next", &bundle("two"));
    revoked.sign_legacy(&registry, &digest);
    registry.put_artifact("live", &bundle("two"));
    eventually("it is verified, and being fetched", || {
        !registry.asked(two.as_str()).is_empty()
    })
    .await;
    gate.trust(other.policy());
    eventually("it is refused", || {
        gate.last_failure()
            .is_some_and(|failure| failure.class == "evidence")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (gate.state(), gate.status().etag),
        ("serving", Some(etag.clone()))
    );
    assert_eq!(*seen.lock().unwrap(), [etag]);
}

/// The pause is the disk, the last thing before publishing: here nothing is left to be dropped,
/// and only the comparison at the very end is in the way.
#[tokio::test]
async fn what_was_verified_before_a_revocation_is_not_published_after_it() {
    let (registry, revoked, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    other.sign_legacy(&registry, &one);
    let cache = tempfile::tempdir().unwrap();
    for attempt in 0.. {
        let policy = any_of(&[&revoked, &other]);
        let setup = Setup {
            policy,
            cache: on_disk(&cache),
            ..Setup::default()
        };
        registry.put_artifact("live", &bundle("one"));
        let gate = Gate::with(&registry, setup).await;
        let etag = tag(&gate.get("", 60).await);
        eventually("it is kept", || index(&cache)["manifests"][0].is_object()).await;
        let hanging = HangingDisk::new(&cache);
        let version = format!("two, attempt {attempt}");
        let (digest, _) = registry.put_artifact("next", &bundle(&version));
        revoked.sign_legacy(&registry, &digest);
        registry.put_artifact("live", &bundle(&version));
        eventually("it is on its way to the disk", || {
            blob_path(&cache, &bundle(&version)).exists()
        })
        .await;
        let seen = spy(&gate);
        let in_time = gate.status().etag == Some(etag.clone());
        gate.trust(other.policy());
        if in_time {
            eventually("it is refused", || {
                gate.last_failure()
                    .is_some_and(|one| one.class == "evidence")
            })
            .await;
            assert_eq!(
                (gate.state(), gate.status().etag),
                ("serving", Some(etag.clone()))
            );
            assert_eq!(*seen.lock().unwrap(), [etag]);
            // And the disk says what is served, whatever was on its way there.
            drop(hanging);
            eventually("the disk has it back", || {
                kept_by(&cache, &other.policy()).contains(&one)
            })
            .await;
            assert_eq!(kept_by(&cache, &any_of(&[&revoked, &other])), []);
            return;
        }
        // The machine was too busy to get here while the disk was waited for.
        drop(hanging);
        gate.end(cache.path()).await;
    }
}

#[tokio::test]
async fn a_verdict_that_runs_out_withdraws_though_the_registry_is_dead() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    let over = in_seconds(5);
    let gate = Gate::with(&registry, seldom(until(over, &signer, &[]))).await;
    assert_eq!(
        gate.get("", 60).await.status(),
        StatusCode::OK,
        "the machine is too slow for this test"
    );
    assert_eq!(
        gate.shown().await["verdict"]["valid_until"],
        format!("{over:.3}")
    );
    dead(&registry);
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let late = Timestamp::now().duration_since(over);
    println!("withdrawn {late:#} after the end of the key");
    assert!(late.is_positive(), "too early");
    let failure = gate.last_failure().unwrap();
    assert_eq!(failure.class, "distrusted");
    assert_eq!(gate.get("", 0).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn evidence_that_runs_out_is_collected_afresh_at_once() {
    let (registry, ending, lasting) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    ending.sign_legacy(&registry, &digest);
    let over = in_seconds(5);
    let gate = Gate::with(&registry, seldom(until(over, &ending, &[&lasting]))).await;
    let etag = tag(&gate.get("", 60).await);
    assert!(gate.status().verdict.unwrap().valid_until.is_some());
    lasting.sign_legacy(&registry, &digest);
    eventually("it is served for ever", || {
        gate.status()
            .verdict
            .is_some_and(|verdict| verdict.valid_until.is_none())
    })
    .await;
    assert!(Timestamp::now() > over);
    assert_eq!(tag(&gate.get("", 0).await), etag);
}

/// Nobody can judge: the only thread for that is taken. What is over is over all the same.
#[test]
fn nothing_is_served_by_an_expired_verdict_during_reverification() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
        let (digest, _) = registry.put_artifact("live", &bundle("one"));
        signer.sign_bundle(&registry, &digest);
        let over = in_seconds(5);
        let gate = Gate::with(&registry, seldom(until(over, &signer, &[]))).await;
        let etag = tag(&gate.get("", 60).await);
        let busy = Arc::new(Semaphore::new(0));
        let (released, release) = (Arc::clone(&busy), Release(busy));
        let taken = spawn_blocking(move || {
            tokio::runtime::Handle::current()
                .block_on(released.acquire())
                .is_ok()
        });
        // Held beyond the end, by somebody who runs just this.
        let held = gate.get(&etag, 12).await;
        assert_eq!(held.status(), StatusCode::NOT_FOUND);
        assert!(
            Timestamp::now() > over,
            "the machine is too slow for this test"
        );
        let gone = gate.get("", 0).await;
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
        assert_eq!(gate.state(), "serving", "it was judged: this shows nothing");
        let error = error(gone).await;
        assert_eq!(
            error["message"],
            "the verification has expired; re-verifying"
        );
        drop(release);
        assert!(taken.await.unwrap());
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    });
}
