//! Trust roots from a TUF repository: what replaces one, and how long each lasts.

mod attacks;
mod refresh;

use std::{fs, path::Path};

use bundlegate::{
    metrics::Metrics,
    verify::{
        RefreshError, Refreshed, RootSource, TrustRoot, TrustRootMetrics, TrustRootRefresher,
    },
};
use jiff::{SignedDuration, Timestamp};
use sigstore_verify::{crypto::KeyPair, trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT as FIRST};
use tempfile::TempDir;

use crate::{command::fixture, gateway::sample, shared::poll_until, tuf::Tuf};

/// A repository, and a refresher that has its first root in memory and on disk.
struct Kept {
    tuf: Tuf,
    refresher: TrustRootRefresher,
    folder: TempDir,
    registry: Metrics,
    metrics: TrustRootMetrics,
}

fn unread_metrics() -> TrustRootMetrics {
    TrustRootMetrics::new(&Metrics::new()).unwrap()
}

impl Kept {
    async fn new() -> Self {
        let tuf = Tuf::start(FIRST).await;
        let (folder, registry) = (tempfile::tempdir().unwrap(), Metrics::new());
        let metrics = TrustRootMetrics::new(&registry).unwrap();
        let mut refresher = open(&tuf.source(), folder.path(), &metrics);
        assert_eq!(refresher.refresh().await, Ok(Refreshed::Changed));
        refresher.save().await;
        Self {
            tuf,
            refresher,
            folder,
            registry,
            metrics,
        }
    }

    /// The repository does something that must be refused with these words; then the last
    /// good root stays, here and across a restart. Once it stops doing that, its next root
    /// is taken, so that nothing else was the reason.
    async fn refuses(mut self, label: &str, words: &str, attack: impl FnOnce(&mut Tuf)) {
        let good = self.tuf.files();
        attack(&mut self.tuf);
        let fault = self.refresher.refresh().await.unwrap_err();
        assert_eq!(fault.label(), label, "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
        self.has(&self.refresher, FIRST);
        self.has(&self.reopened(), FIRST);
        self.refresher.save().await;
        self.has(&self.reopened(), FIRST);

        self.tuf.restore(good);
        self.tuf.publish_root(&second());
        assert_eq!(self.refresher.refresh().await, Ok(Refreshed::Changed));
        self.has(&self.refresher, &second());
        let count = |outcome| {
            let series = format!(
                r#"bundlegate_trust_root_refreshes_total{{outcome="{outcome}",root="corp"}}"#
            );
            sample(&self.registry, &series)
        };
        assert_eq!((count("changed"), count(label)), (Some(2.0), Some(1.0)));
    }

    /// Publishes metadata that expires within seconds, and fetches it. A machine that is too busy to
    /// fetch it before it expires gets more time.
    async fn expire_soon(&mut self) {
        for seconds in [3, 6, 12, 24] {
            self.tuf.expires = Timestamp::now() + SignedDuration::from_secs(seconds);
            self.tuf.publish();
            match self.refresher.refresh().await {
                Ok(Refreshed::Unchanged) => return,
                other => assert!(matches!(other, Err(RefreshError::Outdated(_))), "{other:?}"),
            }
        }
        panic!("the metadata is not fetched in time");
    }

    /// The refresher as after a restart.
    fn reopened(&self) -> TrustRootRefresher {
        open(&self.tuf.source(), self.folder.path(), &unread_metrics())
    }

    fn has(&self, refresher: &TrustRootRefresher, text: &str) {
        assert_eq!(refresher.root().revision(), revision(text).revision());
        assert_eq!(refresher.root().unusable_reason(Timestamp::now()), None);
        assert!(refresher.root().expires().unwrap() > Timestamp::now());
    }
}

fn open(source: &RootSource, folder: &Path, metrics: &TrustRootMetrics) -> TrustRootRefresher {
    TrustRootRefresher::open("corp", source, Some(folder), metrics.clone())
        .unwrap()
        .unwrap()
}

/// Another root with the same content.
fn second() -> String {
    format!("{FIRST}\n")
}

fn third() -> String {
    format!("{FIRST}\n\n")
}

fn revision(text: &str) -> TrustRoot {
    TrustRoot::from_json("corp", text).unwrap()
}

/// Refreshes until the repository offers nothing that is valid any more.
async fn wait_until_outdated(refresher: &mut TrustRootRefresher) -> RefreshError {
    poll_until("an outdated repository", async || {
        match refresher.refresh().await {
            Err(fault @ RefreshError::Outdated(_)) => Some(fault),
            other => {
                assert_eq!(other, Ok(Refreshed::Unchanged));
                None
            }
        }
    })
    .await
    .0
}

#[tokio::test]
async fn a_newer_root_replaces_the_one_before_and_the_same_one_lasts_longer() {
    let mut kept = Kept::new().await;
    let held = kept.refresher.root().clone();
    let until = held.expires().unwrap();

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(48);
    kept.tuf.publish();
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Unchanged));
    let longer = held.expires().unwrap();
    assert!(
        longer > until,
        "whoever holds the root holds its new end too: {until} {longer}"
    );
    let series = r#"bundlegate_trust_root_expires_timestamp_seconds{root="corp"}"#;
    let gauge = sample(&kept.registry, series);
    assert_eq!(gauge, Some(longer.as_second() as f64));

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(72);
    kept.tuf.publish_root(&second());
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));
    kept.has(&kept.refresher, &second());
    assert_eq!(
        held.expires(),
        Some(longer),
        "its successor does not prolong it"
    );
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Unchanged));
}

