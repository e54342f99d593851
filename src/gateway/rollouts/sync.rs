//! The task of all roll-outs.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{Duration, Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    checks::{CheckKey, Evaluated, Evaluations},
    clients::{self, Counted},
    known::{Known, is_longer, own_time},
    plan_file::PlanFile,
    store::PlanStore,
};
use crate::{
    fleet::{Fleet, Millis},
    gateway::staging::PlanUpdate,
    promql::PromqlClient,
    publish::Hint,
    rollout::{
        ActivePlan, Context, Event, Operation, Plan, PlanWatch, Progress, Reconciled,
        RolloutMetrics, RolloutSample, Staged, Strategy, Unchanged, next, proposal, reconcile,
        restored, too_many_failures,
    },
    server::{
        Catalog, Entry, RolloutReply, RolloutRequest, RolloutRequests, RolloutStatus, Rollouts,
    },
    shared::{Lease, PlanRead, PlanWrite, SharedError, StoredPlan},
    telemetry::now_millis,
};

/// How often plans are read, clients are counted and steps are observed.
const INTERVAL: Duration = Duration::from_millis(500);
/// The pause between two readings that requests ask for.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// How long the lease of the leader lasts.
const LEASE: Duration = Duration::from_secs(15);
/// Counting takes no larger part of the time than this.
const COUNTING_SHARE: u32 = 10;

/// The roll-outs of all bundles, on one replica.
#[derive(Debug)]
pub(in super::super) struct RolloutSync {
    store: PlanStore,
    /// This replica.
    id: u64,
    grace: Duration,
    catalog: Catalog,
    fleet: Fleet,
    watch: PlanWatch,
    updates: mpsc::Sender<PlanUpdate>,
    file: PlanFile,
    evaluations: Evaluations,
    rollouts: Rollouts,
    requests: RolloutRequests,
    metrics: RolloutMetrics,
    known: BTreeMap<Arc<str>, Known>,
    is_leader: bool,
    /// Since when the engine has failed.
    failing_since: Option<Instant>,
    /// How far the clock of the engine is ahead, in milliseconds.
    offset: i64,
    next_count: Instant,
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
                    // The operator may have gone.
                    let _ = reply.send(self.operate(&request).await);
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
    fn staged(&self) -> Vec<(Arc<str>, Arc<Entry>, Staged)> {
        let entries = self.catalog.entries().into_iter();
        let staged = entries.filter_map(|entry| {
            let staged = entry.staged()?.clone();
            Some((entry.name().into(), entry, staged))
        });
        staged.collect()
    }

