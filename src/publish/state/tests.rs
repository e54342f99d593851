//! The table cell by cell, and what holds for any sequence of outcomes.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*};

use super::{FailureClass::*, OnMissing::*, *};
use crate::publish::snapshot;

/// Two versions of a bundle, made as the pipeline makes them.
static VERSIONS: LazyLock<[Arc<Snapshot>; 2]> = LazyLock::new(|| [snapshot(1), snapshot(2)]);

fn failed(class: FailureClass) -> Outcome {
    let message = format!("because it is {}", class.label());
    Outcome::Failed(Failure {
        class,
        step: Step::Resolve,
        digest: None,
        below: Arc::default(),
        etag: None,
        reason: "test",
        message,
    })
}

/// Whether a client gets the same by both states: the very same snapshot, or the same reason.
pub(crate) fn same(one: &State, other: &State) -> bool {
    match (one, other) {
        (State::Pending, State::Pending) => true,
        (State::Serving(one), State::Serving(other)) => Arc::ptr_eq(one, other),
        (State::Withdrawn(one), State::Withdrawn(other)) => one == other,
        _ => false,
    }
}

#[test]
fn every_cell_of_the_table() {
    const P: &str = "pending";
    const S: &str = "serving";
    const W: &str = "withdrawn";
    let patience = RateLimited(Some(Duration::from_secs(9)));
    // What follows Pending, Serving, and Withdrawn.
    for (outcome, on_missing, labels) in [
        (Outcome::Unchanged, Keep, [P, S, W]),
        (failed(Transient), Keep, [P, S, W]),
        (failed(Transient), Withdraw, [P, S, W]),
        (failed(RateLimited(None)), Keep, [P, S, W]),
        (failed(patience), Withdraw, [P, S, W]),
        (failed(Denied), Keep, [P, S, W]),
        (failed(Denied), Withdraw, [P, S, W]),
        (failed(NotFound), Keep, [W, S, W]),
        (failed(NotFound), Withdraw, [W, W, W]),
        (failed(Evidence), Keep, [W, S, W]),
        (failed(Evidence), Withdraw, [W, S, W]),
        (failed(Revoked), Keep, [W, S, W]),
        (failed(Revoked), Withdraw, [W, S, W]),
        (failed(Defect), Keep, [W, S, W]),
        (failed(Defect), Withdraw, [W, S, W]),
        (failed(Distrusted), Keep, [W, W, W]),
        (failed(Distrusted), Withdraw, [W, W, W]),
    ] {
        let [first, _] = &*VERSIONS;
        let before = [
            State::Pending,
            State::Serving(Arc::clone(first)),
            State::Withdrawn("earlier".into()),
        ];
        for (before, label) in before.iter().zip(labels) {
            let after = next(before, &outcome, on_missing);
            assert_eq!(
                after.label(),
                label,
                "{before:?} after {outcome:?} ({on_missing:?})"
            );
            if after.label() == "serving" {
                assert!(same(before, &after), "another snapshot after {outcome:?}");
            }
        }
    }
}

#[test]
fn an_accepted_version_is_served_whatever_was_before() {
    let [first, second] = &*VERSIONS;
    for before in [
        State::Pending,
        State::Serving(Arc::clone(first)),
        State::Withdrawn("earlier".into()),
    ] {
        for on_missing in [Keep, Withdraw] {
            let after = next(&before, &Outcome::Accepted(Arc::clone(second)), on_missing);
            assert!(
                same(&after, &State::Serving(Arc::clone(second))),
                "{before:?}"
            );
        }
    }
}

#[test]
fn the_newest_reason_replaces_the_one_before() {
    let before = State::Withdrawn("earlier".into());
    for (class, reason) in [
        (Transient, "earlier"),
        (Denied, "earlier"),
        (Evidence, "because it is evidence"),
        (NotFound, "because it is not_found"),
        (Distrusted, "because it is distrusted"),
    ] {
        assert!(
            same(
                &next(&before, &failed(class), Keep),
                &State::Withdrawn(reason.into())
            ),
            "{class:?}"
        );
    }
}

