//! `server` and `long_poll`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};

use super::{files::Base, problem::Problem, raw, values::Time};
use crate::server::TrustedProxies;

/// The two listeners.
#[derive(Clone)]
pub struct Server {
    /// Where OPAs come.
    pub listen: SocketAddr,
    /// Where probes and scrapes come.
    pub admin: SocketAddr,
    /// TLS for the data listener, with HTTP/2 and HTTP/1.1 by ALPN; `None` is plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whose `X-Forwarded-For` counts; none by default.
    pub trusted_proxies: TrustedProxies,
    /// Connections to the data listener at one time.
    pub max_connections: usize,
    /// Ready at the latest after this, whatever the registries do.
    pub ready_after: Duration,
    /// How to stop.
    pub drain: Drain,
}

/// How long stopping takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Not ready but still accepting.
    pub notice: Duration,
    /// Waiters are released over this time.
    pub over: Duration,
}

/// How long requests are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPoll {
    /// A longer wish is cut to it.
    pub max_wait: Duration,
    /// For a request without a wish.
    pub first_wait: Duration,
}

// rustls' own Debug goes through the key's provider, so it is not asked.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("tls", &self.tls.is_some())
            .field("trusted_proxies", &self.trusted_proxies)
            .field("max_connections", &self.max_connections)
            .field("ready_after", &self.ready_after)
            .field("drain", &self.drain)
            .finish()
    }
}

/// Reads all of `server`.
pub(super) fn read(raw: &raw::Server, base: Base<'_>) -> Result<Server, Problem> {
    let max_connections = raw.max_connections.unwrap_or(20_000);
    if max_connections == 0 {
        return Err(Problem::new("nobody could connect; write a number from 1 up").at("max_connections"));
    }
    let tls = raw.tls.as_ref().map(|raw| tls(raw, base)).transpose().map_err(|problem| problem.at("tls"))?;
    let or = |time: Option<Time>, seconds| time.map_or_else(|| Duration::from_secs(seconds), |time| time.0);
    let server = Server {
        listen: raw.listen.map_or(LISTEN, |address| address.0),
        admin: raw.admin.map_or(ADMIN, |address| address.0),
        tls,
        trusted_proxies: trusted_proxies(&raw.trusted_proxies).map_err(|problem| problem.at("trusted_proxies"))?,
        max_connections,
        ready_after: or(raw.ready_after, 30),
        drain: Drain { notice: or(raw.drain.notice, 5), over: or(raw.drain.over, 10) },
    };
    if server.listen == server.admin && server.listen.port() != 0 {
        return Err(Problem::new("it is the address of `server.listen`, too; write another").at("admin"));
    }
    Ok(server)
}

/// Reads all of `long_poll`.
pub(super) fn long_poll(raw: &raw::LongPoll) -> Result<LongPoll, Problem> {
    let max_wait = raw.max_wait.map_or(Ok(MAX_WAIT), |time| time.at_least(Duration::from_secs(1), "5m"));
    let first_wait = raw.first_wait.map_or(Ok(FIRST_WAIT), |time| {
        time.at_most(Duration::from_secs(9), "an OPA that doesn't long-poll gives up after 10s")
    });
    Ok(LongPoll {
        max_wait: max_wait.map_err(|problem| problem.at("max_wait"))?,
        first_wait: first_wait.map_err(|problem| problem.at("first_wait"))?,
    })
}

fn trusted_proxies(raw: &Option<Vec<String>>) -> Result<TrustedProxies, Problem> {
    let networks = raw.iter().flatten().enumerate().map(|(index, text)| {
        let network = network(text).map_err(Problem::new);
        network.map_err(|problem| problem.at_index(index))
    });
    Ok(TrustedProxies::new(networks.collect::<Result<_, _>>()?))
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is no network; write one such as \"10.0.0.0/8\", \"fd00::/8\" or an address"))?;
    let canonical = network.trunc();
    // Somebody meant either the one address or the network, and they differ much.
    if network != canonical {
        return Err(format!("{text} has address bits beyond its length; write {canonical} or {}", network.addr()));
    }
    Ok(network)
}

fn tls(raw: &raw::Tls, base: Base<'_>) -> Result<Arc<ServerConfig>, Problem> {
    let chain = base.certificates(&raw.certificate).map_err(|problem| problem.at("certificate"))?;
    let key = base.bytes(&raw.key).and_then(|bytes| {
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
            // The reason could quote the key.
            let file = raw.key.display();
            Problem::new(format!(
                "{file} holds no usable private key; give an unencrypted PEM one (PKCS#8, SEC1, PKCS#1)"
            ))
        })
    });
    let key = key.map_err(|problem| problem.at("key"))?;
    let refused = |error: rustls::Error| {
        Problem::new(format!("certificate and key make no TLS server: {error}; give a pair that belongs together"))
    };
    // Another crate in the tree could enable a second provider, and rustls would then ask
    // at run time which one is meant.
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
const MAX_WAIT: Duration = Duration::from_secs(300);
const FIRST_WAIT: Duration = Duration::from_secs(5);
