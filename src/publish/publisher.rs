//! The publisher of a bundle: it sends the state to the server, keeps status and metrics for
//! operators, and writes the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant},
};

use super::{
    Snapshot,
    handle::{CheckEnd, Checks, Handle, Requests, StableVersion, Wanted},
    machine::{Change, Effects, Event, Now, Outdated, StateMachine},
    metrics::PublisherMetrics,
    state::{Failure, FailureClass, OnMissing, Outcome, State, Withdrawal},
    status::{ChosenTag, FailureStatus, Status, VerdictStatus},
};
use crate::{
    oci::Reference,
    telemetry::{self, NAME_BYTES, SENTENCE_BYTES, cut},
    verify::TrustPolicy,
};

/// The only sender of a bundle's state: it applies events to the [`StateMachine`], publishes the
/// state that follows, and records it in the status and in the log.
#[derive(Debug)]
pub(crate) struct Publisher {
    bundle: Arc<str>,
    metrics: Arc<PublisherMetrics>,
    machine: StateMachine,
    policy: watch::Receiver<Arc<TrustPolicy>>,
    state: watch::Sender<State>,
    /// After `state`, so that the waiters wake when that is closed.
    waiters: WakeOnDrop,
    checks: watch::Sender<Checks>,
    status: Arc<Mutex<Status>>,
}

/// The requests that are held for the bundle. They wake when its publisher is gone.
#[derive(Debug)]
struct WakeOnDrop(Arc<Notify>);

/// The options of a publisher.
#[derive(Debug)]
pub(crate) struct PublisherOptions {
    /// The bundle's name.
    pub(crate) bundle: Arc<str>,
    /// The configured reference.
    pub(crate) reference: Reference,
    /// The policy that decides until a handle sets another one.
    pub(crate) policy: Arc<TrustPolicy>,
    /// What a missing tag means for a bundle that is being served.
    pub(crate) on_missing: OnMissing,
    /// How long a bundle is served without a successful check.
    pub(crate) max_stale: Option<Duration>,
    /// The time between checks of a healthy registry.
    pub(crate) poll: Duration,
    /// How old a check of the registry may be when a client that runs another version is answered.
    pub(crate) confirm_within: Duration,
    /// What it counts.
    pub(crate) metrics: Arc<PublisherMetrics>,
    /// The requests that are held for the bundle, if another publisher of the bundle has them as well.
    pub(crate) waiters: Option<Arc<Notify>>,
    /// Whether versions are rolled out in steps.
    pub(crate) is_staged: bool,
}

/// The policy that decides. A change of the policy waits until this is dropped, so that no
/// revocation comes between the comparison of revisions and the publication.
#[derive(Debug)]
struct HeldPolicy<'a>(watch::Ref<'a, Arc<TrustPolicy>>);

/// Where a version that is published was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Registry,
    Cache,
}

impl Origin {
    /// `had_restored`: a version from the cache waited to be published before the event.
    fn of(event: &Event, had_restored: bool) -> Self {
        let is_fetched = matches!(
            event,
            Event::Checked {
                outcome: Outcome::Accepted(_),
                ..
            }
        );
        match had_restored && !is_fetched {
            true => Self::Cache,
            false => Self::Registry,
        }
    }
}

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl<'a> HeldPolicy<'a> {
    fn new(policy: &'a watch::Receiver<Arc<TrustPolicy>>) -> Self {
        Self(policy.borrow())
    }

    fn now(&self) -> Now<'_> {
        Now {
            instant: Instant::now(),
            time: telemetry::now(),
            policy: self.0.revision(),
        }
    }
}

impl Publisher {
    /// A publisher whose bundle is pending, the handle to it, and the receiver of the handles'
    /// requests.
    pub(crate) fn new(options: PublisherOptions) -> (Self, Handle, Requests) {
        let PublisherOptions {
            bundle,
            reference,
            policy,
            on_missing,
            max_stale,
            poll,
            confirm_within,
            metrics,
            waiters,
            is_staged,
        } = options;
        let (state, state_seen) = watch::channel(State::Pending);
        let (checks, checks_seen) = watch::channel(Checks::default());
        let (wanted, wanted_seen) = watch::channel(Wanted::default());
        let status = Arc::new(Mutex::new(Status::new(reference, poll, &policy)));
        let waiters = waiters.unwrap_or_default();
        let (stable, stable_seen) = watch::channel(match is_staged {
            true => StableVersion::Unknown,
            false => StableVersion::Published,
        });
        let (policy, policy_seen) = watch::channel(policy);
        let (suspended, suspended_seen) = watch::channel(false);
        let handle = Handle {
            name: Arc::clone(&bundle),
            state: state_seen,
            checks: checks_seen,
            wanted: Arc::new(wanted),
            confirm_within,
            policy: Arc::new(policy),
            suspended: Arc::new(suspended),
            stable: Arc::new(stable),
            status: Arc::clone(&status),
            waiters: Arc::clone(&waiters),
            fallback: None,
        };
        let machine = StateMachine::new(on_missing, max_stale);
        let policy = policy_seen.clone();
        let publisher = Self {
            bundle,
            metrics,
            machine,
            policy,
            state,
            waiters: WakeOnDrop(waiters),
            checks,
            status,
        };
        (
            publisher,
            handle,
            Requests {
                policy: policy_seen,
                check: wanted_seen,
                suspended: suspended_seen,
                stable: stable_seen,
            },
        )
    }

