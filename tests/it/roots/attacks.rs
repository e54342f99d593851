//! Metadata that never replaces a trust root, even from the operator of the repository.

use std::{fs, time::Duration};

use bundlegate::verify::{RefreshError, Refreshed, RootSource, TrustRootRefresher};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sigstore_verify::{crypto::KeyPair, trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT as FIRST};

use super::{Kept, open, second};
use crate::tuf::{Answer, Tuf, pin};

#[tokio::test]
async fn a_root_that_skips_a_version_is_refused() {
    let skip = |tuf: &mut Tuf| {
        tuf.root = 3;
        tuf.put(
            "2.root.json",
            tuf.root_file(&[&tuf.root_keys[0], &tuf.root_keys[1]]),
        );
    };
    Kept::new()
        .await
        .refuses(
            "refused",
            "root version must increment by one: trusted 1, got 3",
            skip,
        )
        .await;
}

#[tokio::test]
async fn a_root_without_enough_signatures_of_the_one_before_is_refused() {
    let usurp = |tuf: &mut Tuf| {
        let new: Vec<_> = (0..3)
            .map(|_| KeyPair::generate_ecdsa_p256().unwrap())
            .collect();
        let old = std::mem::replace(&mut tuf.root_keys, new);
        tuf.root = 2;
        tuf.put(
            "2.root.json",
            tuf.root_file(&[&old[0], &tuf.root_keys[0], &tuf.root_keys[1]]),
        );
        (tuf.root, tuf.root_keys) = (1, old);
    };
    Kept::new()
        .await
        .refuses("refused", "threshold not met for role root: 1/2", usurp)
        .await;
}

#[tokio::test]
async fn a_root_without_enough_signatures_of_its_own_is_refused() {
    let careless = |tuf: &mut Tuf| {
        let new: Vec<_> = (0..3)
            .map(|_| KeyPair::generate_ecdsa_p256().unwrap())
            .collect();
        let old = std::mem::replace(&mut tuf.root_keys, new);
        tuf.root = 2;
        tuf.put(
            "2.root.json",
            tuf.root_file(&[&old[0], &old[1], &tuf.root_keys[0]]),
        );
        (tuf.root, tuf.root_keys) = (1, old);
    };
    Kept::new()
        .await
        .refuses("refused", "threshold not met for role root: 1/2", careless)
        .await;
}

#[tokio::test]
async fn an_expired_timestamp_is_refused() {
    let expire = |tuf: &mut Tuf| {
        let expires = std::mem::replace(
            &mut tuf.expires,
            Timestamp::now() - SignedDuration::from_secs(5),
        );
        tuf.publish_root(&second());
        tuf.expires = expires;
    };
    Kept::new()
        .await
        .refuses("outdated", "timestamp metadata expired at", expire)
        .await;
}

#[tokio::test]
async fn an_older_timestamp_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("timestamp.json");
    kept.tuf.publish();
    kept.refresher.refresh().await.unwrap();
    kept.refresher.save().await;
    let words = "rollback detected for timestamp: trusted version 2 > new version 1";
    // After a restart as well.
    let mut reopened = kept.reopened();
    let newer = kept.tuf.files();
    kept.tuf.put("timestamp.json", old.clone());
    assert_eq!(
        reopened.refresh().await,
        Err(RefreshError::Refused(words.to_owned()))
    );
    kept.tuf.restore(newer);
    kept.refuses("refused", words, |tuf| tuf.put("timestamp.json", old))
        .await;
}

#[tokio::test]
async fn a_timestamp_of_an_older_snapshot_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("1.snapshot.json");
    kept.tuf.publish();
    kept.refresher.refresh().await.unwrap();
    kept.refresher.save().await;
    let roll_back = |tuf: &mut Tuf| tuf.publish_timestamp(&old, 1);
    kept.refuses(
        "refused",
        "rollback detected for snapshot (via timestamp)",
        roll_back,
    )
    .await;
}

