//! Which connections get nothing done, for the moment when all places are taken.
//!
//! OPA before 1.16 opens a connection for each poll and leaves the old one idle for 90 s, so
//! a fleet of them holds several places each; closing the idle ones costs nobody anything.
//! Whoever connects to hold places does one of a few things: it sends no request, or half of
//! one, or it does not take its response. None of that is work, so such a connection gives way
//! to the next one that wants a place. A request that is being answered, or held, never does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Deadlines, unsent_response::Responding};

/// How many connections are looked at for one that may end, so that the cost is the same
/// however many there are.
const LOOKED_AT: usize = 64;
/// What counts as progress of a response; less can be taken bit by bit for ever.
pub(super) const PROGRESS_BYTES: usize = 16 << 10;

/// The connections that are not being answered, the longest idle first. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Idle(Arc<Ranks>);

#[derive(Debug)]
struct Ranks {
    limits: Limits,
    next: AtomicU64,
    seats: Mutex<BTreeMap<u64, Weak<Seat>>>,
    /// Connections with at least one request that is held.
    holding: AtomicUsize,
    /// Requests in progress beyond the first of each connection.
    more: AtomicUsize,
    /// Requests that are held beyond the first of each connection.
    more_held: AtomicUsize,
    /// Bytes that were read from files and not sent yet.
    unsent: AtomicUsize,
}

/// How much clients may have at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections that may hold requests.
    holding: usize,
    /// Requests beyond the first of each connection.
    more: usize,
    /// Those of them that may be held.
    more_held: usize,
    deadlines: Deadlines,
}

/// One connection. It is taken out of the list when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    idle: Idle,
    dismissed: Notify,
    /// Bytes that were read from files and not sent yet.
    unsent: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Requests without a response yet.
    open: usize,
    /// Those of them that are held.
    held: usize,
    /// HTTP/2 streams whose response is not sent yet.
    streams: usize,
    ever: bool,
    /// Where in the list, while no request is open.
    rank: Option<u64>,
    /// Since when no request is open.
    quiet_since: Instant,
    /// When a request that is not complete yet began to arrive.
    head_since: Option<Instant>,
    /// Responses that are not sent yet, with their last progress.
    responses: BTreeMap<u64, Instant>,
    next_response: u64,
    /// Bytes written since `progress_at`.
    written: usize,
    progress_at: Instant,
    /// HTTP/2, where one response may be stuck while others are not.
    is_multiplexed: bool,
}

/// A request that has no response yet.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

/// A request that is held.
#[derive(Debug)]
pub(super) struct Held(Arc<Seat>);

/// An HTTP/2 stream, from its request to the end of its response.
#[derive(Debug)]
pub(super) struct Stream(Arc<Seat>);

impl Limits {
    /// For so many connections, each with at most `streams` requests at a time.
    pub(super) fn new(connections: usize, streams: usize, deadlines: Deadlines) -> Self {
        // A tenth stays for those who ask without waiting.
        let most = |all: usize| (all - all.div_ceil(10)).max(1);
        // A balancer has many clients behind few connections.
        let more = connections.saturating_mul(4).max(streams.saturating_mul(4));
        Self { holding: most(connections), more, more_held: most(more), deadlines }
    }
}

