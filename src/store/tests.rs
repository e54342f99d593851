use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{Duration, timeout},
};

use super::{blob_store::IDLE_SHARE, disk::Disk, memory::Budget, record::Record, spool::Spool, *};
use crate::{
    metrics::Metrics,
    oci::{Blob, BlobWriter, Descriptor, Digest, Manifest, media_type},
};

const BUNDLE: &[u8] = b"a bundle";
const EARLIER: Timestamp = Timestamp::constant(1_700_000_000, 0);

fn open(directory: &Path, disk: u64, memory: u64) -> Store {
    Store::open(Options { directory: Some(directory.to_owned()), disk, memory }, Metrics::new().unwrap())
}

async fn keep(store: &Store, name: &str, bundle: &'static [u8]) -> bool {
    let (manifest, layer) = artifact(bundle);
    let (manifest, layer, evidence) = (&manifest, &layer, Bytes::from_static(b"[]"));
    let (reference, identity, checked) = ("r.example/a:live", "me", Some(EARLIER));
    let (accepted, history) = (accepted("first"), Bytes::from(format!("history of {name}")));
    store.keep(Served { name, reference, identity, manifest, layer, evidence, checked, accepted, history }).await
}

fn accepted(policy: &str) -> Acceptance {
    Acceptance { policy: policy.to_owned(), roots: vec!["sha256:a".to_owned(), "sha256:b".to_owned()] }
}

fn artifact(bundle: &'static [u8]) -> (Manifest, Blob) {
    let descriptor = Descriptor::of(media_type::LAYER_TAR_GZIP, bundle);
    let layer = Blob::check(&descriptor, Bytes::from_static(bundle)).unwrap();
    let document = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [descriptor],
    });
    (Manifest::parse(document.to_string().into(), None, 1 << 20).unwrap(), layer)
}

async fn recall(store: &Store, name: &str, identity: &str) -> Option<Recalled> {
    store.recall(name, "r.example/a:live", identity, 1 << 20).await
}

#[tokio::test]
async fn what_was_kept_is_recalled_by_the_next_process_and_only_for_the_same_credential() {
    let folder = tempfile::tempdir().unwrap();
    assert!(keep(&open(folder.path(), 1 << 20, 1 << 20), "a", BUNDLE).await);
    // No memory at all: the bytes come from a file without a name.
    let store = open(folder.path(), 1 << 20, 0);
    let recalled = recall(&store, "a", "me").await.unwrap();
    assert_eq!(recalled.layer.read_at(0, 100).unwrap(), BUNDLE);
    assert!(recall(&store, "a", "somebody else").await.is_none());
    assert!(recall(&store, "b", "me").await.is_none());
    store.forget("a", "r.example/a:live", Bytes::from_static(b"the end")).await;
    assert!(recall(&store, "a", "me").await.is_none());
}

#[tokio::test]
async fn when_and_by_what_a_bundle_was_last_found_right_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    keep(&store, "a", BUNDLE).await;
    keep(&store, "b", BUNDLE).await;
    let digest = artifact(BUNDLE).0.digest().clone();
    let checked = async |store: &Store, name| recall(store, name, "me").await.unwrap().checked;
    assert_eq!(checked(&store, "a").await, Some(EARLIER));

    let later = Timestamp::new(1_700_000_001, 234_000_000).unwrap();
    store.confirm("a", "r.example/a:live", &digest, Some(later), accepted("second")).await;
    // What was confirmed is not what is noted.
    store.confirm("b", "r.example/a:live", &Digest::sha256(b"another"), Some(later), accepted("second")).await;
    store.confirm("c", "r.example/a:live", &digest, Some(later), accepted("second")).await;
    drop(store);
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(checked(&store, "a").await, Some(later));
    assert_eq!(checked(&store, "b").await, Some(EARLIER));
    for (name, policy) in [("a", "second"), ("b", "first")] {
        assert_eq!(recall(&store, name, "me").await.unwrap().accepted, Some(accepted(policy)), "{name}");
    }
    assert!(recall(&store, "c", "me").await.is_none());

    store.confirm("a", "r.example/a:live", &digest, None, Acceptance::default()).await;
    assert_eq!(checked(&store, "a").await, None, "as in a record of a version that noted no time");
}

