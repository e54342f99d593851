//! How many requests a host gets at a time and in a second.

use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use reqwest::Response;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, sleep_until},
};

use super::deadline::Pause;

/// The limits of requests to one host (`registries.HOST.max_concurrent` and
/// `.max_requests_per_second`), shared by all that is sent to it.
///
/// Requests are admitted in the order in which they ask, and waiting stops the deadline of their
/// operation ([`Pause`]), for as long as the host answers at all.
#[derive(Debug)]
pub(super) struct Limiter {
    permits: Arc<Semaphore>,
    pace: Option<Pace>,
    last_answer: Arc<LastAnswer>,
    /// The requests that wait for a permit.
    waiting: AtomicUsize,
}

/// When the host last sent something.
#[derive(Debug)]
struct LastAnswer(std::sync::Mutex<Instant>);

/// The host sent nothing while a request waited for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence {
    /// How long it was silent at least.
    pub(super) max_silence: Duration,
    /// The requests that waited, this one included.
    pub(super) waiting: usize,
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
    last_answer: Arc<LastAnswer>,
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
            last_answer: Arc::new(LastAnswer(std::sync::Mutex::new(Instant::now()))),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Records that the host sent something.
    pub(super) fn record_answer(&self) {
        self.last_answer.record();
    }

    /// Whether the host has sent something since `time`.
    pub(super) fn has_answered_since(&self, time: Instant) -> bool {
        self.last_answer.time() >= time
    }

    /// Waits until fewer than `max_concurrent` requests are under way. A caller that has a permit
    /// must not wait for another one.
    ///
    /// # Errors
    /// When the host sends nothing for `max_silence`, and for the time between two requests, while
    /// this one waits. Otherwise a long queue behind a silent host would take hours to fail.
    pub(super) async fn permit(&self, max_silence: Duration) -> Result<Permit, Silence> {
        let permits = Arc::clone(&self.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let _pause = Pause::start();
                let _waiting = Waiting::start(&self.waiting);
                tokio::select! {
                    biased;
                    permit = permits.acquire_owned() => permit.ok(),
                    silence = self.silence(max_silence) => return Err(silence),
                }
            }
        };
        Ok(Permit {
            _permit: permit.map(Arc::new),
            last_answer: Arc::clone(&self.last_answer),
        })
    }

    /// Waits until the host has sent nothing for `max_silence` from now on.
    async fn silence(&self, max_silence: Duration) -> Silence {
        let began = Instant::now();
        let interval = self.pace.as_ref().map(|pace| pace.interval);
        let allowed = max_silence + interval.unwrap_or_default();
        loop {
            let end = self.last_answer.time().max(began) + allowed;
            if end <= Instant::now() {
                let waiting = self.waiting.load(Ordering::Relaxed);
                return Silence {
                    max_silence,
                    waiting,
                };
            }
            sleep_until(end).await;
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

impl LastAnswer {
    fn record(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn time(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records that the host sent a part of an answer, if that still has its permit.
pub(super) fn record_answer(response: &Response) {
    if let Some(permit) = response.extensions().get::<Permit>() {
        permit.last_answer.record();
    }
}

/// Counts a request that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn start(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
                    let permit = limiter.permit(SECOND / 2).await.unwrap();
                    let _one = under_way.try_acquire().expect("at most two are under way");
                    // A slow answer, of which something arrives all the time.
                    for _ in 0..5 {
                        sleep(SECOND / 5).await;
                        permit.last_answer.record();
                    }
                    drop(permit);
                };
                // The last one waits for nine seconds.
                Deadline::after(2 * SECOND).limit(request).await
            });
        }
        let done = requests.join_all().await;
        assert!(done.iter().all(Option::is_some));
    }

    /// A registry that accepts connections and never answers, and the polls of many bundles.
    #[tokio::test(start_paused = true)]
    async fn a_queue_behind_a_silent_host_fails_after_the_total_timeout() {
        let limiter = Arc::new(Limiter::new(128, None));
        let (read, total) = (15 * SECOND, 300 * SECOND);
        let began = Instant::now();
        let mut requests = JoinSet::new();
        for _ in 0..5000 {
            let limiter = Arc::clone(&limiter);
            requests.spawn(async move {
                let permit = limiter.permit(total).await;
                if permit.is_ok() {
                    sleep(read).await;
                }
                permit.err()
            });
        }
        let failed: Vec<_> = requests.join_all().await.into_iter().flatten().collect();
        assert!(began.elapsed() <= total + 2 * read, "{:?}", began.elapsed());
        // 20 rounds of 128 requests were sent.
        assert!(failed.len() >= 5000 - 128 * 21, "{}", failed.len());
        assert!(failed.iter().all(|silence| silence.max_silence == total));
        assert!(failed[0].waiting >= failed.len());
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_within_the_timeout_is_enough_for_the_whole_queue() {
        let limiter = Arc::new(Limiter::new(1, None));
        let total = 10 * SECOND;
        let mut requests = JoinSet::new();
        for number in 0..100 {
            let limiter = Arc::clone(&limiter);
            requests.spawn(async move {
                let permit = limiter.permit(total).await;
                sleep(total / 3).await;
                if number % 2 == 0 {
                    limiter.record_answer();
                }
                permit.is_ok()
            });
            yield_now().await;
        }
        assert!(requests.join_all().await.into_iter().all(|granted| granted));
    }
}
