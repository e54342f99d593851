//! The task behind a bundle: checks the registry, decides with [`next`], tells the world.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

use super::{
    Snapshot,
    board::{Admitted, Board, Outdated},
    court::Refused,
    doubt, freshness,
    handle::{Checks, Handle},
    history::History,
    pipeline::{Found, Pipeline, Remembered},
    schedule::Schedule,
    scribe::{Entry, Scribe},
    state::{Failure, FailureClass, OnMissing, Outcome, State, Withdrawal, next},
};
use crate::{metrics::Metrics, telemetry, verify::TrustPolicy};

/// How a bundle is watched.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
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

/// Runs until it is dropped; owned by whoever spawned it.
#[derive(Debug)]
pub struct Watcher {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) rules: Rules,
    metrics: Metrics,
    pub(super) schedule: Schedule,
    pub(super) board: Board,
    /// Whose signature it takes.
    pub(super) policy: watch::Receiver<Arc<TrustPolicy>>,
    checks: watch::Sender<Checks>,
    wanted: watch::Receiver<Option<Instant>>,
    pub(super) scribe: Arc<Scribe>,
    /// What follows from the disk, but is not shown before the registry had its say: something
    /// accepted, or that its `max_stale` is over.
    pub(super) prepared: Option<State>,
    /// What was withdrawn for want of trust, until something else is accepted: should the policy
    /// change back, no registry is needed for it.
    pub(super) doubted: Option<Arc<Snapshot>>,
    /// The last final defect, which is not fetched again.
    pub(super) hopeless: Option<Failure>,
    fresh_until: Option<Instant>,
    /// When the registry last confirmed what is served, as the disk has it.
    pub(super) noted: Option<Timestamp>,
    /// What was served so far.
    pub(super) history: Arc<History>,
}

impl Watcher {
    /// A watcher, not yet running, and the handle to it. `policy` decides until the handle
    /// brings another one.
    pub fn new(pipeline: Pipeline, policy: Arc<TrustPolicy>, rules: Rules) -> (Self, Handle) {
        let (checks, checks_seen) = watch::channel(Checks::default());
        let (wanted, wanted_seen) = watch::channel(None);
        let (name, reference) = (Arc::clone(&pipeline.name), pipeline.reference.to_string());
        let (board, state, status) = Board::new(Arc::clone(&name), reference, &policy);
        let (policy, policy_seen) = watch::channel(policy);
        let handle = Handle {
            name,
            state,
            checks: checks_seen,
            wanted: Arc::new(wanted),
            confirm_within: rules.confirm_within,
            policy: Arc::new(policy),
            status,
            fallback: None,
        };
        let watcher = Self {
            metrics: pipeline.metrics.clone(),
            schedule: Schedule::new(rules.poll, &pipeline.name),
            pipeline: Arc::new(pipeline),
            rules,
            board,
            policy: policy_seen,
            checks,
            wanted: wanted_seen,
            scribe: Arc::default(),
            prepared: None,
            doubted: None,
            hopeless: None,
            fresh_until: None,
            noted: None,
            history: Arc::default(),
        };
        (watcher, handle)
    }

    /// Watches for ever. Cancel by dropping.
    pub async fn run(mut self) {
        let (scribe, pipeline) = (Arc::clone(&self.scribe), Arc::clone(&self.pipeline));
        tokio::select! {
            () = self.watch() => {}
            () = scribe.work(&pipeline) => {}
        }
    }

    async fn watch(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        match self.restore(&policy).await {
            Some(Ok(remembered)) => self.prepare(remembered),
            Some(Err(refused)) => {
                self.board.refuse(refused.status);
                self.board.note(&refused.failure);
                let distrusted = Outcome::Failed(refused.failure);
                let after = next(&State::Pending, &distrusted, self.rules.on_missing).served_before();
                if let State::Withdrawn(withdrawal) = after {
                    self.board.withdraw(withdrawal);
                }
            }
            None => self.prepared = self.history.withdrawal().map(State::Withdrawn),
        }
        loop {
            let began = Instant::now();
            let found = self.check().await;
            let noted = self.noted;
            if let Outcome::Accepted(snapshot) = &found.outcome {
                self.keep(Arc::clone(snapshot)).await;
            }
            if self.conclude(began, &found).is_err() {
                self.noted = noted;
                self.take_back();
                Box::pin(self.reconsider()).await;
                continue;
            }
            let wait = self.schedule.after(&found.outcome);
            let wait = self.within_max_stale(wait, &found.outcome);
            self.pause(began, wait).await;
        }
    }

