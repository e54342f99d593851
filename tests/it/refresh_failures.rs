//! What clients see while refreshes fail: `on_missing`, `max_stale`, `first_wait`, the cache.

use std::{fs, io::Write as _, path::PathBuf, process::Command, time::Duration};

use bundlegate::{
    metrics::Metrics,
    oci::{Digest, media_type},
    publish::OnMissing,
    store::{self, Store},
};
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gate::{Gate, HOUR, PATIENCE, Setup, bundle, error, eventually, tag},
    signing::Signer,
};

/// Where the cache notes the last successful check.
const NOTE: &str = "dev.bundlegate.checked";

fn unwell() -> Fault {
    Fault::Status(503, vec![])
}

pub(crate) fn on_disk(cache: &TempDir) -> store::Options {
    store::Options {
        directory: Some(cache.path().to_owned()),
        ..Setup::default().cache
    }
}

fn stale_after(max_stale: Duration, cache: &TempDir) -> Setup {
    let mut setup = Setup {
        cache: on_disk(cache),
        ..Setup::default()
    };
    setup.rules.max_stale = Some(max_stale);
    setup
}

/// What is kept, but for the notes about what was served.
fn bundles_in(cache: &TempDir) -> Vec<Value> {
    let entries = index(cache)["manifests"].as_array().unwrap().clone();
    entries
        .into_iter()
        .filter(|entry| entry["mediaType"] == media_type::OCI_MANIFEST)
        .collect()
}

pub(crate) fn index(cache: &TempDir) -> Value {
    serde_json::from_slice(&fs::read(cache.path().join("index.json")).unwrap()).unwrap()
}

async fn noted(cache: &TempDir) -> String {
    let note = || {
        index(cache)["manifests"][0]["annotations"][NOTE]
            .as_str()
            .map(str::to_owned)
    };
    eventually("a note", || note().is_some()).await;
    note().unwrap()
}

pub(crate) fn blob_path(cache: &TempDir, bytes: &[u8]) -> PathBuf {
    cache
        .path()
        .join("blobs/sha256")
        .join(Digest::sha256(bytes).hex())
}

/// A disk on which the index of a cache can't be written until this is dropped, as on a network
/// volume whose server is gone.
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

/// A file that has become a pipe, which makes whoever opens it wait, until this is dropped.
/// Then it says what it said before.
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
        // Opened both ways, which waits for nobody.
        let mut pipe = fs::File::options()
            .read(true)
            .write(true)
            .open(&self.pipe)
            .unwrap();
        pipe.write_all(&self.content).unwrap();
        fs::remove_file(&self.pipe).unwrap();
    }
}

fn note(cache: &TempDir, then: Option<Timestamp>) {
    let mut index = index(cache);
    let annotations = index["manifests"][0]["annotations"]
        .as_object_mut()
        .unwrap();
    annotations.remove(NOTE);
    annotations.extend(then.map(|then| (NOTE.to_owned(), Value::from(then.to_string()))));
    fs::write(cache.path().join("index.json"), index.to_string()).unwrap();
}

