//! Which version a request gets: the rules R1 to R5, as pure functions.
//!
//! - **R1, trust first**: a version that its watcher has withdrawn is not offered. This needs neither plan
//!   nor engine.
//! - **R2, contradict only by a fresh plan**: a client that names another version is moved only after the
//!   plan was read, and that reading began after its request.
//! - **R3, without the engine no client is moved** between stable and candidate.
//! - **R4, back-off**: see [`Moves`](super::Moves).
//! - **R5, halting is local first**: a replica that counts too many failures halts before the engine knows.

use super::{Cohort, Phase, Plan, strategy::OnStableLost};
use crate::fleet::TagHash;

/// Which of the two versions of a staged bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The version that clients are meant to run.
    Stable,
    /// The version that is being rolled out.
    Candidate,
}

/// A plan with what requests compare, computed once.
#[derive(Debug)]
pub struct ActivePlan {
    /// The plan.
    pub plan: Plan,
    /// The tag of the stable version.
    pub stable: TagHash,
    /// The tag of the candidate, while clients get it.
    pub candidate: Option<TagHash>,
    /// The tag of the candidate, also after it was rolled back.
    pub named_candidate: Option<TagHash>,
    /// The clients of the current step.
    pub cohort: Cohort,
    superseded: Vec<TagHash>,
}

/// What this replica has of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It is verified and may be served.
    Served,
    /// It was not fetched and verified yet.
    Pending,
    /// It is withdrawn.
    Withdrawn,
}

/// What a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// What this replica has of the stable version.
    pub stable: Availability,
    /// What this replica has of the candidate.
    pub candidate: Availability,
    /// The version that the client names first; `None` if it names none.
    pub runs: Option<TagHash>,
    /// Whether the client is in the current step.
    pub is_in_step: bool,
    /// Whether this replica has halted the roll-out by itself.
    pub is_halted: bool,
    /// Whether the plan was read, and that reading began after the request.
    pub is_fresh: bool,
    /// The engine, as far as it answers.
    pub engine: EngineState,
}

/// Whether the plan can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// The last reading has succeeded.
    Up,
    /// It has failed.
    Down,
    /// All have failed for longer than `shared.grace`.
    DownForLong,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This version: 304 if the client runs it, else 200.
    Serve(Variant),
    /// This version, because this replica has withdrawn the one that the client runs. It needs no plan, and is
    /// delayed by half a second.
    Replace(Variant),
    /// The plan has to be read first.
    Confirm(Variant),
    /// The client keeps what it runs: the request is held to its deadline and answered with 304. One that runs
    /// nothing waits for a version as long.
    Keep,
    /// Nothing can be served: the state of the stable version says why.
    Absent,
}

impl Variant {
    /// The value of the header `Bundlegate-Rollout`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Candidate => "candidate",
        }
    }
}

impl ActivePlan {
    /// A plan that requests are compared with.
    pub fn new(plan: Plan) -> Self {
        let named = plan.candidate.as_ref().map(super::Version::tag);
        Self {
            stable: plan.stable.tag(),
            candidate: named.filter(|_| plan.phase.is_live()),
            named_candidate: named,
            cohort: Cohort::new(&plan),
            superseded: plan.superseded.iter().map(super::Version::tag).collect(),
            plan,
        }
    }

    /// The version that the plan has for a client, whatever this replica has of it.
    ///
    /// | phase | runs the candidate | in the step | otherwise |
    /// |---|---|---|---|
    /// | idle, rolled back | stable | stable | stable |
    /// | progressing, paused | candidate | candidate | stable |
    pub fn variant(&self, runs: Option<TagHash>, is_in_step: bool, is_halted: bool) -> Variant {
        match self.candidate {
            Some(candidate) if !is_halted && (is_in_step || runs == Some(candidate)) => {
                Variant::Candidate
            }
            _ => Variant::Stable,
        }
    }

