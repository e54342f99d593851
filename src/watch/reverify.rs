//! What is served is judged again, from the evidence in hand and before anybody is asked, when
//! the policy has changed or the verdict is over: a registry that does not answer can't prolong
//! a revoked key.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};

use super::{
    Snapshot,
    persist::Entry,
    pool,
    publisher::{Admitted, Board},
    state::{Failure, FailureClass, Outcome, State, next},
    watcher::Watcher,
};
use crate::{telemetry, verify::TrustPolicy};

/// The clock that verdicts go by may be set, and stands still for nobody who sleeps: a machine
/// that was suspended wakes up late. So it is looked at this often.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

/// Waits until the policy changes, or a verdict is to be reached again that was `due`.
/// Cancel-safe.
pub(super) async fn arises(policy: &mut watch::Receiver<Arc<TrustPolicy>>, due: Option<Timestamp>) {
    tokio::select! {
        changed = policy.changed() => if changed.is_err() {
            // Nobody is left who could change it.
            run_out(due).await;
        },
        () = run_out(due) => {}
    }
}

async fn run_out(due: Option<Timestamp>) {
    let Some(until) = due else { return std::future::pending().await };
    loop {
        let now = telemetry::now();
        if pool::is_over(due, now) {
            return;
        }
        let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
        sleep(left.clamp(Duration::from_millis(1), LOOK_AT_CLOCK)).await;
    }
}

impl Watcher {
    /// After which what is served or lies prepared is to be judged again.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.known()?.manifest().due()
    }

    /// Judges what is served or lies prepared once more. What is refused now is withdrawn; what
    /// is accepted stays, and nobody wakes.
    pub(super) async fn reconsider(&mut self) {
        let policy = Arc::clone(&self.policy.borrow_and_update());
        self.board.name_policy(&policy);
        // Another policy may want other evidence of what was refused, or none.
        self.hopeless = None;
        self.schedule.start_over();
        let Some(known) = self.known() else { return self.absolve(&policy).await };
        if known.manifest().revision() == policy.revision() && !pool::is_over(known.manifest().due(), telemetry::now())
        {
            return;
        }
        match self.pipeline.judge_again(&known, &policy).await {
            // Other signers may say something else about its order.
            Ok(snapshot) => match self.pipeline.expect_snapshot(&snapshot, &self.history) {
                Ok(()) => self.uphold(snapshot),
                Err(failure) => self.distrust(&failure),
            },
            Err(refused) => {
                self.board.refuse(refused.status);
                self.distrust(&refused.failure);
            }
        }
    }

    /// Serves what was withdrawn for want of trust, if the policy accepts it again.
    async fn absolve(&mut self, policy: &Arc<TrustPolicy>) {
        let Some(doubted) = self.doubted.clone() else { return };
        let Ok(snapshot) = self.pipeline.judge_again(&doubted, policy).await else { return };
        if self.pipeline.expect_snapshot(&snapshot, &self.history).is_err() {
            return;
        }
        self.write(Arc::clone(&snapshot)).await;
        let policy = self.policy.clone();
        let Ok(admitted) = Admitted::new(&policy, State::Serving(Arc::clone(&snapshot))) else {
            return self.take_back();
        };
        self.board.show(admitted);
        self.doubted = None;
        self.remember(&snapshot);
    }

    fn uphold(&mut self, snapshot: Arc<Snapshot>) {
        if self.prepared.is_some() {
            self.prepared = Some(State::Serving(Arc::clone(&snapshot)));
        } else {
            let policy = self.policy.clone();
            // Otherwise it has changed once more, and whoever waits for that comes back here.
            let Ok(admitted) = Admitted::new(&policy, State::Serving(Arc::clone(&snapshot))) else { return };
            self.board.show(admitted);
        }
        self.scribe.put_down(Entry::Confirm { snapshot, checked: self.noted });
    }

    /// Whatever made the judge refuse, what was accepted by yesterday's policy alone is not
    /// served by today's.
    fn distrust(&mut self, failure: &Failure) {
        let failure = Failure { class: FailureClass::Distrusted, ..failure.clone() };
        self.board.note(&failure);
        self.doubted = self.known();
        let before = self.prepared.take().unwrap_or_else(|| self.board.state());
        if let State::Withdrawn(withdrawal) = next(&before, &Outcome::Failed(failure), self.rules.on_missing) {
            self.board.withdraw(withdrawal);
        }
        self.forget(&self.board.state());
    }
}

/// Whether what was found wrong last should be looked at again now that the policy has changed.
pub(super) fn is_worth_a_look(board: &Board) -> bool {
    // A registry that asks for patience gets it.
    board.trouble().is_some_and(|class| class != FailureClass::RateLimited(None).label())
}
