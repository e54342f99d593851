use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::oci::{BlobWriter, media_type};

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
