//! Both listeners: binding, serving and draining.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use tokio::{net::TcpListener, runtime::Handle, sync::watch, time::timeout};

use super::{
    AdminAddress, Catalog, Deadlines, LiveSettings, LongPoll, Options, ServerTls, Settings,
    access_log::AccessLog,
    admin::{AdminApi, AdminContext},
    bundle_api::BundleApi,
    credential_checks::CredentialChecks,
    delta_guard::DeltaGuard,
    drain::{DrainSignal, Phase},
    fleet_recorder::FleetRecorder,
    holdout_tracker::HoldoutTracker,
    listener::{Connections, bind, warn_if_backlog_is_small},
    liveness::{Liveness, LivenessChecks},
    metrics::ServerMetrics,
    pacer::Pacer,
    readiness::Readiness,
    refusal::RefusalLog,
    repeat_guard::RepeatGuard,
    status_reports::StatusReports,
    unix_socket::UnixSocket,
    webhook_api::WebhookApi,
};

/// Connections to the admin API at a time.
const MAX_ADMIN_CONNECTIONS: usize = 128;

/// Two bound listeners and the catalog that they serve.
#[derive(Debug)]
pub struct Server {
    data: TcpListener,
    admin: AdminListener,
    options: Options,
    catalog: Catalog,
    metrics: ServerMetrics,
    checks: CredentialChecks,
    background: Handle,
    phase: watch::Sender<Phase>,
    readiness: Readiness,
    liveness: Liveness,
    liveness_checks: LivenessChecks,
}

#[derive(Debug)]
enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

impl Server {
    /// Binds both addresses, and logs those that the system assigned. The runtime `background`
    /// renders `/metrics` and `/status`, and checks passwords.
    ///
    /// # Errors
    /// When an address can't be bound, or the system has no randomness.
    pub async fn bind(
        options: Options,
        catalog: Catalog,
        metrics: ServerMetrics,
        background: Handle,
    ) -> io::Result<Self> {
        let data = bind(options.listen, "data")?;
        let admin = AdminListener::bind(&options.admin.address).await?;
        warn_if_backlog_is_small(options.settings.current().max_connections);
        let (phase, phase_receiver) = watch::channel(Phase::Open);
        let drain = DrainSignal::new(phase_receiver);
        let (liveness, liveness_checks) = Liveness::new();
        Ok(Self {
            readiness: Readiness::new(catalog.clone(), options.ready_after, drain),
            data,
            admin,
            options,
            catalog,
            metrics,
            checks: CredentialChecks::new(background.clone())?,
            background,
            phase,
            liveness,
            liveness_checks,
        })
    }

    /// The address of the bundle API.
    ///
    /// # Errors
    /// When the system does not return it.
    pub fn data_address(&self) -> io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// Where the admin API listens.
    ///
    /// # Errors
    /// When the system does not return its address.
    pub fn admin_address(&self) -> io::Result<AdminAddress> {
        match &self.admin {
            AdminListener::Tcp(listener) => Ok(AdminAddress::Tcp(listener.local_addr()?)),
            AdminListener::Unix(socket) => Ok(AdminAddress::Unix(socket.path().to_owned())),
        }
    }

    /// Whether the server is ready.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Checks of the server's task.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Serves until `shutdown` completes, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            data,
            admin,
            options,
            catalog,
            metrics,
            checks,
            background,
            phase,
            readiness,
            liveness_checks,
            ..
        } = self;
        let Options {
            clients,
            webhooks,
            deadlines,
            settings,
            traces,
            fleet,
            admin: admin_options,
            ..
        } = options;
        let drain_signal = DrainSignal::new(phase.subscribe());
        let max_connections = settings.current().max_connections;
        let [connections, admin_connections] =
            connections(max_connections, deadlines, &metrics, &drain_signal);
        let holdouts = HoldoutTracker::default();
        let webhooks = WebhookApi::new(webhooks, catalog.clone(), metrics.clone(), traces.clone());
        let context = AdminContext {
            catalog: catalog.clone(),
            metrics: metrics.clone(),
            holdouts: holdouts.clone(),
            readiness,
            traces: traces.clone(),
            fleet: fleet.clone(),
        };
        let admin_api = AdminApi::new(context, admin_options, &settings, &webhooks, &background);
        let (pacer, repeats) = pace(settings.current().long_poll, &metrics);
        clients.key_sets().start(&background);
        let bundle_api = Arc::new(BundleApi {
            catalog: catalog.clone(),
            clients,
            checks,
            refusals: RefusalLog::default(),
            access_log: AccessLog::new(settings.current().access_log),
            metrics,
            settings: settings.clone(),
            pacer,
            repeats,
            deltas: DeltaGuard::default(),
            drain: drain_signal,
            holdouts,
            webhooks,
            traces,
            reports: fleet.as_ref().and_then(StatusReports::new),
            fleet: fleet.map(FleetRecorder::new),
        });
        let follow_settings = follow_settings(&bundle_api, settings.subscribe());
        let follow_limit = connections.follow_limit(settings.subscribe());
        let tls = || settings.current().tls.clone();
        let serve_bundles = connections.accept(data, tls, Arc::clone(&bundle_api));
        let admin_tls = || admin_tls(&settings.current());
        let admin_api = Arc::new(admin_api);
        let sweep_clients = admin_api.sweep_clients();
        let serve_admin = admin.serve(&admin_connections, admin_tls, Arc::clone(&admin_api));
        let stop = drain_after(shutdown, &settings, &phase, &connections, &catalog);
        tokio::select! {
            () = serve_bundles => {}
            () = serve_admin => {}
            () = follow_settings => {}
            () = follow_limit => {}
            () = sweep_clients => {}
            () = stop => {}
            // In the task of both accept loops, so that a check proves that it runs.
            () = liveness_checks.answer() => {}
        }
        connections.close().await;
    }
}

