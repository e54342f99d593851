//! `server` and `long_poll`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU64,
    path::Path,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs::Ticketer},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    admin::{self, Admin},
    files::Base,
    problem::Problem,
    raw,
    tls::Tls,
    token_file::TokenFile,
    values::{Period, Size},
};
use crate::{
    access::Authorities,
    server::{AdminAddress, AdminTls, TrustedProxies},
};

/// `server`.
#[derive(Debug, Clone)]
pub struct Server {
    /// The address of the data listener, for OPA.
    pub listen: SocketAddr,
    /// Where the admin listener listens, for probes, metrics and operators.
    pub admin: AdminAddress,
    /// TLS for the admin listener, with HTTP/2 and HTTP/1.1 by ALPN; `None` is plain HTTP.
    pub admin_tls: Option<AdminTls>,
    /// The tokens that allow to change something by the admin listener.
    pub admin_tokens: Option<TokenFile>,
    /// Names of the admin listener, besides those of its certificate.
    pub admin_hosts: Vec<String>,
    /// TLS for the data listener, with HTTP/2 and HTTP/1.1 by ALPN; `None` is plain HTTP.
    pub tls: Option<Tls>,
    /// Networks whose `X-Forwarded-For` is trusted; none by default.
    pub trusted_proxies: TrustedProxies,
    /// The maximum number of concurrent connections to the data listener.
    pub max_connections: usize,
    /// The time after which the replica is ready even if registries fail.
    pub ready_after: Duration,
    /// The drain times.
    pub drain: Drain,
}

/// `server.drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// The time in which the replica is not ready but still accepts connections.
    pub notice: Duration,
    /// The time over which waiting clients are released.
    pub over: Duration,
}

/// `long_poll`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPoll {
    /// The maximum wait; a longer requested wait is reduced to it.
    pub max_wait: Duration,
    /// The wait for a request that requests none, while there is nothing to serve yet.
    pub first_wait: Duration,
    /// The time over which held requests are answered after a change; `None` (`auto`) is as long as
    /// `bandwidth` requires.
    pub spread: Option<Duration>,
    /// The bytes of bundles that are sent per second; `None` is unlimited.
    pub bandwidth: Option<NonZeroU64>,
    /// The longest delay of a client that downloads the same version again and again; zero for none.
    pub repeat_delay: Duration,
}

impl Server {
    /// Keeps the TLS configurations of `running` whose files have the same contents, so that their
    /// sessions can still be resumed.
    pub fn keep_equal_tls(&mut self, running: &Self) {
        if self.tls == running.tls {
            self.tls.clone_from(&running.tls);
        }
        if self.admin_tls == running.admin_tls {
            self.admin_tls.clone_from(&running.admin_tls);
        }
    }

    /// With what can't change while the listeners are bound.
    pub(super) fn with_addresses_of(self, running: &Self) -> Self {
        Self {
            listen: running.listen,
            admin: running.admin.clone(),
            ready_after: running.ready_after,
            ..self
        }
    }
}

/// Reads all of `server`.
pub(super) fn read(raw: &raw::Server, base: Base<'_>) -> Result<Server, Problem> {
    let max_connections = raw.max_connections.unwrap_or(MAX_CONNECTIONS);
    if max_connections == 0 {
        return Err(
            Problem::new("no client could connect; write a number of at least 1")
                .at("max_connections"),
        );
    }
    let tls = raw
        .tls
        .as_ref()
        .map(|raw| comparable_tls(raw, base))
        .transpose()
        .map_err(|problem| problem.at("tls"))?;
    let Admin {
        address,
        tls: admin_tls,
        tokens,
        hosts,
    } = admin::read(raw, base)?;
    let or = |time: Option<Period>, default| time.map_or(default, |time| time.0);
    let server = Server {
        listen: raw.listen.map_or(LISTEN, |address| address.0),
        admin: address,
        admin_tls,
        admin_tokens: tokens,
        admin_hosts: hosts,
        tls,
        trusted_proxies: trusted_proxies(&raw.trusted_proxies)
            .map_err(|problem| problem.at("trusted_proxies"))?,
        max_connections,
        ready_after: or(raw.ready_after, READY_AFTER),
        drain: Drain {
            notice: or(raw.drain.notice, DRAIN_NOTICE),
            over: or(raw.drain.over, DRAIN_OVER),
        },
    };
    if server.admin == AdminAddress::Tcp(server.listen) && server.listen.port() != 0 {
        return Err(Problem::new("the same address as `server.listen`; write another").at("admin"));
    }
    Ok(server)
}

/// Reads all of `long_poll`.
pub(super) fn long_poll(raw: &raw::LongPoll) -> Result<LongPoll, Problem> {
    let max_wait = raw
        .max_wait
        .map_or(Ok(MAX_WAIT), |time| time.at_least(MIN_MAX_WAIT, "5m"));
    let first_wait = raw.first_wait.map_or(Ok(FIRST_WAIT), |time| {
        time.at_most(
            LONGEST_FIRST_WAIT,
            "an OPA without long polling times out after 10s",
        )
    });
    let max_wait = max_wait.map_err(|problem| problem.at("max_wait"))?;
    let spread = spread(raw, max_wait).map_err(|problem| problem.at("spread"))?;
    Ok(LongPoll {
        max_wait,
        first_wait: first_wait.map_err(|problem| problem.at("first_wait"))?,
        spread,
        bandwidth: bandwidth(raw, spread).map_err(|problem| problem.at("bandwidth"))?,
        repeat_delay: raw
            .repeat_delay
            .map_or(Ok(REPEAT_DELAY), |time| {
                time.at_most(
                    LONGEST_REPEAT_DELAY,
                    "OPA waits 10s for the head of a response",
                )
            })
            .map_err(|problem| problem.at("repeat_delay"))?,
    })
}