#[tokio::test]
async fn a_root_that_has_lost_its_authorities_replaces_the_one_before() {
    let mut kept = Kept::new().await;
    kept.tuf
        .publish_root(r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json"}"#);
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));
    // A policy can still be made of it, so that nothing clings to the old one.
    assert!(
        kept.refresher.root().has_certificate_authorities() && !kept.refresher.root().has_ct_logs()
    );
}

#[tokio::test]
async fn a_root_that_a_delegated_role_lists_ends_with_that_role_and_is_kept_like_any_other() {
    let mut kept = Kept::new().await;
    let expires = Timestamp::from_second(Timestamp::now().as_second() + 3600).unwrap();
    kept.tuf.publish_delegated(&second(), expires);
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));
    kept.refresher.save().await;
    for refresher in [&kept.refresher, &kept.reopened()] {
        kept.has(refresher, &second());
        assert_eq!(refresher.root().expires(), Some(expires));
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_fetched_again() {
    let mut kept = Kept::new().await;
    kept.tuf.asked();
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Unchanged));
    assert_eq!(
        kept.tuf.asked(),
        ["/repository/2.root.json", "/repository/timestamp.json"]
    );
}

#[tokio::test]
async fn roots_are_rotated_one_after_the_other_and_old_keys_count_no_more() {
    let mut kept = Kept::new().await;
    // Version 2 has another online key, version 3 other root keys: each is signed by the
    // keys before and by its own.
    let old_online = std::mem::replace(
        &mut kept.tuf.online,
        KeyPair::generate_ecdsa_p256().unwrap(),
    );
    kept.tuf.root = 2;
    let signers: Vec<_> = kept.tuf.root_keys[..2].iter().collect();
    kept.tuf.put("2.root.json", kept.tuf.root_file(&signers));
    let old: Vec<_> = std::mem::replace(
        &mut kept.tuf.root_keys,
        (0..3)
            .map(|_| KeyPair::generate_ecdsa_p256().unwrap())
            .collect(),
    );
    kept.tuf.root = 3;
    let signers = [
        &old[1],
        &old[2],
        &kept.tuf.root_keys[0],
        &kept.tuf.root_keys[1],
    ];
    kept.tuf.put("3.root.json", kept.tuf.root_file(&signers));
    kept.tuf.publish_root(&second());
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));
    kept.refresher.save().await;
    kept.has(&kept.refresher, &second());
    kept.has(&kept.reopened(), &second());

    let new_online = std::mem::replace(&mut kept.tuf.online, old_online);
    kept.tuf.publish_root(&third());
    let fault = kept.refresher.refresh().await.unwrap_err();
    assert!(
        fault
            .to_string()
            .contains("threshold not met for role timestamp"),
        "{fault}"
    );
    kept.has(&kept.refresher, &second());
    kept.tuf.online = new_online;
    kept.tuf.publish_root(&third());
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Changed));

    // A new installation gets there from the first root as well.
    let mut new = open(
        &kept.tuf.source(),
        tempfile::tempdir().unwrap().path(),
        &kept.metrics,
    );
    assert_eq!(new.refresh().await, Ok(Refreshed::Changed));
    kept.has(&new, &third());
}