impl AdminListener {
    async fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => Ok(Self::Tcp(bind(*address, "admin")?)),
            AdminAddress::Unix(path) => Ok(Self::Unix(bind_unix(path).await?)),
        }
    }

    /// Serves connections until the future is dropped.
    async fn serve(
        self,
        connections: &Connections,
        tls: impl Fn() -> Option<ServerTls>,
        api: Arc<AdminApi>,
    ) {
        match self {
            Self::Tcp(listener) => connections.accept(listener, tls, api).await,
            Self::Unix(socket) => connections.accept(socket, || None, api).await,
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixSocket> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("server.admin {error}"));
    let socket = UnixSocket::bind(path).await.map_err(named)?;
    let address = AdminAddress::Unix(path.to_owned());
    tracing::info!(listener = "admin", %address, "listening");
    Ok(socket)
}

/// The connections of clients, and those of operators.
fn connections(
    max_connections: usize,
    deadlines: Deadlines,
    metrics: &ServerMetrics,
    drain: &DrainSignal,
) -> [Connections; 2] {
    let gauge = Some(metrics.connections.clone());
    let max_admin_connections = max_connections.min(MAX_ADMIN_CONNECTIONS);
    [
        Connections::new(max_connections, deadlines, gauge, drain.clone()),
        Connections::new(max_admin_connections, deadlines, None, drain.clone()),
    ]
}

fn pace(long_poll: LongPoll, metrics: &ServerMetrics) -> (Pacer, RepeatGuard) {
    let LongPoll {
        bandwidth,
        spread,
        repeat_delay,
        ..
    } = long_poll;
    (
        Pacer::new(bandwidth, spread, metrics.paced_requests.clone()),
        RepeatGuard::new(repeat_delay, metrics.delayed_downloads.clone()),
    )
}

fn admin_tls(settings: &Settings) -> Option<ServerTls> {
    let tls = settings.admin_tls.as_ref()?;
    Some(Arc::clone(&tls.config).into())
}

/// Both phases of the shutdown, once it is requested; each ends early when no connection is left.
async fn drain_after(
    shutdown: impl Future<Output = ()>,
    settings: &LiveSettings,
    phase: &watch::Sender<Phase>,
    connections: &Connections,
    catalog: &Catalog,
) {
    shutdown.await;
    let times = settings.current().drain;
    phase.send_replace(Phase::Notice);
    let _ = timeout(times.notice, connections.wait_until_empty()).await;
    phase.send_replace(Phase::Release(times.over));
    catalog.wake_waiters();
    let _ = timeout(times.over, connections.wait_until_empty()).await;
}

/// Applies changes of the bandwidth, the spread, the delay of repetitions and the access log until the
/// future is dropped.
async fn follow_settings(api: &BundleApi, mut settings: watch::Receiver<Arc<Settings>>) {
    loop {
        let LongPoll {
            bandwidth,
            spread,
            repeat_delay,
            ..
        } = settings.borrow_and_update().long_poll;
        api.access_log.set(settings.borrow().access_log);
        api.pacer.set(bandwidth, spread);
        api.repeats.set_max_delay(repeat_delay);
        if settings.changed().await.is_err() {
            // The owner of the settings is gone, so nothing can change.
            return std::future::pending().await;
        }
    }
}
