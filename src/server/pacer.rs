//! When bodies are sent: `long_poll.bandwidth` and `long_poll.spread`, and not before a repeated
//! download may be ([`super::repeat_guard`]).
//!
//! All bodies share the bandwidth, by the generic cell rate algorithm: a body of S bytes uses it
//! for S ÷ bandwidth, and a change for N clients takes N × S ÷ bandwidth, whether they were held or
//! come all at once after a restart. The requests wait in two queues, so that one that leaves takes
//! no bandwidth, and a client that runs nothing yet does not wait for the clients that update.

use std::{
    mem,
    num::NonZeroU64,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};

use crate::metrics::InFlight;

/// The time whose bandwidth may be used at once.
const BURST: Duration = Duration::from_millis(100);

/// Decides when bodies are sent. Without bandwidth and spread, every body is sent at once.
#[derive(Debug)]
pub(super) struct Pacer {
    /// In nanoseconds.
    spread: AtomicU64,
    link: Arc<Link>,
    delayed: IntGauge,
}

/// A body that is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    pub(super) bytes: u64,
    /// The client runs another version. A client that runs none gets its body first.
    pub(super) is_update: bool,
    /// The request was held, and other clients may have been woken with it.
    pub(super) was_held: bool,
    /// The body is sent by then, whatever the bandwidth.
    pub(super) deadline: Instant,
    /// The body is not sent before, unless the deadline is earlier.
    pub(super) earliest: Option<Instant>,
}

/// The wait of one request until its body may be sent. Dropping it leaves the queue.
#[derive(Default)]
pub(super) enum Admission {
    /// No body is to be sent yet.
    #[default]
    Idle,
    Waiting(Pin<Box<dyn Future<Output = Grant> + Send>>),
    /// The next body may be sent. Boxed, because each held request has room for it.
    Granted(Box<Grant>),
}

/// Permission to send one body. While it is unused, no other body is admitted.
pub(super) enum Grant {
    /// The bandwidth is free.
    Turn {
        link: Arc<Link>,
        _places: [Option<OwnedSemaphorePermit>; 2],
    },
    /// The body does not count: no bandwidth is set, or the body can't wait for its turn. Were it
    /// counted, the bodies that can wait would have to make room for it.
    Uncounted,
}

/// The bandwidth, and the requests that wait for it.
#[derive(Debug)]
pub(super) struct Link {
    bucket: Mutex<Bucket>,
    /// Whether the bucket has no bandwidth, which is asked at every request.
    is_unlimited: AtomicBool,
    /// Wakes the request that has its turn when the bandwidth is another one.
    changed: Notify,
    /// Held by the request whose body is the next one. The others are in its queue, which is fair.
    turn: Arc<Semaphore>,
    /// Held by the first update, the only one in the queue of `turn`: a client that runs nothing
    /// yet waits for one update at most.
    update_turn: Arc<Semaphore>,
    queued: Backlog,
    queued_updates: Backlog,
}

/// The use of the bandwidth (generic cell rate algorithm).
#[derive(Debug)]
struct Bucket {
    /// Bytes a second; `None` is unlimited.
    bandwidth: Option<NonZeroU64>,
    /// When the bandwidth for all admitted bodies has passed.
    busy_until: Instant,
}

/// The bytes of the bodies in a queue.
#[derive(Debug, Default)]
struct Backlog(AtomicU64);

/// Guard of a body in a queue.
struct Queued<'a> {
    backlog: &'a Backlog,
    bytes: u64,
}

impl Pacer {
    /// `bandwidth`: bytes a second; `None` is unlimited. `spread`: requests that were held wait for
    /// a random time up to it. `delayed` counts the requests that wait for either.
    pub(super) fn new(bandwidth: Option<NonZeroU64>, spread: Duration, delayed: IntGauge) -> Self {
        let pacer = Self {
            spread: AtomicU64::default(),
            link: Arc::new(Link::new(bandwidth)),
            delayed,
        };
        pacer.set(bandwidth, spread);
        pacer
    }

