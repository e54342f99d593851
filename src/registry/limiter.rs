//! How many requests a host gets at a time and in a second.

use std::sync::Arc;

use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, sleep_until},
};

use super::deadline::Pause;

/// The limits of requests to one host (`registries.HOST.max_concurrent` and
/// `.max_requests_per_second`), shared by all that is sent to it.
///
/// Requests are admitted in the order in which they ask, and waiting stops the deadline of their
/// operation ([`Pause`]).
#[derive(Debug)]
pub(super) struct Limiter {
    permits: Arc<Semaphore>,
    pace: Option<Pace>,
}

/// Requests at equal intervals. None are saved up while a host is idle: its own limit counts
/// requests in windows that nothing here knows.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    /// Held by the request that is next, so that the requests that begin something queue here.
    queue: Mutex<()>,
    /// When the next request may be sent.
    next: Mutex<Instant>,
}

/// One of the requests that a host gets at a time, until its answer is read. Clones are the same
/// permit.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    /// `None` if the semaphore is closed, which does not happen.
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// Whether a request begins something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    First,
    /// It continues what an admitted request began, such as a request for a token: it is sent
    /// before those that begin something. Otherwise all that wait for a token would wait for the
    /// whole queue again.
    FollowUp,
}

impl Limiter {
    /// `interval` is the time between the beginnings of two requests.
    pub(super) fn new(max_concurrent: usize, interval: Option<Duration>) -> Self {
        let pace = interval.map(|interval| Pace {
            interval,
            queue: Mutex::default(),
            next: Mutex::new(Instant::now()),
        });
        Self {
            permits: Arc::new(Semaphore::new(max_concurrent)),
            pace,
        }
    }

    /// Waits until fewer than `max_concurrent` requests are under way. A caller that has a permit
    /// must not wait for another one.
    pub(super) async fn permit(&self) -> Permit {
        let permits = Arc::clone(&self.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let _pause = Pause::start();
                permits.acquire_owned().await.ok()
            }
        };
        Permit {
            _permit: permit.map(Arc::new),
        }
    }

    /// Waits for the time at which the next request may be sent.
    pub(super) async fn turn(&self, order: Order) {
        let Some(pace) = &self.pace else { return };
        let _pause = Pause::start();
        let _queue = match order {
            Order::First => Some(pace.queue.lock().await),
            Order::FollowUp => None,
        };
        let mut next = pace.next.lock().await;
        sleep_until(*next).await;
        *next = Instant::now() + pace.interval;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        task::{JoinSet, yield_now},
        time::{advance, sleep},
    };

    use super::{super::deadline::Deadline, *};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn requests_are_sent_at_equal_intervals_in_the_order_in_which_they_ask() {
        let limiter = Arc::new(Limiter::new(128, Some(SECOND / 10)));
        // Nothing is saved up.
        sleep(60 * SECOND).await;
        let began = Instant::now();
        let mut requests = JoinSet::new();
        for number in 0..50u32 {
            let limiter = Arc::clone(&limiter);
            requests.spawn(async move {
                limiter.turn(Order::First).await;
                (number, began.elapsed())
            });
            yield_now().await;
        }
        let mut sent = requests.join_all().await;
        sent.sort_unstable();
        for (number, at) in sent {
            // The timer's resolution is a millisecond.
            let expected = number * SECOND / 10;
            assert!(
                at >= expected && at <= expected + (number + 1) * SECOND / 500,
                "{number} at {at:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_continues_a_request_is_sent_before_what_begins() {
        let limiter = Arc::new(Limiter::new(128, Some(SECOND)));
        let mut requests = JoinSet::new();
        for _ in 0..1000 {
            let limiter = Arc::clone(&limiter);
            requests.spawn(async move { limiter.turn(Order::First).await });
        }
        yield_now().await;
        for _ in 0..5 {
            advance(SECOND / 2).await;
            let began = Instant::now();
            limiter.turn(Order::FollowUp).await;
            // One that begins is next already; the others wait.
            let waited = began.elapsed();
            assert!(waited <= 2 * SECOND + SECOND / 100, "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_given_up_takes_no_turn() {
        let limiter = Limiter::new(1, Some(SECOND));
        limiter.turn(Order::First).await;
        let began = Instant::now();
        for _ in 0..10 {
            let waiting = limiter.turn(Order::First);
            assert!(
                tokio::time::timeout(SECOND / 20, waiting).await.is_err(),
                "it is not its turn yet"
            );
        }
        limiter.turn(Order::First).await;
        assert!(began.elapsed() <= SECOND + SECOND / 100);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_than_allowed_are_under_way_and_the_wait_is_not_theirs() {
        let limiter = Arc::new(Limiter::new(2, None));
        let mut requests = JoinSet::new();
        let under_way = Arc::new(Semaphore::new(2));
        for _ in 0..20 {
            let (limiter, under_way) = (Arc::clone(&limiter), Arc::clone(&under_way));
            requests.spawn(async move {
                let request = async {
                    let permit = limiter.permit().await;
                    let _one = under_way.try_acquire().expect("at most two are under way");
                    sleep(SECOND).await;
                    drop(permit);
                };
                // The last one waits for nine seconds.
                Deadline::after(2 * SECOND).limit(request).await
            });
        }
        let done = requests.join_all().await;
        assert!(done.iter().all(Option::is_some));
    }
}
