//! Bundles that are added when a client asks for them, and removed when none does any more.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use moka::sync::Cache;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    metrics::{BundleFamilies, BundleMetrics},
    plan,
    watched::{Watched, WatcherFactory, may_replace},
};
use crate::{
    catalog::{Demanded, Pattern, Refusal},
    config::{BundleConfig, PatternConfig},
    publish::{FailureClass, Handle, State},
    server::{Catalog, Demand, Entry, RequestMetrics},
    verify::TrustPolicy,
};

/// A bundle that serves nothing is removed this long after the last request, or after `idle` if
/// that is shorter.
const UNSERVED_IDLE: Duration = Duration::from_secs(60);
/// A failure of a bundle that had to make room for others is remembered for this long.
const FAILURE_TTL: Duration = Duration::from_secs(60);
/// Failures that are remembered for a pattern.
const MAX_FAILURES: u64 = 16_384;
/// After nothing could be removed to make room, nothing is looked for until this has passed.
const FULL_INTERVAL: Duration = Duration::from_secs(1);
/// The share of a pattern's bundles that is removed at once to make room: each search looks at all
/// of them.
const ROOM_SHARE: usize = 16;
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(250);
const MAX_SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// The patterns, each with the bundles that clients have asked for.
#[derive(Debug)]
pub(super) struct OnDemand {
    catalog: Catalog,
    patterns: Vec<Running>,
    next_sweep: Instant,
}

/// A pattern in force.
#[derive(Debug)]
struct Running {
    config: PatternConfig,
    pattern: Arc<Pattern>,
    /// The series that all its bundles share.
    metrics: BundleMetrics,
    bundles: HashMap<String, Added>,
    failures: Cache<String, Refusal>,
    /// When a search for room found none.
    full_since: Option<Instant>,
}

#[derive(Debug)]
struct Added {
    watched: Watched,
    entry: Arc<Entry>,
    /// The watcher with other options of the pattern, while clients still get the versions of the
    /// present one.
    successor: Option<Watched>,
}