#[tokio::test]
async fn a_flipped_byte_on_disk_is_noticed_and_the_blob_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    keep(&store, "a", BUNDLE).await;
    let path = folder.path().join("blobs/sha256").join(Digest::sha256(BUNDLE).hex());
    fs::write(&path, b"a bundlE").unwrap();
    assert!(recall(&store, "a", "me").await.is_none());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_folder_in_use_or_not_a_cache_costs_persistence_only() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), 1 << 20, 1 << 20);
    assert!(first.is_persistent());
    assert!(!open(folder.path(), 1 << 20, 1 << 20).is_persistent());

    let foreign = tempfile::tempdir().unwrap();
    let layout = crate::oci::Layout::create(foreign.path()).unwrap();
    let digest = layout.write_blob(b"somebody's").unwrap();
    let mut index = layout.index().unwrap();
    index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, b"somebody's"));
    layout.write_index(&index).unwrap();
    assert!(!open(foreign.path(), 1 << 20, 1 << 20).is_persistent());
    assert!(layout.blob_path(&digest).exists(), "nothing of theirs is swept away");
    assert!(!foreign.path().join(".lock").exists(), "nor is anything added");
}

/// The folder of somebody else, by a slip in the configuration.
#[tokio::test]
async fn a_folder_with_other_things_in_it_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(folder.path().join(".tmp-theirs"), b"x").unwrap();
    assert!(!open(folder.path(), 1 << 20, 1 << 20).is_persistent());
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".tmp-theirs"]);
    assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o777);

    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("lost+found")).unwrap();
    assert!(open(volume.path(), 1 << 20, 1 << 20).is_persistent());
}

/// Bundles beyond `cache.memory` lie in files without a name: those of yesterday must not
/// stay open until the disk is full.
#[tokio::test]
async fn blobs_in_files_are_let_go_when_nobody_serves_them() {
    let store = Store::open(Options { directory: None, disk: 0, memory: 8 }, Metrics::new().unwrap());
    for version in 0..3 {
        let bytes = Bytes::from(vec![version; 100]);
        let mut writer = BlobWriter::in_file(Descriptor::of("", &bytes), tempfile::tempfile().unwrap());
        writer.write(&bytes).unwrap();
        let blob = writer.finish(Bytes::from).unwrap();
        store.blobs.insert(("r.example/a".into(), blob.digest().clone()), blob).await;
    }
    store.blobs.run_pending_tasks().await;
    let sizes: Vec<_> = store.blobs.iter().map(|(_, blob)| blob.size()).collect();
    assert!(sizes.iter().sum::<u64>() <= 8 / IDLE_SHARE, "{sizes:?}");
}

#[tokio::test]
async fn more_than_the_disk_may_hold_is_not_written_and_leftovers_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), 4, 1 << 20));
    fs::write(folder.path().join(".tmp-half"), b"x").unwrap();
    let store = open(folder.path(), 4, 1 << 20);
    assert!(!folder.path().join(".tmp-half").exists());
    assert!(!keep(&store, "a", BUNDLE).await);
    assert!(recall(&store, "a", "me").await.is_none());
}

#[tokio::test]
async fn a_history_outlives_the_bundle_the_process_and_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let history = async |store: &Store, name| store.history(name, "r.example/a:live", 1 << 20).await;
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(history(&store, "a").await, None);
    keep(&store, "a", BUNDLE).await;
    drop(store);
    let store = open(folder.path(), 4, 1 << 20);
    assert_eq!(history(&store, "a").await.unwrap(), "history of a");
    assert_eq!(store.history("a", "r.example/a:other", 1 << 20).await, None, "another reference, another history");
    store.forget("a", "r.example/a:live", Bytes::from_static(b"the end")).await;
    assert!(!keep(&store, "b", BUNDLE).await, "there is no room");
    drop(store);
    let store = open(folder.path(), 4, 1 << 20);
    assert_eq!(history(&store, "a").await.unwrap(), "the end");
    assert_eq!(history(&store, "b").await.unwrap(), "history of b");
    assert!(recall(&store, "a", "me").await.is_none() && recall(&store, "b", "me").await.is_none());
}

