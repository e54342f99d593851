//! The handle through which the server and the configuration reach a watcher.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::Either;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant},
};

use super::{
    Snapshot,
    state::{FailureClass, State},
    status::{FailureStatus, Status},
    view::Fallback,
};
use crate::{
    oci::Digest,
    traces::{Parent, Span},
    verify::TrustPolicy,
};

/// One bundle as the rest of the program sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) name: Arc<str>,
    pub(super) state: watch::Receiver<State>,
    pub(super) checks: watch::Receiver<Checks>,
    /// Why a check of the registry is wanted.
    pub(super) wanted: Arc<watch::Sender<Wanted>>,
    pub(super) confirm_within: Duration,
    pub(super) policy: Arc<watch::Sender<Arc<TrustPolicy>>>,
    pub(super) suspended: Arc<watch::Sender<bool>>,
    pub(super) stable: Arc<watch::Sender<StableVersion>>,
    pub(super) status: Arc<Mutex<Status>>,
    /// Wakes the requests that are held for the bundle.
    pub(super) waiters: Arc<Notify>,
    /// The bundle that is served while this one is withdrawn.
    pub(super) fallback: Option<Fallback>,
}

/// The requests of handles to the watcher.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The policy that decides.
    pub(crate) policy: watch::Receiver<Arc<TrustPolicy>>,
    /// Why a check of the registry is wanted.
    pub(crate) check: watch::Receiver<Wanted>,
    /// Whether the registry is not to be checked.
    pub(crate) suspended: watch::Receiver<bool>,
    /// The version that counts as served.
    pub(crate) stable: watch::Receiver<StableVersion>,
}

/// The version that counts as served, for `expect`.
#[derive(Debug, Clone)]
pub(crate) enum StableVersion {
    /// Each one that is published.
    Published,
    /// Versions are rolled out in steps, and which one is stable is not known yet.
    Unknown,
    /// Versions are rolled out in steps, and this one is stable.
    Version(Arc<Snapshot>),
}

/// When a check of the registry was last asked for, by reason. A check that began later satisfies
/// the request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By a client that runs another version than the served one.
    pub(crate) client: Option<Instant>,
    /// By an operator.
    pub(crate) operator: Option<Instant>,
    /// By a hint that the reference may name another artifact ([`Hint::Push`]).
    pub(crate) push: Option<Instant>,
    /// By a hint that evidence may have arrived ([`Hint::Evidence`]).
    pub(crate) evidence: Option<Instant>,
    /// The last request whose trace is recorded, and when it asked.
    pub(crate) traced: Option<(Instant, Parent)>,
}

impl Wanted {
    /// When a check was last asked for, for whatever reason.
    pub(crate) fn latest(&self) -> Option<Instant> {
        let Self {
            client,
            operator,
            push,
            evidence,
            traced: _,
        } = *self;
        client.max(operator).max(push).max(evidence)
    }
}

/// A claim about a repository, from a notification. A hint may be wrong or forged: it leads to a
/// check of the registry and to nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The reference may name another artifact now.
    Push,
    /// There may be new evidence. It matters only to a bundle that lacks evidence.
    Evidence,
}

/// The result of a requested check ([`Handle::check_now`]).
#[derive(Debug, Clone)]
pub enum Checked {
    /// Another version is published.
    Changed,
    /// The registry has the version that was published before.
    Unchanged,
    /// The check has failed.
    Failed(Box<FailureStatus>),
    /// The registry has asked for a pause (`Retry-After`); no check begins before this time.
    Held(Instant),
    /// The bundle is suspended, so no check begins.
    Suspended,
}

/// How a check has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckEnd {
    Changed,
    Unchanged,
    Failed,
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
    /// When the last check began, and how it has ended.
    pub(super) last: Option<(Instant, CheckEnd)>,
    /// Until when the registry has asked for no further request.
    pub(super) held_until: Option<Instant>,
}

impl Handle {
    /// The bundle's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version being served, if its verification holds at the time that `now` reads. Where this
    /// is `None`, a [`View`](super::View) tells what clients get.
    pub fn served_at(&self, now: impl FnOnce() -> Timestamp) -> Option<Arc<Snapshot>> {
        let state = self.state.borrow();
        let snapshot = state.snapshot()?;
        snapshot.is_valid(now).then(|| Arc::clone(snapshot))
    }

