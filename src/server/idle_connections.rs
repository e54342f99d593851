//! Idle keep-alive connections, oldest first; at `max_connections` the oldest is closed to admit a
//! new one.
//!
//! OPA before 1.16 opens a connection for each poll and leaves the previous one idle for 90 s, so
//! that each OPA of a fleet has several connections; closing the idle ones loses no request. A
//! client that occupies connections on purpose sends no request, or part of one, or does not read
//! its response. Such a connection counts as idle too, so that it is evicted when another client
//! connects. A connection with a request that is being answered or held is never evicted.

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

use super::{Deadlines, unsent_response::UnsentResponse};

/// Connections that are examined for one that may be evicted, so that the cost does not depend on
/// the number of connections.
const MAX_EVICTION_CANDIDATES: usize = 64;
/// Bytes that count as progress of a response. Without a minimum a client could read one byte at a
/// time for ever.
pub(super) const PROGRESS_BYTES: usize = 16 << 10;

/// The idle connections of a listener, and the counters that its limits apply to. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct IdleConnections(Arc<Lru>);

#[derive(Debug)]
struct Lru {
    limits: Limits,
    next_rank: AtomicU64,
    /// The idle connections by rank, the oldest first.
    slots: Mutex<BTreeMap<u64, Weak<Slot>>>,
    /// Connections with at least one held request.
    holding_connections: AtomicUsize,
    /// Requests in progress beyond the first of each connection.
    extra_requests: AtomicUsize,
    /// Held requests beyond the first of each connection.
    extra_held_requests: AtomicUsize,
    /// Bytes that were read from files and not sent yet, of all connections.
    unsent_bytes: AtomicUsize,
}

/// Limits of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections with held requests.
    holding_connections: usize,
    /// Requests beyond the first of each connection.
    extra_requests: usize,
    /// Held requests beyond the first of each connection.
    extra_held_requests: usize,
    deadlines: Deadlines,
}

/// One connection of a listener. Dropping it removes it from [`IdleConnections`].
#[derive(Debug)]
pub(super) struct Slot {
    connections: IdleConnections,
    evicted: Notify,
    /// Bytes that were read from files and not sent yet, of this connection.
    unsent_bytes: AtomicUsize,
    state: Mutex<SlotState>,
}

#[derive(Debug)]
struct SlotState {
    /// Requests without a response yet.
    active_requests: usize,
    /// Held requests, which are active too.
    held_requests: usize,
    /// HTTP/2 streams whose response is not sent yet.
    streams: usize,
    /// Whether the connection has sent a complete request.
    had_request: bool,
    /// The key in [`Lru::slots`]; `None` while a request is active.
    rank: Option<u64>,
    /// When the last request was answered, or the connection was opened.
    idle_since: Instant,
    /// When the first byte of an incomplete request arrived.
    head_started: Option<Instant>,
    /// Unsent responses by number, with the time of their last progress.
    responses: BTreeMap<u64, Instant>,
    next_response: u64,
    /// Bytes written since `progress_at`.
    written: usize,
    progress_at: Instant,
    /// Whether the connection is HTTP/2, where one response can stall while others progress.
    is_multiplexed: bool,
}

/// Guard of a request without a response.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<Slot>);

/// Guard of a held request.
#[derive(Debug)]
pub(super) struct HeldRequest(Arc<Slot>);

/// Guard of an HTTP/2 stream, from its request to the end of its response.
#[derive(Debug)]
pub(super) struct ActiveStream(Arc<Slot>);

impl Limits {
    /// Limits for this many connections, each with at most `streams` concurrent requests.
    pub(super) fn new(connections: usize, streams: usize, deadlines: Deadlines) -> Self {
        // A tenth stays free for requests that are answered at once.
        let nine_tenths = |all: usize| (all - all.div_ceil(10)).max(1);
        // A load balancer sends the requests of many clients over few connections.
        let extra_requests = connections.saturating_mul(4).max(streams.saturating_mul(4));
        Self {
            holding_connections: nine_tenths(connections),
            extra_requests,
            extra_held_requests: nine_tenths(extra_requests),
            deadlines,
        }
    }
}

