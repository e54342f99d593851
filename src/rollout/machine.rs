//! How a plan changes: one pure function.

use super::{
    Millis, Phase, Plan, Strategy, Version,
    plan::{Cause, MAX_HISTORY, MAX_LISTED, Transition, limited},
    strategy::{Halt, OnStableLost, Rollback},
};

/// An earlier version becomes stable at once no more often than this, so that two replicas that see
/// different tags do not send all clients back and forth.
const MIN_REVERT_INTERVAL: Millis = 60 * 1000;

/// Something that may change a plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The reference names this verified version. A roll-out that begins follows the strategy.
    Proposed(Version, Strategy),
    /// The criteria of the current step are met.
    StepComplete,
    /// The current step has exceeded its deadline.
    DeadlineExceeded,
    /// More clients can't activate the candidate than are tolerated.
    TooManyFailures {
        /// Clients that can't activate it.
        failed: u64,
        /// Clients that it was offered.
        offered: u64,
    },
    /// A check is out of its range as often as it may.
    CheckFailed {
        /// Its name.
        check: String,
        /// Its value, in words.
        value: String,
    },
    /// An operator asks for something.
    Operator(Operation, Operator),
    /// The candidate is no longer trusted, for this reason.
    CandidateDistrusted(String),
    /// The stable version is no longer trusted or has nowhere any copy, for this reason.
    StableLost(String),
    /// The bundle was withdrawn, for this reason.
    Withdrawn(String),
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The next step; with `full`, all clients.
    Promote {
        /// Whether the candidate becomes stable at once.
        full: bool,
    },
    /// No further step.
    Pause,
    /// Further steps again.
    Resume,
    /// Back to the stable version.
    Abort,
    /// The refused candidate again, from the first step on.
    Retry,
}

/// The person behind an operation, as the request names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operator {
    /// The person.
    pub by: Option<String>,
    /// The reason.
    pub reason: Option<String>,
}

/// What else a change of a plan depends on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The engine's clock.
    pub now: Millis,
    /// The smallest hash below which a step has this number of known clients of the bundle, by the
    /// plan's salt; `None` if there are fewer.
    pub threshold_of: &'a dyn Fn(&Plan, u32) -> Option<u64>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// Why an event changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unchanged {
    /// The plan is as the event demands, or the event does not concern its phase.
    #[error("nothing changes")]
    NoEffect,
    /// An operator asks for something that the phase does not allow.
    #[error("{0}")]
    Conflict(&'static str),
}

impl Operation {
    /// Its name in paths and commands.
    pub fn label(self) -> &'static str {
        match self {
            Self::Promote { .. } => "promote",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}

impl Event {
    /// The cause that a transition by this event has.
    fn cause(&self) -> Cause {
        match self {
            Self::Proposed(..) => Cause::Version,
            Self::StepComplete => Cause::Criteria,
            Self::DeadlineExceeded => Cause::Deadline,
            Self::TooManyFailures { .. } => Cause::Failures,
            Self::CheckFailed { .. } => Cause::Check,
            Self::Operator(..) => Cause::Operator,
            Self::CandidateDistrusted(_) | Self::StableLost(_) => Cause::Trust,
            Self::Withdrawn(_) => Cause::Withdrawn,
        }
    }

