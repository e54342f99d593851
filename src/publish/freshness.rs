//! `max_stale` across restarts: what a note on disk of the last successful check is worth.

use jiff::Timestamp;
use tokio::time::Duration;

/// Not each check is worth a write; a restart may find `max_stale` shorter by this share.
const NOTES_PER_MAX_STALE: u32 = 8;

/// The note, unless it lies in the future: a clock that was set back must not make a bundle
/// immortal. Nothing was promised for what has no note, so its time starts now as well.
pub(super) fn believable(noted: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    noted.filter(|noted| *noted <= now)
}

/// What is left of `max_stale`; never more than all of it.
pub(super) fn left(max_stale: Duration, noted: Option<Timestamp>, now: Timestamp) -> Duration {
    age(noted, now).map_or(max_stale, |age| max_stale.saturating_sub(age))
}

/// Whether a successful check should be noted again.
pub(super) fn is_due(max_stale: Duration, noted: Option<Timestamp>, now: Timestamp) -> bool {
    age(noted, now).is_none_or(|age| age > max_stale / NOTES_PER_MAX_STALE)
}

fn age(noted: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    Duration::try_from(now.duration_since(believable(noted, now)?)).ok()
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
    fn a_restart_finds_what_is_left_of_max_stale() {
        for (age, seconds) in [(0, 86_400), (1, 86_399), (86_399, 1), (86_400, 0), (86_401, 0), (1_700_000_000, 0)] {
            assert_eq!(left(DAY, ago(age), NOW), Duration::from_secs(seconds), "{age} s ago");
        }
        assert_eq!(left(DAY, Some(Timestamp::MIN), NOW), Duration::ZERO);
    }

    #[test]
    fn a_note_that_is_missing_or_of_the_future_is_worth_max_stale_and_no_more() {
        for noted in [None, ago(-1), ago(-31_536_000), Some(Timestamp::MAX)] {
            assert_eq!(believable(noted, NOW), None);
            assert_eq!(left(DAY, noted, NOW), DAY, "{noted:?}");
            assert!(is_due(DAY, noted, NOW), "{noted:?} stays, and is worth as much at each restart");
        }
        assert_eq!(believable(ago(0), NOW), ago(0));
    }

    #[test]
    fn checks_are_noted_eight_times_in_max_stale_and_not_more_often() {
        for (age, due) in [(0, false), (10_799, false), (10_800, false), (10_801, true), (86_400, true)] {
            assert_eq!(is_due(DAY, ago(age), NOW), due, "{age} s ago");
        }
    }
}
