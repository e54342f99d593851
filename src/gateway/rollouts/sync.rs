//! The task of all roll-outs.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    checks::{Evaluated, Evaluations},
    clients,
    known::{Known, is_longer},
    plan_file::PlanFile,
    store::PlanStore,
};
use crate::{
    fleet::{Fleet, Millis},
    gateway::staging::PlanUpdate,
    promql::PromqlClient,
    rollout::{
        ActivePlan, Context, Event, Plan, PlanWatch, Reconciled, RolloutMetrics, Staged, Unchanged,
        next, reconcile, restored,
    },
    server::{Catalog, Entry, RolloutReply, RolloutRequest, RolloutRequests, Rollouts},
    shared::{PlanRead, PlanWrite, SharedError, StoredPlan},
    telemetry::now_millis,
};

/// How often plans are read, clients are counted and steps are observed.
const INTERVAL: Duration = Duration::from_millis(500);
/// The pause between two readings that requests ask for.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// The roll-outs of all bundles, on one replica.
#[derive(Debug)]
pub(in super::super) struct RolloutSync {
    pub(super) store: PlanStore,
    /// This replica.
    pub(super) id: u64,
    grace: Duration,
    catalog: Catalog,
    pub(super) fleet: Fleet,
    pub(super) watch: PlanWatch,
    updates: mpsc::Sender<PlanUpdate>,
    file: PlanFile,
    pub(super) evaluations: Evaluations,
    pub(super) rollouts: Rollouts,
    requests: RolloutRequests,
    pub(super) metrics: RolloutMetrics,
    pub(super) known: BTreeMap<Arc<str>, Known>,
    pub(super) is_leader: bool,
    /// Since when the engine has failed.
    failing_since: Option<Instant>,
    /// How far the clock of the engine is ahead, in milliseconds.
    pub(super) offset: i64,
    pub(super) next_count: Instant,
}

/// What a roll-out task needs.
#[derive(Debug)]
pub(in super::super) struct SyncOptions {
    pub(in super::super) store: PlanStore,
    pub(in super::super) grace: Duration,
    pub(in super::super) catalog: Catalog,
    pub(in super::super) fleet: Fleet,
    pub(in super::super) watch: PlanWatch,
    pub(in super::super) updates: mpsc::Sender<PlanUpdate>,
    pub(in super::super) file: PlanFile,
    pub(in super::super) prometheus: Option<PromqlClient>,
    pub(in super::super) rollouts: (Rollouts, RolloutRequests),
    pub(in super::super) metrics: RolloutMetrics,
    /// The plans that are in force.
    pub(in super::super) plans: BTreeMap<String, Arc<ActivePlan>>,
}

/// What wakes the task.
enum Cause {
    Tick,
    Read,
    Request(RolloutRequest, oneshot::Sender<RolloutReply>),
    Evaluated(Evaluated),
}

impl RolloutSync {
    pub(in super::super) fn new(options: SyncOptions) -> Self {
        let known = options.plans.into_iter().map(|(bundle, plan)| {
            let mut known = Known::default();
            known.set_plan(plan);
            (bundle.into(), known)
        });
        let (rollouts, requests) = options.rollouts;
        Self {
            store: options.store,
            id: fastrand::u64(1..),
            grace: options.grace,
            catalog: options.catalog,
            fleet: options.fleet,
            watch: options.watch,
            updates: options.updates,
            file: options.file,
            evaluations: Evaluations::new(options.prometheus),
            rollouts,
            requests,
            metrics: options.metrics,
            known: known.collect(),
            is_leader: false,
            failing_since: Some(Instant::now()),
            offset: 0,
            next_count: Instant::now(),
        }
    }

    /// Reads the plans once, so that a replica that knows none begins with those of the others.
    pub(in super::super) async fn read_first(&mut self) {
        self.read().await;
        self.show(&self.staged());
    }

