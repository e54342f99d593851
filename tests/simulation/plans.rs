//! What a replica does with plans: the gateway's part.

use std::sync::Arc;

use bundlegate::rollout::{
    ActivePlan, Context, EngineState, Event, Newest, Operation, Operator, Phase, Plan, Reconciled,
    Sample, next, proposal, reconcile, restored, threshold_of, too_many_failures,
};

use crate::{
    engine::{Answer, Call, Process},
    replica::{Stage, VersionId},
    time::{MINUTE, Micros, millis},
    world::{Lane, World},
};

impl World {
    /// Twice a second.
    pub(crate) fn tick(&mut self, replica: usize) {
        self.count_failures(replica);
        self.replicas[replica].is_tick_due = true;
        self.read_plans(replica);
    }

    /// A replica that counts too many failures halts at once.
    fn count_failures(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        let Some(active) = one.plan.clone() else {
            return;
        };
        if one.is_unaware || !active.plan.phase.is_live() || one.is_halted() {
            return;
        }
        let tally = one.tally(&self.keys, self.now);
        if self.now / MINUTE != (self.now - crate::world::INTERVAL.min(self.now)) / MINUTE {
            one.next_recount = 0;
            let tally = one.tally(&self.keys, self.now);
            assert_eq!(tally, one.full_tally(&self.keys, self.now), "the counts");
        }
        if too_many_failures(&active.plan, &tally).is_some() && one.halt.set(active.plan.generation)
        {
            self.figures.halted(self.now);
            self.say(|_| format!("replica {replica} halts: {tally:?}"));
            self.wake(replica);
        }
    }

    /// Begins a reading, unless one is under way.
    pub(crate) fn read_plans(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        let is_due = one.is_tick_due || one.is_read_wanted;
        if one.stage != Stage::Idle || !is_due || one.is_unaware {
            return;
        }
        let is_tick = std::mem::take(&mut one.is_tick_due);
        one.is_read_wanted = false;
        one.stage = Stage::Reading {
            began: self.now,
            is_tick,
        };
        self.call(replica, Lane::Plans, Call::Read);
    }

    pub(crate) fn plans_answered(&mut self, replica: usize, answer: Option<Answer>) {
        let stage = std::mem::replace(&mut self.replicas[replica].stage, Stage::Idle);
        match (stage, answer) {
            (Stage::Reading { began, is_tick }, Some(Answer::Plan(plan, engine_time))) => {
                self.replicas[replica].set_offset(engine_time, self.now);
                self.plan_read(replica, plan, began, is_tick);
            }
            (Stage::Reading { .. } | Stage::Restoring { .. }, None) => self.read_failed(replica),
            (Stage::Restoring { began, is_tick }, Some(answer)) => {
                if let Answer::Written(plan) | Answer::Superseded(Some(plan)) = answer {
                    self.consider(replica, &plan);
                    self.record_read(replica, began);
                }
                self.act(replica, is_tick);
            }
            (Stage::Writing, answer) => {
                self.adopt_written(replica, answer);
                self.renew_lease(replica);
            }
            (Stage::Leasing, Some(answer)) => {
                self.leased(replica, answer);
            }
            (Stage::Leading, answer) => self.adopt_written(replica, answer),
            (_, _) => {}
        }
        self.read_plans(replica);
    }

    fn plan_read(&mut self, replica: usize, plan: Option<Arc<Plan>>, began: Micros, is_tick: bool) {
        self.replicas[replica].last_success = self.now;
        let one = &self.replicas[replica];
        let known = one.plan.as_deref().map(|active| &active.plan);
        let is_same = plan.as_ref().zip(one.stored.as_ref());
        let reconciled = match is_same {
            Some((plan, stored)) if Arc::ptr_eq(plan, stored) => Reconciled::Same,
            _ => reconcile(known, plan.as_deref()),
        };
        match (reconciled, plan) {
            (Reconciled::Restore, _) => {
                let plan = known.map(restored);
                if let Some(plan) = plan {
                    self.replicas[replica].progress.restart();
                    self.replicas[replica].stage = Stage::Restoring {
                        began: self.now,
                        is_tick,
                    };
                    self.call(replica, Lane::Plans, Call::Restore(Box::new(plan)));
                }
                return;
            }
            (Reconciled::Adopt, Some(plan)) => self.adopt(replica, &plan),
            (Reconciled::Adopt | Reconciled::Same, _) => {}
        }
        self.record_read(replica, began);
        self.act(replica, is_tick);
    }

