//! What roll-outs need from the start of the gateway on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;

use super::{
    plan_file::PlanFile,
    store::PlanStore,
    sync::{RolloutSync, SyncOptions},
};
use crate::{
    config::{Config, SharedConfig},
    fleet::Fleet,
    gateway::bundles::Bundles,
    metrics::Metrics,
    promql::PromqlClient,
    rollout::{ActivePlan, RolloutMetrics},
    server::{AdminOptions, Rollouts},
    shared::SharedState,
};

/// What the task of the roll-outs is made from. The configuration at the start decides whether there is one:
/// it needs a place for the plans, and the fleet view.
#[derive(Debug)]
pub(in super::super) struct RolloutStart {
    fleet: Fleet,
    grace: Duration,
    prometheus: Option<PromqlClient>,
    pub(in super::super) metrics: RolloutMetrics,
}

impl RolloutStart {
    /// # Errors
    /// When the options of Prometheus make no client, or the metrics exist already.
    pub(in super::super) fn of(
        config: &Config,
        fleet: Option<&Fleet>,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Self>> {
        let Some((shared, fleet)) = config.shared.as_ref().zip(fleet) else {
            return Ok(None);
        };
        let prometheus = config.prometheus.clone().map(PromqlClient::new).transpose();
        Ok(Some(Self {
            fleet: fleet.clone(),
            grace: SharedConfig::grace(shared),
            prometheus: prometheus.context("prometheus")?,
            metrics: RolloutMetrics::new(metrics).context("metrics")?,
        }))
    }

    /// The task, which does not run yet. `plans`: those on disk, which are in force.
    pub(in super::super) fn sync(
        self,
        shared: Option<SharedState>,
        file: PlanFile,
        plans: BTreeMap<String, Arc<ActivePlan>>,
        bundles: &Bundles,
        admin: &mut AdminOptions,
    ) -> RolloutSync {
        let (updates, watch) = bundles.plan_updates();
        let (rollouts, requests) = Rollouts::new();
        admin.rollouts = rollouts.clone();
        RolloutSync::new(SyncOptions {
            store: match shared {
                Some(shared) => PlanStore::Engine(shared),
                None => {
                    PlanStore::local(plans.iter().map(|(bundle, active)| (bundle, &active.plan)))
                }
            },
            grace: self.grace,
            catalog: bundles.catalog().clone(),
            fleet: self.fleet,
            watch,
            updates,
            file,
            prometheus: self.prometheus,
            rollouts: (rollouts, requests),
            metrics: self.metrics,
            plans,
        })
    }
}

/// Puts the plans on disk in force, before anything is served: a version that was rolled back must not be served
/// for a moment.
pub(in super::super) async fn restore_plans(
    file: &PlanFile,
    bundles: &mut Bundles,
) -> BTreeMap<String, Arc<ActivePlan>> {
    let mut plans = BTreeMap::new();
    for (bundle, plan) in file.read().await {
        let plan = Arc::new(ActivePlan::new(plan));
        bundles.set_plan(&bundle, Arc::clone(&plan)).await;
        plans.insert(bundle, plan);
    }
    plans
}
