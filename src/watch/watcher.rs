//! The task of one bundle: it checks the registry, verifies again when that is due, and publishes
//! what follows.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant, sleep_until},
};

use super::{
    hints::Hints,
    history::History,
    persist::{PersistQueue, Update},
    pool::Rejection,
    refresh::{Pipeline, RefreshResult, Restored},
    reverify,
    schedule::Schedule,
    tag_choice::{Choice, TagLookup},
    trigger::{Cause, Trigger},
};
use crate::{
    oci::Digest,
    publish::{
        CheckEnd, Event, Failure, FailureClass, Handle, OnMissing, Outcome, Outdated, Persist,
        Publisher, PublisherOptions, Snapshot, StableVersion, VerdictStatus, Wanted,
    },
    registry::{SourceChange, SourceWatch},
    telemetry,
    traces::{Kind, Span},
    verify::TrustPolicy,
};

/// How long ago a request may have asked for a check that becomes part of its trace.
const MAX_TRACED_AGE: Duration = Duration::from_secs(10);

/// The options of one bundle's watcher.
#[derive(Debug, Clone, Copy)]
pub struct WatchOptions {
    /// The time between checks of a healthy registry.
    pub poll: Duration,
    /// How old a check of the registry may be when a client that runs another version is answered.
    pub confirm_within: Duration,
    /// What a missing tag means for a bundle that is served.
    pub on_missing: OnMissing,
    /// How long a bundle is served without a successful check.
    pub max_stale: Option<Duration>,
    /// How long a bundle from disk waits for the first check before it is served.
    pub first_wait: Duration,
    /// Whether versions are rolled out in steps: then a version counts as served, for `expect`, once
    /// [`Handle::set_stable`] says so.
    pub is_staged: bool,
}

/// What a watcher shares with another one of the same bundle.
#[derive(Debug, Default)]
pub struct Siblings {
    /// The requests that are held for the bundle.
    pub waiters: Option<Arc<Notify>>,
    /// A version that was verified for the other watcher and that the reference of this one names. It is
    /// verified again if the policy has changed, and not fetched.
    pub version: Option<Arc<Snapshot>>,
}

/// The task of one bundle; runs until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    pub(super) pipeline: Arc<Pipeline>,
    options: WatchOptions,
    pub(super) schedule: Schedule,
    pub(super) publisher: Publisher,
    /// The policy that decides.
    pub(super) policy: watch::Receiver<Arc<TrustPolicy>>,
    /// Whether the registry is not to be checked.
    suspended: watch::Receiver<bool>,
    /// The last choice of a tag, where the reference has a rule.
    choice: Option<Choice>,
    /// The tag of the version that a check has just accepted, until that is served.
    pub(super) accepted_tag: Option<String>,
    /// Until when the registry has asked for no further request.
    held_until: Option<Instant>,
    /// When the last early check was due.
    early_check: Option<Instant>,
    /// The version that counts as served.
    stable: watch::Receiver<StableVersion>,
    /// A version to begin with.
    first_version: Option<Arc<Snapshot>>,
    /// Why a check is wanted.
    wanted: watch::Receiver<Wanted>,
    /// When the last check began.
    checked: Option<Instant>,
    hints: Hints,
    /// Reports changes of a layout folder.
    source_watch: Option<SourceWatch>,
    /// When a change of the layout folder was last reported.
    source_moved: Option<Instant>,
    pub(super) persist_queue: Arc<PersistQueue>,
    /// The versions served so far.
    pub(super) history: Arc<History>,
}

