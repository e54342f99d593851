//! The gateway as a whole: from a checked configuration to watchers and a server, until it has
//! drained.

use std::{convert::Infallible, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context as _;
use tokio::{
    runtime::Handle,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    bundles::Bundles,
    fleet_sync::FleetSync,
    metrics::GatewayMetrics,
    options::{apply_settings, warn, warn_of_expired},
    plan::Change,
    reload::{Cause, LiveOptions, Reload},
    rollouts::{self, PlanFile, RolloutStart, RolloutSync},
    supervision::{self, Supervision},
};
use crate::{
    config::{self, Config, SharedConfig},
    metrics::Metrics,
    registry::Registries,
    server::{self, AdminAddress, Catalog, ConfigReloads, LiveSettings, Server},
    service_manager::ServiceManager,
    shared::{SharedMetrics, SharedState},
    store::{self, Store, StoreMetrics},
    telemetry,
    traces::Traces,
    verify::TrustRoots,
};

/// A gateway whose listeners are bound and whose watchers run. `serve`, `dev`, the tests and the
/// benches all compose it here.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
    /// The runtime that the server runs on.
    serving: Handle,
    bundles: Bundles,
    store: Store,
    metrics: Metrics,
    traces: Traces,
    settings: LiveSettings,
    /// Applies changes of the configuration file, where there is one.
    reload: Option<Reload>,
    reloads: ConfigReloads,
    manager: ServiceManager,
    /// The part of this replica in the shared fleet view, if there is one.
    fleet_sync: Option<FleetSync>,
    /// The roll-outs, if the configuration allows any.
    rollout_sync: Option<RolloutSync>,
}

impl Gateway {
    /// Starts a gateway as [`Self::start_on`] does, on one runtime for everything.
    ///
    /// # Errors
    /// As [`Self::start_on`].
    pub async fn start(
        config: Config,
        options: server::Options,
        file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        Self::start_on(Handle::current(), config, options, file).await
    }

    /// Opens the cache, starts the watchers and binds the listeners. The runtime `serving` runs
    /// the server; everything else runs on the current one. `file` is the file that `config` was
    /// read from; changes of it are applied while the gateway runs. Without it the configuration
    /// never changes.
    ///
    /// # Errors
    /// When the clock or the cache folder is unusable, an `opa` does not start, a registry's options
    /// make no client, or an address can't be bound.
    pub async fn start_on(
        serving: Handle,
        config: Config,
        mut options: server::Options,
        file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        // hyper panics where it can't write the time into a `Date` header.
        anyhow::ensure!(
            telemetry::is_clock_usable(),
            "the system's clock is before 1970 or after 9999 ({}); set it, and start again",
            telemetry::now()
        );
        warn_of_expired(&config.certificates);
        warn(&config);
        let metrics = GatewayMetrics::new().context("metrics")?;
        let registries = Registries::new(
            config.registries.clone(),
            config.limits.read_limits(),
            metrics.registries,
        );
        let store = open_store(&config.cache, metrics.store).await?;
        let traces = metrics.traces;
        traces.replace(config.tracing.as_ref())?;
        options.traces = traces.clone();
        let rollouts = RolloutStart::of(&config, options.fleet.as_ref(), &metrics.registry)?;
        let mut bundles = Bundles::new(
            &config,
            registries,
            store.clone(),
            metrics.bundles,
            rollouts.as_ref().map(|start| start.metrics.clone()),
            traces.clone(),
        );
        let shared = shared_state(&config, &metrics.registry).await?;
        let fleet_sync = FleetSync::of(shared.clone(), options.fleet.as_ref());
        let folder = config.cache.directory.clone();
        let folder = folder.filter(|_| store.is_persistent());
        let plan_file = PlanFile::new(folder.as_deref());
        let mut all: Vec<_> = config.bundles.iter().cloned().map(Change::Add).collect();
        all.push(Change::SetPatterns(config.patterns.clone()));
        let prepared = bundles.prepare(&all, &config).await?;
        bundles.apply(&all, prepared, &config).await?;
        let reload = match file {
            Some(file) => {
                let roots = TrustRoots::new(folder.map(|folder| folder.join("tuf")), metrics.roots);
                let reload = Reload::new(
                    file.to_owned(),
                    config,
                    LiveOptions::of(&options),
                    roots,
                    metrics.reload,
                )?;
                // Nothing is verified with trust roots that are older than those on disk.
                Some(reload.read(Cause::Start, &mut bundles).await?)
            }
            None => None,
        };
        let plans = rollouts::restore_plans(&plan_file, &mut bundles).await;
        let mut rollout_sync = rollouts
            .map(|start| start.sync(shared, plan_file, plans, &bundles, &mut options.admin));
        options.admin.cache_problem = store.problem();
        if let Some(reload) = &reload {
            options.admin.trust_roots = reload.trust_roots();
        }
        let settings = server::Settings::clone(&options.settings.current());
        apply_settings(&options.settings, settings);
        let (settings, reloads) = (options.settings.clone(), options.admin.reloads.clone());
        let catalog = bundles.catalog().clone();
        let binding = Server::bind(options, catalog, metrics.server, Handle::current());
        let server = serving.spawn(binding).await??;
        bundles.run();
        read_plans(rollout_sync.as_mut(), &mut bundles).await?;
        Ok(Self {
            server,
            serving,
            bundles,
            store,
            metrics: metrics.registry,
            traces,
            settings,
            reload,
            reloads,
            manager: ServiceManager::default(),
            fleet_sync,
            rollout_sync,
        })
    }

