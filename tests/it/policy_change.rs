//! Trust policies that change while a bundle is served.

use std::{sync::Arc, time::Duration};

use bundlegate::{
    oci::Digest,
    verify::{Authority, AuthorityKey, AuthorityKind, Requirements, TlogPolicy, TrustPolicy},
};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    cache::{HangingDisk, blob_path, index, on_disk},
    faulty::{Fault, FaultyRegistry, Hold},
    gateway::{HOUR, InProcess, Setup, TestGateway, bundle, eventually, tag},
    signing::{Signer, any_of},
};

/// Makes the registry silent: it neither answers nor refuses a request from now on.
fn dead(registry: &FaultyRegistry) {
    registry.fail("", usize::MAX, Fault::Stall);
}

/// A setup that polls once an hour, so that an earlier event has another cause.
fn seldom(policy: TrustPolicy) -> Setup {
    let mut setup = Setup {
        policy,
        ..Setup::default()
    };
    setup.rules.poll = HOUR;
    setup
}

/// A policy that trusts `key` until `then`, and the others without an end.
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

/// A gateway that serves by a key which is about to end, and its entity tag.
struct ServedUntil {
    gate: TestGateway<InProcess>,
    etag: String,
    over: Timestamp,
}

/// How long keys last, in seconds, from before the gateway starts. A busy machine that serves too
/// late by the first gets the next.
const KEY_SECONDS: [u32; 4] = [4, 8, 16, 32];

impl ServedUntil {
    /// `None` if the key has ended by the time that its bundle would be served.
    async fn start(
        registry: &FaultyRegistry,
        key: &Signer,
        others: &[&Signer],
        seconds: u32,
    ) -> Option<Self> {
        let over = Timestamp::now() + SignedDuration::from_secs(seconds.into());
        let gate = TestGateway::with(registry, seldom(until(over, key, others))).await;
        let served = gate.get("", seconds).await;
        let in_time = served.status() == StatusCode::OK
            && Timestamp::now() + SignedDuration::from_secs(1) < over;
        let etag = tag(&served);
        in_time.then_some(Self { gate, etag, over })
    }

    /// Tries the times of [`KEY_SECONDS`].
    async fn start_in_time(registry: &FaultyRegistry, key: &Signer, others: &[&Signer]) -> Self {
        for seconds in KEY_SECONDS {
            if let Some(served) = Self::start(registry, key, others, seconds).await {
                return served;
            }
        }
        panic!("the bundle is not served before the key ends");
    }
}

