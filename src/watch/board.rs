//! What the world sees of a bundle: its state for the server, its status for operators, and the
//! log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{
    Snapshot,
    expect::Older,
    handle::{FailureStatus, SignerStatus, Status},
    state::{Failure, State, Withdrawal},
    verdict::{VerdictStatus, milliseconds},
};
use crate::{
    telemetry::{self, NAME_BYTES, SENTENCE_BYTES, cut},
    verify::TrustPolicy,
};

/// The only sender of a bundle's state, and there is no way to make it [`State::Serving`] but by
/// an [`Admitted`].
#[derive(Debug)]
pub(super) struct Board {
    bundle: Arc<str>,
    state: watch::Sender<State>,
    status: Arc<Mutex<Status>>,
}

/// A state that may be shown, as long as this lives: what is served in it was accepted by the
/// policy that holds, and whoever wants to change the policy waits.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    state: State,
    policy: watch::Ref<'a, Arc<TrustPolicy>>,
}

/// The policy has changed since it was judged, or the verdict is over: it is to be judged again.
#[derive(Debug)]
pub(super) struct Outdated;

impl<'a> Admitted<'a> {
    /// Lets through what the policy of this moment has accepted, and whatever serves nothing.
    pub(super) fn new(policy: &'a watch::Receiver<Arc<TrustPolicy>>, state: State) -> Result<Self, Outdated> {
        let policy = policy.borrow();
        match state.snapshot() {
            Some(snapshot) if snapshot.manifest().revision() != policy.revision() => Err(Outdated),
            Some(snapshot) if !snapshot.is_valid_at(telemetry::now()) => Err(Outdated),
            Some(_) | None => Ok(Self { state, policy }),
        }
    }
}

impl Board {
    /// A board that says `pending`, and what others see of it.
    pub(super) fn new(
        bundle: Arc<str>,
        reference: String,
        policy: &TrustPolicy,
    ) -> (Self, watch::Receiver<State>, Arc<Mutex<Status>>) {
        let (state, state_seen) = watch::channel(State::Pending);
        let status = Status { state: State::Pending.label(), reference, since: now(), ..Status::default() };
        let status = Arc::new(Mutex::new(status));
        let board = Self { bundle, state, status: Arc::clone(&status) };
        board.name_policy(policy);
        (board, state_seen, status)
    }

    /// What it shows.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Publishes a state. Waiters wake only if what they would get has changed.
    pub(super) fn show(&mut self, admitted: Admitted<'_>) {
        let Admitted { state: after, policy } = admitted;
        self.name_policy(&policy);
        self.replace(after);
    }

    /// Serves nothing any more.
    pub(super) fn withdraw(&mut self, withdrawal: Withdrawal) {
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
        self.describe(&before, &after);
        self.state.send_if_modified(|state| {
            *state = after;
            !same_bytes
        });
    }

    fn describe(&self, before: &State, after: &State) {
        let bundle = &*self.bundle;
        let mut status = self.lock();
        let Some(snapshot) = after.snapshot() else {
            (status.since, status.state) = (now(), after.label());
            (status.manifest, status.etag, status.revision, status.size) = (None, None, None, None);
            status.older = None;
            (status.signers, status.verdict) = (Vec::new(), None);
            // What was never served is not missed; why it is not has been told.
            if let State::Withdrawn(Withdrawal { reason, lost, .. }) = after
                && (lost.is_some() || before.snapshot().is_some())
            {
                match &status.stands_in {
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
        status.verdict = Some(snapshot.proof().status.clone());
    }

    /// Puts a failure where people look; logs it once, not at every repetition.
    pub(super) fn note(&self, failure: &Failure) {
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
    pub(super) fn refuse(&self, verdict: Option<Box<VerdictStatus>>) {
        if let Some(verdict) = verdict {
            self.lock().refused = Some(*verdict);
        }
    }

    /// Says whether what is served, or is about to be, is older than what was served before.
    pub(super) fn alarm(&self, older: Option<&Older>) {
        let bundle = &*self.bundle;
        let older = older.map(|older| cut(&older.to_string(), SENTENCE_BYTES).into_owned());
        let mut status = self.lock();
        if let Some(older) = older.as_ref().filter(|older| status.older.as_ref() != Some(older)) {
            tracing::warn!(bundle, older, "serving something older than before; set expect.on_older to refuse it");
        }
        status.older = older;
    }

    /// Takes down the last failure: something went well since.
    pub(super) fn forgive(&self) {
        let mut status = self.lock();
        (status.last_failure, status.refused) = (None, None);
    }

    /// The class of the last failure, if nothing went well since.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.lock().last_failure.as_ref().map(|failure| failure.class)
    }

    /// Tells by what this bundle is judged.
    pub(super) fn name_policy(&self, policy: &TrustPolicy) {
        let mut status = self.lock();
        policy.name().clone_into(&mut status.policy);
        status.policy_revision = policy.revision().to_string();
    }

    /// Notes that the registry has answered.
    pub(super) fn checked(&self) {
        self.lock().last_check = Some(now());
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

    use super::{super::state::tests::snapshot, *};
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