#[tokio::test]
async fn a_snapshot_of_older_targets_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("1.targets.json");
    kept.tuf.publish();
    kept.refresher.refresh().await.unwrap();
    kept.refresher.save().await;
    let roll_back = |tuf: &mut Tuf| tuf.publish_snapshot(&old, 1);
    kept.refuses(
        "refused",
        "rollback detected for targets.json (via snapshot)",
        roll_back,
    )
    .await;
}

#[tokio::test]
async fn a_snapshot_that_its_timestamp_does_not_pin_is_refused_and_the_disk_keeps_what_fits_together()
 {
    let swap = |tuf: &mut Tuf| {
        tuf.publish_root(&second());
        let mut snapshot = tuf.bytes("2.snapshot.json");
        snapshot.push(b' ');
        tuf.put("2.snapshot.json", snapshot);
    };
    Kept::new()
        .await
        .refuses("refused", "snapshot.json: length", swap)
        .await;
}

#[tokio::test]
async fn metadata_by_another_key_is_refused() {
    let forge = |tuf: &mut Tuf| {
        let own = std::mem::replace(&mut tuf.online, KeyPair::generate_ecdsa_p256().unwrap());
        tuf.publish_root(&second());
        tuf.online = own;
    };
    Kept::new()
        .await
        .refuses(
            "refused",
            "threshold not met for role timestamp: 0/1",
            forge,
        )
        .await;
}

#[tokio::test]
async fn a_target_with_another_hash_or_length_is_refused() {
    let path = |tuf: &Tuf| {
        let hash = pin(&tuf.content["trusted_root.json"])["hashes"]["sha256"]
            .as_str()
            .unwrap()
            .to_owned();
        format!("targets/{hash}.trusted_root.json")
    };
    let replaced = |tuf: &mut Tuf, change: &dyn Fn(&mut Vec<u8>)| {
        tuf.publish_root(&second());
        let path = path(tuf);
        let mut bytes = tuf.bytes(&path);
        change(&mut bytes);
        tuf.put(&path, bytes);
    };
    let kept = Kept::new().await;
    kept.refuses("refused", "sha256 mismatch", |tuf| {
        replaced(tuf, &|bytes| bytes[0] = b' ')
    })
    .await;
    let kept = Kept::new().await;
    kept.refuses("refused", "length", |tuf| {
        replaced(tuf, &|bytes| bytes.truncate(bytes.len() - 1))
    })
    .await;
    let kept = Kept::new().await;
    kept.refuses("refused", "longer than", |tuf| {
        replaced(tuf, &|bytes| bytes.push(b' '))
    })
    .await;
}

#[tokio::test]
async fn a_target_that_is_too_long_is_not_even_fetched() {
    let bloat = |tuf: &mut Tuf| {
        let pin = json!({"length": (1 << 20) + 1, "hashes": {"sha256": "00".repeat(32)}});
        tuf.publish_targets([("trusted_root.json".to_owned(), pin)].into());
    };
    Kept::new()
        .await
        .refuses("refused", "exceeds configured max 1048576", bloat)
        .await;
}

#[tokio::test]
async fn a_targets_path_or_hash_leads_nowhere_else() {
    for path in [
        "../trusted_root.json",
        "/etc/trusted_root.json",
        "a/../trusted_root.json",
        "..%2ftrusted_root.json",
    ] {
        let kept = Kept::new().await;
        let stray = |tuf: &mut Tuf| {
            tuf.put("targets/trusted_root.json", second().into_bytes());
            tuf.publish_targets([(path.to_owned(), pin(second().as_bytes()))].into());
        };
        kept.refuses(
            "refused",
            "is not listed by any trusted targets role",
            stray,
        )
        .await;
    }
    let lead_out = |tuf: &mut Tuf| {
        // The client puts the hash in front of the name.
        let pin = json!({"length": second().len(), "hashes": {"sha256": "../../elsewhere/x"}});
        tuf.publish_targets([("trusted_root.json".to_owned(), pin)].into());
    };
    Kept::new()
        .await
        .refuses("refused", "points outside the repository", lead_out)
        .await;
}

