//! Trust roots from a TUF repository: what may replace one, and what never does.

use std::{fs, path::Path, time::Duration};

use bundlegate::{
    metrics::Metrics,
    verify::{LiveRoots, RefreshFault, Refreshed, RootKeeper, RootSource, TrustRoot},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sigstore_verify::{crypto::KeyPair, trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT as FIRST};
use tempfile::TempDir;

use crate::{
    command::fixture,
    tuf::{Answer, Tuf, pin},
};

/// A repository, and a keeper that has its first root in memory and on disk.
struct Kept {
    tuf: Tuf,
    keeper: RootKeeper,
    folder: TempDir,
    metrics: Metrics,
}

impl Kept {
    async fn new() -> Self {
        let tuf = Tuf::start(FIRST).await;
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new().unwrap());
        let mut keeper = open(&tuf.source(), folder.path(), &metrics);
        assert_eq!(keeper.refresh().await, Ok(Refreshed::Changed));
        keeper.save().await;
        Self { tuf, keeper, folder, metrics }
    }

    /// The repository does something that must be refused with these words; then the last
    /// good root stays, here and across a restart. Once it stops doing that, its next root
    /// is taken, so that nothing else was the reason.
    async fn refuses(mut self, label: &str, words: &str, attack: impl FnOnce(&mut Tuf)) {
        let good = self.tuf.files();
        attack(&mut self.tuf);
        let fault = self.keeper.refresh().await.unwrap_err();
        assert_eq!(fault.label(), label, "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
        self.has(&self.keeper, FIRST);
        self.has(&self.reopened(), FIRST);
        self.keeper.save().await;
        self.has(&self.reopened(), FIRST);

        self.tuf.restore(good);
        self.tuf.publish_root(&second());
        assert_eq!(self.keeper.refresh().await, Ok(Refreshed::Changed));
        self.has(&self.keeper, &second());
        let count = |outcome| self.metrics.trust_root_refreshes.with_label_values(&["corp", outcome]).get();
        assert_eq!((count("changed"), count(label)), (2, 1));
    }

    /// As after a restart.
    fn reopened(&self) -> RootKeeper {
        open(&self.tuf.source(), self.folder.path(), &Metrics::new().unwrap())
    }

    fn has(&self, keeper: &RootKeeper, text: &str) {
        assert_eq!(keeper.root().revision(), revision(text).revision());
        assert_eq!(keeper.root().trouble(Timestamp::now()), None);
        assert!(keeper.root().expires().unwrap() > Timestamp::now());
    }
}

fn open(source: &RootSource, folder: &Path, metrics: &Metrics) -> RootKeeper {
    RootKeeper::open("corp", source, Some(folder), metrics.clone()).unwrap().unwrap()
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
async fn wait_until_outdated(keeper: &mut RootKeeper) -> RefreshFault {
    let outdated = async {
        loop {
            match keeper.refresh().await {
                Err(fault @ RefreshFault::Outdated(_)) => return fault,
                other => assert_eq!(other, Ok(Refreshed::Unchanged)),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), outdated).await.unwrap()
}

async fn changed(roots: &mut LiveRoots) {
    tokio::time::timeout(Duration::from_secs(30), roots.changed()).await.unwrap();
}

#[tokio::test]
async fn a_newer_root_replaces_the_one_before_and_the_same_one_lasts_longer() {
    let mut kept = Kept::new().await;
    let held = kept.keeper.root().clone();
    let until = held.expires().unwrap();

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(48);
    kept.tuf.publish();
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Unchanged));
    let longer = held.expires().unwrap();
    assert!(longer > until, "whoever holds the root holds its new end too: {until} {longer}");
    let gauge = kept.metrics.trust_root_expires.with_label_values(&["corp"]).get();
    assert_eq!(gauge, longer.as_second());

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(72);
    kept.tuf.publish_root(&second());
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));
    kept.has(&kept.keeper, &second());
    assert_eq!(held.expires(), Some(longer), "its successor does not prolong it");
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Unchanged));
}

