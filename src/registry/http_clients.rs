//! The HTTP clients for one registry host, each a pool of connections.
//!
//! TLS connections speak HTTP/2 where the server offers it (ALPN), and all requests to its host
//! share one. Over HTTP/1.1 a connection carries one request at a time, and is used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::{Certificate, Client, ClientBuilder, dns::Resolve, redirect};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    task::spawn_blocking,
    time::{Duration, Instant},
};
use url::Url;

use super::{
    address::GuardedResolver,
    options::{Options, Scheme, TlsTrust},
    proxy::ProxyRules,
    transport::innermost,
};
use crate::oci::Digest;

/// The files that the clients are made from are read this often, and only while requests are sent.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// An idle connection is closed after this time: proxies and firewalls forget it silently.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest time without an answer after which a PING checks an HTTP/2 connection.
const MAX_PING_INTERVAL: Duration = Duration::from_secs(10);

/// The HTTP clients for one registry host. They are made again when the client certificate or the
/// password of the proxy changes, so that no connection and no TLS session outlives it for long.
pub(super) struct HttpClients {
    inputs: Inputs,
    current: Mutex<Current>,
}

struct Inputs {
    base: Url,
    options: Options,
    read_timeout: Option<Duration>,
    resolver: Arc<dyn Resolve>,
    proxies: ProxyRules,
}

struct Current {
    clients: Clients,
    files: Files,
    /// When the files were last read.
    checked: Instant,
}

#[derive(Clone)]
struct Clients {
    /// For the registry's own origin: the only one with the client certificate.
    own: Client,
    /// For URLs from answers, without a proxy: resolves no name to a forbidden address.
    direct: Client,
    /// For URLs from answers, through a proxy, which resolves their names unless it is `socks5`;
    /// `None` where no proxy is ever used.
    proxied: Option<Client>,
}

/// The digests of the files that the clients are made from: certificate, key, password.
type Files = [Option<Digest>; 3];