impl IdleConnections {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Lru {
            limits,
            next_rank: AtomicU64::new(0),
            slots: Mutex::default(),
            holding_connections: AtomicUsize::new(0),
            extra_requests: AtomicUsize::new(0),
            extra_held_requests: AtomicUsize::new(0),
            unsent_bytes: AtomicUsize::new(0),
        }))
    }

    /// Adds a new connection, which counts as idle until its first request.
    pub(super) fn register(&self) -> Arc<Slot> {
        let now = Instant::now();
        let state = SlotState {
            active_requests: 0,
            held_requests: 0,
            streams: 0,
            had_request: false,
            rank: None,
            idle_since: now,
            head_started: None,
            responses: BTreeMap::new(),
            next_response: 0,
            written: 0,
            progress_at: now,
            is_multiplexed: false,
        };
        let (evicted, unsent_bytes, state) =
            (Notify::new(), AtomicUsize::new(0), Mutex::new(state));
        let slot = Arc::new(Slot {
            connections: self.clone(),
            evicted,
            unsent_bytes,
            state,
        });
        let rank = self.enqueue(&slot);
        slot.state().rank = Some(rank);
        slot
    }

    /// Asks the oldest idle connection to close, and returns whether there was one.
    pub(super) fn evict_oldest(&self) -> bool {
        let now = Instant::now();
        let first: Vec<_> = self
            .slots()
            .iter()
            .take(MAX_EVICTION_CANDIDATES)
            .map(|(rank, slot)| (*rank, Weak::clone(slot)))
            .collect();
        for (rank, slot) in first {
            let Some(slot) = slot.upgrade() else { continue };
            let mut state = slot.state();
            // It has received a request since.
            if state.rank != Some(rank) {
                continue;
            }
            self.slots().remove(&rank);
            if state.is_evictable(now, &self.0.limits.deadlines) {
                state.rank = None;
                slot.evicted.notify_one();
                return true;
            }
            // Its grace period has not passed yet: it moves to the end.
            state.rank = Some(self.enqueue(&slot));
        }
        false
    }

    fn enqueue(&self, slot: &Arc<Slot>) -> u64 {
        let rank = self.0.next_rank.fetch_add(1, Ordering::Relaxed);
        self.slots().insert(rank, Arc::downgrade(slot));
        rank
    }

    // Lock order: the state of a slot first, then this.
    fn slots(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotState {
    /// Whether the connection may be closed to admit another one.
    fn is_evictable(&self, now: Instant, deadlines: &Deadlines) -> bool {
        if self.active_requests > 0 {
            return false;
        }
        match self.responses.values().min() {
            Some(stalled_since) => {
                now.duration_since(self.progress_at.max(*stalled_since))
                    >= deadlines.stalled_response_grace
            }
            None => {
                self.had_request
                    || now.duration_since(self.idle_since) >= deadlines.new_connection_grace
            }
        }
    }

    /// When the current step of the connection exceeds its deadline; `None` where it has none.
    fn deadline(&self, deadlines: &Deadlines) -> Option<Instant> {
        let first = (!self.had_request).then(|| self.idle_since + deadlines.first_request);
        if self.is_multiplexed {
            // Over HTTP/2 each response has its own deadline.
            return first;
        }
        let head = self.head_started.map(|since| since + deadlines.head);
        let response = self
            .responses
            .values()
            .min()
            .map(|since| *since + deadlines.progress);
        [first, head, response].into_iter().flatten().min()
    }
}

impl Slot {
    /// Counts a request as active until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        let mut state = self.state();
        state.active_requests += 1;
        state.had_request = true;
        state.head_started = None;
        self.dequeue(&mut state);
        drop(state);
        ActiveRequest(Arc::clone(self))
    }

    /// Counts a stream until the guard is dropped; `None` beyond the limit. The first stream of a
    /// connection is never beyond it.
    pub(super) fn begin_stream(self: &Arc<Self>) -> Option<ActiveStream> {
        let mut state = self.state();
        if state.streams > 0
            && !try_increment(&self.lru().extra_requests, self.lru().limits.extra_requests)
        {
            return None;
        }
        state.streams += 1;
        drop(state);
        Some(ActiveStream(Arc::clone(self)))
    }

    /// Counts a request as held until the guard is dropped; `None` beyond the limit of connections
    /// with held requests, or of further held requests on one connection.
    pub(super) fn begin_hold(self: &Arc<Self>) -> Option<HeldRequest> {
        let (lru, mut state) = (self.lru(), self.state());
        let (counter, limit) = match state.held_requests {
            0 => (&lru.holding_connections, lru.limits.holding_connections),
            _ => (&lru.extra_held_requests, lru.limits.extra_held_requests),
        };
        if !try_increment(counter, limit) {
            return None;
        }
        state.held_requests += 1;
        drop(state);
        Some(HeldRequest(Arc::clone(self)))
    }

    /// Counts a response as unsent until it and its chunks are dropped.
    pub(super) fn begin_response(self: &Arc<Self>) -> UnsentResponse {
        let mut state = self.state();
        let number = state.next_response;
        state.next_response += 1;
        state.responses.insert(number, Instant::now());
        drop(state);
        UnsentResponse::new(Arc::clone(self), number)
    }

    /// Records that the client accepted part of a response.
    pub(super) fn record_progress(&self, response: u64) {
        if let Some(progress) = self.state().responses.get_mut(&response) {
            *progress = Instant::now();
        }
    }

    /// Removes a response that was sent or reset.
    pub(super) fn end_response(&self, response: u64) {
        self.state().responses.remove(&response);
    }

    /// Records that bytes arrived.
    pub(super) fn record_read(&self) {
        let mut state = self.state();
        if state.active_requests == 0 && state.head_started.is_none() {
            state.head_started = Some(Instant::now());
        }
    }

    /// Records that the socket accepted bytes.
    pub(super) fn record_write(&self, bytes: usize) {
        let mut state = self.state();
        state.written += bytes;
        if state.written >= PROGRESS_BYTES {
            state.written = 0;
            let now = Instant::now();
            state.progress_at = now;
            if !state.is_multiplexed {
                state
                    .responses
                    .values_mut()
                    .for_each(|progress| *progress = now);
            }
        }
    }

    /// Marks the connection as HTTP/2, where each response has its own deadline.
    pub(super) fn set_multiplexed(&self) {
        self.state().is_multiplexed = true;
    }

    /// Bytes that were read from files and not sent yet: of this connection, and of all.
    pub(super) fn unsent_bytes(&self) -> [&AtomicUsize; 2] {
        [&self.unsent_bytes, &self.lru().unsent_bytes]
    }

    /// Evicts the oldest connection, which is this one in tests with a single connection.
    #[cfg(test)]
    pub(super) fn evict(&self) -> bool {
        self.connections.evict_oldest()
    }

    /// Completes when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Completes when the connection exceeds the deadline of its current step.
    pub(super) async fn overdue(&self) {
        let deadlines = &self.lru().limits.deadlines;
        let interval = deadlines
            .first_request
            .min(deadlines.head)
            .min(deadlines.progress);
        loop {
            let now = Instant::now();
            // A step that begins after this check has its deadline after the next one.
            let next = now + interval;
            let deadline = self.state().deadline(deadlines).unwrap_or(next);
            if deadline <= now {
                return;
            }
            sleep_until(deadline.min(next)).await;
        }
    }

    /// The grace period of an evicted connection: long enough for an idle client to notice, and
    /// zero for a client that has not sent a request or does not read its response.
    pub(super) fn close_grace(&self) -> Duration {
        let state = self.state();
        let is_idle =
            state.had_request && state.head_started.is_none() && state.responses.is_empty();
        if is_idle {
            self.lru().limits.deadlines.close_grace
        } else {
            Duration::ZERO
        }
    }

    /// Whether the connection may be closed to admit another one.
    pub(super) fn is_evictable(&self) -> bool {
        self.state()
            .is_evictable(Instant::now(), &self.lru().limits.deadlines)
    }

    /// Whether no request is active and no response is unsent.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.active_requests == 0 && state.responses.is_empty()
    }

    fn lru(&self) -> &Lru {
        &self.connections.0
    }

    fn dequeue(&self, state: &mut SlotState) {
        if let Some(rank) = state.rank.take() {
            self.connections.slots().remove(&rank);
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let rank = self.state().rank.take();
        if let Some(rank) = rank {
            self.connections.slots().remove(&rank);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.active_requests -= 1;
        if state.active_requests == 0 {
            state.idle_since = Instant::now();
            state.rank = Some(self.0.connections.enqueue(&self.0));
        }
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.streams -= 1;
        if state.streams > 0 {
            self.0.lru().extra_requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.held_requests -= 1;
        let lru = self.0.lru();
        let counter = if state.held_requests == 0 {
            &lru.holding_connections
        } else {
            &lru.extra_held_requests
        };
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Increments a counter unless it has reached `limit`.
fn try_increment(counter: &AtomicUsize, limit: usize) -> bool {
    let incremented = |count: usize| (count < limit).then_some(count + 1);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, incremented)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn idle(connections: usize) -> IdleConnections {
        IdleConnections::new(Limits::new(connections, 10, Deadlines::default()))
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_idle_connection_is_evicted_first_and_an_active_one_never() {
        let idle = idle(9);
        let [one, two, three] = [idle.register(), idle.register(), idle.register()];
        drop(one.begin_request());
        let _active = two.begin_request();
        advance(Deadlines::default().new_connection_grace).await;
        assert!(idle.evict_oldest());
        assert_eq!(
            [&one, &two, &three].map(|slot| is_evicted(slot)),
            [false, false, true]
        );
        assert!(idle.evict_oldest());
        assert!(!idle.evict_oldest());
        assert_eq!(
            [&one, &two, &three].map(|slot| is_evicted(slot)),
            [true, false, false]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_has_a_grace_period_for_its_first_request() {
        let idle = idle(9);
        let slots: Vec<_> = (0..3).map(|_| idle.register()).collect();
        advance(Deadlines::default().new_connection_grace - MS).await;
        assert!(!idle.evict_oldest());
        // A connection that is idle after a request is evicted before them, whatever its rank.
        let old = idle.register();
        drop(old.begin_request());
        assert!(idle.evict_oldest() && is_evicted(&old));
        advance(MS).await;
        assert!(idle.evict_oldest());
        assert_eq!(slots.iter().filter(|slot| is_evicted(slot)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_client_does_not_read_its_response_becomes_evictable() {
        let idle = idle(9);
        let stalled_response_grace = Deadlines::default().stalled_response_grace;
        for multiplexed in [false, true] {
            let slot = idle.register();
            if multiplexed {
                slot.set_multiplexed();
            }
            let active = slot.begin_request();
            let stalled = slot.begin_response();
            drop(active);
            // Less than the minimum is no progress.
            for _ in 0..10 {
                advance(stalled_response_grace / 11).await;
                slot.record_write(PROGRESS_BYTES / 20);
            }
            assert!(!idle.evict_oldest());
            // Further requests are no progress of the response.
            drop(slot.begin_request());
            advance(stalled_response_grace / 11 + MS).await;
            assert!(idle.evict_oldest() && is_evicted(&slot), "{multiplexed}");
            drop(stalled);
        }
        // A slow client that makes progress is not evicted.
        let slot = idle.register();
        drop(slot.begin_request());
        let _slow = slot.begin_response();
        for _ in 0..100 {
            advance(stalled_response_grace - MS).await;
            slot.record_write(PROGRESS_BYTES);
            assert!(!idle.evict_oldest());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_connection_leaves_no_entry_and_no_count() {
        let idle = idle(2);
        drop(idle.register());
        let slot = idle.register();
        drop([slot.begin_request(), slot.begin_request()]);
        assert_eq!(idle.slots().len(), 1);
        let chunk = slot
            .begin_response()
            .wrap_read(Bytes::from_static(&[0; 100]));
        assert_eq!(
            slot.unsent_bytes()
                .map(|unsent| unsent.load(Ordering::Relaxed)),
            [100, 100]
        );
        drop(chunk);
        drop([slot.begin_hold(), slot.begin_hold()]);
        drop([slot.begin_stream(), slot.begin_stream()]);
        let counts = |lru: &Lru| {
            [
                &lru.holding_connections,
                &lru.extra_requests,
                &lru.extra_held_requests,
                &lru.unsent_bytes,
            ]
            .map(|count| count.load(Ordering::Relaxed))
        };
        assert_eq!(counts(&idle.0), [0; 4]);
        assert!(slot.state().responses.is_empty());
        drop(slot);
        assert!(idle.slots().is_empty());
    }

    /// The limit does not depend on address or credential, which a whole fleet may share.
    #[tokio::test(start_paused = true)]
    async fn held_requests_occupy_at_most_nine_tenths_of_the_connections() {
        let idle = idle(10);
        let slots: Vec<_> = (0..10).map(|_| idle.register()).collect();
        let mut held: Vec<_> = slots.iter().filter_map(|slot| slot.begin_hold()).collect();
        assert_eq!(held.len(), 9);
        // Further requests on one of these connections, up to nine tenths of their own limit.
        let extra: Vec<_> = (0..100).map_while(|_| slots[0].begin_hold()).collect();
        assert_eq!(extra.len(), 36);
        assert!(slots[9].begin_hold().is_none());
        // A connection counts until its last held request is answered.
        held.remove(0);
        assert!(slots[9].begin_hold().is_none());
        drop(extra);
        assert!(slots[9].begin_hold().is_some());
        // A single connection may hold a request.
        assert!(self::idle(1).register().begin_hold().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_of_streams_spares_the_first_of_each_connection() {
        let idle = idle(10);
        let [one, two] = [idle.register(), idle.register()];
        let streams: Vec<_> = (0..100).map_while(|_| one.begin_stream()).collect();
        assert_eq!(streams.len(), 41);
        let first = two.begin_stream();
        assert!(first.is_some() && two.begin_stream().is_none());
        drop(streams);
        assert!(two.begin_stream().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn every_step_of_a_connection_has_its_deadline() {
        let idle = idle(9);
        let deadlines = Deadlines::default();
        let began = Instant::now();
        idle.register().overdue().await;
        assert_eq!(began.elapsed(), deadlines.first_request);

        // An incomplete request after an idle time.
        let slot = idle.register();
        drop(slot.begin_request());
        advance(deadlines.head * 5).await;
        let began = Instant::now();
        slot.record_read();
        advance(MS).await;
        slot.record_read();
        slot.overdue().await;
        assert_eq!(began.elapsed(), deadlines.head);

        // A response that stalls after some progress.
        let slot = idle.register();
        drop(slot.begin_request());
        let response = slot.begin_response();
        advance(deadlines.progress / 2).await;
        slot.record_write(PROGRESS_BYTES);
        let began = Instant::now();
        slot.overdue().await;
        assert_eq!(began.elapsed(), deadlines.progress);
        drop(response);

        // Neither an idle connection nor one that waits for a response has a deadline here.
        assert!(
            tokio::time::timeout(Duration::from_secs(3600), slot.overdue())
                .await
                .is_err()
        );
        let _active = slot.begin_request();
        slot.record_read();
        assert!(
            tokio::time::timeout(Duration::from_secs(3600), slot.overdue())
                .await
                .is_err()
        );
    }
}
