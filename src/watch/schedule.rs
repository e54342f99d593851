//! The times of the checks of a registry.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::time::{Duration, Instant};

use crate::{
    oci::Digest,
    publish::{FailureClass, Outcome},
};

const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Denied credentials seldom become valid by themselves.
const DENIED_FACTOR: u32 = 4;
/// The longest wait for a registry's `Retry-After`: it may be in the wrong unit, or come from a
/// wrong clock, and must not stop updates for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// The longest time over which bundles are spread that got the same `Retry-After`.
const MAX_SPREAD: Duration = Duration::from_secs(60);
/// The share of the interval by which a poll may come early.
const JITTER_DIVISOR: u32 = 20;

/// The schedule of one bundle: its phase within the interval, and how often in a row it has failed.
///
/// The phase follows from the name: thousands of bundles that start together, or that an outage has
/// brought into step, spread over the interval again with their next successful poll.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    /// Polls are due this long after `epoch`, and an interval later, and so on.
    phase: Duration,
    epoch: Instant,
    transient: u32,
    unsigned: Option<(Option<Digest>, u32)>,
}

impl Schedule {
    pub(super) fn new(interval: Duration, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let share = f64::from((hasher.finish() >> 32) as u32) / (f64::from(u32::MAX) + 1.0);
        Self {
            interval,
            phase: interval.mul_f64(share),
            epoch: Instant::now(),
            transient: 0,
            unsigned: None,
        }
    }

    /// Restarts the retries for evidence, because another policy may accept the refused version.
    pub(super) fn start_over(&mut self) {
        self.unsigned = None;
    }

    /// The time from a check with this `outcome` to the next one.
    pub(super) fn after(&mut self, outcome: &Outcome) -> Duration {
        let class = match outcome {
            Outcome::Accepted(_) | Outcome::Unchanged => None,
            Outcome::Failed(failure) => Some((failure.class, &failure.digest)),
        };
        let transient = matches!(
            class,
            Some((FailureClass::Transient | FailureClass::RateLimited(_), _))
        );
        self.transient = if transient {
            self.transient.saturating_add(1)
        } else {
            0
        };
        match class {
            Some((FailureClass::Transient | FailureClass::RateLimited(None), _)) => {
                // Jitter, so that replicas and bundles don't come back in step.
                self.doubling(self.transient)
                    .mul_f64(0.5 + fastrand::f64() / 2.0)
            }
            // All bundles of a registry got the same time.
            Some((FailureClass::RateLimited(Some(wait)), _)) => {
                let wait = wait.clamp(MIN_BACKOFF, MAX_RETRY_AFTER);
                let spread = wait
                    .min(self.interval)
                    .min(MAX_SPREAD)
                    .mul_f64(fastrand::f64());
                if wait + spread > MAX_RETRY_AFTER {
                    MAX_RETRY_AFTER - spread
                } else {
                    wait + spread
                }
            }
            // A signature always follows the push that it signs.
            Some((FailureClass::Evidence, digest)) => {
                let count = match &self.unsigned {
                    Some((known, count)) if known == digest => count.saturating_add(1),
                    _ => 1,
                };
                self.unsigned = Some((digest.clone(), count));
                let wait = self.doubling(count);
                if wait < self.interval {
                    wait
                } else {
                    self.until_due()
                }
            }
            Some((FailureClass::Denied, _)) => self
                .until_due()
                .saturating_add(self.interval.saturating_mul(DENIED_FACTOR - 1)),
            Some((
                FailureClass::NotFound
                | FailureClass::Revoked
                | FailureClass::Defect
                | FailureClass::Distrusted,
                _,
            ))
            | None => self.until_due(),
        }
    }

    /// The time until this bundle's phase comes, never longer than the interval and its jitter.
    fn until_due(&self) -> Duration {
        let (interval, jitter) = (
            self.interval.as_nanos().max(1),
            self.interval / JITTER_DIVISOR,
        );
        // A poll that came early must not be followed by one at the same time.
        let from = (self.epoch.elapsed() + jitter).as_nanos();
        let since = (from + interval - self.phase.as_nanos() % interval) % interval;
        let wait =
            Duration::from_nanos(u64::try_from(interval - since).unwrap_or(u64::MAX)) + jitter;
        wait - jitter.mul_f64(fastrand::f64())
    }