/// Another replica may serve what this one has never seen, with every right.
#[test]
fn a_withdrawal_names_a_version_that_was_never_served_only_if_it_is_revoked() {
    let [first, _] = &*VERSIONS;
    let manifest = first.manifest_digest();
    let failed = |class| {
        let Outcome::Failed(failure) = failed(class) else {
            unreachable!()
        };
        Outcome::Failed(Failure {
            digest: Some(manifest.clone()),
            below: Arc::default(),
            etag: Some("\"e\"".into()),
            ..failure
        })
    };
    for class in [NotFound, Evidence, Defect] {
        assert_eq!(
            next(&State::Pending, &failed(class), Keep).withdrawn_version(),
            None,
            "{class:?}"
        );
    }
    for class in [Revoked, Distrusted] {
        let version = next(&State::Pending, &failed(class), Keep)
            .withdrawn_version()
            .unwrap();
        assert_eq!(
            (&version.manifest, version.etag.as_deref()),
            (manifest, Some("\"e\"")),
            "{class:?}"
        );
    }
    for (class, on_missing) in [(Distrusted, Keep), (NotFound, Withdraw)] {
        let served = State::Serving(Arc::clone(first));
        let withdrawn = next(&served, &failed(class), on_missing);
        assert_eq!(
            withdrawn.withdrawn_version().as_deref(),
            Some(&WithdrawnVersion::of(first)),
            "{class:?}"
        );
        // Whatever is wrong with what comes next.
        for class in [NotFound, Evidence, Revoked, Defect, Distrusted] {
            assert_eq!(
                next(&withdrawn, &failed(class), Keep).withdrawn_version(),
                withdrawn.withdrawn_version(),
                "{class:?}"
            );
        }
        assert_eq!(
            next(&withdrawn, &Outcome::Unchanged, Keep).withdrawn_version(),
            withdrawn.withdrawn_version()
        );
    }
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

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => (0..2_usize).prop_map(|version| Outcome::Accepted(Arc::clone(&VERSIONS[version]))),
        1 => Just(Outcome::Unchanged),
        6 => class().prop_map(failed),
    ]
}

fn on_missing() -> impl Strategy<Value = OnMissing> {
    prop_oneof![Just(Keep), Just(Withdraw)]
}

fn state() -> impl Strategy<Value = State> {
    (vec(outcome(), 0..8), on_missing())
        .prop_map(|(outcomes, on_missing)| after_all(&outcomes, on_missing))
}

fn after_all(outcomes: &[Outcome], on_missing: OnMissing) -> State {
    outcomes.iter().fold(State::Pending, |state, outcome| {
        next(&state, outcome, on_missing)
    })
}

/// Whether a bundle that is being served stops being served.
fn withdraws(outcome: &Outcome, on_missing: OnMissing) -> bool {
    let Outcome::Failed(failure) = outcome else {
        return false;
    };
    failure.class == Distrusted || (failure.class == NotFound && on_missing == Withdraw)
}

proptest! {
    #[test]
    fn only_acceptance_leads_to_serving(before in state(), outcome in outcome(), on_missing in on_missing()) {
        if let State::Serving(after) = next(&before, &outcome, on_missing) {
            let accepted = matches!(&outcome, Outcome::Accepted(accepted) if Arc::ptr_eq(accepted, &after));
            let stayed = before.snapshot().is_some_and(|before| Arc::ptr_eq(before, &after));
            prop_assert!(accepted || stayed);
        }
    }

    #[test]
    fn a_failure_that_says_nothing_about_the_served_bytes_never_withdraws_them(
        version in 0..2_usize,
        class in prop::sample::select(vec![Transient, RateLimited(None), Denied, Evidence, Revoked, Defect]),
        on_missing in on_missing(),
    ) {
        let before = State::Serving(Arc::clone(&VERSIONS[version]));
        prop_assert!(same(&before, &next(&before, &failed(class), on_missing)));
    }

    #[test]
    fn distrust_never_leaves_anything_served(before in state(), on_missing in on_missing()) {
        prop_assert!(matches!(next(&before, &failed(Distrusted), on_missing), State::Withdrawn(_)));
    }

    #[test]
    fn a_bundle_never_becomes_pending_again(before in state(), outcome in outcome(), on_missing in on_missing()) {
        let after = next(&before, &outcome, on_missing);
        prop_assert!(matches!(before, State::Pending) || !matches!(after, State::Pending));
    }

    #[test]
    fn the_last_accepted_version_is_served_unless_something_withdrew_it_since(
        outcomes in vec(outcome(), 0..30),
        on_missing in on_missing(),
    ) {
        let accepted = outcomes.iter().rposition(|outcome| matches!(outcome, Outcome::Accepted(_)));
        let served = accepted.and_then(|at| {
            let withdrawn = outcomes[at..].iter().any(|outcome| withdraws(outcome, on_missing));
            let Outcome::Accepted(snapshot) = &outcomes[at] else { return None };
            (!withdrawn).then_some(snapshot)
        });
        let state = after_all(&outcomes, on_missing);
        prop_assert_eq!(state.snapshot().map(Arc::as_ptr), served.map(Arc::as_ptr));
    }
}