impl OnDemand {
    /// No patterns yet.
    pub(super) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            patterns: Vec::new(),
            next_sweep: Instant::now(),
        }
    }

    /// The entries of all bundles that were added.
    pub(super) fn entries(&self) -> impl Iterator<Item = Arc<Entry>> {
        let bundles = self.patterns.iter().flat_map(|it| it.bundles.values());
        bundles.map(|added| Arc::clone(&added.entry))
    }

    /// The handles of all bundles.
    pub(super) fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.patterns.iter().flat_map(Running::handles)
    }

    /// The handles of all bundles, each with its policy under the wanted patterns.
    pub(super) fn policies<'a>(
        &'a self,
        wanted: &'a [PatternConfig],
    ) -> impl Iterator<Item = (&'a Handle, &'a TrustPolicy)> {
        self.patterns.iter().flat_map(|running| {
            let wanted = wanted.iter().find(|wanted| running.continues_as(wanted));
            let handles = running.handles();
            wanted
                .into_iter()
                .flat_map(move |wanted| handles.clone().map(|handle| (handle, wanted.trust())))
        })
    }

    /// Replaces the patterns. The bundles of a pattern with the same resource and reference stay; if
    /// its other options have changed, each gets a watcher with them in the next sweeps
    /// ([`Self::sweep`]). The caller has set the policies, and updates the catalog.
    pub(super) fn set_patterns(&mut self, wanted: &[PatternConfig], families: &BundleFamilies) {
        let mut before = std::mem::take(&mut self.patterns);
        for config in wanted {
            let running = before.iter().position(|it| it.continues_as(config));
            let running = match running.map(|index| before.swap_remove(index)) {
                Some(running) => Running {
                    config: config.clone(),
                    full_since: None,
                    ..running
                },
                None => Running::new(config, families),
            };
            self.patterns.push(running);
        }
        let patterns = self.patterns.iter();
        self.catalog
            .set_patterns(patterns.map(|running| Arc::clone(&running.pattern)));
        for gone in before {
            for (name, added) in gone.bundles {
                self.catalog.remove(&name);
                added.end();
            }
            gone.metrics.remove();
        }
        self.next_sweep = Instant::now();
    }

    /// Removes the bundles whose name is not to be kept. Returns their watchers, which the caller
    /// ends after it has updated the catalog.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) -> Vec<Watched> {
        let mut ended = Vec::new();
        for running in &mut self.patterns {
            let gone = running.bundles.extract_if(|name, _| !is_kept(name));
            for (_, added) in gone {
                ended.push(added.watched);
                ended.extend(added.successor);
            }
        }
        ended
    }

    /// Answers a client that asks for a bundle: adds the bundle, unless it is there or there is no
    /// room. Cancel-safe: a demand that is dropped is made again.
    pub(super) async fn answer(
        &mut self,
        demand: Demand,
        factory: &mut WatcherFactory,
        watchers: &mut JoinSet<()>,
    ) {
        // A client that is gone starts no watcher.
        if demand.is_abandoned() {
            return;
        }
        let demanded = self.add(&demand, factory, watchers).await;
        demand.reply(demanded);
    }

    async fn add(
        &mut self,
        demand: &Demand,
        factory: &mut WatcherFactory,
        watchers: &mut JoinSet<()>,
    ) -> Demanded<RequestMetrics> {
        let name = &*demand.name;
        // Many clients ask for one bundle at the same time.
        if let Some(entry) = self.catalog.get(name) {
            return Demanded::Added(entry);
        }
        let found = self.patterns.iter_mut().find_map(|running| {
            let reference = running.pattern.reference(name)?;
            Some((running, reference))
        });
        let Some((running, reference)) = found else {
            return Demanded::Unknown;
        };
        if let Some(failure) = running.failures.get(name) {
            return Demanded::Refused(failure);
        }
        if let Err(refusal) = running.make_room(&self.catalog) {
            return Demanded::Refused(refusal);
        }
        let config = running.config.bundle(name, reference);
        let mut watched = match factory
            .watched(&config, running.metrics.clone(), factory.registries())
            .await
        {
            Ok(watched) => watched,
            Err(error) => {
                return Demanded::Refused(Refusal {
                    is_withdrawn: false,
                    message: error.to_string(),
                });
            }
        };
        if let Some(parent) = demand.traced {
            watched.handle.set_traced(parent);
        }
        watched.run(watchers);
        let entry = running.entry(&watched);
        tracing::debug!(
            bundle = name,
            pattern = running.pattern.resource(),
            "bundle added"
        );
        self.catalog.insert(Arc::clone(&entry));
        let added = Added {
            watched,
            entry: Arc::clone(&entry),
            successor: None,
        };
        running.bundles.insert(name.to_owned(), added);
        Demanded::Added(entry)
    }

    /// Completes when [`Self::sweep`] is due; never without patterns. Cancel-safe.
    pub(super) async fn wait_for_sweep(&self) {
        if self.patterns.is_empty() {
            return std::future::pending().await;
        }
        sleep_until(self.next_sweep).await;
    }

    /// Removes the bundles that no client has asked for within `idle`, and replaces the watchers of
    /// those whose pattern has other options now.
    pub(super) async fn sweep(&mut self, factory: &mut WatcherFactory, watchers: &mut JoinSet<()>) {
        let mut interval = MAX_SWEEP_INTERVAL;
        for running in &mut self.patterns {
            running.remove_idle(&self.catalog);
            interval = interval.min(running.config.idle / 4);
            if running
                .replace_outdated(&self.catalog, factory, watchers)
                .await
            {
                interval = MIN_SWEEP_INTERVAL;
            }
        }
        self.next_sweep = Instant::now() + interval.max(MIN_SWEEP_INTERVAL);
    }
}

