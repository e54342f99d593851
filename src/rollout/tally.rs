//! How the clients of a roll-out are doing.

use super::{ActivePlan, Millis};
use crate::fleet::{Facts, TagHash};

/// Complete transfers of the candidate after which a client that asks again and runs another version can't
/// activate it.
const REFUSED_AFTER: u32 = 2;
/// Requests in a row without a version, after an offer, by which a client is in a loop of crashes.
const CRASHES: u32 = 3;
/// How long after an offer such requests count.
const CRASH_WINDOW: Millis = 5 * 60 * 1000;

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
pub fn standing(
    plan: &ActivePlan,
    facts: &Facts,
    is_in_step: bool,
    began: Millis,
    now: Millis,
) -> Standing {
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
        offers if !facts.is_shared && is_refusing(facts, offers, now) => Standing::Failed,
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

fn is_refusing(facts: &Facts, offers: u32, now: Millis) -> bool {
    match facts.runs {
        // Its last transfer counts only once it has asked again: before that it may be activating.
        Some(_) => offers >= REFUSED_AFTER && facts.seen > facts.offered_at,
        None => {
            facts.without_tag >= CRASHES
                && now.saturating_sub(facts.offered_at) <= CRASH_WINDOW
                && facts.seen > facts.offered_at
        }
    }
}