    /// A few watchers at a time: at the start all of them are here.
    async fn restore(&mut self, policy: &Arc<TrustPolicy>) -> Option<Result<Remembered, Refused>> {
        let _turn = self.pipeline.court.restore_turn().await;
        self.history = Arc::new(self.pipeline.history().await);
        Box::pin(self.pipeline.recall(policy, &self.history)).await
    }

    /// What the disk remembers is as fresh as it was noted to be, not as if it were new.
    fn prepare(&mut self, Remembered { snapshot, checked }: Remembered) {
        self.remember(&snapshot);
        self.prepared = Some(State::Serving(Arc::clone(&snapshot)));
        let now = telemetry::now();
        self.noted = freshness::believable(checked, now);
        let Some(max_stale) = self.rules.max_stale else {
            // Nobody keeps it up, and it would be taken for the truth if `max_stale` came back.
            if checked.is_some() {
                self.noted = None;
                self.scribe.put_down(Entry::Confirm { snapshot, checked: None });
            }
            return;
        };
        if self.noted.is_none() {
            self.noted = Some(now);
            self.scribe.put_down(Entry::Confirm { snapshot, checked: self.noted });
        }
        let left = freshness::left(max_stale, self.noted, now);
        if left.is_zero() {
            self.expire();
        } else {
            self.fresh_until = Some(Instant::now() + left);
        }
    }

    async fn check(&mut self) -> Found {
        loop {
            let Some(found) = self.look().await else {
                Box::pin(self.reconsider()).await;
                continue;
            };
            // What was found unchanged may have been withdrawn meanwhile (`max_stale`).
            if !matches!(found.outcome, Outcome::Unchanged) || self.known().is_some() {
                return found;
            }
        }
    }

    /// What need not be fetched again.
    pub(super) fn known(&self) -> Option<Arc<Snapshot>> {
        let state = self.board.state();
        state.snapshot().or_else(|| self.prepared.as_ref()?.snapshot()).cloned()
    }

    /// `None` when the policy changed on the way, or the verdict about what is served is over:
    /// that comes before anything that a registry could say.
    async fn look(&mut self) -> Option<Found> {
        let pipeline = Arc::clone(&self.pipeline);
        let policy = Arc::clone(&self.policy.borrow());
        let known = self.known();
        let due = self.due();
        let (hopeless, past) = (self.hopeless.clone(), Arc::clone(&self.history));
        // Boxed, here and elsewhere: most of the time a watcher waits, and what it does then
        // need not have room for everything that it does otherwise.
        let mut refresh = Box::pin(pipeline.refresh(&policy, known.as_deref(), hopeless.as_ref(), &past));
        let first_wait = Instant::now() + self.rules.first_wait;
        loop {
            let (waiting, stale) = (self.prepared.is_some(), self.fresh_until);
            tokio::select! {
                biased;
                () = doubt::arises(&mut self.policy, due) => return None,
                found = &mut refresh => return Some(found),
                () = sleep_until(first_wait), if waiting => self.show_prepared(),
                () = reached(stale) => self.expire(),
            }
        }
    }

    /// What the registry asked for, as far as `max_stale` leaves time for it.
    fn within_max_stale(&self, wait: Duration, outcome: &Outcome) -> Duration {
        match (outcome, self.rules.max_stale) {
            (Outcome::Failed(Failure { class: FailureClass::RateLimited(Some(_)), .. }), Some(max_stale)) => {
                let left = self.fresh_until.map(|until| until.saturating_duration_since(Instant::now()));
                self.schedule.patience(wait, max_stale, left)
            }
            _ => wait,
        }
    }

