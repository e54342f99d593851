//! When to look at the registry again.

use tokio::time::Duration;

use super::state::{FailureClass, Outcome};
use crate::oci::Digest;

const FIRST: Duration = Duration::from_secs(1);
/// Refused credentials seldom become right by themselves.
const DENIED_FACTOR: u32 = 4;
/// The longest that a registry's `Retry-After` is waited for: it may be in the wrong unit, or read
/// by a wrong clock, and must not stop updates for days.
const MAX_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Remembers how often in a row something went wrong.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    transient: u32,
    unsigned: Option<(Option<Digest>, u32)>,
}

impl Schedule {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, transient: 0, unsigned: None }
    }

    /// What was refused before may be judged otherwise now.
    pub(super) fn start_over(&mut self) {
        self.unsigned = None;
    }

    /// How long to wait after `outcome`.
    pub(super) fn after(&mut self, outcome: &Outcome) -> Duration {
        let class = match outcome {
            Outcome::Accepted(_) | Outcome::Unchanged => None,
            Outcome::Failed(failure) => Some((failure.class, &failure.digest)),
        };
        let transient = matches!(class, Some((FailureClass::Transient | FailureClass::RateLimited(_), _)));
        self.transient = if transient { self.transient.saturating_add(1) } else { 0 };
        match class {
            Some((FailureClass::Transient | FailureClass::RateLimited(None), _)) => {
                // Jitter, so that replicas and bundles don't come back in step.
                self.doubling(self.transient).mul_f64(0.5 + fastrand::f64() / 2.0)
            }
            Some((FailureClass::RateLimited(Some(wait)), _)) => wait.clamp(FIRST, MAX_PATIENCE),
            // A signature always follows the push that it signs.
            Some((FailureClass::Evidence, digest)) => {
                let count = match &self.unsigned {
                    Some((known, count)) if known == digest => count.saturating_add(1),
                    _ => 1,
                };
                self.unsigned = Some((digest.clone(), count));
                self.doubling(count)
            }
            Some((FailureClass::Denied, _)) => self.interval.saturating_mul(DENIED_FACTOR),
            Some((
                FailureClass::NotFound | FailureClass::Revoked | FailureClass::Defect | FailureClass::Distrusted,
                _,
            ))
            | None => self.interval,
        }
    }

    /// How long of `wait`, which the registry asked for, a bundle with `max_stale` can wait. While
    /// something is served that has `left` of it, half of that, so that there are several checks
    /// before it is over. With nothing to lose, no longer than `max_stale` or the interval.
    pub(super) fn patience(&self, wait: Duration, max_stale: Duration, left: Option<Duration>) -> Duration {
        let most = left.map_or_else(|| max_stale.max(self.interval), |left| left / 2);
        wait.min(most.max(FIRST))
    }

    /// 1, 2, 4 … seconds up to the interval.
    fn doubling(&self, count: u32) -> Duration {
        FIRST.saturating_mul(1 << count.saturating_sub(1).min(20)).min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::state::{Failure, Step},
        *,
    };

    fn failed(class: FailureClass, digest: Option<Digest>) -> Outcome {
        let message = String::new();
        Outcome::Failed(Failure { class, step: Step::Resolve, digest, etag: None, reason: "", message })
    }

    #[test]
    fn an_unsigned_digest_is_looked_at_after_1_2_4_seconds_up_to_the_interval() {
        let mut schedule = Schedule::new(Duration::from_secs(5));
        let mut seconds =
            |digest: &[u8]| schedule.after(&failed(FailureClass::Evidence, Some(Digest::sha256(digest)))).as_secs();
        assert_eq!([seconds(b"a"), seconds(b"a"), seconds(b"a"), seconds(b"a")], [1, 2, 4, 5]);
        assert_eq!(seconds(b"b"), 1, "another digest starts over");
    }

    #[test]
    fn trouble_backs_off_to_the_interval_and_success_resets_it() {
        let mut schedule = Schedule::new(Duration::from_secs(30));
        let transient = failed(FailureClass::Transient, None);
        for ceiling in [1, 2, 4, 8, 16, 30, 30] {
            let wait = schedule.after(&transient);
            assert!(wait <= Duration::from_secs(ceiling) && wait >= Duration::from_millis(500 * ceiling), "{wait:?}");
        }
        assert_eq!(schedule.after(&Outcome::Unchanged), Duration::from_secs(30));
        assert!(schedule.after(&transient) <= Duration::from_secs(1));
    }

    #[test]
    fn a_registry_that_names_a_time_is_obeyed_within_reason() {
        let mut schedule = Schedule::new(Duration::from_secs(30));
        let wait = Duration::from_secs(77);
        assert_eq!(schedule.after(&failed(FailureClass::RateLimited(Some(wait)), None)), wait);
        let years = Duration::from_secs(u32::MAX.into());
        assert_eq!(schedule.after(&failed(FailureClass::RateLimited(Some(years)), None)), MAX_PATIENCE);
        let mut seldom = Schedule::new(Duration::from_secs(24 * 3600));
        assert_eq!(seldom.after(&failed(FailureClass::RateLimited(Some(years)), None)), MAX_PATIENCE);
    }

    #[test]
    fn what_a_registry_asks_for_leaves_several_checks_before_max_stale_is_over() {
        let (schedule, seconds) = (Schedule::new(Duration::from_secs(3)), Duration::from_secs);
        for (wait, left, expected) in [
            (900, Some(10), 5),
            (900, Some(5), 2),
            (900, Some(1), 1),
            (900, Some(0), 1),
            (4, Some(10), 4),
            (4, Some(3600), 4),
            // Nothing is served, so nothing can be lost.
            (900, None, 10),
            (4, None, 4),
        ] {
            let patience = schedule.patience(seconds(wait), seconds(10), left.map(seconds));
            assert_eq!(patience.as_secs(), expected, "{wait} s with {left:?} left");
        }
        let mut left = Duration::from_secs(10);
        let mut checks = 0;
        while left >= FIRST {
            left = left.saturating_sub(schedule.patience(MAX_PATIENCE, seconds(10), Some(left)));
            checks += 1;
        }
        assert!(checks >= 4, "{checks} checks in ten seconds");
    }
}