#[tokio::test]
async fn histories_that_nobody_asks_for_make_room_after_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    keep(&open(folder.path(), 1 << 20, 1 << 20), "old", BUNDLE).await;
    let blobs = || fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs(), 4, "bundle, manifest, evidence, history");
    // Room for one bundle with its history, and for the other history.
    let (manifest, layer) = artifact(BUNDLE);
    let size = layer.size() + manifest.raw().len() as u64 + 2 + "history of old".len() as u64;
    let store = open(folder.path(), size, 1 << 20);
    assert!(keep(&store, "new", BUNDLE).await);
    assert!(store.history("old", "r.example/a:live", 1 << 20).await.is_some());
    // Not a byte more than a bundle.
    let tight = tempfile::tempdir().unwrap();
    keep(&open(tight.path(), 1 << 20, 1 << 20), "old", BUNDLE).await;
    let store = open(tight.path(), size - "history of old".len() as u64, 1 << 20);
    assert!(keep(&store, "new", BUNDLE).await);
    assert!(store.history("old", "r.example/a:live", 1 << 20).await.is_none());
}

fn disk(folder: &Path) -> Disk {
    Disk::open(folder, 1 << 20, prometheus::IntGauge::new("g", "g").unwrap()).unwrap()
}

fn record(number: usize) -> Record {
    let (manifest, layer) = artifact(BUNDLE);
    Record {
        bundle: format!("bundle-{number}"),
        reference: "r.example/a:live".to_owned(),
        identity: "me".to_owned(),
        manifest: manifest.digest().clone(),
        manifest_size: manifest.raw().len() as u64,
        layer: layer.digest().clone(),
        layer_size: layer.size(),
        evidence: Digest::sha256(b"[]"),
        checked: None,
        accepted: None,
    }
}

fn put(disk: &Disk, number: usize) -> u64 {
    let (manifest, layer) = artifact(BUNDLE);
    let history = format!("history of {number}");
    disk.keep(record(number), &layer, manifest.raw(), b"[]", history.as_bytes()).unwrap()
}

fn entries(folder: &Path) -> usize {
    crate::oci::Layout::open(folder).unwrap().index().unwrap().manifests.len()
}

fn blobs(folder: &Path) -> usize {
    fs::read_dir(folder.join("blobs/sha256")).unwrap().count()
}

/// With a write of the whole index for each change, n changes cost n times n.
#[test]
fn any_number_of_changes_are_one_write_of_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    for number in 0..100 {
        put(&disk, number);
    }
    assert_eq!(entries(folder.path()), 0, "each was written for itself");
    assert_eq!(disk.write().unwrap(), disk.generation());
    assert_eq!(entries(folder.path()), 200, "bundles and histories");
    assert_eq!(blobs(folder.path()), 103, "what they have in common lies there once");
    for number in 0..50 {
        disk.forget(&record(number).key(), b"").unwrap();
    }
    disk.write().unwrap();
    assert_eq!((entries(folder.path()), blobs(folder.path())), (100, 53));
}

#[test]
fn a_crash_before_the_index_is_written_loses_only_what_nobody_was_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let first = disk(folder.path());
    put(&first, 1);
    first.write().unwrap();
    put(&first, 2);
    drop(first);
    let second = disk(folder.path());
    let spool = Spool { budget: Budget::new(1 << 20, prometheus::IntGauge::new("g", "g").unwrap()), folder: None };
    let recalled = |number| second.recall(&record(number).key(), "me", 1 << 20, &spool).unwrap();
    assert!(recalled(1).is_some() && recalled(2).is_none());
    assert_eq!(blobs(folder.path()), 4, "what nothing names is gone");
}

