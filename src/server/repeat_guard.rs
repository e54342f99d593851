//! Delays clients that download the same version again and again.
//!
//! OPA asks again at once after each answer while it long-polls. If a version does not activate
//! (discovery bundles, and all bundles of older OPAs), or if a proxy removes or changes `ETag` or
//! `If-None-Match`, then each of its requests is answered with the whole bundle, many times a
//! second. Such a request has the same first tag as the one before, and gets the same version. The
//! first [`FREE_REPEATS`] are answered at once, and further ones after a delay that doubles up to
//! `long_poll.repeat_delay`. They are never refused.
//!
//! A client is recognised by its connection. OPA before 1.16 opens one for each request, so the
//! first download of each connection counts for its address, unless several clients share the
//! address: a single client sends no request while one of its downloads is delayed.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::{holdout_tracker::ClientId, idle_connections::Slot};

/// Repeated downloads that are not delayed: a client may lose an answer, or restart.
const FREE_REPEATS: u32 = 3;
/// The first delay; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A download that comes later than this after the one before is no repetition. Longer than the
/// delay, which is at most 9 s.
const STREAK_PAUSE: Duration = Duration::from_secs(20);
/// How long an address counts as shared after several of its clients were seen at once.
const SHARED_FOR: Duration = Duration::from_secs(600);
/// Addresses that are remembered, in about 2 MB.
const MAX_ADDRESSES: u64 = 1 << 14;
/// The delay from which on a repetition is logged, once.
const LOGGED_DELAY: Duration = Duration::from_millis(800);

/// Decides which downloads are delayed.
#[derive(Debug)]
pub(super) struct RepeatGuard {
    /// The longest delay in nanoseconds; zero turns the guard off.
    max_delay: AtomicU64,
    addresses: Cache<u64, Arc<Mutex<Address>>>,
    keys: RandomState,
    delayed: IntCounter,
}

/// A request that would be answered with a bundle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Download<'a> {
    pub(super) bundle: &'a str,
    /// The first tag in `If-None-Match`, or nothing.
    pub(super) first_tag: &'a str,
    /// The entity tag of the version that is sent.
    pub(super) etag: &'a str,
}

/// The repetitions of one download.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streak {
    /// A hash of the [`Download`].
    download: u64,
    repeats: u32,
    last: Instant,
}

/// The clients of one address, credential and `User-Agent`.
#[derive(Debug, Default)]
struct Address {
    streak: Option<Box<Streak>>,
    /// Downloads that are delayed now.
    delayed: u32,
    shared_until: Option<Instant>,
}

/// A delayed download, until it is dropped.
#[derive(Debug)]
pub(super) struct Delay {
    /// When the bundle may be sent.
    pub(super) until: Instant,
    address: Option<Arc<Mutex<Address>>>,
}

impl RepeatGuard {
    /// `delayed` counts the downloads that are delayed.
    pub(super) fn new(max_delay: Duration, delayed: IntCounter) -> Self {
        let guard = Self {
            max_delay: AtomicU64::default(),
            addresses: Cache::builder()
                .max_capacity(MAX_ADDRESSES)
                .time_to_idle(SHARED_FOR)
                .build(),
            keys: RandomState::new(),
            delayed,
        };
        guard.set_max_delay(max_delay);
        guard
    }

    /// Replaces the longest delay, for downloads that come from now on.
    pub(super) fn set_max_delay(&self, max_delay: Duration) {
        let nanoseconds = u64::try_from(max_delay.as_nanos()).unwrap_or(u64::MAX);
        self.max_delay.store(nanoseconds, Ordering::Relaxed);
    }

    fn max_delay(&self) -> Duration {
        Duration::from_nanos(self.max_delay.load(Ordering::Relaxed))
    }

