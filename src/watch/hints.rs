//! Requests for a check before the next poll: by operators, and by hints that something was pushed.
//!
//! A hint costs a request to the registry, and anyone who may push can cause hints. Therefore push
//! hints lead to one check a second at most, and so do hints about evidence, which count only while
//! the bundle lacks evidence.

use tokio::time::{Duration, Instant};

use super::trigger::{Cause, Trigger};
use crate::publish::{CheckEnd, FailureClass, Wanted};

/// The minimum time between two checks that hints of one kind cause.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The time from the first hint to its check, whatever hints follow. Distribution sends its
/// notification before it writes the tag, and a push causes several notifications.
const SETTLE_TIME: Duration = Duration::from_millis(60);
/// The time from a check that found nothing new after a push hint to one more check: some
/// registries notify before all of their servers know the new tag.
const FOLLOW_UP: Duration = MIN_INTERVAL;

/// How far the hints of one bundle have been followed.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// When the last check that a push hint caused began.
    push_check: Option<Instant>,
    /// When the last check that a hint about evidence caused began.
    evidence_check: Option<Instant>,
    /// The last push hint that a check has followed.
    followed: Option<Instant>,
    /// The further check that follows, and the hint.
    follow_up: Option<(Instant, Instant)>,
    /// When the first push hint since the last check has settled.
    push_due: Option<Instant>,
    /// The same of hints about evidence.
    evidence_due: Option<Instant>,
}

/// A check before the next poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EarlyCheck {
    /// When it is due.
    pub(super) at: Instant,
    /// When it was asked for.
    since: Instant,
    reason: Reason,
}