    /// Reads all plans, and puts those in force that have changed. Returns whether the engine has answered.
    async fn read(&mut self) -> bool {
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
        let read = match self.store.read(&wanted).await {
            Ok(read) => read,
            Err(_) => {
                self.record_failure();
                return false;
            }
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
            PlanRead::Unchanged => return Ok(None),
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
        known.version = stored.as_ref().map(StoredPlan::version);
        match reconcile(known.plan(), read.as_ref()) {
            Reconciled::Same => Ok(None),
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
                        known.version = Some(stored.version());
                        Ok(decode(&stored).ok())
                    }
                    PlanWrite::Superseded(None) => Ok(None),
                }
            }
        }
    }

    fn record_failure(&mut self) {
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

    /// Counts the clients of live roll-outs.
    async fn count(&mut self) {
        let live = self.known.iter().filter_map(|(bundle, known)| {
            let plan = known.plan.clone()?;
            let began = own_time(plan.plan.began, self.offset);
            plan.named_candidate?;
            Some((Arc::clone(bundle), Counted { plan, began }))
        });
        let live: HashMap<_, _> = live.collect();
        let began = Instant::now();
        if live.is_empty() || began < self.next_count {
            return;
        }
        let table = self.fleet.table.clone();
        let counted = spawn_blocking(move || clients::count(&table, &live)).await;
        self.next_count = Instant::now() + began.elapsed() * COUNTING_SHARE;
        for (bundle, tally) in counted.unwrap_or_default() {
            if let Some(known) = self.known.get_mut(&bundle) {
                known.tally = tally;
            }
        }
    }

    /// Rule R5: a replica that counts too many failures halts at once; the engine learns of it when it can.
    fn halt_locally(&mut self, bundle: &Arc<str>, entry: &Entry, staged: &Staged) {
        let Some(known) = self.known.get_mut(bundle) else {
            return;
        };
        let tally = known.tally;
        let event = known
            .plan()
            .and_then(|plan| too_many_failures(plan, &tally));
        if let Some(event) = event
            && known.halt(&staged.halt, event)
        {
            let failed = tally.failed;
            tracing::warn!(
                bundle = &**bundle,
                failed,
                "this replica halts the roll-out"
            );
            entry.handle().wake_waiters();
        }
    }

    /// Proposes what this replica knows and the plan does not.
    async fn propose(&mut self, bundle: &Arc<str>, entry: &Entry, staged: &Staged) {
        let Some(strategy) = staged.strategy.clone() else {
            return;
        };
        let is_leader = self.is_leader;
        let known = self.known.entry(Arc::clone(bundle)).or_default();
        let newest = known.newest(entry);
        let Some(plan) = known.plan() else {
            if let Some(newest) = newest {
                self.begin_plan(bundle, newest.version, &strategy).await;
            }
            return;
        };
        let is_behind = newest
            .as_ref()
            .is_none_or(|newest| newest.version.manifest != plan.newest().manifest);
        let generation = plan.generation;
        let halt = known.halt_event();
        let event = halt.or_else(|| known.trust_event(entry, staged));
        let event = event.or_else(|| proposal(plan, newest.as_ref()?, &strategy, is_leader));
        if is_behind && known.hinted != generation {
            known.hinted = generation;
            entry.hint(Hint::Push);
        }
        if let Some(event) = event {
            // It is tried again at the next tick.
            let _ = self.apply(bundle, &event).await;
        }
    }

    async fn begin_plan(
        &mut self,
        bundle: &Arc<str>,
        version: crate::rollout::Version,
        strategy: &Arc<Strategy>,
    ) {
        let mut plan = Plan::first(version, Strategy::clone(strategy), self.engine_now());
        plan.epoch = 1;
        if let Ok(PlanWrite::Written(stored)) = self.store.replace(bundle, &plan).await {
            self.adopt_written(bundle, &stored).await;
        }
    }

    /// Puts a plan in force that this replica has written.
    async fn adopt_written(&mut self, bundle: &Arc<str>, stored: &StoredPlan) {
        let known = self.known.entry(Arc::clone(bundle)).or_default();
        known.version = Some(stored.version());
        if let Ok(plan) = decode(stored) {
            self.adopt(vec![(Arc::clone(bundle), plan)]).await;
        }
    }

    /// Changes a plan. Returns the plan that is in force then, or why it was not changed.
    async fn apply(
        &mut self,
        bundle: &Arc<str>,
        event: &Event,
    ) -> Result<Arc<ActivePlan>, Refused> {
        let plan = self.known.get(bundle).and_then(|known| known.plan.clone());
        let plan = plan.ok_or(Refused::Unchanged(Unchanged::NoEffect))?;
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

    /// Observes the steps, if this replica holds the lease.
    async fn lead(&mut self, staged: &[(Arc<str>, Arc<Entry>, Staged)]) {
        let note: BTreeMap<&str, &Progress> = self
            .known
            .iter()
            .map(|(bundle, known)| (&**bundle, &known.progress))
            .collect();
        let note = serde_json::to_vec(&note).unwrap_or_default();
        match self.store.lease(self.id, LEASE, &note).await {
            Ok(Lease::Renewed) => {}
            Ok(Lease::Taken(note)) => self.continue_with(&note),
            Ok(Lease::Held) | Err(_) => {
                self.is_leader = false;
                return;
            }
        }
        self.is_leader = true;
        let now = self.engine_now();
        for (bundle, ..) in staged {
            let Some(known) = self.known.get_mut(bundle) else {
                continue;
            };
            let Some(active) = known.plan.clone() else {
                continue;
            };
            let plan = &active.plan;
            known.progress.observe(plan, &known.tally, now);
            if let Some(event) = known.progress.verdict(plan, &known.tally) {
                let _ = self.apply(bundle, &event).await;
                continue;
            }
            if plan.phase.is_live() {
                self.begin_checks(bundle, plan, now);
            }
        }
    }

    /// Continues with what the last leader has observed.
    fn continue_with(&mut self, note: &[u8]) {
        let note: BTreeMap<String, Progress> = serde_json::from_slice(note).unwrap_or_default();
        for (bundle, progress) in note {
            if let Some(known) = self.known.get_mut(&*bundle) {
                known.progress = progress;
                known.progress.interrupt();
            }
        }
    }

    fn begin_checks(&mut self, bundle: &Arc<str>, plan: &Plan, now: Millis) {
        let Some(known) = self.known.get(bundle) else {
            return;
        };
        let checks = plan.strategy.checks.iter().zip(known.progress.checks());
        let due: Vec<_> = checks
            .enumerate()
            .filter(|(_, (check, state))| state.is_due(check, now))
            .map(|(index, _)| index)
            .collect();
        for index in due {
            let key = CheckKey {
                bundle: Arc::clone(bundle),
                generation: plan.generation,
                step: plan.step,
                index,
            };
            self.evaluations.begin(key, plan);
        }
    }

    fn record_check(&mut self, evaluated: Evaluated) {
        let Evaluated { key, outcome } = evaluated;
        let now = self.engine_now();
        let Some(known) = self.known.get_mut(&key.bundle) else {
            return;
        };
        let Some(active) = known.plan.clone() else {
            return;
        };
        let plan = &active.plan;
        if (plan.generation, plan.step) != (key.generation, key.step) {
            return;
        }
        known.progress.follow(plan);
        let check = plan.strategy.checks.get(key.index);
        if let Some((check, state)) = check.zip(known.progress.checks_mut().get_mut(key.index)) {
            self.metrics
                .count_check(&key.bundle, &check.name, outcome.label());
            state.record(outcome, now);
        }
    }

    /// Carries out what an operator asks for.
    async fn operate(&mut self, request: &RolloutRequest) -> RolloutReply {
        let bundle: Arc<str> = request.bundle.as_str().into();
        let staged = self.staged();
        let Some((_, entry, staged)) = staged.into_iter().find(|(name, ..)| *name == bundle) else {
            return RolloutReply::Unknown;
        };
        let is_read = self.read().await;
        let plan = self.known.get(&bundle).and_then(|known| known.plan.clone());
        let Some(plan) = plan else {
            let message = "no plan of the roll-out is known yet; try again".to_owned();
            return RolloutReply::Unreachable(message);
        };
        if let Some(epoch) = request.epoch.filter(|epoch| *epoch != plan.plan.epoch) {
            let current = plan.plan.epoch;
            return RolloutReply::Conflict(format!(
                "the plan has changed: its epoch is {current}, not {epoch}; read it again"
            ));
        }
        let event = Event::Operator(request.operation, request.operator.clone());
        let refused = match is_read {
            true => match self.apply(&bundle, &event).await {
                Ok(plan) => return RolloutReply::Changed(Arc::new(plan.plan.clone())),
                Err(refused) => refused,
            },
            false => Refused::Unreachable("the shared state can't be reached".to_owned()),
        };
        match refused {
            Refused::Unchanged(unchanged) => RolloutReply::Conflict(unchanged.to_string()),
            Refused::Superseded => {
                RolloutReply::Conflict("the plan has changed meanwhile; read it again".to_owned())
            }
            Refused::Unreachable(_)
                if request.operation == Operation::Abort && plan.plan.phase.is_live() =>
            {
                if let Some(known) = self.known.get_mut(&bundle) {
                    known.halt(&staged.halt, event);
                }
                entry.handle().wake_waiters();
                RolloutReply::HaltedHere
            }
            Refused::Unreachable(error) => RolloutReply::Unreachable(error),
        }
    }

    /// Updates what operators see.
    fn show(&mut self, staged: &[(Arc<str>, Arc<Entry>, Staged)]) {
        let engine = self.watch.engine();
        let statuses = staged.iter().map(|(bundle, entry, staged)| {
            let known = self.known.get(bundle);
            let plan = known.and_then(|known| known.plan.as_ref());
            if let Some(snapshot) = entry.handle().served_at(crate::telemetry::now)
                && plan.is_some_and(|plan| plan.plan.stable.manifest == *snapshot.manifest_digest())
            {
                entry.newest().set_stable(&snapshot);
            }
            let is_observed = |plan: &&Arc<ActivePlan>| self.is_leader && plan.plan.phase.is_live();
            RolloutStatus {
                bundle: bundle.to_string(),
                plan: plan.map(|plan| Arc::new(plan.plan.clone())),
                tally: known.map(|known| known.tally).unwrap_or_default(),
                criteria: known
                    .zip(plan.filter(is_observed))
                    .map(|(known, plan)| known.progress.criteria(&plan.plan, &known.tally)),
                checks: known.map_or_else(Vec::new, |known| known.progress.checks().to_vec()),
                is_halted: known.is_some_and(|known| known.is_halted(&staged.halt)),
                is_leader: self.is_leader,
                engine,
            }
        });
        let statuses: Vec<_> = statuses.collect();
        self.metrics
            .set(statuses.iter().map(|status| RolloutSample {
                bundle: &status.bundle,
                plan: status.plan.as_deref(),
                tally: &status.tally,
            }));
        self.metrics.set_leader(self.is_leader);
        self.metrics.set_plan_age(self.watch.age());
        self.rollouts.replace(statuses);
    }

    fn engine_now(&self) -> Millis {
        now_millis().saturating_add_signed(self.offset)
    }
}

/// Why a plan was not changed.
enum Refused {
    Unchanged(Unchanged),
    /// Another replica has changed it.
    Superseded,
    Unreachable(String),
}

fn decode(stored: &StoredPlan) -> Result<Plan, crate::rollout::PlanError> {
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
