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

use super::{
    blob_store::IDLE_MEMORY_DIVISOR, disk::Disk, memory::Budget, record::Record, spool::Spool, *,
};
use crate::{
    metrics::Metrics,
    oci::{Blob, BlobWriter, Descriptor, Digest, Manifest, ManifestPath, media_type},
};

const BUNDLE: &[u8] = b"a bundle";
const EARLIER: Timestamp = Timestamp::constant(1_700_000_000, 0);

fn open(directory: &Path, disk: u64, memory: u64) -> Store {
    Store::open(
        Options {
            directory: Some(directory.to_owned()),
            disk,
            memory,
        },
        StoreMetrics::new(&Metrics::new()).unwrap(),
    )
}

/// Opens a folder again after its store was dropped. Its lock may be held a little longer: by a write
/// in the background, or by a child that another test has just forked and that has not called
/// `exec` yet.
fn reopen(directory: &Path, disk: u64, memory: u64) -> Store {
    let lock = fs::File::open(directory.join(".lock")).unwrap();
    lock.lock().unwrap();
    drop(lock);
    open(directory, disk, memory)
}

async fn put(store: &Store, name: &str, bundle: &'static [u8]) -> bool {
    let (manifest, layer) = artifact(bundle);
    let path = &ManifestPath::new(manifest.digest().clone(), manifest);
    let (layers, evidence) = (vec![layer], vec![Bytes::from_static(b"[]")]);
    let (reference, identity, checked) = ("r.example/a:live", "me", Some(EARLIER));
    let (accepted, history) = (accepted("first"), Bytes::from(format!("history of {name}")));
    store
        .put(StoredBundle {
            name,
            reference,
            identity,
            path,
            layers,
            evidence,
            checked,
            accepted,
            history,
        })
        .await
}

fn accepted(policy: &str) -> Acceptance {
    Acceptance {
        policy: policy.to_owned(),
        roots: vec!["sha256:a".to_owned(), "sha256:b".to_owned()],
    }
}

fn artifact(bundle: &'static [u8]) -> (Manifest, Blob) {
    let descriptor = Descriptor::of(media_type::LAYER_TAR_GZIP, bundle);
    let layer = Blob::check(&descriptor, Bytes::from_static(bundle)).unwrap();
    let document = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [descriptor],
    });
    (
        Manifest::parse(document.to_string().into(), None, 1 << 20).unwrap(),
        layer,
    )
}

async fn get(store: &Store, name: &str, identity: &str) -> Option<LoadedBundle> {
    store.get(name, "r.example/a:live", identity, 1 << 20).await
}

#[tokio::test]
async fn a_stored_bundle_is_loaded_by_the_next_process_for_the_same_identity_only() {
    let folder = tempfile::tempdir().unwrap();
    assert!(put(&open(folder.path(), 1 << 20, 1 << 20), "a", BUNDLE).await);
    // Without memory the bytes come from an unlinked file.
    let store = reopen(folder.path(), 1 << 20, 0);
    let loaded = get(&store, "a", "me").await.unwrap();
    assert_eq!(loaded.layers[0].read_at(0, 100).unwrap(), BUNDLE);
    assert!(get(&store, "a", "another identity").await.is_none());
    assert!(get(&store, "b", "me").await.is_none());
    store
        .remove("a", "r.example/a:live", Bytes::from_static(b"the end"))
        .await;
    assert!(get(&store, "a", "me").await.is_none());
}

#[tokio::test]
async fn the_last_confirmation_and_the_acceptance_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    put(&store, "a", BUNDLE).await;
    put(&store, "b", BUNDLE).await;
    let digest = artifact(BUNDLE).0.digest().clone();
    let checked = async |store: &Store, name| get(store, name, "me").await.unwrap().checked;
    assert_eq!(checked(&store, "a").await, Some(EARLIER));

    let later = Timestamp::new(1_700_000_001, 234_000_000).unwrap();
    store
        .touch(
            "a",
            "r.example/a:live",
            &digest,
            Some(later),
            accepted("second"),
        )
        .await;
    // Another manifest than the stored one was confirmed.
    store
        .touch(
            "b",
            "r.example/a:live",
            &Digest::sha256(b"another"),
            Some(later),
            accepted("second"),
        )
        .await;
    store
        .touch(
            "c",
            "r.example/a:live",
            &digest,
            Some(later),
            accepted("second"),
        )
        .await;
    drop(store);
    let store = reopen(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(checked(&store, "a").await, Some(later));
    assert_eq!(checked(&store, "b").await, Some(EARLIER));
    for (name, policy) in [("a", "second"), ("b", "first")] {
        assert_eq!(
            get(&store, name, "me").await.unwrap().accepted,
            Some(accepted(policy)),
            "{name}"
        );
    }
    assert!(get(&store, "c", "me").await.is_none());

    store
        .touch(
            "a",
            "r.example/a:live",
            &digest,
            None,
            Acceptance::default(),
        )
        .await;
    assert_eq!(
        checked(&store, "a").await,
        None,
        "as in a record of a version that stored no time"
    );
}

