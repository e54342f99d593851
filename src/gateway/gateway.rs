//! The gateway as a whole: from a checked configuration to watchers and a server, until it has
//! drained.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{task::JoinSet, time::timeout};

use super::{open_files, reload::Reload};
use crate::{
    catalog::Catalog,
    config::{BundleConfig, ClientConfig, Config, Credential, Secret},
    metrics::Metrics,
    opa_check::{Checker, Checkers},
    registry::Registries,
    server::{self, Server},
    store::{self, Store},
    telemetry,
    verify::LiveRoots,
    watch::{self, Court, Handle, OpaCheck, Pipeline, Rules, Watcher},
};

/// A gateway whose listeners are bound and whose watchers run. `serve`, `dev`, the tests and the
/// benches all compose it here.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
    watchers: JoinSet<()>,
    handles: Vec<Handle>,
    store: Store,
    metrics: Metrics,
    /// Applies changes of the configuration file, where there is one.
    reload: Option<Reload>,
}

impl Gateway {
    /// Opens the cache, starts the watchers and binds the listeners. `file` is the file that
    /// `config` was read from; changes of it are applied while the gateway runs. Without it the
    /// configuration never changes.
    ///
    /// # Errors
    /// When the clock is unusable, an `opa` does not start, a registry's options make no client,
    /// or an address can't be bound.
    pub async fn start(config: Config, options: server::Options, file: Option<&Path>) -> anyhow::Result<Self> {
        // hyper panics where it can't write the time into a `Date` header.
        anyhow::ensure!(
            telemetry::is_clock_usable(),
            "the system's clock is before 1970 or after 9999 ({}); set it, and start again",
            telemetry::now()
        );
        let metrics = Metrics::new().context("metrics")?;
        let registries =
            Arc::new(Registries::new(config.registries.clone(), config.limits.read_limits(), metrics.clone()));
        let cache = store::Options {
            directory: config.cache.directory.clone(),
            disk: config.cache.disk,
            memory: config.cache.memory,
        };
        let (opened, store_metrics) = (cache.directory.clone(), metrics.clone());
        let store = tokio::task::spawn_blocking(move || Store::open(cache, store_metrics)).await?;
        log_cache_directory(opened, &store);
        let opa_checks = opa_checks(&config, &store).await?;
        let court = Court::default();
        let mut watchers = Vec::new();
        let mut handles = Vec::new();
        for (bundle, opa_check) in config.bundles.iter().zip(opa_checks) {
            let pipeline = Pipeline { opa_check, ..pipeline(bundle, &config, &registries, &store, &metrics, &court)? };
            let (watcher, handle) = Watcher::new(pipeline, Arc::new(bundle.trust.clone()), rules(bundle, &config));
            watchers.push(watcher);
            handles.push(handle);
        }
        watch::appoint(&mut handles, |name| {
            let bundle = config.bundles.iter().find(|bundle| bundle.name == name)?;
            bundle.on_withdraw.as_ref().map(|on_withdraw| on_withdraw.fallback.as_str())
        });
        let reload = match file {
            Some(file) => {
                let folder = config.cache.directory.clone().filter(|_| store.is_persistent());
                let roots = LiveRoots::new(folder.map(|folder| folder.join("tuf")), metrics.clone());
                let clients = options.clients.clone();
                let reload = Reload::new(file.to_owned(), config, handles.clone(), clients, roots, metrics.clone())?;
                // Nothing is judged by roots that are older than those on disk.
                Some(reload.begin().await?)
            }
            None => None,
        };
        let options = server::Options { max_connections: open_files::room_for(options.max_connections), ..options };
        let server = Server::bind(options, Catalog::new(handles.iter().cloned()), metrics.clone()).await?;
        let watchers = watchers.into_iter().map(Watcher::run).collect();
        Ok(Self { server, watchers, handles, store, metrics, reload })
    }

