use proptest::{
    prelude::{Just, any, prop, proptest},
    prop_assert, prop_assert_eq, prop_oneof,
    strategy::Strategy as _,
};

use super::{
    super::{
        Share,
        fixture::{NOW, plan, strategy, version},
    },
    *,
};

fn context(now: Millis) -> Context<'static> {
    Context {
        now,
        threshold_of: &|_, count| (count <= 50).then_some(1 << 60),
    }
}

fn proposed(number: u8) -> Event {
    Event::Proposed(version(number), strategy())
}

fn operator(operation: Operation) -> Event {
    let by = Some("ops".to_owned());
    Event::Operator(operation, Operator { by, reason: None })
}

/// Phase, 1-based step, stable version and candidate after an event; or `-` and `conflict`.
fn outcome(phase: Phase, event: &Event) -> String {
    match next(&plan(phase), event, &context(NOW)) {
        Ok(after) => shown(&after),
        Err(Unchanged::NoEffect) => "-".to_owned(),
        Err(Unchanged::Conflict(_)) => "conflict".to_owned(),
    }
}

fn shown(plan: &Plan) -> String {
    let text = |version: &Version| version.etag.clone();
    let candidate = plan.candidate.as_ref().map_or_else(|| "-".to_owned(), text);
    let (phase, step) = (plan.phase.label(), plan.step + 1);
    format!("{phase} {step} {} {candidate}", text(&plan.stable))
}

const PROGRESS: &str = "progressing 1 v1 v3";
const DONE: &str = "idle 1 v2 -";
const BACK: &str = "rolled_back 1 v1 v2";
const PAUSED: &str = "paused 1 v1 v2";
const NEXT: &str = "progressing 2 v1 v2";
const NO: &str = "-";
const CONFLICT: &str = "conflict";

/// The columns are those of the table in the documentation of [`next`].
#[test]
fn each_event_leads_to_the_phase_of_the_table() {
    let text = || "reason".to_owned();
    let (failed, offered, check, value) = (2, 3, text(), text());
    for (event, expected) in [
        (proposed(3), [PROGRESS, PROGRESS, PROGRESS, PROGRESS]),
        (
            proposed(1),
            [NO, "idle 1 v1 -", "idle 1 v1 -", "idle 1 v1 -"],
        ),
        (proposed(2), ["progressing 1 v1 v2", NO, NO, NO]),
        (
            proposed(0),
            ["idle 1 v0 -", "idle 1 v0 -", "idle 1 v0 -", "idle 1 v0 -"],
        ),
        (Event::StepComplete, [NO, NEXT, NO, NO]),
        (Event::DeadlineExceeded, [NO, PAUSED, NO, NO]),
        (
            Event::TooManyFailures { failed, offered },
            [NO, BACK, BACK, NO],
        ),
        (Event::CheckFailed { check, value }, [NO, BACK, BACK, NO]),
        (Event::CandidateDistrusted(text()), [NO, BACK, BACK, NO]),
        (Event::StableLost(text()), [NO, DONE, DONE, NO]),
        (Event::Withdrawn(text()), [NO, PAUSED, NO, NO]),
        (
            operator(Operation::Promote { full: false }),
            [CONFLICT, NEXT, NEXT, CONFLICT],
        ),
        (
            operator(Operation::Promote { full: true }),
            [CONFLICT, DONE, DONE, CONFLICT],
        ),
        (
            operator(Operation::Pause),
            [CONFLICT, PAUSED, CONFLICT, CONFLICT],
        ),
        (
            operator(Operation::Resume),
            [CONFLICT, CONFLICT, "progressing 1 v1 v2", CONFLICT],
        ),
        (operator(Operation::Abort), [CONFLICT, BACK, BACK, CONFLICT]),
        (
            operator(Operation::Retry),
            [CONFLICT, CONFLICT, CONFLICT, "progressing 1 v1 v2"],
        ),
    ] {
        let found = Phase::ALL.map(|phase| outcome(phase, &event));
        assert_eq!(found, expected, "{event:?}");
    }
}

#[test]
fn the_strategy_decides_what_a_halt_means() {
    let mut plan = plan(Phase::Progressing);
    plan.strategy.on_deadline = Halt::RollBack;
    plan.strategy.on_failure = Halt::Pause;
    plan.strategy.on_stable_lost = OnStableLost::Withdraw;
    let after = |event: &Event| next(&plan, event, &context(NOW)).map(|plan| shown(&plan));
    assert_eq!(after(&Event::DeadlineExceeded).unwrap(), BACK);
    let (check, value) = (String::new(), String::new());
    assert_eq!(after(&Event::CheckFailed { check, value }).unwrap(), PAUSED);
    assert_eq!(
        after(&Event::StableLost(String::new())),
        Err(Unchanged::NoEffect)
    );
}

#[test]
fn the_last_step_leads_to_the_end_and_a_superseded_version_is_listed() {
    let mut plan = plan(Phase::Progressing);
    for expected in [NEXT, "progressing 3 v1 v2", DONE] {
        plan = next(&plan, &Event::StepComplete, &context(NOW)).unwrap();
        assert_eq!(shown(&plan), expected);
    }
    let tags = |list: &[Version]| list.iter().map(|it| it.etag.clone()).collect::<Vec<_>>();
    assert_eq!(tags(&plan.superseded), ["v0", "v1"]);
    assert_eq!(tags(&plan.earlier), ["v0", "v1"]);
    assert_eq!(plan.epoch, 10);
    // An earlier version that is stable again is neither.
    let back = next(&plan, &proposed(1), &context(NOW)).unwrap();
    assert_eq!(shown(&back), "idle 1 v1 -");
    assert_eq!(tags(&back.superseded), ["v0", "v2"]);
    // Not twice within a minute: then it is staged.
    let again = next(&back, &proposed(2), &context(NOW + 59_999)).unwrap();
    assert_eq!(shown(&again), "progressing 1 v1 v2");
    let later = next(&back, &proposed(2), &context(NOW + 60_000)).unwrap();
    assert_eq!(shown(&later), "idle 1 v2 -");
    let staged = Strategy {
        rollback: Rollback::Staged,
        ..strategy()
    };
    let staged = Event::Proposed(version(2), staged);
    let staged = next(&back, &staged, &context(NOW + 60_000)).unwrap();
    assert_eq!(shown(&staged), "progressing 1 v1 v2");
}

