//! Plans for tests.

use std::time::Duration;

use super::{Halt, OnStableLost, Order, Plan, Rollback, Share, Step, Strategy, Tolerance, Version};
use crate::oci::Digest;

/// A version with this revision and tag.
pub(crate) fn version(revision: &str) -> Version {
    Version::new(Digest::sha256(revision.as_bytes()), revision, revision)
}

/// A plan with the stable version `r1` and one step.
pub(crate) fn idle() -> Plan {
    let strategy = Strategy {
        name: "careful".to_owned(),
        steps: vec![Step {
            share: Share::ALL,
            ..Step::default()
        }],
        quorum: Share::ALL,
        min_clients: 1,
        max_failures: Tolerance::Clients(0),
        deadline: Duration::from_secs(1),
        on_deadline: Halt::Pause,
        on_failure: Halt::RollBack,
        on_stable_lost: OnStableLost::Promote,
        rollback: Rollback::Immediate,
        order: Order::Fixed,
        checks: Vec::new(),
    };
    Plan::first(version("r1"), strategy, 0)
}