    /// The reason in a sentence.
    fn reason(&self) -> String {
        match self {
            Self::Proposed(version, _) => format!("the reference names {}", version.manifest),
            Self::StepComplete => "the criteria of the step are met".to_owned(),
            Self::DeadlineExceeded => "the step has exceeded its deadline".to_owned(),
            Self::TooManyFailures { failed, offered } => {
                format!("{failed} of {offered} clients can't activate the candidate")
            }
            Self::CheckFailed { check, value } => {
                format!("the check `{check}` is out of its range: {value}")
            }
            Self::Operator(operation, operator) => {
                let reason = operator.reason.as_deref();
                reason.map_or_else(|| operation.label().to_owned(), ToOwned::to_owned)
            }
            Self::CandidateDistrusted(reason) => format!("the candidate is withdrawn: {reason}"),
            Self::StableLost(reason) => format!("the stable version is withdrawn: {reason}"),
            Self::Withdrawn(reason) => format!("the bundle is withdrawn: {reason}"),
        }
    }
}

impl Plan {
    /// The plan of a bundle that had none: its first version is stable at once.
    pub fn first(version: Version, strategy: Strategy, now: Millis) -> Self {
        let mut plan = Self {
            epoch: 0,
            generation: 1,
            phase: Phase::Idle,
            step: 0,
            since: now,
            began: now,
            stable: version,
            candidate: None,
            strategy,
            threshold: 0,
            is_paused_by_operator: false,
            refused: Vec::new(),
            superseded: Vec::new(),
            earlier: Vec::new(),
            reverted: 0,
            history: Vec::new(),
        };
        let event = Event::Proposed(plan.stable.clone(), plan.strategy.clone());
        plan.record(&event, now);
        plan
    }
}

/// The plan that follows from an event, with the next epoch:
///
/// | event | idle | progressing | paused | rolled back |
/// |---|---|---|---|---|
/// | another version | progressing | progressing with it, from step 1 | the same; paused if an operator has paused it | progressing |
/// | – the stable one | – | idle | idle | idle |
/// | – a refused one, the candidate | – | – | – | – |
/// | – an earlier stable one, where that is immediate | idle with it | idle with it | idle with it | idle with it |
/// | criteria met | – | next step; after the last one idle, the candidate is stable | – | – |
/// | deadline | – | paused or rolled back | – | – |
/// | too many failures, candidate distrusted | – | rolled back | rolled back | – |
/// | check failed | – | rolled back or paused | rolled back | – |
/// | stable lost | – | idle with the candidate, or – | the same | – |
/// | bundle withdrawn | – | paused | – | – |
/// | promote | conflict | next step | next step, progressing | conflict |
/// | promote full | conflict | idle with the candidate | idle with the candidate | conflict |
/// | pause, resume | conflict | paused, conflict | conflict, progressing | conflict |
/// | abort | conflict | rolled back | rolled back | conflict |
/// | retry | conflict | conflict | conflict | progressing |
///
/// # Errors
/// When nothing changes.
pub fn next(plan: &Plan, event: &Event, context: &Context<'_>) -> Result<Plan, Unchanged> {
    let mut after = plan.clone();
    match event {
        Event::Proposed(version, strategy) => after.propose(version, strategy, context)?,
        Event::Operator(operation, _) => after.operate(*operation, context)?,
        _ if !plan.phase.is_live() => return Err(Unchanged::NoEffect),
        Event::TooManyFailures { .. } | Event::CandidateDistrusted(_) => after.roll_back(context),
        Event::CheckFailed { .. } if plan.phase == Phase::Paused => after.roll_back(context),
        Event::StableLost(_) => match plan.strategy.on_stable_lost {
            OnStableLost::Promote => after.complete(context),
            OnStableLost::Withdraw => return Err(Unchanged::NoEffect),
        },
        _ if plan.phase == Phase::Paused => return Err(Unchanged::NoEffect),
        Event::StepComplete => after.advance(context),
        Event::DeadlineExceeded => after.halt(plan.strategy.on_deadline, context),
        Event::CheckFailed { .. } => after.halt(plan.strategy.on_failure, context),
        Event::Withdrawn(_) => after.halt(Halt::Pause, context),
    }
    after.epoch = plan.epoch + 1;
    after.record(event, context.now);
    Ok(after)
}

impl Plan {
    fn propose(
        &mut self,
        version: &Version,
        strategy: &Strategy,
        context: &Context<'_>,
    ) -> Result<(), Unchanged> {
        let is_candidate = self
            .candidate
            .as_ref()
            .is_some_and(|it| it.manifest == version.manifest);
        if version.manifest == self.stable.manifest {
            if self.phase == Phase::Idle {
                return Err(Unchanged::NoEffect);
            }
            self.supersede_candidate();
            self.enter(Phase::Idle, 0, context);
            return Ok(());
        }
        if is_candidate || self.is_refused(&version.manifest) {
            return Err(Unchanged::NoEffect);
        }
        let is_earlier = self
            .earlier
            .iter()
            .any(|it| it.manifest == version.manifest);
        let is_rested = context.now.saturating_sub(self.reverted) >= MIN_REVERT_INTERVAL;
        if is_earlier && is_rested && strategy.rollback == Rollback::Immediate {
            self.supersede_candidate();
            self.strategy = strategy.clone();
            self.set_stable(version.clone());
            self.reverted = context.now;
            self.enter(Phase::Idle, 0, context);
            return Ok(());
        }
        let stays_paused = self.phase == Phase::Paused && self.is_paused_by_operator;
        self.supersede_candidate();
        forget(&mut self.superseded, version);
        self.candidate = Some(version.clone());
        self.strategy = strategy.clone();
        self.begin_generation(context);
        let phase = match stays_paused {
            true => Phase::Paused,
            false => Phase::Progressing,
        };
        self.enter(phase, 0, context);
        self.is_paused_by_operator = stays_paused;
        Ok(())
    }