    /// Tells a service manager of the state of this gateway, from [`Self::run`] on.
    #[must_use]
    pub fn report_to(mut self, manager: ServiceManager) -> Self {
        if let Some(reload) = &mut self.reload {
            reload.report_to(manager.clone());
        }
        self.manager = manager;
        self
    }

    /// The address of the data listener.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn data_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.data_address()?)
    }

    /// Where the admin listener listens.
    ///
    /// # Errors
    /// When the system does not report its address.
    pub fn admin_address(&self) -> anyhow::Result<AdminAddress> {
        Ok(self.server.admin_address()?)
    }

    /// The metrics that the admin listener renders.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The bundles that are served.
    pub fn catalog(&self) -> &Catalog {
        self.bundles.catalog()
    }

    /// Waits until every bundle is served, for at most `limit` each.
    ///
    /// # Errors
    /// When a bundle is not served in time, with its last failure.
    pub async fn first_snapshots(&self, limit: Duration) -> anyhow::Result<()> {
        for entry in self.catalog().entries() {
            let handle = entry.handle();
            let mut state = handle.subscribe();
            let serving = state.wait_for(|state| state.snapshot().is_some());
            if timeout(limit, serving)
                .await
                .is_ok_and(|served| served.is_ok())
            {
                continue;
            }
            let failure = handle
                .status()
                .last_failure
                .map_or_else(|| "no answer yet".to_owned(), |last| last.message);
            anyhow::bail!("{}: not served within {limit:?}: {failure}", handle.name());
        }
        Ok(())
    }

    /// Serves until `drain` completes, then drains. Ends at once when `exit` completes.
    ///
    /// # Errors
    /// When the server or a watcher ends, or the configuration can't be read again, which are
    /// bugs.
    pub async fn run(
        self,
        drain: impl Future<Output = ()> + Send + 'static,
        exit: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Self {
            server,
            serving,
            mut bundles,
            store,
            traces,
            settings,
            reload,
            reloads,
            manager,
            fleet_sync,
            rollout_sync,
            ..
        } = self;
        let supervision = Supervision {
            catalog: bundles.catalog().clone(),
            readiness: server.readiness(),
            liveness: server.liveness(),
            reloads,
            manager: manager.clone(),
        };
        let drain = async move {
            drain.await;
            let limit = supervision::shutdown_limit(settings.current().drain);
            manager.send_stopping(limit).await;
        };
        // Dropping the set ends the server.
        let mut tasks = JoinSet::new();
        tasks.spawn_on(server.run(drain), &serving);
        let ended = tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(()) => {
                    tracing::info!("drained");
                    Ok(())
                }
                Err(error) => Err(anyhow::anyhow!("the server stopped: {error}; please report this")),
            },
            () = exit => Ok(()),
            never = supervision.report() => match never {},
            never = synchronize(fleet_sync) => match never {},
            never = roll_out(rollout_sync) => match never {},
            broken = follow(reload, &mut bundles) => Err(broken),
        };
        tasks.shutdown().await;
        bundles.shutdown().await;
        store.close().await;
        traces.shut_down().await;
        ended
    }
}

