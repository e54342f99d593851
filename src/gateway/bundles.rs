//! The watchers of the configured bundles, and the catalog that shows what they publish.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::{
    metrics::{BundleFamilies, BundleMetrics},
    plan::{self, Change},
};
use crate::{
    bundle,
    config::{BundleConfig, Config},
    opa_check::{Checker, Checkers},
    publish::{self, Handle, OnWithdraw, State},
    registry::Registries,
    server::{Catalog, Entry},
    store::Store,
    verify::TrustPolicy,
    watch::{OpaCheck, Pipeline, VerificationPool, WatchOptions, Watcher},
};

/// The bundles by name, each with its watcher.
///
/// A bundle whose reference or options change gets a second watcher. What the first one serves
/// stays until the second one serves its first version: then the second one takes its place.
#[derive(Debug)]
pub(super) struct Bundles {
    parts: Parts,
    opas: Checkers,
    bundles: BTreeMap<String, Bundle>,
    catalog: Catalog,
    /// The entries of the catalog, and what each was made from.
    entries: BTreeMap<String, (Shown, Arc<Entry>)>,
    watchers: JoinSet<()>,
    /// Each ends when a bundle's second watcher is to take the place of the first.
    promotions: JoinSet<(String, Number)>,
    numbers: Number,
    /// Whether watchers start at once.
    is_running: bool,
}

/// What every pipeline is made from.
#[derive(Debug)]
struct Parts {
    registries: Arc<Registries>,
    store: Store,
    pool: VerificationPool,
    metrics: BundleFamilies,
    limits: bundle::Limits,
    evidence_limit: u64,
    first_wait: Duration,
}

/// Tells the watchers of one process apart.
type Number = u64;

#[derive(Debug)]
struct Bundle {
    /// As it is configured.
    config: BundleConfig,
    /// What clients see.
    shown: Watched,
    /// Watches what is configured, while that is something else than what is shown.
    successor: Option<Watched>,
    promotion: Option<AbortHandle>,
}

/// A watcher, and the configuration that it was made from; its policy is the last one that a
/// configuration has given it.
#[derive(Debug)]
struct Watched {
    number: Number,
    config: BundleConfig,
    metrics: BundleMetrics,
    handle: Handle,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Idle(Box<Watcher>),
    Running(AbortHandle),
    Ended,
}

/// What an entry of the catalog was made from: the watcher, its successor and its fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown(Number, Option<Number>, Option<Number>);

/// Watchers that a change needs, not yet running: nothing of it is in force yet.
#[derive(Debug)]
pub(super) struct Prepared(BTreeMap<String, Watched>);

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Watchers that have another policy now.
    pub(super) policies: usize,
    pub(super) added: usize,
    pub(super) replaced: usize,
    pub(super) removed: usize,
    /// Bundles that have another fallback now, or none.
    pub(super) fallbacks: usize,
}

impl Bundles {
    /// No bundles yet. Limits and times are those of `config`, for as long as this lives.
    pub(super) fn new(
        config: &Config,
        registries: Registries,
        store: Store,
        metrics: BundleFamilies,
    ) -> Self {
        let parts = Parts {
            registries: Arc::new(registries),
            store,
            pool: VerificationPool::default(),
            metrics,
            limits: config.limits.bundle_limits(),
            evidence_limit: config.limits.evidence,
            first_wait: config.long_poll.first_wait,
        };
        Self {
            parts,
            opas: Checkers::default(),
            bundles: BTreeMap::new(),
            catalog: Catalog::default(),
            entries: BTreeMap::new(),
            watchers: JoinSet::new(),
            promotions: JoinSet::new(),
            numbers: 0,
            is_running: false,
        }
    }

    /// What the server serves.
    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Starts the watchers of all bundles, and of those that come later at once.
    pub(super) fn run(&mut self) {
        self.is_running = true;
        for bundle in self.bundles.values_mut() {
            bundle.shown.run(&mut self.watchers);
        }
    }

    /// Makes the watchers that the changes need, and starts the `opa` of each. What is prepared
    /// and not applied has no effect.
    ///
    /// # Errors
    /// When an `opa` does not start, or the options of a registry make no client.
    pub(super) async fn prepare(&mut self, changes: &[Change]) -> anyhow::Result<Prepared> {
        let mut prepared = BTreeMap::new();
        for change in changes {
            if let Change::Add(config) | Change::Replace(config) = change {
                let watched = self.watched(config).await?;
                prepared.insert(config.name.clone(), watched);
            }
        }
        Ok(Prepared(prepared))
    }