    /// Counts a download, and returns its delay; `None` if it may be sent at once.
    pub(super) fn delay(
        &self,
        download: Download<'_>,
        client: &ClientId,
        slot: &Slot,
    ) -> Option<Box<Delay>> {
        if self.max_delay().is_zero() {
            return None;
        }
        let (hash, now) = (self.hash(download), Instant::now());
        let on_connection = slot.with_downloads(|streak| {
            let is_first = streak.is_none();
            let repeats = Streak::count(streak, hash, now);
            (!is_first).then_some(repeats)
        });
        let (repeats, address) = match on_connection {
            Some(repeats) => (repeats, None),
            None => self.repeats_of_address(hash, download.bundle, client, now)?,
        };
        let delay = self.delay_of(repeats);
        if delay.is_zero() {
            return None;
        }
        self.delayed.inc();
        let is_log_due = |delay: Duration| delay >= LOGGED_DELAY.min(self.max_delay());
        if is_log_due(delay) && !is_log_due(self.delay_of(repeats - 1)) {
            tracing::warn!(
                bundle = download.bundle,
                client = %client.address,
                first_tag = download.first_tag,
                etag = download.etag,
                "a client downloads the same version again and again, and is delayed: either the version does not \
                 activate there, or a proxy removes or changes ETag or If-None-Match"
            );
        }
        if let Some(address) = &address {
            lock(address).delayed += 1;
        }
        Some(Box::new(Delay {
            until: now + delay,
            address,
        }))
    }

    /// Counts a download unless it is to be delayed, and returns whether it was counted.
    pub(super) fn is_free(&self, download: Download<'_>, slot: &Slot) -> bool {
        if self.max_delay().is_zero() {
            return true;
        }
        let (hash, now) = (self.hash(download), Instant::now());
        slot.with_downloads(|streak| {
            // The first download of a connection counts for its address as well.
            let is_free = streak
                .as_ref()
                .is_some_and(|streak| streak.next(hash, now) <= FREE_REPEATS);
            if is_free {
                Streak::count(streak, hash, now);
            }
            is_free
        })
    }

    /// The repetitions by an address, with what counts them; `None` if several clients share it.
    fn repeats_of_address(
        &self,
        hash: u64,
        bundle: &str,
        client: &ClientId,
        now: Instant,
    ) -> Option<(u32, Option<Arc<Mutex<Address>>>)> {
        let key = self
            .keys
            .hash_one((client.address, &client.caller, client.user_agent, bundle));
        let address = self.addresses.get_with(key, Arc::default);
        let mut state = lock(&address);
        if state.delayed > 0 {
            state.shared_until = Some(now + SHARED_FOR);
        }
        if state.shared_until.is_some_and(|until| now < until) {
            return None;
        }
        let repeats = Streak::count(&mut state.streak, hash, now);
        drop(state);
        Some((repeats, Some(address)))
    }

    fn delay_of(&self, repeats: u32) -> Duration {
        let Some(doublings) = repeats.checked_sub(FREE_REPEATS + 1) else {
            return Duration::ZERO;
        };
        FIRST_DELAY
            .saturating_mul(1 << doublings.min(16))
            .min(self.max_delay())
    }

    fn hash(&self, download: Download<'_>) -> u64 {
        let Download {
            bundle,
            first_tag,
            etag,
        } = download;
        self.keys.hash_one((bundle, first_tag, etag))
    }
}

impl Streak {
    /// The repetitions if this download follows now.
    fn next(&self, download: u64, now: Instant) -> u32 {
        let is_repeated = self.download == download && now.duration_since(self.last) < STREAK_PAUSE;
        if is_repeated {
            self.repeats.saturating_add(1)
        } else {
            0
        }
    }

    /// Counts a download, and returns how often it was repeated.
    fn count(streak: &mut Option<Box<Self>>, download: u64, now: Instant) -> u32 {
        let next = |streak: &Self| streak.next(download, now);
        let counted = Self {
            download,
            repeats: streak.as_deref().map_or(0, next),
            last: now,
        };
        match streak {
            Some(streak) => **streak = counted,
            None => *streak = Some(Box::new(counted)),
        }
        counted.repeats
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        if let Some(address) = &self.address {
            lock(address).delayed -= 1;
        }
    }
}