#[tokio::test]
async fn a_flipped_byte_on_disk_is_detected_and_the_blob_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    put(&store, "a", BUNDLE).await;
    let path = folder
        .path()
        .join("blobs/sha256")
        .join(Digest::sha256(BUNDLE).hex());
    fs::write(&path, b"a bundlE").unwrap();
    assert!(get(&store, "a", "me").await.is_none());
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
    let digest = layout.write_blob(b"foreign").unwrap();
    let mut index = layout.index().unwrap();
    index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, b"foreign"));
    layout.write_index(&index).unwrap();
    assert!(!open(foreign.path(), 1 << 20, 1 << 20).is_persistent());
    assert!(
        layout.blob_path(&digest).exists(),
        "foreign blobs are not removed"
    );
    assert!(!foreign.path().join(".lock").exists(), "nothing is added");
}

/// `cache.directory` names a foreign folder by mistake.
#[tokio::test]
async fn a_folder_with_foreign_files_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(folder.path().join(".tmp-theirs"), b"x").unwrap();
    assert!(!open(folder.path(), 1 << 20, 1 << 20).is_persistent());
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [".tmp-theirs"]);
    assert_eq!(
        fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777,
        0o777
    );

    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("lost+found")).unwrap();
    assert!(open(volume.path(), 1 << 20, 1 << 20).is_persistent());
}

/// Bundles beyond `cache.memory` are in unlinked files: former versions must not keep theirs open
/// until the disk is full.
#[tokio::test]
async fn blobs_in_files_are_evicted_when_they_are_not_served() {
    let store = Store::open(
        Options {
            directory: None,
            disk: 0,
            memory: 8,
        },
        StoreMetrics::new(&Metrics::new()).unwrap(),
    );
    for version in 0..3 {
        let bytes = Bytes::from(vec![version; 100]);
        let mut writer =
            BlobWriter::in_file(Descriptor::of("", &bytes), tempfile::tempfile().unwrap());
        writer.write(&bytes).unwrap();
        let blob = writer.finish(Bytes::from).unwrap();
        store
            .blobs()
            .insert(("r.example/a".into(), blob.digest().clone()), blob)
            .await;
    }
    store.blobs().run_pending_tasks().await;
    let sizes: Vec<_> = store.blobs().iter().map(|(_, blob)| blob.size()).collect();
    assert!(
        sizes.iter().sum::<u64>() <= 8 / IDLE_MEMORY_DIVISOR,
        "{sizes:?}"
    );
}

#[tokio::test]
async fn other_sizes_apply_to_what_is_stored_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4, 400);
    let (_, blob) = artifact(BUNDLE);
    let key = ("r.example/a".into(), blob.digest().clone());
    store.blobs().insert(key, blob).await;
    assert!(!put(&store, "a", BUNDLE).await);
    store.set_limits(1 << 20, 800).await;
    store.blobs().run_pending_tasks().await;
    assert_eq!(store.blobs().iter().count(), 1, "what was held is held");
    assert!(put(&store, "a", BUNDLE).await);
    store.set_limits(1 << 20, 8).await;
    store.blobs().run_pending_tasks().await;
    assert_eq!(store.blobs().iter().count(), 0);
}

#[tokio::test]
async fn a_bundle_beyond_cache_disk_is_not_written_and_leftovers_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), 4, 1 << 20));
    fs::write(folder.path().join(".tmp-half"), b"x").unwrap();
    let store = reopen(folder.path(), 4, 1 << 20);
    assert!(!folder.path().join(".tmp-half").exists());
    assert!(!put(&store, "a", BUNDLE).await);
    assert!(get(&store, "a", "me").await.is_none());
}