/// Shares the fleet view until the future is dropped.
async fn synchronize(fleet_sync: Option<FleetSync>) -> Infallible {
    match fleet_sync {
        Some(fleet_sync) => fleet_sync.run().await,
        None => std::future::pending().await,
    }
}

/// Reads the plans of the shared state, if it answers at once: a new replica knows none.
///
/// # Errors
/// When a watcher ends, which is a bug.
async fn read_plans(sync: Option<&mut RolloutSync>, bundles: &mut Bundles) -> anyhow::Result<()> {
    let Some(sync) = sync else {
        return Ok(());
    };
    tokio::select! {
        () = sync.read_first() => Ok(()),
        broken = bundles.keep() => Err(broken),
    }
}

/// Rolls versions out until the future is dropped.
async fn roll_out(rollout_sync: Option<RolloutSync>) -> Infallible {
    match rollout_sync {
        Some(rollout_sync) => rollout_sync.run().await,
        None => std::future::pending().await,
    }
}

/// The state that replicas share, if the configuration has one.
///
/// # Errors
/// When its certificates are unusable, or its metrics exist already.
async fn shared_state(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<SharedState>> {
    let Some(options) = config
        .shared
        .as_ref()
        .and_then(SharedConfig::engine)
        .cloned()
    else {
        return Ok(None);
    };
    let metrics = SharedMetrics::new(metrics).context("metrics")?;
    // Blocks while the system's certificates are read.
    let shared = spawn_blocking(move || SharedState::new(options, metrics)).await?;
    Ok(Some(shared.context("shared.ca_file")?))
}

/// Applies changes of the configuration to the bundles until the future is dropped.
async fn follow(mut reload: Option<Reload>, bundles: &mut Bundles) -> anyhow::Error {
    loop {
        let Some(mut current) = reload.take() else {
            return bundles.keep().await;
        };
        let cause = tokio::select! {
            cause = current.next_cause() => cause,
            broken = bundles.keep() => return broken,
        };
        match current.read(cause, bundles).await {
            Ok(read) => reload = Some(read),
            Err(broken) => return broken.context("the configuration can't be read again"),
        }
    }
}

/// Opens the cache folder, if there is one.
async fn open_store(config: &config::Cache, metrics: StoreMetrics) -> anyhow::Result<Store> {
    let options = store::Options {
        directory: config.directory.clone(),
        disk: config.disk,
        memory: config.memory,
    };
    let store = spawn_blocking(move || Store::open(options, metrics)).await?;
    match (&config.directory, store.folder_error()) {
        (None, _) => tracing::info!(
            "no cache.directory: blobs live in memory only, a cold start needs the registry"
        ),
        (Some(directory), None) => {
            tracing::info!(directory = %directory.display(), "cache opened");
        }
        (Some(_), Some(error)) if config.required && !error.is_temporary() => {
            anyhow::bail!("{error}; or write `cache.required: false` to serve without a disk");
        }
        (Some(_), Some(error)) => tracing::error!(
            %error,
            "cache.directory can't be used: blobs are held in memory only, a cold start needs the registry"
        ),
    }
    Ok(store)
}
