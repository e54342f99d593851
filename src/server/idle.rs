//! Who is connected without wanting anything, for the moment when all places are taken.
//!
//! OPA before 1.16 opens a connection for each poll and leaves the old one idle for 90 s, so
//! a fleet of them holds several places each; closing the idle ones costs nobody anything.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// The idle connections, the longest idle first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Idle(Arc<Ranks>);

#[derive(Debug, Default)]
struct Ranks {
    next: AtomicU64,
    seats: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

/// One connection's place in the list; it is taken out when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    idle: Idle,
    dismissed: Arc<Notify>,
    requests: Mutex<Requests>,
}

#[derive(Debug)]
struct Requests {
    open: usize,
    ever: bool,
    /// Where in the list, while none is open.
    rank: Option<u64>,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

impl Idle {
    /// A seat for a new connection, which has not asked anything yet.
    pub(super) fn seat(&self) -> Arc<Seat> {
        let dismissed = Arc::new(Notify::new());
        let rank = Some(self.rank(&dismissed));
        let requests = Mutex::new(Requests { open: 0, ever: false, rank });
        Arc::new(Seat { idle: self.clone(), dismissed, requests })
    }

    /// Asks the longest idle connection to end.
    pub(super) fn dismiss_one(&self) {
        if let Some((_, dismissed)) = self.seats().pop_first() {
            dismissed.notify_one();
        }
    }

    fn rank(&self, dismissed: &Arc<Notify>) -> u64 {
        let rank = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.seats().insert(rank, Arc::clone(dismissed));
        rank
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Counts a request in until what is given back is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        let mut requests = self.requests();
        requests.open += 1;
        requests.ever = true;
        self.stand_up(&mut requests);
        drop(requests);
        Busy(Arc::clone(self))
    }

    /// Whether it has asked anything so far.
    pub(super) fn has_asked(&self) -> bool {
        self.requests().ever
    }

    /// When its place is needed for somebody else.
    pub(super) async fn dismissed(&self) {
        self.dismissed.notified().await;
    }

    fn stand_up(&self, requests: &mut Requests) {
        if let Some(rank) = requests.rank.take() {
            self.idle.seats().remove(&rank);
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stand_up(&mut self.requests());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.open -= 1;
        if requests.open == 0 {
            requests.rank = Some(self.0.idle.rank(&self.0.dismissed));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_dismissed(seat: &Seat) -> bool {
        seat.dismissed().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_goes_first_and_who_is_busy_never() {
        let idle = Idle::default();
        let [one, two, three] = [idle.seat(), idle.seat(), idle.seat()];
        assert!(!one.has_asked());
        drop(one.busy());
        let _busy = two.busy();
        idle.dismiss_one();
        assert_eq!([&one, &two, &three].map(|seat| is_dismissed(seat)), [false, false, true]);
        idle.dismiss_one();
        idle.dismiss_one();
        assert_eq!([&one, &two, &three].map(|seat| is_dismissed(seat)), [true, false, false]);
        assert!(one.has_asked());
    }

    #[test]
    fn who_has_left_is_in_no_list() {
        let idle = Idle::default();
        drop(idle.seat());
        let seat = idle.seat();
        drop([seat.busy(), seat.busy()]);
        assert_eq!(idle.seats().len(), 1);
        drop(seat);
        assert!(idle.seats().is_empty());
    }
}