    fn operate(&mut self, operation: Operation, context: &Context<'_>) -> Result<(), Unchanged> {
        let conflict = |text| Err(Unchanged::Conflict(text));
        match (operation, self.phase) {
            (Operation::Retry, Phase::RolledBack) => {
                if let Some(candidate) = &self.candidate {
                    let manifest = candidate.manifest.clone();
                    self.refused.retain(|refused| *refused != manifest);
                }
                self.begin_generation(context);
                self.enter(Phase::Progressing, 0, context);
            }
            (Operation::Retry, _) => return conflict("no version was rolled back"),
            (_, Phase::Idle | Phase::RolledBack) => {
                return conflict("no version is being rolled out");
            }
            (Operation::Promote { full: true }, _) => self.complete(context),
            (Operation::Promote { full: false }, _) => self.advance(context),
            (Operation::Pause, Phase::Progressing) => {
                self.enter(Phase::Paused, self.step, context);
                self.is_paused_by_operator = true;
            }
            (Operation::Pause, _) => return conflict("the roll-out is paused already"),
            (Operation::Resume, Phase::Paused) => {
                self.enter(Phase::Progressing, self.step, context);
            }
            (Operation::Resume, _) => return conflict("the roll-out is not paused"),
            (Operation::Abort, _) => self.roll_back(context),
        }
        Ok(())
    }

    /// The next step, or the end.
    fn advance(&mut self, context: &Context<'_>) {
        match self.step + 1 < self.strategy.steps.len() {
            true => self.enter(Phase::Progressing, self.step + 1, context),
            false => self.complete(context),
        }
    }

    /// The candidate becomes stable.
    fn complete(&mut self, context: &Context<'_>) {
        if let Some(candidate) = self.candidate.take() {
            self.set_stable(candidate);
        }
        self.enter(Phase::Idle, 0, context);
    }

    fn halt(&mut self, halt: Halt, context: &Context<'_>) {
        match halt {
            Halt::Pause => self.enter(Phase::Paused, self.step, context),
            Halt::RollBack => self.roll_back(context),
        }
    }

    /// The candidate stays named, for operators and [`Operation::Retry`].
    fn roll_back(&mut self, context: &Context<'_>) {
        if let Some(candidate) = &self.candidate
            && !self.is_refused(&candidate.manifest)
        {
            self.refused.push(candidate.manifest.clone());
            keep_last(&mut self.refused, MAX_LISTED);
        }
        self.enter(Phase::RolledBack, self.step, context);
    }

    /// Another generation: clients are counted anew, those that failed before as well.
    fn begin_generation(&mut self, context: &Context<'_>) {
        self.generation += 1;
        self.began = context.now;
    }

    fn enter(&mut self, phase: Phase, step: usize, context: &Context<'_>) {
        (self.phase, self.step, self.since) = (phase, step, context.now);
        self.is_paused_by_operator = false;
        if phase == Phase::Idle {
            self.candidate = None;
        }
        let reach = match phase.is_live() {
            true => self.strategy.steps.get(step).cloned(),
            false => None,
        };
        let counted = reach.as_ref().map_or(0, |step| step.at_least);
        let counted = (counted > 0).then(|| (context.threshold_of)(self, counted));
        self.threshold = reach.map_or(0, |step| step.share.threshold());
        match counted {
            // Fewer clients than the step has to have: all of them.
            Some(None) => self.threshold = u64::MAX,
            Some(Some(threshold)) => self.threshold = self.threshold.max(threshold),
            None => {}
        }
    }

    fn set_stable(&mut self, version: Version) {
        forget(&mut self.superseded, &version);
        forget(&mut self.earlier, &version);
        let before = std::mem::replace(&mut self.stable, version);
        add(&mut self.superseded, before.clone());
        add(&mut self.earlier, before);
    }

    /// Clients may still run a candidate that gives way.
    fn supersede_candidate(&mut self) {
        if let Some(candidate) = self.candidate.take() {
            add(&mut self.superseded, candidate);
        }
    }

    fn record(&mut self, event: &Event, now: Millis) {
        let by = match event {
            Event::Operator(_, operator) => operator.by.as_deref().map(limited),
            _ => None,
        };
        self.history.push(Transition {
            at: now,
            to: self.phase,
            step: self.step,
            candidate: self.candidate.as_ref().map(|it| it.manifest.clone()),
            cause: event.cause(),
            reason: limited(&event.reason()),
            by,
        });
        keep_last(&mut self.history, MAX_HISTORY);
    }
}

fn add(list: &mut Vec<Version>, version: Version) {
    forget(list, &version);
    list.push(version);
    keep_last(list, MAX_LISTED);
}

fn forget(list: &mut Vec<Version>, version: &Version) {
    list.retain(|known| known.etag != version.etag && known.manifest != version.manifest);
}

fn keep_last<T>(list: &mut Vec<T>, limit: usize) {
    let excess = list.len().saturating_sub(limit);
    list.drain(..excess);
}

#[cfg(test)]
mod tests;
