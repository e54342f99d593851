//! `cache`: a disk that hangs, is full or has odd files, and artifacts that end the process.

use std::{fs, io::Write as _, path::PathBuf, process::Command};

use bundlegate::{
    metrics::Metrics,
    oci::{Digest, media_type},
    publish::OnMissing,
    store::{self, Store, StoreMetrics},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    faulty::FaultyRegistry,
    gateway::{PATIENCE, Setup, TestGateway, bundle, eventually, tag, until_unlocked},
};

pub(crate) fn on_disk(cache: &TempDir) -> store::Options {
    store::Options {
        directory: Some(cache.path().to_owned()),
        ..Setup::default().cache
    }
}

pub(crate) fn index(cache: &TempDir) -> Value {
    serde_json::from_slice(&fs::read(cache.path().join("index.json")).unwrap()).unwrap()
}

/// The entries of the bundles in the index, without those of histories.
fn bundles_in(cache: &TempDir) -> Vec<Value> {
    let entries = index(cache)["manifests"].as_array().unwrap().clone();
    entries
        .into_iter()
        .filter(|entry| entry["mediaType"] == media_type::OCI_MANIFEST)
        .collect()
}

pub(crate) fn blob_path(cache: &TempDir, bytes: &[u8]) -> PathBuf {
    cache
        .path()
        .join("blobs/sha256")
        .join(Digest::sha256(bytes).hex())
}

/// A disk on which the index of a cache can't be written until this is dropped, as on a network
/// volume whose server does not respond.
pub(crate) struct HangingDisk {
    _lock: fs::File,
}

impl HangingDisk {
    pub(crate) fn new(cache: &TempDir) -> Self {
        let lock = fs::File::options()
            .create(true)
            .append(true)
            .open(cache.path().join(".index.lock"))
            .unwrap();
        lock.lock().unwrap();
        Self { _lock: lock }
    }
}

/// A file that has become a pipe, which makes the process that opens it wait until this is dropped.
/// Then the file has its content again.
pub(crate) struct Hanging {
    file: PathBuf,
    pipe: PathBuf,
    content: Vec<u8>,
}

impl Hanging {
    pub(crate) fn new(file: PathBuf) -> Self {
        let hanging = Self {
            pipe: file.with_extension("pipe"),
            content: fs::read(&file).unwrap(),
            file,
        };
        assert!(
            Command::new("mkfifo")
                .arg(&hanging.pipe)
                .status()
                .unwrap()
                .success()
        );
        fs::rename(&hanging.pipe, &hanging.file).unwrap();
        fs::hard_link(&hanging.file, &hanging.pipe).unwrap();
        hanging
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let whole = self.file.with_extension("whole");
        fs::write(&whole, &self.content).unwrap();
        fs::rename(whole, &self.file).unwrap();
        // A pipe that is opened for reading and writing waits for no other process.
        let mut pipe = fs::File::options()
            .read(true)
            .write(true)
            .open(&self.pipe)
            .unwrap();
        pipe.write_all(&self.content).unwrap();
        fs::remove_file(&self.pipe).unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_hangs_holds_back_neither_what_is_published_nor_the_next_check() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let mut setup = Setup {
        cache: on_disk(&cache),
        ..Setup::default()
    };
    setup.rules.on_missing = OnMissing::Withdraw;
    let gate = TestGateway::with(&registry, setup).await;
    let mut etag = tag(&gate.get("", 60).await);
    eventually("it is kept", || index(&cache)["manifests"][0].is_object()).await;
    let hanging = HangingDisk::new(&cache);
    for version in ["two", "three"] {
        registry.put_artifact("live", &bundle(version));
        let changed = gate.get(&etag, 60).await;
        etag = tag(&changed);
        assert_eq!(changed.bytes().await.unwrap(), bundle(version));
    }
    registry.remove("manifests/live");
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    // The write of the second version has hung all the time, and no later write has overtaken it. It
    // is completed now, and the version is removed again.
    let on_disk = |version| blob_path(&cache, &bundle(version)).exists();
    assert!(on_disk("two") && !on_disk("three"));
    assert_eq!(
        bundles_in(&cache)[0]["annotations"]["dev.bundlegate.layer"],
        Digest::sha256(&bundle("one")).as_str()
    );
    drop(hanging);
    eventually("nothing is kept", || bundles_in(&cache).is_empty()).await;
    registry.put_artifact("live", &bundle("four"));
    assert_eq!(
        gate.get("", 60).await.bytes().await.unwrap(),
        bundle("four")
    );
    eventually("the disk is used again", || !bundles_in(&cache).is_empty()).await;
}

#[tokio::test]
async fn a_blob_whose_file_has_become_a_pipe_comes_from_the_registry() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    let (_, layer) = registry.put_artifact("live", &one);
    let cache = tempfile::tempdir().unwrap();
    let gate = TestGateway::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..Setup::default()
        },
    )
    .await;
    gate.get("", 60).await;
    eventually("it is kept", || index(&cache)["manifests"][0].is_object()).await;
    gate.end(cache.path()).await;

    let fetched = || registry.asked(layer.digest.as_str()).len();
    let fresh = || Store::open(on_disk(&cache), StoreMetrics::new(&Metrics::new()).unwrap());
    fresh().blob(&registry.source(), &layer).await.unwrap();
    assert_eq!(fetched(), 1, "the disk has it");
    until_unlocked(cache.path()).await;
    let store = fresh();
    let _hanging = Hanging::new(blob_path(&cache, &one));
    let blob = timeout(PATIENCE, store.blob(&registry.source(), &layer))
        .await
        .expect("it waits for ever")
        .unwrap();
    assert_eq!(
        (blob.in_memory().unwrap().as_ref(), fetched()),
        (one.as_slice(), 2)
    );
}