fn spread(raw: &raw::LongPoll, max_wait: Duration) -> Result<Option<Duration>, Problem> {
    let why = "the longest hold, `long_poll.max_wait`";
    let limited = |spread| Period(spread).at_most(max_wait, why);
    raw.spread
        .and_then(|spread| spread.0)
        .map(limited)
        .transpose()
}

/// Reads the bytes per second, which contradict a `spread` of no time.
fn bandwidth(raw: &raw::LongPoll, spread: Option<Duration>) -> Result<Option<NonZeroU64>, Problem> {
    let Some(bandwidth) = raw.bandwidth.map(Size::bytes) else {
        return Ok(None);
    };
    if bandwidth < MIN_BANDWIDTH {
        return Err(Problem::new(format!(
            "{bandwidth} bytes a second are below the minimum of 64KiB; write a larger size, such as 10MiB"
        )));
    }
    if spread.is_some_and(|spread| spread.is_zero()) {
        return Err(Problem::new(
            "`long_poll.spread: 0s` sends everything at once; remove one of the two",
        ));
    }
    Ok(NonZeroU64::new(bandwidth))
}

fn trusted_proxies(raw: &Option<Vec<String>>) -> Result<TrustedProxies, Problem> {
    let networks = raw.iter().flatten().enumerate().map(|(index, text)| {
        let network = network(text).map_err(Problem::new);
        network.map_err(|problem| problem.at_index(index))
    });
    Ok(TrustedProxies::new(networks.collect::<Result<_, _>>()?))
}

/// Parses a network or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| {
        format!("{text:?} is not a network; write one such as \"10.0.0.0/8\", \"fd00::/8\" or an address")
    })?;
    let canonical = network.trunc();
    // Ambiguous: either the address or the network could be meant.
    if network != canonical {
        return Err(format!(
            "{text} has address bits beyond its length; write {canonical} or {}",
            network.addr()
        ));
    }
    Ok(network)
}

/// The TLS configuration with the contents of its files, each of which has been read.
fn comparable_tls(raw: &raw::Tls, base: Base<'_>) -> Result<Tls, Problem> {
    let client_ca = raw.client_ca.as_deref();
    let (config, _) = tls(&raw.certificate, &raw.key, client_ca, base)?;
    let files = [Some(&*raw.certificate), Some(&*raw.key), client_ca];
    let files = files.into_iter().flatten().map(|file| base.bytes(file));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    // The last file is that of the authorities, where there is one.
    let authorities = client_ca.and_then(|_| Some(Authorities::of(files.last()?)));
    let contents = files.iter().map(|bytes| &**bytes);
    Ok(Tls::new(config, contents, authorities))
}

/// Reads a certificate with its chain, its key, and the CA of the client certificates, if there is
/// one. Also returns the chain.
pub(super) fn tls(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
    base: Base<'_>,
) -> Result<(Arc<ServerConfig>, Vec<CertificateDer<'static>>), Problem> {
    // All are read before the first problem is returned, which makes the others known as well.
    let chain = base.certificates(certificate);
    let key_bytes = base.bytes(key);
    if let Some(file) = client_ca {
        let _ = base.bytes(file);
    }
    let chain = chain.map_err(|problem| problem.at("certificate"))?;
    let key = key_bytes.and_then(|bytes| {
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
            // The error is not quoted: it could contain the key.
            let file = key.display();
            Problem::new(format!("{file} has no usable private key; use an unencrypted PEM key (PKCS#8, SEC1, PKCS#1)"))
        })
    });
    let key = key.map_err(|problem| problem.at("key"))?;
    let refused = |error: rustls::Error| {
        Problem::new(match error {
            rustls::Error::InconsistentKeys(_) => {
                "the key is not that of the certificate; use a matching pair".to_owned()
            }
            error => format!("certificate and key can't be used: {error}; use a matching pair"),
        })
    };
    // The provider is explicit: if another crate enabled a second one, rustls would have no
    // default.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = match client_ca {
        Some(file) => client_verifier(file, Arc::clone(&provider), base)
            .map_err(|problem| problem.at("client_ca"))?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets, so that the memory does not depend on the number of clients. One for each connection:
    // a client continues its last session, and OPA none.
    config.ticketer = Ticketer::new().map_err(refused)?;
    config.send_tls13_tickets = 1;
    Ok((Arc::new(config), chain))
}

/// Verifies client certificates in the handshake. A client without one is let in, since there may
/// be clients of other kinds; whether a certificate is needed is decided for each request.
fn client_verifier(
    file: &Path,
    provider: Arc<CryptoProvider>,
    base: Base<'_>,
) -> Result<Arc<dyn ClientCertVerifier>, Problem> {
    let roots = Arc::new(base.root_store(file)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| Problem::new(format!("{}: {error}; replace it", file.display())))
}

pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080);
pub(super) const MAX_CONNECTIONS: usize = 20_000;
pub(super) const READY_AFTER: Duration = Duration::from_secs(30);
pub(super) const DRAIN_NOTICE: Duration = Duration::from_secs(5);
pub(super) const DRAIN_OVER: Duration = Duration::from_secs(10);
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);
pub(super) const MIN_MAX_WAIT: Duration = Duration::from_secs(1);
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(5);
pub(super) const LONGEST_FIRST_WAIT: Duration = Duration::from_secs(9);
pub(super) const REPEAT_DELAY: Duration = Duration::from_secs(5);
pub(super) const LONGEST_REPEAT_DELAY: Duration = Duration::from_secs(9);
/// The least bandwidth, in bytes per second.
pub(super) const MIN_BANDWIDTH: u64 = 64 << 10;
