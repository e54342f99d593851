//! Both listeners: binding, serving and draining.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Catalog, Drain, LongPoll, Options, Settings,
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
        warn_if_backlog_is_small(options.settings.current().max_connections);
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
            ready_after,
            clients,
            webhooks,
            deadlines,
            settings,
            ..
        } = options;
        let max_connections = settings.current().max_connections;
        let drain_signal = DrainSignal::new(phase_receiver);
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
        let LongPoll {
            bandwidth,
            spread,
            repeat_delay,
            ..
        } = settings.current().long_poll;
        let pacer = Pacer::new(bandwidth, spread, metrics.paced_requests.clone());
        let repeats = RepeatGuard::new(repeat_delay, metrics.delayed_downloads.clone());
        let bundle_api = Arc::new(BundleApi {
            catalog: catalog.clone(),
            clients,
            metrics,
            settings: settings.clone(),
            pacer,
            repeats,
            drain: drain_signal,
            holdouts,
            webhooks,
        });
        let follow_settings = async {
            tokio::join!(
                follow_pace(&bundle_api, settings.subscribe()),
                connections.follow_limit(settings.subscribe()),
            )
        };
        let tls = || settings.current().tls.clone();
        let serve_bundles = connections.accept(data, tls, Arc::clone(&bundle_api));
        let serve_admin = admin_connections.accept(admin, || None, Arc::new(admin_api));
        let stop = async {
            shutdown.await;
            let Drain { notice, over } = settings.current().drain;
            phase.send_replace(Phase::Notice);
            let _ = timeout(notice, connections.wait_until_empty()).await;
            phase.send_replace(Phase::Release(over));
            catalog.wake_waiters();
            let _ = timeout(over, connections.wait_until_empty()).await;
        };
        tokio::select! {
            () = serve_bundles => {}
            () = serve_admin => {}
            _ = follow_settings => {}
            () = stop => {}
        }
        connections.close().await;
    }
}

/// Applies changes of the bandwidth, the spread and the delay of repetitions until the future is
/// dropped.
async fn follow_pace(api: &BundleApi, mut settings: watch::Receiver<Arc<Settings>>) {
    loop {
        let LongPoll {
            bandwidth,
            spread,
            repeat_delay,
            ..
        } = settings.borrow_and_update().long_poll;
        api.pacer.set(bandwidth, spread);
        api.repeats.set_max_delay(repeat_delay);
        if settings.changed().await.is_err() {
            // The owner of the settings is gone, so nothing can change.
            return std::future::pending().await;
        }
    }
}
