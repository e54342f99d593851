//! What the world sees of a bundle: its state for the server, its status and metrics for
//! operators, and the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{
    Snapshot,
    handle::{Checks, FailureStatus, Handle, Requests, SignerStatus, Status},
    state::{Failure, State, Withdrawal},
    verdict::{VerdictStatus, milliseconds},
};
use crate::{
    metrics::Metrics,
    telemetry::{self, NAME_BYTES, SENTENCE_BYTES, cut},
    verify::TrustPolicy,
};

/// The only sender of a bundle's state, and there is no way to make it [`State::Serving`] but by
/// an [`Admitted`].
#[derive(Debug)]
pub(crate) struct Publisher {
    bundle: Arc<str>,
    metrics: Metrics,
    state: watch::Sender<State>,
    checks: watch::Sender<Checks>,
    status: Arc<Mutex<Status>>,
    /// The labels under which `bundle_info` has it.
    published: Option<[String; 2]>,
}

/// A state that may be shown, as long as this lives: what is served in it was accepted by the
/// policy that holds, and whoever wants to change the policy waits.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    state: State,
    policy: watch::Ref<'a, Arc<TrustPolicy>>,
}

/// The policy has changed since it was judged, or the verdict is over: it is to be judged again.
#[derive(Debug)]
pub(crate) struct Outdated;

impl<'a> Admitted<'a> {
    /// Lets through what the policy of this moment has accepted, and whatever serves nothing.
    pub(crate) fn new(policy: &'a watch::Receiver<Arc<TrustPolicy>>, state: State) -> Result<Self, Outdated> {
        let policy = policy.borrow();
        match state.snapshot() {
            Some(snapshot) if snapshot.manifest().revision() != policy.revision() => Err(Outdated),
            Some(snapshot) if !snapshot.is_valid_at(telemetry::now()) => Err(Outdated),
            Some(_) | None => Ok(Self { state, policy }),
        }
    }
}

impl Publisher {
    /// A publisher of `pending`, the handle to what it publishes, and what handles ask for.
    pub(crate) fn new(
        bundle: Arc<str>,
        reference: String,
        policy: Arc<TrustPolicy>,
        confirm_within: Duration,
        metrics: Metrics,
    ) -> (Self, Handle, Requests) {
        let (state, state_seen) = watch::channel(State::Pending);
        let (checks, checks_seen) = watch::channel(Checks::default());
        let (wanted, wanted_seen) = watch::channel(None);
        let status = Status { state: State::Pending.label(), reference, since: now(), ..Status::default() };
        let status = Arc::new(Mutex::new(status));
        let (name, seen) = (Arc::clone(&bundle), Arc::clone(&status));
        let mut publisher = Self { bundle, metrics, state, checks, status, published: None };
        publisher.set_policy(&policy);
        publisher.update_state_metrics();
        let (policy, policy_seen) = watch::channel(policy);
        let handle = Handle {
            name,
            state: state_seen,
            checks: checks_seen,
            wanted: Arc::new(wanted),
            confirm_within,
            policy: Arc::new(policy),
            status: seen,
            fallback: None,
        };
        (publisher, handle, Requests { policy: policy_seen, check: wanted_seen })
    }

    /// What it shows.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Publishes a state. Waiters wake only if what they would get has changed.
    pub(crate) fn publish(&mut self, admitted: Admitted<'_>) {
        let Admitted { state: after, policy } = admitted;
        self.set_policy(&policy);
        self.replace(after);
    }

    /// Serves nothing any more.
    pub(crate) fn withdraw(&mut self, withdrawal: Withdrawal) {
        self.replace(State::Withdrawn(withdrawal));
    }