    /// A receiver of the state. The caller marks it as seen (`borrow_and_update`) before it
    /// compares, and waits for `changed` afterwards, so that no change is missed.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Completes when a held request has something to look at: a change of a [`View`](super::View),
    /// the end of the watcher, or [`Self::wake_waiters`]. What happens after this call counts, also
    /// before the future is polled. A held request needs this one registration, whatever it waits
    /// for.
    pub fn woken(&self) -> impl Future<Output = ()> + Send + '_ {
        let own = self.waiters.notified();
        match &self.fallback {
            None => Either::Left(own),
            // Boxed, because few bundles have a fallback, and each held request keeps this.
            Some(fallback) => Either::Right(Box::pin(fallback.woken_or(own))),
        }
    }

    /// Wakes the requests that are held for the bundle, for something that is no change of its
    /// state.
    pub fn wake_waiters(&self) {
        self.waiters.notify_waiters();
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

    /// Sets the version that counts as served for `expect`, where versions are rolled out in steps: a version
    /// that is merely being rolled out may still be taken back.
    pub fn set_stable(&self, snapshot: &Arc<Snapshot>) {
        self.stable.send_if_modified(|stable| {
            let is_other = match stable {
                StableVersion::Version(known) => {
                    known.manifest_digest() != snapshot.manifest_digest()
                }
                StableVersion::Unknown => true,
                StableVersion::Published => false,
            };
            if is_other {
                *stable = StableVersion::Version(Arc::clone(snapshot));
            }
            is_other
        });
    }

    /// Sets whether versions are rolled out in steps.
    pub fn set_staged(&self, is_staged: bool) {
        self.stable.send_if_modified(|stable| {
            let was_staged = !matches!(stable, StableVersion::Published);
            if was_staged != is_staged {
                *stable = match is_staged {
                    true => StableVersion::Unknown,
                    false => StableVersion::Published,
                };
            }
            was_staged != is_staged
        });
    }

    /// Whether another handle is one to the same watcher.
    pub fn is_of_same_watcher(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.status, &other.status)
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
            self.want(asked, |wanted| &mut wanted.client);
            if checks.changed().await.is_err() {
                // The watcher is gone, so no check will follow.
                return std::future::pending().await;
            }
        }
    }

    /// Has the registry checked now, and waits for the result of a check that began no earlier than
    /// this call: one that is under way may have begun before a change that the caller has seen. Any
    /// number of callers share one check. Never overrides a `Retry-After`. Waits for as long as the check
    /// takes, so the caller sets a deadline. Cancel-safe.
    pub async fn check_now(&self) -> Checked {
        let asked = Instant::now();
        let (mut checks, mut suspended) = (self.checks.clone(), self.suspended.subscribe());
        self.want(asked, |wanted| &mut wanted.operator);
        loop {
            if *suspended.borrow_and_update() {
                return Checked::Suspended;
            }
            let Checks {
                last, held_until, ..
            } = *checks.borrow_and_update();
            match last {
                Some((began, end)) if began >= asked => return self.checked(end),
                _ => {}
            }
            if let Some(until) = held_until.filter(|until| *until > asked) {
                return Checked::Held(until);
            }
            tokio::select! {
                changed = checks.changed() => if changed.is_err() {
                    // The watcher is gone, so no check will follow.
                    return std::future::pending().await;
                },
                // It can't fail, because this handle can suspend the bundle.
                _ = suspended.changed() => {}
            }
        }
    }

    fn checked(&self, end: CheckEnd) -> Checked {
        match (end, self.status().last_failure) {
            (CheckEnd::Changed, _) => Checked::Changed,
            (CheckEnd::Failed, Some(failure)) => Checked::Failed(Box::new(failure)),
            // A later success has cleared the failure.
            (CheckEnd::Unchanged | CheckEnd::Failed, _) => Checked::Unchanged,
        }
    }

    /// Has the registry checked soon, as the watcher's limits allow, and returns at once. Hints
    /// within a second lead to one check.
    pub fn hint(&self, hint: Hint) {
        let now = Instant::now();
        match hint {
            Hint::Push => self.want(now, |wanted| &mut wanted.push),
            Hint::Evidence => self.want(now, |wanted| &mut wanted.evidence),
        }
    }

    /// Whether the last check has refused the version `digest`, or one of which that is a part of
    /// the way to its image, for lack of valid evidence.
    pub fn lacks_evidence(&self, digest: &Digest) -> bool {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.last_failure.as_ref().is_some_and(|failure| {
            failure.class.is_about_evidence()
                && (failure.digest.as_ref() == Some(digest) || failure.below.contains(digest))
        })
    }

    /// Makes the next check a part of this trace.
    pub fn set_traced(&self, parent: Parent) {
        let traced = Some((Instant::now(), parent));
        self.wanted.send_modify(|wanted| wanted.traced = traced);
    }

    /// The time never goes back: an earlier request must not hide a later one from the watcher.
    fn want(&self, asked: Instant, reason: impl Fn(&mut Wanted) -> &mut Option<Instant>) {
        self.wanted.send_if_modified(|wanted| {
            let latest = reason(wanted);
            let is_later = latest.is_none_or(|latest| latest < asked);
            if is_later {
                *latest = Some(asked);
                if let Some(parent) = Span::current() {
                    wanted.traced = Some((asked, parent));
                }
            }
            is_later
        });
    }

    /// Whether a check has ended, with any outcome.
    pub fn has_concluded(&self) -> bool {
        self.checks.borrow().concluded
    }

    /// Whether it makes no difference to clients to wait longer: a version is served, the last check
    /// has failed for a reason that time does not mend, or no check is made (`suspend`).
    pub fn is_settled(&self) -> bool {
        if self.state.borrow().snapshot().is_some() {
            return true;
        }
        let has_concluded = self.has_concluded();
        let status = self.lock_status();
        let failure = status.last_failure.as_ref();
        has_concluded
            && (status.suspended || failure.is_some_and(|failure| !failure.class.may_pass()))
    }

    /// The class of the last failure, if no success has followed.
    pub fn failure_class(&self) -> Option<FailureClass> {
        let status = self.lock_status();
        status.last_failure.as_ref().map(|failure| failure.class)
    }

    /// The status for operators.
    pub fn status(&self) -> Status {
        self.lock_status().clone()
    }

    fn lock_status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