#[tokio::test]
async fn a_root_that_has_lost_its_authorities_replaces_the_one_before() {
    let mut kept = Kept::new().await;
    kept.tuf.publish_root(r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json"}"#);
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));
    // A policy can still be made of it, so that nothing clings to the old one.
    assert!(kept.keeper.root().has_certificate_authorities() && !kept.keeper.root().has_ct_logs());
}

#[tokio::test]
async fn a_root_that_a_delegated_role_lists_ends_with_that_role_and_is_kept_like_any_other() {
    let mut kept = Kept::new().await;
    let expires = Timestamp::from_second(Timestamp::now().as_second() + 3600).unwrap();
    kept.tuf.publish_delegated(&second(), expires);
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));
    kept.keeper.save().await;
    for keeper in [&kept.keeper, &kept.reopened()] {
        kept.has(keeper, &second());
        assert_eq!(keeper.root().expires(), Some(expires));
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_fetched_again() {
    let mut kept = Kept::new().await;
    kept.tuf.asked();
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Unchanged));
    assert_eq!(kept.tuf.asked(), ["/repository/2.root.json", "/repository/timestamp.json"]);
}

#[tokio::test]
async fn roots_are_rotated_one_after_the_other_and_old_keys_count_no_more() {
    let mut kept = Kept::new().await;
    // Version 2 has another online key, version 3 other root keys: each is signed by the
    // keys before and by its own.
    let old_online = std::mem::replace(&mut kept.tuf.online, KeyPair::generate_ecdsa_p256().unwrap());
    kept.tuf.root = 2;
    let signers: Vec<_> = kept.tuf.root_keys[..2].iter().collect();
    kept.tuf.put("2.root.json", kept.tuf.root_file(&signers));
    let old: Vec<_> =
        std::mem::replace(&mut kept.tuf.root_keys, (0..3).map(|_| KeyPair::generate_ecdsa_p256().unwrap()).collect());
    kept.tuf.root = 3;
    let signers = [&old[1], &old[2], &kept.tuf.root_keys[0], &kept.tuf.root_keys[1]];
    kept.tuf.put("3.root.json", kept.tuf.root_file(&signers));
    kept.tuf.publish_root(&second());
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));
    kept.keeper.save().await;
    kept.has(&kept.keeper, &second());
    kept.has(&kept.reopened(), &second());

    let new_online = std::mem::replace(&mut kept.tuf.online, old_online);
    kept.tuf.publish_root(&third());
    let fault = kept.keeper.refresh().await.unwrap_err();
    assert!(fault.to_string().contains("threshold not met for role timestamp"), "{fault}");
    kept.has(&kept.keeper, &second());
    kept.tuf.online = new_online;
    kept.tuf.publish_root(&third());
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));

    // A new installation gets there from the first root as well.
    let mut new = open(&kept.tuf.source(), tempfile::tempdir().unwrap().path(), &kept.metrics);
    assert_eq!(new.refresh().await, Ok(Refreshed::Changed));
    kept.has(&new, &third());
}

#[tokio::test]
async fn a_root_that_skips_a_version_is_refused() {
    let skip = |tuf: &mut Tuf| {
        tuf.root = 3;
        tuf.put("2.root.json", tuf.root_file(&[&tuf.root_keys[0], &tuf.root_keys[1]]));
    };
    Kept::new().await.refuses("refused", "root version must increment by one: trusted 1, got 3", skip).await;
}

#[tokio::test]
async fn a_root_without_enough_signatures_of_the_one_before_is_refused() {
    let usurp = |tuf: &mut Tuf| {
        let new: Vec<_> = (0..3).map(|_| KeyPair::generate_ecdsa_p256().unwrap()).collect();
        let old = std::mem::replace(&mut tuf.root_keys, new);
        tuf.root = 2;
        tuf.put("2.root.json", tuf.root_file(&[&old[0], &tuf.root_keys[0], &tuf.root_keys[1]]));
        (tuf.root, tuf.root_keys) = (1, old);
    };
    Kept::new().await.refuses("refused", "threshold not met for role root: 1/2", usurp).await;
}