    /// The address of the data listener.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn data_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.data_address()?)
    }

    /// The address of the admin listener.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn admin_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.admin_address()?)
    }

    /// The metrics that the admin listener renders.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The handle of a bundle, by its configured name.
    pub fn handle(&self, name: &str) -> Option<&Handle> {
        self.handles.iter().find(|handle| handle.name() == name)
    }

    /// Waits until every bundle is served, for at most `limit` each.
    ///
    /// # Errors
    /// When a bundle is not served in time, with its last failure.
    pub async fn first_snapshots(&self, limit: Duration) -> anyhow::Result<()> {
        for handle in &self.handles {
            let mut state = handle.subscribe();
            let serving = state.wait_for(|state| state.snapshot().is_some());
            if timeout(limit, serving).await.is_ok_and(|served| served.is_ok()) {
                continue;
            }
            let failure = handle.status().last_failure.map_or_else(|| "no answer yet".to_owned(), |last| last.message);
            anyhow::bail!("{}: not served within {limit:?}: {failure}", handle.name());
        }
        Ok(())
    }

    /// Serves until `drain` completes, then drains. Ends at once when `exit` completes.
    ///
    /// # Errors
    /// When a watcher ends, or the configuration can't be read again, which are bugs.
    pub async fn run(mut self, drain: impl Future<Output = ()>, exit: impl Future<Output = ()>) -> anyhow::Result<()> {
        let serve = self.server.run(drain);
        let reload = async move {
            match self.reload {
                Some(reload) => reload.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serve => tracing::info!("drained"),
            () = exit => {}
            broken = reload => broken.context("the configuration can't be read anew")?,
            Some(ended) = self.watchers.join_next() => {
                // Watchers run for ever; one that ends has found a bug of ours.
                anyhow::bail!("a watcher stopped: {ended:?}; please report this");
            }
        }
        self.watchers.shutdown().await;
        self.store.close().await;
        Ok(())
    }
}

fn log_cache_directory(directory: Option<PathBuf>, store: &Store) {
    match directory {
        None => tracing::info!("no cache.directory: blobs live in memory only, a cold start needs the registry"),
        Some(directory) if store.is_persistent() => tracing::info!(directory = %directory.display(), "cache opened"),
        // The store has said why.
        Some(_) => {}
    }
}

/// The check of each bundle that has one, in the order of the configuration.
async fn opa_checks(config: &Config, store: &Store) -> anyhow::Result<Vec<Option<OpaCheck>>> {
    let checkers = checkers(config).await?.into_iter();
    Ok(checkers.map(|checker| Some(OpaCheck::new(checker?, store.check_results().clone()))).collect())
}

/// Starts every `opa` that the configuration names: a checker for each bundle, in the order of
/// the configuration.
///
/// # Errors
/// When a program is missing, does not work as `opa`, or is older than 1.0.
pub async fn checkers(config: &Config) -> anyhow::Result<Vec<Option<Checker>>> {
    let mut checkers = Checkers::default();
    let mut started = Vec::new();
    for bundle in &config.bundles {
        started.push(match &bundle.opa_check {
            Some(options) => {
                let checker = checkers.start(options).await;
                Some(checker.map_err(|error| {
                    let name = &bundle.name;
                    anyhow::anyhow!(
                        "bundles.{name}.opa_check.opa: {error}; name an OPA 1.0 or newer, or write `opa_check: none`"
                    )
                })?)
            }
            None => None,
        });
    }
    Ok(started)
}

fn pipeline(
    bundle: &BundleConfig,
    config: &Config,
    registries: &Arc<Registries>,
    store: &Store,
    metrics: &Metrics,
    court: &Court,
) -> anyhow::Result<Pipeline> {
    Ok(Pipeline {
        name: bundle.name.as_str().into(),
        source: registries.source(bundle.reference.repository())?,
        registries: Arc::clone(registries),
        reference: bundle.reference.clone(),
        expect: Arc::new(bundle.expect.clone()),
        store: store.clone(),
        limits: config.limits.bundle_limits(),
        opa_check: None,
        evidence_limit: config.limits.evidence,
        court: court.clone(),
        metrics: metrics.clone(),
    })
}

fn rules(bundle: &BundleConfig, config: &Config) -> Rules {
    Rules {
        poll: bundle.poll,
        confirm_within: bundle.confirm_within,
        on_missing: bundle.on_missing,
        max_stale: bundle.max_stale,
        first_wait: config.long_poll.first_wait,
    }
}

/// The server's options, from the configuration.
///
/// # Errors
/// When a client's glob is malformed.
pub fn server_options(config: &Config) -> anyhow::Result<server::Options> {
    let (drain, long_poll) = (config.server.drain, config.long_poll);
    Ok(server::Options {
        listen: config.server.listen,
        admin: config.server.admin,
        tls: config.server.tls.clone(),
        max_connections: config.server.max_connections,
        ready_after: config.server.ready_after,
        drain: server::Drain { notice: drain.notice, over: drain.over },
        long_poll: server::LongPoll { max_wait: long_poll.max_wait, first_wait: long_poll.first_wait },
        clients: clients(&config.clients)?.into(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        deadlines: server::Deadlines::default(),
    })
}

/// The clients that may read bundles, from the configuration.
pub(super) fn clients(config: &[ClientConfig]) -> anyhow::Result<server::Clients> {
    let mut clients = server::Clients::default();
    for client in config {
        match &client.credential {
            Credential::Anonymous => clients.allow(&client.bundles, None)?,
            Credential::Tokens { tokens, .. } => {
                let tokens: Vec<_> = tokens.iter().map(Secret::expose).collect();
                clients.allow(&client.bundles, Some(&tokens))?;
            }
        }
    }
    Ok(clients)
}
