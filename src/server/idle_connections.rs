//! The open connections of a listener: their deadlines, the limits of held requests, and which idle
//! one is closed at `max_connections` to admit a new one: the one that was used least recently.
//!
//! OPA before 1.16 opens a connection for each poll and leaves the previous one idle for 90 s, so
//! that each OPA of a fleet has several connections; closing the idle ones loses no request. A
//! client that occupies connections on purpose sends no request, or part of one, or does not read
//! its response. Such a connection counts as idle too, so that it is evicted when another client
//! connects. A connection with a request that is being answered or held is never evicted.
//!
//! One task enforces the deadlines of all connections ([`IdleConnections::enforce_deadlines`]), so
//! that a connection needs no timer. A request that is answered at once only stores the time; its
//! connection changes its place in the order when it is looked at for eviction.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, yield_now},
    time::{Instant, sleep_until},
};

use super::{
    Deadlines,
    close_signal::{CloseReason, CloseSignal},
    fleet_recorder::LastClient,
    repeat_guard::Streak,
    unsent_response::UnsentResponse,
};

/// Connections that are examined for one that may be evicted, so that the cost does not depend on
/// the number of connections.
const MAX_EVICTION_CANDIDATES: usize = 64;
/// How often the deadlines are enforced: a connection closes at most this long after its deadline.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that are examined between two pauses for other tasks.
const SWEEP_BATCH: usize = 256;
/// Bytes that count as progress of a response. Without a minimum a client could read one byte at a
/// time for ever.
pub(super) const PROGRESS_BYTES: usize = 16 << 10;

/// The open connections of a listener, and the counters that its limits apply to. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct IdleConnections(Arc<Lru>);

#[derive(Debug)]
struct Lru {
    limits: Limits,
    capacity: Capacity,
    next_number: AtomicU64,
    next_rank: AtomicU64,
    /// All connections by number.
    open: Mutex<BTreeMap<u64, Weak<Slot>>>,
    /// The idle connections, the one that was used least recently first.
    idle: Mutex<BTreeMap<Rank, Weak<Slot>>>,
    /// Connections with at least one held request.
    holding_connections: AtomicUsize,
    /// Requests in progress beyond the first of each connection.
    extra_requests: AtomicUsize,
    /// Held requests beyond the first of each connection.
    extra_held_requests: AtomicUsize,
    /// Bytes that were read from files and not sent yet, of all connections.
    unsent_bytes: AtomicUsize,
}

/// The place of an idle connection in the order: when it was last used or examined, and a number that
/// increases, for those of the same time.
type Rank = (Instant, u64);

/// Limits of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    connections: usize,
    /// Concurrent requests of a connection.
    streams: usize,
    deadlines: Deadlines,
}

/// The limits that follow from the number of connections, which may change.
#[derive(Debug, Default)]
struct Capacity {
    /// Connections with held requests.
    holding_connections: AtomicUsize,
    /// Requests beyond the first of each connection.
    extra_requests: AtomicUsize,
    /// Held requests beyond the first of each connection.
    extra_held_requests: AtomicUsize,
}

/// One connection of a listener. Dropping it removes it from [`IdleConnections`].
#[derive(Debug)]
pub(super) struct Slot {
    connections: IdleConnections,
    number: u64,
    close_signal: CloseSignal,
    /// Bytes that were read from files and not sent yet, of this connection.
    unsent_bytes: AtomicUsize,
    state: Mutex<SlotState>,
    /// The task of the connection.
    task: OnceLock<AbortHandle>,
    /// The client of its last request in the fleet view.
    last_client: Mutex<Option<LastClient>>,
}

#[derive(Debug)]
struct SlotState {
    /// Requests without a response yet.
    active_requests: u32,
    /// Held requests, which are active too.
    held_requests: u32,
    /// HTTP/2 streams whose response is not sent yet.
    streams: u32,
    /// Complete requests that the connection has sent.
    requests: u32,
    /// The key in [`Lru::idle`]; `None` while a request is active.
    rank: Option<Rank>,
    /// Whether it was asked to close to admit another one.
    is_evicted: bool,
    /// When the last request was answered, or the connection was opened.
    idle_since: Instant,
    /// When the first byte of an incomplete request arrived.
    head_started: Option<Instant>,
    /// When the last bytes arrived while no request was active.
    last_read: Instant,
    /// Unsent responses by number, with the time of their last progress.
    responses: BTreeMap<u32, Instant>,
    next_response: u32,
    /// Bytes written since `progress_at`.
    written: usize,
    /// The last download, once there was one. Boxed, because most connections have none.
    downloads: Option<Box<Streak>>,
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
        Self {
            connections,
            streams,
            deadlines,
        }
    }
}

