//! HTTP to one registry host, below authentication and retries: the turn of each request,
//! timeouts, the limits of a body, and the rule where an answer may lead.

use std::{error::Error as _, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{Response, dns::Resolve, header};
use tokio::time::{Duration, Instant, timeout};
use url::Url;

use super::{
    address::{NameCheck, SystemResolver, forbidden_host},
    certificate,
    deadline::Deadline,
    docker_hub,
    error::RegistryError,
    http_clients::HttpClients,
    limiter::{Limiter, Order, Permit, Silence},
    link,
    options::{InvalidOptions, Options, Scheme, Timeouts},
    traced,
};
use crate::telemetry::{NAME_BYTES, cut};

/// The error of rustls when a plain HTTP server answers the handshake.
const NOT_TLS: &str = "InvalidContentType";

/// The time within which the rest of an answer that is not needed must arrive, so that its
/// connection is used again.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// A longer rest is not read.
const MAX_DRAINED_BYTES: usize = 64 << 10;

/// HTTP to one registry host. Clones share connections and limits.
#[derive(Clone)]
pub(super) struct Transport {
    host: String,
    base: Url,
    scheme: Scheme,
    timeouts: Timeouts,
    clients: Arc<HttpClients>,
    limiter: Arc<Limiter>,
    names: Arc<NameCheck>,
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFailure {
    #[error("the answer is too long")]
    TooLarge,
    #[error("{0}")]
    Broken(String),
}

impl Transport {
    /// For requests without bodies: `timeouts.read` bounds every pause of an answer.
    pub(super) fn reading(
        host: &str,
        options: &Options,
        limiter: Arc<Limiter>,
    ) -> Result<Self, InvalidOptions> {
        let read_timeout = Some(options.timeouts.read);
        Self::new(
            host,
            options,
            read_timeout,
            limiter,
            Arc::new(SystemResolver),
        )
    }

    /// For uploads. reqwest counts the time in which a body is sent as a pause of the answer, so
    /// its read timeout is off, and the sender of the body has to watch its progress.
    pub(super) fn writing(
        host: &str,
        options: &Options,
        limiter: Arc<Limiter>,
    ) -> Result<Self, InvalidOptions> {
        Self::new(host, options, None, limiter, Arc::new(SystemResolver))
    }

    pub(super) fn new(
        host: &str,
        options: &Options,
        read_timeout: Option<Duration>,
        limiter: Arc<Limiter>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, InvalidOptions> {
        let invalid = |reason: String| InvalidOptions {
            host: host.to_owned(),
            reason,
        };
        let api_host = docker_hub::api_host(host);
        let base = Url::parse(&format!("{}://{api_host}/v2/", options.scheme.as_str()))
            .map_err(|error| invalid(format!("not a host or host:port: {error}")))?;
        let clients = HttpClients::new(base.clone(), options, read_timeout, Arc::clone(&resolver))
            .map_err(invalid)?;
        Ok(Self {
            clients: Arc::new(clients),
            host: host.to_owned(),
            base,
            scheme: options.scheme,
            timeouts: options.timeouts,
            limiter,
            names: Arc::new(NameCheck::new(resolver)),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The URL of `path` below `/v2/`.
    pub(super) fn url(&self, operation: &'static str, path: &str) -> Result<Url, RegistryError> {
        self.base
            .join(path)
            .map_err(|error| self.protocol(operation, format!("no URL for {path}: {error}")))
    }

    /// The client for a request to `url`; every request goes through it. The registry's own
    /// origin is set by the configuration, every other URL by an answer.
    pub(super) fn http_for(&self, url: &Url) -> reqwest::Client {
        self.clients.client(url)
    }

    /// One of the requests that the host gets at a time. The token server, redirects and retries
    /// of a request need no permit of their own.
    ///
    /// # Errors
    /// `Unreachable` when the host answers nothing for `timeouts.total` while this waits.
    pub(super) async fn permit(&self, operation: &'static str) -> Result<Permit, RegistryError> {
        self.clients.follow_files().await;
        let permit = self.limiter.permit(self.timeouts.total).await;
        permit.map_err(
            |Silence {
                 max_silence,
                 waiting,
             }| {
                let limit = humantime::format_duration(max_silence);
                let reason = format!(
                    "the registry has not answered for {limit}, and {waiting} requests wait for it"
                );
                self.unreachable(operation, reason)
            },
        )
    }

    /// Records that a request to `url` was answered.
    pub(super) fn record_answer(&self, url: &Url) {
        if self.is_own_origin(url) {
            self.limiter.record_answer();
        }
    }

    /// Records that the registry takes the body of a request.
    pub(super) fn record_progress(&self) {
        self.limiter.record_answer();
    }

    /// Whether an operation that began at this time has taken `timeouts.total`, its time in the
    /// queue included, and the registry has answered nothing meanwhile.
    pub(super) fn is_silent_since(&self, began: Instant) -> bool {
        began.elapsed() >= self.timeouts.total && !self.limiter.has_answered_since(began)
    }

    /// Waits for the turn of a request to `url`, and checks where it leads through a proxy, which
    /// resolves names itself: no name of a metadata service, and no name that this machine
    /// resolves to a forbidden address. Requests to other hosts, such as redirects to a storage,
    /// need no turn.
    ///
    /// # Errors
    /// The reason for which the URL is refused.
    pub(super) async fn admit(&self, url: &Url, order: Order) -> Result<(), String> {
        if self.is_own_origin(url) {
            self.limiter.turn(order).await;
            return Ok(());
        }
        if self.clients.proxy_of(url).is_none() {
            return Ok(());
        }
        match self.names.forbidden(url).await {
            Some(what) => Err(format!(
                "the answer leads to {what}, a link-local or cloud metadata address"
            )),
            None => Ok(()),
        }
    }

    /// Whether a URL belongs to the registry itself, and not to a host that it redirects to.
    pub(super) fn is_own_origin(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// The end of `timeouts.total` for an operation that starts now.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.timeouts.total)
    }

    /// Runs `work` until `deadline`.
    pub(super) async fn within<T>(
        &self,
        operation: &'static str,
        deadline: Deadline,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        deadline.limit(work).await.unwrap_or_else(|| {
            let limit = humantime::format_duration(self.timeouts.total);
            Err(self.unreachable(
                operation,
                format!(
                    "not done within {limit} (registries.{}.timeouts.total)",
                    self.host
                ),
            ))
        })
    }

    /// Sends a request and returns the head of the answer, within `timeouts.read`.
    pub(super) async fn send(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let sent = timeout(self.timeouts.read, traced::send(operation, request)).await;
        let answer = sent
            .map_err(|_| self.unreachable(operation, "timed out".to_owned()))?
            .map_err(|error| self.unreachable(operation, self.reason(&error)))?;
        self.record_answer(answer.url());
        Ok(answer)
    }

    /// The innermost cause of an error, and the proxy where the connection failed behind it or at
    /// it.
    pub(super) fn reason(&self, error: &reqwest::Error) -> String {
        let reason = innermost(error);
        let proxy = error.url().and_then(|url| self.clients.proxy_of(url));
        match proxy {
            // hyper-util's text for 407.
            Some(proxy) if reason.contains("proxy authorization required") => {
                format!("{} ({proxy})", certificate::REFUSED_BY_PROXY)
            }
            Some(proxy) if error.is_connect() => format!("{reason}, through the proxy {proxy}"),
            _ => reason,
        }
    }

    /// Reads the rest of an answer that is not needed, if it is short: otherwise an HTTP/1.1
    /// connection can't be used again.
    pub(super) async fn drain(&self, response: &mut Response) {
        let rest = async {
            let mut length = 0;
            while let Ok(Some(chunk)) = response.chunk().await {
                length += chunk.len();
                if length > MAX_DRAINED_BYTES {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIMEOUT.min(self.timeouts.read), rest).await;
    }

    /// The `Location` of a redirect, checked as by [`Self::check_hop`].
    pub(super) fn next_hop(
        &self,
        operation: &'static str,
        from: &Url,
        response: &Response,
    ) -> Result<Url, RegistryError> {
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        let to = location
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| {
                self.protocol(operation, "a redirect without a usable Location".into())
            })?;
        self.check_hop(operation, &to)?;
        Ok(to)
    }

    /// Refuses a URL from an answer that gives up TLS, or leads to a link-local or cloud metadata
    /// address.
    pub(super) fn check_hop(&self, operation: &'static str, to: &Url) -> Result<(), RegistryError> {
        let keeps_tls =
            to.scheme() == "https" || (self.scheme == Scheme::Http && to.scheme() == "http");
        if !keeps_tls {
            let scheme = cut(to.scheme(), NAME_BYTES);
            return Err(self.protocol(
                operation,
                format!("the answer leads from https to {scheme}"),
            ));
        }
        match forbidden_host(to) {
            Some(address) if !self.is_own_origin(to) => Err(self.protocol(
                operation,
                format!("the answer leads to {address}, a link-local or cloud metadata address"),
            )),
            _ => Ok(()),
        }
    }

    /// Reads a body of at most `limit` bytes into memory.
    pub(super) async fn read_limited(
        &self,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, ReadFailure> {
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(ReadFailure::TooLarge);
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| ReadFailure::Broken(innermost(&error)))?
        {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(ReadFailure::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The URL of the next page from `Link`; `None` where this page is the last one. A page
    /// elsewhere is an error: the list would lack its end.
    pub(super) fn next_page(
        &self,
        operation: &'static str,
        response: &Response,
    ) -> Result<Option<Url>, RegistryError> {
        let mut links = response
            .headers()
            .get_all(header::LINK)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let Some(target) = links.find_map(link::next) else {
            return Ok(None);
        };
        let Ok(url) = response.url().join(target) else {
            return Err(self.protocol(operation, "the next page has no usable URL".to_owned()));
        };
        if !self.is_own_origin(&url) {
            let origin = url.origin().ascii_serialization();
            let origin = cut(&origin, NAME_BYTES);
            let reason = format!("the list continues at {origin}, which is not this registry");
            return Err(self.protocol(operation, reason));
        }
        Ok(Some(url))
    }

    pub(super) fn unreachable(&self, operation: &'static str, mut reason: String) -> RegistryError {
        if reason.contains(NOT_TLS) {
            reason = "the server does not speak TLS; for plain HTTP set --plain-http, or `scheme: http` in the \
                      configuration"
                .to_owned();
        }
        RegistryError::Unreachable {
            operation,
            host: self.host.clone(),
            reason,
        }
    }

    pub(super) fn protocol(&self, operation: &'static str, reason: String) -> RegistryError {
        RegistryError::Protocol {
            operation,
            host: self.host.clone(),
            reason,
        }
    }
}

/// The innermost cause of an error. The outer ones repeat the URL, whose query may be a
/// signature that grants access.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    if let Some(explanation) = certificate::explain(error) {
        return explanation;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else {
        String::new()
    };
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_accessed_at_its_api_host_by_each_of_its_names() {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            let limiter = Arc::new(Limiter::new(1, None));
            let transport = Transport::reading(host, &Options::default(), limiter).unwrap();
            let url = transport.url("test", "library/x/manifests/v1").unwrap();
            let expected = "https://registry-1.docker.io/v2/library/x/manifests/v1";
            assert_eq!((url.as_str(), transport.host()), (expected, host));
            assert!(transport.is_own_origin(&url));
            // Credentials go nowhere else: that host serves no registry.
            let other = Url::parse("https://docker.io/v2/").unwrap();
            assert!(!transport.is_own_origin(&other));
        }
    }

    /// The configuration decides where the registry itself is, by address or by name.
    #[test]
    fn the_configured_host_may_be_a_link_local_address_and_answers_may_lead_back_to_it() {
        for host in ["169.254.169.254:5000", "[fe80::1]:5000", "metadata.example"] {
            let options = Options {
                scheme: Scheme::Http,
                ..Options::default()
            };
            let limiter = Arc::new(Limiter::new(1, None));
            let transport = Transport::reading(host, &options, limiter).unwrap();
            let own = Url::parse(&format!("http://{host}/token")).unwrap();
            transport.check_hop("test", &own).unwrap();
            let other = Url::parse("http://169.254.169.254/latest").unwrap();
            assert!(transport.check_hop("test", &other).is_err(), "{host}");
        }
    }
}