    async fn watched(&mut self, config: &BundleConfig) -> anyhow::Result<Watched> {
        let checker = start_opa(&mut self.opas, config).await?;
        let parts = &self.parts;
        // The watcher that replaces another one counts on in the same series.
        let metrics = match self.bundles.get(&config.name) {
            Some(bundle) => bundle.shown.metrics.clone(),
            None => parts.metrics.bundle(&config.name),
        };
        let pipeline = Pipeline {
            name: config.name.as_str().into(),
            source: parts.registries.source(config.reference.repository())?,
            registries: Arc::clone(&parts.registries),
            reference: config.reference.clone(),
            expect: Arc::new(config.expect.clone()),
            store: parts.store.clone(),
            limits: parts.limits,
            opa_check: checker
                .map(|checker| OpaCheck::new(checker, parts.store.check_results().clone())),
            evidence_limit: parts.evidence_limit,
            pool: parts.pool.clone(),
            metrics: Arc::clone(&metrics.watcher),
        };
        let rules = WatchOptions {
            poll: config.poll,
            confirm_within: config.confirm_within,
            on_missing: config.on_missing,
            max_stale: config.max_stale,
            first_wait: parts.first_wait,
        };
        let (watcher, handle) = Watcher::new(pipeline, Arc::new(config.trust.clone()), rules);
        self.numbers += 1;
        Ok(Watched {
            number: self.numbers,
            config: config.clone(),
            metrics,
            handle,
            task: Task::Idle(Box::new(watcher)),
        })
    }