/// Writes the log that two processes leave which died during this step.
fn died_twice(cache: &TempDir, line: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let log = format!("version {version}\ndied 1 {line}\nbegin 1 {line}\n");
    fs::write(cache.path().join("attempts.log"), log).unwrap();
}

/// The artifact was accepted once, so it is in the cache, under the tag, or both, and would otherwise
/// end every process that is started.
#[tokio::test]
async fn what_ended_the_process_twice_is_set_aside_until_the_limits_change() {
    let registry = FaultyRegistry::start().await;
    let (one, _) = registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let setup = || Setup {
        cache: on_disk(&cache),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup()).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    eventually("it is kept", || !bundles_in(&cache).is_empty()).await;
    gate.end(cache.path()).await;
    let log = fs::read_to_string(cache.path().join("attempts.log")).unwrap();
    for step in ["verify", "open"] {
        let begun = log
            .lines()
            .find(|line| line.starts_with("begin ") && line.contains(step))
            .unwrap();
        let line = begun.splitn(3, ' ').nth(2).unwrap();
        died_twice(&cache, line);
        let fetched = registry.asked("blobs/").len();
        let gate = TestGateway::with(&registry, setup()).await;
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
        let failure = gate.last_failure().unwrap();
        assert_eq!((failure.class, failure.step.as_str()), ("defect", step));
        assert!(failure.message.contains("set aside"), "{}", failure.message);
        let index = registry.put_index("live", &[(&one, json!({}))]);
        eventually("it is set aside behind a new index as well", || {
            let failure = gate.last_failure().unwrap();
            failure.digest.as_deref() == Some(index.as_str())
                && failure.message.contains("set aside")
        })
        .await;
        assert_eq!(
            registry.asked("blobs/").len(),
            fetched,
            "nor is it fetched to be opened"
        );
        // Another version that is pushed in its place is served.
        registry.put_artifact("live", &bundle("two"));
        assert_eq!(gate.get("", 60).await.bytes().await.unwrap(), bundle("two"));
        gate.end(cache.path()).await;
        registry.put_artifact("live", &bundle("one"));
        let limits = line.split(' ').nth(1).unwrap();
        died_twice(&cache, &line.replace(limits, "0123456789abcdef"));
        let gate = TestGateway::with(&registry, setup()).await;
        eventually("it is served", || gate.state() == "serving").await;
        gate.end(cache.path()).await;
    }
}

#[tokio::test]
async fn what_does_not_fit_on_the_disk_is_served_all_the_same() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let setup = Setup {
        cache: store::Options {
            disk: 10,
            ..on_disk(&cache)
        },
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    let first = gate.get("", 60).await;
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(
        gate.get(&tag(&first), 60).await.bytes().await.unwrap(),
        bundle("two")
    );
    gate.end(cache.path()).await;
    assert_eq!(bundles_in(&cache), [Value::Null; 0]);
}