/// The freeze attack: a repository goes on serving old metadata, which was good once.
#[tokio::test]
async fn a_repository_that_stands_still_is_believed_until_its_metadata_expires_and_not_longer() {
    let mut kept = Kept::new().await;
    kept.expire_soon().await;
    kept.refresher.save().await;
    let expires = kept.refresher.root().expires().unwrap();
    let fault = wait_until_outdated(&mut kept.refresher).await;
    assert!(
        fault
            .to_string()
            .contains(&format!("timestamp metadata expired at {expires}")),
        "{fault}"
    );

    // The root still verifies what it accepted earlier, and accepts nothing new.
    let expired = format!("trust root corp expired at {expires}");
    for root in [kept.refresher.root(), kept.reopened().root()] {
        assert_eq!(root.revision(), revision(FIRST).revision());
        assert_eq!(
            root.unusable_reason(Timestamp::now())
                .map(|reason| reason.to_string()),
            Some(expired.clone())
        );
        assert_eq!(root.unusable_reason(expires), None);
    }

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(1);
    kept.tuf.publish();
    assert_eq!(kept.refresher.refresh().await, Ok(Refreshed::Unchanged));
    kept.has(&kept.refresher, FIRST);
}

#[tokio::test]
async fn a_modified_file_on_disk_is_ignored() {
    let kept = Kept::new().await;
    let file = kept.folder.path().join("corp.json");
    let text = fs::read_to_string(&file).unwrap();
    let evil = text.replace("https://rekor.sigstore.dev", "https://rekor.evil.example");
    assert_ne!(evil, text, "the target is in it");
    for changed in [
        evil,
        text.replace("snapshot", "snapshut"),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ] {
        fs::write(&file, changed).unwrap();
        assert!(kept.reopened().root().is_pending());
    }
    fs::write(&file, text).unwrap();
    kept.has(&kept.reopened(), FIRST);
    // It is of another repository now.
    let other = Tuf::start(FIRST).await;
    let mut refresher = open(&other.source(), kept.folder.path(), &kept.metrics);
    assert!(refresher.root().is_pending());
    assert_eq!(refresher.refresh().await, Ok(Refreshed::Changed));
}

#[tokio::test]
async fn without_a_disk_that_can_be_written_roots_live_in_memory() {
    let mut tuf = Tuf::start(FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, "").unwrap();
    let metrics = unread_metrics();
    for folder in [None, Some(no_folder.as_path())] {
        let mut refresher =
            TrustRootRefresher::open("corp", &tuf.source(), folder, metrics.clone())
                .unwrap()
                .unwrap();
        assert!(refresher.root().is_pending());
        assert_eq!(refresher.refresh().await, Ok(Refreshed::Changed));
        refresher.save().await;
        tuf.publish_root(&second());
        assert_eq!(refresher.refresh().await, Ok(Refreshed::Changed));
        refresher.save().await;
        assert_eq!(refresher.root().revision(), revision(&second()).revision());
        tuf.publish_root(FIRST);
    }
}

#[test]
fn every_root_of_the_conformance_suite_is_read() {
    let Some(folder) = fixture(
        "sigstore-conformance/bundle-verify",
        "the conformance suite's roots",
    ) else {
        return;
    };
    let mut read = 0;
    let mut refused = Vec::new();
    for case in fs::read_dir(folder).unwrap() {
        let case = case.unwrap();
        let Ok(text) = fs::read_to_string(case.path().join("trusted_root.json")) else {
            continue;
        };
        match TrustRoot::from_json("test", &text) {
            Ok(_) => read += 1,
            Err(_) => refused.push(case.file_name().into_string().unwrap()),
        }
    }
    assert_eq!(refused, ["trust-root-tlog-missing-validity-start_fail"]);
    assert!(read > 30, "{read}");
}
