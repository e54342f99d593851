//! The HTTP side: it sees snapshots, never a registry, a key or a cache.

mod admin;
mod api;
mod clients;
mod conditional;
mod drain;
#[cfg(fuzzing)]
pub mod fuzzing;
mod idle;
mod listener;
mod patient;
mod prefer;
mod respond;
mod survey;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout},
};

pub use self::clients::Clients;
use self::{
    admin::Admin,
    api::Api,
    drain::{Leaving, Phase},
    listener::{Connections, bind},
    survey::Survey,
};
use crate::{catalog::Catalog, metrics::Metrics};

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
    /// Who may read what.
    pub clients: Clients,
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
        let data = bind(options.listen, "data").await?;
        let admin = bind(options.admin, "admin").await?;
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
        let Options { tls, max_connections, ready_after, drain, long_poll, clients, .. } = options;
        let leaving = Leaving::new(phase_seen, drain.over);
        let connections = Connections::new(max_connections, Some(metrics.connections.clone()), leaving.clone());
        let operators = Connections::new(max_connections, None, leaving.clone());
        let survey = Survey::default();
        let ready_at = Instant::now() + ready_after;
        let status = Arc::new(Admin::new(catalog.clone(), metrics.clone(), survey.clone(), ready_at, leaving.clone()));
        let api = Arc::new(Api { catalog, clients, metrics, long_poll, leaving, survey });
        let accept = connections.accept(data, tls, move |request, peer| {
            let api = Arc::clone(&api);
            async move { api.answer(request, peer).await }
        });
        let operate = operators.accept(admin, None, move |request, _| {
            let status = Arc::clone(&status);
            async move { status.answer(&request) }
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