#[test]
fn a_refused_version_needs_a_retry_and_a_new_generation_counts_anew() {
    let plan = plan(Phase::Progressing);
    let back = next(&plan, &operator(Operation::Abort), &context(NOW)).unwrap();
    assert!(back.is_refused(&version(2).manifest));
    assert_eq!(back.history.last().unwrap().by.as_deref(), Some("ops"));
    // Neither by the reference, nor after another version.
    let other = next(&back, &proposed(3), &context(NOW)).unwrap();
    assert_eq!(
        next(&other, &proposed(2), &context(NOW)),
        Err(Unchanged::NoEffect)
    );
    let again = next(&back, &operator(Operation::Retry), &context(NOW + 5)).unwrap();
    assert!(!again.is_refused(&version(2).manifest));
    assert_eq!(
        (again.generation, again.began),
        (back.generation + 1, NOW + 5)
    );
}

#[test]
fn an_operators_pause_outlasts_another_version_and_a_pause_by_a_deadline_does_not() {
    let plan = plan(Phase::Progressing);
    for (event, expected) in [
        (operator(Operation::Pause), "paused 1 v1 v3"),
        (Event::DeadlineExceeded, PROGRESS),
    ] {
        let paused = next(&plan, &event, &context(NOW)).unwrap();
        let after = next(&paused, &proposed(3), &context(NOW)).unwrap();
        assert_eq!(shown(&after), expected);
        assert_eq!(after.superseded.last().unwrap().etag, "v2");
    }
}

#[test]
fn a_step_reaches_a_share_or_a_number_of_clients() {
    let mut plan = plan(Phase::Idle);
    let tenth = Share::from_percent(10.0).unwrap().threshold();
    for (at_least, expected) in [(0, tenth), (7, tenth.max(1 << 60)), (51, u64::MAX)] {
        plan.strategy.steps[0].share = Share::from_percent(10.0).unwrap();
        plan.strategy.steps[0].at_least = at_least;
        let event = Event::Proposed(version(3), plan.strategy.clone());
        let after = next(&plan, &event, &context(NOW)).unwrap();
        assert_eq!(after.threshold, expected, "{at_least}");
    }
}

fn events() -> impl proptest::strategy::Strategy<Value = Event> {
    let text = || "reason".to_owned();
    prop_oneof![
        6 => (0..6_u8).prop_map(proposed),
        4 => Just(Event::StepComplete),
        1 => Just(Event::DeadlineExceeded),
        1 => Just(Event::TooManyFailures { failed: 1, offered: 1 }),
        1 => Just(Event::CheckFailed { check: text(), value: text() }),
        1 => Just(Event::CandidateDistrusted(text())),
        1 => Just(Event::StableLost(text())),
        1 => Just(Event::Withdrawn(text())),
        1 => any::<bool>().prop_map(|full| operator(Operation::Promote { full })),
        2 => prop_oneof![
            Just(Operation::Pause),
            Just(Operation::Resume),
            Just(Operation::Abort),
            Just(Operation::Retry),
        ]
        .prop_map(operator),
    ]
}

proptest! {
    /// Whatever happens: epochs and generations only grow, only a retry offers a refused version again, a plan
    /// names only versions that were proposed, and it can be stored.
    #[test]
    fn no_event_breaks_a_plan(events in prop::collection::vec((events(), 0..90_000_u64), 1..80)) {
        let mut plan = Plan::first(version(1), strategy(), NOW);
        plan.epoch = 1;
        let mut now = NOW;
        for (event, passed) in events {
            now += passed;
            let Ok(after) = next(&plan, &event, &context(now)) else {
                continue;
            };
            prop_assert_eq!(after.epoch, plan.epoch + 1);
            prop_assert!(after.generation >= plan.generation && after.began >= plan.began);
            let candidate = after.candidate.as_ref().map(|it| it.manifest.clone());
            if after.phase.is_live() {
                let candidate = candidate.clone().unwrap();
                prop_assert!(candidate != after.stable.manifest);
                prop_assert!(!after.is_refused(&candidate));
            } else {
                prop_assert_eq!(after.threshold, 0);
            }
            prop_assert_eq!(after.candidate.is_none(), after.phase == Phase::Idle);
            let is_retry = matches!(event, Event::Operator(Operation::Retry, _));
            let forgotten = plan.refused.iter().filter(|it| !after.refused.contains(it));
            prop_assert!(is_retry || forgotten.count() == 0);
            let of_plan = [Some(&after.stable), after.candidate.as_ref()];
            for listed in after.superseded.iter() {
                prop_assert!(!of_plan.contains(&Some(listed)), "{}", listed.etag);
            }
            prop_assert!(after.superseded.len() <= 16 && after.history.len() <= 20);
            let stored = Plan::from_bytes(after.epoch, &after.to_bytes()).unwrap();
            prop_assert_eq!(&stored, &after);
            plan = after;
        }
    }
}