impl Capacity {
    fn of(limits: Limits) -> Self {
        let capacity = Self::default();
        capacity.set(limits.connections, limits.streams);
        capacity
    }

    fn set(&self, connections: usize, streams: usize) {
        // A tenth stays free for requests that are answered at once.
        let nine_tenths = |all: usize| (all - all.div_ceil(10)).max(1);
        // A load balancer sends the requests of many clients over few connections.
        let extra_requests = connections.saturating_mul(4).max(streams.saturating_mul(4));
        for (limit, value) in [
            (&self.holding_connections, nine_tenths(connections)),
            (&self.extra_requests, extra_requests),
            (&self.extra_held_requests, nine_tenths(extra_requests)),
        ] {
            limit.store(value, Ordering::Relaxed);
        }
    }
}

impl IdleConnections {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Lru {
            limits,
            capacity: Capacity::of(limits),
            next_number: AtomicU64::new(0),
            next_rank: AtomicU64::new(0),
            open: Mutex::default(),
            idle: Mutex::default(),
            holding_connections: AtomicUsize::new(0),
            extra_requests: AtomicUsize::new(0),
            extra_held_requests: AtomicUsize::new(0),
            unsent_bytes: AtomicUsize::new(0),
        }))
    }

    /// Follows another number of connections. Requests that are held beyond the new limit stay held.
    pub(super) fn set_max_connections(&self, connections: usize) {
        self.0.capacity.set(connections, self.0.limits.streams);
    }

    /// Adds a new connection, which counts as idle until its first request.
    pub(super) fn register(&self) -> Arc<Slot> {
        let now = Instant::now();
        let state = SlotState {
            active_requests: 0,
            held_requests: 0,
            streams: 0,
            requests: 0,
            rank: None,
            is_evicted: false,
            idle_since: now,
            head_started: None,
            last_read: now,
            responses: BTreeMap::new(),
            next_response: 0,
            written: 0,
            downloads: None,
            progress_at: now,
            is_multiplexed: false,
        };
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot {
            connections: self.clone(),
            number,
            close_signal: CloseSignal::default(),
            unsent_bytes: AtomicUsize::new(0),
            state: Mutex::new(state),
            task: OnceLock::new(),
            last_client: Mutex::default(),
        });
        self.open().insert(number, Arc::downgrade(&slot));
        self.enqueue(&slot, &mut slot.state(), now);
        slot
    }

    /// Asks the idle connection that was used least recently to close, and returns whether there
    /// was one.
    pub(super) fn evict_oldest(&self) -> bool {
        let now = Instant::now();
        let mut examined = 0;
        // Each connection changes its place at most once for the requests since the last time.
        let mut left = self.idle().len();
        while examined < MAX_EVICTION_CANDIDATES && left > 0 {
            left -= 1;
            let first = self.idle().first_key_value().map(first_entry);
            let Some((rank, slot)) = first else {
                return false;
            };
            let Some(slot) = slot.upgrade() else {
                self.idle().remove(&rank);
                continue;
            };
            let mut state = slot.state();
            // It has received a request since.
            if state.rank != Some(rank) {
                continue;
            }
            self.idle().remove(&rank);
            if state.idle_since > rank.0 {
                let used = state.idle_since;
                self.enqueue(&slot, &mut state, used);
                continue;
            }
            // It moves to the end: its grace period has not passed yet, or it is about to close and
            // keeps its deadline.
            self.enqueue(&slot, &mut state, now);
            if state.is_evicted {
                continue;
            }
            if state.is_evictable(now, &self.0.limits.deadlines) {
                state.is_evicted = true;
                slot.close(CloseReason::Evicted);
                return true;
            }
            examined += 1;
        }
        false
    }

    /// Closes the connections that exceed the deadline of their current step, for as long as it
    /// runs.
    pub(super) async fn enforce_deadlines(&self) {
        let Deadlines {
            first_request,
            head,
            progress,
            idle,
            ..
        } = self.0.limits.deadlines;
        let shortest = first_request.min(head).min(progress).min(idle);
        loop {
            let next = Instant::now() + SWEEP_INTERVAL.min(shortest);
            let deadline = self.close_overdue().await;
            sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        }
    }

    /// Closes the connections that are overdue, and returns the next deadline of the others.
    async fn close_overdue(&self) -> Option<Instant> {
        let (mut start, mut next) = (Bound::Unbounded, None);
        loop {
            let batch: Vec<_> = self
                .idle()
                .range((start, Bound::Unbounded))
                .take(SWEEP_BATCH)
                .map(first_entry)
                .collect();
            let Some((last, _)) = batch.last() else {
                return next;
            };
            start = Bound::Excluded(*last);
            let now = Instant::now();
            for slot in batch.iter().filter_map(|(_, slot)| slot.upgrade()) {
                let deadline = slot.state().deadline(&self.0.limits.deadlines);
                match deadline {
                    Some(deadline) if deadline <= now => slot.close(CloseReason::Overdue),
                    Some(deadline) => next = Some(next.unwrap_or(deadline).min(deadline)),
                    None => {}
                }
            }
            yield_now().await;
        }
    }

    /// Asks every connection to close after its current response.
    pub(super) fn close_all(&self) {
        let open: Vec<_> = self.open().values().cloned().collect();
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close(CloseReason::Shutdown);
        }
    }

    /// Closes every connection, whatever it is doing.
    pub(super) fn abort_all(&self) {
        let open: Vec<_> = self.open().values().cloned().collect();
        for slot in open.iter().filter_map(Weak::upgrade) {
            if let Some(task) = slot.task.get() {
                task.abort();
            }
        }
    }

    // Lock order: the state of a slot first, then the connections.
    fn enqueue(&self, slot: &Arc<Slot>, state: &mut SlotState, used: Instant) {
        let rank = (used, self.0.next_rank.fetch_add(1, Ordering::Relaxed));
        state.rank = Some(rank);
        self.idle().insert(rank, Arc::downgrade(slot));
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Slot>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<Rank, Weak<Slot>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_entry((rank, slot): (&Rank, &Weak<Slot>)) -> (Rank, Weak<Slot>) {
    (*rank, Weak::clone(slot))
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
                self.requests > 0
                    || now.duration_since(self.idle_since) >= deadlines.new_connection_grace
            }
        }
    }

    /// When the head of a request was complete. One that was sent before the last one was answered
    /// counts from there.
    fn arrived(&self) -> Instant {
        self.last_read.max(self.idle_since)
    }

    /// When the current step of the connection exceeds its deadline; `None` where it has none.
    fn deadline(&self, deadlines: &Deadlines) -> Option<Instant> {
        let first = (self.requests == 0).then(|| self.idle_since + deadlines.first_request);
        if self.is_multiplexed {
            // Over HTTP/2 each response has its own deadline.
            return first;
        }
        if self.active_requests > 0 {
            return None;
        }
        let head = self.head_started.map(|since| since + deadlines.head);
        let response = self
            .responses
            .values()
            .min()
            .map(|since| *since + deadlines.progress);
        let idle = (self.requests > 0 && head.is_none() && response.is_none())
            .then(|| self.idle_since + deadlines.idle);
        [first, head, response, idle].into_iter().flatten().min()
    }
}

