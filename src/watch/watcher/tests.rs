//! Watchers in front of a layout folder, under paused time.

use std::{fs, path::PathBuf};

use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::watch::ArtifactOptions;
use crate::{
    bundle,
    metrics::{BundleScope, Metrics},
    oci::{Descriptor, Layout, Reference, media_type},
    registry::{LiveRegistries, ReadLimits, Registries, RegistryMetrics},
    store::{self, Store, StoreMetrics},
    traces::Traces,
    verify::{Authority, PublicKey, Requirements},
    watch::{VerificationPool, WatchMetrics},
};

const LIMIT: u64 = 1 << 20;
const POLL: Duration = Duration::from_secs(30);
/// How exactly times are measured.
const TICK: Duration = Duration::from_millis(100);

const OPTIONS: WatchOptions = WatchOptions {
    poll: POLL,
    confirm_within: Duration::from_secs(2),
    on_missing: OnMissing::Keep,
    max_stale: None,
    first_wait: Duration::from_secs(5),
    is_staged: false,
};

/// A layout folder with the tag `live`, and a watcher of it.
struct World {
    folder: tempfile::TempDir,
    pool: VerificationPool,
    metrics: Metrics,
    handle: Handle,
    _watcher: JoinSet<()>,
}

impl World {
    /// Watches version 1.
    async fn serving(options: WatchOptions) -> Self {
        let world = Self::watching(unsigned(), options);
        world.until("serving").await;
        world
    }

    fn watching(policy: Arc<TrustPolicy>, options: WatchOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("layout");
        Layout::create(&root).unwrap();
        let reference: Reference = format!("oci-layout:{}:live", root.display())
            .parse()
            .unwrap();
        let (metrics, pool) = (Metrics::new(), VerificationPool::default());
        let limits = ReadLimits {
            manifest: LIMIT,
            evidence: LIMIT,
            bundle: LIMIT,
        };
        let registry_metrics = RegistryMetrics::new(&metrics).unwrap();
        let registries = Registries::new([].into(), limits, registry_metrics);
        let watch_metrics = WatchMetrics::new(&metrics).unwrap();
        let memory_only = store::Options {
            directory: None,
            disk: 0,
            memory: LIMIT,
        };
        let pipeline = Pipeline {
            deltas: None,
            name: "authz".into(),
            source: LiveRegistries::from(registries)
                .source(reference.repository())
                .unwrap(),
            version_text: reference.tag().map(Into::into),
            reference,
            artifact: ArtifactOptions::default(),
            expect: Arc::default(),
            store: Store::open(memory_only, StoreMetrics::new(&metrics).unwrap()),
            limits: bundle::Limits {
                bundle: LIMIT,
                unpacked: LIMIT,
                files: 10,
                bundle_manifest: LIMIT,
            },
            opa_check: None,
            evidence_limit: LIMIT,
            useless_referrers: Arc::default(),
            pool: pool.clone(),
            metrics: Arc::new(watch_metrics.bundle(&BundleScope::new("authz".into()))),
            traces: Traces::off(),
        };
        put(&root, 1);
        let (watcher, handle) = Watcher::new(pipeline, policy, options, Siblings::default());
        let watcher = [watcher.run()].into_iter().collect();
        Self {
            folder,
            pool,
            metrics,
            handle,
            _watcher: watcher,
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    /// From now on reading the layout fails, which is transient.
    fn break_registry(&self) {
        fs::rename(self.root(), self.folder.path().join("aside")).unwrap();
    }

    fn repair_registry(&self) {
        fs::rename(self.folder.path().join("aside"), self.root()).unwrap();
    }

    /// How many checks have ended like this.
    fn checks(&self, outcome: &str) -> u64 {
        let series = format!(r#"bundlegate_refreshes_total{{bundle="authz",outcome="{outcome}"}}"#);
        self.metrics.sample(&series).unwrap_or_default() as u64
    }

    fn failures(&self) -> u64 {
        self.checks("layout")
    }

    /// The value of the bundle's only data, while it is served.
    fn version(&self) -> Option<String> {
        self.handle
            .subscribe()
            .borrow()
            .snapshot()
            .map(|snapshot| snapshot.content().bytes().digest().to_string())
    }

    async fn until(&self, state: &str) {
        let mut states = self.handle.subscribe();
        timeout(
            Duration::from_secs(3600),
            states.wait_for(|now| now.label() == state),
        )
        .await
        .unwrap()
        .unwrap();
    }

    /// The time between each of the next checks that end like this and the one before it.
    async fn intervals(&self, outcome: &str, count: usize) -> Vec<Duration> {
        let mut intervals = Vec::new();
        let (mut seen, mut last) = (self.checks(outcome), None);
        while intervals.len() < count {
            sleep(TICK).await;
            let now = self.checks(outcome);
            if now > seen {
                assert_eq!(now, seen + 1, "two checks within a moment");
                intervals.extend(last.map(|last: Instant| last.elapsed()));
                (seen, last) = (now, Some(Instant::now()));
            }
        }
        intervals
    }
}

fn put(root: &std::path::Path, version: u8) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("data.json"),
        json!({ "version": version }).to_string(),
    )
    .unwrap();
    let limits = bundle::Limits {
        bundle: LIMIT,
        unpacked: LIMIT,
        files: 10,
        bundle_manifest: LIMIT,
    };
    let packed = bundle::pack(folder.path(), &limits).unwrap().bundle;
    let layer = packed.blob().in_memory().unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"),
        "layers": [Descriptor::of(media_type::LAYER_TAR_GZIP, layer)],
    });
    let manifest = manifest.to_string();
    let layout = Layout::open(root).unwrap();
    layout.write_blob(layer).unwrap();
    layout.write_blob(manifest.as_bytes()).unwrap();
    let entry = Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes());
    layout
        .update_index(|index| index.set("live", entry))
        .unwrap();
}

