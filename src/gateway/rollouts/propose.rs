//! What a replica finds by itself: clients that fail, versions that the reference names or that are no longer
//! trusted.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    task::spawn_blocking,
    time::{Duration, Instant},
};

use super::{
    clients::{self, Counted},
    known::own_time,
    sync::RolloutSync,
};
use crate::{
    publish::Hint,
    rollout::{Plan, Staged, Strategy, Version, proposal, too_many_failures},
    server::Entry,
    shared::PlanWrite,
};

/// Counting takes no larger part of the time than one in this many, unless that would delay a halt by more than
/// [`MAX_PAUSE`].
const COUNTING_SHARE: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_secs(2);

impl RolloutSync {
    /// Counts the clients of live roll-outs.
    pub(super) async fn count(&mut self) {
        let live = self.known.iter().filter_map(|(bundle, known)| {
            let plan = known.plan.clone()?;
            let began = own_time(plan.plan.began, self.offset);
            plan.named_candidate?;
            Some((Arc::clone(bundle), Counted { plan, began }))
        });
        let live: HashMap<_, _> = live.collect();
        let began = Instant::now();
        if live.is_empty() || began < self.next_count {
            return;
        }
        let table = self.fleet.table.clone();
        let counted = spawn_blocking(move || clients::count(&table, &live)).await;
        let pause = (began.elapsed() * COUNTING_SHARE).min(MAX_PAUSE);
        self.next_count = Instant::now() + pause;
        for (bundle, tally) in counted.unwrap_or_default() {
            if let Some(known) = self.known.get_mut(&bundle) {
                known.tally = tally;
            }
        }
    }

    /// Rule R5: a replica that counts too many failures halts at once; the engine learns of it when it can.
    pub(super) fn halt_locally(&mut self, bundle: &Arc<str>, entry: &Entry, staged: &Staged) {
        let Some(known) = self.known.get_mut(bundle) else {
            return;
        };
        let tally = known.tally;
        let event = known
            .plan()
            .and_then(|plan| too_many_failures(plan, &tally));
        if let Some(event) = event
            && known.halt(&staged.halt, event)
        {
            let failed = tally.failed;
            tracing::warn!(
                bundle = &**bundle,
                failed,
                "this replica halts the roll-out"
            );
            entry.handle().wake_waiters();
        }
    }

    /// Proposes what this replica knows and the plan does not.
    pub(super) async fn propose(&mut self, bundle: &Arc<str>, entry: &Entry, staged: &Staged) {
        let Some(strategy) = staged.strategy.clone() else {
            return;
        };
        let is_leader = self.is_leader;
        let known = self.known.entry(Arc::clone(bundle)).or_default();
        let newest = known.newest(entry);
        let Some(plan) = known.plan() else {
            if let Some(newest) = newest {
                self.begin_plan(bundle, newest.version, &strategy).await;
            }
            return;
        };
        let is_behind = newest
            .as_ref()
            .is_none_or(|newest| newest.version.manifest != plan.newest().manifest);
        let generation = plan.generation;
        let halt = known.halt_event();
        let event = halt.or_else(|| known.trust_event(entry, staged));
        let event = event.or_else(|| proposal(plan, newest.as_ref()?, &strategy, is_leader));
        if is_behind && known.hinted != generation {
            known.hinted = generation;
            entry.hint(Hint::Push);
        }
        if let Some(event) = event {
            // It is tried again at the next tick.
            let _ = self.apply(bundle, &event).await;
        }
    }

    pub(super) async fn begin_plan(
        &mut self,
        bundle: &Arc<str>,
        version: Version,
        strategy: &Arc<Strategy>,
    ) {
        if self
            .known
            .get(bundle)
            .is_some_and(|known| known.broken.is_some())
        {
            return;
        }
        let mut plan = Plan::first(version, Strategy::clone(strategy), self.engine_now());
        plan.epoch = 1;
        if let Ok(PlanWrite::Written(stored)) = self.store.replace(bundle, &plan).await {
            self.adopt_written(bundle, &stored).await;
        }
    }
}
