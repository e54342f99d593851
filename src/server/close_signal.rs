//! Tells the task of a connection that the connection has to close, and why.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

/// Why a connection has to close. A greater reason replaces a lesser one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum CloseReason {
    /// The server is shutting down, or a response asked for it.
    Shutdown = 1,
    /// Another connection needs its slot.
    Evicted = 2,
    /// The client exceeded a deadline; the connection is closed without a grace period.
    Overdue = 3,
}

/// The signal of one connection: a word and the waker of its task, so that a connection that waits
/// needs neither timers nor subscriptions for it.
#[derive(Debug, Default)]
pub(super) struct CloseSignal {
    /// A [`CloseReason`], or zero.
    reason: AtomicU8,
    waker: AtomicWaker,
}

impl CloseSignal {
    pub(super) fn send(&self, reason: CloseReason) {
        self.reason.fetch_max(reason as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// The reason, once there is one. The task is woken at each further signal too, because a
    /// greater reason may follow.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<CloseReason> {
        self.waker.register(context.waker());
        self.get().map_or(Poll::Pending, Poll::Ready)
    }

    /// Ready once the reason is a deadline that was exceeded.
    pub(super) fn poll_overdue(&self, context: &Context<'_>) -> Poll<()> {
        match self.poll(context) {
            Poll::Ready(CloseReason::Overdue) => Poll::Ready(()),
            Poll::Ready(_) | Poll::Pending => Poll::Pending,
        }
    }

    fn get(&self) -> Option<CloseReason> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            1 => Some(CloseReason::Shutdown),
            2 => Some(CloseReason::Evicted),
            _ => Some(CloseReason::Overdue),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_greater_reason_replaces_a_lesser_one_and_wakes_again() {
        let signal = CloseSignal::default();
        let mut reason = poll_fn(|context| signal.poll(context));
        assert_eq!((&mut reason).now_or_never(), None);
        signal.send(CloseReason::Evicted);
        assert_eq!(reason.await, CloseReason::Evicted);
        let overdue = poll_fn(|context| signal.poll_overdue(context));
        tokio::pin!(overdue);
        assert_eq!(overdue.as_mut().now_or_never(), None);
        signal.send(CloseReason::Shutdown);
        assert_eq!(overdue.as_mut().now_or_never(), None);
        tokio::join!(overdue, async { signal.send(CloseReason::Overdue) });
    }
}