    fn consider(&mut self, replica: usize, plan: &Arc<Plan>) {
        let known = self.replicas[replica].plan.clone();
        let known = known.as_deref().map(|active| &active.plan);
        if reconcile(known, Some(plan)) == Reconciled::Adopt {
            self.adopt(replica, plan);
        }
    }

    fn adopt_written(&mut self, replica: usize, answer: Option<Answer>) {
        if let Some(Answer::Written(plan)) = answer {
            self.consider(replica, &plan);
        }
    }

    fn adopt(&mut self, replica: usize, plan: &Arc<Plan>) {
        self.check_adopted(replica, plan);
        let one = &mut self.replicas[replica];
        let halted = one.halt.clone();
        let before = one.plan.take();
        let before = before.as_deref().map(|active| &active.plan);
        let is_other = before
            .is_none_or(|before| before.differs_for_clients(plan) || before.began != plan.began);
        one.plan = Some(Arc::new(ActivePlan::new((**plan).clone())));
        one.stored = Some(Arc::clone(plan));
        if before.is_none_or(|before| before.newest().manifest != plan.newest().manifest) {
            one.steady_since = self.now;
        }
        // A halt of the same candidate continues after the plan was restored.
        if before.is_some_and(|before| {
            before.phase.is_live()
                && before.candidate == plan.candidate
                && halted.is_set(before.generation)
        }) {
            halted.set(plan.generation);
        }
        if is_other {
            one.touch_all();
        }
        for version in self.versions_of(plan) {
            self.fetch(replica, version);
        }
        self.registry_named(replica);
        if is_other {
            self.wake_later(replica);
        }
    }

    /// The requests that are held see the reading beside its plan.
    fn wake_later(&mut self, replica: usize) {
        self.replicas[replica].is_wake_due = true;
    }

    fn record_read(&mut self, replica: usize, began: Micros) {
        let one = &mut self.replicas[replica];
        one.read = one.read.max(Some(began));
        let was_down = std::mem::replace(&mut one.engine, EngineState::Up) != EngineState::Up;
        match std::mem::take(&mut one.is_wake_due) || was_down {
            true => self.wake(replica),
            false => self.wake_confirming(replica, began),
        }
    }

    fn read_failed(&mut self, replica: usize) {
        let grace = self.options.grace;
        let one = &mut self.replicas[replica];
        one.engine = match self.now - one.last_success >= grace {
            true => EngineState::DownForLong,
            false => EngineState::Down,
        };
        one.is_leader = false;
        one.progress.interrupt();
        // Without the engine, only this replica halts.
        if one.operation.take() == Some(Operation::Abort)
            && let Some(active) = one.plan.clone()
            && active.plan.phase.is_live()
            && one.halt.set(active.plan.generation)
        {
            self.wake(replica);
        }
    }

    /// Writes what follows from what this replica knows.
    fn act(&mut self, replica: usize, is_tick: bool) {
        if !is_tick && self.replicas[replica].operation.is_none() {
            return;
        }
        let plan = self.replicas[replica].plan.clone();
        let after = match plan.as_deref() {
            None => self.first_plan(replica),
            Some(active) => self.following_plan(replica, &active.plan),
        };
        match after {
            Some(after) => self.replace(replica, after, Stage::Writing),
            None => self.renew_lease(replica),
        }
    }

    fn replace(&mut self, replica: usize, after: Plan, stage: Stage) {
        let known = self.replicas[replica].plan.as_deref();
        let expected = known.map_or(0, |active| active.plan.epoch);
        let plan = Box::new(after);
        self.replicas[replica].stage = stage;
        self.call(replica, Lane::Plans, Call::Replace { expected, plan });
    }