/// What a watcher withdraws as it ends must not come back.
#[tokio::test]
async fn what_was_changed_is_written_though_nobody_waits_for_it_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    keep(&store, "a", BUNDLE).await;
    let forget = store.forget("a", "r.example/a:live", Bytes::from_static(b"the end"));
    // It has begun, and is given up.
    assert!(timeout(Duration::from_millis(1), forget).await.is_err() || entries(folder.path()) == 1);
    drop(store);
    let lock = fs::File::open(folder.path().join(".lock")).unwrap();
    spawn_blocking(move || lock.lock()).await.unwrap().unwrap();
    assert_eq!(entries(folder.path()), 1, "only the history");
}

/// Whoever waits is told when the write is over that its change was part of.
#[tokio::test]
async fn many_who_keep_something_at_once_are_all_told_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    let names: Vec<_> = (0..100).map(|number| format!("bundle-{number}")).collect();
    let (store, folder) = (&store, folder.path());
    let kept = futures_util::future::join_all(names.iter().map(|name| async move {
        let kept = keep(store, name, BUNDLE).await;
        let index = fs::read_to_string(folder.join("index.json")).unwrap();
        kept && index.contains(&format!("\"{name}\""))
    }));
    assert!(kept.await.into_iter().all(|kept| kept));
}

#[tokio::test]
async fn an_index_that_cannot_be_written_is_told_to_all_and_written_when_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    let index = folder.path().join("index.json");
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert!(!keep(&store, "a", BUNDLE).await);
    fs::remove_dir(&index).unwrap();
    assert!(keep(&store, "b", BUNDLE).await);
    drop(store);
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(recall(&store, "a", "me").await.is_some() && recall(&store, "b", "me").await.is_some());
}

/// Everything that a folder says of itself, to compare it with later.
fn state(folder: &Path) -> (u32, Vec<String>) {
    let listed = Command::new("ls").args(["-lAR", "--time-style=full-iso"]).arg(folder).output().unwrap();
    let mode = fs::metadata(folder).unwrap().permissions().mode() & 0o7777;
    (mode, String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_lock_file_makes_no_folder_a_cache() {
    type Fill = fn(&Path);
    let foreign: [(&str, Fill); 7] = [
        ("a lock file alone", |_| {}),
        ("other files", |folder| fs::write(folder.join("theirs"), "x").unwrap()),
        ("a layout without an entry", |folder| {
            crate::oci::Layout::create(folder).unwrap().write_blob(b"theirs").unwrap();
        }),
        ("an empty layout beside other files", |folder| {
            crate::oci::Layout::create(folder).unwrap();
            fs::write(folder.join("theirs"), "x").unwrap();
        }),
        ("a layout with an entry", |folder| {
            let layout = crate::oci::Layout::create(folder).unwrap();
            layout.write_blob(b"theirs").unwrap();
            let set = |index: &mut crate::oci::LayoutIndex| index.set("v1", Descriptor::of("", b"theirs"));
            layout.update_index(set).unwrap();
        }),
        ("an index that can't be read", |folder| {
            crate::oci::Layout::create(folder).unwrap().write_blob(b"theirs").unwrap();
            fs::write(folder.join("index.json"), "{").unwrap();
        }),
        ("blobs of something else", |folder| {
            fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
            fs::write(folder.join("blobs/sha256").join(Digest::sha256(b"x").hex()), "x").unwrap();
        }),
    ];
    for (what, fill) in foreign {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o775)).unwrap();
        fs::write(folder.path().join(".lock"), "").unwrap();
        fill(folder.path());
        let before = state(folder.path());
        assert!(!open(folder.path(), 1 << 20, 1 << 20).is_persistent(), "{what}");
        assert_eq!(state(folder.path()), before, "{what}");
    }
}

