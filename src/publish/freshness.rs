//! `max_stale` across restarts: how much of it is left, by the time of the last successful check on
//! disk.

use jiff::Timestamp;
use tokio::time::Duration;

/// How many times within `max_stale` the time of a check is written. A restart may find `max_stale`
/// shorter by one such part.
const WRITES_PER_MAX_STALE: u32 = 8;

/// The recorded time, unless it lies in the future: otherwise a clock that was set back would keep
/// a bundle served without end. Without a recorded time, `max_stale` starts now as well.
pub(super) fn believable(confirmed: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    confirmed.filter(|confirmed| *confirmed <= now)
}

/// The rest of `max_stale`; never more than all of it.
pub(super) fn left(max_stale: Duration, confirmed: Option<Timestamp>, now: Timestamp) -> Duration {
    age(confirmed, now).map_or(max_stale, |age| max_stale.saturating_sub(age))
}

/// Whether the time of a successful check should be written again.
pub(super) fn is_due(max_stale: Duration, confirmed: Option<Timestamp>, now: Timestamp) -> bool {
    age(confirmed, now).is_none_or(|age| age > max_stale / WRITES_PER_MAX_STALE)
}

fn age(confirmed: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    Duration::try_from(now.duration_since(believable(confirmed, now)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);
    const DAY: Duration = Duration::from_secs(86_400);

    fn ago(seconds: i64) -> Option<Timestamp> {
        Timestamp::from_second(NOW.as_second() - seconds).ok()
    }

    #[test]
    fn a_restart_finds_the_rest_of_max_stale() {
        for (age, seconds) in [
            (0, 86_400),
            (1, 86_399),
            (86_399, 1),
            (86_400, 0),
            (86_401, 0),
            (1_700_000_000, 0),
        ] {
            assert_eq!(
                left(DAY, ago(age), NOW),
                Duration::from_secs(seconds),
                "{age} s ago"
            );
        }
        assert_eq!(left(DAY, Some(Timestamp::MIN), NOW), Duration::ZERO);
    }

    #[test]
    fn a_time_that_is_missing_or_in_the_future_gives_max_stale_and_no_more() {
        for confirmed in [None, ago(-1), ago(-31_536_000), Some(Timestamp::MAX)] {
            assert_eq!(believable(confirmed, NOW), None);
            assert_eq!(left(DAY, confirmed, NOW), DAY, "{confirmed:?}");
            assert!(
                is_due(DAY, confirmed, NOW),
                "{confirmed:?} stays, and is worth as much at each restart"
            );
        }
        assert_eq!(believable(ago(0), NOW), ago(0));
    }

    #[test]
    fn checks_are_recorded_eight_times_in_max_stale_and_not_more_often() {
        for (age, due) in [
            (0, false),
            (10_799, false),
            (10_800, false),
            (10_801, true),
            (86_400, true),
        ] {
            assert_eq!(is_due(DAY, ago(age), NOW), due, "{age} s ago");
        }
    }
}