#[tokio::test]
async fn only_the_repository_is_asked_and_only_one_file_is_written() {
    let mut kept = Kept::new().await;
    kept.tuf.asked();
    let pin = json!({"length": 1, "hashes": {"sha256": "../../elsewhere/x"}});
    kept.tuf
        .publish_targets([("trusted_root.json".to_owned(), pin)].into());
    kept.refresher.refresh().await.unwrap_err();
    let asked = kept.tuf.asked();
    assert!(
        asked.iter().all(|path| path.starts_with("/repository/")),
        "{asked:?}"
    );
    let written: Vec<_> = fs::read_dir(kept.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(written, ["corp.json"]);
    // No name leads out of the folder.
    let deep = kept.folder.path().join("a/b");
    let name = "../../x/..";
    let mut refresher =
        TrustRootRefresher::open(name, &kept.tuf.source(), Some(&deep), kept.metrics.clone())
            .unwrap()
            .unwrap();
    kept.tuf.publish_root(&second());
    refresher.refresh().await.unwrap();
    refresher.save().await;
    let written: Vec<_> = fs::read_dir(deep)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(written, ["%2E%2E%2F%2E%2E%2Fx%2F%2E%2E.json"]);
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    for (path, words) in [
        ("2.root.json", "2.root.json: longer than 512000 bytes"),
        ("timestamp.json", "timestamp.json: longer than 16384 bytes"),
    ] {
        let endless = |tuf: &mut Tuf| drop(tuf.answer(path, Answer::Endless));
        Kept::new().await.refuses("refused", words, endless).await;
    }
}

#[tokio::test]
async fn a_silent_repository_is_given_up() {
    let mut kept = Kept::new().await;
    let impatient = kept.tuf.options().with_timeout(Duration::from_millis(300));
    let mut refresher = open(
        &RootSource::Tuf(impatient),
        kept.folder.path(),
        &kept.metrics,
    );
    for path in ["2.root.json", "timestamp.json"] {
        let before = kept
            .tuf
            .answer(path, Answer::Silence)
            .unwrap_or(Answer::Status(404, ""));
        let fault = refresher.refresh().await.unwrap_err();
        assert_eq!(
            fault,
            RefreshError::Unreachable("not finished within 300ms".to_owned()),
            "{path}"
        );
        kept.has(&refresher, FIRST);
        kept.tuf.answer(path, before);
    }
    kept.tuf.publish_root(&second());
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));
}

#[tokio::test]
async fn an_error_or_a_redirect_is_no_answer() {
    let words = "fetch timestamp.json: HTTP 500";
    let broken = |tuf: &mut Tuf| drop(tuf.answer("timestamp.json", Answer::Status(500, "")));
    Kept::new()
        .await
        .refuses("unreachable", words, broken)
        .await;
    let moved = |tuf: &mut Tuf| {
        drop(tuf.answer(
            "timestamp.json",
            Answer::Status(302, "/repository/1.root.json"),
        ))
    };
    Kept::new()
        .await
        .refuses("unreachable", "fetch timestamp.json: HTTP 302", moved)
        .await;
    let gone = |tuf: &mut Tuf| drop(tuf.answer("timestamp.json", Answer::Status(404, "")));
    Kept::new()
        .await
        .refuses("unreachable", "timestamp.json not found", gone)
        .await;
}

#[tokio::test]
async fn what_is_signed_but_no_trusted_root_is_refused() {
    for (text, words) in [
        ("{}", "not a trusted root"),
        (
            r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.1+json","tlogs":[],"tlogs":[]}"#,
            "duplicate",
        ),
    ] {
        Kept::new()
            .await
            .refuses("unusable", words, |tuf| tuf.publish_root(text))
            .await;
    }
}