impl Watcher {
    /// A watcher, not yet running, and the handle to it. `policy` decides until the handle
    /// sets another one.
    pub fn new(
        pipeline: Pipeline,
        policy: Arc<TrustPolicy>,
        options: WatchOptions,
        siblings: Siblings,
    ) -> (Self, Handle) {
        let (publisher, handle, requests) = Publisher::new(PublisherOptions {
            bundle: Arc::clone(&pipeline.name),
            reference: pipeline.reference.clone(),
            policy,
            on_missing: options.on_missing,
            max_stale: options.max_stale,
            poll: options.poll,
            confirm_within: options.confirm_within,
            metrics: Arc::clone(&pipeline.metrics.publisher),
            waiters: siblings.waiters,
            is_staged: options.is_staged,
        });
        let watcher = Self {
            hints: Hints::default(),
            source_watch: pipeline.source().watch(&pipeline.reference),
            source_moved: None,
            schedule: Schedule::new(options.poll, &pipeline.name),
            pipeline: Arc::new(pipeline),
            options,
            publisher,
            policy: requests.policy,
            suspended: requests.suspended,
            choice: None,
            accepted_tag: None,
            held_until: None,
            early_check: None,
            stable: requests.stable,
            first_version: siblings.version,
            wanted: requests.check,
            checked: None,
            persist_queue: Arc::default(),
            history: Arc::default(),
        };
        (watcher, handle)
    }

