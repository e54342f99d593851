//! The HTTP side: it sees snapshots, never a registry, a key or a cache.

mod admin;
mod api;
mod clients;
mod conditional;
mod connection;
mod content;
mod date;
mod drain;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http1;
mod http2;
mod idle;
mod listener;
mod patient;
mod prefer;
mod prefixed;
mod proxies;
mod report;
mod respond;
mod responding;
mod status;
mod survey;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout},
};

use self::{
    admin::Admin,
    api::Api,
    drain::{Leaving, Phase},
    listener::{Connections, bind, tell_of_a_small_backlog},
    survey::Survey,
};
pub use self::{
    clients::{Clients, LiveClients},
    proxies::TrustedProxies,
};
use crate::{catalog::Catalog, metrics::Metrics};

/// Connections of operators at a time.
const OPERATORS: usize = 128;

/// How the server behaves.
#[derive(Debug)]
pub struct Options {
    /// For OPAs; port 0 takes any.
    pub listen: SocketAddr,
    /// For operators; always plain HTTP.
    pub admin: SocketAddr,
    /// TLS for the data listener.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections at a time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Ready after this time at the latest.
    pub ready_after: Duration,
    /// How to stop.
    pub drain: Drain,
    /// How long requests are held.
    pub long_poll: LongPoll,
    /// Who may read what, now and later.
    pub clients: LiveClients,
    /// Who says truly for whom it asks.
    pub trusted_proxies: TrustedProxies,
    /// How long clients may take over each step.
    pub deadlines: Deadlines,
}

/// How long clients may take over each step of a connection. Beyond it they lose the connection,
/// or over HTTP/2 the one response that they don't take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For TLS.
    pub handshake: Duration,
    /// From connecting to the end of the first request's headers.
    pub first_request: Duration,
    /// From the first byte of a later request to the end of its headers.
    pub head: Duration,
    /// Between two requests over HTTP/1.
    pub idle: Duration,
    /// For 16 KiB of a response, or what is left of it.
    pub progress: Duration,
    /// Between asking an idle connection to end and ending it.
    pub close_grace: Duration,
    /// Before a connection that has not asked anything may lose its place to another one.
    pub newcomer: Duration,
    /// Before a connection whose client does not take its response may lose its place to another
    /// one.
    pub stalled: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(30),
            head: Duration::from_secs(30),
            // OPA polls every two minutes at most by default.
            idle: Duration::from_secs(180),
            progress: Duration::from_secs(30),
            close_grace: Duration::from_millis(250),
            newcomer: Duration::from_millis(250),
            stalled: Duration::from_millis(250),
        }
    }
}

/// The two parts of a shutdown; both end early when nothing is connected.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// Not ready, but still accepting.
    pub notice: Duration,
    /// Over which those who wait are let go.
    pub over: Duration,
}

/// How long requests are held.
#[derive(Debug, Clone, Copy)]
pub struct LongPoll {
    /// At most, whatever the client wishes.
    pub max_wait: Duration,
    /// Without a wish.
    pub first_wait: Duration,
}

/// Listeners that are bound, and what they serve.
#[derive(Debug)]
pub struct Server {
    data: TcpListener,
    admin: TcpListener,
    options: Arc<Options>,
    catalog: Catalog,
    metrics: Metrics,
}

impl Server {
    /// Takes both addresses, and logs the real ones.
    ///
    /// # Errors
    /// When an address can't be taken.
    pub async fn bind(options: Options, catalog: Catalog, metrics: Metrics) -> io::Result<Self> {
        let data = bind(options.listen, "data")?;
        let admin = bind(options.admin, "admin")?;
        tell_of_a_small_backlog(options.max_connections);
        Ok(Self { data, admin, options: Arc::new(options), catalog, metrics })
    }

    /// Where bundles are served.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn data_address(&self) -> io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// Where operators look.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `shutdown`, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { data, admin, options, catalog, metrics } = self;
        let (phase, phase_seen) = watch::channel(Phase::Open);
        let Some(options) = Arc::into_inner(options) else { return };
        let Options { tls, max_connections, ready_after, drain, long_poll, clients, deadlines, .. } = options;
        let proxies = options.trusted_proxies;
        let leaving = Leaving::new(phase_seen, drain.over);
        let gauge = Some(metrics.connections.clone());
        let connections = Connections::new(max_connections, deadlines, gauge, leaving.clone());
        let operators = Connections::new(max_connections.min(OPERATORS), deadlines, None, leaving.clone());
        let survey = Survey::default();
        let ready_at = Instant::now() + ready_after;
        let status = Admin::new(catalog.clone(), metrics.clone(), survey.clone(), ready_at, leaving.clone());
        let api = Arc::new(Api { catalog, clients, proxies, metrics, long_poll, leaving, survey });
        let accept = connections.accept(data, tls, move |request, caller| {
            let api = Arc::clone(&api);
            async move { api.answer(request, caller).await }
        });
        let operate = operators.accept(admin, None, move |request, caller| {
            let status = status.clone();
            async move { status.answer(request, caller).await }
        });
        let stop = async {
            shutdown.await;
            phase.send_replace(Phase::Notice);
            let _ = timeout(drain.notice, connections.none_left()).await;
            phase.send_replace(Phase::Release);
            let _ = timeout(drain.over, connections.none_left()).await;
        };
        tokio::select! {
            () = accept => {}
            () = operate => {}
            () = stop => {}
        }
        connections.close().await;
    }
}
