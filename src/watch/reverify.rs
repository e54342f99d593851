//! What is served is judged again, from the evidence in hand and before anybody is asked, when
//! the policy has changed or the verdict is over: a registry that does not answer can't prolong
//! a revoked key.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};

use super::{persist::Update, watcher::Watcher};
use crate::{
    publish::{Admitted, Failure, FailureClass, Outcome, Publisher, Snapshot, State, is_expired, next},
    telemetry,
    verify::TrustPolicy,
};

/// The clock that verdicts go by may be set, and stands still for nobody who sleeps: a machine
/// that was suspended wakes up late. So it is looked at this often.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Waits until the policy changes, or a verdict is to be reached again that was `due`.
/// Cancel-safe.
pub(super) async fn due_or_policy_changed(policy: &mut watch::Receiver<Arc<TrustPolicy>>, due: Option<Timestamp>) {
    tokio::select! {
        changed = policy.changed() => if changed.is_err() {
            // Nobody is left who could change it.
            expiry(due).await;
        },
        () = expiry(due) => {}
    }
}

async fn expiry(due: Option<Timestamp>) {
    let Some(until) = due else { return std::future::pending().await };
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
    /// After which what is served or restored is to be judged again.
    pub(super) fn verification_due(&self) -> Option<Timestamp> {
        self.current()?.manifest().due()
    }

    /// Judges what is served or restored once more. What is refused now is withdrawn; what
    /// is accepted stays, and nobody wakes.
    pub(super) async fn reverify(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        self.publisher.set_policy(&policy);
        // Another policy may want other evidence of what was refused, or none.
        self.known_defect = None;
        self.schedule.start_over();
        let Some(current) = self.current() else { return self.restore_trust(&policy).await };
        if current.manifest().revision() == policy.revision() && !is_expired(current.manifest().due(), telemetry::now())
        {
            return;
        }
        match self.pipeline.reverify(&current, &policy).await {
            // Other signers may say something else about its order.
            Ok(snapshot) => match self.pipeline.expect_snapshot(&snapshot, &self.history) {
                Ok(()) => self.keep_serving(snapshot),
                Err(failure) => self.withdraw_untrusted(&failure),
            },
            Err(refused) => {
                self.publisher.record_rejection(refused.status);
                self.withdraw_untrusted(&refused.failure);
            }
        }
    }

    /// Serves what was withdrawn for want of trust, if the policy accepts it again.
    async fn restore_trust(&mut self, policy: &Arc<TrustPolicy>) {
        let Some(distrusted) = self.distrusted.clone() else { return };
        let Ok(snapshot) = self.pipeline.reverify(&distrusted, policy).await else { return };
        if self.pipeline.expect_snapshot(&snapshot, &self.history).is_err() {
            return;
        }
        self.persist(Arc::clone(&snapshot)).await;
        let policy = self.policy.clone();
        let Ok(admitted) = Admitted::new(&policy, State::Serving(Arc::clone(&snapshot))) else {
            return self.revert_persisted();
        };
        self.publisher.publish(admitted);
        self.distrusted = None;
        self.record_served(&snapshot);
    }

    fn keep_serving(&mut self, snapshot: Arc<Snapshot>) {
        if self.restored.is_some() {
            self.restored = Some(State::Serving(Arc::clone(&snapshot)));
        } else {
            let policy = self.policy.clone();
            // Otherwise it has changed once more, and whoever waits for that comes back here.
            let Ok(admitted) = Admitted::new(&policy, State::Serving(Arc::clone(&snapshot))) else { return };
            self.publisher.publish(admitted);
        }
        self.persist_queue.enqueue(Update::Confirm { snapshot, checked: self.last_confirmed });
    }

    /// Whatever made the judge refuse, what was accepted by yesterday's policy alone is not
    /// served by today's.
    fn withdraw_untrusted(&mut self, failure: &Failure) {
        let failure = Failure { class: FailureClass::Distrusted, ..failure.clone() };
        self.publisher.record_failure(&failure);
        self.distrusted = self.current();
        let before = self.restored.take().unwrap_or_else(|| self.publisher.state());
        if let State::Withdrawn(withdrawal) = next(&before, &Outcome::Failed(failure), self.options.on_missing) {
            self.publisher.withdraw(withdrawal);
        }
        self.persist_withdrawal(&self.publisher.state());
    }
}

/// Whether what was found wrong last should be looked at again now that the policy has changed.
pub(super) fn should_check(publisher: &Publisher) -> bool {
    // A registry that asks for patience gets it.
    publisher.failure_class().is_some_and(|class| class != FailureClass::RateLimited(None).label())
}