    /// Runs until the future is dropped.
    pub(in super::super) async fn run(mut self) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let cause = tokio::select! {
                _ = ticks.tick() => Cause::Tick,
                () = self.watch.wanted() => Cause::Read,
                (request, reply) = self.requests.next() => Cause::Request(request, reply),
                evaluated = self.evaluations.next() => Cause::Evaluated(evaluated),
            };
            match cause {
                Cause::Tick => self.tick().await,
                Cause::Read => {
                    self.read().await;
                    sleep(MIN_PAUSE).await;
                }
                Cause::Request(request, reply) => {
                    let answer = self.operate(&request).await;
                    // What the operator reads next has the change.
                    self.show(&self.staged());
                    // The operator may have gone.
                    let _ = reply.send(answer);
                }
                Cause::Evaluated(evaluated) => self.record_check(evaluated),
            }
        }
    }

    async fn tick(&mut self) {
        let is_read = self.read().await;
        self.count().await;
        let staged = self.staged();
        for (bundle, entry, staged) in &staged {
            self.halt_locally(bundle, entry, staged);
            if is_read {
                self.propose(bundle, entry, staged).await;
            }
        }
        if is_read && !staged.is_empty() {
            self.lead(&staged).await;
        }
        self.show(&staged);
    }

    /// The bundles that are rolled out in steps.
    pub(super) fn staged(&self) -> Vec<(Arc<str>, Arc<Entry>, Staged)> {
        let entries = self.catalog.entries().into_iter();
        let staged = entries.filter_map(|entry| {
            let staged = entry.staged()?.clone();
            Some((entry.name().into(), entry, staged))
        });
        staged.collect()
    }

    /// Reads all plans, and puts those in force that have changed. Returns whether the engine has answered.
    pub(super) async fn read(&mut self) -> bool {
        let began = Instant::now();
        let names = self.catalog.filter_map(|entry| {
            let staged = entry.staged()?;
            staged
                .strategy
                .is_some()
                .then(|| Arc::<str>::from(entry.name()))
        });
        self.known.retain(|name, _| names.contains(name));
        let wanted: Vec<_> = names
            .iter()
            .map(|name| {
                (
                    &**name,
                    self.known.get(name).and_then(|known| known.version),
                )
            })
            .collect();
        let Ok(read) = self.store.read(&wanted).await else {
            // The shared state logs and counts its errors.
            self.record_failure();
            return false;
        };
        let engine = u64::try_from(read.engine_time.as_millis()).unwrap_or(u64::MAX);
        self.offset = signed(engine).saturating_sub(signed(now_millis()));
        let mut changed = Vec::new();
        for (name, stored) in names.iter().zip(read.plans) {
            match self.reconcile(name, stored).await {
                Ok(Some(plan)) => changed.push((Arc::clone(name), plan)),
                Ok(None) => {}
                Err(_) => {
                    self.record_failure();
                    return false;
                }
            }
        }
        if !changed.is_empty() {
            self.adopt(changed).await;
        }
        self.record_success(began);
        true
    }

    /// Compares what was read with what is known. Returns a plan to put in force.
    async fn reconcile(
        &mut self,
        name: &Arc<str>,
        read: PlanRead,
    ) -> Result<Option<Plan>, SharedError> {
        let known = self.known.entry(Arc::clone(name)).or_default();
        let stored = match read {
            PlanRead::Unchanged => {
                known.broken = None;
                return Ok(None);
            }
            PlanRead::Absent => None,
            PlanRead::Plan(stored) => Some(stored),
            PlanRead::Broken(reason) => {
                known.set_broken(name, &reason);
                return Ok(None);
            }
        };
        let read = match stored.as_ref().map(decode).transpose() {
            Ok(read) => read,
            Err(error) => {
                known.set_broken(name, &error.to_string());
                return Ok(None);
            }
        };
        known.broken = None;
        match reconcile(known.plan(), read.as_ref()) {
            Reconciled::Same => {
                // Only now: what a failed restoration leaves in the store has to be read again.
                known.version = stored.as_ref().map(StoredPlan::version);
                Ok(None)
            }
            Reconciled::Adopt => Ok(read),
            Reconciled::Restore => {
                let Some(plan) = known.plan().map(restored) else {
                    return Ok(None);
                };
                known.progress.restart();
                tracing::warn!(
                    bundle = &**name,
                    epoch = plan.epoch,
                    "the shared state has lost the plan of the roll-out: it is written again"
                );
                match self.store.restore(name, &plan).await? {
                    PlanWrite::Written(stored) | PlanWrite::Superseded(Some(stored)) => {
                        Ok(decode(&stored).ok())
                    }
                    PlanWrite::Superseded(None) => Ok(None),
                }
            }
        }
    }

    pub(super) fn record_failure(&mut self) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.is_leader = false;
        for known in self.known.values_mut() {
            known.progress.interrupt();
        }
        self.watch
            .record_failure(is_longer(Some(since), self.grace));
    }

    fn record_success(&mut self, began: Instant) {
        self.watch.record_read(began);
        if self.failing_since.take().is_some() {
            // Requests that are held because the engine did not answer are decided again.
            for (_, entry, _) in self.staged() {
                entry.handle().wake_waiters();
            }
        }
    }

    /// Puts plans in force: on disk first, so that a restart does not take them back.
    async fn adopt(&mut self, changed: Vec<(Arc<str>, Plan)>) {
        for (bundle, plan) in changed {
            let known = self.known.entry(bundle).or_default();
            known.set_plan(Arc::new(ActivePlan::new(plan)));
            // Updated below.
        }
        let entries = self.staged();
        self.file.write(self.plans_to_keep(&entries)).await;
        for (bundle, _, staged) in entries {
            let Some(known) = self.known.get_mut(&bundle) else {
                continue;
            };
            let shown = staged.plan.as_ref().map(|shown| &shown.plan);
            let Some(plan) = known.plan.clone().filter(|plan| shown != Some(&plan.plan)) else {
                continue;
            };
            if let Some(shown) = shown {
                known.continue_halt(shown, &staged.halt);
            }
            log_transition(&bundle, shown, &plan.plan);
            let (done, in_force) = oneshot::channel();
            let update = PlanUpdate {
                bundle: bundle.to_string(),
                plan,
                done,
            };
            if self.updates.send(update).await.is_ok() {
                // It fails if the bundle was removed meanwhile.
                let _ = in_force.await;
            }
        }
    }

    /// The plans that outlive a restart: also those of bundles whose `rollout` was removed.
    fn plans_to_keep(&self, entries: &[(Arc<str>, Arc<Entry>, Staged)]) -> Vec<(String, Plan)> {
        let plan_of = |bundle: &Arc<str>, staged: &Staged| {
            let known = self.known.get(bundle).and_then(|known| known.plan.clone());
            known.or_else(|| staged.plan.clone())
        };
        let plans = entries.iter().filter_map(|(bundle, _, staged)| {
            let plan = plan_of(bundle, staged)?;
            Some((bundle.to_string(), plan.plan.clone()))
        });
        plans.collect()
    }

    /// Puts a plan in force that this replica has written.
    pub(super) async fn adopt_written(&mut self, bundle: &Arc<str>, stored: &StoredPlan) {
        if let Ok(plan) = decode(stored) {
            self.adopt(vec![(Arc::clone(bundle), plan)]).await;
        }
    }

    /// Changes a plan. Returns the plan that is in force then, or why it was not changed.
    pub(super) async fn apply(
        &mut self,
        bundle: &Arc<str>,
        event: &Event,
    ) -> Result<Arc<ActivePlan>, Refused> {
        let plan = self.known.get(bundle).and_then(|known| known.plan.clone());
        let plan = plan.ok_or(Refused::Unchanged(Unchanged::NoEffect))?;
        let broken = self
            .known
            .get(bundle)
            .and_then(|known| known.broken.clone());
        if let Some(reason) = broken {
            return Err(Refused::Unreachable(reason));
        }
        let after = self
            .next(bundle, &plan.plan, event)
            .map_err(Refused::Unchanged)?;
        match self.store.replace(bundle, &after).await {
            Ok(PlanWrite::Written(stored)) => {
                if let Some(transition) = after.history.last() {
                    self.metrics.count_transition(bundle, transition);
                }
                self.adopt_written(bundle, &stored).await;
                let known = self.known.get(bundle).and_then(|known| known.plan.clone());
                known.ok_or(Refused::Superseded)
            }
            Ok(PlanWrite::Superseded(_)) => Err(Refused::Superseded),
            Err(error) => {
                self.record_failure();
                Err(Refused::Unreachable(error.to_string()))
            }
        }
    }

    fn next(&self, bundle: &str, plan: &Plan, event: &Event) -> Result<Plan, Unchanged> {
        let table = &self.fleet.table;
        let threshold_of = |plan: &Plan, count: u32| clients::threshold(table, bundle, plan, count);
        let context = Context {
            now: self.engine_now(),
            threshold_of: &threshold_of,
        };
        next(plan, event, &context)
    }

    pub(super) fn engine_now(&self) -> Millis {
        now_millis().saturating_add_signed(self.offset)
    }
}

/// Why a plan was not changed.
pub(super) enum Refused {
    Unchanged(Unchanged),
    /// Another replica has changed it.
    Superseded,
    Unreachable(String),
}

pub(super) fn decode(stored: &StoredPlan) -> Result<Plan, crate::rollout::PlanError> {
    Plan::from_bytes(stored.epoch, &stored.content)
}

fn signed(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

fn log_transition(bundle: &str, before: Option<&Plan>, after: &Plan) {
    let Some(transition) = after.history.last() else {
        return;
    };
    if before.is_some_and(|before| before.history.last() == Some(transition)) {
        return;
    }
    let (step, steps) = (after.step + 1, after.strategy.steps.len());
    let candidate = after.candidate.as_ref().map(|it| it.manifest.as_str());
    tracing::info!(
        bundle,
        phase = after.phase.label(),
        step,
        steps,
        stable = after.stable.manifest.as_str(),
        candidate,
        cause = transition.cause.label(),
        reason = transition.reason,
        "the roll-out has changed"
    );
}