fn lock(address: &Mutex<Address>) -> MutexGuard<'_, Address> {
    address.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;
    use crate::server::{
        Deadlines,
        clients::Caller,
        idle_connections::{IdleConnections, Limits},
    };

    const DOWNLOAD: Download<'_> = Download {
        bundle: "authz",
        first_tag: "one",
        etag: "\"two\"",
    };
    const CLIENT: ClientId = ClientId {
        address: std::net::IpAddr::V4(Ipv4Addr::LOCALHOST),
        caller: Caller::anonymous(),
        user_agent: 0,
    };

    fn guard(max_delay: Duration) -> RepeatGuard {
        RepeatGuard::new(max_delay, IntCounter::new("delayed", "Delayed.").unwrap())
    }

    fn connections() -> IdleConnections {
        IdleConnections::new(Limits::new(100, 10, Deadlines::default()))
    }

    /// The delays of repeated downloads in milliseconds, each asked for when the last one has
    /// passed.
    async fn delays(guard: &RepeatGuard, mut slot: impl FnMut() -> Arc<Slot>) -> Vec<u128> {
        let mut delays = Vec::new();
        for _ in 0..12 {
            let began = Instant::now();
            let delay = guard.delay(DOWNLOAD, &CLIENT, &slot());
            if let Some(delay) = delay {
                advance(delay.until - began).await;
            }
            delays.push(began.elapsed().as_millis());
        }
        delays
    }

    const EXPECTED: [u128; 12] = [0, 0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000];

    #[tokio::test(start_paused = true)]
    async fn repeated_downloads_are_delayed_on_one_connection_and_on_one_for_each() {
        let connections = connections();
        let limit = Duration::from_secs(5);
        let slot = connections.register();
        assert_eq!(delays(&guard(limit), || Arc::clone(&slot)).await, EXPECTED);
        let each = guard(limit);
        assert_eq!(delays(&each, || connections.register()).await, EXPECTED);
        assert_eq!(each.delayed.get(), 8);
        let off = guard(Duration::ZERO);
        assert_eq!(delays(&off, || connections.register()).await, [0; 12]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_tag_another_version_and_a_pause_begin_anew() {
        let (guard, slot) = (guard(Duration::from_secs(5)), connections().register());
        let ask = |download| guard.delay(download, &CLIENT, &slot).is_some();
        for other in [
            Download {
                first_tag: "",
                ..DOWNLOAD
            },
            Download {
                etag: "\"three\"",
                ..DOWNLOAD
            },
            Download {
                bundle: "other",
                ..DOWNLOAD
            },
        ] {
            let repeated: Vec<_> = (0..6).map(|_| ask(DOWNLOAD)).collect();
            assert_eq!(repeated, [false, false, false, false, true, true]);
            assert!(!ask(other));
        }
        for _ in 0..6 {
            ask(DOWNLOAD);
        }
        advance(STREAK_PAUSE).await;
        assert!(!ask(DOWNLOAD));
    }

    /// A thousand clients behind one address connect again, and one among them repeats.
    #[tokio::test(start_paused = true)]
    async fn clients_of_a_shared_address_are_not_delayed_and_one_that_repeats_is() {
        let (guard, connections) = (guard(Duration::from_secs(5)), connections());
        let repeating = connections.register();
        let mut delayed = Vec::new();
        for _ in 0..1000 {
            delayed.extend(guard.delay(DOWNLOAD, &CLIENT, &connections.register()));
        }
        assert_eq!(
            delayed.len(),
            1,
            "the one that shows that the address is shared"
        );
        let repeated: Vec<_> = (0..6)
            .map(|_| guard.delay(DOWNLOAD, &CLIENT, &repeating).is_some())
            .collect();
        assert_eq!(repeated, [false, false, false, false, true, true]);
        // Also when the delay has passed, and until nothing was shared for ten minutes.
        delayed.clear();
        for _ in 0..10 {
            assert!(
                guard
                    .delay(DOWNLOAD, &CLIENT, &connections.register())
                    .is_none()
            );
        }
        advance(SHARED_FOR).await;
        assert_eq!(delays(&guard, || connections.register()).await, EXPECTED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_that_would_be_delayed_is_counted_once() {
        let (guard, slot) = (guard(Duration::from_secs(5)), connections().register());
        assert!(!guard.is_free(DOWNLOAD, &slot), "the address counts it");
        assert!(guard.delay(DOWNLOAD, &CLIENT, &slot).is_none());
        for repeats in 1..=FREE_REPEATS {
            assert!(guard.is_free(DOWNLOAD, &slot), "{repeats}");
        }
        assert!(!guard.is_free(DOWNLOAD, &slot));
        let delay = guard.delay(DOWNLOAD, &CLIENT, &slot).unwrap();
        assert_eq!(delay.until - Instant::now(), FIRST_DELAY);
    }
}