#[tokio::test]
async fn a_registry_in_trouble_stops_neither_200_nor_304() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    registry.put_artifact("live", &one);
    let gate = Gate::before(&registry, Duration::from_millis(100)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail("", usize::MAX, unwell());
    eventually("a failed check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "transient");
    assert_eq!(gate.get("", 0).await.bytes().await.unwrap(), one);
    for wait in [0, 1] {
        let unchanged = gate.get(&etag, wait).await;
        assert_eq!(
            (unchanged.status(), tag(&unchanged)),
            (StatusCode::NOT_MODIFIED, etag.clone())
        );
    }
    // Nobody can say who is behind, so what the client has once had will do.
    let disagreeing = gate.get(&format!("\"another\", {etag}"), 0).await;
    assert_eq!(
        (disagreeing.status(), tag(&disagreeing)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    assert_eq!(gate.get("\"another\"", 0).await.bytes().await.unwrap(), one);
    assert_eq!(gate.state(), "serving");
}

#[tokio::test]
async fn on_missing_keep_serves_a_deleted_tag_and_on_missing_withdraw_does_not() {
    for (on_missing, status, state) in [
        (OnMissing::Keep, StatusCode::OK, "serving"),
        (OnMissing::Withdraw, StatusCode::NOT_FOUND, "withdrawn"),
    ] {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup::default();
        setup.rules.on_missing = on_missing;
        let gate = Gate::with(&registry, setup).await;
        let first = gate.get("", 0).await;
        assert_eq!(first.status(), StatusCode::OK);
        registry.remove("manifests/live");
        eventually("the tag is missed", || gate.last_failure().is_some()).await;
        assert_eq!(gate.last_failure().unwrap().class, "not_found");
        assert_eq!(
            (gate.get("", 0).await.status(), gate.state()),
            (status, state)
        );
        // A tag that comes back is served, even with the digest of before.
        registry.put_artifact("live", &bundle("one"));
        eventually("the alarm ends", || gate.last_failure().is_none()).await;
        assert_eq!(tag(&gate.get("", 0).await), tag(&first));
    }
}

#[tokio::test]
async fn max_stale_ends_what_no_check_confirms() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    setup.rules.max_stale = Some(Duration::from_secs(2));
    let gate = Gate::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    registry.fail("", usize::MAX, unwell());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let refused = gate.get("", 0).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let error = error(refused).await;
    assert_eq!(error["reason"], "withdrawn");
    assert!(
        error["message"].as_str().unwrap().contains("max_stale"),
        "{error}"
    );
    registry.heal();
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
}

/// The check was about to say "unchanged" of something that is served no more.
#[tokio::test]
async fn what_a_slow_check_confirms_after_max_stale_is_served_again_at_once() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    (setup.rules.poll, setup.rules.max_stale) = (HOUR, Some(Duration::from_secs(2)));
    let gate = Gate::with(&registry, setup).await;
    assert_eq!(gate.get("", 60).await.status(), StatusCode::OK);
    registry.fail("manifests/live", 1, Fault::Slow(Duration::from_secs(4)));
    // Whoever disagrees makes it look.
    let disagreeing = tokio::spawn(gate.asking("\"another\"", 60).send());
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let served = timeout(PATIENCE, disagreeing)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(served.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_restart_does_not_prolong_max_stale() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let gate = Gate::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    let etag = tag(&gate.get("", 60).await);
    // Noted again when checks go on confirming it.
    let first = noted(&cache).await;
    eventually("a later note", || {
        index(&cache)["manifests"][0]["annotations"][NOTE] != first
    })
    .await;
    registry.fail("", usize::MAX, unwell());
    eventually("a failed check", || gate.last_failure().is_some()).await;
    gate.end(cache.path()).await;

    // Some of the four seconds are left, and then it is over.
    let gate = Gate::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    eventually("it is withdrawn", || gate.state() == "withdrawn").await;
    let error = error(gate.get("", 0).await).await;
    assert_eq!(
        error["message"], "no successful check for 4s (max_stale)",
        "{error}"
    );
    gate.end(cache.path()).await;

    // The next process does not begin anew either …
    let gate = Gate::with(&registry, stale_after(Duration::from_secs(4), &cache)).await;
    eventually("its first word", || gate.state() != "pending").await;
    assert_eq!(
        self::error(gate.get("", 0).await).await["message"],
        error["message"]
    );
    // … but needs nothing more than to hear that it is right.
    let fetched = registry.asked("blobs/").len();
    registry.heal();
    assert_eq!(tag(&gate.get("", 60).await), etag);
    assert_eq!(registry.asked("blobs/").len(), fetched);
}

#[tokio::test]
async fn a_restart_within_max_stale_serves_from_disk_for_what_is_left() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let gate = Gate::with(&registry, stale_after(HOUR, &cache)).await;
    let etag = tag(&gate.get("", 60).await);
    noted(&cache).await;
    gate.end(cache.path()).await;
    registry.fail("", usize::MAX, unwell());
    let now = Timestamp::now();
    for (hours_ago, state) in [(0.5, "serving"), (2.0, "withdrawn"), (-1000.0, "serving")] {
        let then = now - SignedDuration::from_secs_f64(hours_ago * 3600.0);
        note(&cache, Some(then));
        let gate = Gate::with(&registry, stale_after(HOUR, &cache)).await;
        eventually(state, || gate.state() == state).await;
        gate.end(cache.path()).await;
        let kept = noted(&cache).await.parse::<Timestamp>().unwrap();
        assert!(
            kept == then || (hours_ago < 0.0 && kept >= now),
            "{then} became {kept}"
        );
    }
    // As older versions left it: its time starts now, and once only.
    note(&cache, None);
    let gate = Gate::with(&registry, stale_after(HOUR, &cache)).await;
    assert_eq!(tag(&gate.get("", 60).await), etag);
    assert!(noted(&cache).await.parse::<Timestamp>().unwrap() >= now);
    gate.end(cache.path()).await;
    // Where nothing is to be noted, nothing is left that would be wrong one day.
    let gate = Gate::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..Setup::default()
        },
    )
    .await;
    assert_eq!(tag(&gate.get("", 60).await), etag);
    eventually("the note goes", || {
        index(&cache)["manifests"][0]["annotations"][NOTE].is_null()
    })
    .await;
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
    let gate = Gate::with(&registry, setup).await;
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
    // The second version was on its way to the disk all the time, and nothing overtook it. It
    // arrives, and goes again.
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
    let gate = Gate::with(
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
    let fresh = || Store::open(on_disk(&cache), Metrics::new().unwrap());
    fresh().blob(&registry.source(), &layer).await.unwrap();
    assert_eq!(fetched(), 1, "the disk has it");
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

/// What two processes leave that died while they did this.
fn died_twice(cache: &TempDir, line: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let log = format!("version {version}\ndied 1 {line}\nbegin 1 {line}\n");
    fs::write(cache.path().join("attempts.log"), log).unwrap();
}

/// It was accepted once, so it lies in the cache, under the tag, or both, and would else end
/// every process that is started.
#[tokio::test]
async fn what_ended_the_process_twice_is_set_aside_until_the_limits_change() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let cache = tempfile::tempdir().unwrap();
    let setup = || Setup {
        cache: on_disk(&cache),
        ..Setup::default()
    };
    let gate = Gate::with(&registry, setup()).await;
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
        let gate = Gate::with(&registry, setup()).await;
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
        let failure = gate.last_failure().unwrap();
        assert_eq!((failure.class, failure.step.as_str()), ("defect", step));
        assert!(failure.message.contains("set aside"), "{}", failure.message);
        assert_eq!(
            registry.asked("blobs/").len(),
            fetched,
            "nor is it fetched to be opened"
        );
        // What is pushed in its place is served.
        registry.put_artifact("live", &bundle("two"));
        assert_eq!(gate.get("", 60).await.bytes().await.unwrap(), bundle("two"));
        gate.end(cache.path()).await;
        registry.put_artifact("live", &bundle("one"));
        let limits = line.split(' ').nth(1).unwrap();
        died_twice(&cache, &line.replace(limits, "0123456789abcdef"));
        let gate = Gate::with(&registry, setup()).await;
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
    let gate = Gate::with(&registry, setup).await;
    let first = gate.get("", 60).await;
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(
        gate.get(&tag(&first), 60).await.bytes().await.unwrap(),
        bundle("two")
    );
    gate.end(cache.path()).await;
    assert_eq!(bundles_in(&cache), [Value::Null; 0]);
}

