//! Watchers with their handles, made from the configuration of a bundle.

use std::{sync::Arc, time::Duration};

use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::metrics::BundleMetrics;
use crate::{
    config::{BundleConfig, Cache, Config, PatternConfig, RolloutChoice},
    oci::{Digest, Reference},
    opa_check::{Checker, Checkers},
    publish::{Handle, OnMissing, State},
    registry::{LiveRegistries, Registries},
    store::Store,
    traces::Traces,
    watch::{Deltas, OpaCheck, Pipeline, Siblings, VerificationPool, WatchOptions, Watcher},
};

/// Makes watchers. It holds what all of them share.
#[derive(Debug)]
pub(super) struct WatcherFactory {
    registries: LiveRegistries,
    store: Store,
    pool: VerificationPool,
    traces: Traces,
    first_wait: Duration,
    opas: Checkers,
    numbers: Number,
}

/// The number of a watcher, by which the watchers of one process are distinguished.
pub(super) type Number = u64;

/// A watcher, and the configuration that it was made from; its policy is the last one that a
/// configuration has given it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) number: Number,
    pub(super) config: BundleConfig,
    pub(super) metrics: BundleMetrics,
    pub(super) handle: Handle,
    task: Task,
}

/// What the watchers of one bundle differ in.
struct Watching {
    reference: Reference,
    version_text: Option<Arc<str>>,
    on_missing: OnMissing,
    is_staged: bool,
    siblings: Siblings,
    /// The versions between which deltas are computed.
    deltas: Option<Arc<Deltas>>,
}

#[derive(Debug)]
enum Task {
    Idle(Box<Watcher>),
    Running(AbortHandle),
    Ended,
}

impl WatcherFactory {
    /// All watchers have the times of `config`.
    pub(super) fn new(
        config: &Config,
        registries: Registries,
        store: Store,
        traces: Traces,
    ) -> Self {
        Self {
            registries: registries.watching().into(),
            store,
            pool: VerificationPool::default(),
            traces,
            first_wait: config.long_poll.first_wait,
            opas: Checkers::default(),
            numbers: 0,
        }
    }

    /// The registries with the options and limits of `config`. They are not in force.
    ///
    /// # Errors
    /// When the options of a registry make no client.
    pub(super) async fn registries_of(&self, config: &Config) -> anyhow::Result<Arc<Registries>> {
        let (current, options) = (self.registries.current(), config.registries.clone());
        let limits = config.limits.read_limits();
        // On a blocking thread, because files are read.
        let made = spawn_blocking(move || current.with_options(options, limits)).await?;
        Ok(Arc::new(made?))
    }

    /// The registries in force.
    pub(super) fn registries(&self) -> Arc<Registries> {
        self.registries.current()
    }

    /// Puts the options of registries in force, for all watchers.
    pub(super) fn set_registries(&self, registries: Arc<Registries>) {
        self.registries.replace(registries);
    }

    /// Puts the sizes of the cache in force.
    pub(super) async fn set_cache(&self, cache: &Cache) {
        self.store.set_limits(cache.disk, cache.memory).await;
    }

    /// Sets how long the watchers that are made from now on wait for the first check.
    pub(super) fn set_first_wait(&mut self, first_wait: Duration) {
        self.first_wait = first_wait;
    }

    /// Checks that the watchers of a pattern can be made. Starts their `opa`.
    ///
    /// # Errors
    /// As [`Self::watched`].
    pub(super) async fn check(
        &mut self,
        pattern: &PatternConfig,
        registries: &Registries,
    ) -> anyhow::Result<()> {
        let sample = pattern.sample();
        start_opa(&mut self.opas, sample, || key_of_pattern(pattern)).await?;
        registries.source(sample.reference.repository())?;
        Ok(())
    }

    /// A watcher that does not run yet, by `registries` until others are in force.
    ///
    /// # Errors
    /// When its `opa` does not start, or the options of its registry make no client.
    pub(super) async fn watched(
        &mut self,
        config: &BundleConfig,
        metrics: BundleMetrics,
        registries: Arc<Registries>,
    ) -> anyhow::Result<Watched> {
        let watching = Watching {
            reference: config.reference.clone(),
            version_text: config.reference.tag().map(Into::into),
            on_missing: config.on_missing,
            is_staged: matches!(config.rollout, RolloutChoice::Strategy(_)),
            siblings: Siblings::default(),
            deltas: config.delta.map(|options| Arc::new(Deltas::new(options))),
        };
        self.make(config, metrics, registries, watching).await
    }

