//! Re-verification: when the policy has changed or a verification has expired, the version being
//! served is verified again from the evidence in hand, before any registry is asked. A registry
//! that does not answer can't prolong a revoked key.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};

use super::{pool::Rejection, watcher::Watcher};
use crate::{
    publish::{Event, Failure, FailureClass, Publisher, VerdictStatus, is_expired},
    telemetry,
    verify::TrustPolicy,
};

/// The interval at which the clock is read that verifications depend on: the clock may be set, and
/// a timer runs late on a machine that was suspended.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Waits until the policy changes, or until a verification that is `due` for renewal has reached
/// that time. Cancel-safe.
pub(super) async fn due_or_policy_changed(
    policy: &mut watch::Receiver<Arc<TrustPolicy>>,
    due: Option<Timestamp>,
) {
    tokio::select! {
        changed = policy.changed() => if changed.is_err() {
            // Every handle is gone, so the policy can't change.
            expiry(due).await;
        },
        () = expiry(due) => {}
    }
}

async fn expiry(due: Option<Timestamp>) {
    let Some(until) = due else {
        return std::future::pending().await;
    };
    loop {
        let now = telemetry::now();
        if is_expired(due, now) {
            return;
        }
        let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
        sleep(left.clamp(Duration::from_millis(1), CLOCK_CHECK_INTERVAL)).await;
    }
}

impl Watcher {
    /// When the version that is served, or restored, is to be verified again.
    pub(super) fn verification_due(&self) -> Option<Timestamp> {
        self.publisher.machine().current()?.manifest().due()
    }

    /// Verifies the version that is served, or restored, once more. It is withdrawn if it is
    /// refused now; if it is accepted it stays, and no waiter wakes.
    pub(super) async fn reverify(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        // The event publishes no version, so none can be outdated.
        let _ = self.apply(&Event::ReverificationDue, None);
        self.schedule.start_over();
        let Some(current) = self.publisher.machine().current().cloned() else {
            return self.restore_trust(&policy).await;
        };
        let (manifest, now) = (current.manifest(), telemetry::now());
        if manifest.revision() == policy.revision() && !is_expired(manifest.due(), now) {
            return;
        }
        match self.pipeline.reverify(&current, &policy).await {
            // Other signers may give it another place in the order.
            Ok(snapshot) => match self.pipeline.expect_snapshot(&snapshot, &self.history) {
                // If the policy has changed again, the caller calls this again.
                Ok(()) => {
                    let _ = self.apply(&Event::Reverified(snapshot), None);
                }
                Err(failure) => self.withdraw_untrusted(failure, None),
            },
            Err(Rejection { failure, verdict }) => self.withdraw_untrusted(failure, verdict),
        }
    }

    /// Serves a version again that was withdrawn because its verification failed, if the policy
    /// accepts it now.
    async fn restore_trust(&mut self, policy: &Arc<TrustPolicy>) {
        let Some(distrusted) = self.publisher.machine().distrusted().cloned() else {
            return;
        };
        let Ok(snapshot) = self.pipeline.reverify(&distrusted, policy).await else {
            return;
        };
        if self
            .pipeline
            .expect_snapshot(&snapshot, &self.history)
            .is_err()
        {
            return;
        }
        self.persist(
            Arc::clone(&snapshot),
            self.publisher.machine().last_confirmed(),
        )
        .await;
        if self.apply(&Event::TrustRestored(snapshot), None).is_err() {
            self.persist_published();
        }
    }

    /// Withdraws a version that only an earlier policy accepted, for whatever reason it failed.
    fn withdraw_untrusted(&mut self, failure: Failure, rejected: Option<Box<VerdictStatus>>) {
        let failure = Failure {
            class: FailureClass::Distrusted,
            ..failure
        };
        // The event withdraws, so no version can be outdated.
        let _ = self.apply(&Event::ReverificationFailed(failure), rejected);
    }
}

/// Whether the registry should be checked now that the policy has changed: after a failure it
/// should.
pub(super) fn should_check(publisher: &Publisher) -> bool {
    // A registry that limits the rate of requests is not asked early.
    publisher
        .failure_class()
        .is_some_and(|class| !matches!(class, FailureClass::RateLimited(_)))
}
