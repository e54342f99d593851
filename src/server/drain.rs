//! The way out: how far a shutdown has come, and when those who wait are let go.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

/// How far the shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Balancers are to notice: nothing new is held, and every answer asks its client to
    /// connect elsewhere.
    Notice,
    /// Those who wait are let go.
    Release,
}

/// The shutdown, seen by those who answer. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Leaving {
    phase: watch::Receiver<Phase>,
    over: Duration,
}

impl Leaving {
    /// `over`: the time across which those who wait are let go.
    pub(super) fn new(phase: watch::Receiver<Phase>, over: Duration) -> Self {
        Self { phase, over }
    }

    /// Whether the shutdown has begun.
    pub(super) fn has_begun(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    /// Ends at a moment of one's own while those who wait are let go, so that a fleet does
    /// not come back in one instant.
    pub(super) async fn let_go(mut self) {
        if self.phase.wait_for(|phase| *phase == Phase::Release).await.is_ok() {
            sleep(self.over.mul_f64(fastrand::f64())).await;
        }
    }
}