    /// Watches until the future is dropped.
    pub async fn run(mut self) {
        let (queue, pipeline) = (Arc::clone(&self.persist_queue), Arc::clone(&self.pipeline));
        let deltas = async {
            match &pipeline.deltas {
                Some(deltas) => deltas.work(&pipeline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.watch() => {}
            () = queue.work(&pipeline) => {}
            () = deltas => {}
        }
    }

    async fn watch(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        if *self.suspended.borrow() {
            self.suspend();
        }
        match self.first_version.take() {
            Some(snapshot) => self.begin_with(snapshot).await,
            None => self.restore(&policy).await,
        }
        let mut cause = Cause::from(Trigger::Start);
        loop {
            self.while_suspended().await;
            if let Some(until) = self.held_until.take_if(|until| *until > Instant::now()) {
                self.pause(until).await;
                continue;
            }
            let began = Instant::now();
            let span = self.span_of_check(began);
            self.checked = Some(began);
            let Some(result) = span.run(self.check()).await else {
                continue;
            };
            record_outcome(&span, &result.outcome);
            let RefreshResult {
                outcome,
                rejected,
                choice,
            } = result;
            let (started, ended) = (began, Instant::now());
            // A check is as old as the list of tags that it is based on.
            let began = choice
                .as_ref()
                .map_or(began, |choice| choice.as_of.min(began));
            self.record_choice(choice);
            let at = telemetry::now();
            if let Outcome::Accepted(snapshot) = &outcome {
                self.accepted_tag = self.chosen_tag();
                let confirmed = self.options.max_stale.map(|_| at);
                let persisting = self.persist(Arc::clone(snapshot), confirmed);
                span.run(async {
                    Span::child(Kind::Internal, || "persist")
                        .run(persisting)
                        .await
                })
                .await;
            }
            let checked = Event::Checked { outcome, at };
            let applied = self.apply(&checked, rejected);
            drop(span);
            self.accepted_tag = None;
            if applied.is_err() {
                self.persist_published();
                Box::pin(self.reverify()).await;
                continue;
            }
            let Event::Checked { outcome, .. } = checked else {
                continue;
            };
            self.record_outcome(cause, &outcome, started, ended);
            let (answered, end) = match &outcome {
                Outcome::Accepted(_) => (true, CheckEnd::Changed),
                Outcome::Unchanged => {
                    self.record_tag();
                    (true, CheckEnd::Unchanged)
                }
                Outcome::Failed(failure) => (failure.class.registry_answered(), CheckEnd::Failed),
            };
            let wait = self.schedule.after(&outcome);
            let due = Instant::now() + self.within_max_stale(wait, &outcome);
            self.held_until = is_rate_limited(&outcome).then_some(due);
            self.publisher.set_held_until(self.held_until);
            // Recorded after the state, because a client that waits for a check then reads the
            // state.
            self.publisher.record_check(began, answered, end);
            self.hints.end(&self.wanted.borrow(), began, end);
            let left = cause.left_by(&outcome, started);
            let next = match self.held_until {
                None => self.wait(began, due).await,
                Some(_) => Trigger::Poll.into(),
            };
            cause = left.unwrap_or(next);
        }
    }

    /// Logs a check, and records how long it took to publish what it has found.
    fn record_outcome(&self, cause: Cause, outcome: &Outcome, started: Instant, ended: Instant) {
        let (bundle, trigger) = (&*self.pipeline.name, cause.trigger);
        let label = outcome.label();
        let duration_ms = millis(ended - started);
        tracing::debug!(
            bundle,
            trigger = trigger.label(),
            outcome = label,
            duration_ms,
            "checked the registry"
        );
        if matches!(outcome, Outcome::Accepted(_)) {
            let known = cause.since.unwrap_or(started);
            let metrics = &self.pipeline.metrics;
            metrics.observe_publication(trigger, known.elapsed());
        }
    }

    /// Applies an event, and records on disk what follows.
    ///
    /// # Errors
    /// When the event would publish a version by an outdated verification. Then nothing has
    /// changed.
    pub(super) fn apply(
        &mut self,
        event: &Event,
        rejected: Option<Box<VerdictStatus>>,
    ) -> Result<(), Outdated> {
        let effects = self.publisher.apply(event, rejected)?;
        if let Some(deltas) = &self.pipeline.deltas {
            match &effects.served {
                Some(snapshot) => deltas.record(snapshot),
                None if self.publisher.machine().current().is_none() => deltas.withdraw(),
                None => {}
            }
        }
        if let Some(snapshot) = effects.served {
            self.record_served(&snapshot);
        }
        self.publisher.set_served_tag(self.history.tag());
        match effects.persist {
            Some(Persist::Confirm {
                snapshot,
                confirmed,
            }) => {
                self.persist_queue.enqueue(Update::Confirm {
                    snapshot,
                    checked: confirmed,
                });
            }
            Some(Persist::Remove) => self.persist_withdrawal(),
            None => {}
        }
        Ok(())
    }

    /// Publishes a version that was verified for another watcher of the bundle, and writes it to disk.
    async fn begin_with(&mut self, snapshot: Arc<Snapshot>) {
        let confirmed = self.options.max_stale.map(|_| telemetry::now());
        let restored = Event::Restored {
            snapshot,
            confirmed,
        };
        // This event publishes nothing.
        let _ = self.apply(&restored, None);
        if self.apply(&Event::FirstWaitElapsed, None).is_err() {
            Box::pin(self.reverify()).await;
            let _ = self.apply(&Event::FirstWaitElapsed, None);
        }
        self.persist_published();
    }

    /// Restores the state from disk. Only a few watchers do so at a time, because all of them start
    /// together.
    async fn restore(&mut self, policy: &Arc<TrustPolicy>) {
        let permit = self.pipeline.pool.restore_permit().await;
        self.history = Arc::new(self.pipeline.history().await);
        let restored = Box::pin(self.pipeline.restore(policy, &self.history)).await;
        drop(permit);
        let (event, rejected) = match restored {
            Some(Ok(Restored { snapshot, checked })) => (
                Event::Restored {
                    snapshot,
                    confirmed: checked,
                },
                None,
            ),
            Some(Err(Rejection { failure, verdict })) => (Event::RestoreFailed(failure), verdict),
            None => {
                let (withdrawal, was_served) =
                    (self.history.withdrawal(), !self.history.is_empty());
                (
                    Event::NothingRestored {
                        withdrawal,
                        was_served,
                    },
                    None,
                )
            }
        };
        // These events publish no version, so none can be outdated.
        let _ = self.apply(&event, rejected);
    }

    /// The span of a check, in the trace of the request that has asked for it, if any.
    fn span_of_check(&self, began: Instant) -> Span {
        let traced = self.wanted.borrow().traced;
        let cause = traced.filter(|(asked, _)| {
            // An earlier check has answered a request that asked before it began.
            let is_answered = self.checked.is_some_and(|last| *asked <= last);
            !is_answered && began.duration_since(*asked) <= MAX_TRACED_AGE
        });
        let parent = cause.map(|(_, parent)| parent);
        let span = self.pipeline.traces.check("check", parent);
        if span.is_recorded() {
            span.set("bundlegate.bundle", self.pipeline.name.to_string());
            span.set("bundlegate.reference", self.pipeline.reference.to_string());
        }
        span
    }

    /// Checks the registry until that has a result; `None` if the bundle is suspended meanwhile.
    async fn check(&mut self) -> Option<RefreshResult> {
        loop {
            let Some(result) = self.refresh().await else {
                if *self.suspended.borrow() {
                    return None;
                }
                Box::pin(self.reverify()).await;
                continue;
            };
            // A version that was found unchanged may have been withdrawn meanwhile (`max_stale`).
            if !matches!(result.outcome, Outcome::Unchanged)
                || self.publisher.machine().current().is_some()
            {
                return Some(result);
            }
        }
    }

    /// Checks the registry once. `None` when the bundle is suspended meanwhile, the policy changed,
    /// or the verification of the version being served expired: then that version is verified again
    /// first.
    async fn refresh(&mut self) -> Option<RefreshResult> {
        let pipeline = Arc::clone(&self.pipeline);
        let policy = Arc::clone(&self.policy.borrow());
        let machine = self.publisher.machine();
        let (current, known_defect) = (machine.current().cloned(), machine.known_defect().cloned());
        let (due, past) = (self.verification_due(), Arc::clone(&self.history));
        // The refresh is boxed, as other steps are, because a watcher waits most of the time and
        // its future then needs no room for the state of a refresh.
        let last = self.choice.clone();
        let lookup = TagLookup {
            not_before: self.oldest_list(),
            last: last.as_ref(),
        };
        let mut refresh = Box::pin(pipeline.check(
            &policy,
            current.as_deref(),
            known_defect.as_ref(),
            &past,
            lookup,
        ));
        let first_wait = Instant::now() + self.options.first_wait;
        loop {
            let machine = self.publisher.machine();
            let (waiting, stale_at) = (machine.has_restored(), machine.stale_at());
            let event = tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, due) => return None,
                () = switched(&mut self.suspended) => return None,
                result = &mut refresh => return Some(result),
                () = sleep_until(first_wait), if waiting => Event::FirstWaitElapsed,
                () = reached(stale_at) => Event::MaxStaleElapsed,
            };
            // An outdated version stays unpublished until it has been verified again.
            let _ = self.apply(&event, None);
        }
    }