/// As version 0.1.0 of before the index was held in memory has written it.
#[tokio::test]
async fn a_cache_of_an_earlier_version_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, layer) = artifact(BUNDLE);
    let layout = crate::oci::Layout::create(folder.path()).unwrap();
    layout.store_blob(&layer).unwrap();
    [manifest.raw(), &b"[]"[..], b"history of a"].iter().for_each(|bytes| drop(layout.write_blob(bytes)));
    let (digest, size) = (manifest.digest(), manifest.raw().len());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
        {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"annotations":{{
        "dev.bundlegate.bundle":"a","dev.bundlegate.evidence":"{}","dev.bundlegate.identity":"me",
        "dev.bundlegate.layer":"{}","dev.bundlegate.layer.size":"{}","dev.bundlegate.reference":"r.example/a:live"}}}},
        {{"mediaType":"application/vnd.bundlegate.history.v1+json","digest":"{}","size":12,"annotations":{{
        "dev.bundlegate.bundle":"a","dev.bundlegate.reference":"r.example/a:live"}}}}]}}"#,
        Digest::sha256(b"[]"),
        layer.digest(),
        layer.size(),
        Digest::sha256(b"history of a"),
    );
    fs::write(folder.path().join("index.json"), index).unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(store.is_persistent());
    assert_eq!(recall(&store, "a", "me").await.unwrap().digest, *digest);
    assert_eq!(store.history("a", "r.example/a:live", 1 << 20).await.unwrap(), "history of a");
    assert!(keep(&store, "b", b"another").await);
    drop(store);
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(recall(&store, "a", "me").await.is_some() && recall(&store, "b", "me").await.is_some());

    // One in which nothing was kept.
    let empty = tempfile::tempdir().unwrap();
    crate::oci::Layout::create(empty.path()).unwrap();
    fs::write(empty.path().join(".lock"), "").unwrap();
    fs::create_dir(empty.path().join("tuf")).unwrap();
    assert!(open(empty.path(), 1 << 20, 1 << 20).is_persistent());
}

#[tokio::test]
async fn a_cache_survives_the_end_of_the_process_at_any_point_of_its_making() {
    for files in [&["oci-layout"][..], &["oci-layout", ".lock"], &["oci-layout", ".lock", "blobs/sha256"]] {
        let (folder, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(open(whole.path(), 1 << 20, 1 << 20));
        for file in files {
            match whole.path().join(file) {
                path if path.is_dir() => fs::create_dir_all(folder.path().join(file)).unwrap(),
                path => drop(fs::copy(path, folder.path().join(file)).unwrap()),
            }
        }
        assert!(open(folder.path(), 1 << 20, 1 << 20).is_persistent(), "{files:?}");
    }
}

#[tokio::test]
async fn nothing_in_a_cache_makes_its_opening_wait_or_fail() {
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(keep(&store, "a", BUNDLE).await && keep(&store, "b", b"another").await);
    drop(store);
    let blobs = folder.path().join("blobs/sha256");
    let layer = blobs.join(Digest::sha256(BUNDLE).hex());
    fs::remove_file(&layer).unwrap();
    fifo(&layer);
    fs::create_dir(blobs.join(Digest::sha256(b"a folder").hex())).unwrap();
    symlink("/dev/zero", blobs.join(Digest::sha256(b"a device").hex())).unwrap();
    fs::create_dir(folder.path().join(".tmp-folder")).unwrap();
    fs::remove_file(folder.path().join("attempts.log")).unwrap();
    fifo(&folder.path().join("attempts.log"));
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(store.is_persistent());
    assert!(recall(&store, "a", "me").await.is_none());
    assert!(recall(&store, "b", "me").await.is_some());
    assert!(keep(&store, "a", BUNDLE).await);
    assert!(recall(&store, "a", "me").await.is_some(), "the pipe has been replaced");
    drop(store);
    // An index that is damaged costs what it named, not the cache.
    for damage in ["{", ""] {
        fs::write(folder.path().join("index.json"), damage).unwrap();
        assert!(open(folder.path(), 1 << 20, 1 << 20).is_persistent());
    }
    // Those who stand for the folder itself.
    for name in ["oci-layout", ".lock"] {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), 1 << 20, 1 << 20));
        fs::remove_file(folder.path().join(name)).unwrap();
        fifo(&folder.path().join(name));
        assert!(!open(folder.path(), 1 << 20, 1 << 20).is_persistent(), "{name}");
    }
}