impl Idle {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Ranks {
            limits,
            next: AtomicU64::new(0),
            seats: Mutex::default(),
            holding: AtomicUsize::new(0),
            more: AtomicUsize::new(0),
            more_held: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
        }))
    }

    /// A seat for a new connection, which has not asked anything yet.
    pub(super) fn seat(&self) -> Arc<Seat> {
        let now = Instant::now();
        let state = State {
            open: 0,
            held: 0,
            streams: 0,
            ever: false,
            rank: None,
            quiet_since: now,
            head_since: None,
            responses: BTreeMap::new(),
            next_response: 0,
            written: 0,
            progress_at: now,
            is_multiplexed: false,
        };
        let (dismissed, unsent, state) = (Notify::new(), AtomicUsize::new(0), Mutex::new(state));
        let seat = Arc::new(Seat { idle: self.clone(), dismissed, unsent, state });
        let rank = self.rank(&seat);
        seat.state().rank = Some(rank);
        seat
    }

    /// Asks the longest idle connection to end, and tells whether there was one.
    pub(super) fn dismiss_one(&self) -> bool {
        let now = Instant::now();
        let first: Vec<_> =
            self.seats().iter().take(LOOKED_AT).map(|(rank, seat)| (*rank, Weak::clone(seat))).collect();
        for (rank, seat) in first {
            let Some(seat) = seat.upgrade() else { continue };
            let mut state = seat.state();
            // It got busy in between.
            if state.rank != Some(rank) {
                continue;
            }
            self.seats().remove(&rank);
            if state.may_go(now, &self.0.limits.deadlines) {
                state.rank = None;
                seat.dismissed.notify_one();
                return true;
            }
            // Too early. Those behind it have their turn first.
            state.rank = Some(self.rank(&seat));
        }
        false
    }

    fn rank(&self, seat: &Arc<Seat>) -> u64 {
        let rank = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.seats().insert(rank, Arc::downgrade(seat));
        rank
    }

    // Taken after a seat's state, never before.
    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Seat>>> {
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it may end for the sake of another connection.
    fn may_go(&self, now: Instant, deadlines: &Deadlines) -> bool {
        if self.open > 0 {
            return false;
        }
        match self.responses.values().min() {
            Some(stuck) => now.duration_since(self.progress_at.max(*stuck)) >= deadlines.stalled,
            None => self.ever || now.duration_since(self.quiet_since) >= deadlines.newcomer,
        }
    }

    /// When it has taken too long for what it is doing, if it is doing anything.
    fn due(&self, deadlines: &Deadlines) -> Option<Instant> {
        let first = (!self.ever).then(|| self.quiet_since + deadlines.first_request);
        if self.is_multiplexed {
            // Each response has a deadline of its own.
            return first;
        }
        let head = self.head_since.map(|since| since + deadlines.head);
        let response = self.responses.values().min().map(|since| *since + deadlines.progress);
        [first, head, response].into_iter().flatten().min()
    }
}