    /// The state machine, for what is published and what else is known.
    pub(crate) fn machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Applies an event, and publishes the state that follows. Waiters wake only if what they would
    /// get has changed. `rejected` is the verdict about a version that the event refuses.
    ///
    /// # Errors
    /// When the event would publish a version by an outdated verification. Then nothing has
    /// changed.
    pub(crate) fn apply(
        &mut self,
        event: &Event,
        rejected: Option<Box<VerdictStatus>>,
    ) -> Result<Effects, Outdated> {
        let policy = self.policy.clone();
        let policy = HeldPolicy::new(&policy);
        let had_restored = self.machine.has_restored();
        let effects = self.machine.apply(event, &policy.now())?;
        let origin = Origin::of(event, had_restored);
        self.set_policy(&policy.0);
        if let Event::Checked { outcome, .. } = event {
            self.metrics.count_refresh(outcome.label());
        }
        self.update_status(event, rejected, effects.change, origin);
        self.publish(effects.change);
        Ok(effects)
    }

    fn publish(&mut self, change: Change) {
        if change == Change::None {
            return;
        }
        let after = self.machine.published().clone();
        self.state.send_if_modified(|state| {
            *state = after;
            change == Change::Visible
        });
        if change == Change::Visible {
            self.waiters.0.notify_waiters();
        }
    }

    /// Updates the status in one step, so that no reader finds a failure beside the state before it.
    fn update_status(
        &self,
        event: &Event,
        rejected: Option<Box<VerdictStatus>>,
        change: Change,
        origin: Origin,
    ) {
        let before = self.state.borrow().clone();
        let mut status = self.lock();
        match event.failure() {
            Some(failure) => {
                if let Some(verdict) = rejected {
                    status.rejected = Some(*verdict);
                }
                self.record_failure(&mut status, failure);
            }
            None if matches!(event, Event::Checked { .. }) => clear_failure(&mut status),
            None => {}
        }
        if change != Change::None {
            self.record_state(&mut status, &before, self.machine.published(), origin);
        }
    }

    fn record_state(&self, status: &mut Status, before: &State, after: &State, origin: Origin) {
        let bundle = &*self.bundle;
        let Some(snapshot) = after.snapshot() else {
            (status.since, status.state) = (telemetry::now(), after.kind());
            (status.manifest, status.etag, status.revision, status.size) = (None, None, None, None);
            status.older = None;
            (status.signers, status.verdict) = (Vec::new(), None);
            // Nothing is logged for a bundle that was never served: no client misses it, and the
            // log has the failure already.
            if let State::Withdrawn(Withdrawal {
                reason, version, ..
            }) = after
                && (version.is_some() || before.snapshot().is_some())
            {
                match &status.fallback {
                    Some(fallback) => {
                        tracing::error!(bundle, %reason, fallback = &**fallback, "withdrawn: its fallback is served instead");
                    }
                    None => tracing::error!(
                        bundle,
                        %reason,
                        "withdrawn: nothing is served any more; running OPAs keep their last policy, restarted ones have none"
                    ),
                }
            }
            return;
        };
        let manifest = snapshot.manifest_digest();
        let revision = revision_of(snapshot);
        if before
            .snapshot()
            .is_some_and(|before| before.manifest_digest() == manifest)
        {
            tracing::info!(bundle, %manifest, policy = status.policy, "verified again: still trusted");
        } else {
            let (etag, tag) = (snapshot.etag(), status.tag());
            match origin {
                Origin::Registry => {
                    tracing::info!(bundle, %manifest, tag, revision, etag, "serving");
                }
                // The failure of the registry, if there is one, is logged.
                Origin::Cache => {
                    tracing::info!(bundle, %manifest, revision, etag, "serving from the cache");
                }
            }
            (status.since, status.state) = (telemetry::now(), after.kind());
        }
        status.manifest = Some(manifest.clone());
        status.image = snapshot.image_digest().cloned();
        status.etag = Some(snapshot.etag().to_owned());
        status.revision = Some(revision);
        status.size = Some(snapshot.content().bytes().size());
        status.signers = snapshot.signers().to_vec();
        status.verdict = snapshot.record().verdict.clone();
    }