#[tokio::test]
async fn first_wait_holds_requests_of_a_cold_start_and_ends_with_pending() {
    let registry = FaultyRegistry::start().await;
    registry.fail("", usize::MAX, unwell());
    let gate = Gate::before(&registry, Duration::from_millis(100)).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let began = Instant::now();
    let pending = gate.get("", 0).await;
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?} are not first_wait",
        began.elapsed()
    );
    assert_eq!(pending.status(), StatusCode::NOT_FOUND);
    let error = error(pending).await;
    assert_eq!(
        (&error["reason"], &error["bundle"]),
        (&"pending".into(), &"authz/main".into())
    );
    assert!(
        error["message"].as_str().unwrap().contains("HTTP 503"),
        "{error}"
    );
    // With `wait` there is time until the registry recovers.
    let (found, ()) = tokio::join!(gate.get("", 60), async {
        sleep(Duration::from_millis(500)).await;
        registry.put_artifact("live", &bundle("one"));
        registry.heal();
    });
    assert_eq!(found.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_refused_is_404_at_once_and_with_wait_200_the_moment_it_is_signed() {
    let registry = FaultyRegistry::start().await;
    let signer = Signer::new();
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    setup.rules.first_wait = HOUR;
    let gate = Gate::with(&registry, setup).await;
    eventually("a verdict", || gate.state() == "withdrawn").await;
    let refused = timeout(PATIENCE, gate.get("", 0))
        .await
        .expect("not at once");
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let error = error(refused).await;
    assert_eq!(error["reason"], "withdrawn");
    assert!(
        error["message"].as_str().unwrap().contains(digest.as_str()),
        "{error}"
    );
    assert_eq!(gate.last_failure().unwrap().class, "evidence");
    let (signed, ()) = tokio::join!(gate.get("", 60), async {
        eventually("the client waits", || gate.waiters() == 1).await;
        signer.sign_legacy(&registry, &digest);
    });
    assert_eq!(signed.status(), StatusCode::OK);
    assert_eq!(signed.headers()["bundlegate-signer"], "release");
}

#[tokio::test]
async fn during_retry_after_no_client_causes_another_check() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, Duration::from_millis(50)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail(
        "",
        usize::MAX,
        Fault::Status(429, vec![("retry-after", "600".into())]),
    );
    eventually("a refused check", || gate.last_failure().is_some()).await;
    assert_eq!(gate.last_failure().unwrap().class, "rate_limited");
    let asked = registry.asked("").len();
    // Twenty intervals, and a client that would like to know.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        gate.get(&format!("\"another\", {etag}"), 0).await.status(),
        StatusCode::NOT_MODIFIED
    );
    assert_eq!(registry.asked("").len(), asked);
}

