//! The task behind a bundle: checks the registry, decides with [`next`], tells the world.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

use super::{
    history::History,
    persist::{PersistQueue, Update},
    pool::Rejection,
    refresh::{Pipeline, RefreshResult, Restored},
    reverify,
    schedule::Schedule,
};
use crate::{
    metrics::Metrics,
    publish::{
        self, Admitted, Failure, FailureClass, Handle, OnMissing, Outcome, Outdated, Publisher, Requests, Snapshot,
        State, Withdrawal, next,
    },
    telemetry,
    verify::TrustPolicy,
};

/// How a bundle is watched.
#[derive(Debug, Clone, Copy)]
pub struct WatchOptions {
    /// Between checks of a healthy registry.
    pub poll: Duration,
    /// How old a check may be that contradicts a client.
    pub confirm_within: Duration,
    /// What a missing tag means for a bundle that is being served.
    pub on_missing: OnMissing,
    /// How long to serve without one successful check.
    pub max_stale: Option<Duration>,
    /// How long a bundle from disk waits for the first check before it is served.
    pub first_wait: Duration,
}

/// The task of one bundle; runs until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) options: WatchOptions,
    metrics: Metrics,
    pub(super) schedule: Schedule,
    pub(super) publisher: Publisher,
    /// Whose signature it takes.
    pub(super) policy: watch::Receiver<Arc<TrustPolicy>>,
    wanted: watch::Receiver<Option<Instant>>,
    pub(super) persist_queue: Arc<PersistQueue>,
    /// What follows from the disk, but is not shown before the registry had its say: something
    /// accepted, or that its `max_stale` is over.
    pub(super) restored: Option<State>,
    /// What was withdrawn for want of trust, until something else is accepted: should the policy
    /// change back, no registry is needed for it.
    pub(super) distrusted: Option<Arc<Snapshot>>,
    /// The last final defect, which is not fetched again.
    pub(super) known_defect: Option<Failure>,
    fresh_until: Option<Instant>,
    /// When the registry last confirmed what is served, as the disk has it.
    pub(super) last_confirmed: Option<Timestamp>,
    /// What was served so far.
    pub(super) history: Arc<History>,
}

impl Watcher {
    /// A watcher, not yet running, and the handle to it. `policy` decides until the handle
    /// brings another one.
    pub fn new(pipeline: Pipeline, policy: Arc<TrustPolicy>, options: WatchOptions) -> (Self, Handle) {
        let name = Arc::clone(&pipeline.name);
        let (reference, metrics) = (pipeline.reference.to_string(), pipeline.metrics.clone());
        let (publisher, handle, Requests { policy, check }) =
            Publisher::new(name, reference, policy, options.confirm_within, metrics);
        let watcher = Self {
            metrics: pipeline.metrics.clone(),
            schedule: Schedule::new(options.poll, &pipeline.name),
            pipeline: Arc::new(pipeline),
            options,
            publisher,
            policy,
            wanted: check,
            persist_queue: Arc::default(),
            restored: None,
            distrusted: None,
            known_defect: None,
            fresh_until: None,
            last_confirmed: None,
            history: Arc::default(),
        };
        (watcher, handle)
    }

    /// Watches for ever. Cancel by dropping.
    pub async fn run(mut self) {
        let (queue, pipeline) = (Arc::clone(&self.persist_queue), Arc::clone(&self.pipeline));
        tokio::select! {
            () = self.watch() => {}
            () = queue.work(&pipeline) => {}
        }
    }

    async fn watch(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        match self.restore(&policy).await {
            Some(Ok(restored)) => self.prepare_restored(restored),
            Some(Err(refused)) => {
                self.publisher.record_rejection(refused.status);
                self.publisher.record_failure(&refused.failure);
                let distrusted = Outcome::Failed(refused.failure);
                let after = next(&State::Pending, &distrusted, self.options.on_missing).served_before();
                if let State::Withdrawn(withdrawal) = after {
                    self.publisher.withdraw(withdrawal);
                }
            }
            None => self.restored = self.history.withdrawal().map(State::Withdrawn),
        }
        loop {
            let began = Instant::now();
            let found = self.check().await;
            let last_confirmed = self.last_confirmed;
            if let Outcome::Accepted(snapshot) = &found.outcome {
                self.persist_accepted(Arc::clone(snapshot)).await;
            }
            if self.publish_result(began, &found).is_err() {
                self.last_confirmed = last_confirmed;
                self.revert_persisted();
                Box::pin(self.reverify()).await;
                continue;
            }
            let wait = self.schedule.after(&found.outcome);
            let wait = self.within_max_stale(wait, &found.outcome);
            self.wait(began, wait).await;
        }
    }

