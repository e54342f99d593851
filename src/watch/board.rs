//! What the world sees of a bundle: its state for the server, its status and metrics for
//! operators, and the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    handle::{FailureStatus, SignerStatus, Status},
    state::{Failure, State},
};
use crate::metrics::Metrics;

/// The only sender of a bundle's state.
#[derive(Debug)]
pub(super) struct Board {
    bundle: Arc<str>,
    metrics: Metrics,
    state: watch::Sender<State>,
    status: Arc<Mutex<Status>>,
    /// The labels under which `bundle_info` has it.
    published: Option<[String; 2]>,
}

impl Board {
    /// A board that says `pending`, and what others see of it.
    pub(super) fn new(
        bundle: Arc<str>,
        reference: String,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<State>, Arc<Mutex<Status>>) {
        let (state, state_seen) = watch::channel(State::Pending);
        let status = Status { state: State::Pending.label(), reference, since: now(), ..Status::default() };
        let status = Arc::new(Mutex::new(status));
        let mut board = Self { bundle, metrics, state, status: Arc::clone(&status), published: None };
        board.count_state();
        (board, state_seen, status)
    }

    /// What it shows.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Publishes a state. Waiters wake only if what they would get has changed.
    pub(super) fn show(&mut self, after: State) {
        let before = self.state.borrow().clone();
        let same_bytes = match (&before, &after) {
            (State::Serving(before), State::Serving(after)) if Arc::ptr_eq(before, after) => return,
            (State::Serving(before), State::Serving(after)) => before.etag() == after.etag(),
            (State::Pending, State::Pending) => return,
            (State::Withdrawn(before), State::Withdrawn(after)) if before == after => return,
            _ => false,
        };
        self.describe(&after);
        self.state.send_if_modified(|state| {
            *state = after;
            !same_bytes
        });
        self.count_state();
    }

    fn describe(&self, after: &State) {
        let bundle = &*self.bundle;
        let mut status = self.lock();
        status.since = now();
        status.state = after.label();
        let Some(snapshot) = after.snapshot() else {
            (status.manifest, status.etag, status.revision, status.size) = (None, None, None, None);
            status.signers = Vec::new();
            if let State::Withdrawn(withdrawal) = after {
                tracing::error!(
                    bundle,
                    reason = %withdrawal.reason,
                    "withdrawn: nothing is served any more; running OPAs keep their last policy, restarted ones have none"
                );
            }
            return;
        };
        let manifest = snapshot.manifest_digest().to_string();
        let revision = snapshot.bundle().revision().to_string();
        tracing::info!(bundle, manifest, revision, etag = snapshot.etag(), "serving");
        status.manifest = Some(manifest);
        status.etag = Some(snapshot.etag().to_owned());
        status.revision = Some(revision);
        status.size = Some(snapshot.bundle().blob().size());
        status.signers = snapshot
            .signers()
            .iter()
            .map(|signer| SignerStatus {
                authority: signer.authority.clone(),
                identity: signer.identity.clone(),
                format: signer.format.label(),
                signed_at: None,
            })
            .collect();
    }

    /// Puts a failure where people look; logs it once, not at every repetition.
    pub(super) fn note(&self, failure: &Failure) {
        let status = FailureStatus {
            at: now(),
            class: failure.class.label(),
            step: failure.step.to_string(),
            digest: failure.digest.as_ref().map(ToString::to_string),
            message: failure.message.clone(),
        };
        let last = self.lock().last_failure.replace(status);
        let known = last.is_some_and(|last| last.message == failure.message && last.class == failure.class.label());
        if !known {
            let (bundle, class, step) = (&*self.bundle, failure.class.label(), failure.step.to_string());
            let serving = self.state.borrow().label();
            tracing::warn!(bundle, class, step, reason = failure.reason, state = serving, "{}", failure.message);
        }
    }

    /// Takes down the last failure: something went well since.
    pub(super) fn forgive(&self) {
        self.lock().last_failure = None;
    }

    /// Notes that the registry has answered.
    pub(super) fn checked(&self) {
        self.lock().last_check = Some(now());
        let seconds = Timestamp::now().as_millisecond() as f64 / 1000.0;
        self.metrics.last_check.with_label_values(&[&*self.bundle]).set(seconds);
    }

    fn count_state(&mut self) {
        let name = &*self.bundle;
        let state = self.state.borrow();
        let published = state
            .snapshot()
            .map(|snapshot| [snapshot.manifest_digest().to_string(), snapshot.bundle().revision().to_string()]);
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

/// RFC 3339, UTC, milliseconds.
fn now() -> String {
    format!("{:.3}", Timestamp::now())
}
