//! Options of the server.

use std::{
    collections::BTreeMap, fmt, net::SocketAddr, num::NonZeroU64, path::PathBuf, sync::Arc,
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    AccessLevel, AdminTokens, ConfigReloads, Live, LiveClients, LiveWebhooks, Rollouts,
    TrustedProxies,
};
use crate::{
    access::{Authorities, CertificateExpiry},
    fleet::Fleet,
    publish::TrustRootStatus,
    traces::Traces,
};

/// Options of a [`Server`](super::Server).
#[derive(Debug)]
pub struct Options {
    /// The address of the bundle API; port 0 takes any free port.
    pub listen: SocketAddr,
    /// The admin API.
    pub admin: AdminOptions,
    /// `/readyz` reports ready after this time at the latest.
    pub ready_after: Duration,
    /// The bundles that each client may read, replaceable while the server runs.
    pub clients: LiveClients,
    /// The webhooks of both listeners, replaceable while the server runs.
    pub webhooks: LiveWebhooks,
    /// Time limits for each step of a connection.
    pub deadlines: Deadlines,
    /// Further options, replaceable while the server runs.
    pub settings: LiveSettings,
    /// Records requests.
    pub traces: Traces,
    /// Records clients; `None` for no fleet view.
    pub fleet: Option<Fleet>,
}

/// Options of the admin API.
#[derive(Debug)]
pub struct AdminOptions {
    /// Where it listens.
    pub address: AdminAddress,
    /// The tokens that allow to change something, replaceable while the server runs.
    pub tokens: AdminTokens,
    /// The reloads of the configuration.
    pub reloads: ConfigReloads,
    /// The problem of the cache folder, while there is one.
    pub cache_problem: watch::Receiver<Option<Arc<str>>>,
    /// The certificates in use, replaceable while the server runs.
    pub certificates: LiveCertificates,
    /// The trust roots in use, by name.
    pub trust_roots: watch::Receiver<BTreeMap<String, TrustRootStatus>>,
    /// The staged roll-outs.
    pub rollouts: Rollouts,
}

/// The certificates of a file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInUse {
    /// The key that names the file, with a host or the name of an authority where it has one.
    pub key: String,
    /// Which of its certificates expires first, and when.
    pub expiry: CertificateExpiry,
}

/// The certificates that a running gateway uses.
pub type LiveCertificates = Live<Vec<CertificateInUse>>;

/// Where the admin API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address; port 0 takes any free port.
    Tcp(SocketAddr),
    /// A Unix socket, which is created in an existing folder.
    Unix(PathBuf),
}

/// TLS for the bundle API.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The configuration of its connections.
    pub config: Arc<rustls::ServerConfig>,
    /// The authorities by which `config` verifies client certificates; `None` if it asks for none.
    pub authorities: Option<Authorities>,
}

impl From<Arc<rustls::ServerConfig>> for ServerTls {
    /// Without client certificates.
    fn from(config: Arc<rustls::ServerConfig>) -> Self {
        Self {
            config,
            authorities: None,
        }
    }
}

/// TLS for the admin API.
#[derive(Debug, Clone)]
pub struct AdminTls {
    /// The configuration of its connections.
    pub config: Arc<rustls::ServerConfig>,
    /// Its certificate, then the rest of the chain.
    pub chain: Vec<CertificateDer<'static>>,
}

// The key is that of the certificate.
impl PartialEq for AdminTls {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

/// Options that apply from their replacement on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// TLS for the connections to the bundle API that are accepted from now on.
    pub tls: Option<ServerTls>,
    /// Connections of clients at a time; further ones wait to be accepted. While more are open, idle
    /// ones are closed, and those with requests once they are idle.
    pub max_connections: usize,
    /// The two phases of the shutdown.
    pub drain: Drain,
    /// How long requests are held that arrive from now on.
    pub long_poll: LongPoll,
    /// The requests to the bundle API that have a line in the access log.
    pub access_log: AccessLevel,
    /// The proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
    /// TLS for the TCP connections to the admin API that are accepted from now on.
    pub admin_tls: Option<AdminTls>,
    /// Names by which browsers, and requests with a token, may call the admin API, besides those of its
    /// certificate.
    pub admin_hosts: Vec<String>,
}

#[cfg(any(test, fuzzing))]
impl Settings {
    /// Without TLS, bandwidth and trusted proxies.
    pub(super) fn fixture() -> Self {
        Self {
            tls: None,
            max_connections: 10,
            drain: Drain {
                notice: Duration::ZERO,
                over: Duration::ZERO,
            },
            long_poll: LongPoll {
                max_wait: Duration::from_secs(300),
                first_wait: Duration::from_secs(5),
                bandwidth: None,
                spread: Duration::ZERO,
                repeat_delay: Duration::ZERO,
            },
            access_log: AccessLevel::Off,
            trusted_proxies: TrustedProxies::default(),
            admin_tls: None,
            admin_hosts: Vec::new(),
        }
    }
}

/// The settings of a running server.
pub type LiveSettings = Live<Settings>;

/// Time limits for each step of a connection. A client that exceeds one loses the connection, or
/// over HTTP/2 the one response that it does not read.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From the connection's start to the end of the first request's headers.
    pub first_request: Duration,
    /// From the first byte of a later request to the end of its headers.
    pub head: Duration,
    /// Between two requests over HTTP/1.
    pub idle: Duration,
    /// For each 16 KiB of a response, or the rest of it.
    pub progress: Duration,
    /// From asking an idle connection to close until it is closed.
    pub close_grace: Duration,
    /// Age at which a connection that has sent no request may be evicted.
    pub new_connection_grace: Duration,
    /// Time without progress after which a connection whose client does not read its response may
    /// be evicted.
    pub stalled_response_grace: Duration,
}

impl From<AdminAddress> for AdminOptions {
    /// Without TLS, tokens, certificates, trust roots and roll-outs.
    fn from(address: AdminAddress) -> Self {
        Self {
            address,
            tokens: AdminTokens::default(),
            reloads: ConfigReloads::default(),
            cache_problem: watch::channel(None).1,
            certificates: Vec::new().into(),
            trust_roots: watch::channel(BTreeMap::new()).1,
            rollouts: Rollouts::default(),
        }
    }
}

impl fmt::Display for AdminAddress {
    /// As in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
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
            new_connection_grace: Duration::from_millis(250),
            stalled_response_grace: Duration::from_millis(250),
        }
    }
}

/// The two phases of a shutdown. Each ends early when no connection is left.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long the server reports not ready and still accepts connections.
    pub notice: Duration,
    /// The time over which held requests are answered.
    pub over: Duration,
}

/// How long requests are held.
#[derive(Debug, Clone, Copy)]
pub struct LongPoll {
    /// The longest hold, whatever the client asks for.
    pub max_wait: Duration,
    /// The hold of a request without `Prefer: wait` while its bundle is pending.
    pub first_wait: Duration,
    /// Bytes of bodies that are sent per second, over all connections, with a burst of 100 ms and at
    /// least one body; `None` is unlimited. A response waits for it as long as the request may be
    /// held, and is then sent all the same.
    pub bandwidth: Option<NonZeroU64>,
    /// The responses to requests that were held are spread over this time.
    pub spread: Duration,
    /// The longest delay of a client that long-polls and downloads the same version again and again;
    /// zero for none.
    pub repeat_delay: Duration,
}