    /// The time since when a list of tags may have been requested that the next check uses. Bundles
    /// that choose from one repository share their lists within this time, which is no more than
    /// the jitter of polls.
    fn oldest_list(&self) -> Instant {
        let shared = (self.options.poll / 20).min(self.options.confirm_within);
        let polled = Instant::now().checked_sub(shared);
        let polled = polled.unwrap_or_else(Instant::now);
        let asked = self.wanted.borrow().latest();
        let reasons = [asked, self.source_moved, self.early_check];
        reasons.into_iter().flatten().fold(polled, Instant::max)
    }

    fn record_choice(&mut self, choice: Option<Choice>) {
        if let Some(choice) = choice {
            self.publisher
                .set_chosen(choice.chosen.as_ref(), choice.gone.as_deref());
            self.choice = Some(choice);
        }
    }

    fn chosen_tag(&self) -> Option<String> {
        let choice = self.choice.as_ref()?;
        choice.tag().map(ToOwned::to_owned)
    }

    /// Records the tag that a check found on the version being served.
    fn record_tag(&mut self) {
        let tag = self.chosen_tag();
        let Some(tag) = tag.filter(|tag| Some(&**tag) != self.history.tag()) else {
            return;
        };
        self.history = Arc::new(History::clone(&self.history).with_tag(&tag));
        self.publisher.set_served_tag(self.history.tag());
        self.persist_published();
    }

    /// Whether versions are rolled out in steps.
    pub(super) fn is_staged(&self) -> bool {
        !matches!(*self.stable.borrow(), StableVersion::Published)
    }

    fn suspend(&mut self) {
        // The event publishes no version, so none can be outdated.
        let _ = self.apply(&Event::Suspended, None);
    }

