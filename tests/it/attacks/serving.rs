//! Bundles that are tampered with between the registry and the client.

use std::{path::Path, time::Duration};

use bundlegate::{
    metrics::Metrics,
    registry::{Credentials, Options},
    store::{self, Store, StoreMetrics},
    verify::{Requirements, RootSource, TrustPolicy, TufOptions},
};
use bytes::Bytes;
use reqwest::StatusCode;
use tokio::time::timeout;

use super::fixture::{keyed, keyless, policy};
use crate::{
    faulty::{Fault, FaultyRegistry, Hold},
    forge::Key,
    gateway::{HOUR, PATIENCE, Setup, TestGateway, bundle, error, eventually, tag, until_unlocked},
    signing::Signer,
};

fn cached(cache: &Path) -> store::Options {
    store::Options {
        directory: Some(cache.to_owned()),
        ..Setup::default().cache
    }
}

/// The names of all blobs in a cache.
fn lying(cache: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(cache.join("blobs/sha256"))
        .into_iter()
        .flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Case 1 (CVE-2022-47633): a tag is looked up once.
#[tokio::test]
async fn a_tag_that_moves_while_signatures_are_gathered_moves_nothing_that_is_served() {
    let registry = FaultyRegistry::start().await;
    let (signer, good, evil) = (Signer::new(), bundle("good"), bundle("evil"));
    let (digest, _) = registry.put_artifact("live", &good);
    signer.sign_legacy(&registry, &digest);
    let hold = Hold::default();
    registry.fail(".sig", 1, Fault::Held(hold.clone()));
    let mut setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    setup.rules.first_wait = HOUR;
    let gate = TestGateway::with(&registry, setup).await;
    eventually("signatures are asked for", || {
        !registry.asked(".sig").is_empty()
    })
    .await;
    let (unsigned, layer) = registry.put_artifact("live", &evil);
    hold.release();
    let served = timeout(PATIENCE, gate.get("", 0)).await.unwrap();
    assert_eq!(served.headers()["bundlegate-manifest"], digest.as_str());
    assert_eq!(served.bytes().await.unwrap(), good);
    eventually("the new one is refused", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    assert!(
        registry.asked(layer.digest.as_str()).is_empty(),
        "its bytes were asked for"
    );
    assert_eq!(gate.get("", 0).await.bytes().await.unwrap(), good);
    assert!(!registry.asked(unsigned.as_str()).is_empty());
}

/// Cases 5, 6 and 41. A digest is known at the last byte, and until then no client gets the first.
#[tokio::test]
async fn no_byte_is_served_or_kept_before_the_last_one_is_known() {
    let good = bundle("good");
    let other = vec![b'x'; good.len()];
    let one_bit = {
        let mut bytes = good.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    for fault in [
        Fault::Replace(Bytes::from(other)),
        Fault::Replace(Bytes::from(one_bit)),
        Fault::Replace(Bytes::from(good[..good.len() - 1].to_vec())),
        Fault::Replace(Bytes::from([good.clone(), vec![0]].concat())),
        Fault::Truncate(good.len() - 1),
        Fault::Halt(good.len() - 1),
        Fault::Endless,
        Fault::With("content-length", "5".into()),
    ] {
        let (registry, signer, cache) = (
            FaultyRegistry::start().await,
            Signer::new(),
            tempfile::tempdir().unwrap(),
        );
        let (digest, layer) = registry.put_artifact("live", &good);
        signer.sign_bundle(&registry, &digest);
        registry.fail(layer.digest.as_str(), usize::MAX, fault.clone());
        let setup = Setup {
            policy: signer.policy(),
            cache: cached(cache.path()),
            ..Setup::default()
        };
        let gate = TestGateway::with(&registry, setup).await;
        eventually("the layer is asked for", || {
            !registry.asked(layer.digest.as_str()).is_empty()
        })
        .await;
        if matches!(fault, Fault::Halt(_)) {
            // All bytes but one have arrived, and a client that waits has no status yet, which only
            // real time shows.
            let waiting = timeout(Duration::from_secs(1), gate.asking("", 60).send()).await;
            assert!(waiting.is_err(), "{fault:?}: {waiting:?}");
        } else {
            eventually("a failed check", || gate.last_failure().is_some()).await;
            let failure = gate.last_failure().unwrap();
            assert_eq!(
                (failure.class, failure.step.as_str()),
                ("transient", "fetch"),
                "{fault:?}: {failure:?}"
            );
        }
        let pending = gate.get("", 0).await;
        assert_eq!(pending.status(), StatusCode::NOT_FOUND, "{fault:?}");
        assert_eq!(error(pending).await["reason"], "pending", "{fault:?}");
        assert_eq!(gate.sent_bytes(), 0, "{fault:?}");
        assert!(
            !lying(cache.path())
                .iter()
                .any(|name| name == layer.digest.hex()),
            "{fault:?}"
        );
        if matches!(fault, Fault::Halt(_)) {
            continue;
        }
        // It was tried again all the time, and as soon as the bytes are right they are served.
        registry.heal();
        let served = timeout(PATIENCE, gate.get("", 60)).await.unwrap();
        assert_eq!(served.bytes().await.unwrap(), good, "{fault:?}");
        eventually("it is kept", || {
            lying(cache.path())
                .iter()
                .any(|name| name == layer.digest.hex())
        })
        .await;
    }
}

/// Case 24. The cache holds bytes and evidence, no verdict: that is today's policy's.
#[tokio::test]
async fn what_is_in_the_cache_is_verified_by_the_current_policy() {
    let (registry, signer, cache) = (
        FaultyRegistry::start().await,
        Signer::new(),
        tempfile::tempdir().unwrap(),
    );
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    signer.sign_bundle(&registry, &digest);
    let with = |policy: TrustPolicy| Setup {
        policy,
        cache: cached(cache.path()),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, with(signer.policy())).await;
    let etag = tag(&gate.get("", 60).await);
    let kept = || {
        std::fs::read_to_string(cache.path().join("index.json"))
            .unwrap()
            .contains(digest.hex())
    };
    eventually("it is kept", kept).await;
    gate.end(cache.path()).await;
    registry.fail("", usize::MAX, Fault::Status(503, vec![]));
    let gate = TestGateway::with(&registry, with(signer.policy())).await;
    assert_eq!(tag(&gate.get("", 60).await), etag);
    gate.end(cache.path()).await;
    let gate = TestGateway::with(&registry, with(policy([keyed(&Key::p256())]))).await;
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let refused = gate.refusal().await;
    assert_eq!(refused["reason"], "withdrawn");
    assert!(
        refused["message"].as_str().unwrap().contains("another key"),
        "{refused}"
    );
}

/// Case 25: possession is per repository and credential.
#[tokio::test]
async fn what_one_tenant_has_is_not_there_for_another_who_has_not_shown_it() {
    let (ours, theirs) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let (_, layer) = ours.put_artifact("live", b"secret");
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(
        cached(cache.path()),
        StoreMetrics::new(&Metrics::new()).unwrap(),
    );
    store.blob(&ours.source(), &layer).await.unwrap();
    // The other tenant knows the digest, and has nothing.
    let refused = store
        .blob(&theirs.source(), &layer)
        .await
        .unwrap_err()
        .to_string();
    let absent = Store::open(
        Setup::default().cache,
        StoreMetrics::new(&Metrics::new()).unwrap(),
    );
    let truly = absent
        .blob(&theirs.source(), &layer)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(refused, truly, "what is cached for another shows");
    assert_eq!(
        theirs.asked(layer.digest.as_str()).len(),
        2,
        "its registry was not asked"
    );
    // With other credentials, the store does not serve what these credentials have received.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "wrong\n").unwrap();
    let credentials = Credentials::PasswordFile {
        username: "mallory".into(),
        password_file: file.path().to_owned(),
    };
    let mallory = ours.source_with(Options {
        credentials: Some(credentials),
        ..ours.options()
    });
    ours.fail("blobs/", usize::MAX, Fault::Status(403, vec![]));
    assert!(store.blob(&mallory, &layer).await.is_err());
    store.blob(&ours.source(), &layer).await.unwrap();
    // The same holds for blobs on disk.
    drop(store);
    until_unlocked(cache.path()).await;
    let again = Store::open(
        cached(cache.path()),
        StoreMetrics::new(&Metrics::new()).unwrap(),
    );
    assert!(again.blob(&mallory, &layer).await.is_err());
}

/// Case 40: whatever can't be answered is no, and says why.
#[tokio::test]
async fn every_way_to_have_no_answer_is_a_no_with_its_own_reason() {
    let (signer, good) = (Signer::new(), bundle("good"));
    let pending = {
        let root = Bytes::from_static(include_bytes!(
            "../../../src/verify/roots/sigstore_tuf_root.json"
        ));
        let options = TufOptions::new("https://127.0.0.1:1/".parse().unwrap(), root, None).unwrap();
        RootSource::Tuf(options).initial("never came").unwrap()
    };
    let denied = Fault::Status(401, vec![]);
    let broken = Fault::Status(500, vec![]);
    let mut reasons = Vec::new();
    for (policy, fault, class) in [
        (
            signer.policy(),
            Some(("referrers/", denied.clone())),
            "denied",
        ),
        (
            signer.policy(),
            Some(("referrers/", broken.clone())),
            "transient",
        ),
        (signer.policy(), Some((".sig", broken)), "transient"),
        (signer.policy(), None, "evidence"),
        (policy([keyed(&Key::p256())]), None, "evidence"),
        (policy([keyless(pending)]), None, "evidence"),
    ] {
        let registry = FaultyRegistry::start().await;
        let (digest, layer) = registry.put_artifact("live", &good);
        let known = policy.revision() == signer.policy().revision();
        // What can be gathered elsewhere would count.
        match &fault {
            Some(("referrers/", _)) => signer.sign_bundle(&registry, &digest),
            Some(_) => signer.sign_legacy(&registry, &digest),
            None if !known => signer.sign_legacy(&registry, &digest),
            None => {}
        }
        if let Some((part, fault)) = &fault {
            registry.fail(part, usize::MAX, fault.clone());
        }
        let gate = TestGateway::with(
            &registry,
            Setup {
                policy,
                ..Setup::default()
            },
        )
        .await;
        eventually("a failed check", || gate.last_failure().is_some()).await;
        let failure = gate.last_failure().unwrap();
        assert_eq!(failure.class, class, "{failure:?}");
        let refused = gate.refusal().await;
        assert!(
            registry.asked(layer.digest.as_str()).is_empty(),
            "{failure:?}"
        );
        reasons.push(
            refused["message"]
                .as_str()
                .unwrap()
                .replace(&registry.address.to_string(), ""),
        );
    }
    reasons.sort();
    let all = reasons.len();
    reasons.dedup();
    assert_eq!(reasons.len(), all, "{reasons:#?}");
    // Nobody's vote is no policy.
    assert!(TrustPolicy::signed("empty".into(), Requirements::any_of(vec![])).is_err());
}
