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

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{plan, strategy, version},
        *,
    };

    #[test]
    fn the_higher_epoch_counts_and_of_two_the_more_careful_plan() {
        use Reconciled::{Adopt, Restore, Same};
        let with = |epoch, phase| Plan {
            epoch,
            ..plan(phase)
        };
        let known = with(7, Phase::Progressing);
        for (read, expected) in [
            (None, Restore),
            (Some(known.clone()), Same),
            (Some(with(8, Phase::Idle)), Adopt),
            (Some(with(6, Phase::RolledBack)), Restore),
            (Some(with(7, Phase::RolledBack)), Adopt),
            (Some(with(7, Phase::Idle)), Restore),
        ] {
            assert_eq!(reconcile(Some(&known), read.as_ref()), expected, "{read:?}");
        }
        assert_eq!(reconcile(None, Some(&known)), Adopt);
        assert_eq!(reconcile(None, None), Same);
    }

    #[test]
    fn a_replica_that_is_late_takes_no_version_back() {
        use Phase::{Idle, Progressing, RolledBack};
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for (phase, number, has_seen_newest, steady, is_leader, is_proposed) in [
            (Idle, 3, false, minutes(0), false, true),
            (Idle, 1, true, minutes(9), true, false),
            (Progressing, 2, true, minutes(9), true, false),
            (Progressing, 3, false, minutes(0), false, true),
            // The stable version: only if the reference was seen to move back, or for long.
            (Progressing, 1, false, minutes(0), false, false),
            (Progressing, 1, true, minutes(0), false, true),
            (Progressing, 1, false, minutes(2), false, false),
            (Progressing, 1, false, minutes(1), true, false),
            (Progressing, 1, false, minutes(2), true, true),
            (RolledBack, 2, true, minutes(9), true, false),
            (RolledBack, 1, true, minutes(0), false, true),
            // An earlier version, as a replica with an old list of tags sees it.
            (Idle, 0, false, minutes(0), false, false),
            (Idle, 0, true, minutes(0), false, true),
        ] {
            let newest = Newest {
                version: version(number),
                has_seen_newest,
                steady,
            };
            let found = proposal(&plan(phase), &newest, &strategy(), is_leader);
            assert_eq!(
                found.is_some(),
                is_proposed,
                "{phase:?} {newest:?} {is_leader}"
            );
        }
    }
}
