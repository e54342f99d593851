//! What the leader observes of a step, and what follows from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CheckState, Event, Millis, Phase, Plan, Tally, strategy::milliseconds};

/// A longer time between two observations counts as this: the leader could not look meanwhile.
const MAX_GAP: Duration = Duration::from_secs(10);

/// What the leader has observed of the current step. A new leader continues it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    generation: u64,
    step: usize,
    /// For how long the step was observed.
    #[serde(with = "milliseconds")]
    soaked: Duration,
    /// For how long it was observed without waiting for an approval.
    #[serde(with = "milliseconds")]
    elapsed: Duration,
    /// When it was last observed.
    last: Option<Millis>,
    /// The checks of the strategy, in their order.
    checks: Vec<CheckState>,
}

/// The criteria of a step, with their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Criteria {
    /// For how long the step was observed.
    pub soaked: Duration,
    /// Whether that suffices.
    pub is_soaked: bool,
    /// Whether enough clients run the candidate.
    pub has_min_clients: bool,
    /// Whether enough of the clients that were offered the candidate run it.
    pub has_quorum: bool,
    /// Whether each check was in its range when it was last evaluated.
    pub are_checks_in_range: bool,
    /// Whether only the approval of a person is missing.
    pub awaits_approval: bool,
}

impl Progress {
    /// Continues with the current step of a plan, which begins anew if it is another one.
    pub fn follow(&mut self, plan: &Plan) {
        let is_same = (self.generation, self.step) == (plan.generation, plan.step);
        if !is_same || self.checks.len() != plan.strategy.checks.len() {
            *self = Self {
                generation: plan.generation,
                step: plan.step,
                checks: vec![CheckState::default(); plan.strategy.checks.len()],
                ..Self::default()
            };
        }
    }

    /// Counts the time since the last observation. The soak and the deadline of a paused step go on when it
    /// is resumed.
    pub fn observe(&mut self, plan: &Plan, tally: &Tally, now: Millis) {
        self.follow(plan);
        let passed = self.last.map_or(0, |last| now.saturating_sub(last));
        self.last = Some(now);
        if plan.phase != Phase::Progressing {
            return;
        }
        let passed = Duration::from_millis(passed).min(MAX_GAP);
        if !self.criteria(plan, tally).awaits_approval {
            self.elapsed += passed;
        }
        self.soaked += passed;
    }

    /// Ends an observation: the time until the next one does not count.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// Starts anew, after the engine has lost data.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// The checks, in the order of the strategy.
    pub fn checks(&self) -> &[CheckState] {
        &self.checks
    }

    /// The checks, to record an evaluation.
    pub fn checks_mut(&mut self) -> &mut [CheckState] {
        &mut self.checks
    }

    /// The criteria of the current step.
    pub fn criteria(&self, plan: &Plan, tally: &Tally) -> Criteria {
        let (strategy, step) = (&plan.strategy, plan.strategy.steps.get(plan.step));
        let soak = step.map(|step| step.soak).unwrap_or_default();
        let mut criteria = Criteria {
            soaked: self.soaked,
            is_soaked: self.soaked >= soak,
            has_min_clients: tally.acknowledged >= strategy.min_clients.into(),
            has_quorum: tally.acknowledged >= strategy.quorum.of(tally.offered),
            are_checks_in_range: self.checks.iter().all(CheckState::is_in_range),
            awaits_approval: false,
        };
        criteria.awaits_approval = criteria.is_met() && step.is_some_and(|step| step.approve);
        criteria
    }

    /// What follows from the observations.
    pub fn verdict(&self, plan: &Plan, tally: &Tally) -> Option<Event> {
        if let Some(event) = too_many_failures(plan, tally) {
            return Some(event);
        }
        let checks = plan.strategy.checks.iter().zip(&self.checks);
        let mut failed = checks.filter(|(check, state)| state.has_failed(check));
        if plan.phase.is_live()
            && let Some((check, state)) = failed.next()
        {
            return Some(Event::CheckFailed {
                check: check.name.clone(),
                value: state.last_value(),
            });
        }
        if plan.phase != Phase::Progressing {
            return None;
        }
        let criteria = self.criteria(plan, tally);
        match criteria.is_met() {
            true if criteria.awaits_approval => None,
            true => Some(Event::StepComplete),
            false if self.elapsed >= plan.strategy.deadline => Some(Event::DeadlineExceeded),
            false => None,
        }
    }
}

impl Criteria {
    /// Whether all hold but the approval of a person.
    pub fn is_met(&self) -> bool {
        self.is_soaked && self.has_min_clients && self.has_quorum && self.are_checks_in_range
    }
}