    /// Replaces the bandwidth and the spread. The requests that wait for bandwidth wait for the new
    /// one; a random time of the spread that has begun to pass stays.
    pub(super) fn set(&self, bandwidth: Option<NonZeroU64>, spread: Duration) {
        let nanoseconds = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        self.spread.store(nanoseconds, Ordering::Relaxed);
        self.link.set(bandwidth);
    }

    /// Whether every body of a request that was not held is sent at once.
    pub(super) fn is_unlimited(&self) -> bool {
        self.link.is_unlimited()
    }

    /// The wait for a body; `None` if it may be sent at once.
    fn delay(&self, body: Body) -> Option<Pin<Box<dyn Future<Output = Grant> + Send>>> {
        let (earliest, jitter) = (body.earliest, self.jitter(body));
        if earliest.is_none() && jitter.is_none() && self.link.try_admit(body.bytes) {
            return None;
        }
        let (link, delayed) = (Arc::clone(&self.link), InFlight::enter(&self.delayed));
        Some(Box::pin(async move {
            let _delayed = delayed;
            if let Some(earliest) = earliest {
                sleep_until(earliest.min(body.deadline)).await;
            }
            if let Some(jitter) = jitter {
                sleep(jitter).await;
            }
            match link.is_unlimited() {
                true => Grant::Uncounted,
                false => link.admit(body).await,
            }
        }))
    }

    /// A random part of the spread, which ends at the deadline; `None` if it does not apply.
    fn jitter(&self, body: Body) -> Option<Duration> {
        let spread = Duration::from_nanos(self.spread.load(Ordering::Relaxed));
        if spread.is_zero() || !body.was_held {
            return None;
        }
        let remaining = body.deadline.saturating_duration_since(Instant::now());
        Some(spread.min(remaining).mul_f64(fastrand::f64()))
    }
}

impl Admission {
    /// Whether the response may be sent now. If not, [`Self::poll_granted`] is ready when it may, at the
    /// deadline of its body at the latest, and this is then asked again, with the body by then.
    /// Without a body it leaves the queue.
    pub(super) fn admits(&mut self, pacer: &Pacer, body: Option<Body>) -> bool {
        let before = mem::take(self);
        let Some(body) = body else {
            return true;
        };
        match before {
            Self::Granted(grant) => {
                grant.consume(body.bytes);
                return true;
            }
            waiting @ Self::Waiting(_) => *self = waiting,
            Self::Idle => match pacer.delay(body) {
                Some(wait) => *self = Self::Waiting(wait),
                None => return true,
            },
        }
        false
    }

    /// Ready when the body that has to wait may be sent.
    pub(super) fn poll_granted(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self::Waiting(wait) = self else {
            return Poll::Pending;
        };
        wait.as_mut()
            .poll(context)
            .map(|grant| *self = Self::Granted(Box::new(grant)))
    }
}

impl Grant {
    /// Uses the bandwidth for a body of this size, and lets the next request have its turn.
    fn consume(self, bytes: u64) {
        if let Self::Turn { link, .. } = &self {
            link.bucket().consume(Instant::now(), bytes);
        }
    }
}

impl Link {
    fn new(bandwidth: Option<NonZeroU64>) -> Self {
        Self {
            is_unlimited: AtomicBool::new(bandwidth.is_none()),
            changed: Notify::new(),
            bucket: Mutex::new(Bucket {
                bandwidth,
                busy_until: Instant::now(),
            }),
            turn: Arc::new(Semaphore::new(1)),
            update_turn: Arc::new(Semaphore::new(1)),
            queued: Backlog::default(),
            queued_updates: Backlog::default(),
        }
    }