    fn replace(&mut self, after: State) {
        let before = self.state.borrow().clone();
        let same_bytes = match (&before, &after) {
            (State::Serving(before), State::Serving(after)) if Arc::ptr_eq(before, after) => return,
            (State::Serving(before), State::Serving(after)) => before.etag() == after.etag(),
            (State::Pending, State::Pending) => return,
            (State::Withdrawn(before), State::Withdrawn(after)) if before == after => return,
            _ => false,
        };
        self.update_status(&before, &after);
        self.state.send_if_modified(|state| {
            *state = after;
            !same_bytes
        });
        self.update_state_metrics();
    }

    fn update_status(&self, before: &State, after: &State) {
        let bundle = &*self.bundle;
        let mut status = self.lock();
        let Some(snapshot) = after.snapshot() else {
            (status.since, status.state) = (now(), after.label());
            (status.manifest, status.etag, status.revision, status.size) = (None, None, None, None);
            status.older = None;
            self.metrics.bundle_older.with_label_values(&[bundle]).set(0);
            (status.signers, status.verdict) = (Vec::new(), None);
            // What was never served is not missed; why it is not has been told.
            if let State::Withdrawn(Withdrawal { reason, version, .. }) = after
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
        let manifest = snapshot.manifest_digest().to_string();
        let revision = revision_of(snapshot);
        if before.snapshot().is_some_and(|before| before.manifest_digest() == snapshot.manifest_digest()) {
            tracing::info!(bundle, manifest, policy = status.policy, "judged again: still trusted");
        } else {
            tracing::info!(bundle, manifest, revision, etag = snapshot.etag(), "serving");
            (status.since, status.state) = (now(), after.label());
        }
        status.manifest = Some(manifest);
        status.etag = Some(snapshot.etag().to_owned());
        status.revision = Some(revision);
        status.size = Some(snapshot.bundle().blob().size());
        status.signers = snapshot
            .signers()
            .iter()
            .map(|signer| SignerStatus {
                authority: signer.authority.clone(),
                identity: cut(&signer.identity, NAME_BYTES).into_owned(),
                format: signer.format.label(),
                signed_at: signer.signed_at.map(milliseconds),
            })
            .collect();
        status.verdict = Some(snapshot.record().status.clone());
    }

    /// Puts a failure where people look; logs it once, not at every repetition.
    pub(crate) fn record_failure(&self, failure: &Failure) {
        let message = cut(&failure.message, SENTENCE_BYTES);
        let status = FailureStatus {
            at: now(),
            class: failure.class.label(),
            step: failure.step.to_string(),
            digest: failure.digest.as_ref().map(ToString::to_string),
            message: message.clone().into_owned(),
        };
        let last = self.lock().last_failure.replace(status);
        let known = last.is_some_and(|last| last.message == message && last.class == failure.class.label());
        if !known {
            let (bundle, class, step) = (&*self.bundle, failure.class.label(), failure.step.to_string());
            let serving = self.state.borrow().label();
            tracing::warn!(bundle, class, step, reason = failure.reason, state = serving, "{message}");
        }
    }

    /// Puts the verdict about what was refused where people look.
    pub(crate) fn record_rejection(&self, verdict: Option<Box<VerdictStatus>>) {
        if let Some(verdict) = verdict {
            self.lock().refused = Some(*verdict);
        }
    }

    /// Says whether what is served, or is about to be, is older than what was served before.
    pub(crate) fn set_downgrade(&self, older: Option<&str>) {
        let bundle = &*self.bundle;
        self.metrics.bundle_older.with_label_values(&[bundle]).set(older.is_some().into());
        let older = older.map(|older| cut(older, SENTENCE_BYTES).into_owned());
        let mut status = self.lock();
        if let Some(older) = older.as_ref().filter(|older| status.older.as_ref() != Some(older)) {
            tracing::warn!(bundle, older, "serving something older than before; set expect.on_older to refuse it");
        }
        status.older = older;
    }

    /// Takes down the last failure: something went well since.
    pub(crate) fn clear_failure(&self) {
        let mut status = self.lock();
        (status.last_failure, status.refused) = (None, None);
    }

    /// The class of the last failure, if nothing went well since.
    pub(crate) fn failure_class(&self) -> Option<&'static str> {
        self.lock().last_failure.as_ref().map(|failure| failure.class)
    }