    /// Records a failure in the status, and logs it unless it repeats the last one.
    fn record_failure(&self, status: &mut Status, failure: &Failure) {
        let message = cut(&failure.message, SENTENCE_BYTES);
        let last_failure = FailureStatus {
            at: telemetry::now(),
            class: failure.class,
            step: failure.step,
            digest: failure.digest.clone(),
            below: Arc::clone(&failure.below),
            message: message.clone().into_owned(),
        };
        if failure.class.is_refusal() {
            status.refused.clone_from(&failure.digest);
        } else if failure.class == FailureClass::NotFound {
            status.refused = None;
        }
        let last = status.last_failure.replace(last_failure);
        let known = last.is_some_and(|last| {
            last.message == message && last.class.label() == failure.class.label()
        });
        if !known {
            self.log_failure(failure, &message, status);
        }
    }

    fn log_failure(&self, failure: &Failure, message: &str, status: &Status) {
        let (bundle, class, step) = (
            &*self.bundle,
            failure.class.label(),
            failure.step.to_string(),
        );
        // What clients get nevertheless.
        let after = self.machine.published();
        let serving = after.snapshot();
        tracing::warn!(
            bundle,
            reference = status.reference.written(),
            tag = status.tag(),
            class,
            step,
            reason = failure.reason,
            digest = failure.digest.as_ref().map(display),
            state = after.label(),
            serving = serving.map(|serving| display(serving.manifest_digest())),
            serving_revision = serving.map(|serving| revision_of(serving)),
            "{message}"
        );
    }

    /// Records the tag by which a rule has found the version being served.
    pub(crate) fn set_served_tag(&self, tag: Option<&str>) {
        let mut status = self.lock();
        if status.served_tag.as_deref() != tag {
            status.served_tag = tag.map(|tag| cut(tag, NAME_BYTES).into_owned());
        }
    }

    /// Records whether the version that is served, or about to be, is older than one that was
    /// served before.
    pub(crate) fn set_downgrade(&self, older: Option<&str>) {
        let bundle = &*self.bundle;
        let older = older.map(|older| cut(older, SENTENCE_BYTES).into_owned());
        let mut status = self.lock();
        if let Some(older) = older
            .as_ref()
            .filter(|older| status.older.as_ref() != Some(older))
        {
            tracing::warn!(
                bundle,
                older,
                "serving an older version than before; set expect.on_older to refuse it"
            );
        }
        status.older = older;
    }

    /// The class of the last failure, if no success has followed.
    pub(crate) fn failure_class(&self) -> Option<FailureClass> {
        self.lock()
            .last_failure
            .as_ref()
            .map(|failure| failure.class)
    }

    /// Records the policy that decides.
    pub(crate) fn set_policy(&self, policy: &TrustPolicy) {
        let mut status = self.lock();
        policy.name().clone_into(&mut status.policy);
        status.policy_revision = policy.revision().clone();
    }

    /// Records a check that began at `began`, whether the registry answered it, and how it ended.
    pub(crate) fn record_check(&self, began: Instant, answered: bool, end: CheckEnd) {
        if answered {
            self.lock().last_check = Some(telemetry::now());
        }
        // Sent after the state, because a client that waits for a check then reads the state.
        self.checks.send_modify(|checks| {
            checks.concluded = true;
            checks.last = Some((began, end));
            if answered {
                checks.answered = Some(began);
            } else {
                checks.failed = Some(began);
            }
        });
    }

    /// Records that no check is awaited, because the bundle is suspended.
    pub(crate) fn record_suspension(&self) {
        self.checks
            .send_if_modified(|checks| !std::mem::replace(&mut checks.concluded, true));
    }

    /// Records the tag that a check chose, and logs it if it is another one. `gone` is the tag
    /// chosen before, if it is missing now.
    pub(crate) fn set_chosen(&self, chosen: Option<&ChosenTag>, gone: Option<&str>) {
        let bundle = &*self.bundle;
        let mut status = self.lock();
        let tag = |chosen: &ChosenTag| chosen.tag.clone();
        let (before, after) = (status.chosen.as_ref().map(tag), chosen.map(tag));
        if before != after {
            match (chosen, gone) {
                (Some(ChosenTag { tag, reason, .. }), None) => {
                    tracing::info!(bundle, tag, reason, "another tag is chosen");
                }
                (Some(ChosenTag { tag, reason, .. }), Some(gone)) => tracing::warn!(
                    bundle,
                    tag,
                    reason,
                    gone,
                    "a lower tag is chosen, because the one before is gone"
                ),
                // The failure is logged.
                (None, _) => {}
            }
        }
        status.chosen = chosen.cloned();
    }

    /// Records until when the registry has asked for no further request, if it has.
    pub(crate) fn set_held_until(&self, until: Option<Instant>) {
        self.checks
            .send_if_modified(|checks| std::mem::replace(&mut checks.held_until, until) != until);
    }