/// Collects every entity tag that the server could have sent.
fn spy(gate: &TestGateway<InProcess>) -> Arc<std::sync::Mutex<Vec<String>>> {
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

/// The digests that this policy has accepted, by the index of the cache.
fn kept_by(cache: &TempDir, policy: &TrustPolicy) -> Vec<Digest> {
    let (index, revision) = (index(cache), policy.revision().to_string());
    let entries = index["manifests"].as_array().unwrap().iter();
    let ours = entries.filter(|entry| entry["annotations"]["dev.bundlegate.policy"] == *revision);
    ours.map(|entry| entry["digest"].as_str().unwrap().parse().unwrap())
        .collect()
}

/// Releases a blocked thread when it is dropped, even if the test fails.
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
        let gate = TestGateway::with(&registry, setup).await;
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

        let error = gate.refusal().await;
        assert_eq!(
            (&error["reason"], &error["message"]),
            (&"withdrawn".into(), &failure.message.into())
        );
        // With `wait` the request is held, because a version may be served again in time.
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
    let gate = TestGateway::with(
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
        eventually("a client waits", || gate.waiters() == 1).await;
        gate.trust(signer.policy());
        eventually("it is verified again", || {
            gate.status()
                .verdict
                .is_some_and(|verdict| verdict.policy_revision == *signer.policy().revision())
        })
        .await;
        assert!(
            gate.waiters() == 1 && !state.has_changed().unwrap(),
            "a client was woken"
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
    let gate = TestGateway::with(
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
    // Another policy that does not trust the version changes nothing.
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
    let gate = TestGateway::with(&registry, seldom(old.policy())).await;
    let etag = tag(&gate.get("", 60).await);
    assert_eq!(gate.status().signers[0].identity, old.key().identity());
    let (held, ()) = tokio::join!(gate.get(&etag, 4), async {
        eventually("a client waits", || gate.waiters() == 1).await;
        // The stored evidence is by the old key alone, so evidence has to be collected again.
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
        assert_eq!(gate.waiters(), 1, "a client was woken");
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
    let gate = TestGateway::with(&registry, seldom(signer.policy())).await;
    eventually("nothing there", || gate.state() == "withdrawn").await;
    registry.put_artifact("live", &bundle("one"));
    gate.trust(TrustPolicy::unsigned("dev".into()));
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    // The other way round: a version that was served unsigned needs a signature now.
    gate.trust(signer.policy());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    assert_eq!(
        gate.last_failure().unwrap().message.split(" (").next(),
        Some("no signature")
    );
}

/// The blob of a known defect is not fetched again until the policy changes.
#[tokio::test]
async fn a_known_defect_is_checked_again_under_another_policy() {
    let (registry, signer, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (digest, layer) = registry.put_artifact("live", b"no bundle");
    signer.sign_bundle(&registry, &digest);
    let gate = TestGateway::with(
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
    eventually("it is verified again", || judged() == 2).await;
    looks(registry.asked("HEAD").len() + 3).await;
    assert_eq!(judged(), 2, "and again and again");
}

/// The policy changes while the registry holds back the blob.
#[tokio::test]
async fn what_was_verified_before_a_revocation_and_fetched_after_it_is_never_served() {
    let (registry, revoked, other) = (FaultyRegistry::start().await, Signer::new(), Signer::new());
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    other.sign_legacy(&registry, &one);
    let gate = TestGateway::with(
        &registry,
        Setup {
            policy: any_of(&[&revoked, &other]),
            ..Setup::default()
        },
    )
    .await;
    let etag = tag(&gate.get("", 60).await);
    let seen = spy(&gate);

    let (two, hold) = (Digest::sha256(&bundle("two")), Hold::default());
    registry.fail(two.as_str(), 1, Fault::Held(hold.clone()));
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
    // The blob arrives now, and at least two more checks end.
    hold.release();
    let looks = registry.asked("HEAD").len();
    eventually("two more checks", || {
        registry.asked("HEAD").len() >= looks + 3
    })
    .await;
    assert_eq!(
        (gate.state(), gate.status().etag),
        ("serving", Some(etag.clone()))
    );
    assert_eq!(*seen.lock().unwrap(), [etag]);
}

/// The policy changes while the disk hangs, which is the last step before publishing: nothing can
/// be cancelled then, and only the comparison of revisions at the end prevents it.
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
        let gate = TestGateway::with(&registry, setup).await;
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
            // The disk has the served version, whichever version was being written.
            drop(hanging);
            eventually("the disk has it back", || {
                kept_by(&cache, &other.policy()).contains(&one)
            })
            .await;
            assert_eq!(kept_by(&cache, &any_of(&[&revoked, &other])), []);
            return;
        }
        // A busy machine arrives here after the wait for the disk has ended.
        drop(hanging);
        gate.end(cache.path()).await;
    }
}

#[tokio::test]
async fn a_verdict_that_runs_out_withdraws_though_the_registry_is_dead() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    let ServedUntil { gate, over, .. } = ServedUntil::start_in_time(&registry, &signer, &[]).await;
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
    let ServedUntil { gate, etag, over } =
        ServedUntil::start_in_time(&registry, &ending, &[&lasting]).await;
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

/// Serves by a key that lasts for some seconds, and then takes the thread that verifies, before
/// they are over.
async fn served_with_thread_taken(
    registry: &FaultyRegistry,
    signer: &Signer,
) -> (ServedUntil, u32, JoinHandle<bool>, Release) {
    for seconds in KEY_SECONDS {
        let Some(served) = ServedUntil::start(registry, signer, &[], seconds).await else {
            continue;
        };
        let busy = Arc::new(Semaphore::new(0));
        let (released, release) = (Arc::clone(&busy), Release(busy));
        let (started, is_started) = oneshot::channel();
        let taken = spawn_blocking(move || {
            let _ = started.send(());
            tokio::runtime::Handle::current()
                .block_on(released.acquire())
                .is_ok()
        });
        is_started.await.unwrap();
        if Timestamp::now() < served.over {
            return (served, seconds, taken, release);
        }
    }
    panic!("the thread is not taken before the key ends");
}

/// Nothing can be verified, because the only thread for it is taken. An expired verdict is not
/// served by nevertheless.
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
        let (served, seconds, taken, release) = served_with_thread_taken(&registry, &signer).await;
        let ServedUntil { gate, etag, over } = served;
        // The request is held by a client that runs this version, beyond the end of the key.
        let held = gate.get(&etag, 2 * seconds + 2).await;
        assert_eq!(held.status(), StatusCode::NOT_FOUND);
        assert!(Timestamp::now() > over);
        let error = gate.refusal().await;
        assert_eq!(gate.state(), "serving", "it was judged: this shows nothing");
        assert_eq!(
            error["message"],
            "the verification has expired; re-verifying"
        );
        drop(release);
        assert!(taken.await.unwrap());
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    });
}