    /// Waits until the bundle is not suspended. Meanwhile it serves what there is: a version from
    /// the disk waits for no check, and changes of the policy apply.
    async fn while_suspended(&mut self) {
        if !*self.suspended.borrow_and_update() {
            return;
        }
        self.suspend();
        tracing::info!(
            bundle = &*self.pipeline.name,
            "suspended: the registry is not checked"
        );
        loop {
            // An outdated version stays unpublished until it has been verified again.
            let _ = self.apply(&Event::FirstWaitElapsed, None);
            self.publisher.record_suspension();
            let due = self.verification_due();
            tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, due) => {
                    Box::pin(self.reverify()).await;
                }
                () = switched(&mut self.suspended) => if !*self.suspended.borrow() {
                    break;
                },
            }
        }
        tracing::info!(
            bundle = &*self.pipeline.name,
            "resumed: the registry is checked again"
        );
        // As above.
        let _ = self.apply(&Event::Resumed, None);
    }

    /// The wait that the registry asked for, as far as `max_stale` leaves time for it.
    fn within_max_stale(&self, wait: Duration, outcome: &Outcome) -> Duration {
        match (outcome, self.options.max_stale) {
            (
                Outcome::Failed(Failure {
                    class: FailureClass::RateLimited(Some(_)),
                    ..
                }),
                Some(max_stale),
            ) => {
                let stale_at = self.publisher.machine().stale_at();
                let left =
                    stale_at.map(|stale_at| stale_at.saturating_duration_since(Instant::now()));
                self.schedule.cap_retry_after(wait, max_stale, left)
            }
            _ => wait,
        }
    }

    /// Waits until the next check is due, or until one is asked for: by a client that runs another
    /// version, an operator, a hint, or a change of the layout folder. Returns which.
    async fn wait(&mut self, began: Instant, due: Instant) -> Cause {
        loop {
            let wanted = *self.wanted.borrow_and_update();
            // While the registry fails, its back-off applies to requests of clients as well.
            let by_client = wanted.client.filter(|asked| {
                *asked > began + self.options.confirm_within && self.publisher.has_answered(began)
            });
            if let Some(asked) = by_client {
                return Cause::since(Trigger::Request, asked);
            }
            let failure = self.publisher.failure_class();
            let served = self.publisher.machine().current();
            let served = served.map(|snapshot| snapshot.manifest_digest().clone());
            let early = self.hints.next(&wanted, began, failure);
            let (stale_at, expiry) = (self.publisher.machine().stale_at(), self.verification_due());
            tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, expiry) => {
                    Box::pin(self.reverify()).await;
                    if reverify::should_check(&self.publisher) {
                        return Trigger::Poll.into();
                    }
                }
                () = switched(&mut self.suspended) => return Trigger::Poll.into(),
                snapshot = next_stable(&mut self.stable) => self.record_stable(&snapshot),
                () = sleep_until(due) => return Trigger::Poll.into(),
                () = reached(early.map(|check| check.at)) => {
                    let Some(check) = early else {
                        continue;
                    };
                    self.early_check = Some(check.at);
                    self.hints.begin(check);
                    return check.cause();
                }
                change = source_change(&mut self.source_watch, served.as_ref()) => {
                    let is_evidence = failure.is_some_and(FailureClass::is_about_evidence);
                    if change == SourceChange::Moved || is_evidence {
                        let now = Instant::now();
                        self.source_moved = Some(now);
                        return Cause::since(Trigger::Notification, now);
                    }
                }
                changed = self.wanted.changed() => if changed.is_err() {
                    sleep_until(due).await;
                    return Trigger::Poll.into();
                },
                () = reached(stale_at) => self.expire(),
            }
        }
    }

    /// Waits until the time that the registry has asked for. Neither clients nor operators nor
    /// hints end this wait. If the bundle is suspended meanwhile, the rest follows after that.
    async fn pause(&mut self, until: Instant) {
        loop {
            let (stale_at, expiry) = (self.publisher.machine().stale_at(), self.verification_due());
            tokio::select! {
                biased;
                () = reverify::due_or_policy_changed(&mut self.policy, expiry) => {
                    Box::pin(self.reverify()).await;
                    if reverify::should_check(&self.publisher) {
                        return;
                    }
                }
                () = switched(&mut self.suspended) => {
                    self.held_until = Some(until);
                    return;
                }
                () = sleep_until(until) => return,
                () = reached(stale_at) => self.expire(),
            }
        }
    }

    fn expire(&mut self) {
        // The event withdraws, so no version can be outdated.
        let _ = self.apply(&Event::MaxStaleElapsed, None);
    }

    /// Writes a version to disk before it is published: after a crash without a registry, clients
    /// would otherwise get the version before it. Meanwhile it is compared with the version that is
    /// served. Neither a failing disk nor a large delta delays the publication for long: see
    /// [`PersistQueue::flushed`] and [`Deltas::prepare`](super::Deltas). `checked` is when the
    /// registry last confirmed it.
    pub(super) async fn persist(&mut self, snapshot: Arc<Snapshot>, checked: Option<Timestamp>) {
        let history = self.history_serving(&snapshot).to_bytes();
        let number = self.persist_queue.enqueue(Update::Keep {
            snapshot: Arc::clone(&snapshot),
            checked,
            history,
        });
        let comparing = async {
            if let Some(deltas) = &self.pipeline.deltas {
                deltas.prepare(&self.pipeline, &snapshot).await;
            }
        };
        tokio::select! {
            _ = futures_util::future::join(self.persist_queue.flushed(number), comparing) => {}
            // In this case the version is outdated, and is not published.
            () = reverify::due_or_policy_changed(&mut self.policy, None) => {}
        }
    }

    /// Makes the disk record the published version and its history, for example after another one
    /// was written to it, but not published.
    pub(super) fn persist_published(&self) {
        let (machine, history) = (self.publisher.machine(), self.history.to_bytes());
        self.persist_queue.enqueue(match machine.current() {
            Some(current) => Update::Keep {
                snapshot: Arc::clone(current),
                checked: machine.last_confirmed(),
                history,
            },
            None => Update::Forget { history },
        });
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Waits for another version that counts as served. Cancel-safe.
async fn next_stable(stable: &mut watch::Receiver<StableVersion>) -> Arc<Snapshot> {
    loop {
        if stable.changed().await.is_err() {
            // Every handle is gone, so nothing can change.
            return std::future::pending().await;
        }
        if let StableVersion::Version(snapshot) = stable.borrow_and_update().clone() {
            return snapshot;
        }
    }
}

/// Waits until a bundle is suspended or resumed. Cancel-safe.
async fn switched(suspended: &mut watch::Receiver<bool>) {
    if suspended.changed().await.is_err() {
        // Every handle is gone, so nothing can change.
        std::future::pending().await
    }
}

fn record_outcome(span: &Span, outcome: &Outcome) {
    if !span.is_recorded() {
        return;
    }
    match outcome {
        Outcome::Accepted(snapshot) => {
            span.set("bundlegate.outcome", "accepted");
            span.set(
                "bundlegate.manifest",
                snapshot.manifest_digest().to_string(),
            );
        }
        Outcome::Unchanged => span.set("bundlegate.outcome", "unchanged"),
        Outcome::Failed(failure) => {
            span.set("bundlegate.outcome", "failed");
            span.set("error.type", failure.reason);
            if let Some(digest) = &failure.digest {
                span.set("bundlegate.manifest", digest.to_string());
            }
            span.fail(&failure.message);
        }
    }
}

/// Whether the registry has asked for a pause.
fn is_rate_limited(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(failure) if matches!(failure.class, FailureClass::RateLimited(_)))
}

/// The next change of a watched source. Cancel-safe.
async fn source_change(watch: &mut Option<SourceWatch>, served: Option<&Digest>) -> SourceChange {
    match watch {
        Some(watch) => watch.changed(served).await,
        None => std::future::pending().await,
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