    /// Tells by what this bundle is judged.
    pub(crate) fn set_policy(&self, policy: &TrustPolicy) {
        let mut status = self.lock();
        policy.name().clone_into(&mut status.policy);
        status.policy_revision = policy.revision().to_string();
    }

    /// Records a check that began at `began`, and whether the registry answered it.
    pub(crate) fn record_check(&self, began: Instant, answered: bool) {
        if answered {
            self.lock().last_check = Some(now());
            let seconds = telemetry::now().as_millisecond() as f64 / 1000.0;
            self.metrics.last_check.with_label_values(&[&*self.bundle]).set(seconds);
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

    /// Whether the registry answered the check that began at `began`.
    pub(crate) fn has_answered(&self, began: Instant) -> bool {
        self.checks.borrow().answered == Some(began)
    }

    fn update_state_metrics(&mut self) {
        let name = &*self.bundle;
        let state = self.state.borrow();
        let published =
            state.snapshot().map(|snapshot| [snapshot.manifest_digest().to_string(), revision_of(snapshot)]);
        if let Some([manifest, revision]) = &self.published {
            // It may have been set never or twice; either way it has to go.
            let _ = self.metrics.bundle_info.remove_label_values(&[name, manifest, revision]);
        }
        if let Some([manifest, revision]) = &published {
            self.metrics.bundle_info.with_label_values(&[name, manifest, revision]).set(1);
        }
        self.published = published;
        for label in ["pending", "serving", "withdrawn"] {
            let value = i64::from(label == state.label());
            self.metrics.bundle_state.with_label_values(&[name, label]).set(value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundle's revision as a label, in the log and in the status.
fn revision_of(snapshot: &Snapshot) -> String {
    cut(snapshot.bundle().revision().as_str(), NAME_BYTES).into_owned()
}

/// RFC 3339, UTC, milliseconds.
fn now() -> String {
    milliseconds(telemetry::now())
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::{super::snapshot, *};
    use crate::verify::{Authority, PublicKey, Requirements};

    fn unsigned() -> Arc<TrustPolicy> {
        Arc::new(TrustPolicy::unsigned("dev".into()))
    }

    fn signed() -> Arc<TrustPolicy> {
        let key = PublicKey::from_pem(&rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
        let requirements = Requirements::any_of(vec![Authority::with_keys("release".into(), [key])]);
        Arc::new(TrustPolicy::signed("release".into(), requirements).unwrap())
    }

    /// Accepted without a signature.
    fn serving() -> State {
        State::Serving(snapshot(1))
    }

    #[test]
    fn what_another_policy_has_accepted_is_not_admitted_and_withdrawing_always_is() {
        let (policy, seen) = watch::channel(unsigned());
        assert!(Admitted::new(&seen, serving()).is_ok());
        policy.send_replace(signed());
        assert!(Admitted::new(&seen, serving()).is_err());
        for state in [State::Pending, State::Withdrawn("refused".into())] {
            assert!(Admitted::new(&seen, state).is_ok());
        }
        policy.send_replace(unsigned());
        assert!(Admitted::new(&seen, serving()).is_ok(), "the name of a policy says nothing");
    }

    /// Between the comparison and the publication there is no moment for a revocation.
    #[test]
    fn nobody_changes_the_policy_while_something_is_published() {
        let (policy, seen) = watch::channel(unsigned());
        let admitted = Admitted::new(&seen, serving()).unwrap();
        let (changed, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                policy.send_replace(signed());
                changed.send(()).unwrap();
            });
            let early = wait.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "the policy changed under what is being published");
            drop(admitted);
            wait.recv_timeout(Duration::from_secs(60)).expect("the policy never changes");
        });
    }
}