#[tokio::test]
async fn a_history_outlives_the_bundle_the_process_and_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let history =
        async |store: &Store, name| store.history(name, "r.example/a:live", 1 << 20).await;
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(history(&store, "a").await, None);
    put(&store, "a", BUNDLE).await;
    drop(store);
    let store = reopen(folder.path(), 4, 1 << 20);
    assert_eq!(history(&store, "a").await.unwrap(), "history of a");
    assert_eq!(
        store.history("a", "r.example/a:other", 1 << 20).await,
        None,
        "another reference, another history"
    );
    store
        .remove("a", "r.example/a:live", Bytes::from_static(b"the end"))
        .await;
    assert!(!put(&store, "b", BUNDLE).await, "there is no room");
    drop(store);
    let store = reopen(folder.path(), 4, 1 << 20);
    assert_eq!(history(&store, "a").await.unwrap(), "the end");
    assert_eq!(history(&store, "b").await.unwrap(), "history of b");
    assert!(get(&store, "a", "me").await.is_none() && get(&store, "b", "me").await.is_none());
}

#[tokio::test]
async fn unclaimed_histories_are_evicted_last() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), 1 << 20, 1 << 20), "old", BUNDLE).await;
    let blobs = || {
        fs::read_dir(folder.path().join("blobs/sha256"))
            .unwrap()
            .count()
    };
    assert_eq!(blobs(), 4, "bundle, manifest, evidence, history");
    // Room for one bundle with its history, and for the other history.
    let (manifest, layer) = artifact(BUNDLE);
    let size = layer.size() + manifest.raw().len() as u64 + 2 + "history of old".len() as u64;
    let store = reopen(folder.path(), size, 1 << 20);
    assert!(put(&store, "new", BUNDLE).await);
    assert!(
        store
            .history("old", "r.example/a:live", 1 << 20)
            .await
            .is_some()
    );
    // Room for one bundle and nothing else.
    let tight = tempfile::tempdir().unwrap();
    put(&open(tight.path(), 1 << 20, 1 << 20), "old", BUNDLE).await;
    let store = reopen(tight.path(), size - "history of old".len() as u64, 1 << 20);
    assert!(put(&store, "new", BUNDLE).await);
    assert!(
        store
            .history("old", "r.example/a:live", 1 << 20)
            .await
            .is_none()
    );
}

fn disk(folder: &Path) -> Disk {
    Disk::open(
        folder,
        1 << 20,
        prometheus::IntGauge::new("g", "g").unwrap(),
    )
    .unwrap()
}

fn record(number: usize) -> Record {
    let (manifest, layer) = artifact(BUNDLE);
    Record {
        bundle: format!("bundle-{number}"),
        reference: "r.example/a:live".to_owned(),
        identity: "me".to_owned(),
        manifest: manifest.digest().clone(),
        manifest_size: manifest.raw().len() as u64,
        below: Vec::new(),
        layers: vec![(layer.digest().clone(), layer.size())],
        evidence: vec![Digest::sha256(b"[]")],
        checked: None,
        accepted: None,
    }
}

fn put_on(disk: &Disk, number: usize) -> u64 {
    let (manifest, layer) = artifact(BUNDLE);
    let history = format!("history of {number}");
    let small = [
        (manifest.digest().clone(), manifest.raw().clone()),
        (Digest::sha256(b"[]"), Bytes::from_static(b"[]")),
    ];
    disk.put(record(number), &[layer], &small, history.as_bytes())
        .unwrap()
}

fn entries(folder: &Path) -> usize {
    crate::oci::Layout::open(folder)
        .unwrap()
        .index()
        .unwrap()
        .manifests
        .len()
}

fn blobs(folder: &Path) -> usize {
    fs::read_dir(folder.join("blobs/sha256")).unwrap().count()
}

/// With one write of the index for each change, n changes cost n².
#[test]
fn one_write_of_the_index_covers_any_number_of_changes() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    for number in 0..100 {
        put_on(&disk, number);
    }
    assert_eq!(
        entries(folder.path()),
        0,
        "the index was written for each change"
    );
    assert_eq!(disk.write().unwrap(), disk.generation());
    assert_eq!(entries(folder.path()), 200, "bundles and histories");
    assert_eq!(blobs(folder.path()), 103, "shared blobs are stored once");
    for number in 0..50 {
        disk.remove(&record(number).key(), b"").unwrap();
    }
    disk.write().unwrap();
    assert_eq!((entries(folder.path()), blobs(folder.path())), (100, 53));
}

#[test]
fn a_crash_before_the_index_is_written_loses_unacknowledged_changes_only() {
    let folder = tempfile::tempdir().unwrap();
    let first = disk(folder.path());
    put_on(&first, 1);
    first.write().unwrap();
    put_on(&first, 2);
    drop(first);
    let second = disk(folder.path());
    let spool = Spool {
        budget: Budget::new(1 << 20, prometheus::IntGauge::new("g", "g").unwrap()),
        folder: None,
    };
    let loaded = |number| {
        second
            .get(&record(number).key(), "me", 1 << 20, &spool)
            .unwrap()
    };
    assert!(loaded(1).is_some() && loaded(2).is_none());
    assert_eq!(
        blobs(folder.path()),
        4,
        "blobs that no entry names are removed"
    );
}

