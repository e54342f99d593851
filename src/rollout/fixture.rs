//! Plans for tests.

use std::time::Duration;

use super::{
    Halt, Millis, OnStableLost, Order, Phase, Plan, Rollback, Share, Step, Strategy, Tolerance,
    Version,
};
use crate::oci::Digest;

pub(super) const NOW: Millis = 1_000_000_000;

/// Version `number`.
pub(super) fn version(number: u8) -> Version {
    let text = format!("v{number}");
    Version::new(Digest::sha256(&[number]), &text, &text)
}

/// A version with this revision and tag.
pub(crate) fn version_named(revision: &str) -> Version {
    Version::new(Digest::sha256(revision.as_bytes()), revision, revision)
}

/// An idle plan with the stable version `r1` and one step.
pub(crate) fn idle() -> Plan {
    let strategy = Strategy {
        steps: vec![Step {
            share: Share::ALL,
            ..Step::default()
        }],
        quorum: Share::ALL,
        deadline: Duration::from_secs(1),
        ..strategy()
    };
    Plan::first(version_named("r1"), strategy, 0)
}

/// The clients whose names begin with `canary-`, then 10 %, then all.
pub(super) fn strategy() -> Strategy {
    let soak = Duration::from_secs(60);
    Strategy {
        name: "careful".to_owned(),
        steps: vec![
            Step {
                ids: vec!["canary-*".to_owned()],
                soak,
                ..Step::default()
            },
            Step {
                share: Share::from_percent(10.0).unwrap(),
                soak,
                ..Step::default()
            },
            Step {
                share: Share::ALL,
                soak,
                ..Step::default()
            },
        ],
        quorum: Share::from_percent(90.0).unwrap(),
        min_clients: 1,
        max_failures: Tolerance::Clients(0),
        deadline: Duration::from_secs(7200),
        on_deadline: Halt::Pause,
        on_failure: Halt::RollBack,
        on_stable_lost: OnStableLost::Promote,
        rollback: Rollback::Immediate,
        order: Order::Fixed,
        checks: Vec::new(),
    }
}

/// A plan in this phase, with version 1 as stable and version 2 as the candidate; version 0 was stable before.
pub(crate) fn plan(phase: Phase) -> Plan {
    let mut plan = Plan::first(version(1), strategy(), NOW - 1_000_000);
    plan.epoch = 7;
    plan.earlier.push(version(0));
    plan.superseded.push(version(0));
    if phase != Phase::Idle {
        (plan.phase, plan.candidate, plan.generation) = (phase, Some(version(2)), 2);
    }
    if phase == Phase::RolledBack {
        plan.refused.push(version(2).manifest);
    }
    plan
}
