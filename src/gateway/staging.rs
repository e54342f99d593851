//! The versions of a bundle that is rolled out in steps: a watcher for each one that its plan names.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::{Duration, timeout},
};

use super::watched::{Number, Watched, WatcherFactory};
use crate::{
    oci::Digest,
    publish::{FailureClass, Handle, OnMissing, Snapshot},
    rollout::{ActivePlan, LocalHalt, Plan, PlanWatch, RolloutMetrics, Staged, Strategy},
    watch::Siblings,
};

/// How long the catalog waits for a version that is already verified, so that no request finds it missing.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);

/// The versions of a bundle that is rolled out in steps.
///
/// The watcher of the configured reference finds new versions and proposes them. What clients get is served by
/// watchers of their digests, with the same policy and options: a version stays whatever the reference names.
#[derive(Debug)]
pub(super) struct Staging {
    /// How the next version is rolled out; `None` if the configuration no longer says: then the plan stays as it
    /// is, until the reference names a version that was not refused.
    pub(super) strategy: Option<Arc<Strategy>>,
    plan: Option<Arc<ActivePlan>>,
    pinned: BTreeMap<Digest, Watched>,
    watch: PlanWatch,
    metrics: Option<RolloutMetrics>,
    halt: LocalHalt,
    /// The requests that are held for the bundle.
    waiters: Arc<Notify>,
}

/// A plan to put in force. It is in force once `done` is sent.
#[derive(Debug)]
pub(super) struct PlanUpdate {
    pub(super) bundle: String,
    pub(super) plan: Arc<ActivePlan>,
    pub(super) done: oneshot::Sender<()>,
}

/// What the entry of the catalog depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    epoch: u64,
    generation: u64,
    stable: Option<Number>,
    candidate: Option<Number>,
    strategy: usize,
    is_withdrawn: bool,
}

impl Staging {
    pub(super) fn new(watch: PlanWatch, metrics: Option<RolloutMetrics>) -> Self {
        Self {
            strategy: None,
            plan: None,
            pinned: BTreeMap::new(),
            watch,
            metrics,
            halt: LocalHalt::default(),
            waiters: Arc::default(),
        }
    }

    /// The plan in force.
    pub(super) fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref().map(|active| &active.plan)
    }

    /// The watchers of the versions.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Watched> {
        self.pinned.values()
    }

    pub(super) fn watched_mut(&mut self) -> impl Iterator<Item = &mut Watched> {
        self.pinned.values_mut()
    }

    /// Makes the watchers that a plan needs, and puts it in force; the catalog has to be updated. Returns the
    /// watchers that it no longer needs, which end after that. `newest`: the watcher of the reference.
    ///
    /// # Errors
    /// When a watcher can't be made. Then nothing has changed.
    pub(super) async fn set_plan(
        &mut self,
        plan: Arc<ActivePlan>,
        newest: &Watched,
        factory: &mut WatcherFactory,
        watchers: &mut JoinSet<()>,
    ) -> anyhow::Result<Vec<Watched>> {
        let digests = digests(&plan.plan);
        let mut added = BTreeMap::new();
        for digest in digests
            .iter()
            .filter(|digest| !self.pinned.contains_key(*digest))
        {
            let siblings = Siblings {
                waiters: Some(Arc::clone(&self.waiters)),
                version: version_of(&newest.handle, digest),
            };
            let has_version = siblings.version.is_some();
            let mut watched = factory.pinned(newest, digest, siblings).await?;
            watched.run(watchers);
            if has_version {
                let mut state = watched.handle.subscribe();
                let served = state.wait_for(|state| state.snapshot().is_some());
                let _ = timeout(HANDOVER_TIMEOUT, served).await;
            }
            added.insert(digest.clone(), watched);
        }
        self.pinned.extend(added);
        self.plan = Some(plan);
        let gone = self
            .pinned
            .extract_if(.., |digest, _| !digests.contains(digest));
        Ok(gone.map(|(_, watched)| watched).collect())
    }

    /// What the entry of the catalog depends on.
    pub(super) fn stage(&self, newest: &Watched) -> Stage {
        let plan = self.plan();
        let number = |digest: &Digest| self.pinned.get(digest).map(|watched| watched.number);
        Stage {
            epoch: plan.map_or(0, |plan| plan.epoch),
            generation: plan.map_or(0, |plan| plan.generation),
            stable: plan.and_then(|plan| number(&plan.stable.manifest)),
            candidate: plan.and_then(|plan| number(&plan.live_candidate()?.manifest)),
            strategy: self
                .strategy
                .as_ref()
                .map_or(0, |it| Arc::as_ptr(it) as usize),
            is_withdrawn: is_withdrawn(newest),
        }
    }

    /// The watcher of the stable version; `None` without a plan, and while the bundle is withdrawn as a whole.
    pub(super) fn stable(&self, newest: &Watched) -> Option<&Watched> {
        let plan = self.plan().filter(|_| !is_withdrawn(newest))?;
        self.pinned.get(&plan.stable.manifest)
    }

    /// What the catalog has of the roll-out.
    pub(super) fn staged(&self, newest: &Watched) -> Staged {
        let plan = self.plan.as_ref();
        let candidate = plan.and_then(|active| active.plan.live_candidate());
        let candidate = candidate.filter(|_| !is_withdrawn(newest));
        let candidate = candidate.and_then(|version| self.pinned.get(&version.manifest));
        Staged {
            plan: plan.cloned(),
            candidate: candidate.map(|watched| watched.handle.clone()),
            watch: self.watch.clone(),
            halt: self.halt.clone(),
            strategy: self.strategy.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Whether the reference names another version than the one that was rolled back.
    pub(super) fn is_over(&self, newest: &Watched) -> bool {
        let state = newest.handle.subscribe();
        let state = state.borrow();
        let newest = state.snapshot().map(|snapshot| snapshot.manifest_digest());
        newest.is_some_and(|newest| self.plan().is_some_and(|plan| !plan.is_refused(newest)))
    }

    /// Ends all watchers.
    pub(super) fn end(self) {
        for watched in self.pinned.into_values() {
            watched.end();
        }
    }
}

/// The manifests that clients may get.
fn digests(plan: &Plan) -> Vec<Digest> {
    let versions = [Some(&plan.stable), plan.live_candidate()];
    let versions = versions.into_iter().flatten();
    versions.map(|version| version.manifest.clone()).collect()
}

/// The version with this digest, if a watcher serves it.
fn version_of(handle: &Handle, digest: &Digest) -> Option<Arc<Snapshot>> {
    let state = handle.subscribe();
    let state = state.borrow();
    let snapshot = state.snapshot()?;
    (snapshot.manifest_digest() == digest).then(|| Arc::clone(snapshot))
}

/// Whether the bundle is withdrawn as a whole, because its tag was deleted and `on_missing` says so.
pub(super) fn is_withdrawn(newest: &Watched) -> bool {
    newest.config.on_missing == OnMissing::Withdraw
        && newest.handle.withdrawal().is_some_and(|it| it.was_served)
        && newest.handle.failure_class() == Some(FailureClass::NotFound)
}
