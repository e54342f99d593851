//! The drain: the phases of a shutdown, and when held requests are released.

use std::time::Duration;

use tokio::sync::watch;

/// A phase of the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Load balancers notice that the replica is not ready: no new request is held, and every
    /// response asks its client to connect elsewhere.
    Notice,
    /// Held requests are released.
    Release,
}

/// The phase of the shutdown, as request handlers see it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DrainSignal {
    phase: watch::Receiver<Phase>,
    over: Duration,
}

impl DrainSignal {
    /// `over`: the time across which held requests are released.
    pub(super) fn new(phase: watch::Receiver<Phase>, over: Duration) -> Self {
        Self { phase, over }
    }

    /// Whether the shutdown has begun.
    pub(super) fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    /// Whether held requests are released. They are woken then
    /// ([`Catalog::wake_waiters`](super::Catalog::wake_waiters)).
    pub(super) fn is_released(&self) -> bool {
        *self.phase.borrow() == Phase::Release
    }

    /// A random time of the release phase, so that the clients of a fleet do not reconnect all at
    /// once.
    pub(super) fn release_delay(&self) -> Duration {
        self.over.mul_f64(fastrand::f64())
    }
}