impl Running {
    fn new(config: &PatternConfig, families: &BundleFamilies) -> Self {
        Self {
            pattern: Arc::new(config.pattern.clone()),
            metrics: families.bundle(config.pattern.resource()),
            config: config.clone(),
            bundles: HashMap::new(),
            failures: Cache::builder()
                .max_capacity(MAX_FAILURES)
                .time_to_live(FAILURE_TTL)
                .build(),
            full_since: None,
        }
    }

    /// Whether the bundles of this pattern are those of `wanted`, under its policy.
    fn continues_as(&self, wanted: &PatternConfig) -> bool {
        *self.pattern == wanted.pattern
    }

    fn handles(&self) -> impl Iterator<Item = &Handle> + Clone {
        self.bundles.values().flat_map(|added| {
            let watchers = [&added.watched].into_iter().chain(&added.successor);
            watchers.map(|watched| &watched.handle)
        })
    }

    fn entry(&self, watched: &Watched) -> Arc<Entry> {
        Arc::new(Entry::on_demand(
            watched.handle.clone(),
            watched.config.reference.clone(),
            Arc::clone(&self.metrics.requests),
            self.pattern.resource().into(),
        ))
    }

    /// The configuration of one of its bundles now.
    fn config_of(&self, watched: &Watched) -> BundleConfig {
        let BundleConfig {
            name, reference, ..
        } = &watched.config;
        self.config.bundle(name, reference.clone())
    }

    fn is_current(&self, watched: &Watched) -> bool {
        plan::same_watcher(&watched.config, &self.config_of(watched))
    }

    /// Gives each bundle a watcher with the options of the pattern. The version of the earlier one
    /// stays served until the other one serves. Returns whether there are bundles left whose watcher
    /// has other options. Cancel-safe.
    async fn replace_outdated(
        &mut self,
        catalog: &Catalog,
        factory: &mut WatcherFactory,
        watchers: &mut JoinSet<()>,
    ) -> bool {
        let is_outdated =
            |added: &Added| added.successor.is_some() || !self.is_current(&added.watched);
        let mut is_left = false;
        for (_, name) in self.names_of(is_outdated) {
            if let Some(config) = self.successor_config(&name) {
                // It was possible when the configuration was applied.
                let made = factory
                    .watched(&config, self.metrics.clone(), factory.registries())
                    .await;
                if let (Ok(mut successor), Some(added)) = (made, self.bundles.get_mut(&name)) {
                    successor.run(watchers);
                    added.set_successor(Some(successor));
                }
            }
            is_left |= !self.promote(&name, catalog);
        }
        is_left
    }

    /// The configuration for another watcher of a bundle, if it needs one.
    fn successor_config(&self, name: &str) -> Option<BundleConfig> {
        let added = self.bundles.get(name)?;
        let latest = added.successor.as_ref().unwrap_or(&added.watched);
        (!self.is_current(latest)).then(|| self.config_of(latest))
    }

    /// Replaces the watcher of a bundle by its successor once that serves. Returns whether the
    /// bundle has a watcher with the present options.
    fn promote(&mut self, name: &str, catalog: &Catalog) -> bool {
        let Some(mut added) = self.bundles.remove(name) else {
            return true;
        };
        if self.is_current(&added.watched) {
            // The change was undone.
            added.set_successor(None);
        }
        let published = added.watched.handle.subscribe();
        let is_due = |successor: &mut Watched| {
            may_replace(&published.borrow(), &successor.handle.subscribe().borrow())
        };
        if let Some(successor) = added.successor.take_if(is_due) {
            added.entry = self.entry(&successor);
            catalog.insert(Arc::clone(&added.entry));
            std::mem::replace(&mut added.watched, successor).end();
        }
        let is_done = self.is_current(&added.watched);
        self.bundles.insert(name.to_owned(), added);
        is_done
    }