    /// A watcher of one version of the bundle that `newest` watches. The registry may lose the version: its tag
    /// has moved on.
    ///
    /// # Errors
    /// As [`Self::watched`].
    pub(super) async fn pinned(
        &mut self,
        newest: &Watched,
        digest: &Digest,
        siblings: Siblings,
    ) -> anyhow::Result<Watched> {
        let config = &newest.config;
        let pinned = config.reference.repository().pin(digest.clone());
        let watching = Watching {
            reference: pinned.to_string().parse()?,
            version_text: None,
            on_missing: OnMissing::Keep,
            is_staged: false,
            siblings,
            // A version that the other watcher has found has its deltas already.
            deltas: None,
        };
        let metrics = newest.metrics.clone();
        self.make(config, metrics, self.registries(), watching)
            .await
    }

    async fn make(
        &mut self,
        config: &BundleConfig,
        metrics: BundleMetrics,
        registries: Arc<Registries>,
        watching: Watching,
    ) -> anyhow::Result<Watched> {
        let checker = start_opa(&mut self.opas, config, || key_of(config)).await?;
        let pipeline = Pipeline {
            name: config.name.as_str().into(),
            source: self
                .registries
                .source_by(registries, config.reference.repository())?,
            reference: watching.reference,
            version_text: watching.version_text,
            artifact: config.artifact.clone(),
            expect: Arc::new(config.expect.clone()),
            store: self.store.clone(),
            limits: config.limits.bundle_limits(),
            opa_check: checker
                .map(|checker| OpaCheck::new(checker, self.store.check_results().clone())),
            deltas: watching.deltas,
            evidence_limit: config.limits.evidence,
            useless_referrers: Arc::default(),
            pool: self.pool.clone(),
            metrics: Arc::clone(&metrics.watcher),
            traces: self.traces.clone(),
        };
        let options = WatchOptions {
            poll: config.poll,
            confirm_within: config.confirm_within,
            on_missing: watching.on_missing,
            max_stale: config.max_stale,
            first_wait: self.first_wait,
            is_staged: watching.is_staged,
        };
        let (watcher, handle) = Watcher::new(
            pipeline,
            Arc::new(config.trust.clone()),
            options,
            watching.siblings,
        );
        handle.set_suspended(config.suspend);
        self.numbers += 1;
        Ok(Watched {
            number: self.numbers,
            config: config.clone(),
            metrics,
            handle,
            task: Task::Idle(Box::new(watcher)),
        })
    }
}

impl Watched {
    pub(super) fn run(&mut self, watchers: &mut JoinSet<()>) {
        self.task = match std::mem::replace(&mut self.task, Task::Ended) {
            Task::Idle(watcher) => Task::Running(watchers.spawn(watcher.run())),
            task => task,
        };
    }

    pub(super) fn end(self) {
        if let Task::Running(task) = self.task {
            task.abort();
        }
    }
}

/// Whether a successor replaces the watcher whose versions clients get, by their states: when it
/// serves a version, when it is withdrawn while the other one serves nothing either, and always
/// while the other one has nothing yet.
pub(super) fn may_replace(published: &State, successor: &State) -> bool {
    match (published, successor) {
        (_, State::Serving(_)) | (State::Pending, _) => true,
        (published, State::Withdrawn(_)) => published.snapshot().is_none(),
        (_, State::Pending) => false,
    }
}

/// Starts the `opa` of each bundle and pattern that has a check, for `config check`.
///
/// # Errors
/// When a program is missing, does not work as `opa`, or is older than 1.0.
pub async fn start_opas(config: &Config) -> anyhow::Result<()> {
    let mut opas = Checkers::default();
    for bundle in &config.bundles {
        start_opa(&mut opas, bundle, || key_of(bundle)).await?;
    }
    for pattern in &config.patterns {
        start_opa(&mut opas, pattern.sample(), || key_of_pattern(pattern)).await?;
    }
    Ok(())
}

/// Starts the `opa` of a bundle or pattern, whose key errors name.
async fn start_opa(
    opas: &mut Checkers,
    bundle: &BundleConfig,
    key: impl Fn() -> String,
) -> anyhow::Result<Option<Checker>> {
    let Some(options) = &bundle.opa_check else {
        return Ok(None);
    };
    let checker = opas.start(options).await.map_err(|error| {
        let key = key();
        anyhow::anyhow!(
            "{key}.opa_check.opa: {error}; name an OPA 1.0 or newer, or write `opa_check: none`"
        )
    })?;
    Ok(Some(checker))
}

fn key_of(bundle: &BundleConfig) -> String {
    format!("bundles.{}", bundle.name)
}

fn key_of_pattern(pattern: &PatternConfig) -> String {
    format!("patterns[{}]", pattern.pattern.resource())
}
