//! What the replica that holds the lease does: it observes the steps and evaluates the checks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    checks::{CheckKey, Evaluated},
    sync::RolloutSync,
};
use crate::{
    rollout::{Millis, Plan, Progress, Staged},
    server::Entry,
    shared::Lease,
};

/// How long the lease of the leader lasts.
const LEASE: Duration = Duration::from_secs(15);

impl RolloutSync {
    /// Observes the steps, if this replica holds the lease.
    pub(super) async fn lead(&mut self, staged: &[(Arc<str>, Arc<Entry>, Staged)]) {
        let note: BTreeMap<&str, &Progress> = self
            .known
            .iter()
            .map(|(bundle, known)| (&**bundle, &known.progress))
            .collect();
        let note = serde_json::to_vec(&note).unwrap_or_default();
        match self.store.lease(self.id, LEASE, &note).await {
            Ok(Lease::Renewed) => {}
            Ok(Lease::Taken(note)) => self.continue_with(&note),
            Ok(Lease::Held) | Err(_) => {
                self.is_leader = false;
                return;
            }
        }
        self.is_leader = true;
        let now = self.engine_now();
        for (bundle, ..) in staged {
            let Some(known) = self.known.get_mut(bundle) else {
                continue;
            };
            let Some(active) = known.plan.clone() else {
                continue;
            };
            let plan = &active.plan;
            known.progress.observe(plan, &known.tally, now);
            if let Some(event) = known.progress.verdict(plan, &known.tally) {
                let _ = self.apply(bundle, &event).await;
                continue;
            }
            if plan.phase.is_live() {
                self.begin_checks(bundle, plan, now);
            }
        }
    }

    /// Continues with what the last leader has observed.
    pub(super) fn continue_with(&mut self, note: &[u8]) {
        let note: BTreeMap<String, Progress> = serde_json::from_slice(note).unwrap_or_default();
        for (bundle, progress) in note {
            if let Some(known) = self.known.get_mut(&*bundle) {
                known.progress = progress;
                known.progress.interrupt();
            }
        }
    }

    pub(super) fn begin_checks(&mut self, bundle: &Arc<str>, plan: &Plan, now: Millis) {
        let Some(known) = self.known.get(bundle) else {
            return;
        };
        let checks = plan.strategy.checks.iter().zip(known.progress.checks());
        let due: Vec<_> = checks
            .enumerate()
            .filter(|(_, (check, state))| state.is_due(check, now))
            .map(|(index, _)| index)
            .collect();
        for index in due {
            let key = CheckKey {
                bundle: Arc::clone(bundle),
                generation: plan.generation,
                step: plan.step,
                index,
            };
            self.evaluations.begin(key, plan);
        }
    }

    pub(super) fn record_check(&mut self, evaluated: Evaluated) {
        let Evaluated { key, outcome } = evaluated;
        let now = self.engine_now();
        let Some(known) = self.known.get_mut(&key.bundle) else {
            return;
        };
        let Some(active) = known.plan.clone() else {
            return;
        };
        let plan = &active.plan;
        if (plan.generation, plan.step) != (key.generation, key.step) {
            return;
        }
        known.progress.follow(plan);
        let check = plan.strategy.checks.get(key.index);
        if let Some((check, state)) = check.zip(known.progress.checks_mut().get_mut(key.index)) {
            self.metrics
                .count_check(&key.bundle, &check.name, outcome.label());
            state.record(outcome, now);
        }
    }
}