    /// The bundles that satisfy `is_wanted`, each with its time since the last request.
    fn names_of(&self, is_wanted: impl Fn(&Added) -> bool) -> Vec<(Duration, String)> {
        let wanted = self.bundles.iter().filter(|(_, added)| is_wanted(added));
        wanted
            .map(|(name, added)| (added.entry.idle_for(), name.clone()))
            .collect()
    }

    fn remove_idle(&mut self, catalog: &Catalog) {
        let idle = self.config.idle;
        let is_expired = |added: &Added| {
            let limit = if added.is_served() {
                idle
            } else {
                idle.min(UNSERVED_IDLE)
            };
            added.entry.idle_for() >= limit
        };
        for (name, added) in self.bundles.extract_if(|_, added| is_expired(added)) {
            tracing::debug!(
                bundle = name,
                pattern = self.pattern.resource(),
                "idle bundle removed"
            );
            catalog.remove(&name);
            added.end();
        }
    }

    /// Makes room for one more bundle: if `max` is reached, removes those that serve nothing and
    /// that no client waits for, and remembers their failures.
    fn make_room(&mut self, catalog: &Catalog) -> Result<(), Refusal> {
        let max = self.config.max;
        if self.bundles.len() < max {
            return Ok(());
        }
        let is_full = Refusal {
            is_withdrawn: false,
            message: format!(
                "the pattern {} has {max} bundles, which is its maximum (patterns[].max)",
                self.pattern.resource()
            ),
        };
        if self
            .full_since
            .is_some_and(|since| since.elapsed() < FULL_INTERVAL)
        {
            return Err(is_full);
        }
        // First those that no client waits for; then those whose reference does not exist, so that a
        // client that waits for such names keeps no others out.
        let mut unserved = self.names_of(|added| added.is_idle() && !added.is_served());
        if unserved.is_empty() {
            unserved = self.names_of(Added::is_missing);
        }
        unserved.sort_unstable_by(|one, other| other.cmp(one));
        // Bundles beyond a `max` that was lowered go as well.
        unserved.truncate((max / ROOM_SHARE).max(1) + self.bundles.len() - max);
        let removed: HashSet<String> = unserved.into_iter().map(|(_, name)| name).collect();
        for (name, added) in self.bundles.extract_if(|name, _| removed.contains(name)) {
            self.failures.insert(name.clone(), added.failure());
            catalog.remove(&name);
            added.end();
        }
        if self.bundles.len() < max {
            return Ok(());
        }
        if self.full_since.replace(Instant::now()).is_none() {
            tracing::warn!(
                pattern = self.pattern.resource(),
                max,
                "the pattern has as many bundles as it may have: other names are refused; raise patterns[].max"
            );
        }
        Err(is_full)
    }
}

impl Added {
    fn is_served(&self) -> bool {
        self.watched
            .handle
            .subscribe()
            .borrow()
            .snapshot()
            .is_some()
    }

    fn is_idle(&self) -> bool {
        self.entry.requests() == Some(0) && self.watched.handle.has_concluded()
    }

    /// Whether nothing is served because the reference does not exist.
    fn is_missing(&self) -> bool {
        let failure = self.watched.handle.status().last_failure;
        !self.is_served() && failure.is_some_and(|failure| failure.class == FailureClass::NotFound)
    }

    fn set_successor(&mut self, successor: Option<Watched>) {
        if let Some(before) = std::mem::replace(&mut self.successor, successor) {
            before.end();
        }
    }

    fn end(mut self) {
        self.set_successor(None);
        self.watched.end();
    }

    /// Why the bundle serves nothing.
    fn failure(&self) -> Refusal {
        let handle = &self.watched.handle;
        if let State::Withdrawn(withdrawal) = &*handle.subscribe().borrow() {
            return Refusal {
                is_withdrawn: true,
                message: withdrawal.reason.to_string(),
            };
        }
        let failure = handle.status().last_failure.map(|failure| failure.message);
        Refusal {
            is_withdrawn: false,
            message: failure.unwrap_or_else(|| "it could not be fetched".to_owned()),
        }
    }
}
