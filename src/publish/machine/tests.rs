//! The machine cell by cell, and what holds for any sequence of events.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*};

use super::{super::state::Step, FailureClass::*, OnMissing::*, *};
use crate::{
    publish::{same, snapshot},
    verify::{Authority, PublicKey, Requirements, TrustPolicy},
};

const MINUTE: Duration = Duration::from_secs(60);
const START: Timestamp = Timestamp::constant(1_700_000_000, 0);

/// Two versions, each verified twice by [`ACCEPTING`].
static VERSIONS: LazyLock<[[Arc<Snapshot>; 2]; 2]> =
    LazyLock::new(|| [[snapshot(1), snapshot(1)], [snapshot(2), snapshot(2)]]);
static ACCEPTING: LazyLock<TrustPolicy> = LazyLock::new(|| TrustPolicy::unsigned("test".into()));
/// Another policy, which has accepted nothing.
static OTHER: LazyLock<TrustPolicy> = LazyLock::new(|| {
    let key = PublicKey::from_pem(&rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
    TrustPolicy::signed(
        "test".into(),
        Requirements::any_of(vec![Authority::with_keys("key".into(), [key])]),
    )
    .unwrap()
});
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn version(number: usize) -> Arc<Snapshot> {
    Arc::clone(&VERSIONS[number - 1][0])
}

/// The same bytes by a later verification.
fn again(number: usize) -> Arc<Snapshot> {
    Arc::clone(&VERSIONS[number - 1][1])
}

fn failure(class: FailureClass, message: &str) -> Failure {
    let digest = Some(version(2).manifest_digest().clone());
    Failure {
        class,
        step: Step::Verify,
        digest,
        below: Arc::default(),
        etag: None,
        reason: "test",
        message: message.to_owned(),
    }
}

fn checked(outcome: Outcome) -> Event {
    Event::Checked { outcome, at: START }
}

fn failed(class: FailureClass) -> Event {
    checked(Outcome::Failed(failure(class, class.label())))
}

fn after(passed: Duration, policy: &TrustPolicy) -> Now<'_> {
    Now {
        instant: *BEGAN + passed,
        time: START + passed,
        policy: policy.revision(),
    }
}

/// The machine after these events, all at the start but for the end of `max_stale`.
fn machine(on_missing: OnMissing, events: &[Event]) -> StateMachine {
    let mut machine = StateMachine::new(on_missing, Some(MINUTE));
    for event in events {
        let passed = if matches!(event, Event::MaxStaleElapsed) {
            MINUTE
        } else {
            Duration::ZERO
        };
        machine.apply(event, &after(passed, &ACCEPTING)).unwrap();
    }
    machine
}

/// The events that lead to each state of the table.
fn states() -> [Vec<Event>; 7] {
    let serving = || checked(Outcome::Accepted(version(1)));
    let withdrawal = Withdrawal {
        reason: "earlier".into(),
        version: None,
        was_served: true,
    };
    [
        vec![],
        vec![Event::Restored {
            snapshot: version(1),
            confirmed: Some(START),
        }],
        vec![Event::NothingRestored {
            withdrawal: Some(withdrawal),
            was_served: true,
        }],
        vec![serving()],
        vec![checked(Outcome::Failed(failure(Evidence, "earlier")))],
        vec![
            serving(),
            Event::ReverificationFailed(failure(Distrusted, "earlier")),
        ],
        vec![serving(), Event::MaxStaleElapsed],
    ]
}

/// Events, how long after the start they come, and `on_missing`; what follows in each state.
///
/// `P`, `S1`, `W` is the published state, and in brackets the restored one. Then `!` waiters wake,
/// `~` the same bytes by another verification, `+` a version for the history, `c` and `x` the disk
/// confirms or removes, `d` a distrusted version, `k` a known defect.
fn table() -> Vec<Row> {
    [restores(), checks(), reverifications()]
        .into_iter()
        .flatten()
        .collect()
}