impl HttpClients {
    /// Blocks while it reads the files.
    pub(super) fn new(
        base: Url,
        options: &Options,
        read_timeout: Option<Duration>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, String> {
        let inputs = Inputs {
            base,
            options: options.clone(),
            read_timeout,
            resolver,
            proxies: ProxyRules::new(&options.proxy),
        };
        let (files, clients) = (inputs.files(), inputs.clients()?);
        let checked = Instant::now();
        Ok(Self {
            inputs,
            current: Mutex::new(Current {
                clients,
                files,
                checked,
            }),
        })
    }

    /// The client for a request to `url`.
    pub(super) fn client(&self, url: &Url) -> Client {
        let current = self.lock();
        let clients = &current.clients;
        if url.origin() == self.inputs.base.origin() {
            return clients.own.clone();
        }
        match &clients.proxied {
            Some(proxied) if self.proxy_of(url).is_some() => proxied.clone(),
            _ => clients.direct.clone(),
        }
    }

    /// The proxy that requests to `url` go through, without its credentials.
    pub(super) fn proxy_of(&self, url: &Url) -> Option<String> {
        self.inputs.proxies.proxy_of(url)
    }

    /// Makes the clients again if a file that they are made from has changed. While the new files
    /// can't be used, such as a certificate whose key is not written yet, the old clients stay.
    pub(super) async fn follow_files(self: &Arc<Self>) {
        if !self.inputs.has_files() {
            return;
        }
        {
            let mut current = self.lock();
            if current.checked.elapsed() < FILE_CHECK_INTERVAL {
                return;
            }
            current.checked = Instant::now();
        }
        let clients = Arc::clone(self);
        // The task does not panic, and a failure to run it leaves the old clients.
        let _ = spawn_blocking(move || clients.read_files()).await;
    }

    fn read_files(&self) {
        let files = self.inputs.files();
        if self.lock().files == files {
            return;
        }
        let host = self.inputs.base.authority();
        match self.inputs.clients() {
            Ok(clients) => {
                tracing::info!(
                    host,
                    "the client certificate or the proxy's password has changed"
                );
                self.lock().clients = clients;
            }
            Err(reason) => tracing::warn!(
                host,
                reason,
                "using the last client certificate and proxy password, as new ones can't be used"
            ),
        }
        self.lock().files = files;
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inputs {
    fn has_files(&self) -> bool {
        let password = match &self.proxies {
            ProxyRules::Server(server) => server.password_file.is_some(),
            ProxyRules::Environment(_) | ProxyRules::Direct => false,
        };
        password || self.options.client_certificate.is_some()
    }

    fn files(&self) -> Files {
        let certificate = self.options.client_certificate.as_ref();
        let [certificate, key] = certificate.map_or([None, None], |files| files.contents());
        let password = match &self.proxies {
            ProxyRules::Server(server) => server.contents(),
            ProxyRules::Environment(_) | ProxyRules::Direct => None,
        };
        [certificate, key, password]
    }

    fn clients(&self) -> Result<Clients, String> {
        let resolver = || Arc::clone(&self.resolver);
        let build = |builder: ClientBuilder, resolver: Arc<dyn Resolve>| {
            let built = builder.dns_resolver(resolver).build();
            built.map_err(|error| innermost(&error))
        };
        let own = match self.proxies.proxy_of(&self.base) {
            Some(proxy) => self.through_proxy(self.builder_with_certificate(Some(&proxy))?)?,
            None => self.builder_with_certificate(None)?.no_proxy(),
        };
        let direct = self.builder_with_roots()?.no_proxy();
        let proxied = if self.proxies.are_used() {
            let proxied = self.through_proxy(self.builder_with_roots()?)?;
            // The proxy's own name is resolved here, and its address is the configuration's.
            let resolver = match self.proxies.may_resolve_here() {
                true => Arc::new(GuardedResolver::new(resolver())),
                false => resolver(),
            };
            Some(build(proxied, resolver)?)
        } else {
            None
        };
        Ok(Clients {
            own: build(own, resolver())?,
            direct: build(direct, Arc::new(GuardedResolver::new(resolver())))?,
            proxied,
        })
    }

    fn through_proxy(&self, builder: ClientBuilder) -> Result<ClientBuilder, String> {
        match &self.proxies {
            // reqwest reads the same variables by the same rules.
            ProxyRules::Environment(_) => Ok(builder),
            ProxyRules::Direct => Ok(builder.no_proxy()),
            ProxyRules::Server(server) => {
                let proxy = server
                    .connect()
                    .map_err(|reason| format!("proxy: {reason}"))?;
                Ok(builder.proxy(proxy))
            }
        }
    }

    /// With the client certificate, if there is one.
    fn builder_with_certificate(&self, proxy: Option<&str>) -> Result<ClientBuilder, String> {
        let Some(files) = &self.options.client_certificate else {
            return self.builder_with_roots();
        };
        if self.options.tls == TlsTrust::Unverified {
            return Err(
                "client_certificate: it is sent to a verified registry only; remove \
                 --insecure-skip-tls-verify"
                    .to_owned(),
            );
        }
        // reqwest has one TLS configuration for the proxy and for what is behind it.
        if proxy.is_some_and(|proxy| proxy.starts_with("https")) {
            return Err(
                "client_certificate: a proxy that is reached over TLS would get it as well; set \
                 `proxy` to one with http:// or socks5h://, or to `none`"
                    .to_owned(),
            );
        }
        let identity = files.read().map_err(|error| error.to_string())?;
        let roots = CertificateDer::pem_slice_iter(&self.options.extra_roots)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "ca_file: malformed PEM".to_owned())?;
        let tls = identity.tls(roots).map_err(|error| error.to_string())?;
        Ok(self.builder().tls_backend_preconfigured(tls))
    }

    fn builder_with_roots(&self) -> Result<ClientBuilder, String> {
        let options = &self.options;
        let mut builder = self.builder();
        if options.tls == TlsTrust::Unverified {
            builder = builder
                .tls_danger_accept_invalid_certs(true)
                .tls_danger_accept_invalid_hostnames(true);
        }
        if !options.extra_roots.is_empty() {
            let roots = Certificate::from_pem_bundle(&options.extra_roots)
                .map_err(|error| format!("ca_file: {}", innermost(&error)))?;
            builder = builder.tls_certs_merge(roots);
        }
        Ok(builder)
    }

    fn builder(&self) -> ClientBuilder {
        let timeouts = self.options.timeouts;
        // A dead connection fails before the request on it times out, so that the retry gets
        // another one.
        let ping = (timeouts.read / 3).min(MAX_PING_INTERVAL);
        let builder = Client::builder()
            .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // The retries are those of `RegistryClient`.
            .retry(reqwest::retry::never())
            .connect_timeout(timeouts.connect)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http2_keep_alive_interval(ping)
            .http2_keep_alive_timeout(ping)
            .https_only(self.options.scheme == Scheme::Https);
        match self.read_timeout {
            Some(read_timeout) => builder.read_timeout(read_timeout),
            None => builder,
        }
    }
}

impl std::fmt::Debug for HttpClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClients").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::address::tests::Fixed, *};
    use crate::registry::{Proxy, ProxyServer};

    #[tokio::test]
    async fn a_name_that_is_resolved_here_for_a_proxy_leads_to_no_metadata_service() {
        // No program listens: what is refused does not get as far as the proxy.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let names = Fixed(&[("metadata.example", &["169.254.169.254"])]);
        let base = Url::parse("http://registry.example/v2/").unwrap();
        let options = Options {
            scheme: Scheme::Http,
            proxy: Proxy::Server(ProxyServer {
                url: Url::parse(&format!("socks5://{address}")).unwrap(),
                username: None,
                password_file: None,
            }),
            ..Options::default()
        };
        let clients = HttpClients::new(base, &options, None, Arc::new(names)).unwrap();
        let url = Url::parse("http://metadata.example/latest/").unwrap();
        let error = clients.client(&url).get(url).send().await.unwrap_err();
        let reason = innermost(&error);
        assert!(reason.contains("cloud metadata address"), "{reason}");
    }
}