impl Slot {
    /// The client of its last request in the fleet view.
    pub(super) fn last_client(&self) -> MutexGuard<'_, Option<LastClient>> {
        self.last_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request as active until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        let mut state = self.state();
        state.active_requests += 1;
        state.requests = state.requests.saturating_add(1);
        state.head_started = None;
        self.dequeue(&mut state);
        drop(state);
        ActiveRequest(Arc::clone(self))
    }

    /// Sets the task of the connection, for [`IdleConnections::abort_all`].
    pub(super) fn set_task(&self, task: AbortHandle) {
        // It is set once.
        let _ = self.task.set(task);
    }

    /// The time limits of each step.
    pub(super) fn deadlines(&self) -> &Deadlines {
        &self.lru().limits.deadlines
    }

    /// Records a request that is answered at once. Returns the time since its head was complete.
    pub(super) fn record_request(&self) -> Duration {
        let now = Instant::now();
        let mut state = self.state();
        let duration = now.saturating_duration_since(state.arrived());
        state.requests = state.requests.saturating_add(1);
        state.head_started = None;
        state.idle_since = now;
        duration
    }

    /// When the head of the request was complete that is being handled.
    pub(super) fn arrived(&self) -> Instant {
        let state = self.state();
        match state.is_multiplexed {
            true => Instant::now(),
            false => state.arrived(),
        }
    }

    /// Whether the connection was asked to close to admit another one.
    pub(super) fn is_evicted(&self) -> bool {
        self.state().is_evicted
    }

    /// Whether the connection has sent a complete request.
    pub(super) fn had_request(&self) -> bool {
        self.state().requests > 0
    }

    /// Whether the connection has sent a request before the one that is being answered.
    pub(super) fn had_earlier_request(&self) -> bool {
        self.state().requests > 1
    }

    /// A number that no other connection of this process has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Asks the connection to close.
    pub(super) fn close(&self, reason: CloseReason) {
        self.close_signal.send(reason);
    }

    /// Why the connection has to close, once there is a reason.
    pub(super) fn poll_close(&self, context: &Context<'_>) -> Poll<CloseReason> {
        self.close_signal.poll(context)
    }

    /// Ready once the connection has exceeded a deadline.
    pub(super) fn poll_overdue(&self, context: &Context<'_>) -> Poll<()> {
        self.close_signal.poll_overdue(context)
    }

    /// Counts a stream until the guard is dropped; `None` beyond the limit. The first stream of a
    /// connection is never beyond it.
    pub(super) fn begin_stream(self: &Arc<Self>) -> Option<ActiveStream> {
        let mut state = self.state();
        if state.streams > 0
            && !try_increment(
                &self.lru().extra_requests,
                &self.lru().capacity.extra_requests,
            )
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
            0 => (&lru.holding_connections, &lru.capacity.holding_connections),
            _ => (&lru.extra_held_requests, &lru.capacity.extra_held_requests),
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
        state.next_response = number.wrapping_add(1);
        state.responses.insert(number, Instant::now());
        drop(state);
        UnsentResponse::new(Arc::clone(self), number)
    }

    /// Records that the client accepted part of a response.
    pub(super) fn record_progress(&self, response: u32) {
        if let Some(progress) = self.state().responses.get_mut(&response) {
            *progress = Instant::now();
        }
    }

    /// Removes a response that was sent or reset.
    pub(super) fn end_response(&self, response: u32) {
        self.state().responses.remove(&response);
    }

    /// Records that bytes arrived.
    pub(super) fn record_read(&self) {
        let mut state = self.state();
        if state.active_requests == 0 {
            let now = Instant::now();
            state.last_read = now;
            state.head_started.get_or_insert(now);
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

    /// Reads and changes what is known of the last download on the connection.
    pub(super) fn with_downloads<T>(&self, f: impl FnOnce(&mut Option<Box<Streak>>) -> T) -> T {
        f(&mut self.state().downloads)
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

    /// The grace period of an evicted connection: long enough for an idle client to notice, and
    /// zero for a client that has not sent a request or does not read its response.
    pub(super) fn close_grace(&self) -> Duration {
        let state = self.state();
        let is_idle =
            state.requests > 0 && state.head_started.is_none() && state.responses.is_empty();
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
            self.connections.idle().remove(&rank);
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
            self.connections.idle().remove(&rank);
        }
        self.connections.open().remove(&self.number);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.active_requests -= 1;
        if state.active_requests == 0 {
            let now = Instant::now();
            state.idle_since = now;
            self.0.connections.enqueue(&self.0, &mut state, now);
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
fn try_increment(counter: &AtomicUsize, limit: &AtomicUsize) -> bool {
    let limit = limit.load(Ordering::Relaxed);
    let incremented = |count: usize| (count < limit).then_some(count + 1);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, incremented)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn idle(connections: usize) -> IdleConnections {
        IdleConnections::new(Limits::new(connections, 10, Deadlines::default()))
    }

    fn is_evicted(slot: &Slot) -> bool {
        let reason = poll_fn(|context| slot.poll_close(context)).now_or_never();
        reason == Some(CloseReason::Evicted)
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
            [true, false, true]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_takes_the_time_since_its_head_was_complete_or_the_one_before_was_answered() {
        let slot = idle(9).register();
        advance(MS).await;
        slot.record_read();
        advance(MS).await;
        // The rest of its head.
        slot.record_read();
        assert_eq!(slot.arrived(), Instant::now());
        advance(3 * MS).await;
        assert_eq!(slot.record_request(), 3 * MS);
        // It came together with the first one.
        advance(MS).await;
        assert_eq!(slot.record_request(), MS);
        // It came while another one was held.
        let held = slot.begin_request();
        slot.record_read();
        advance(60_000 * MS).await;
        drop(held);
        advance(2 * MS).await;
        assert_eq!(slot.record_request(), 2 * MS);
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
        assert_eq!((idle.idle().len(), idle.open().len()), (1, 1));
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
        assert!(idle.idle().is_empty() && idle.open().is_empty());
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

    /// Enforces the deadlines until `slot` is overdue.
    async fn overdue(idle: &IdleConnections, slot: &Slot) {
        tokio::select! {
            () = idle.enforce_deadlines() => {}
            () = poll_fn(|context| slot.poll_overdue(context)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_step_of_a_connection_has_its_deadline() {
        let idle = idle(9);
        let deadlines = Deadlines::default();
        let began = Instant::now();
        overdue(&idle, &idle.register()).await;
        assert_eq!(began.elapsed(), deadlines.first_request);

        // An incomplete request after an idle time.
        let slot = idle.register();
        drop(slot.begin_request());
        advance(deadlines.head * 5).await;
        let began = Instant::now();
        slot.record_read();
        advance(MS).await;
        slot.record_read();
        overdue(&idle, &slot).await;
        assert_eq!(began.elapsed(), deadlines.head);

        // A response that stalls after some progress.
        let slot = idle.register();
        drop(slot.begin_request());
        let response = slot.begin_response();
        advance(deadlines.progress / 2).await;
        slot.record_write(PROGRESS_BYTES);
        let began = Instant::now();
        overdue(&idle, &slot).await;
        assert_eq!(began.elapsed(), deadlines.progress);
        drop(response);

        // An idle connection, after a request of either kind.
        for at_once in [false, true] {
            let slot = idle.register();
            drop(slot.begin_request());
            advance(deadlines.idle / 2).await;
            let began = Instant::now();
            if at_once {
                slot.record_request();
            } else {
                drop(slot.begin_request());
            }
            overdue(&idle, &slot).await;
            assert_eq!(began.elapsed(), deadlines.idle);
        }

        // A connection that waits for a response has no deadline here.
        let slot = idle.register();
        let _active = slot.begin_request();
        slot.record_read();
        let hour = Duration::from_secs(3600);
        assert!(
            tokio::time::timeout(hour, overdue(&idle, &slot))
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_used_more_recently_is_evicted_later() {
        let idle = idle(100);
        let slots: Vec<_> = (0..70).map(|_| idle.register()).collect();
        for slot in &slots {
            drop(slot.begin_request());
            advance(MS).await;
        }
        // More of them than are examined at a time.
        for slot in &slots[..69] {
            advance(MS).await;
            slot.record_request();
        }
        assert!(idle.evict_oldest() && is_evicted(&slots[69]));
        assert!(idle.evict_oldest() && is_evicted(&slots[0]));
        assert!(!is_evicted(&slots[1]));
    }

    #[tokio::test]
    async fn all_connections_are_asked_to_close_also_those_with_a_held_request() {
        let idle = idle(9);
        let [one, two] = [idle.register(), idle.register()];
        let _active = two.begin_request();
        idle.close_all();
        for slot in [one, two] {
            let reason = poll_fn(|context| slot.poll_close(context)).now_or_never();
            assert_eq!(reason, Some(CloseReason::Shutdown));
        }
    }
}
