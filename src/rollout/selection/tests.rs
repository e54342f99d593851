use super::{
    super::fixture::{plan, version},
    Availability::{Pending, Served, Withdrawn},
    Decision::{Absent, Confirm, Keep, Replace, Serve},
    EngineState::{Down, DownForLong, Up},
    Variant::{Candidate, Stable},
    *,
};

fn tag(number: u8) -> Option<TagHash> {
    Some(version(number).tag())
}

/// A client that is not in the step, while the plan was read before its request.
const SITUATION: Situation = Situation {
    stable: Served,
    candidate: Served,
    runs: None,
    is_in_step: false,
    is_halted: false,
    is_fresh: false,
    engine: Up,
};

fn decide(phase: Phase, change: impl FnOnce(&mut Situation)) -> Decision {
    let mut situation = SITUATION;
    change(&mut situation);
    ActivePlan::new(plan(phase)).decide(&situation)
}

#[test]
fn a_client_gets_the_variant_of_the_plan() {
    for (phase, runs, is_in_step, expected) in [
        (Phase::Idle, None, true, Stable),
        (Phase::Idle, tag(1), true, Stable),
        (Phase::Progressing, None, false, Stable),
        (Phase::Progressing, None, true, Candidate),
        (Phase::Progressing, tag(1), false, Stable),
        (Phase::Progressing, tag(2), false, Candidate),
        (Phase::Progressing, tag(2), true, Candidate),
        (Phase::Paused, tag(2), false, Candidate),
        (Phase::Paused, None, true, Candidate),
        (Phase::RolledBack, None, true, Stable),
    ] {
        let decision = decide(phase, |it| (it.runs, it.is_in_step) = (runs, is_in_step));
        assert_eq!(decision, Serve(expected), "{phase:?} {runs:?} {is_in_step}");
    }
}

/// R2: only a plan that was read after the request contradicts a client.
#[test]
fn a_client_is_moved_only_by_a_fresh_plan() {
    for (phase, runs, is_in_step, to) in [
        (Phase::Progressing, tag(1), true, Candidate),
        (Phase::RolledBack, tag(2), false, Stable),
        (Phase::Idle, tag(9), false, Stable),
        (Phase::Progressing, tag(9), true, Candidate),
    ] {
        let set = |it: &mut Situation| (it.runs, it.is_in_step) = (runs, is_in_step);
        assert_eq!(decide(phase, set), Confirm(to));
        let fresh = decide(phase, |it| {
            set(it);
            it.is_fresh = true;
        });
        assert_eq!(fresh, Serve(to), "{phase:?} {runs:?}");
    }
}

/// R3: without the engine, a client that runs stable or the candidate stays. One that runs a version which gave
/// way does not, and one with an unknown version only after the grace: it gets the stable one, because the
/// candidate may be rolled back elsewhere.
#[test]
fn without_the_engine_no_client_is_moved_between_the_versions() {
    for (phase, runs, is_in_step, down, for_long) in [
        (Phase::Progressing, tag(1), true, Keep, Keep),
        (Phase::Idle, tag(9), false, Keep, Serve(Stable)),
        (Phase::Progressing, tag(9), true, Keep, Serve(Stable)),
        (
            Phase::Progressing,
            tag(0),
            true,
            Serve(Stable),
            Serve(Stable),
        ),
        (Phase::Idle, tag(0), false, Serve(Stable), Serve(Stable)),
        (
            Phase::RolledBack,
            tag(2),
            false,
            Serve(Stable),
            Serve(Stable),
        ),
        (
            Phase::Progressing,
            None,
            true,
            Serve(Candidate),
            Serve(Candidate),
        ),
        (
            Phase::Progressing,
            tag(2),
            false,
            Serve(Candidate),
            Serve(Candidate),
        ),
    ] {
        for (engine, expected) in [(Down, down), (DownForLong, for_long)] {
            let decision = decide(phase, |it| {
                (it.runs, it.is_in_step, it.engine) = (runs, is_in_step, engine);
            });
            assert_eq!(decision, expected, "{phase:?} {runs:?} {engine:?}");
        }
    }
}

/// R1: trust needs neither plan nor engine.
#[test]
fn a_version_that_is_withdrawn_here_is_replaced_at_once() {
    use Phase::{Idle, Paused, Progressing, RolledBack};
    for (phase, stable, candidate, runs, expected) in [
        (Progressing, Served, Withdrawn, tag(2), Replace(Stable)),
        (Progressing, Served, Withdrawn, None, Serve(Stable)),
        (Progressing, Served, Withdrawn, tag(1), Serve(Stable)),
        (Paused, Withdrawn, Served, tag(1), Replace(Candidate)),
        (Paused, Withdrawn, Served, None, Serve(Candidate)),
        (Paused, Withdrawn, Served, tag(2), Serve(Candidate)),
        // A version that this replica does not know may be a valid one of another replica.
        (Paused, Withdrawn, Served, tag(9), Keep),
        (RolledBack, Withdrawn, Served, tag(1), Absent),
        (Progressing, Withdrawn, Withdrawn, tag(1), Absent),
        (Progressing, Withdrawn, Withdrawn, None, Absent),
        (Idle, Withdrawn, Pending, None, Absent),
        // This replica lacks a version: those that run it keep it.
        (Progressing, Served, Pending, tag(2), Keep),
        (Progressing, Served, Pending, tag(1), Serve(Stable)),
        (Progressing, Served, Pending, None, Serve(Stable)),
        (Progressing, Pending, Pending, None, Keep),
        (Progressing, Pending, Served, tag(1), Keep),
        (Idle, Pending, Pending, tag(1), Keep),
        (Idle, Pending, Pending, None, Absent),
    ] {
        let decision = decide(phase, |it| {
            (it.stable, it.candidate, it.runs) = (stable, candidate, runs);
            (it.is_in_step, it.engine) = (runs.is_none(), Down);
        });
        assert_eq!(
            decision, expected,
            "{phase:?} {stable:?} {candidate:?} {runs:?}"
        );
    }
}

#[test]
fn withdraw_withdraws_both() {
    let mut plan = plan(Phase::Paused);
    plan.strategy.on_stable_lost = OnStableLost::Withdraw;
    let plan = ActivePlan::new(plan);
    for (runs, is_in_step) in [
        (None, false),
        (None, true),
        (tag(1), false),
        (tag(2), true),
        (tag(2), false),
    ] {
        let situation = Situation {
            stable: Withdrawn,
            runs,
            is_in_step,
            ..SITUATION
        };
        assert_eq!(plan.decide(&situation), Absent, "{runs:?} {is_in_step}");
    }
}

/// R5: a replica that has halted gives the candidate to no client, and takes it back without the engine.
#[test]
fn a_local_halt_needs_no_engine() {
    for (runs, is_in_step, expected) in [
        (tag(2), true, Serve(Stable)),
        (tag(1), true, Serve(Stable)),
        (None, true, Serve(Stable)),
        (tag(9), true, Keep),
    ] {
        let decision = decide(Phase::Progressing, |it| {
            (it.runs, it.is_in_step, it.is_halted, it.engine) = (runs, is_in_step, true, Down);
        });
        assert_eq!(decision, expected, "{runs:?}");
    }
}