    /// Until the next check is due, or a client's disagreement calls for one.
    async fn pause(&mut self, began: Instant, wait: Duration) {
        let due = Instant::now() + wait;
        loop {
            // While the registry fails, its back-off binds those who disagree as well.
            let healthy = self.checks.borrow().answered == Some(began);
            let (stale, again) = (self.fresh_until, self.due());
            tokio::select! {
                biased;
                () = doubt::arises(&mut self.policy, again) => {
                    Box::pin(self.reconsider()).await;
                    if doubt::is_worth_a_look(&self.board) {
                        return;
                    }
                }
                () = sleep_until(due) => return,
                changed = self.wanted.changed(), if healthy => {
                    let asked = *self.wanted.borrow_and_update();
                    if changed.is_ok() && asked.is_some_and(|asked| asked > began + self.rules.confirm_within) {
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
    fn conclude(&mut self, began: Instant, Found { outcome, refused }: &Found) -> Result<(), Outdated> {
        // What lies prepared counts as served, but it is shown only if it stays.
        let before = self.prepared.clone().unwrap_or_else(|| self.board.state());
        let mut after = next(&before, outcome, self.rules.on_missing);
        if !self.history.is_empty() {
            after = after.served_before();
        }
        let withdrawn = matches!((&before, &after), (State::Serving(_), State::Withdrawn(_)));
        let policy = self.policy.clone();
        let admitted = Admitted::new(&policy, after)?;
        self.prepared = None;
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
                self.board.refuse(refused.clone());
                self.board.note(failure);
                // It stays known through trouble of other kinds: the same bytes have the same defect.
                if failure.class == FailureClass::Defect {
                    self.hopeless = Some(failure.clone());
                }
            }
            Outcome::Accepted(_) | Outcome::Unchanged => {
                self.board.forgive();
                self.hopeless = None;
                // From now on: a check that takes longer than this would else end stale.
                self.fresh_until = self.rules.max_stale.map(|age| Instant::now() + age);
            }
        }
        self.board.show(admitted);
        match outcome {
            Outcome::Accepted(snapshot) => {
                self.doubted = None;
                self.remember(snapshot);
            }
            Outcome::Unchanged => self.confirm(),
            Outcome::Failed(failure) if failure.class == FailureClass::NotFound => self.doubted = None,
            Outcome::Failed(_) => {}
        }
        if withdrawn {
            self.forget(&self.board.state());
        }
        if answered {
            self.board.checked();
        }
        // After the state: whoever waits for a check reads what it found.
        self.checks.send_modify(|checks| {
            checks.concluded = true;
            if answered {
                checks.answered = Some(began);
            } else {
                checks.failed = Some(began);
            }
        });
        Ok(())
    }

    /// What clients get should be there after a crash: one without a registry would else offer
    /// them the version before it. But a disk in trouble must not keep it from them.
    async fn keep(&mut self, snapshot: Arc<Snapshot>) {
        self.noted = self.rules.max_stale.map(|_| telemetry::now());
        self.write(snapshot).await;
    }

    /// As [`Self::keep`], for what nobody has just confirmed.
    pub(super) async fn write(&mut self, snapshot: Arc<Snapshot>) {
        let history = self.history_with(&snapshot).to_bytes();
        let number = self.scribe.put_down(Entry::Keep { snapshot, checked: self.noted, history });
        tokio::select! {
            () = self.scribe.written(number) => {}
            // Then it is outdated, which is found out when it should be published.
            () = doubt::arises(&mut self.policy, None) => {}
        }
    }

    /// What was kept was not published: the disk goes back to what is.
    pub(super) fn take_back(&self) {
        let (checked, history) = (self.noted, self.history.to_bytes());
        self.scribe.put_down(match self.known() {
            Some(snapshot) => Entry::Keep { snapshot, checked, history },
            None => Entry::Forget { history },
        });
    }

    /// Notes on disk that the registry has confirmed what is served, now and then.
    fn confirm(&mut self) {
        let (Some(max_stale), Some(snapshot)) = (self.rules.max_stale, self.known()) else { return };
        let now = telemetry::now();
        if freshness::is_due(max_stale, self.noted, now) {
            // Whether or not it can be written: a disk in trouble is not tried at each poll.
            self.noted = Some(now);
            self.scribe.put_down(Entry::Confirm { snapshot, checked: self.noted });
        }
    }

    fn show_prepared(&mut self) {
        let policy = self.policy.clone();
        // What is outdated stays until it has been judged again.
        if let Some(Ok(admitted)) = self.prepared.clone().map(|state| Admitted::new(&policy, state)) {
            self.prepared = None;
            self.board.show(admitted);
        }
    }

    /// The bytes stay where they are: a check that finds them right again need not fetch them.
    fn expire(&mut self) {
        (self.fresh_until, self.doubted) = (None, None);
        let age = humantime::format_duration(self.rules.max_stale.unwrap_or_default());
        let before = self.prepared.as_ref().map_or_else(|| self.board.state(), State::clone);
        if before.snapshot().is_none() {
            return;
        }
        let reason = format!("no successful check for {age} (max_stale)").into();
        let withdrawal = Withdrawal { reason, lost: before.lost(), was_served: true };
        if self.prepared.is_some() {
            self.prepared = Some(State::Withdrawn(withdrawal));
        } else {
            self.board.withdraw(withdrawal);
        }
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
