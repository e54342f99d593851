//! The task behind a bundle: checks the registry, decides with [`next`], tells the world.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

use super::{
    Snapshot,
    board::Board,
    freshness,
    handle::{Checks, Handle},
    pipeline::{Found, Pipeline, Remembered},
    schedule::Schedule,
    scribe::{Entry, Scribe},
    state::{Failure, FailureClass, OnMissing, Outcome, State, Withdrawal, next},
};
use crate::{metrics::Metrics, verify::Evidence};

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
    pipeline: Arc<Pipeline>,
    rules: Rules,
    metrics: Metrics,
    schedule: Schedule,
    board: Board,
    checks: watch::Sender<Checks>,
    wanted: watch::Receiver<Option<Instant>>,
    scribe: Arc<Scribe>,
    /// What follows from the disk, but is not shown before the registry had its say: something
    /// accepted, or that its `max_stale` is over.
    prepared: Option<State>,
    /// The last final defect, which is not fetched again.
    hopeless: Option<Failure>,
    fresh_until: Option<Instant>,
    /// When the registry last confirmed what is served, as the disk has it.
    noted: Option<Timestamp>,
}

impl Watcher {
    /// A watcher, not yet running, and the handle to it.
    pub fn new(pipeline: Pipeline, rules: Rules) -> (Self, Handle) {
        let (checks, checks_seen) = watch::channel(Checks::default());
        let (wanted, wanted_seen) = watch::channel(None);
        let (name, reference) = (Arc::clone(&pipeline.name), pipeline.reference.to_string());
        let (board, state, status) = Board::new(Arc::clone(&name), reference, pipeline.metrics.clone());
        let handle = Handle {
            name,
            state,
            checks: checks_seen,
            wanted: Arc::new(wanted),
            confirm_within: rules.confirm_within,
            status,
        };
        let watcher = Self {
            metrics: pipeline.metrics.clone(),
            pipeline: Arc::new(pipeline),
            schedule: Schedule::new(rules.poll),
            rules,
            board,
            checks,
            wanted: wanted_seen,
            scribe: Arc::default(),
            prepared: None,
            hopeless: None,
            fresh_until: None,
            noted: None,
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
        match self.pipeline.recall().await {
            Some(Ok(remembered)) => self.prepare(remembered),
            Some(Err(failure)) => {
                self.board.note(&failure);
                let state = next(&self.board.state(), &Outcome::Failed(failure), self.rules.on_missing);
                self.board.show(state);
            }
            None => {}
        }
        loop {
            let began = Instant::now();
            let found = self.check().await;
            let wait = self.schedule.after(&found.outcome);
            if let Found { outcome: Outcome::Accepted(snapshot), evidence: Some(evidence) } = &found {
                self.keep(Arc::clone(snapshot), Arc::clone(evidence)).await;
            }
            self.conclude(began, &found.outcome);
            self.pause(began, wait).await;
        }
    }

    /// What the disk remembers is as fresh as it was noted to be, not as if it were new.
    fn prepare(&mut self, Remembered { snapshot, checked }: Remembered) {
        let manifest = snapshot.manifest_digest().clone();
        self.prepared = Some(State::Serving(snapshot));
        let now = Timestamp::now();
        self.noted = freshness::believable(checked, now);
        let Some(max_stale) = self.rules.max_stale else {
            // Nobody keeps it up, and it would be taken for the truth if `max_stale` came back.
            if checked.is_some() {
                self.noted = None;
                self.scribe.put_down(Entry::Confirm { manifest, checked: None });
            }
            return;
        };
        if self.noted.is_none() {
            self.noted = Some(now);
            self.scribe.put_down(Entry::Confirm { manifest, checked: self.noted });
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
            let found = self.look().await;
            // What was found unchanged may have been withdrawn meanwhile (`max_stale`).
            if !matches!(found.outcome, Outcome::Unchanged) || self.known().is_some() {
                return found;
            }
        }
    }

    /// What need not be fetched again.
    fn known(&self) -> Option<Arc<Snapshot>> {
        let state = self.board.state();
        state.snapshot().or_else(|| self.prepared.as_ref()?.snapshot()).cloned()
    }

    async fn look(&mut self) -> Found {
        let pipeline = Arc::clone(&self.pipeline);
        let known = self.known();
        let hopeless = self.hopeless.clone();
        let refresh = pipeline.refresh(known.as_deref(), hopeless.as_ref());
        tokio::pin!(refresh);
        let first_wait = Instant::now() + self.rules.first_wait;
        loop {
            let (waiting, stale) = (self.prepared.is_some(), self.fresh_until);
            tokio::select! {
                found = &mut refresh => return found,
                () = sleep_until(first_wait), if waiting => self.show_prepared(),
                () = reached(stale) => self.expire(),
            }
        }
    }

    /// Until the next check is due, or a client's disagreement calls for one.
    async fn pause(&mut self, began: Instant, wait: Duration) {
        let due = Instant::now() + wait;
        loop {
            // While the registry fails, its back-off binds those who disagree as well.
            let healthy = self.checks.borrow().answered == Some(began);
            let stale = self.fresh_until;
            tokio::select! {
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

    fn conclude(&mut self, began: Instant, outcome: &Outcome) {
        let answered = match outcome {
            Outcome::Accepted(_) | Outcome::Unchanged => true,
            Outcome::Failed(failure) => failure.class.registry_answered(),
        };
        // What lies prepared counts as served, but it is shown only if it stays.
        let before = self.prepared.take().unwrap_or_else(|| self.board.state());
        let label = match outcome {
            Outcome::Accepted(_) => "accepted",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed(failure) => failure.reason,
        };
        self.metrics.refreshes.with_label_values(&[&*self.pipeline.name, label]).inc();
        match outcome {
            Outcome::Failed(failure) => {
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
        let after = next(&before, outcome, self.rules.on_missing);
        let withdrawn = matches!((&before, &after), (State::Serving(_), State::Withdrawn(_)));
        self.board.show(after);
        if matches!(outcome, Outcome::Unchanged) {
            self.confirm();
        }
        if withdrawn {
            self.scribe.put_down(Entry::Forget);
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
    }

    /// What clients get should be there after a crash: one without a registry would else offer
    /// them the version before it. But a disk in trouble must not keep it from them.
    async fn keep(&mut self, snapshot: Arc<Snapshot>, evidence: Arc<Evidence>) {
        self.noted = self.rules.max_stale.map(|_| Timestamp::now());
        let number = self.scribe.put_down(Entry::Keep { snapshot, evidence, checked: self.noted });
        self.scribe.written(number).await;
    }

    /// Notes on disk that the registry has confirmed what is served, now and then.
    fn confirm(&mut self) {
        let (Some(max_stale), Some(snapshot)) = (self.rules.max_stale, self.known()) else { return };
        let now = Timestamp::now();
        if freshness::is_due(max_stale, self.noted, now) {
            // Whether or not it can be written: a disk in trouble is not tried at each poll.
            self.noted = Some(now);
            let manifest = snapshot.manifest_digest().clone();
            self.scribe.put_down(Entry::Confirm { manifest, checked: self.noted });
        }
    }

    fn show_prepared(&mut self) {
        if let Some(state) = self.prepared.take() {
            self.board.show(state);
        }
    }

    /// The bytes stay where they are: a check that finds them right again need not fetch them.
    fn expire(&mut self) {
        self.fresh_until = None;
        let age = humantime::format_duration(self.rules.max_stale.unwrap_or_default());
        let before = self.prepared.as_ref().map_or_else(|| self.board.state(), State::clone);
        if before.snapshot().is_none() {
            return;
        }
        let expired = State::Withdrawn(Withdrawal {
            reason: format!("no successful check for {age} (max_stale)").into(),
            lost: before.lost(),
        });
        if self.prepared.is_some() {
            self.prepared = Some(expired);
        } else {
            self.board.show(expired);
        }
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
