//! The bundles that are rolled out in steps.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Bundle, Bundles, PlanUpdate, Staging, Watched};
use crate::{
    config::RolloutChoice,
    rollout::{ActivePlan, Phase, Plan, PlanWatch},
};

impl Bundles {
    /// Where plans of roll-outs are sent to be put in force, and how current they are.
    pub(in crate::gateway) fn plan_updates(&self) -> (mpsc::Sender<PlanUpdate>, PlanWatch) {
        (self.plan_updates.clone(), self.plan_watch.clone())
    }

    /// Puts a plan in force, if its bundle is rolled out in steps, or has a plan that has to stay.
    pub(in crate::gateway) async fn set_plan(&mut self, name: &str, plan: Arc<ActivePlan>) {
        let Some(bundle) = self.bundles.get_mut(name) else {
            return;
        };
        if bundle.staging.is_none() && bundle.must_keep(&plan.plan) {
            log_kept(name, &plan.plan);
            bundle.staging = Some(Staging::new(self.plan_watch.clone(), None));
        }
        let Some(staging) = &mut bundle.staging else {
            return;
        };
        let (shown, factory) = (&bundle.shown, &mut self.factory);
        let set = staging.set_plan(plan, shown, factory, &mut self.watchers);
        match set.await {
            Ok(gone) => {
                self.show_changed(name);
                gone.into_iter().for_each(Watched::end);
            }
            Err(error) => {
                tracing::error!(bundle = name, %error, "the plan of the roll-out is not in force");
            }
        }
    }

    /// Updates what depends on the watchers of references: a bundle that is withdrawn as a whole, and one whose
    /// `rollout` was removed, once its reference names another version.
    pub(super) fn update_staged(&mut self) {
        let names: Vec<_> = self
            .bundles
            .iter()
            .filter(|(name, bundle)| {
                let stage = bundle
                    .staging
                    .as_ref()
                    .map(|staging| staging.stage(&bundle.shown));
                let shown = self.entries.get(*name).map(|(shown, _)| shown.3);
                stage.is_some() && shown != Some(stage)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.show_changed(&name);
        }
        let outdated = |bundle: &Bundle| {
            bundle
                .staging
                .as_ref()
                .is_some_and(|staging| staging.strategy.is_none() && staging.is_over(&bundle.shown))
        };
        let over: Vec<_> = self
            .bundles
            .iter()
            .filter(|(_, bundle)| outdated(bundle))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.drop_staging(&name);
        }
    }

    /// Serves what the reference names.
    fn drop_staging(&mut self, name: &str) {
        let staging = self
            .bundles
            .get_mut(name)
            .and_then(|bundle| bundle.staging.take());
        if let Some(staging) = staging {
            self.show_changed(name);
            staging.end();
        }
    }

    /// Changes the roll-out that a bundle's configuration names; see [`Self::set_rollout`].
    pub(super) fn change_rollout(
        &mut self,
        name: &str,
        rollout: &RolloutChoice,
    ) -> Option<Staging> {
        let bundle = self.bundles.get_mut(name)?;
        bundle.config.rollout = rollout.clone();
        self.set_rollout(name)
    }

    /// Puts the roll-out in force that a bundle's configuration names. The catalog has to be updated. Returns
    /// the versions that no longer have to be watched.
    pub(super) fn set_rollout(&mut self, name: &str) -> Option<Staging> {
        let bundle = self.bundles.get_mut(name)?;
        let is_staged = self.rollout_metrics.is_some()
            && matches!(bundle.config.rollout, RolloutChoice::Strategy(_));
        for watched in [&bundle.shown].into_iter().chain(&bundle.successor) {
            watched.handle.set_staged(is_staged);
        }
        match &bundle.config.rollout {
            RolloutChoice::Strategy(_) if self.rollout_metrics.is_none() => {
                tracing::error!(
                    bundle = name,
                    "`rollout` needs a restart, because `shared` or `fleet.enabled` does: until then, \
                     new versions reach all clients at once"
                );
                None
            }
            RolloutChoice::Strategy(strategy) => {
                let (watch, metrics) = (&self.plan_watch, &self.rollout_metrics);
                let staging = || Staging::new(watch.clone(), metrics.clone());
                let staging = bundle.staging.get_or_insert_with(staging);
                staging.strategy = Some(Arc::clone(strategy));
                None
            }
            RolloutChoice::Absent => {
                let staging = bundle.staging.as_mut()?;
                match staging.plan() {
                    Some(plan) if plan.phase == Phase::RolledBack => {
                        log_kept(name, plan);
                        staging.strategy = None;
                        None
                    }
                    _ => bundle.staging.take(),
                }
            }
            RolloutChoice::None => bundle.staging.take(),
        }
    }
}

impl Bundle {
    /// Whether a plan has to stay in force although the configuration names no roll-out: it was removed while a
    /// version is rolled back.
    fn must_keep(&self, plan: &Plan) -> bool {
        plan.phase == Phase::RolledBack && matches!(self.config.rollout, RolloutChoice::Absent)
    }
}

fn log_kept(bundle: &str, plan: &Plan) {
    tracing::error!(
        bundle,
        refused = plan.newest().manifest.as_str(),
        "`rollout` was removed while a version is rolled back: the stable version stays until the \
         reference names another one; write `rollout: none` to serve it"
    );
}