fn unsigned() -> Arc<TrustPolicy> {
    Arc::new(TrustPolicy::unsigned("dev".into()))
}

/// A policy that accepts none of the versions.
fn signed() -> Arc<TrustPolicy> {
    let key = PublicKey::from_pem(&rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
    let requirements = Requirements::any_of(vec![Authority::with_keys("release".into(), [key])]);
    Arc::new(TrustPolicy::signed("release".into(), requirements).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn poll_is_the_time_between_checks_of_a_healthy_registry() {
    let world = World::serving(OPTIONS).await;
    for interval in world.intervals("unchanged", 20).await {
        assert!(interval.abs_diff(POLL) <= POLL / 20 + TICK, "{interval:?}");
    }
    let (before, _) = (world.version(), put(&world.root(), 2));
    sleep(POLL + POLL / 10).await;
    assert_ne!(
        world.version(),
        before,
        "a push is served within one interval"
    );
    assert_eq!(world.checks("accepted"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_fails_is_asked_after_1_2_4_seconds_up_to_poll() {
    let world = World::serving(OPTIONS).await;
    let served = world.version();
    world.break_registry();
    let intervals = world.intervals("layout", 8).await;
    for (interval, ceiling) in intervals.iter().zip([1, 2, 4, 8, 16, 30, 30, 30]) {
        let range = seconds(ceiling) / 2 - TICK..=seconds(ceiling) + TICK;
        assert!(range.contains(interval), "{ceiling}: {intervals:?}");
    }
    assert_eq!(world.version(), served, "it is served throughout");
    assert_eq!(
        world.handle.status().last_failure.unwrap().class,
        FailureClass::Transient
    );
    world.repair_registry();
    world.intervals("unchanged", 1).await;
    assert!(world.handle.status().last_failure.is_none());
    world.break_registry();
    assert!(
        world.intervals("layout", 1).await[0] <= seconds(1) + TICK,
        "the back-off starts over"
    );
}

#[tokio::test(start_paused = true)]
async fn missing_evidence_is_looked_for_after_1_2_4_seconds_up_to_poll() {
    let world = World::watching(signed(), OPTIONS);
    world.until("withdrawn").await;
    let class = world.handle.status().last_failure.unwrap().class;
    assert_eq!(class, FailureClass::Evidence);
    let refused = "unsigned";
    let intervals = world.intervals(refused, 6).await;
    // The first of them came before the second check that was seen.
    for (interval, expected) in intervals.iter().zip([2, 4, 8, 16]) {
        assert!(
            interval.abs_diff(seconds(expected)) <= TICK,
            "{expected}: {intervals:?}"
        );
    }
    assert!(
        intervals[4..]
            .iter()
            .all(|interval| *interval <= POLL + POLL / 20 + TICK),
        "{intervals:?}"
    );
    // Another digest starts over.
    put(&world.root(), 2);
    sleep(POLL + POLL / 10).await;
    assert!(world.intervals(refused, 1).await[0] <= seconds(16) + TICK);
    world.handle.set_policy(unsigned());
    timeout(TICK, world.until("serving"))
        .await
        .expect("a change of the policy does not wait for the next check");
}

#[tokio::test(start_paused = true)]
async fn max_stale_withdraws_a_version_that_no_check_confirms_until_one_does() {
    let world = World::serving(WatchOptions {
        max_stale: Some(seconds(60)),
        poll: seconds(10),
        ..OPTIONS
    })
    .await;
    let served = world.version();
    sleep(seconds(600)).await;
    assert_eq!(world.version(), served, "each check confirms it");
    let confirmed = world.checks("unchanged");
    world.break_registry();
    // The last check that succeeded may be as long ago as the interval.
    sleep(seconds(60) - seconds(11)).await;
    assert_eq!(
        (world.version(), world.checks("unchanged")),
        (served.clone(), confirmed)
    );
    sleep(seconds(11) + TICK).await;
    assert_eq!(
        &*world.handle.withdrawal().unwrap().reason,
        "no successful check for 1m (max_stale)"
    );
    assert!(world.failures() >= 4);
    world.repair_registry();
    sleep(seconds(10) + TICK).await;
    assert_eq!(world.version(), served);
}

#[tokio::test(start_paused = true)]
async fn confirm_within_bounds_the_age_of_the_check_that_answers() {
    let world = World::serving(WatchOptions {
        poll: seconds(3600),
        ..OPTIONS
    })
    .await;
    let unchanged = || world.checks("unchanged");
    // The check that has published it is recent enough.
    timeout(TICK, world.handle.confirm())
        .await
        .expect("the last check is young enough");
    assert_eq!(unchanged(), 0);
    sleep(seconds(3)).await;
    let all = async {
        tokio::join!(
            world.handle.confirm(),
            world.handle.confirm(),
            world.handle.confirm()
        )
    };
    timeout(TICK, all)
        .await
        .expect("the check does not wait for the interval");
    assert_eq!(unchanged(), 1, "they share one check");
    timeout(TICK, world.handle.confirm())
        .await
        .expect("the last check is young enough");
    assert_eq!(unchanged(), 1);
    // A change is published before the answer.
    sleep(seconds(3)).await;
    let before = world.version();
    put(&world.root(), 2);
    world.handle.confirm().await;
    assert_ne!(world.version(), before);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_fails_is_not_asked_more_often_by_clients_that_disagree() {
    let world = World::serving(WatchOptions {
        poll: seconds(3600),
        ..OPTIONS
    })
    .await;
    sleep(seconds(3)).await;
    world.break_registry();
    let waited = timeout(seconds(20), world.handle.confirm()).await;
    assert!(
        waited.is_err(),
        "nothing is confirmed while the registry fails"
    );
    // 1, 2, 4, 8 and 16 s, each at least half of that.
    assert!((4..=6).contains(&world.failures()), "{}", world.failures());
    world.repair_registry();
    timeout(seconds(40), world.handle.confirm())
        .await
        .expect("the next check confirms");
}

#[tokio::test(start_paused = true)]
async fn a_changed_policy_verifies_the_served_version_before_any_registry_is_asked() {
    let world = World::serving(WatchOptions {
        poll: seconds(3600),
        ..OPTIONS
    })
    .await;
    let served = world.version();
    world.break_registry();
    assert!(world.handle.set_policy(signed()));
    timeout(TICK, world.until("withdrawn"))
        .await
        .expect("a dead registry prolongs nothing");
    // The check that follows may have failed already, so the last failure can be the registry's.
    let reason = world.handle.withdrawal().unwrap().reason;
    assert!(
        reason.starts_with("no signature (digest sha256:"),
        "{reason}"
    );
    assert!(!world.handle.status().rejected.unwrap().verified);
    // Evidence is collected afresh at once.
    sleep(TICK).await;
    assert_eq!(world.failures(), 1);
    assert!(world.handle.set_policy(unsigned()));
    timeout(TICK, world.until("serving"))
        .await
        .expect("no registry is needed to trust it again");
    assert_eq!(world.version(), served);
    // The same policy under another name is no change.
    assert!(
        !world
            .handle
            .set_policy(Arc::new(TrustPolicy::unsigned("renamed".into())))
    );
    sleep(TICK).await;
    assert_eq!(
        (world.version(), world.handle.status().policy.as_str()),
        (served, "renamed")
    );
}

#[tokio::test(start_paused = true)]
async fn a_version_whose_verification_began_under_an_earlier_policy_is_not_published() {
    let world = World::serving(WatchOptions {
        poll: seconds(3600),
        ..OPTIONS
    })
    .await;
    let (first, mut states) = (world.version(), world.handle.subscribe());
    states.mark_unchanged();
    put(&world.root(), 2);
    sleep(seconds(3)).await;
    let held = world.pool.hold().await;
    let confirmed = tokio::spawn({
        let handle = world.handle.clone();
        async move { handle.confirm().await }
    });
    sleep(seconds(1)).await;
    assert_eq!(world.version(), first, "its verification waits");
    assert!(world.handle.set_policy(signed()));
    drop(held);
    timeout(seconds(1), states.changed())
        .await
        .expect("the first version is withdrawn")
        .unwrap();
    assert_eq!(states.borrow_and_update().label(), "withdrawn");
    timeout(seconds(10), confirmed)
        .await
        .expect("the check ends under the new policy")
        .unwrap();
    assert_eq!(world.checks("accepted"), 1);
    assert_eq!(
        world.handle.status().last_failure.unwrap().class,
        FailureClass::Evidence
    );
    // Both wait for a policy that accepts them; the tag names the second.
    world.handle.set_policy(unsigned());
    timeout(seconds(10), async {
        while world.version().is_none() || world.version() == first {
            sleep(TICK).await
        }
    })
    .await
    .expect("the second version is served once the policy accepts it");
}

#[tokio::test(start_paused = true)]
async fn on_missing_decides_whether_a_missing_tag_withdraws() {
    for (on_missing, state) in [
        (OnMissing::Keep, "serving"),
        (OnMissing::Withdraw, "withdrawn"),
    ] {
        let world = World::serving(WatchOptions {
            on_missing,
            ..OPTIONS
        })
        .await;
        Layout::open(world.root())
            .unwrap()
            .update_index(|index| index.unset("live"))
            .unwrap();
        sleep(2 * POLL).await;
        let status = world.handle.status();
        assert_eq!(
            (status.state.label(), status.last_failure.unwrap().class),
            (state, FailureClass::NotFound)
        );
        put(&world.root(), 1);
        sleep(POLL + POLL / 10).await;
        assert_eq!(world.handle.status().state.label(), "serving");
    }
}
