//! What operators ask for, and what they see.

use std::sync::Arc;

use super::sync::{Refused, RolloutSync};
use crate::{
    rollout::{ActivePlan, Event, Operation, RolloutSample, Staged},
    server::{Entry, RolloutReply, RolloutRequest, RolloutStatus},
    telemetry,
};

impl RolloutSync {
    /// Carries out what an operator asks for.
    pub(super) async fn operate(&mut self, request: &RolloutRequest) -> RolloutReply {
        let bundle: Arc<str> = request.bundle.as_str().into();
        let staged = self.staged();
        let Some((_, entry, staged)) = staged.into_iter().find(|(name, ..)| *name == bundle) else {
            return RolloutReply::Unknown;
        };
        let is_read = self.read().await;
        let plan = self.known.get(&bundle).and_then(|known| known.plan.clone());
        let Some(plan) = plan else {
            let message = "no plan of the roll-out is known yet; try again".to_owned();
            return RolloutReply::Unreachable(message);
        };
        if let Some(epoch) = request.epoch.filter(|epoch| *epoch != plan.plan.epoch) {
            let current = plan.plan.epoch;
            return RolloutReply::Conflict(format!(
                "the plan has changed: its epoch is {current}, not {epoch}; read it again"
            ));
        }
        let event = Event::Operator(request.operation, request.operator.clone());
        let refused = match is_read {
            true => match self.apply(&bundle, &event).await {
                Ok(plan) => return RolloutReply::Changed(Arc::new(plan.plan.clone())),
                Err(refused) => refused,
            },
            false => Refused::Unreachable("the shared state can't be reached".to_owned()),
        };
        match refused {
            Refused::Unchanged(unchanged) => RolloutReply::Conflict(unchanged.to_string()),
            Refused::Superseded => {
                RolloutReply::Conflict("the plan has changed meanwhile; read it again".to_owned())
            }
            Refused::Unreachable(_)
                if request.operation == Operation::Abort && plan.plan.phase.is_live() =>
            {
                if let Some(known) = self.known.get_mut(&bundle) {
                    known.halt(&staged.halt, event);
                }
                entry.handle().wake_waiters();
                RolloutReply::HaltedHere
            }
            Refused::Unreachable(error) => RolloutReply::Unreachable(error),
        }
    }

    /// Updates what operators see.
    pub(super) fn show(&mut self, staged: &[(Arc<str>, Arc<Entry>, Staged)]) {
        let engine = self.watch.engine();
        let statuses = staged.iter().map(|(bundle, entry, staged)| {
            let known = self.known.get(bundle);
            let plan = known.and_then(|known| known.plan.as_ref());
            if let Some(snapshot) = entry.handle().served_at(telemetry::now)
                && plan.is_some_and(|plan| plan.plan.stable.manifest == *snapshot.manifest_digest())
            {
                entry.newest().set_stable(&snapshot);
            }
            let is_observed = |plan: &&Arc<ActivePlan>| self.is_leader && plan.plan.phase.is_live();
            RolloutStatus {
                bundle: bundle.to_string(),
                plan: plan.map(|plan| Arc::new(plan.plan.clone())),
                tally: known.map(|known| known.tally).unwrap_or_default(),
                criteria: known
                    .zip(plan.filter(is_observed))
                    .map(|(known, plan)| known.progress.criteria(&plan.plan, &known.tally)),
                checks: known.map_or_else(Vec::new, |known| known.progress.checks().to_vec()),
                is_halted: known.is_some_and(|known| known.is_halted(&staged.halt)),
                is_leader: self.is_leader,
                engine,
            }
        });
        let statuses: Vec<_> = statuses.collect();
        self.metrics
            .set(statuses.iter().map(|status| RolloutSample {
                bundle: &status.bundle,
                plan: status.plan.as_deref(),
                tally: &status.tally,
            }));
        self.metrics.set_leader(self.is_leader);
        self.metrics.set_plan_age(self.watch.age());
        self.rollouts.replace(statuses);
    }
}