#[tokio::test]
async fn a_root_without_enough_signatures_of_its_own_is_refused() {
    let careless = |tuf: &mut Tuf| {
        let new: Vec<_> = (0..3).map(|_| KeyPair::generate_ecdsa_p256().unwrap()).collect();
        let old = std::mem::replace(&mut tuf.root_keys, new);
        tuf.root = 2;
        tuf.put("2.root.json", tuf.root_file(&[&old[0], &old[1], &tuf.root_keys[0]]));
        (tuf.root, tuf.root_keys) = (1, old);
    };
    Kept::new().await.refuses("refused", "threshold not met for role root: 1/2", careless).await;
}

#[tokio::test]
async fn an_expired_timestamp_is_refused() {
    let expire = |tuf: &mut Tuf| {
        let expires = std::mem::replace(&mut tuf.expires, Timestamp::now() - SignedDuration::from_secs(5));
        tuf.publish_root(&second());
        tuf.expires = expires;
    };
    Kept::new().await.refuses("outdated", "timestamp metadata expired at", expire).await;
}

#[tokio::test]
async fn an_older_timestamp_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("timestamp.json");
    kept.tuf.publish();
    kept.keeper.refresh().await.unwrap();
    kept.keeper.save().await;
    let words = "rollback detected for timestamp: trusted version 2 > new version 1";
    // After a restart as well.
    let mut reopened = kept.reopened();
    let newer = kept.tuf.files();
    kept.tuf.put("timestamp.json", old.clone());
    assert_eq!(reopened.refresh().await, Err(RefreshFault::Refused(words.to_owned())));
    kept.tuf.restore(newer);
    kept.refuses("refused", words, |tuf| tuf.put("timestamp.json", old)).await;
}

#[tokio::test]
async fn a_timestamp_of_an_older_snapshot_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("1.snapshot.json");
    kept.tuf.publish();
    kept.keeper.refresh().await.unwrap();
    kept.keeper.save().await;
    let roll_back = |tuf: &mut Tuf| tuf.publish_timestamp(&old, 1);
    kept.refuses("refused", "rollback detected for snapshot (via timestamp)", roll_back).await;
}

#[tokio::test]
async fn a_snapshot_of_older_targets_is_refused() {
    let mut kept = Kept::new().await;
    let old = kept.tuf.bytes("1.targets.json");
    kept.tuf.publish();
    kept.keeper.refresh().await.unwrap();
    kept.keeper.save().await;
    let roll_back = |tuf: &mut Tuf| tuf.publish_snapshot(&old, 1);
    kept.refuses("refused", "rollback detected for targets.json (via snapshot)", roll_back).await;
}

#[tokio::test]
async fn a_snapshot_that_its_timestamp_does_not_pin_is_refused_and_the_disk_keeps_what_fits_together() {
    let swap = |tuf: &mut Tuf| {
        tuf.publish_root(&second());
        let mut snapshot = tuf.bytes("2.snapshot.json");
        snapshot.push(b' ');
        tuf.put("2.snapshot.json", snapshot);
    };
    Kept::new().await.refuses("refused", "snapshot.json: length", swap).await;
}

#[tokio::test]
async fn metadata_by_another_key_is_refused() {
    let forge = |tuf: &mut Tuf| {
        let own = std::mem::replace(&mut tuf.online, KeyPair::generate_ecdsa_p256().unwrap());
        tuf.publish_root(&second());
        tuf.online = own;
    };
    Kept::new().await.refuses("refused", "threshold not met for role timestamp: 0/1", forge).await;
}