    /// Puts the changes that lead to `wanted` in force. `prepared` was made for them.
    ///
    /// # Errors
    /// When telling the watchers of their policies panicked, which is a bug.
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
        let Prepared(mut prepared) = prepared;
        let (mut gone, mut ended) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Add(config) => {
                    if let Some(watched) = prepared.remove(&config.name) {
                        self.add(config, watched);
                        applied.added += 1;
                    }
                }
                Change::Replace(config) => {
                    if let Some(watched) = prepared.remove(&config.name) {
                        ended.extend(self.replace(config, watched));
                        applied.replaced += 1;
                    }
                }
                Change::Remove(name) => {
                    gone.extend(self.bundles.remove(name));
                    applied.removed += 1;
                }
                Change::SetFallback { bundle, fallback } => {
                    if let Some(bundle) = self.bundles.get_mut(bundle) {
                        bundle.config.on_withdraw =
                            fallback.clone().map(|fallback| OnWithdraw { fallback });
                        applied.fallbacks += 1;
                    }
                }
                Change::SetPolicy { .. } | Change::SetClients(_) | Change::NeedsRestart(_) => {}
            }
        }
        // Before any watcher ends: a request that is held looks there for what to do then.
        self.show();
        for watched in ended {
            watched.end();
        }
        gone.into_iter().for_each(end_removed);
        Ok(applied)
    }

    /// Gives each watcher the policy by which it verifies under `wanted`. Off the async threads:
    /// thousands are told in one go.
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
            let Watched { config, handle, .. } = &bundle.shown;
            if references
                .get(name.as_str())
                .is_some_and(|reference| **reference != config.reference)
            {
                set(
                    handle,
                    &plan::policy_of_earlier_reference(&config.trust, &config.reference, wanted),
                );
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
        };
        self.bundles.insert(config.name.clone(), bundle);
    }

    /// Gives the watcher that is not shown any more, if there is one.
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
            // It was changed, and is changed back before that had an effect.
            return None;
        }
        let name = &config.name;
        if self.is_running {
            tracing::info!(bundle = name, reference = %config.reference, "bundle changed: fetching it anew");
            watched.run(&mut self.watchers);
        }
        if matches!(*shown.handle.subscribe().borrow(), State::Pending) {
            // There is nothing that could be served in the meantime.
            return Some(std::mem::replace(shown, watched));
        }
        let promotion = takes_place(shown.handle.clone(), watched.handle.clone());
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

    /// Brings the catalog up to date. Entries whose bundle has not changed stay as they are, and
    /// with them the requests that they hold.
    fn show(&mut self) {
        let entries = self
            .bundles
            .iter()
            .map(|(name, bundle)| (name.clone(), self.entry(name, bundle)));
        self.entries = entries.collect();
        self.catalog
            .replace(self.entries.values().map(|(_, entry)| Arc::clone(entry)));
    }

    /// Brings the entries of one bundle, and of the bundles that have it as their fallback, up to
    /// date.
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
        let successor = bundle.successor.as_ref();
        let number = |watched: &Watched| watched.number;
        let shown = Shown(
            bundle.shown.number,
            successor.map(number),
            fallback.map(number),
        );
        if let Some((_, entry)) = self.entries.get(name).filter(|(known, _)| *known == shown) {
            return (shown, Arc::clone(entry));
        }
        let handle = with_fallback(
            &bundle.shown.handle,
            fallback.map(|fallback| &fallback.handle),
        );
        let successor = successor.map(|successor| successor.handle.clone());
        (
            shown,
            Arc::new(Entry::new(
                handle,
                bundle.config.reference.clone(),
                successor,
                Arc::clone(&bundle.shown.metrics.requests),
            )),
        )
    }

    /// Puts successors in their places, for ever.
    ///
    /// # Errors
    /// When a watcher ends by itself, which is a bug.
    pub(super) async fn keep(&mut self) -> anyhow::Error {
        loop {
            tokio::select! {
                Some(ended) = self.watchers.join_next() => match ended {
                    // Another watcher has replaced it, or its bundle was removed.
                    Err(error) if error.is_cancelled() => {}
                    // They run for ever.
                    ended => return anyhow::anyhow!("a watcher stopped: {ended:?}; please report this"),
                },
                Some(promoted) = self.promotions.join_next() => {
                    // Otherwise its successor is gone as well.
                    if let Ok((name, number)) = promoted {
                        self.promote(&name, number);
                    }
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
    fn watched_mut(&mut self) -> impl Iterator<Item = &mut Watched> {
        [&mut self.shown].into_iter().chain(self.successor.as_mut())
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

impl Watched {
    fn run(&mut self, watchers: &mut JoinSet<()>) {
        self.task = match std::mem::replace(&mut self.task, Task::Ended) {
            Task::Idle(watcher) => Task::Running(watchers.spawn(watcher.run())),
            task => task,
        };
    }

    fn end(self) {
        if let Task::Running(task) = self.task {
            task.abort();
        }
    }
}

/// Ends the watchers of a removed bundle, and removes its series at once: what a watcher or a
/// request still counts has no effect. The files of the bundle stay: its history, and the version
/// that it serves again if it is added again.
fn end_removed(mut bundle: Bundle) {
    bundle.drop_successor();
    tracing::info!(bundle = bundle.config.name, "bundle removed");
    let metrics = bundle.shown.metrics.clone();
    bundle.shown.end();
    metrics.remove();
}

/// Completes when a successor is to take the place of the watcher that is shown: once it serves
/// something, or once it knows that there is nothing to serve while nothing else is served either.
async fn takes_place(shown: Handle, successor: Handle) {
    let (mut shown, mut successor) = (shown.subscribe(), successor.subscribe());
    loop {
        let is_served = matches!(*shown.borrow_and_update(), State::Serving(_));
        match &*successor.borrow_and_update() {
            State::Serving(_) => return,
            State::Withdrawn(_) if !is_served => return,
            State::Withdrawn(_) | State::Pending => {}
        }
        let changed = tokio::select! {
            changed = shown.changed() => changed,
            changed = successor.changed() => changed,
        };
        if changed.is_err() {
            // Both end before this only when everything ends.
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

/// Starts the `opa` of each bundle that has a check, and ends none: for `config check`.
///
/// # Errors
/// When a program is missing, does not work as `opa`, or is older than 1.0.
pub async fn start_opas(config: &Config) -> anyhow::Result<()> {
    let mut opas = Checkers::default();
    for bundle in &config.bundles {
        start_opa(&mut opas, bundle).await?;
    }
    Ok(())
}

async fn start_opa(opas: &mut Checkers, bundle: &BundleConfig) -> anyhow::Result<Option<Checker>> {
    let Some(options) = &bundle.opa_check else {
        return Ok(None);
    };
    let checker = opas.start(options).await.map_err(|error| {
        let name = &bundle.name;
        anyhow::anyhow!("bundles.{name}.opa_check.opa: {error}; name an OPA 1.0 or newer, or write `opa_check: none`")
    })?;
    Ok(Some(checker))
}

#[cfg(test)]
mod tests;
