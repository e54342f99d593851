//! What a replica does with the plan that it has read, and with the version that its reference names.

use std::{cmp::Ordering, time::Duration};

use super::{Event, Phase, Plan, Strategy, Version};

/// For how long the registry must name a version that the plan knows as an earlier one, before the leader
/// believes it without having seen the change: another replica, or a mirror, may be late.
const STEADY_AFTER: Duration = Duration::from_secs(90);

/// What follows from a plan that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// It is the known one.
    Same,
    /// It is a later one, or the first one.
    Adopt,
    /// The engine has lost a later one, which has to be written again.
    Restore,
}

/// The version that the reference of a bundle names, as far as this replica knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// The version. It is verified.
    pub version: Version,
    /// Whether this replica has seen the reference name the newest version of the plan, and then this one.
    pub has_seen_newest: bool,
    /// For how long the registry has confirmed the version, since the plan last changed.
    pub steady: Duration,
}

/// Compares the known plan with the one that was read; the engine may lack it, after it has lost data.
pub fn reconcile(known: Option<&Plan>, read: Option<&Plan>) -> Reconciled {
    match (known, read) {
        (None, None) => Reconciled::Same,
        (None, Some(_)) => Reconciled::Adopt,
        (Some(_), None) => Reconciled::Restore,
        (Some(known), Some(read)) => match known.epoch.cmp(&read.epoch) {
            Ordering::Less => Reconciled::Adopt,
            Ordering::Greater => Reconciled::Restore,
            Ordering::Equal if known == read => Reconciled::Same,
            // A failover has lost a write, and another replica has written since.
            Ordering::Equal if known.phase.rank() > read.phase.rank() => Reconciled::Restore,
            Ordering::Equal => Reconciled::Adopt,
        },
    }
}

/// The plan that a replica restores: clients are counted anew, because the engine may have lost more.
pub fn restored(plan: &Plan) -> Plan {
    Plan {
        generation: plan.generation + 1,
        ..plan.clone()
    }
}

/// What a replica proposes. A version that the plan knows as an earlier one is proposed only if this replica
/// has seen the reference move to it, or if it leads and the registry has confirmed it for long: a replica that
/// polls late must not take a roll-out back.
pub fn proposal(
    plan: &Plan,
    newest: &Newest,
    strategy: &Strategy,
    is_leader: bool,
) -> Option<Event> {
    let manifest = &newest.version.manifest;
    let is_named = plan.newest().manifest == *manifest || plan.is_refused(manifest);
    let is_idle_with_it = plan.phase == Phase::Idle && plan.stable.manifest == *manifest;
    if is_named || is_idle_with_it {
        return None;
    }
    let mut earlier = plan.superseded.iter().chain([&plan.stable]);
    let is_earlier = earlier.any(|known| known.manifest == *manifest);
    let is_believed =
        newest.has_seen_newest || (is_leader && newest.steady >= STEADY_AFTER) || !is_earlier;
    is_believed.then(|| Event::Proposed(newest.version.clone(), strategy.clone()))
}