    /// Caps the `wait` that a registry asked for by `max_stale`: while a version is served, at half
    /// of the time `left` of it, so that several checks come before it ends; otherwise at
    /// `max_stale` or the interval.
    pub(super) fn cap_retry_after(
        &self,
        wait: Duration,
        max_stale: Duration,
        left: Option<Duration>,
    ) -> Duration {
        let most = left.map_or_else(|| max_stale.max(self.interval), |left| left / 2);
        wait.min(most.max(MIN_BACKOFF))
    }

    /// The delay before a retry for evidence: 1, 2, 4 … seconds up to the interval.
    fn doubling(&self, count: u32) -> Duration {
        MIN_BACKOFF
            .saturating_mul(1 << count.saturating_sub(1).min(20))
            .min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::publish::{Failure, Step};

    fn failed(class: FailureClass, digest: Option<Digest>) -> Outcome {
        let message = String::new();
        Outcome::Failed(Failure {
            class,
            step: Step::Resolve,
            digest,
            below: std::sync::Arc::default(),
            etag: None,
            reason: "",
            message,
        })
    }

    #[test]
    fn an_unsigned_digest_is_looked_at_after_1_2_4_seconds_up_to_the_interval() {
        let mut schedule = Schedule::new(Duration::from_secs(5), "a");
        let mut seconds = |digest: &[u8]| {
            schedule
                .after(&failed(
                    FailureClass::Evidence,
                    Some(Digest::sha256(digest)),
                ))
                .as_secs()
        };
        assert_eq!([seconds(b"a"), seconds(b"a"), seconds(b"a")], [1, 2, 4]);
        assert!(seconds(b"a") <= 5, "then in step with its interval");
        assert_eq!(seconds(b"b"), 1, "another digest starts over");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_to_the_interval_and_success_resets_it() {
        let mut schedule = Schedule::new(Duration::from_secs(30), "a");
        let transient = failed(FailureClass::Transient, None);
        for ceiling in [1, 2, 4, 8, 16, 30, 30] {
            let wait = schedule.after(&transient);
            assert!(
                wait <= Duration::from_secs(ceiling)
                    && wait >= Duration::from_millis(500 * ceiling),
                "{wait:?}"
            );
        }
        schedule.after(&Outcome::Unchanged);
        assert!(schedule.after(&transient) <= Duration::from_secs(1));
    }

    #[test]
    fn a_registry_that_names_a_time_is_obeyed_within_reason_and_not_by_all_at_once() {
        let interval = Duration::from_secs(30);
        let mut schedule = Schedule::new(interval, "a");
        let mut after = |wait| schedule.after(&failed(FailureClass::RateLimited(Some(wait)), None));
        let wait = Duration::from_secs(77);
        let waits: Vec<_> = (0..100).map(|_| after(wait)).collect();
        assert!(
            waits
                .iter()
                .all(|waited| (wait..wait + interval).contains(waited)),
            "{waits:?}"
        );
        assert!(
            waits
                .iter()
                .max()
                .unwrap()
                .abs_diff(*waits.iter().min().unwrap())
                > interval / 2,
            "{waits:?}"
        );
        let years = Duration::from_secs(u32::MAX.into());
        let capped = MAX_RETRY_AFTER - interval..=MAX_RETRY_AFTER;
        assert!((0..100).all(|_| capped.contains(&after(years))));
        let mut seldom = Schedule::new(Duration::from_secs(24 * 3600), "a");
        let waited = seldom.after(&failed(FailureClass::RateLimited(Some(years)), None));
        assert!(
            (MAX_RETRY_AFTER - MAX_SPREAD..=MAX_RETRY_AFTER).contains(&waited),
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn polls_of_one_bundle_are_an_interval_apart() {
        let interval = Duration::from_secs(30);
        for name in ["a", "b", "authz/main"] {
            let mut schedule = Schedule::new(interval, name);
            let first = schedule.after(&Outcome::Unchanged);
            assert!(first <= interval + interval / JITTER_DIVISOR, "{first:?}");
            advance(first).await;
            for _ in 0..100 {
                // The duration of the check makes no difference.
                advance(Duration::from_millis(300)).await;
                let wait = schedule.after(&Outcome::Unchanged) + Duration::from_millis(300);
                assert!(
                    wait.abs_diff(interval) <= interval / JITTER_DIVISOR,
                    "{wait:?}"
                );
                advance(wait - Duration::from_millis(300)).await;
            }
        }
    }

    /// Polls in each second of an interval, by when they are due.
    fn histogram(due: impl IntoIterator<Item = Duration>) -> Vec<usize> {
        let mut seconds = vec![0; 32];
        due.into_iter()
            .for_each(|due| seconds[due.as_secs() as usize] += 1);
        seconds
    }

    fn bundles() -> Vec<Schedule> {
        (0..5_000)
            .map(|number| Schedule::new(Duration::from_secs(30), &format!("team/bundle-{number}")))
            .collect()
    }

    /// 167 a second are expected, with a deviation of 13.
    fn assert_spread(due: impl IntoIterator<Item = Duration>) {
        let seconds = histogram(due);
        // The first second has no jitter before it, those after the interval have only that.
        assert!(
            seconds[2..30].iter().all(|polls| (90..260).contains(polls)),
            "{seconds:?}"
        );
        assert!(seconds.iter().all(|polls| *polls < 260), "{seconds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_that_start_together_poll_evenly_from_the_first_interval_on() {
        let mut bundles = bundles();
        advance(Duration::from_secs(3)).await;
        for outcome in [
            Outcome::Unchanged,
            failed(FailureClass::NotFound, None),
            failed(FailureClass::Defect, None),
            failed(FailureClass::Distrusted, None),
        ] {
            assert_spread(bundles.iter_mut().map(|bundle| bundle.after(&outcome)));
        }
        let denied = failed(FailureClass::Denied, None);
        assert_spread(
            bundles
                .iter_mut()
                .map(|bundle| bundle.after(&denied) - Duration::from_secs(90)),
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_ends_leaves_no_bundles_in_step() {
        let mut bundles = bundles();
        advance(Duration::from_secs(100)).await;
        // All fail at the same moment, eight times, and succeed at the same moment.
        let transient = failed(FailureClass::Transient, None);
        for _ in 0..8 {
            let longest = bundles
                .iter_mut()
                .map(|bundle| bundle.after(&transient))
                .max()
                .unwrap();
            assert!(longest <= Duration::from_secs(30));
        }
        let back_off = histogram(bundles.iter_mut().map(|bundle| bundle.after(&transient)));
        assert!(
            back_off[15..30]
                .iter()
                .all(|polls| (230..440).contains(polls)),
            "{back_off:?}"
        );
        assert_spread(
            bundles
                .iter_mut()
                .map(|bundle| bundle.after(&Outcome::Unchanged)),
        );
    }

    #[test]
    fn retry_after_leaves_several_checks_before_max_stale_ends() {
        let (schedule, seconds) = (
            Schedule::new(Duration::from_secs(3), "a"),
            Duration::from_secs,
        );
        for (wait, left, expected) in [
            (900, Some(10), 5),
            (900, Some(5), 2),
            (900, Some(1), 1),
            (900, Some(0), 1),
            (4, Some(10), 4),
            (4, Some(3600), 4),
            // Nothing is served, so nothing can expire.
            (900, None, 10),
            (4, None, 4),
        ] {
            let capped = schedule.cap_retry_after(seconds(wait), seconds(10), left.map(seconds));
            assert_eq!(capped.as_secs(), expected, "{wait} s with {left:?} left");
        }
        let mut left = Duration::from_secs(10);
        let mut checks = 0;
        while left >= MIN_BACKOFF {
            left = left.saturating_sub(schedule.cap_retry_after(
                MAX_RETRY_AFTER,
                seconds(10),
                Some(left),
            ));
            checks += 1;
        }
        assert!(checks >= 4, "{checks} checks in ten seconds");
    }
}