/// Whether more clients fail than are tolerated. Each replica asks this, not only the leader.
pub fn too_many_failures(plan: &Plan, tally: &Tally) -> Option<Event> {
    let Tally {
        failed, offered, ..
    } = *tally;
    let is_exceeded = plan.strategy.max_failures.is_exceeded(failed, offered);
    (plan.phase.is_live() && is_exceeded).then_some(Event::TooManyFailures { failed, offered })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Check, NoData, Outcome, QueryTemplate, Tolerance,
            fixture::{NOW, plan},
        },
        *,
    };

    const TALLY: Tally = Tally {
        offered: 10,
        acknowledged: 9,
        failed: 0,
        outside: 0,
    };

    /// Observes a plan each second for some seconds.
    fn observed(progress: &mut Progress, plan: &Plan, tally: &Tally, from: Millis, seconds: u64) {
        for second in 0..=seconds {
            progress.observe(plan, tally, from + second * 1000);
        }
    }

    fn with_check() -> Plan {
        let mut plan = plan(Phase::Progressing);
        plan.strategy.checks.push(Check {
            name: "denials".to_owned(),
            query: QueryTemplate::parse("vector(0)").unwrap(),
            min: None,
            max: Some(0.0),
            every: Duration::from_secs(60),
            failures: 2,
            no_data: NoData::Inconclusive,
        });
        plan
    }

    #[test]
    fn a_step_is_complete_once_all_criteria_hold() {
        let plan = plan(Phase::Progressing);
        for (seconds, tally, expected) in [
            (59, TALLY, None),
            (60, TALLY, Some(Event::StepComplete)),
            (
                60,
                Tally {
                    acknowledged: 8,
                    ..TALLY
                },
                None,
            ),
            (60, Tally::default(), None),
        ] {
            let mut progress = Progress::default();
            observed(&mut progress, &plan, &tally, NOW, seconds);
            assert_eq!(
                progress.verdict(&plan, &tally),
                expected,
                "{seconds} {tally:?}"
            );
        }
    }

    /// The soak and the deadline count the time in which a leader could look.
    #[test]
    fn time_without_observation_and_in_a_pause_does_not_count() {
        let plan = plan(Phase::Progressing);
        let mut progress = Progress::default();
        observed(&mut progress, &plan, &TALLY, NOW, 30);
        let later = NOW + 3_600_000;
        progress.observe(&plan, &TALLY, later);
        assert_eq!(
            progress.criteria(&plan, &TALLY).soaked,
            Duration::from_secs(40)
        );
        let paused = Plan {
            phase: Phase::Paused,
            ..plan.clone()
        };
        observed(&mut progress, &paused, &TALLY, later, 600);
        assert_eq!(progress.verdict(&paused, &TALLY), None);
        observed(&mut progress, &plan, &TALLY, later + 600_000, 20);
        assert_eq!(progress.verdict(&plan, &TALLY), Some(Event::StepComplete));
        // Another generation begins anew.
        let again = Plan {
            generation: plan.generation + 1,
            ..plan
        };
        progress.observe(&again, &TALLY, later + 700_000);
        assert_eq!(progress.criteria(&again, &TALLY).soaked, Duration::ZERO);
    }

    #[test]
    fn an_approval_stops_the_deadline_and_nothing_else_does() {
        let mut plan = plan(Phase::Progressing);
        plan.strategy.deadline = Duration::from_secs(120);
        plan.strategy.steps[0].approve = true;
        let mut progress = Progress::default();
        observed(&mut progress, &plan, &TALLY, NOW, 1000);
        assert!(progress.criteria(&plan, &TALLY).awaits_approval);
        assert_eq!(progress.verdict(&plan, &TALLY), None);
        let few = Tally {
            acknowledged: 1,
            ..TALLY
        };
        observed(&mut progress, &plan, &few, NOW + 1_001_000, 120);
        assert_eq!(progress.verdict(&plan, &few), Some(Event::DeadlineExceeded));
    }

    #[test]
    fn a_check_without_data_neither_promotes_nor_rolls_back() {
        let plan = with_check();
        let mut progress = Progress::default();
        observed(&mut progress, &plan, &TALLY, NOW, 600);
        assert_eq!(progress.verdict(&plan, &TALLY), None, "not evaluated yet");
        let inconclusive = Outcome::Inconclusive {
            reason: "down".to_owned(),
        };
        let failed = || Outcome::Failed { value: Some(3.5) };
        for (outcome, expected) in [
            (Outcome::Passed { value: Some(0.0) }, Some("complete")),
            (inconclusive.clone(), None),
            (failed(), None),
            (inconclusive, None),
            (failed(), Some("3.5")),
        ] {
            progress.checks_mut()[0].record(outcome.clone(), NOW);
            let verdict = progress.verdict(&plan, &TALLY).map(|event| match event {
                Event::StepComplete => "complete".to_owned(),
                Event::CheckFailed { value, .. } => value,
                other => panic!("{other:?}"),
            });
            assert_eq!(verdict.as_deref(), expected, "{outcome:?}");
        }
    }

    #[test]
    fn failures_come_before_everything_else() {
        let mut plan = plan(Phase::Paused);
        let tally = Tally { failed: 1, ..TALLY };
        let failures = Event::TooManyFailures {
            failed: 1,
            offered: 10,
        };
        assert_eq!(Progress::default().verdict(&plan, &tally), Some(failures));
        plan.strategy.max_failures = Tolerance::Clients(1);
        assert_eq!(too_many_failures(&plan, &tally), None);
        plan.phase = Phase::RolledBack;
        plan.strategy.max_failures = Tolerance::Clients(0);
        assert_eq!(too_many_failures(&plan, &tally), None);
    }

    #[test]
    fn another_leader_continues() {
        let plan = with_check();
        let mut progress = Progress::default();
        observed(&mut progress, &plan, &TALLY, NOW, 30);
        progress.checks_mut()[0].record(Outcome::Failed { value: None }, NOW);
        let text = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&text).unwrap(), progress);
    }
}