impl Seat {
    /// Counts a request in until what is given back is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        let mut state = self.state();
        state.open += 1;
        state.ever = true;
        state.head_since = None;
        self.stand_up(&mut state);
        drop(state);
        Busy(Arc::clone(self))
    }

    /// Counts a stream in; `None` if there are too many in all. One for each connection there
    /// always may be.
    pub(super) fn stream(self: &Arc<Self>) -> Option<Stream> {
        let mut state = self.state();
        if state.streams > 0 && !take(&self.ranks().more, self.ranks().limits.more) {
            return None;
        }
        state.streams += 1;
        drop(state);
        Some(Stream(Arc::clone(self)))
    }

    /// Counts a request in as held; `None` if there are too many: connections that hold any, or
    /// further ones on this connection.
    pub(super) fn hold(self: &Arc<Self>) -> Option<Held> {
        let (ranks, mut state) = (self.ranks(), self.state());
        let (counter, most) = match state.held {
            0 => (&ranks.holding, ranks.limits.holding),
            _ => (&ranks.more_held, ranks.limits.more_held),
        };
        if !take(counter, most) {
            return None;
        }
        state.held += 1;
        drop(state);
        Some(Held(Arc::clone(self)))
    }

    /// Counts a response in until it and its pieces are dropped.
    pub(super) fn respond(self: &Arc<Self>) -> Responding {
        let mut state = self.state();
        let number = state.next_response;
        state.next_response += 1;
        state.responses.insert(number, Instant::now());
        drop(state);
        Responding::new(Arc::clone(self), number)
    }

    /// A response was taken a little further.
    pub(super) fn progressed(&self, response: u64) {
        if let Some(progress) = self.state().responses.get_mut(&response) {
            *progress = Instant::now();
        }
    }

    /// A response was sent, or given up.
    pub(super) fn responded(&self, response: u64) {
        self.state().responses.remove(&response);
    }

    /// Bytes came in.
    pub(super) fn heard(&self) {
        let mut state = self.state();
        if state.open == 0 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// The peer took bytes.
    pub(super) fn wrote(&self, bytes: usize) {
        let mut state = self.state();
        state.written += bytes;
        if state.written >= PROGRESS_BYTES {
            state.written = 0;
            let now = Instant::now();
            state.progress_at = now;
            if !state.is_multiplexed {
                state.responses.values_mut().for_each(|progress| *progress = now);
            }
        }
    }

    /// From now on its responses have deadlines of their own.
    pub(super) fn multiplex(&self) {
        self.state().is_multiplexed = true;
    }

    /// Bytes that were read from files and not sent yet: of this connection, and of all.
    pub(super) fn unsent(&self) -> [&AtomicUsize; 2] {
        [&self.unsent, &self.ranks().unsent]
    }

    /// Dismisses this one, if it may go.
    #[cfg(test)]
    pub(super) fn dismiss(&self) -> bool {
        self.idle.dismiss_one()
    }

    /// When its place is needed for somebody else.
    pub(super) async fn dismissed(&self) {
        self.dismissed.notified().await;
    }

    /// When it has taken too long to ask, or to take its response.
    pub(super) async fn overdue(&self) {
        let deadlines = &self.ranks().limits.deadlines;
        let look = deadlines.first_request.min(deadlines.head).min(deadlines.progress);
        loop {
            let now = Instant::now();
            // What begins after this look is due after the next one.
            let next = now + look;
            let due = self.state().due(deadlines).unwrap_or(next);
            if due <= now {
                return;
            }
            sleep_until(due.min(next)).await;
        }
    }

    /// How long it may go on after it was asked to end: as long as a client takes that is idle
    /// and learns of it.
    pub(super) fn grace(&self) -> Duration {
        let state = self.state();
        let is_idle = state.ever && state.head_since.is_none() && state.responses.is_empty();
        if is_idle { self.ranks().limits.deadlines.close_grace } else { Duration::ZERO }
    }

    /// Whether it may end for the sake of another connection.
    pub(super) fn may_go(&self) -> bool {
        self.state().may_go(Instant::now(), &self.ranks().limits.deadlines)
    }

    /// Whether nothing is being answered or sent.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.open == 0 && state.responses.is_empty()
    }

    fn ranks(&self) -> &Ranks {
        &self.idle.0
    }

    fn stand_up(&self, state: &mut State) {
        if let Some(rank) = state.rank.take() {
            self.idle.seats().remove(&rank);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let rank = self.state().rank.take();
        if let Some(rank) = rank {
            self.idle.seats().remove(&rank);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        if state.open == 0 {
            state.quiet_since = Instant::now();
            state.rank = Some(self.0.idle.rank(&self.0));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.streams -= 1;
        if state.streams > 0 {
            self.0.ranks().more.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.held -= 1;
        let ranks = self.0.ranks();
        let counter = if state.held == 0 { &ranks.holding } else { &ranks.more_held };
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds one unless that would be more than `most`.
fn take(counter: &AtomicUsize, most: usize) -> bool {
    let more = |count: usize| (count < most).then_some(count + 1);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn idle(connections: usize) -> Idle {
        Idle::new(Limits::new(connections, 10, Deadlines::default()))
    }

    fn is_dismissed(seat: &Seat) -> bool {
        seat.dismissed().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_goes_first_and_who_is_busy_never() {
        let idle = idle(9);
        let [one, two, three] = [idle.seat(), idle.seat(), idle.seat()];
        drop(one.busy());
        let _busy = two.busy();
        advance(Deadlines::default().newcomer).await;
        assert!(idle.dismiss_one());
        assert_eq!([&one, &two, &three].map(|seat| is_dismissed(seat)), [false, false, true]);
        assert!(idle.dismiss_one());
        assert!(!idle.dismiss_one());
        assert_eq!([&one, &two, &three].map(|seat| is_dismissed(seat)), [true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_connected_has_a_moment_to_ask() {
        let idle = idle(9);
        let seats: Vec<_> = (0..3).map(|_| idle.seat()).collect();
        advance(Deadlines::default().newcomer - MS).await;
        assert!(!idle.dismiss_one());
        // Whoever asked before and wants nothing now goes before them, wherever it stands.
        let old = idle.seat();
        drop(old.busy());
        assert!(idle.dismiss_one() && is_dismissed(&old));
        advance(MS).await;
        assert!(idle.dismiss_one());
        assert_eq!(seats.iter().filter(|seat| is_dismissed(seat)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_its_response_is_not_busy_for_long() {
        let idle = idle(9);
        let stalled = Deadlines::default().stalled;
        for multiplexed in [false, true] {
            let seat = idle.seat();
            if multiplexed {
                seat.multiplex();
            }
            let busy = seat.busy();
            let stuck = seat.respond();
            drop(busy);
            // A little at a time is nothing.
            for _ in 0..10 {
                advance(stalled / 11).await;
                seat.wrote(PROGRESS_BYTES / 20);
            }
            assert!(!idle.dismiss_one());
            // Nor do further requests make up for it.
            drop(seat.busy());
            advance(stalled / 11 + MS).await;
            assert!(idle.dismiss_one() && is_dismissed(&seat), "{multiplexed}");
            drop(stuck);
        }
        // Who takes what it asked for may take its time.
        let seat = idle.seat();
        drop(seat.busy());
        let _slow = seat.respond();
        for _ in 0..100 {
            advance(stalled - MS).await;
            seat.wrote(PROGRESS_BYTES);
            assert!(!idle.dismiss_one());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_left_is_in_no_list_and_holds_no_count() {
        let idle = idle(2);
        drop(idle.seat());
        let seat = idle.seat();
        drop([seat.busy(), seat.busy()]);
        assert_eq!(idle.seats().len(), 1);
        let piece = seat.respond().owned(Bytes::from_static(&[0; 100]));
        assert_eq!(seat.unsent().map(|unsent| unsent.load(Ordering::Relaxed)), [100, 100]);
        drop(piece);
        drop([seat.hold(), seat.hold()]);
        drop([seat.stream(), seat.stream()]);
        let counts = |ranks: &Ranks| {
            [&ranks.holding, &ranks.more, &ranks.more_held, &ranks.unsent].map(|count| count.load(Ordering::Relaxed))
        };
        assert_eq!(counts(&idle.0), [0; 4]);
        assert!(seat.state().responses.is_empty());
        drop(seat);
        assert!(idle.seats().is_empty());
    }

    /// Never by address or credential: whole fleets share one.
    #[tokio::test(start_paused = true)]
    async fn requests_are_held_on_nine_tenths_of_the_places_and_one_connection_takes_one() {
        let idle = idle(10);
        let seats: Vec<_> = (0..10).map(|_| idle.seat()).collect();
        let mut held: Vec<_> = seats.iter().filter_map(|seat| seat.hold()).collect();
        assert_eq!(held.len(), 9);
        // More on a connection that has its place already, up to nine tenths of what there is for
        // all further requests.
        let more: Vec<_> = (0..100).map_while(|_| seats[0].hold()).collect();
        assert_eq!(more.len(), 36);
        assert!(seats[9].hold().is_none());
        // A place is free when the last request on it is not held any more.
        held.remove(0);
        assert!(seats[9].hold().is_none());
        drop(more);
        assert!(seats[9].hold().is_some());
        // One place can be held, if there is no other.
        assert!(self::idle(1).seat().hold().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn every_connection_has_one_stream_and_all_share_the_further_ones() {
        let idle = idle(10);
        let [one, two] = [idle.seat(), idle.seat()];
        let streams: Vec<_> = (0..100).map_while(|_| one.stream()).collect();
        assert_eq!(streams.len(), 41);
        let first = two.stream();
        assert!(first.is_some() && two.stream().is_none());
        drop(streams);
        assert!(two.stream().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn every_step_of_a_connection_has_its_deadline() {
        let idle = idle(9);
        let deadlines = Deadlines::default();
        let began = Instant::now();
        idle.seat().overdue().await;
        assert_eq!(began.elapsed(), deadlines.first_request);

        // Half a request, after a while without any.
        let seat = idle.seat();
        drop(seat.busy());
        advance(deadlines.head * 5).await;
        let began = Instant::now();
        seat.heard();
        advance(MS).await;
        seat.heard();
        seat.overdue().await;
        assert_eq!(began.elapsed(), deadlines.head);

        // A response that stops on the way.
        let seat = idle.seat();
        drop(seat.busy());
        let response = seat.respond();
        advance(deadlines.progress / 2).await;
        seat.wrote(PROGRESS_BYTES);
        let began = Instant::now();
        seat.overdue().await;
        assert_eq!(began.elapsed(), deadlines.progress);
        drop(response);

        // Who waits for an answer, or for something to ask, has all the time.
        assert!(tokio::time::timeout(Duration::from_secs(3600), seat.overdue()).await.is_err());
        let _busy = seat.busy();
        seat.heard();
        assert!(tokio::time::timeout(Duration::from_secs(3600), seat.overdue()).await.is_err());
    }
}
