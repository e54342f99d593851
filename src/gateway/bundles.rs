//! The watchers of the configured bundles, and the catalog that shows what they publish.

mod staged;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::{Duration, MissedTickBehavior, interval},
};

use super::{
    metrics::BundleFamilies,
    on_demand::OnDemand,
    plan::{self, Change},
    staging::{PlanUpdate, Stage, Staging},
    watched::{Number, Watched, WatcherFactory, may_replace},
};
use crate::{
    config::{BundleConfig, Config},
    publish::{self, Handle, Hint, OnWithdraw, State},
    registry::Registries,
    rollout::{PlanWatch, RolloutMetrics},
    server::{Catalog, Demand, Entry},
    store::Store,
    traces::Traces,
    verify::TrustPolicy,
};

/// Plans in the queue; the task of the roll-outs sends one and waits until it is in force.
const MAX_PLAN_UPDATES: usize = 1;
/// How often bundles that are rolled out in steps are compared with the watchers of their references.
const STAGED_INTERVAL: Duration = Duration::from_millis(500);

/// The bundles by name, each with its watcher.
///
/// A bundle whose reference or options change gets a second watcher. The version of the first one
/// stays served until the second one serves its first version: then the second one replaces it.
#[derive(Debug)]
pub(super) struct Bundles {
    factory: WatcherFactory,
    families: BundleFamilies,
    bundles: BTreeMap<String, Bundle>,
    catalog: Catalog,
    /// The entries of the catalog, each with what it was made from.
    entries: BTreeMap<String, (Shown, Arc<Entry>)>,
    watchers: JoinSet<()>,
    /// Tasks that each end when a bundle's second watcher has to replace the first.
    promotions: JoinSet<(String, Number)>,
    on_demand: OnDemand,
    /// The plans of roll-outs that are to be put in force.
    plans: mpsc::Receiver<PlanUpdate>,
    /// Keeps `plans` open.
    plan_updates: mpsc::Sender<PlanUpdate>,
    /// How current the plans are.
    plan_watch: PlanWatch,
    /// What is counted of roll-outs; `None` while no task reads plans, which the configuration at the start
    /// decides.
    rollout_metrics: Option<RolloutMetrics>,
    /// What clients ask for that is not in the catalog.
    demands: mpsc::Receiver<Demand>,
    /// Whether watchers that are added start at once.
    is_running: bool,
}

#[derive(Debug)]
struct Bundle {
    /// The configuration in force.
    config: BundleConfig,
    /// The watcher whose versions clients get.
    shown: Watched,
    /// The watcher of the configured reference and options, while clients still get the versions of
    /// an earlier configuration.
    successor: Option<Watched>,
    promotion: Option<AbortHandle>,
    /// The versions that clients get, where versions are rolled out in steps. `shown` then finds new ones.
    staging: Option<Staging>,
}

/// What an entry of the catalog was made from: the watcher, its successor, its fallback and its roll-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown(Number, Option<Number>, Option<Number>, Option<Stage>);

/// What a change needs. The watchers do not run yet, and the change is not in force.
#[derive(Debug)]
pub(super) struct Prepared {
    watched: BTreeMap<String, Watched>,
    /// The registries, if their options or limits change.
    registries: Option<Arc<Registries>>,
}

/// The number of changes that were applied, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Watchers whose policy has changed.
    pub(super) policies: usize,
    pub(super) added: usize,
    pub(super) replaced: usize,
    pub(super) removed: usize,
    /// 1 if patterns were added, changed or removed.
    pub(super) patterns: usize,
    /// Bundles that were suspended or resumed.
    pub(super) suspensions: usize,
    /// Bundles whose fallback has changed, to another one or to none.
    pub(super) fallbacks: usize,
    /// Bundles whose strategy of roll-outs has changed, to another one or to none.
    pub(super) rollouts: usize,
}

impl Bundles {
    /// No bundles yet. All bundles that are added have the times of `config`.
    pub(super) fn new(
        config: &Config,
        registries: Registries,
        store: Store,
        metrics: BundleFamilies,
        rollout_metrics: Option<RolloutMetrics>,
        traces: Traces,
    ) -> Self {
        let (catalog, demands) = Catalog::with_demands();
        let (plan_updates, plans) = mpsc::channel(MAX_PLAN_UPDATES);
        Self {
            factory: WatcherFactory::new(config, registries, store, traces),
            families: metrics,
            bundles: BTreeMap::new(),
            on_demand: OnDemand::new(catalog.clone()),
            catalog,
            plans,
            plan_updates,
            plan_watch: PlanWatch::default(),
            rollout_metrics,
            demands,
            entries: BTreeMap::new(),
            watchers: JoinSet::new(),
            promotions: JoinSet::new(),
            is_running: false,
        }
    }