    /// Whether the registry answered the check that began at `began`.
    pub(crate) fn has_answered(&self, began: Instant) -> bool {
        self.checks.borrow().answered == Some(began)
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clears the last failure after a success.
fn clear_failure(status: &mut Status) {
    (status.last_failure, status.rejected, status.refused) = (None, None, None);
}

/// The bundle's revision as a label, in the log and in the status.
fn revision_of(snapshot: &Snapshot) -> String {
    cut(snapshot.bundle().revision().as_str(), NAME_BYTES).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::{
        super::{snapshot, state::Step},
        *,
    };
    use crate::verify::{Authority, PublicKey, Requirements};

    fn unsigned() -> Arc<TrustPolicy> {
        Arc::new(TrustPolicy::unsigned("dev".into()))
    }

    fn signed() -> Arc<TrustPolicy> {
        let key =
            PublicKey::from_pem(&rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
        let requirements =
            Requirements::any_of(vec![Authority::with_keys("release".into(), [key])]);
        Arc::new(TrustPolicy::signed("release".into(), requirements).unwrap())
    }

    /// A publisher of version 1, which was accepted without a signature.
    fn serving() -> (Publisher, Handle) {
        super::super::serving("authz", 1)
    }

    fn accepted(version: u8) -> Event {
        Event::Checked {
            outcome: Outcome::Accepted(snapshot(version)),
            at: telemetry::now(),
        }
    }

    #[test]
    fn a_version_that_another_policy_accepted_is_not_published_and_withdrawing_always_is() {
        let (mut publisher, handle) = serving();
        handle.set_policy(signed());
        assert_eq!(publisher.apply(&accepted(2), None).unwrap_err(), Outdated);
        assert_eq!(
            handle.subscribe().borrow().snapshot().unwrap().etag(),
            snapshot(1).etag()
        );
        assert_eq!(
            handle.status().last_failure.map(|failure| failure.message),
            None
        );
        handle.set_policy(unsigned());
        publisher
            .apply(&accepted(2), None)
            .expect("the name of a policy is not compared");
        handle.set_policy(signed());
        let digest = Some(snapshot(2).manifest_digest().clone());
        let (class, step, message) = (FailureClass::Distrusted, Step::Verify, "refused".to_owned());
        let failure = Failure {
            class,
            step,
            digest,
            below: Arc::default(),
            etag: None,
            reason: "test",
            message,
        };
        publisher
            .apply(&Event::ReverificationFailed(failure), None)
            .unwrap();
        assert_eq!(&*handle.withdrawal().unwrap().reason, "refused");
    }

    /// After a restart the first check publishes the version from the disk, whatever it finds.
    #[test]
    fn no_reader_of_the_status_finds_a_failure_beside_the_state_before_it() {
        let failure = Failure {
            class: FailureClass::Evidence,
            step: Step::Verify,
            digest: None,
            below: Arc::default(),
            etag: None,
            reason: "test",
            message: "refused".to_owned(),
        };
        let version = snapshot(1);
        for _ in 0..1000 {
            let (mut publisher, handle) = super::super::pending("authz");
            let restored = Event::Restored {
                snapshot: Arc::clone(&version),
                confirmed: None,
            };
            publisher.apply(&restored, None).unwrap();
            let checked = Event::Checked {
                outcome: Outcome::Failed(failure.clone()),
                at: telemetry::now(),
            };
            thread::scope(|threads| {
                let reader = threads.spawn(|| {
                    loop {
                        let status = handle.status();
                        if status.last_failure.is_some() {
                            return status.state.label();
                        }
                    }
                });
                publisher.apply(&checked, None).unwrap();
                assert_eq!(reader.join().unwrap(), "serving");
            });
        }
    }

    #[test]
    fn a_waiter_wakes_only_for_other_bytes() {
        let (mut publisher, handle) = serving();
        let mut seen = handle.subscribe();
        seen.mark_unchanged();
        publisher
            .apply(&Event::Reverified(snapshot(1)), None)
            .unwrap();
        assert!(!seen.has_changed().unwrap(), "it has the same entity tag");
        publisher.apply(&accepted(2), None).unwrap();
        assert!(seen.has_changed().unwrap());
    }

    /// Between the comparison and the publication there is no moment for a revocation.
    #[test]
    fn the_policy_does_not_change_while_a_version_is_published() {
        let (policy, seen) = watch::channel(unsigned());
        let held = HeldPolicy::new(&seen);
        let (changed, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                policy.send_replace(signed());
                changed.send(()).unwrap();
            });
            let early = wait.recv_timeout(Duration::from_millis(200));
            assert!(
                early.is_err(),
                "the policy changed under what is being published"
            );
            drop(held);
            wait.recv_timeout(Duration::from_secs(60))
                .expect("the policy never changes");
        });
    }
}