    fn first_plan(&self, replica: usize) -> Option<Plan> {
        let newest = self.replicas[replica].newest?;
        let version = self.versions[newest].clone();
        Some(Plan::first(
            version,
            self.options.strategy.clone(),
            millis(self.now),
        ))
    }

    fn following_plan(&mut self, replica: usize, plan: &Plan) -> Option<Plan> {
        for event in self.events(replica, plan) {
            if let Some(after) = self.next(replica, plan, &event) {
                return Some(after);
            }
        }
        None
    }

    fn next(&self, replica: usize, plan: &Plan, event: &Event) -> Option<Plan> {
        let one = &self.replicas[replica];
        let keys = &self.keys;
        let has = |index: &usize| one.bundles.get(*index).is_some_and(Option::is_some);
        let known = || (0..keys.len()).filter(has).map(|index| keys[index]);
        let context = Context {
            now: millis(self.now),
            threshold_of: &|plan, count| threshold_of(plan, known(), count),
        };
        next(plan, event, &context).ok()
    }

    fn events(&mut self, replica: usize, plan: &Plan) -> Vec<Event> {
        let mut events = Vec::new();
        let one = &mut self.replicas[replica];
        if let Some(operation) = one.operation.take() {
            events.push(Event::Operator(operation, Operator::default()));
        }
        if one.is_halted() && plan.phase.is_live() {
            let tally = one.tally(&self.keys, self.now);
            let (failed, offered) = (tally.failed, tally.offered);
            events.push(Event::TooManyFailures { failed, offered });
        }
        let one = &self.replicas[replica];
        let is_revoked = |version| one.revoked.contains_key(&self.index_of(version));
        if plan.candidate.as_ref().is_some_and(is_revoked) {
            events.push(Event::CandidateDistrusted("revoked".to_owned()));
        } else if is_revoked(&plan.stable) {
            events.push(Event::StableLost("revoked".to_owned()));
        }
        events.extend(self.proposal(replica, plan));
        events
    }

    fn proposal(&self, replica: usize, plan: &Plan) -> Option<Event> {
        let one = &self.replicas[replica];
        let version = one
            .newest
            .filter(|newest| !one.revoked.contains_key(newest))?;
        let newest = Newest {
            version: self.versions[version].clone(),
            has_seen_newest: one.seen_newest.as_ref() == Some(&plan.newest().manifest),
            steady: std::time::Duration::from_micros(self.now - one.steady_since),
        };
        proposal(plan, &newest, &self.options.strategy, one.is_leader)
    }

    fn renew_lease(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        let note = one.is_leader.then(|| serde_json::to_vec(&one.progress));
        let note = note
            .transpose()
            .expect("progress is JSON")
            .unwrap_or_default();
        one.stage = Stage::Leasing;
        self.call(replica, Lane::Plans, Call::Lease { note });
    }

    fn leased(&mut self, replica: usize, answer: Answer) {
        let one = &mut self.replicas[replica];
        let was_leader = one.is_leader;
        match answer {
            Answer::Renewed => one.is_leader = true,
            Answer::Taken(note) => {
                one.is_leader = true;
                one.progress = serde_json::from_slice(&note).unwrap_or_default();
                one.progress.interrupt();
            }
            _ => one.is_leader = false,
        }
        if one.is_leader && !was_leader {
            self.say(|_| format!("replica {replica} leads"));
        }
        if self.replicas[replica].is_leader {
            self.lead(replica);
        }
    }

    fn lead(&mut self, replica: usize) {
        let Some(active) = self.replicas[replica].plan.clone() else {
            return;
        };
        let plan = &active.plan;
        let one = &mut self.replicas[replica];
        let tally = one.tally(&self.keys, self.now);
        one.progress.observe(plan, &tally, millis(self.now));
        let Some(event) = one.progress.verdict(plan, &tally) else {
            if plan.phase.is_live() {
                self.evaluate_checks(replica, plan);
            }
            return;
        };
        self.check_verdict(plan, &event);
        if let Some(after) = self.next(replica, plan, &event) {
            self.replace(replica, after, Stage::Leading);
        }
    }