    /// A few watchers at a time: at the start all of them are here.
    async fn restore(&mut self, policy: &Arc<TrustPolicy>) -> Option<Result<Restored, Rejection>> {
        let _permit = self.pipeline.pool.restore_permit().await;
        self.history = Arc::new(self.pipeline.history().await);
        Box::pin(self.pipeline.restore(policy, &self.history)).await
    }

    /// What the disk remembers is as fresh as it was noted to be, not as if it were new.
    fn prepare_restored(&mut self, Restored { snapshot, checked }: Restored) {
        self.record_served(&snapshot);
        self.restored = Some(State::Serving(Arc::clone(&snapshot)));
        let now = telemetry::now();
        self.last_confirmed = publish::believable(checked, now);
        let Some(max_stale) = self.options.max_stale else {
            // Nobody keeps it up, and it would be taken for the truth if `max_stale` came back.
            if checked.is_some() {
                self.last_confirmed = None;
                self.persist_queue.enqueue(Update::Confirm { snapshot, checked: None });
            }
            return;
        };
        if self.last_confirmed.is_none() {
            self.last_confirmed = Some(now);
            self.persist_queue.enqueue(Update::Confirm { snapshot, checked: self.last_confirmed });
        }
        let left = publish::left(max_stale, self.last_confirmed, now);
        if left.is_zero() {
            self.expire();
        } else {
            self.fresh_until = Some(Instant::now() + left);
        }
    }

    async fn check(&mut self) -> RefreshResult {
        loop {
            let Some(found) = self.refresh().await else {
                Box::pin(self.reverify()).await;
                continue;
            };
            // What was found unchanged may have been withdrawn meanwhile (`max_stale`).
            if !matches!(found.outcome, Outcome::Unchanged) || self.current().is_some() {
                return found;
            }
        }
    }

    /// What need not be fetched again.
    pub(super) fn current(&self) -> Option<Arc<Snapshot>> {
        let state = self.publisher.state();
        state.snapshot().or_else(|| self.restored.as_ref()?.snapshot()).cloned()
    }