#[tokio::test]
async fn a_target_with_another_hash_or_length_is_refused() {
    let path = |tuf: &Tuf| {
        let hash = pin(&tuf.content["trusted_root.json"])["hashes"]["sha256"].as_str().unwrap().to_owned();
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
    kept.refuses("refused", "sha256 mismatch", |tuf| replaced(tuf, &|bytes| bytes[0] = b' ')).await;
    let kept = Kept::new().await;
    kept.refuses("refused", "length", |tuf| replaced(tuf, &|bytes| bytes.truncate(bytes.len() - 1))).await;
    let kept = Kept::new().await;
    kept.refuses("refused", "longer than", |tuf| replaced(tuf, &|bytes| bytes.push(b' '))).await;
}

#[tokio::test]
async fn a_target_that_is_too_long_is_not_even_fetched() {
    let bloat = |tuf: &mut Tuf| {
        let pin = json!({"length": (1 << 20) + 1, "hashes": {"sha256": "00".repeat(32)}});
        tuf.publish_targets([("trusted_root.json".to_owned(), pin)].into());
    };
    Kept::new().await.refuses("refused", "exceeds configured max 1048576", bloat).await;
}

#[tokio::test]
async fn a_targets_path_or_hash_leads_nowhere_else() {
    for path in ["../trusted_root.json", "/etc/trusted_root.json", "a/../trusted_root.json", "..%2ftrusted_root.json"] {
        let kept = Kept::new().await;
        let stray = |tuf: &mut Tuf| {
            tuf.put("targets/trusted_root.json", second().into_bytes());
            tuf.publish_targets([(path.to_owned(), pin(second().as_bytes()))].into());
        };
        kept.refuses("refused", "is not listed by any trusted targets role", stray).await;
    }
    let lead_out = |tuf: &mut Tuf| {
        // The client puts the hash in front of the name.
        let pin = json!({"length": second().len(), "hashes": {"sha256": "../../elsewhere/x"}});
        tuf.publish_targets([("trusted_root.json".to_owned(), pin)].into());
    };
    Kept::new().await.refuses("refused", "leads out of the repository", lead_out).await;
}

#[tokio::test]
async fn only_the_repository_is_asked_and_only_one_file_is_written() {
    let mut kept = Kept::new().await;
    kept.tuf.asked();
    let pin = json!({"length": 1, "hashes": {"sha256": "../../elsewhere/x"}});
    kept.tuf.publish_targets([("trusted_root.json".to_owned(), pin)].into());
    kept.keeper.refresh().await.unwrap_err();
    let asked = kept.tuf.asked();
    assert!(asked.iter().all(|path| path.starts_with("/repository/")), "{asked:?}");
    let written: Vec<_> = fs::read_dir(kept.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(written, ["corp.json"]);
    // No name leads out of the folder.
    let deep = kept.folder.path().join("a/b");
    let name = "../../x/..";
    let mut keeper = RootKeeper::open(name, &kept.tuf.source(), Some(&deep), kept.metrics.clone()).unwrap().unwrap();
    kept.tuf.publish_root(&second());
    keeper.refresh().await.unwrap();
    keeper.save().await;
    let written: Vec<_> = fs::read_dir(deep).unwrap().map(|entry| entry.unwrap().file_name()).collect();
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
    let impatient = kept.tuf.options().with_patience(Duration::from_millis(300));
    let mut keeper = open(&RootSource::Tuf(impatient), kept.folder.path(), &kept.metrics);
    for path in ["2.root.json", "timestamp.json"] {
        let before = kept.tuf.answer(path, Answer::Silence).unwrap_or(Answer::Status(404, ""));
        let fault = keeper.refresh().await.unwrap_err();
        assert_eq!(fault, RefreshFault::Unreachable("not done within 300ms".to_owned()), "{path}");
        kept.has(&keeper, FIRST);
        kept.tuf.answer(path, before);
    }
    kept.tuf.publish_root(&second());
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Changed));
}

