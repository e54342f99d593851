//! Start-up wiring: from a checked configuration to watchers and a server.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

use super::{open_files, reload::Reload};
use crate::{
    catalog::Catalog,
    config::{BundleConfig, ClientConfig, Config, Credential, Secret},
    metrics::Metrics,
    opa_check::{Checker, Checkers},
    publish::{self, Handle},
    registry::Registries,
    server::{self, Server},
    store::{self, Store},
    telemetry,
    verify::TrustRoots,
    watch::{OpaCheck, Pipeline, VerificationPool, WatchOptions, Watcher},
};

/// A gateway that has its listeners, and its watchers running.
pub(super) struct Gate {
    server: Server,
    watchers: JoinSet<()>,
    handles: Vec<Handle>,
    store: Store,
    /// What the configuration says anew about trust and clients, where it may.
    reload: Option<Reload>,
    /// Caught from the start on: whoever has been told that it runs may already want it to end.
    signals: [Signal; 2],
}

impl Gate {
    /// Opens the cache, starts the watchers, binds the listeners. Follows the trust and the clients
    /// that `file` speaks of, if there is one: `config` was read from it.
    pub(super) async fn start(config: Config, options: server::Options, file: Option<&Path>) -> anyhow::Result<Self> {
        // hyper panics where it can't write the time into a `Date` header.
        anyhow::ensure!(
            telemetry::is_clock_usable(),
            "the system's clock is before 1970 or after 9999 ({}); set it, and start again",
            telemetry::now()
        );
        let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
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
        tell_where_blobs_go(opened, &store);
        let opa_checks = opa_checks(&config, &store).await?;
        let pool = VerificationPool::default();
        let mut watchers = Vec::new();
        let mut handles = Vec::new();
        for (bundle, opa_check) in config.bundles.iter().zip(opa_checks) {
            let pipeline = Pipeline { opa_check, ..pipeline(bundle, &config, &registries, &store, &metrics, &pool)? };
            let (watcher, handle) =
                Watcher::new(pipeline, Arc::new(bundle.trust.clone()), watch_options(bundle, &config));
            watchers.push(watcher);
            handles.push(handle);
        }
        publish::link_fallbacks(&mut handles, |name| {
            let bundle = config.bundles.iter().find(|bundle| bundle.name == name)?;
            bundle.on_withdraw.as_ref().map(|on_withdraw| on_withdraw.fallback.as_str())
        });
        let reload = match file {
            Some(file) => {
                let folder = config.cache.directory.clone().filter(|_| store.is_persistent());
                let roots = TrustRoots::new(folder.map(|folder| folder.join("tuf")), metrics.clone());
                let clients = options.clients.clone();
                let reload = Reload::new(file.to_owned(), config, handles.clone(), clients, roots, metrics.clone())?;
                // Nothing is judged by roots that are older than those on disk.
                Some(reload.begin().await?)
            }
            None => None,
        };
        let options = server::Options { max_connections: open_files::room_for(options.max_connections), ..options };
        let server = Server::bind(options, Catalog::new(handles.iter().cloned()), metrics).await?;
        let watchers = watchers.into_iter().map(Watcher::run).collect();
        Ok(Self { server, watchers, handles, store, reload, signals })
    }

    /// Where bundles are served.
    pub(super) fn data_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.data_address()?)
    }

    /// Where operators look.
    pub(super) fn admin_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.server.admin_address()?)
    }

    /// Waits until every bundle is being served, `patience` at most.
    pub(super) async fn first_snapshots(&self, patience: Duration) -> anyhow::Result<()> {
        for handle in &self.handles {
            let mut state = handle.subscribe();
            let serving = state.wait_for(|state| state.snapshot().is_some());
            if timeout(patience, serving).await.is_ok_and(|served| served.is_ok()) {
                continue;
            }
            let failure = handle.status().last_failure.map_or_else(|| "no answer yet".to_owned(), |last| last.message);
            anyhow::bail!("{}: not served within {patience:?}: {failure}", handle.name());
        }
        Ok(())
    }

    /// Serves until the first SIGTERM or Ctrl-C, then drains. A second signal exits at once.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let [mut terminate, mut interrupt] = self.signals;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let signals = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("draining; a second signal exits at once");
            let _ = stop.send(());
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("exiting without draining");
        };
        let serve = self.server.run(async move {
            let _ = stopped.await;
        });
        let reload = async move {
            match self.reload {
                Some(reload) => reload.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serve => tracing::info!("drained"),
            () = signals => {}
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

fn tell_where_blobs_go(directory: Option<PathBuf>, store: &Store) {
    match directory {
        None => tracing::info!("no cache.directory: blobs live in memory only, a cold start needs the registry"),
        Some(directory) if store.is_persistent() => tracing::info!(directory = %directory.display(), "cache opened"),
        // The store has said why.
        Some(_) => {}
    }
}

/// A check for each bundle that has one, in the order of the configuration.
async fn opa_checks(config: &Config, store: &Store) -> anyhow::Result<Vec<Option<OpaCheck>>> {
    let checkers = checkers(config).await?.into_iter();
    Ok(checkers.map(|checker| Some(OpaCheck::new(checker?, store.check_results().clone()))).collect())
}

/// Starts every `opa` that the configuration names.
pub(super) async fn checkers(config: &Config) -> anyhow::Result<Vec<Option<Checker>>> {
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
    pool: &VerificationPool,
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
        pool: pool.clone(),
        metrics: metrics.clone(),
    })
}

fn watch_options(bundle: &BundleConfig, config: &Config) -> WatchOptions {
    WatchOptions {
        poll: bundle.poll,
        confirm_within: bundle.confirm_within,
        on_missing: bundle.on_missing,
        max_stale: bundle.max_stale,
        first_wait: config.long_poll.first_wait,
    }
}

/// What the configuration says about the server.
pub(super) fn server_options(config: &Config) -> anyhow::Result<server::Options> {
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

/// Who may read what.
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