    /// Evaluates the checks that are due.
    fn evaluate_checks(&mut self, replica: usize, plan: &Plan) {
        let candidate = plan.live_candidate().map(|version| self.index_of(version));
        let sample = match self.monitoring_down {
            Some(_) => Err("no answer".to_owned()),
            None if self.is_check_out_of_range(candidate) => Ok(Sample::Number(1.0)),
            None => Ok(Sample::Number(0.0)),
        };
        let progress = &mut self.replicas[replica].progress;
        for (check, state) in plan.strategy.checks.iter().zip(progress.checks_mut()) {
            if state.is_due(check, millis(self.now)) {
                state.record(check.outcome(&sample), millis(self.now));
            }
        }
    }

    /// The engine has another plan.
    pub(crate) fn plan_written(&mut self, process: Process, plan: &Plan) {
        if plan.phase == Phase::RolledBack {
            self.figures.halted(self.now);
        }
        self.check_written(plan);
        let last = plan.history.last();
        let reason = last.map(|it| it.reason.clone()).unwrap_or_default();
        let text = format!(
            "epoch {} by replica {}: {}, step {}, generation {}: {reason}; {} offered and running {:?}",
            plan.epoch,
            process.replica,
            plan.phase.label(),
            plan.step + 1,
            plan.generation,
            plan.newest().etag,
            self.figures.active,
        );
        self.say(|_| text);
        self.figures.written(self.now, plan);
    }

    // Versions.

    pub(crate) fn index_of(&self, version: &bundlegate::rollout::Version) -> VersionId {
        let found = self
            .versions
            .iter()
            .position(|it| it.manifest == version.manifest);
        found.expect("a known version")
    }

    fn versions_of(&self, plan: &Plan) -> Vec<VersionId> {
        let named = [Some(&plan.stable), plan.candidate.as_ref()];
        named
            .into_iter()
            .flatten()
            .map(|version| self.index_of(version))
            .collect()
    }

    pub(crate) fn fetched(&mut self, replica: usize, version: VersionId) {
        let one = &mut self.replicas[replica];
        one.fetching.remove(&version);
        one.fetched.insert(version);
        self.registry_named(replica);
        self.wake(replica);
    }

    /// The reference names a version, which counts once it is fetched.
    pub(crate) fn registry_named(&mut self, replica: usize) {
        let version = self.replicas[replica].named;
        let one = &mut self.replicas[replica];
        let Some(version) = version.filter(|version| one.fetched.contains(version)) else {
            return;
        };
        if one.newest != Some(version) {
            one.newest = Some(version);
            one.steady_since = self.now;
        }
        let manifest = &self.versions[version].manifest;
        let plan = one.plan.as_ref();
        if plan.is_some_and(|active| active.plan.newest().manifest == *manifest) {
            one.seen_newest = Some(manifest.clone());
        }
    }

    // The fleet view.

    pub(crate) fn exchange(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        if one.is_exchanging {
            return;
        }
        one.is_exchanging = true;
        let after = one.position;
        self.call(replica, Lane::Fleet, Call::ReadLog(after));
    }

    pub(crate) fn fleet_answered(&mut self, replica: usize, answer: Option<Answer>) {
        let one = &mut self.replicas[replica];
        match answer {
            Some(Answer::Entries(entries, position)) => {
                one.position = position;
                for entry in entries {
                    one.merge(&entry);
                }
            }
            Some(Answer::Missed(records, position)) => {
                one.position = position;
                one.merge_records(&records);
            }
            answer => {
                one.written(answer.is_some());
                one.is_exchanging = false;
                return;
            }
        }
        match one.outgoing(self.now) {
            Some(entry) => self.call(replica, Lane::Fleet, Call::WriteLog(entry)),
            None => one.is_exchanging = false,
        }
    }
}