    /// `None` when the policy changed on the way, or the verdict about what is served is over:
    /// that comes before anything that a registry could say.
    async fn refresh(&mut self) -> Option<RefreshResult> {
        let pipeline = Arc::clone(&self.pipeline);
        let policy = Arc::clone(&self.policy.borrow());
        let current = self.current();
        let due = self.verification_due();
        let (known_defect, past) = (self.known_defect.clone(), Arc::clone(&self.history));
        // Boxed, here and elsewhere: most of the time a watcher waits, and what it does then
        // need not have room for everything that it does otherwise.
        let mut refresh = Box::pin(pipeline.refresh(&policy, current.as_deref(), known_defect.as_ref(), &past));
        let first_wait = Instant::now() + self.options.first_wait;
        loop {
            let (waiting, stale) = (self.restored.is_some(), self.fresh_until);
            tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, due) => return None,
                found = &mut refresh => return Some(found),
                () = sleep_until(first_wait), if waiting => self.publish_restored(),
                () = reached(stale) => self.expire(),
            }
        }
    }

    /// What the registry asked for, as far as `max_stale` leaves time for it.
    fn within_max_stale(&self, wait: Duration, outcome: &Outcome) -> Duration {
        match (outcome, self.options.max_stale) {
            (Outcome::Failed(Failure { class: FailureClass::RateLimited(Some(_)), .. }), Some(max_stale)) => {
                let left = self.fresh_until.map(|until| until.saturating_duration_since(Instant::now()));
                self.schedule.cap_retry_after(wait, max_stale, left)
            }
            _ => wait,
        }
    }

    /// Until the next check is due, or a client's disagreement calls for one.
    async fn wait(&mut self, began: Instant, wait: Duration) {
        let due = Instant::now() + wait;
        loop {
            // While the registry fails, its back-off binds those who disagree as well.
            let healthy = self.publisher.has_answered(began);
            let (stale, again) = (self.fresh_until, self.verification_due());
            tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, again) => {
                    Box::pin(self.reverify()).await;
                    if reverify::should_check(&self.publisher) {
                        return;
                    }
                }
                () = sleep_until(due) => return,
                changed = self.wanted.changed(), if healthy => {
                    let asked = *self.wanted.borrow_and_update();
                    if changed.is_ok() && asked.is_some_and(|asked| asked > began + self.options.confirm_within) {
                        return;
                    }
                    if changed.is_err() {
                        return sleep_until(due).await;
                    }
                }
                () = reached(stale) => self.expire(),
            }
        }
    }

    /// Publishes what follows from a look at the registry, unless that has become outdated.
    fn publish_result(
        &mut self,
        began: Instant,
        RefreshResult { outcome, refused }: &RefreshResult,
    ) -> Result<(), Outdated> {
        // What is restored counts as served, but it is shown only if it stays.
        let before = self.restored.clone().unwrap_or_else(|| self.publisher.state());
        let mut after = next(&before, outcome, self.options.on_missing);
        if !self.history.is_empty() {
            after = after.served_before();
        }
        let withdrawn = matches!((&before, &after), (State::Serving(_), State::Withdrawn(_)));
        let policy = self.policy.clone();
        let admitted = Admitted::new(&policy, after)?;
        self.restored = None;
        let answered = match outcome {
            Outcome::Accepted(_) | Outcome::Unchanged => true,
            Outcome::Failed(failure) => failure.class.registry_answered(),
        };
        let label = match outcome {
            Outcome::Accepted(_) => "accepted",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed(failure) => failure.reason,
        };
        self.metrics.refreshes.with_label_values(&[&*self.pipeline.name, label]).inc();
        match outcome {
            Outcome::Failed(failure) => {
                self.publisher.record_rejection(refused.clone());
                self.publisher.record_failure(failure);
                // It stays known through trouble of other kinds: the same bytes have the same defect.
                if failure.class == FailureClass::Defect {
                    self.known_defect = Some(failure.clone());
                }
            }
            Outcome::Accepted(_) | Outcome::Unchanged => {
                self.publisher.clear_failure();
                self.known_defect = None;
                // From now on: a check that takes longer than this would else end stale.
                self.fresh_until = self.options.max_stale.map(|age| Instant::now() + age);
            }
        }
        self.publisher.publish(admitted);
        match outcome {
            Outcome::Accepted(snapshot) => {
                self.distrusted = None;
                self.record_served(snapshot);
            }
            Outcome::Unchanged => self.confirm(),
            Outcome::Failed(failure) if failure.class == FailureClass::NotFound => self.distrusted = None,
            Outcome::Failed(_) => {}
        }
        if withdrawn {
            self.persist_withdrawal(&self.publisher.state());
        }
        self.publisher.record_check(began, answered);
        Ok(())
    }

    /// What clients get should be there after a crash: one without a registry would else offer
    /// them the version before it. But a disk in trouble must not keep it from them.
    async fn persist_accepted(&mut self, snapshot: Arc<Snapshot>) {
        self.last_confirmed = self.options.max_stale.map(|_| telemetry::now());
        self.persist(snapshot).await;
    }

    /// As [`Self::keep`], for what nobody has just confirmed.
    pub(super) async fn persist(&mut self, snapshot: Arc<Snapshot>) {
        let history = self.history_serving(&snapshot).to_bytes();
        let number = self.persist_queue.enqueue(Update::Keep { snapshot, checked: self.last_confirmed, history });
        tokio::select! {
            () = self.persist_queue.flushed(number) => {}
            // Then it is outdated, which is found out when it should be published.
            () = reverify::due_or_policy_changed(&mut self.policy, None) => {}
        }
    }

    /// What was kept was not published: the disk goes back to what is.
    pub(super) fn revert_persisted(&self) {
        let (checked, history) = (self.last_confirmed, self.history.to_bytes());
        self.persist_queue.enqueue(match self.current() {
            Some(snapshot) => Update::Keep { snapshot, checked, history },
            None => Update::Forget { history },
        });
    }

    /// Notes on disk that the registry has confirmed what is served, now and then.
    fn confirm(&mut self) {
        let (Some(max_stale), Some(snapshot)) = (self.options.max_stale, self.current()) else { return };
        let now = telemetry::now();
        if publish::is_due(max_stale, self.last_confirmed, now) {
            // Whether or not it can be written: a disk in trouble is not tried at each poll.
            self.last_confirmed = Some(now);
            self.persist_queue.enqueue(Update::Confirm { snapshot, checked: self.last_confirmed });
        }
    }

    fn publish_restored(&mut self) {
        let policy = self.policy.clone();
        // What is outdated stays until it has been judged again.
        if let Some(Ok(admitted)) = self.restored.clone().map(|state| Admitted::new(&policy, state)) {
            self.restored = None;
            self.publisher.publish(admitted);
        }
    }

    /// The bytes stay where they are: a check that finds them right again need not fetch them.
    fn expire(&mut self) {
        (self.fresh_until, self.distrusted) = (None, None);
        let age = humantime::format_duration(self.options.max_stale.unwrap_or_default());
        let before = self.restored.as_ref().map_or_else(|| self.publisher.state(), State::clone);
        if before.snapshot().is_none() {
            return;
        }
        let reason = format!("no successful check for {age} (max_stale)").into();
        let withdrawal = Withdrawal { reason, version: before.withdrawn_version(), was_served: true };
        if self.restored.is_some() {
            self.restored = Some(State::Withdrawn(withdrawal));
        } else {
            self.publisher.withdraw(withdrawal);
        }
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