/// A bundle that a watcher withdraws as it ends must not come back.
#[tokio::test]
async fn a_change_is_written_though_its_caller_was_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    put(&store, "a", BUNDLE).await;
    let remove = store.remove("a", "r.example/a:live", Bytes::from_static(b"the end"));
    // The call is cancelled after it has begun.
    assert!(
        timeout(Duration::from_millis(1), remove).await.is_err() || entries(folder.path()) == 1
    );
    drop(store);
    let lock = fs::File::open(folder.path().join(".lock")).unwrap();
    spawn_blocking(move || lock.lock()).await.unwrap().unwrap();
    assert_eq!(entries(folder.path()), 1, "only the history");
}

/// Each call returns when the write is over that includes its change.
#[tokio::test]
async fn concurrent_puts_return_once_their_entries_are_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    let names: Vec<_> = (0..100).map(|number| format!("bundle-{number}")).collect();
    let (store, folder) = (&store, folder.path());
    let kept = futures_util::future::join_all(names.iter().map(|name| async move {
        let kept = put(store, name, BUNDLE).await;
        let index = fs::read_to_string(folder.join("index.json")).unwrap();
        kept && index.contains(&format!("\"{name}\""))
    }));
    assert!(kept.await.into_iter().all(|kept| kept));
}

#[tokio::test]
async fn a_failed_write_of_the_index_is_reported_and_retried() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    let index = folder.path().join("index.json");
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert!(!put(&store, "a", BUNDLE).await);
    fs::remove_dir(&index).unwrap();
    assert!(put(&store, "b", BUNDLE).await);
    drop(store);
    let store = reopen(folder.path(), 1 << 20, 1 << 20);
    assert!(get(&store, "a", "me").await.is_some() && get(&store, "b", "me").await.is_some());
}

/// The mode of a folder and the metadata of everything in it.
fn state(folder: &Path) -> (u32, Vec<String>) {
    let listed = Command::new("ls")
        .args(["-lAR", "--time-style=full-iso"])
        .arg(folder)
        .output()
        .unwrap();
    let mode = fs::metadata(folder).unwrap().permissions().mode() & 0o7777;
    (
        mode,
        String::from_utf8(listed.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect(),
    )
}

#[tokio::test]
async fn a_lock_file_alone_does_not_make_a_folder_a_cache() {
    type Fill = fn(&Path);
    let foreign: [(&str, Fill); 7] = [
        ("a lock file alone", |_| {}),
        ("other files", |folder| {
            fs::write(folder.join("theirs"), "x").unwrap()
        }),
        ("a layout without an entry", |folder| {
            crate::oci::Layout::create(folder)
                .unwrap()
                .write_blob(b"theirs")
                .unwrap();
        }),
        ("an empty layout beside other files", |folder| {
            crate::oci::Layout::create(folder).unwrap();
            fs::write(folder.join("theirs"), "x").unwrap();
        }),
        ("a layout with an entry", |folder| {
            let layout = crate::oci::Layout::create(folder).unwrap();
            layout.write_blob(b"theirs").unwrap();
            let set = |index: &mut crate::oci::LayoutIndex| {
                index.set("v1", Descriptor::of("", b"theirs"))
            };
            layout.update_index(set).unwrap();
        }),
        ("an index that can't be read", |folder| {
            crate::oci::Layout::create(folder)
                .unwrap()
                .write_blob(b"theirs")
                .unwrap();
            fs::write(folder.join("index.json"), "{").unwrap();
        }),
        ("blobs of something else", |folder| {
            fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
            fs::write(
                folder.join("blobs/sha256").join(Digest::sha256(b"x").hex()),
                "x",
            )
            .unwrap();
        }),
    ];
    for (what, fill) in foreign {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o775)).unwrap();
        fs::write(folder.path().join(".lock"), "").unwrap();
        fill(folder.path());
        let before = state(folder.path());
        assert!(
            !open(folder.path(), 1 << 20, 1 << 20).is_persistent(),
            "{what}"
        );
        assert_eq!(state(folder.path()), before, "{what}");
    }
}

