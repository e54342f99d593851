//! Where plans are.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    rollout::Plan,
    shared::{
        Lease, PlanRead, PlanVersion, PlanWrite, PlansRead, SharedError, SharedState, StoredPlan,
    },
    telemetry::now_millis,
};

/// Where plans are.
#[derive(Debug)]
pub(in super::super) enum PlanStore {
    /// In the state that replicas share.
    Engine(SharedState),
    /// In this process, the only replica.
    Local(Mutex<HashMap<String, StoredPlan>>),
}

/// A plan as it is stored.
pub(super) fn stored(plan: &Plan) -> StoredPlan {
    StoredPlan {
        epoch: plan.epoch,
        rank: plan.phase.rank(),
        content: plan.to_bytes(),
    }
}

impl PlanStore {
    /// A store in this process, with these plans.
    pub(in super::super) fn local<'a>(plans: impl Iterator<Item = (&'a String, &'a Plan)>) -> Self {
        let plans = plans.map(|(bundle, plan)| (bundle.clone(), stored(plan)));
        Self::Local(Mutex::new(plans.collect()))
    }

    /// The plans of these bundles, each with the version that the caller knows, and the clock by which they are
    /// timed.
    pub(super) async fn read(
        &self,
        bundles: &[(&str, Option<PlanVersion>)],
    ) -> Result<PlansRead, SharedError> {
        let plans = match self {
            Self::Engine(shared) => return shared.read_plans(bundles).await,
            Self::Local(plans) => plans.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let read = |(name, known): &(&str, Option<PlanVersion>)| match plans.get(*name) {
            None => PlanRead::Absent,
            Some(plan) if *known == Some(plan.version()) => PlanRead::Unchanged,
            Some(plan) => PlanRead::Plan(plan.clone()),
        };
        Ok(PlansRead {
            plans: bundles.iter().map(read).collect(),
            engine_time: Duration::from_millis(now_millis()),
        })
    }

    /// Replaces a plan whose epoch is the one before that of `plan`.
    pub(super) async fn replace(
        &self,
        bundle: &str,
        plan: &Plan,
    ) -> Result<PlanWrite, SharedError> {
        let (expected, stored) = (plan.epoch.saturating_sub(1), stored(plan));
        match self {
            Self::Engine(shared) => {
                let StoredPlan { rank, content, .. } = &stored;
                shared.replace_plan(bundle, expected, *rank, content).await
            }
            Self::Local(plans) => {
                let mut plans = plans.lock().unwrap_or_else(PoisonError::into_inner);
                let standing = plans.get(bundle).cloned();
                let epoch = standing.as_ref().map_or(0, |standing| standing.epoch);
                if epoch != expected {
                    return Ok(PlanWrite::Superseded(standing));
                }
                plans.insert(bundle.to_owned(), stored.clone());
                Ok(PlanWrite::Written(stored))
            }
        }
    }

    /// Writes a plan that the store has lost.
    pub(super) async fn restore(
        &self,
        bundle: &str,
        plan: &Plan,
    ) -> Result<PlanWrite, SharedError> {
        match self {
            Self::Engine(shared) => shared.restore_plan(bundle, &stored(plan)).await,
            Self::Local(_) => self.replace(bundle, plan).await,
        }
    }

    /// Takes or renews the lease of the leader.
    pub(super) async fn lease(
        &self,
        holder: u64,
        ttl: Duration,
        note: &[u8],
    ) -> Result<Lease, SharedError> {
        match self {
            Self::Engine(shared) => shared.lease(holder, ttl, note).await,
            Self::Local(_) => Ok(Lease::Renewed),
        }
    }
}