    /// The tag of a variant.
    pub fn tag(&self, variant: Variant) -> Option<TagHash> {
        match variant {
            Variant::Stable => Some(self.stable),
            Variant::Candidate => self.named_candidate,
        }
    }

    /// Whether a client that names this tag gets its variant by the last known plan, without the engine: the
    /// version gave way to a later one, or was rolled back.
    fn is_outdated(&self, tag: TagHash) -> bool {
        let is_refused = self.plan.phase == Phase::RolledBack && self.named_candidate == Some(tag);
        is_refused || (self.superseded.contains(&tag) && tag != self.stable)
    }

    /// Decides about a request.
    pub fn decide(&self, situation: &Situation) -> Decision {
        let planned = self.variant(situation.runs, situation.is_in_step, situation.is_halted);
        let Some(variant) = self.available(planned, situation) else {
            let is_candidate_due =
                planned == Variant::Candidate && situation.candidate == Availability::Pending;
            let is_stable_due = situation.stable == Availability::Pending;
            return match situation.runs {
                Some(_) if is_stable_due => Decision::Keep,
                // The version that it is to get may be here in a moment.
                None if is_stable_due && is_candidate_due => Decision::Keep,
                _ => Decision::Absent,
            };
        };
        let Some(runs) = situation.runs else {
            return Decision::Serve(variant);
        };
        if self.tag(variant) == Some(runs) {
            return Decision::Serve(variant);
        }
        let is_pending = |variant| self.availability(variant, situation) == Availability::Pending;
        if planned != variant && is_pending(planned) {
            // This replica lacks the version that the client runs or is to run.
            return Decision::Keep;
        }
        let is_withdrawn = |variant| {
            self.tag(variant) == Some(runs)
                && self.availability(variant, situation) == Availability::Withdrawn
        };
        if is_withdrawn(Variant::Stable) || is_withdrawn(Variant::Candidate) {
            return Decision::Replace(variant);
        }
        let leaves_halted = situation.is_halted && self.candidate == Some(runs);
        if leaves_halted || situation.is_fresh {
            return Decision::Serve(variant);
        }
        let is_known = runs == self.stable || self.candidate == Some(runs);
        let is_replaced = match situation.engine {
            EngineState::Up => return Decision::Confirm(variant),
            EngineState::Down => self.is_outdated(runs),
            EngineState::DownForLong => self.is_outdated(runs) || !is_known,
        };
        // Never by the candidate: other replicas may have rolled it back meanwhile.
        match is_replaced && situation.stable == Availability::Served {
            true => Decision::Serve(Variant::Stable),
            false => Decision::Keep,
        }
    }

    /// The variant that can be served instead of the planned one, by R1.
    fn available(&self, planned: Variant, situation: &Situation) -> Option<Variant> {
        let of = |variant| self.availability(variant, situation);
        let on_stable_lost = self.plan.strategy.on_stable_lost;
        if of(Variant::Stable) == Availability::Withdrawn
            && on_stable_lost == OnStableLost::Withdraw
        {
            return None;
        }
        match planned {
            Variant::Candidate if of(Variant::Candidate) == Availability::Served => Some(planned),
            Variant::Stable if of(Variant::Stable) == Availability::Served => Some(planned),
            Variant::Candidate => {
                (of(Variant::Stable) == Availability::Served).then_some(Variant::Stable)
            }
            Variant::Stable => {
                let replaces = of(Variant::Stable) == Availability::Withdrawn
                    && of(Variant::Candidate) == Availability::Served
                    && self.candidate.is_some()
                    && !situation.is_halted;
                replaces.then_some(Variant::Candidate)
            }
        }
    }

    fn availability(&self, variant: Variant, situation: &Situation) -> Availability {
        match variant {
            Variant::Stable => situation.stable,
            Variant::Candidate => situation.candidate,
        }
    }
}

#[cfg(test)]
mod tests;
