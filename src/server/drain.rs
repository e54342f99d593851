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
    /// Held requests are released over this time.
    Release(Duration),
}

/// The phase of the shutdown, as request handlers see it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DrainSignal {
    phase: watch::Receiver<Phase>,
}

impl DrainSignal {
    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase }
    }

    /// Whether the shutdown has begun.
    pub(super) fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    /// Whether held requests are released. They are woken then
    /// ([`Catalog::wake_waiters`](super::Catalog::wake_waiters)).
    pub(super) fn is_released(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Release(_))
    }

    /// A random time of the release phase, so that the clients of a fleet do not reconnect all at
    /// once.
    pub(super) fn release_delay(&self) -> Duration {
        match *self.phase.borrow() {
            Phase::Release(over) => over.mul_f64(fastrand::f64()),
            Phase::Open | Phase::Notice => Duration::ZERO,
        }
    }
}
