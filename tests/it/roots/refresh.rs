//! All roots of a configuration, which changes.

use std::time::Duration;

use bundlegate::{
    metrics::Metrics,
    verify::{RootSource, TrustRootMetrics, TrustRoots},
};
use jiff::{SignedDuration, Timestamp};
use sigstore_verify::trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT as FIRST;

use super::{open, revision, second, unread_metrics};
use crate::{
    gateway::{PATIENCE, eventually, sample},
    shared::poll_until,
    tuf::{Answer, Tuf},
};

async fn changed(roots: &mut TrustRoots) {
    tokio::time::timeout(PATIENCE, roots.changed())
        .await
        .unwrap();
}

#[tokio::test]
async fn live_roots_follow_their_repositories_and_the_configuration() {
    let mut tuf = Tuf::start(FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let registry = Metrics::new();
    let metrics = TrustRootMetrics::new(&registry).unwrap();
    let mut roots = TrustRoots::new(Some(folder.path().to_owned()), metrics);
    let file = RootSource::File(FIRST.to_owned());
    let sources = [
        ("corp".to_owned(), tuf.source()),
        ("file".to_owned(), file.clone()),
    ]
    .into();
    let before = roots.current("corp", &tuf.source()).unwrap();
    assert!(before.is_pending());
    roots.set_sources(&sources).unwrap();
    roots.wait_until_fetched(PATIENCE).await;
    changed(&mut roots).await;
    let first = roots.current("corp", &tuf.source()).unwrap();
    assert_eq!(first.revision(), revision(FIRST).revision());
    assert_eq!(roots.current("file", &file).unwrap().expires(), None);

    tuf.publish_root(&second());
    changed(&mut roots).await;
    let held = roots.current("corp", &tuf.source()).unwrap();
    assert_eq!(held.revision(), revision(&second()).revision());

    // Asked otherwise from now on: who holds the same root shares its end.
    let other = RootSource::Tuf(tuf.options().with_timeout(Duration::from_secs(21)));
    roots
        .set_sources(&[("corp".to_owned(), other.clone())].into())
        .unwrap();
    let until = held.expires();
    tuf.expires = Timestamp::now() + SignedDuration::from_hours(100);
    tuf.publish();
    eventually("the root lasts longer", || held.expires() != until).await;

    let current = roots.current("corp", &other).unwrap();
    assert_eq!(
        (current.revision(), current.is_pending()),
        (held.revision(), false),
        "it never went back"
    );

    // Gone from the configuration, and back: it is as it was on disk.
    poll_until("the root is on disk", async || {
        let stored = open(&other, folder.path(), &unread_metrics())
            .root()
            .revision()
            .clone();
        (stored == *held.revision()).then_some(())
    })
    .await;
    let series = r#"bundlegate_trust_root_expires_timestamp_seconds{root="corp"}"#;
    assert!(sample(&registry, series).is_some());
    roots.set_sources(&[].into()).unwrap();
    assert_eq!(sample(&registry, series), None, "its end is no longer told");
    assert_eq!(
        roots.current("corp", &other).unwrap().revision(),
        revision(&second()).revision()
    );
}

#[tokio::test]
async fn what_is_only_in_memory_outlives_another_way_of_asking_for_it() {
    let tuf = Tuf::start(FIRST).await;
    let mut roots = TrustRoots::new(None, unread_metrics());
    roots
        .set_sources(&[("corp".to_owned(), tuf.source())].into())
        .unwrap();
    roots.wait_until_fetched(PATIENCE).await;
    tuf.answer("timestamp.json", Answer::Status(500, ""));
    let other = RootSource::Tuf(tuf.options().with_timeout(Duration::from_secs(21)));
    assert_eq!(
        roots.current("corp", &other).unwrap().revision(),
        revision(FIRST).revision()
    );
    roots
        .set_sources(&[("corp".to_owned(), other.clone())].into())
        .unwrap();
    assert_eq!(
        roots.current("corp", &other).unwrap().revision(),
        revision(FIRST).revision()
    );
    // Of another repository it proves nothing.
    let foreign = Tuf::start(FIRST).await.source();
    assert!(roots.current("corp", &foreign).unwrap().is_pending());
}

#[tokio::test]
async fn the_status_of_a_root_has_its_source_its_expiry_and_how_the_last_refresh_ended() {
    let tuf = Tuf::start(FIRST).await;
    let files = tuf.files();
    tuf.answer("timestamp.json", Answer::Status(500, ""));
    let mut roots = TrustRoots::new(None, unread_metrics());
    let statuses = roots.statuses();
    let sources = [
        ("corp".to_owned(), tuf.source()),
        ("file".to_owned(), RootSource::File(FIRST.to_owned())),
    ];
    roots.set_sources(&sources.into()).unwrap();
    let status = |name: &str| statuses.borrow()[name].clone();
    let file = status("file");
    assert_eq!(
        (file.source(), file.url(), file.expires()),
        ("trusted_root", None, None)
    );
    assert_eq!(file.revision(), Some(revision(FIRST).revision()));

    eventually("a failure", || status("corp").last_failure().is_some()).await;
    let corp = status("corp");
    assert!(corp.is_pending() && corp.revision().is_none(), "{corp:?}");
    assert_eq!(corp.source(), "tuf");
    assert_eq!(corp.url(), Some(format!("{}/", tuf.url()).as_str()));
    assert_eq!(corp.last_refresh(), None);
    let failure = corp.last_failure().unwrap();
    assert_eq!(failure.reason, "unreachable");
    assert!(failure.message.contains("500"), "{failure:?}");

    tuf.restore(files);
    eventually("a refresh", || status("corp").last_refresh().is_some()).await;
    let corp = status("corp");
    assert_eq!(corp.last_failure(), None);
    assert_eq!(
        corp.expires().map(Timestamp::as_second),
        Some(tuf.expires.as_second())
    );
    assert_eq!(corp.revision(), Some(revision(FIRST).revision()));

    roots.set_sources(&[].into()).unwrap();
    assert!(statuses.borrow().is_empty());
}