/// As a build of 0.1.0 wrote it before the index was held in memory.
#[tokio::test]
async fn a_cache_of_an_earlier_version_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, layer) = artifact(BUNDLE);
    let layout = crate::oci::Layout::create(folder.path()).unwrap();
    layout.store_blob(&layer).unwrap();
    [manifest.raw(), &b"[]"[..], b"history of a"]
        .iter()
        .for_each(|bytes| drop(layout.write_blob(bytes)));
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
    assert_eq!(get(&store, "a", "me").await.unwrap().digest, *digest);
    assert_eq!(
        store
            .history("a", "r.example/a:live", 1 << 20)
            .await
            .unwrap(),
        "history of a"
    );
    assert!(put(&store, "b", b"another").await);
    drop(store);
    let store = reopen(folder.path(), 1 << 20, 1 << 20);
    assert!(get(&store, "a", "me").await.is_some() && get(&store, "b", "me").await.is_some());

    // An empty cache of that version.
    let empty = tempfile::tempdir().unwrap();
    crate::oci::Layout::create(empty.path()).unwrap();
    fs::write(empty.path().join(".lock"), "").unwrap();
    fs::create_dir(empty.path().join("tuf")).unwrap();
    assert!(open(empty.path(), 1 << 20, 1 << 20).is_persistent());
}

#[tokio::test]
async fn a_cache_survives_a_crash_at_any_point_of_its_creation() {
    for files in [
        &["oci-layout"][..],
        &["oci-layout", ".lock"],
        &["oci-layout", ".lock", "blobs/sha256"],
    ] {
        let (folder, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(open(whole.path(), 1 << 20, 1 << 20));
        for file in files {
            match whole.path().join(file) {
                path if path.is_dir() => fs::create_dir_all(folder.path().join(file)).unwrap(),
                path => drop(fs::copy(path, folder.path().join(file)).unwrap()),
            }
        }
        assert!(
            open(folder.path(), 1 << 20, 1 << 20).is_persistent(),
            "{files:?}"
        );
    }
    // A crash, or a full disk, may cut short what marks the folder as a cache.
    for marker in ["", "{\"imageLayoutVersion\":"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("oci-layout"), marker).unwrap();
        check_folder(folder.path()).unwrap();
        assert!(
            open(folder.path(), 1 << 20, 1 << 20).is_persistent(),
            "{marker}"
        );
    }
}

#[tokio::test]
async fn no_content_of_a_cache_makes_its_opening_hang_or_fail() {
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20, 1 << 20);
    assert!(put(&store, "a", BUNDLE).await && put(&store, "b", b"another").await);
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
    let store = reopen(folder.path(), 1 << 20, 1 << 20);
    assert!(store.is_persistent());
    assert!(get(&store, "a", "me").await.is_none());
    assert!(get(&store, "b", "me").await.is_some());
    assert!(put(&store, "a", BUNDLE).await);
    assert!(
        get(&store, "a", "me").await.is_some(),
        "the pipe has been replaced"
    );
    drop(store);
    // A damaged index costs its entries, not the cache.
    for damage in ["{", ""] {
        fs::write(folder.path().join("index.json"), damage).unwrap();
        assert!(reopen(folder.path(), 1 << 20, 1 << 20).is_persistent());
    }
    // Without these two files the folder is not a cache.
    for name in ["oci-layout", ".lock"] {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), 1 << 20, 1 << 20));
        fs::remove_file(folder.path().join(name)).unwrap();
        fifo(&folder.path().join(name));
        assert!(
            !open(folder.path(), 1 << 20, 1 << 20).is_persistent(),
            "{name}"
        );
    }
}

#[test]
fn an_entry_of_several_layers_and_manifests_is_read_back_and_a_contradictory_one_is_not() {
    let [one, two, three] = [1, 2, 3].map(|byte| Digest::sha256(&[byte]));
    let several = Record {
        below: vec![one.clone(), two.clone()],
        layers: vec![(two.clone(), 2), (one, 1), (two.clone(), 2)],
        evidence: vec![three.clone(), two],
        ..record(1)
    };
    let entry = several.to_entry();
    assert_eq!(entry.media_type, media_type::OCI_INDEX);
    assert_eq!(Record::from_entry(&entry), Some(several));
    let plain = record(1).to_entry();
    assert_eq!(plain.media_type, media_type::OCI_MANIFEST);
    for (key, value) in [
        ("dev.bundlegate.layers", format!("{three} 1")),
        ("dev.bundlegate.layers", three.to_string()),
        ("dev.bundlegate.layers", String::new()),
        ("dev.bundlegate.evidences", format!("{three} {three}")),
        ("dev.bundlegate.manifests", "x".to_owned()),
    ] {
        let mut entry = plain.clone();
        let annotations = entry.annotations.as_mut().unwrap();
        annotations.insert(key.to_owned(), value.clone());
        assert_eq!(Record::from_entry(&entry), None, "{key} {value}");
    }
}