    fn set(&self, bandwidth: Option<NonZeroU64>) {
        self.bucket().set_bandwidth(Instant::now(), bandwidth);
        self.is_unlimited
            .store(bandwidth.is_none(), Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn is_unlimited(&self) -> bool {
        self.is_unlimited.load(Ordering::Relaxed)
    }

    /// Uses the bandwidth for a body if it is free and no request waits for it.
    fn try_admit(&self, bytes: u64) -> bool {
        if self.is_unlimited() {
            return true;
        }
        let Ok(_turn) = self.turn.try_acquire() else {
            return false;
        };
        let (now, mut bucket) = (Instant::now(), self.bucket());
        let is_free = bucket.delay(now).is_zero();
        if is_free {
            bucket.consume(now, bytes);
        }
        is_free
    }

    /// Waits for the bandwidth, until the time at which a body that can't wait for its turn is sent
    /// all the same.
    async fn admit(self: Arc<Self>, body: Body) -> Grant {
        let now = Instant::now();
        let latest = latest(
            now,
            self.expected(now, body),
            body.deadline,
            fastrand::f64(),
        );
        let queue = if body.is_update {
            &self.queued_updates
        } else {
            &self.queued
        };
        let _queued = queue.add(body.bytes);
        tokio::select! {
            grant = self.turn(body.is_update) => grant,
            () = sleep_until(latest) => Grant::Uncounted,
        }
    }

    /// When the turn of a body comes that is added now.
    fn expected(&self, now: Instant, body: Body) -> Instant {
        let updates = if body.is_update {
            self.queued_updates.bytes()
        } else {
            0
        };
        let bucket = self.bucket();
        now + bucket.delay(now) + bucket.duration(self.queued.bytes().saturating_add(updates))
    }

    /// Waits until all requests before this one have had their turn and the bandwidth is free.
    async fn turn(self: &Arc<Self>, is_update: bool) -> Grant {
        // Neither semaphore is ever closed.
        let first_update = if is_update {
            Arc::clone(&self.update_turn).acquire_owned().await.ok()
        } else {
            None
        };
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok();
        loop {
            // Before the delay is computed, so that no change is missed.
            let changed = self.changed.notified();
            let delay = self.bucket().delay(Instant::now());
            // Even a sleep of no time can take a millisecond.
            if delay.is_zero() {
                break;
            }
            // Only the request that has its turn uses the bandwidth, so it is free after this,
            // unless it is another one by then.
            tokio::select! {
                () = sleep(delay) => {}
                () = changed => {}
            }
        }
        Grant::Turn {
            link: Arc::clone(self),
            _places: [turn, first_update],
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// What is still to be sent takes as long as the new bandwidth requires.
    fn set_bandwidth(&mut self, now: Instant, bandwidth: Option<NonZeroU64>) {
        let before = mem::replace(&mut self.bandwidth, bandwidth);
        let ratio = match (before, bandwidth) {
            (Some(before), Some(after)) => before.get() as f64 / after.get() as f64,
            _ => 0.0,
        };
        let left = self.busy_until.saturating_duration_since(now);
        self.busy_until = now + left.mul_f64(ratio);
    }

    /// How long the next body has to wait. Its size does not matter: a body larger than the burst
    /// would never be sent.
    fn delay(&self, now: Instant) -> Duration {
        self.busy_until
            .saturating_duration_since(now)
            .saturating_sub(BURST)
    }

    /// Uses the bandwidth for a body. Bandwidth that was not used before is lost.
    fn consume(&mut self, now: Instant, bytes: u64) {
        self.busy_until = self.busy_until.max(now) + self.duration(bytes);
    }

    /// The time that this many bytes take.
    fn duration(&self, bytes: u64) -> Duration {
        match self.bandwidth {
            Some(bandwidth) => Duration::from_secs_f64(bytes as f64 / bandwidth.get() as f64),
            None => Duration::ZERO,
        }
    }
}

impl Backlog {
    fn add(&self, bytes: u64) -> Queued<'_> {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Queued {
            backlog: self,
            bytes,
        }
    }

    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// When a body is sent that has not had its turn: at its deadline or, if its turn is `expected`
/// after that, at a time in the second half of its wait. When the bandwidth is too small for a
/// fleet, its clients then don't get their bodies all at the end of the same wait. `random` is in
/// `0.0..1.0`.
fn latest(now: Instant, expected: Instant, deadline: Instant, random: f64) -> Instant {
    if expected <= deadline {
        return deadline;
    }
    let remaining = deadline.saturating_duration_since(now);
    now + remaining - remaining.mul_f64(random / 2.0)
}

#[cfg(test)]
mod tests;
