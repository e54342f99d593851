//! Both listeners: binding, serving and draining.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Catalog, Options,
    admin::AdminApi,
    bundle_api::BundleApi,
    drain::{DrainSignal, Phase},
    holdout_tracker::HoldoutTracker,
    listener::{Connections, bind, warn_if_backlog_is_small},
    metrics::ServerMetrics,
    pacer::Pacer,
    repeat_guard::RepeatGuard,
    webhook_api::WebhookApi,
};

/// Connections to the admin API at a time.
const MAX_ADMIN_CONNECTIONS: usize = 128;

/// Two bound listeners and the catalog that they serve.
#[derive(Debug)]
pub struct Server {
    data: TcpListener,
    admin: TcpListener,
    options: Options,
    catalog: Catalog,
    metrics: ServerMetrics,
    background: Handle,
}

impl Server {
    /// Binds both addresses, and logs those that the system assigned. The runtime `background`
    /// renders `/metrics` and `/status`.
    ///
    /// # Errors
    /// When an address can't be bound.
    pub async fn bind(
        options: Options,
        catalog: Catalog,
        metrics: ServerMetrics,
        background: Handle,
    ) -> io::Result<Self> {
        let data = bind(options.listen, "data")?;
        let admin = bind(options.admin, "admin")?;
        warn_if_backlog_is_small(options.max_connections);
        Ok(Self {
            data,
            admin,
            options,
            catalog,
            metrics,
            background,
        })
    }

    /// The address of the bundle API.
    ///
    /// # Errors
    /// When the system does not return it.
    pub fn data_address(&self) -> io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// The address of the admin API.
    ///
    /// # Errors
    /// When the system does not return it.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `shutdown` completes, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            data,
            admin,
            options,
            catalog,
            metrics,
            background,
        } = self;
        let (phase, phase_receiver) = watch::channel(Phase::Open);
        let Options {
            max_connections,
            ready_after,
            drain,
            long_poll,
            clients,
            webhooks,
            trusted_proxies,
            deadlines,
            settings,
            ..
        } = options;
        let drain_signal = DrainSignal::new(phase_receiver, drain.over);
        let gauge = Some(metrics.connections.clone());
        let connections = Connections::new(max_connections, deadlines, gauge, drain_signal.clone());
        let max_admin_connections = max_connections.min(MAX_ADMIN_CONNECTIONS);
        let admin_connections =
            Connections::new(max_admin_connections, deadlines, None, drain_signal.clone());
        let holdouts = HoldoutTracker::default();
        let ready_at = Instant::now() + ready_after;
        let webhooks = WebhookApi::new(webhooks, catalog.clone(), metrics.clone());
        let admin_api = AdminApi::new(
            catalog.clone(),
            metrics.clone(),
            holdouts.clone(),
            ready_at,
            drain_signal.clone(),
            webhooks.clone(),
            &background,
        );
        let pacer = Pacer::new(
            long_poll.bandwidth,
            long_poll.spread,
            metrics.paced_requests.clone(),
        );
        let repeats = RepeatGuard::new(long_poll.repeat_delay, metrics.delayed_downloads.clone());
        let bundle_api = Arc::new(BundleApi {
            catalog: catalog.clone(),
            clients,
            trusted_proxies,
            metrics,
            long_poll,
            pacer,
            repeats,
            drain: drain_signal,
            holdouts,
            webhooks,
        });
        let serve_bundles = connections.accept(data, || settings.current().tls.clone(), bundle_api);
        let serve_admin = admin_connections.accept(admin, || None, Arc::new(admin_api));
        let stop = async {
            shutdown.await;
            phase.send_replace(Phase::Notice);
            let _ = timeout(drain.notice, connections.wait_until_empty()).await;
            phase.send_replace(Phase::Release);
            catalog.wake_waiters();
            let _ = timeout(drain.over, connections.wait_until_empty()).await;
        };
        tokio::select! {
            () = serve_bundles => {}
            () = serve_admin => {}
            () = stop => {}
        }
        connections.close().await;
    }
}