    /// The catalog that the server serves.
    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Starts the watchers of all bundles. The watchers of bundles that are added later start at
    /// once.
    pub(super) fn run(&mut self) {
        self.is_running = true;
        for bundle in self.bundles.values_mut() {
            bundle.shown.run(&mut self.watchers);
        }
    }

    /// Makes the watchers and the clients of registries that the changes to `wanted` need, and starts
    /// the `opa` of each watcher. What is prepared and not applied has no effect.
    ///
    /// # Errors
    /// When an `opa` does not start, or the options of a registry make no client.
    pub(super) async fn prepare(
        &mut self,
        changes: &[Change],
        wanted: &Config,
    ) -> anyhow::Result<Prepared> {
        let are_registries_changed = changes
            .iter()
            .any(|change| matches!(change, Change::SetRegistries | Change::SetLimits));
        let mut prepared = Prepared {
            watched: BTreeMap::new(),
            registries: match are_registries_changed {
                true => Some(self.factory.registries_of(wanted).await?),
                false => None,
            },
        };
        let registries = prepared.registries.clone();
        let registries = registries.unwrap_or_else(|| self.factory.registries());
        for change in changes {
            match change {
                Change::Add(config) | Change::Replace(config) => {
                    let watched = self.watched(config, Arc::clone(&registries)).await?;
                    prepared.watched.insert(config.name.clone(), watched);
                }
                Change::SetPatterns(patterns) => {
                    for pattern in patterns {
                        self.factory.check(pattern, &registries).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(prepared)
    }

    async fn watched(
        &mut self,
        config: &BundleConfig,
        registries: Arc<Registries>,
    ) -> anyhow::Result<Watched> {
        // A watcher that replaces another one continues its series.
        let metrics = match self.bundles.get(&config.name) {
            Some(bundle) => bundle.shown.metrics.clone(),
            None => self.families.bundle(&config.name),
        };
        self.factory.watched(config, metrics, registries).await
    }

    /// Puts the changes that lead to `wanted` in force. `prepared` was made for them.
    ///
    /// # Errors
    /// When setting the policies panicked, which is a bug.
    pub(super) async fn apply(
        &mut self,
        changes: &[Change],
        prepared: Prepared,
        wanted: &Config,
    ) -> anyhow::Result<Applied> {
        let mut applied = Applied {
            policies: self.set_policies(changes, wanted).await?,
            ..Applied::default()
        };
        let Prepared {
            watched: mut prepared,
            registries,
        } = prepared;
        if let Some(registries) = registries {
            self.set_registries(registries);
        }
        self.factory.set_first_wait(wanted.long_poll.first_wait);
        let (mut gone, mut ended, mut unstaged) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Add(config) => {
                    if let Some(watched) = prepared.remove(&config.name) {
                        self.add(config, watched);
                        self.set_rollout(&config.name);
                        applied.added += 1;
                    }
                }
                Change::Replace(config) => {
                    if let Some(watched) = prepared.remove(&config.name) {
                        ended.extend(self.replace(config, watched));
                        unstaged.extend(self.set_rollout(&config.name));
                        applied.replaced += 1;
                    }
                }
                Change::Remove(name) => {
                    gone.extend(self.bundles.remove(name));
                    applied.removed += 1;
                }
                Change::SetSuspended { bundle, suspended } => {
                    if let Some(bundle) = self.bundles.get_mut(bundle) {
                        bundle.set_suspended(*suspended);
                        applied.suspensions += 1;
                    }
                }
                Change::SetFallback { bundle, fallback } => {
                    if let Some(bundle) = self.bundles.get_mut(bundle) {
                        bundle.config.on_withdraw =
                            fallback.clone().map(|fallback| OnWithdraw { fallback });
                        applied.fallbacks += 1;
                    }
                }
                Change::SetRollout { bundle, rollout } => {
                    unstaged.extend(self.change_rollout(bundle, rollout));
                    applied.rollouts += 1;
                }
                Change::SetPatterns(patterns) => {
                    self.on_demand.set_patterns(patterns, &self.families);
                    applied.patterns += 1;
                }
                Change::SetCache => self.factory.set_cache(&wanted.cache).await,
                Change::SetPolicy { .. }
                | Change::SetClients(_)
                | Change::SetAdminTokens
                | Change::SetWebhooks
                | Change::SetRegistries
                | Change::SetLimits
                | Change::SetTls
                | Change::SetServer
                | Change::SetTracing
                | Change::NeedsRestart(_) => {}
            }
        }
        // A bundle that is configured now takes the place of one that was added on demand.
        let is_free = |name: &str| !self.bundles.contains_key(name);
        ended.extend(self.on_demand.retain(is_free));
        // The catalog is updated before any watcher ends: a held request whose watcher ends finds
        // the new entry there.
        self.show();
        for watched in ended {
            watched.end();
        }
        unstaged.into_iter().for_each(Staging::end);
        gone.into_iter().for_each(end_removed);
        Ok(applied)
    }

    /// Sets the policy of each watcher to the one by which it verifies under `wanted`. This runs on
    /// a blocking thread, because it sets thousands of policies in one go.
    async fn set_policies(&mut self, changes: &[Change], wanted: &Config) -> anyhow::Result<usize> {
        // Bundles with one policy share it.
        let mut shared: HashMap<(String, String), Arc<TrustPolicy>> = HashMap::new();
        let mut policies = Vec::new();
        let mut set = |handle: &Handle, policy: &TrustPolicy| {
            let key = (policy.name().to_owned(), policy.revision().to_string());
            let policy = shared
                .entry(key)
                .or_insert_with(|| Arc::new(policy.clone()));
            policies.push((handle.clone(), Arc::clone(policy)));
        };
        for change in changes {
            if let Change::SetPatterns(patterns) = change {
                for (handle, policy) in self.on_demand.policies(patterns) {
                    set(handle, policy);
                }
            }
            let Change::SetPolicy { bundle, policy } = change else {
                continue;
            };
            let Some(bundle) = self.bundles.get_mut(bundle) else {
                continue;
            };
            bundle.config.trust = policy.clone();
            let reference = bundle.config.reference.clone();
            for watched in bundle
                .watched_mut()
                .filter(|watched| watched.config.reference == reference)
            {
                watched.config.trust = policy.clone();
                set(&watched.handle, policy);
            }
        }
        let references: HashMap<_, _> = wanted
            .bundles
            .iter()
            .map(|bundle| (bundle.name.as_str(), &bundle.reference))
            .collect();
        for (name, bundle) in &self.bundles {
            let versions = bundle.staging.iter().flat_map(Staging::watched);
            for Watched { config, handle, .. } in [&bundle.shown].into_iter().chain(versions) {
                if references
                    .get(name.as_str())
                    .is_some_and(|reference| **reference != config.reference)
                {
                    let (trust, reference) = (&config.trust, &config.reference);
                    set(
                        handle,
                        &plan::policy_of_earlier_reference(trust, reference, wanted),
                    );
                }
            }
        }
        let set = spawn_blocking(move || {
            policies
                .iter()
                .filter(|(handle, policy)| handle.set_policy(Arc::clone(policy)))
                .count()
        });
        Ok(set.await?)
    }

    /// Puts the options of registries in force. A bundle whose last check has failed is checked again:
    /// its next poll may be far away, for example where the registry has refused the credentials.
    fn set_registries(&self, registries: Arc<Registries>) {
        self.factory.set_registries(registries);
        let configured = self.bundles.values().flat_map(Bundle::watched);
        let all = configured
            .map(|watched| &watched.handle)
            .chain(self.on_demand.handles());
        for handle in all.filter(|handle| handle.status().last_failure.is_some()) {
            handle.hint(Hint::Push);
        }
    }

    fn add(&mut self, config: &BundleConfig, mut watched: Watched) {
        if self.is_running {
            tracing::info!(bundle = config.name, reference = %config.reference, "bundle added");
            watched.run(&mut self.watchers);
        }
        let bundle = Bundle {
            config: config.clone(),
            shown: watched,
            successor: None,
            promotion: None,
            staging: None,
        };
        self.bundles.insert(config.name.clone(), bundle);
    }

    /// Replaces the watcher of a bundle. Returns the watcher whose versions clients got, if it is
    /// replaced at once.
    fn replace(&mut self, config: &BundleConfig, mut watched: Watched) -> Option<Watched> {
        let bundle = self.bundles.get_mut(&config.name)?;
        bundle.config = config.clone();
        bundle.drop_successor();
        let shown = &mut bundle.shown;
        if shown.config.reference == config.reference {
            shown.config.trust = config.trust.clone();
            shown.handle.set_policy(Arc::new(config.trust.clone()));
        }
        if plan::same_watcher(&shown.config, config) {
            // The change is undone before it had an effect.
            return None;
        }
        let name = &config.name;
        if self.is_running {
            tracing::info!(bundle = name, reference = %config.reference, "bundle changed: fetching it anew");
            watched.run(&mut self.watchers);
        }
        let is_staged = bundle
            .staging
            .as_ref()
            .is_some_and(|staging| staging.plan().is_some());
        if is_staged || matches!(*shown.handle.subscribe().borrow(), State::Pending) {
            // Clients get other watchers' versions, or the watcher has nothing that could be served until the second one is ready.
            return Some(std::mem::replace(shown, watched));
        }
        let promotion = until_due(shown.handle.clone(), watched.handle.clone());
        let (name, number) = (name.clone(), watched.number);
        bundle.promotion = Some(self.promotions.spawn(async move {
            promotion.await;
            (name, number)
        }));
        bundle.successor = Some(watched);
        None
    }

    fn promote(&mut self, name: &str, number: Number) {
        let Some(bundle) = self.bundles.get_mut(name) else {
            return;
        };
        let Some(successor) = bundle
            .successor
            .take_if(|successor| successor.number == number)
        else {
            return;
        };
        bundle.promotion = None;
        let before = std::mem::replace(&mut bundle.shown, successor);
        tracing::info!(bundle = name, reference = %bundle.config.reference, "the changed bundle is served from now on");
        self.show_changed(name);
        before.end();
    }

    /// Updates the catalog. The entries of unchanged bundles stay, and so do the requests that are
    /// held for them.
    fn show(&mut self) {
        let entries = self
            .bundles
            .iter()
            .map(|(name, bundle)| (name.clone(), self.entry(name, bundle)));
        self.entries = entries.collect();
        let configured = self.entries.values().map(|(_, entry)| Arc::clone(entry));
        self.catalog
            .replace(configured.chain(self.on_demand.entries()));
    }

    /// Updates the entries of one bundle, and of the bundles that have it as their fallback.
    fn show_changed(&mut self, changed: &str) {
        let is_concerned = |name: &str, bundle: &Bundle| {
            name == changed
                || bundle
                    .config
                    .on_withdraw
                    .as_ref()
                    .is_some_and(|it| it.fallback == changed)
        };
        let concerned = self
            .bundles
            .iter()
            .filter(|(name, bundle)| is_concerned(name, bundle));
        let entries: Vec<_> = concerned
            .map(|(name, bundle)| (name.clone(), self.entry(name, bundle)))
            .collect();
        for (name, entry) in entries {
            self.catalog.insert(Arc::clone(&entry.1));
            self.entries.insert(name, entry);
        }
    }

    /// The entry of a bundle: the present one unless its watcher, successor or fallback changed.
    fn entry(&self, name: &str, bundle: &Bundle) -> (Shown, Arc<Entry>) {
        let fallback = bundle.config.on_withdraw.as_ref();
        let fallback = fallback.and_then(|on_withdraw| self.bundles.get(&on_withdraw.fallback));
        let fallback = fallback.map(|fallback| &fallback.shown);
        let staging = bundle.staging.as_ref();
        let stable = staging.and_then(|staging| staging.stable(&bundle.shown));
        // The watcher of the reference is that of another version than clients get.
        let reference = stable.map(|_| &bundle.shown);
        let successor = bundle.successor.as_ref().or(reference);
        let number = |watched: &Watched| watched.number;
        let shown = Shown(
            bundle.shown.number,
            successor.map(number),
            fallback.map(number),
            staging.map(|staging| staging.stage(&bundle.shown)),
        );
        if let Some((_, entry)) = self.entries.get(name).filter(|(known, _)| *known == shown) {
            return (shown, Arc::clone(entry));
        }
        let handle = with_fallback(
            &stable.unwrap_or(&bundle.shown).handle,
            fallback.map(|fallback| &fallback.handle),
        );
        let successor = successor.map(|successor| successor.handle.clone());
        let entry = Entry::new(
            handle,
            bundle.config.reference.clone(),
            successor,
            Arc::clone(&bundle.shown.metrics.requests),
        );
        let entry = match staging {
            Some(staging) => entry.with_rollout(staging.staged(&bundle.shown)),
            None => entry,
        };
        (shown, Arc::new(entry))
    }

    /// Replaces watchers by their successors, and adds and removes bundles on demand, until the
    /// future is dropped.
    ///
    /// # Errors
    /// When a watcher ends by itself, which is a bug.
    pub(super) async fn keep(&mut self) -> anyhow::Error {
        let mut staged_updates = interval(STAGED_INTERVAL);
        staged_updates.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(ended) = self.watchers.join_next() => match ended {
                    // Another watcher has replaced it, or its bundle was removed.
                    Err(error) if error.is_cancelled() => {}
                    // A watcher ends only when it is aborted.
                    ended => return anyhow::anyhow!("a watcher stopped: {ended:?}; please report this"),
                },
                Some(promoted) = self.promotions.join_next() => {
                    // A promotion that was aborted has no successor any more.
                    if let Ok((name, number)) = promoted {
                        self.promote(&name, number);
                    }
                }
                Some(PlanUpdate { bundle, plan, done }) = self.plans.recv() => {
                    self.set_plan(&bundle, plan).await;
                    // The task of the roll-outs ends only at the shutdown.
                    let _ = done.send(());
                }
                _ = staged_updates.tick() => self.update_staged(),
                Some(demand) = self.demands.recv() => {
                    self.on_demand.answer(demand, &mut self.factory, &mut self.watchers).await;
                }
                () = self.on_demand.wait_for_sweep() => {
                    self.on_demand.sweep(&mut self.factory, &mut self.watchers).await;
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// Ends all watchers.
    pub(super) async fn shutdown(&mut self) {
        self.promotions.shutdown().await;
        self.watchers.shutdown().await;
    }
}

impl Bundle {
    fn watched(&self) -> impl Iterator<Item = &Watched> {
        let versions = self.staging.iter().flat_map(Staging::watched);
        let reference = [&self.shown].into_iter().chain(self.successor.as_ref());
        reference.chain(versions)
    }

    fn watched_mut(&mut self) -> impl Iterator<Item = &mut Watched> {
        let versions = self.staging.iter_mut().flat_map(Staging::watched_mut);
        let reference = [&mut self.shown].into_iter().chain(self.successor.as_mut());
        reference.chain(versions)
    }

    fn set_suspended(&mut self, suspended: bool) {
        self.config.suspend = suspended;
        for watched in self.watched_mut() {
            watched.config.suspend = suspended;
            watched.handle.set_suspended(suspended);
        }
    }

    fn drop_successor(&mut self) {
        if let Some(promotion) = self.promotion.take() {
            promotion.abort();
        }
        if let Some(successor) = self.successor.take() {
            successor.end();
        }
    }
}

/// Ends the watchers of a removed bundle, and removes its series at once: what a watcher or a
/// request still counts has no effect. The files of the bundle stay: its history, and the version
/// that it serves again if it is added again.
fn end_removed(mut bundle: Bundle) {
    bundle.drop_successor();
    if let Some(staging) = bundle.staging.take() {
        staging.end();
    }
    tracing::info!(bundle = bundle.config.name, "bundle removed");
    let metrics = bundle.shown.metrics.clone();
    bundle.shown.end();
    metrics.remove();
}

/// Completes when a successor has to replace the watcher whose versions clients get
/// ([`may_replace`]).
async fn until_due(shown: Handle, successor: Handle) {
    let (mut shown, mut successor) = (shown.subscribe(), successor.subscribe());
    loop {
        let is_due = {
            let (shown, successor) = (shown.borrow_and_update(), successor.borrow_and_update());
            may_replace(&shown, &successor)
        };
        if is_due {
            return;
        }
        let changed = tokio::select! {
            changed = shown.changed() => changed,
            changed = successor.changed() => changed,
        };
        if changed.is_err() {
            // A watcher ends before this future only at the shutdown.
            return std::future::pending().await;
        }
    }
}

/// A handle to the same bundle with this fallback, or none.
fn with_fallback(handle: &Handle, fallback: Option<&Handle>) -> Handle {
    let mut handles = vec![handle.clone()];
    handles.extend(fallback.cloned());
    publish::link_fallbacks(&mut handles, |name| {
        fallback.filter(|_| name == handle.name()).map(Handle::name)
    });
    handles.swap_remove(0)
}

#[cfg(test)]
mod tests;