impl EarlyCheck {
    pub(super) fn cause(&self) -> Cause {
        let trigger = match self.reason {
            Reason::Operator => Trigger::Refresh,
            Reason::Push | Reason::Evidence | Reason::FollowUp => Trigger::Notification,
        };
        Cause::since(trigger, self.since)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Operator,
    Push,
    Evidence,
    FollowUp,
}

impl Hints {
    /// The next check that the requests ask for, after the check that began at `began`. `failure`
    /// is the last failure, if no success has followed.
    pub(super) fn next(
        &mut self,
        wanted: &Wanted,
        began: Instant,
        failure: Option<FailureClass>,
    ) -> Option<EarlyCheck> {
        let operator = wanted.operator.filter(|asked| *asked > began);
        let evidence = wanted
            .evidence
            .filter(|_| failure.is_some_and(FailureClass::is_about_evidence));
        let push = settled(wanted.push, &mut self.push_due, began, self.push_check);
        let evidence = settled(evidence, &mut self.evidence_due, began, self.evidence_check);
        let check = |reason| move |(at, since)| EarlyCheck { at, since, reason };
        [
            operator
                .map(|asked| (asked, asked))
                .map(check(Reason::Operator)),
            push.map(check(Reason::Push)),
            evidence.map(check(Reason::Evidence)),
            self.follow_up.map(check(Reason::FollowUp)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|check| check.at)
    }

    /// Records that an early check begins.
    pub(super) fn begin(&mut self, check: EarlyCheck) {
        let now = Some(Instant::now());
        match check.reason {
            Reason::Push | Reason::FollowUp => self.push_check = now,
            Reason::Evidence => self.evidence_check = now,
            Reason::Operator => {}
        }
    }

    /// Records how a check has ended that began at `began`, for whatever reason.
    pub(super) fn end(&mut self, wanted: &Wanted, began: Instant, end: CheckEnd) {
        let followed = wanted.push.filter(|hint| *hint + SETTLE_TIME <= began);
        let is_first = followed > self.followed;
        self.followed = followed.max(self.followed);
        (self.push_due, self.evidence_due) = (None, None);
        self.follow_up = followed
            .filter(|_| is_first && end == CheckEnd::Unchanged)
            .map(|hint| (began + FOLLOW_UP, hint));
    }
}

/// When a check that follows a hint is due, if none has followed it since: once the first such hint
/// has settled (`due`), and not before the interval since the `last` check of its kind has passed.
/// Returns the time of that hint as well.
fn settled(
    hint: Option<Instant>,
    due: &mut Option<Instant>,
    began: Instant,
    last: Option<Instant>,
) -> Option<(Instant, Instant)> {
    let at = hint
        .map(|hint| hint + SETTLE_TIME)
        .filter(|at| *at > began)?;
    let first = *due.get_or_insert(at);
    let at = last.map_or(first, |last| first.max(last + MIN_INTERVAL));
    Some((at, first - SETTLE_TIME))
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LACKING: Option<FailureClass> = Some(FailureClass::Evidence);

    fn wanted(push: Option<Instant>, evidence: Option<Instant>) -> Wanted {
        Wanted {
            push,
            evidence,
            ..Wanted::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_is_looked_at_soon_and_further_ones_once_a_second() {
        let (mut hints, mut checks, mut causes) = (Hints::default(), Vec::new(), Vec::new());
        let start = Instant::now();
        let mut began = start;
        let step = Duration::from_millis(10);
        // A hint every 10 ms for three seconds.
        for _ in 0..300 {
            advance(step).await;
            let now = Instant::now();
            let wanted = wanted(Some(now), None);
            let check = hints.next(&wanted, began, None).unwrap();
            if check.at <= now {
                causes.push(check.cause());
                hints.begin(check);
                began = now;
                hints.end(&wanted, began, CheckEnd::Changed);
                checks.push(began);
            }
        }
        // Hints that follow do not postpone the first check.
        assert_eq!(checks[0], start + step + SETTLE_TIME);
        assert_eq!(causes[0], Cause::since(Trigger::Notification, start + step));
        let intervals: Vec<_> = checks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(intervals, [MIN_INTERVAL; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_finds_nothing_new_is_repeated_once() {
        let (mut hints, hint) = (Hints::default(), Instant::now());
        let wanted = wanted(Some(hint), None);
        let first = hints.next(&wanted, hint, None).unwrap();
        assert_eq!(first.at, hint + SETTLE_TIME);
        for (end, repeated) in [(CheckEnd::Unchanged, true), (CheckEnd::Changed, false)] {
            let mut hints = Hints::default();
            hints.begin(first);
            hints.end(&wanted, first.at, end);
            let again = hints.next(&wanted, first.at, None);
            assert_eq!(again.is_some(), repeated, "{end:?}");
        }
        hints.begin(first);
        hints.end(&wanted, first.at, CheckEnd::Unchanged);
        let again = hints.next(&wanted, first.at, None).unwrap();
        assert_eq!(again.at, first.at + FOLLOW_UP);
        assert_eq!(again.cause(), Cause::since(Trigger::Notification, hint));
        hints.end(&wanted, again.at, CheckEnd::Unchanged);
        assert_eq!(hints.next(&wanted, again.at, None), None);
    }

    /// A poll that begins within the settle time may come before the registry has written the tag.
    #[tokio::test(start_paused = true)]
    async fn a_check_within_the_settle_time_does_not_count() {
        let (mut hints, hint) = (Hints::default(), Instant::now());
        let wanted = wanted(Some(hint), None);
        let poll = hint + SETTLE_TIME / 2;
        hints.end(&wanted, poll, CheckEnd::Unchanged);
        assert_eq!(
            hints.next(&wanted, poll, None).unwrap().at,
            hint + SETTLE_TIME
        );
        assert_eq!(hints.next(&wanted, hint + SETTLE_TIME, None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn evidence_matters_to_a_bundle_that_lacks_it_and_is_not_delayed_by_the_push() {
        let (mut hints, push) = (Hints::default(), Instant::now());
        let check = hints.next(&wanted(Some(push), None), push, None).unwrap();
        hints.begin(check);
        advance(Duration::from_millis(100)).await;
        let (began, evidence) = (check.at, Instant::now());
        let both = wanted(Some(push), Some(evidence));
        hints.end(&both, began, CheckEnd::Failed);
        for failure in [
            None,
            Some(FailureClass::Defect),
            Some(FailureClass::NotFound),
        ] {
            assert_eq!(hints.next(&both, began, failure), None, "{failure:?}");
        }
        let next = hints.next(&both, began, LACKING).unwrap();
        assert_eq!(next.at, evidence + SETTLE_TIME);
        hints.begin(next);
        let later = wanted(Some(push), Some(next.at));
        let next = hints.next(&later, next.at, LACKING).unwrap();
        assert_eq!(next.at, Instant::now() + MIN_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_waits_for_nothing() {
        let (mut hints, began) = (Hints::default(), Instant::now());
        advance(Duration::from_millis(1)).await;
        let asked = Instant::now();
        let wanted = Wanted {
            push: Some(asked),
            operator: Some(asked),
            ..Wanted::default()
        };
        let check = hints.next(&wanted, began, None).unwrap();
        assert_eq!(check.at, asked);
        assert_eq!(check.cause(), Cause::since(Trigger::Refresh, asked));
        hints.begin(check);
        // The push is still due, because its settle time had not passed.
        let push = hints.next(&wanted, asked, None).unwrap();
        assert_eq!(push.at, asked + SETTLE_TIME);
    }
}