#[tokio::test]
async fn an_error_or_a_redirect_is_no_answer() {
    let words = "fetch timestamp.json: HTTP 500";
    let broken = |tuf: &mut Tuf| drop(tuf.answer("timestamp.json", Answer::Status(500, "")));
    Kept::new().await.refuses("unreachable", words, broken).await;
    let moved = |tuf: &mut Tuf| drop(tuf.answer("timestamp.json", Answer::Status(302, "/repository/1.root.json")));
    Kept::new().await.refuses("unreachable", "fetch timestamp.json: HTTP 302", moved).await;
    let gone = |tuf: &mut Tuf| drop(tuf.answer("timestamp.json", Answer::Status(404, "")));
    Kept::new().await.refuses("unreachable", "timestamp.json not found", gone).await;
}

#[tokio::test]
async fn what_is_signed_but_no_trusted_root_is_refused() {
    for (text, words) in [
        ("{}", "no trusted root"),
        (r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.1+json","tlogs":[],"tlogs":[]}"#, "duplicate"),
    ] {
        Kept::new().await.refuses("unusable", words, |tuf| tuf.publish_root(text)).await;
    }
}

/// The freeze: somebody goes on serving what was good once.
#[tokio::test]
async fn a_repository_that_stands_still_is_believed_until_its_metadata_expires_and_not_longer() {
    let mut kept = Kept::new().await;
    kept.tuf.expires = Timestamp::now() + SignedDuration::from_secs(3);
    kept.tuf.publish();
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Unchanged));
    kept.keeper.save().await;
    let expires = kept.keeper.root().expires().unwrap();
    let fault = wait_until_outdated(&mut kept.keeper).await;
    assert!(fault.to_string().contains(&format!("timestamp metadata expired at {expires}")), "{fault}");

    // What the root accepted can still be told from what it would have to accept anew.
    let expired = format!("trust root corp expired at {expires}");
    for root in [kept.keeper.root(), kept.reopened().root()] {
        assert_eq!(root.revision(), revision(FIRST).revision());
        assert_eq!(root.trouble(Timestamp::now()).map(|trouble| trouble.to_string()), Some(expired.clone()));
        assert_eq!(root.trouble(expires), None);
    }

    kept.tuf.expires = Timestamp::now() + SignedDuration::from_hours(1);
    kept.tuf.publish();
    assert_eq!(kept.keeper.refresh().await, Ok(Refreshed::Unchanged));
    kept.has(&kept.keeper, FIRST);
}

#[tokio::test]
async fn a_file_on_disk_that_somebody_changed_counts_for_nothing() {
    let kept = Kept::new().await;
    let file = kept.folder.path().join("corp.json");
    let text = fs::read_to_string(&file).unwrap();
    let evil = text.replace("https://rekor.sigstore.dev", "https://rekor.evil.example");
    assert_ne!(evil, text, "the target is in it");
    for changed in [evil, text.replace("snapshot", "snapshut"), text[..text.len() / 2].to_owned(), String::new()] {
        fs::write(&file, changed).unwrap();
        assert!(kept.reopened().root().is_pending());
    }
    fs::write(&file, text).unwrap();
    kept.has(&kept.reopened(), FIRST);
    // It is of another repository now.
    let other = Tuf::start(FIRST).await;
    let mut keeper = open(&other.source(), kept.folder.path(), &kept.metrics);
    assert!(keeper.root().is_pending());
    assert_eq!(keeper.refresh().await, Ok(Refreshed::Changed));
}

#[tokio::test]
async fn without_a_disk_that_can_be_written_roots_live_in_memory() {
    let mut tuf = Tuf::start(FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, "").unwrap();
    let metrics = Metrics::new().unwrap();
    for folder in [None, Some(no_folder.as_path())] {
        let mut keeper = RootKeeper::open("corp", &tuf.source(), folder, metrics.clone()).unwrap().unwrap();
        assert!(keeper.root().is_pending());
        assert_eq!(keeper.refresh().await, Ok(Refreshed::Changed));
        keeper.save().await;
        tuf.publish_root(&second());
        assert_eq!(keeper.refresh().await, Ok(Refreshed::Changed));
        keeper.save().await;
        assert_eq!(keeper.root().revision(), revision(&second()).revision());
        tuf.publish_root(FIRST);
    }
}

