//! How the clients of a roll-out are doing.

use super::{ActivePlan, Millis};
use crate::fleet::{Facts, TagHash};

/// Complete transfers of the candidate after which a client that asks again and runs another version can't
/// activate it.
const REFUSED_AFTER: u32 = 2;

/// The clients of a roll-out in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Clients that were sent the candidate, or run it.
    pub offered: u64,
    /// Of these, the ones that run it.
    pub acknowledged: u64,
    /// Of these, the ones that can't activate it.
    pub failed: u64,
    /// Clients that run the candidate and are not in the step.
    pub outside: u64,
}

/// What one client has done with the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was not sent the candidate.
    Uninvolved,
    /// It was sent the candidate.
    Offered,
    /// It runs the candidate.
    Acknowledged,
    /// It can't activate the candidate.
    Failed,
}

impl Tally {
    /// Counts a client.
    pub fn count(&mut self, standing: Standing, is_in_step: bool) {
        match standing {
            Standing::Uninvolved => return,
            Standing::Offered => {}
            Standing::Acknowledged => {
                self.acknowledged += 1;
                self.outside += u64::from(!is_in_step);
            }
            Standing::Failed => self.failed += 1,
        }
        self.offered += 1;
    }
}

/// What a client has done with the candidate since the generation began, `began` by the clock of its facts.
/// An error of its OPA counts if it is a new one, and if the candidate can be its cause.
///
/// A client that restarts names no version, whatever the cause. One that the candidate crashes gets the stable
/// version after two offers ([`Moves`](super::Moves)), names that, and counts once it has refused a further offer.
pub fn standing(plan: &ActivePlan, facts: &Facts, is_in_step: bool, began: Millis) -> Standing {
    let Some(candidate) = plan.named_candidate else {
        return Standing::Uninvolved;
    };
    if facts.runs == Some(candidate) {
        return Standing::Acknowledged;
    }
    let offers = offers(facts, candidate, began);
    let has_new_error = facts.has_error && facts.error_since >= began;
    if has_new_error && (offers > 0 || is_in_step) {
        return Standing::Failed;
    }
    match offers {
        0 => Standing::Uninvolved,
        offers if !facts.is_shared && is_refusing(facts, offers) => Standing::Failed,
        _ => Standing::Offered,
    }
}

/// Complete transfers of the candidate in this generation.
fn offers(facts: &Facts, candidate: TagHash, began: Millis) -> u32 {
    match facts.offered {
        Some((tag, times)) if tag == candidate && facts.offered_at >= began => times,
        _ => 0,
    }
}

fn is_refusing(facts: &Facts, offers: u32) -> bool {
    // One that came to run its version only after its last offer has restarted: perhaps twice for another reason.
    let has_restarted = facts.since > facts.offered_at;
    let refused_after = REFUSED_AFTER + u32::from(has_restarted);
    // Its last transfer counts only once it has asked again: before that it may be activating.
    facts.runs.is_some() && offers >= refused_after && facts.seen > facts.offered_at
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Phase,
            fixture::{NOW, plan, version},
        },
        *,
    };

    const BEGAN: Millis = NOW - 60_000;

    fn standing_of(is_in_step: bool, change: impl FnOnce(&mut Facts)) -> Standing {
        let mut facts = Facts {
            runs: Some(version(1).tag()),
            since: BEGAN,
            seen: NOW - 1_000,
            is_waiting: false,
            interval: 30_000,
            without_tag: 0,
            offered: None,
            offered_at: 0,
            error_since: 0,
            has_error: false,
            is_shared: false,
        };
        change(&mut facts);
        let plan = ActivePlan::new(plan(Phase::Progressing));
        standing(&plan, &facts, is_in_step, BEGAN)
    }

    fn offered(facts: &mut Facts, times: u32, at: Millis) {
        (facts.offered, facts.offered_at) = (Some((version(2).tag(), times)), at);
    }

    #[test]
    fn a_client_is_judged_by_what_it_does_after_its_downloads() {
        use Standing::{Acknowledged, Failed, Offered, Uninvolved};
        assert_eq!(standing_of(true, |_| {}), Uninvolved);
        let runs = |facts: &mut Facts| facts.runs = Some(version(2).tag());
        assert_eq!(standing_of(false, runs), Acknowledged);
        assert_eq!(standing_of(true, |it| offered(it, 1, NOW - 2_000)), Offered);
        // It has asked again after its second download.
        assert_eq!(standing_of(true, |it| offered(it, 2, NOW - 2_000)), Failed);
        // It may be activating what it has just downloaded.
        assert_eq!(standing_of(true, |it| offered(it, 2, NOW - 500)), Offered);
        // Downloads of an earlier generation say nothing about this one.
        assert_eq!(
            standing_of(true, |it| offered(it, 5, BEGAN - 1)),
            Uninvolved
        );
        let shared = |it: &mut Facts| {
            offered(it, 9, NOW - 2_000);
            it.is_shared = true;
        };
        assert_eq!(standing_of(true, shared), Offered);
    }

    /// It got the stable version, because it has asked twice without a version.
    #[test]
    fn a_client_that_has_restarted_fails_once_it_has_refused_a_further_offer() {
        for (offers, expected) in [(2, Standing::Offered), (3, Standing::Failed)] {
            let found = standing_of(true, |facts| {
                facts.since = NOW - 1_500;
                offered(facts, offers, NOW - 2_000);
            });
            assert_eq!(found, expected, "{offers}");
        }
    }

    #[test]
    fn an_error_counts_if_it_is_new_and_the_candidate_can_be_its_cause() {
        for (is_in_step, is_offered, since, expected) in [
            (true, false, BEGAN, Standing::Failed),
            (false, true, BEGAN, Standing::Failed),
            (false, false, BEGAN, Standing::Uninvolved),
            (true, false, BEGAN - 1, Standing::Uninvolved),
            (true, true, BEGAN - 1, Standing::Offered),
        ] {
            let found = standing_of(is_in_step, |facts| {
                (facts.has_error, facts.error_since) = (true, since);
                if is_offered {
                    offered(facts, 1, NOW - 2_000);
                }
            });
            assert_eq!(found, expected, "{is_in_step} {is_offered} {since}");
        }
    }

    /// It may be restarting, for a reason that has nothing to do with the candidate.
    #[test]
    fn a_client_that_asks_without_a_version_again_and_again_does_not_fail_by_that() {
        let found = standing_of(true, |facts| {
            (facts.runs, facts.without_tag) = (None, 8);
            offered(facts, 5, NOW - 2_000);
        });
        assert_eq!(found, Standing::Offered);
    }
}
