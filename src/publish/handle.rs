//! What the server may know and ask of a watcher.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{state::State, status::Status, view::Fallback};
use crate::verify::TrustPolicy;

/// One bundle, seen from outside its watcher. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) name: Arc<str>,
    pub(super) state: watch::Receiver<State>,
    pub(super) checks: watch::Receiver<Checks>,
    /// When somebody last asked for a check.
    pub(super) wanted: Arc<watch::Sender<Option<Instant>>>,
    pub(super) confirm_within: Duration,
    pub(super) policy: Arc<watch::Sender<Arc<TrustPolicy>>>,
    pub(super) status: Arc<Mutex<Status>>,
    /// What stands in for it while it is withdrawn.
    pub(super) fallback: Option<Fallback>,
}

/// What handles ask of the watcher.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The policy that decides.
    pub(crate) policy: watch::Receiver<Arc<TrustPolicy>>,
    /// When a client last asked for a check of the registry.
    pub(crate) check: watch::Receiver<Option<Instant>>,
}

/// What is known about the last check of the registry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Checks {
    /// When the last check that the registry answered began.
    pub(super) answered: Option<Instant>,
    /// When the last check that it did not answer began.
    pub(super) failed: Option<Instant>,
    /// Whether any attempt has ended.
    pub(super) concluded: bool,
}

impl Handle {
    /// The bundle's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A view of the state of one's own: mark it seen (`borrow_and_update`) before
    /// comparing, wait for `changed` after.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// From now on this policy decides: what is served is judged by it, and nothing that was
    /// judged by the one before is published any more. Whether it is another one. Waits for
    /// nobody but a publication under way.
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

    /// The policy that decides at the moment.
    pub fn policy(&self) -> Arc<TrustPolicy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Waits until the registry has been asked no longer than `confirm_within` ago, has
    /// answered, and what it said has been published. While it does not answer this waits, so
    /// the caller brings a deadline.
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
            // Never back in time: the watcher must not miss a later wish for an earlier one.
            self.wanted.send_if_modified(|wanted| {
                let later = wanted.is_none_or(|wanted| wanted < asked);
                if later {
                    *wanted = Some(asked);
                }
                later
            });
            if checks.changed().await.is_err() {
                // Its watcher is gone, and with it whoever could answer.
                return std::future::pending().await;
            }
        }
    }

    /// Whether one attempt has come to an end, whatever its outcome.
    pub fn has_concluded(&self) -> bool {
        self.checks.borrow().concluded
    }

    /// What operators see.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
