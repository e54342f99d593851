//! How many status reports are read. OPA sends one for each answer to a poll and for each upload of
//! decisions, so that many clients send more than the server needs to know. A report beyond the
//! limits is answered like any other, without being read: OPA does not repeat a report that was
//! refused, and sends none the less.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Reports that are read at a time. What each of them needs of memory is bounded, and with this
/// number what they need together.
const MAX_CONCURRENT: usize = 64;

/// Decides which reports are read: `rate` a second, of which those of one second may come at once,
/// and at most [`MAX_CONCURRENT`] at a time.
#[derive(Debug)]
pub(super) struct ReportLimit {
    bucket: Mutex<Bucket>,
    reading: Arc<Semaphore>,
}

/// Permission to read one report, until it is dropped.
#[derive(Debug)]
pub(super) struct ReadPermit {
    _permit: OwnedSemaphorePermit,
}

/// A token bucket with room for the reports of one second.
#[derive(Debug)]
struct Bucket {
    /// Reports a second.
    rate: u32,
    /// Reports that may be read now.
    left: f64,
    /// When `left` was computed.
    at: Instant,
}

impl ReportLimit {
    /// `rate`: reports a second.
    pub(super) fn new(rate: u32) -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                rate,
                left: f64::from(rate),
                at: Instant::now(),
            }),
            reading: Arc::new(Semaphore::new(MAX_CONCURRENT)),
        }
    }

    /// Permission to read a report that has arrived now, without waiting; `None` if it is beyond a
    /// limit. A report that is beyond the number of concurrent ones does not count for the rate.
    pub(super) fn admit(&self) -> Option<ReadPermit> {
        let permit = Arc::clone(&self.reading).try_acquire_owned().ok()?;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket
            .take(Instant::now())
            .then_some(ReadPermit { _permit: permit })
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let is_within = self.left >= 1.0;
        if is_within {
            self.left -= 1.0;
        }
        is_within
    }

    fn refill(&mut self, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.at);
        let rate = f64::from(self.rate);
        self.left = (self.left + passed.as_secs_f64() * rate).min(rate);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// The number of reports that are admitted of many, each of which is read at once.
    fn admitted(limit: &ReportLimit) -> usize {
        (0..1000).filter(|_| limit.admit().is_some()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_a_second_at_once_and_later() {
        let limit = ReportLimit::new(200);
        assert_eq!(admitted(&limit), 200);
        for (passed, expected) in [
            (0, 0),
            (4, 0),
            (1, 1),
            (100, 20),
            (1000, 200),
            (3_600_000, 200),
        ] {
            advance(Duration::from_millis(passed)).await;
            assert_eq!(admitted(&limit), expected, "after {passed} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_limited_while_they_are_read() {
        let limit = ReportLimit::new(1000);
        let mut reading: Vec<_> = (0..MAX_CONCURRENT).map(|_| limit.admit()).collect();
        assert!(reading.iter().all(Option::is_some));
        assert_eq!(admitted(&limit), 0);
        reading.truncate(MAX_CONCURRENT - 1);
        // Those that were not admitted have used up nothing of the rate.
        assert_eq!(admitted(&limit), 1000 - MAX_CONCURRENT);
        advance(Duration::from_secs(1)).await;
        assert!(limit.admit().is_some());
    }
}