#[tokio::test]
async fn live_roots_follow_their_repositories_and_the_configuration() {
    let mut tuf = Tuf::start(FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let mut roots = LiveRoots::new(Some(folder.path().to_owned()), metrics.clone());
    let file = RootSource::File(FIRST.to_owned());
    let sources = [("corp".to_owned(), tuf.source()), ("file".to_owned(), file.clone())].into();
    let before = roots.current("corp", &tuf.source()).unwrap();
    assert!(before.is_pending());
    roots.adopt(&sources).unwrap();
    roots.settled(Duration::from_secs(30)).await;
    changed(&mut roots).await;
    let first = roots.current("corp", &tuf.source()).unwrap();
    assert_eq!(first.revision(), revision(FIRST).revision());
    assert_eq!(roots.current("file", &file).unwrap().expires(), None);

    tuf.publish_root(&second());
    changed(&mut roots).await;
    let held = roots.current("corp", &tuf.source()).unwrap();
    assert_eq!(held.revision(), revision(&second()).revision());

    // Asked otherwise from now on: who holds the same root shares its end.
    let other = RootSource::Tuf(tuf.options().with_patience(Duration::from_secs(21)));
    roots.adopt(&[("corp".to_owned(), other.clone())].into()).unwrap();
    let until = held.expires();
    tuf.expires = Timestamp::now() + SignedDuration::from_hours(100);
    tuf.publish();
    let prolonged = async {
        while held.expires() == until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), prolonged).await.unwrap();

    let current = roots.current("corp", &other).unwrap();
    assert_eq!((current.revision(), current.is_pending()), (held.revision(), false), "it never went back");

    // Gone from the configuration, and back: it is as it was on disk.
    let written = async {
        while open(&other, folder.path(), &Metrics::new().unwrap()).root().revision() != held.revision() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.unwrap();
    roots.adopt(&[].into()).unwrap();
    assert!(metrics.trust_root_expires.remove_label_values(&["corp"]).is_err(), "its end is no longer told");
    assert_eq!(roots.current("corp", &other).unwrap().revision(), revision(&second()).revision());
}

#[tokio::test]
async fn what_is_only_in_memory_outlives_another_way_of_asking_for_it() {
    let tuf = Tuf::start(FIRST).await;
    let mut roots = LiveRoots::new(None, Metrics::new().unwrap());
    roots.adopt(&[("corp".to_owned(), tuf.source())].into()).unwrap();
    roots.settled(Duration::from_secs(30)).await;
    tuf.answer("timestamp.json", Answer::Status(500, ""));
    let other = RootSource::Tuf(tuf.options().with_patience(Duration::from_secs(21)));
    assert_eq!(roots.current("corp", &other).unwrap().revision(), revision(FIRST).revision());
    roots.adopt(&[("corp".to_owned(), other.clone())].into()).unwrap();
    assert_eq!(roots.current("corp", &other).unwrap().revision(), revision(FIRST).revision());
    // Of another repository it proves nothing.
    let foreign = Tuf::start(FIRST).await.source();
    assert!(roots.current("corp", &foreign).unwrap().is_pending());
}

#[test]
fn every_root_of_the_conformance_suite_is_read() {
    let Some(folder) = fixture("sigstore-conformance/bundle-verify", "the conformance suite's roots") else { return };
    let mut read = 0;
    let mut refused = Vec::new();
    for case in fs::read_dir(folder).unwrap() {
        let case = case.unwrap();
        let Ok(text) = fs::read_to_string(case.path().join("trusted_root.json")) else { continue };
        match TrustRoot::from_json("test", &text) {
            Ok(_) => read += 1,
            Err(_) => refused.push(case.file_name().into_string().unwrap()),
        }
    }
    assert_eq!(refused, ["trust-root-tlog-missing-validity-start_fail"]);
    assert!(read > 30, "{read}");
}