#[tokio::test]
async fn a_retry_after_of_an_hour_withdraws_no_healthy_bundle() {
    for wish in [
        "3600",
        "4294967296",
        "soon",
        "-1",
        "Fri, 01 Jan 2100 00:00:00 GMT",
    ] {
        let registry = FaultyRegistry::start().await;
        registry.put_artifact("live", &bundle("one"));
        let mut setup = Setup::default();
        setup.rules.max_stale = Some(Duration::from_secs(4));
        let gate = Gate::with(&registry, setup).await;
        eventually("it is served", || gate.state() == "serving").await;
        let mut states = gate.subscribe();
        states.borrow_and_update();
        registry.fail(
            "HEAD",
            1,
            Fault::Status(429, vec![("retry-after", wish.into())]),
        );
        eventually("a refused check", || gate.refreshes("rate_limited") > 0).await;
        let confirmed = gate.refreshes("unchanged");
        eventually("the next check", || gate.refreshes("unchanged") > confirmed).await;
        assert!(
            !states.has_changed().unwrap() && gate.state() == "serving",
            "{wish}: withdrawn meanwhile"
        );
    }
}

/// A proxy's page, say, of five million bytes.
#[tokio::test]
async fn one_answer_that_is_too_long_does_not_keep_a_version_out() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    let (digest, _) = registry.put_artifact("live", &one);
    for name in ["live", digest.as_str()] {
        registry.fail(
            &format!("GET /v2/acme/authz/manifests/{name}"),
            1,
            Fault::Replace(vec![b' '; 5 << 20].into()),
        );
    }
    let gate = Gate::before(&registry, Duration::from_millis(50)).await;
    let served = timeout(PATIENCE, gate.get("", 60)).await.unwrap();
    assert_eq!(served.bytes().await.unwrap(), one);
    assert_eq!(gate.refreshes("too_large"), 0, "{:?}", gate.last_failure());
}

#[tokio::test]
async fn a_known_defect_is_not_fetched_again_because_of_trouble_of_another_kind() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"no tarball");
    let gate = Gate::before(&registry, Duration::from_millis(50)).await;
    let class = || gate.last_failure().map(|failure| failure.class);
    eventually("a defect", || class() == Some("defect")).await;
    let fetched = registry.asked("blobs/").len();
    registry.fail("manifests/live", usize::MAX, Fault::Status(404, vec![]));
    eventually("other trouble", || class() == Some("not_found")).await;
    registry.heal();
    eventually("the defect again", || class() == Some("defect")).await;
    assert_eq!(registry.asked("blobs/").len(), fetched);
}
