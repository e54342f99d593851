//! The handle through which the server and the configuration reach a watcher.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{state::State, status::Status, view::Fallback};
use crate::verify::TrustPolicy;

/// One bundle as the rest of the program sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) name: Arc<str>,
    pub(super) state: watch::Receiver<State>,
    pub(super) checks: watch::Receiver<Checks>,
    /// When a client last asked for a check of the registry.
    pub(super) wanted: Arc<watch::Sender<Option<Instant>>>,
    pub(super) confirm_within: Duration,
    pub(super) policy: Arc<watch::Sender<Arc<TrustPolicy>>>,
    pub(super) suspended: Arc<watch::Sender<bool>>,
    pub(super) status: Arc<Mutex<Status>>,
    /// The bundle that is served while this one is withdrawn.
    pub(super) fallback: Option<Fallback>,
}

/// The requests of handles to the watcher.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The policy that decides.
    pub(crate) policy: watch::Receiver<Arc<TrustPolicy>>,
    /// When a client last asked for a check of the registry.
    pub(crate) check: watch::Receiver<Option<Instant>>,
    /// Whether the registry is not to be checked.
    pub(crate) suspended: watch::Receiver<bool>,
}

/// The last checks of the registry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Checks {
    /// When the last check that the registry answered began.
    pub(super) answered: Option<Instant>,
    /// When the last check that it did not answer began.
    pub(super) failed: Option<Instant>,
    /// Whether any check has ended.
    pub(super) concluded: bool,
}

impl Handle {
    /// The bundle's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A receiver of the state. The caller marks it as seen (`borrow_and_update`) before it
    /// compares, and waits for `changed` afterwards, so that no change is missed.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Sets the policy that decides from now on: the watcher verifies what is served again, and
    /// publishes nothing that only the previous policy accepted. Returns whether the policy is
    /// another one. Waits only for a publication under way.
    pub fn set_policy(&self, policy: Arc<TrustPolicy>) -> bool {
        let mut is_other = false;
        self.policy.send_if_modified(|current| {
            is_other = current.revision() != policy.revision();
            let is_new = is_other || current.name() != policy.name();
            if is_new {
                *current = policy;
            }
            is_new
        });
        is_other
    }

    /// The policy that decides now.
    pub fn policy(&self) -> Arc<TrustPolicy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Stops or resumes the checks of the registry (`suspend`). While they are stopped, the version
    /// being served stays, and is still verified again when the policy changes. Returns whether
    /// this is a change.
    pub fn set_suspended(&self, suspended: bool) -> bool {
        let changed = self
            .suspended
            .send_if_modified(|current| std::mem::replace(current, suspended) != suspended);
        if changed {
            self.lock_status().suspended = suspended;
        }
        changed
    }

    /// Waits for a check of the registry that began no longer than `confirm_within` ago, was
    /// answered, and whose result is published. Waits for as long as the registry does not answer,
    /// so the caller sets a deadline.
    ///
    /// Any number of callers share one check. Cancel-safe.
    pub async fn confirm(&self) {
        let asked = Instant::now();
        let mut checks = self.checks.clone();
        loop {
            let answered = checks.borrow_and_update().answered;
            if answered.is_some_and(|began| began + self.confirm_within >= asked) {
                return;
            }
            // The time never goes back: an earlier request must not hide a later one from the
            // watcher.
            self.wanted.send_if_modified(|wanted| {
                let later = wanted.is_none_or(|wanted| wanted < asked);
                if later {
                    *wanted = Some(asked);
                }
                later
            });
            if checks.changed().await.is_err() {
                // The watcher is gone, so no check will follow.
                return std::future::pending().await;
            }
        }
    }

    /// Whether a check has ended, with any outcome.
    pub fn has_concluded(&self) -> bool {
        self.checks.borrow().concluded
    }

    /// The status for operators.
    pub fn status(&self) -> Status {
        self.lock_status().clone()
    }

    fn lock_status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