type Row = (Event, u64, OnMissing, [&'static str; 7]);

const STAY: [&str; 7] = ["P", "P(S1)", "P(W)", "S1", "W", "Wd", "W"];

fn restores() -> Vec<Row> {
    let restored = |number| Event::Restored {
        snapshot: version(number),
        confirmed: None,
    };
    let nothing = Event::NothingRestored {
        withdrawal: None,
        was_served: false,
    };
    vec![
        (
            restored(2),
            1,
            Keep,
            ["P(S2)+c", "P(S1)", "P(W)", "S1", "W", "Wd", "W"],
        ),
        (
            Event::RestoreFailed(failure(Distrusted, "restored")),
            1,
            Keep,
            ["W!", "P(S1)", "P(W)", "S1", "W", "Wd", "W"],
        ),
        (nothing, 1, Keep, STAY),
        (
            Event::FirstWaitElapsed,
            1,
            Keep,
            ["P", "S1!", "W!", "S1", "W", "Wd", "W"],
        ),
    ]
}

fn checks() -> Vec<Row> {
    let transient = ["P", "S1!", "W!", "S1", "W", "Wd", "W"];
    let refused = ["W!", "S1!", "W!", "S1", "W!", "W!d", "W!"];
    vec![
        (checked(Outcome::Accepted(version(2))), 1, Keep, ["S2!+"; 7]),
        (
            checked(Outcome::Accepted(again(1))),
            1,
            Keep,
            ["S1!+", "S1!+", "S1!+", "S1~+", "S1!+", "S1!+", "S1!+"],
        ),
        (
            checked(Outcome::Unchanged),
            1,
            Keep,
            ["P", "S1!", "W!", "S1", "W", "Wd", "W"],
        ),
        (
            checked(Outcome::Unchanged),
            10,
            Keep,
            ["P", "S1!c", "W!", "S1c", "W", "Wd", "W"],
        ),
        (failed(Transient), 1, Keep, transient),
        (failed(Transient), 1, Withdraw, transient),
        (failed(RateLimited(None)), 1, Keep, transient),
        (failed(RateLimited(Some(MINUTE))), 1, Withdraw, transient),
        (failed(Denied), 1, Keep, transient),
        (failed(Denied), 1, Withdraw, transient),
        (
            failed(NotFound),
            1,
            Keep,
            ["W!", "S1!", "W!", "S1", "W!", "W!", "W!"],
        ),
        (
            failed(NotFound),
            1,
            Withdraw,
            ["W!", "W!x", "W!", "W!x", "W!", "W!", "W!"],
        ),
        (failed(Evidence), 1, Keep, refused),
        (failed(Evidence), 1, Withdraw, refused),
        (failed(Revoked), 1, Keep, refused),
        (failed(Revoked), 1, Withdraw, refused),
        (
            failed(Defect),
            1,
            Keep,
            ["W!k", "S1!k", "W!k", "S1k", "W!k", "W!dk", "W!k"],
        ),
        (
            failed(Distrusted),
            1,
            Keep,
            ["W!", "W!x", "W!", "W!x", "W!", "W!d", "W!"],
        ),
    ]
}

fn reverifications() -> Vec<Row> {
    vec![
        (Event::MaxStaleElapsed, 1, Keep, STAY),
        (
            Event::MaxStaleElapsed,
            60,
            Keep,
            ["P", "P(W)", "P(W)", "W!", "W", "W", "W"],
        ),
        (Event::ReverificationDue, 1, Keep, STAY),
        (
            Event::Reverified(again(1)),
            1,
            Keep,
            ["P", "P(S1)c", "P(W)", "S1~c", "W", "Wd", "W"],
        ),
        (Event::Reverified(version(2)), 1, Keep, STAY),
        (
            Event::ReverificationFailed(failure(Evidence, "no signature")),
            1,
            Keep,
            ["P", "W!xd", "P(W)", "W!xd", "W", "Wd", "W"],
        ),
        (
            Event::TrustRestored(again(1)),
            1,
            Keep,
            ["P", "P(S1)", "P(W)", "S1", "W", "S1!+", "W"],
        ),
        (Event::TrustRestored(version(2)), 1, Keep, STAY),
    ]
}

fn name(state: &State) -> String {
    match state {
        State::Pending => "P".to_owned(),
        State::Withdrawn(_) => "W".to_owned(),
        State::Serving(snapshot) => {
            let number = if is_same_version(snapshot, &version(1)) {
                1
            } else {
                2
            };
            format!("S{number}")
        }
    }
}

fn cell(machine: &StateMachine, effects: &Effects) -> String {
    let restored = machine
        .restored
        .as_ref()
        .map(|restored| format!("({})", name(restored)))
        .unwrap_or_default();
    let mut cell = name(machine.published()) + &restored;
    cell.push_str(match effects.change {
        Change::None => "",
        Change::SameBytes => "~",
        Change::Visible => "!",
    });
    cell.push_str(if effects.served.is_some() { "+" } else { "" });
    cell.push_str(match effects.persist {
        None => "",
        Some(Persist::Confirm { .. }) => "c",
        Some(Persist::Remove) => "x",
    });
    cell.push_str(if machine.distrusted().is_some() {
        "d"
    } else {
        ""
    });
    cell.push_str(if machine.known_defect().is_some() {
        "k"
    } else {
        ""
    });
    cell
}

#[test]
fn every_event_in_every_state() {
    for (event, seconds, on_missing, expected) in table() {
        let now = after(Duration::from_secs(seconds), &ACCEPTING);
        let cells = states().map(|before| {
            let mut machine = machine(on_missing, &before);
            let effects = machine.apply(&event, &now).unwrap();
            cell(&machine, &effects)
        });
        assert_eq!(cells, expected, "{event:?} ({on_missing:?})");
    }
}

/// Under a policy that has accepted nothing, an event is refused exactly where it would publish a
/// version or leave one published; withdrawing never is.
#[test]
fn no_event_publishes_a_version_of_an_outdated_policy_in_any_state() {
    let mut refused = 0;
    for (event, seconds, on_missing, _) in table() {
        for before in states() {
            let passed = Duration::from_secs(seconds);
            let (mut current, mut outdated) =
                (machine(on_missing, &before), machine(on_missing, &before));
            let unchanged = format!("{outdated:?}");
            current.apply(&event, &after(passed, &ACCEPTING)).unwrap();
            match outdated.apply(&event, &after(passed, &OTHER)) {
                Err(Outdated) => {
                    refused += 1;
                    assert!(
                        current.published().snapshot().is_some(),
                        "{event:?} after {before:?}"
                    );
                    assert_eq!(
                        format!("{outdated:?}"),
                        unchanged,
                        "{event:?} after {before:?}"
                    );
                }
                Ok(effects) if effects.change == Change::None => {}
                Ok(_) => assert!(
                    outdated.published().snapshot().is_none(),
                    "{event:?} after {before:?}"
                ),
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[test]
fn only_the_policy_that_accepted_a_version_admits_it() {
    let serving = State::Serving(version(1));
    assert_eq!(admit(&serving, &after(Duration::ZERO, &ACCEPTING)), Ok(()));
    assert_eq!(
        admit(&serving, &after(Duration::ZERO, &OTHER)),
        Err(Outdated)
    );
    for state in [State::Pending, State::Withdrawn("refused".into())] {
        assert_eq!(admit(&state, &after(Duration::ZERO, &OTHER)), Ok(()));
    }
    let renamed = TrustPolicy::unsigned("another name".into());
    assert_eq!(
        admit(&serving, &after(Duration::ZERO, &renamed)),
        Ok(()),
        "the name of a policy says nothing"
    );
}

#[test]
fn a_restored_version_has_the_rest_of_max_stale() {
    for (confirmed, seconds) in [
        (Some(START), 60),
        (Some(START - MINUTE / 2), 30),
        (Some(START + MINUTE), 60),
        (None, 60),
    ] {
        let machine = machine(
            Keep,
            &[Event::Restored {
                snapshot: version(1),
                confirmed,
            }],
        );
        assert_eq!(
            machine.stale_at(),
            Some(*BEGAN + Duration::from_secs(seconds)),
            "{confirmed:?}"
        );
        assert!(
            machine
                .last_confirmed()
                .is_some_and(|confirmed| confirmed <= START),
            "{confirmed:?}"
        );
    }
    let machine = machine(
        Keep,
        &[Event::Restored {
            snapshot: version(1),
            confirmed: Some(START - MINUTE),
        }],
    );
    assert_eq!(
        (machine.stale_at(), machine.current().is_none()),
        (None, true),
        "max_stale was over"
    );
    let mut unlimited = StateMachine::new(Keep, None);
    let restored = Event::Restored {
        snapshot: version(1),
        confirmed: Some(START),
    };
    let effects = unlimited
        .apply(&restored, &after(Duration::ZERO, &ACCEPTING))
        .unwrap();
    assert!(
        matches!(
            effects.persist,
            Some(Persist::Confirm {
                confirmed: None,
                ..
            })
        ),
        "the time is not kept up"
    );
    assert_eq!(
        (unlimited.stale_at(), unlimited.last_confirmed()),
        (None, None)
    );
}

#[test]
fn max_stale_does_not_end_while_suspended_and_starts_again_after_it() {
    let long_ago = Event::Restored {
        snapshot: version(1),
        confirmed: Some(START - MINUTE * 10),
    };
    for before in [&[][..], &[checked(Outcome::Accepted(version(1)))]] {
        let mut machine = machine(Keep, before);
        let mut apply = |event: &Event, passed: Duration| {
            machine.apply(event, &after(passed, &ACCEPTING)).unwrap();
            (machine.current().is_some(), machine.stale_at())
        };
        apply(&Event::Suspended, Duration::ZERO);
        // Ignored where a version is served already.
        apply(&long_ago, Duration::ZERO);
        apply(&Event::FirstWaitElapsed, Duration::ZERO);
        assert_eq!(apply(&Event::MaxStaleElapsed, MINUTE * 5), (true, None));
        assert_eq!(
            apply(&Event::Resumed, MINUTE * 5),
            (true, Some(*BEGAN + MINUTE * 6))
        );
        let stays = (true, Some(*BEGAN + MINUTE * 6));
        assert_eq!(apply(&Event::MaxStaleElapsed, MINUTE * 5), stays);
        assert_eq!(apply(&Event::MaxStaleElapsed, MINUTE * 6), (false, None));
    }
}

#[test]
fn a_defect_is_known_until_a_version_is_accepted_or_the_policy_changes() {
    for event in [
        checked(Outcome::Accepted(version(1))),
        checked(Outcome::Unchanged),
        Event::ReverificationDue,
    ] {
        let machine = machine(Keep, &[failed(Defect), failed(Transient), event.clone()]);
        assert!(machine.known_defect().is_none(), "{event:?}");
    }
    assert!(
        machine(Keep, &[failed(Defect), failed(Transient), failed(NotFound)])
            .known_defect()
            .is_some()
    );
}

fn class() -> impl Strategy<Value = FailureClass> {
    let classes = [
        Transient,
        RateLimited(None),
        NotFound,
        Denied,
        Evidence,
        Revoked,
        Defect,
        Distrusted,
    ];
    prop::sample::select(classes.to_vec())
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        4 => (-120_i64..120).prop_map(|seconds| START + jiff::SignedDuration::from_secs(seconds)),
        1 => prop::sample::select(vec![Timestamp::MIN, Timestamp::MAX]),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let version = || {
        (1..3_usize, any::<bool>())
            .prop_map(|(number, late)| if late { again(number) } else { version(number) })
    };
    let failure = || class().prop_map(|class| failure(class, class.label()));
    let withdrawal = any::<bool>().prop_map(|known| known.then(|| "earlier".into()));
    prop_oneof![
        2 => (version(), prop::option::of(time()))
            .prop_map(|(snapshot, confirmed)| Event::Restored { snapshot, confirmed }),
        1 => failure().prop_map(Event::RestoreFailed),
        1 => (withdrawal, any::<bool>())
            .prop_map(|(withdrawal, was_served)| Event::NothingRestored { withdrawal, was_served }),
        2 => Just(Event::FirstWaitElapsed),
        4 => (version(), time()).prop_map(|(version, at)| Event::Checked { outcome: Outcome::Accepted(version), at }),
        3 => time().prop_map(|at| Event::Checked { outcome: Outcome::Unchanged, at }),
        4 => (failure(), time()).prop_map(|(failure, at)| Event::Checked { outcome: Outcome::Failed(failure), at }),
        3 => Just(Event::MaxStaleElapsed),
        1 => Just(Event::ReverificationDue),
        1 => Just(Event::Suspended),
        1 => Just(Event::Resumed),
        3 => version().prop_map(Event::Reverified),
        2 => failure().prop_map(Event::ReverificationFailed),
        2 => version().prop_map(Event::TrustRestored),
    ]
}

fn max_stale() -> impl Strategy<Value = Option<Duration>> {
    prop::sample::select(vec![
        None,
        Some(Duration::ZERO),
        Some(MINUTE),
        Some(Duration::MAX),
    ])
}

/// Events, each with the seconds that pass before it and whether the policy is another one.
fn steps() -> impl Strategy<Value = Vec<(Event, u64, bool)>> {
    vec((event(), 0..40_u64, prop::bool::weighted(0.2)), 0..40)
}

/// Whether an event may end that something is served.
fn withdraws(machine: &StateMachine, event: &Event, now: &Now<'_>) -> bool {
    match event {
        Event::ReverificationFailed(_) => true,
        Event::MaxStaleElapsed => machine
            .stale_at()
            .is_some_and(|stale_at| stale_at <= now.instant),
        Event::Checked {
            outcome: Outcome::Failed(failure),
            ..
        } => {
            failure.class == Distrusted
                || (failure.class == NotFound && machine.on_missing == Withdraw)
        }
        _ => false,
    }
}

proptest! {
    #[test]
    fn any_sequence_of_events_keeps_the_promises(
        steps in steps(),
        max_stale in max_stale(),
        on_missing in prop::sample::select(vec![Keep, Withdraw]),
    ) {
        let mut machine = StateMachine::new(on_missing, max_stale);
        let mut passed = Duration::ZERO;
        for (event, seconds, is_outdated) in steps {
            passed += Duration::from_secs(seconds);
            let now = after(passed, if is_outdated { &OTHER } else { &ACCEPTING });
            let (before, written) = (machine.published().clone(), format!("{machine:?}"));
            let may_withdraw = withdraws(&machine, &event, &now);
            let Ok(effects) = machine.apply(&event, &now) else {
                prop_assert_eq!(format!("{:?}", machine), written, "a refused event has changed something");
                continue;
            };
            let published = machine.published();
            if before.snapshot().is_some() && published.snapshot().is_none() {
                prop_assert!(may_withdraw, "{:?} has withdrawn a version", event);
            }
            if let (Some(snapshot), true) = (published.snapshot(), effects.change != Change::None) {
                prop_assert_eq!(snapshot.manifest().revision(), now.policy);
            }
            if let (Some(one), Some(other)) = (before.snapshot(), published.snapshot()) {
                prop_assert_eq!(effects.change == Change::Visible, one.etag() != other.etag());
            }
            prop_assert_eq!(effects.change == Change::None, same(&before, published));
            prop_assert!(machine.restored.is_none() || matches!(published, State::Pending));
            prop_assert!(matches!(before, State::Pending) || !matches!(published, State::Pending));
            prop_assert!(machine.distrusted().is_none() || machine.current().is_none());
        }
    }
}
