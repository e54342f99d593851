//! HTTP to one registry host, below authentication and retries: the client for each URL,
//! timeouts, TLS, the limits of a body, and the rule where an answer may lead.

use std::{error::Error as _, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{Response, dns::Resolve, header, redirect};
use tokio::time::{Duration, Instant, timeout, timeout_at};
use url::Url;

use super::{
    address::{GuardedResolver, SystemResolver, forbidden_host},
    certificate, docker_hub,
    error::RegistryError,
    link,
    options::{InvalidOptions, Options, Scheme, Timeouts, TlsTrust},
};
use crate::telemetry::{NAME_BYTES, cut};

/// The error of rustls when a plain HTTP server answers the handshake.
const NOT_TLS: &str = "InvalidContentType";

/// The HTTP clients for one registry host.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    host: String,
    base: Url,
    scheme: Scheme,
    timeouts: Timeouts,
    /// For requests to the registry's own origin.
    http: reqwest::Client,
    /// For requests to URLs from answers: resolves no name to a forbidden address.
    guarded_http: reqwest::Client,
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
    pub(super) fn reading(host: &str, options: &Options) -> Result<Self, InvalidOptions> {
        Self::new(
            host,
            options,
            Some(options.timeouts.read),
            Arc::new(SystemResolver),
        )
    }

    /// For uploads. reqwest counts the time in which a body is sent as a pause of the answer, so
    /// its read timeout is off, and the sender of the body has to watch its progress.
    pub(super) fn writing(host: &str, options: &Options) -> Result<Self, InvalidOptions> {
        Self::new(host, options, None, Arc::new(SystemResolver))
    }

    pub(super) fn new(
        host: &str,
        options: &Options,
        read_timeout: Option<Duration>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, InvalidOptions> {
        let invalid = |reason: String| InvalidOptions {
            host: host.to_owned(),
            reason,
        };
        let api_host = docker_hub::api_host(host);
        let base = Url::parse(&format!("{}://{api_host}/v2/", options.scheme.as_str()))
            .map_err(|error| invalid(format!("not a host or host:port: {error}")))?;
        let build = |resolver: Arc<dyn Resolve>| {
            let builder = http_builder(options, read_timeout)
                .map_err(invalid)?
                .dns_resolver(resolver);
            builder.build().map_err(|error| invalid(innermost(&error)))
        };
        Ok(Self {
            http: build(Arc::clone(&resolver))?,
            guarded_http: build(Arc::new(GuardedResolver::new(resolver)))?,
            host: host.to_owned(),
            base,
            scheme: options.scheme,
            timeouts: options.timeouts,
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
    pub(super) fn http_for(&self, url: &Url) -> &reqwest::Client {
        if self.is_own_origin(url) {
            &self.http
        } else {
            &self.guarded_http
        }
    }

    /// Whether a URL belongs to the registry itself, and not to a host that it redirects to.
    pub(super) fn is_own_origin(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// The end of `timeouts.total` for an operation that starts now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeouts.total
    }

    /// Runs `work` until `deadline`.
    pub(super) async fn within<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
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
        let sent = timeout(self.timeouts.read, request.send()).await;
        sent.map_err(|_| self.unreachable(operation, "timed out".to_owned()))?
            .map_err(|error| self.unreachable(operation, innermost(&error)))
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

fn http_builder(
    options: &Options,
    read_timeout: Option<Duration>,
) -> Result<reqwest::ClientBuilder, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(options.timeouts.connect)
        .https_only(options.scheme == Scheme::Https);
    if let Some(read_timeout) = read_timeout {
        builder = builder.read_timeout(read_timeout);
    }
    if options.tls == TlsTrust::Unverified {
        builder = builder
            .tls_danger_accept_invalid_certs(true)
            .tls_danger_accept_invalid_hostnames(true);
    }
    if !options.extra_roots.is_empty() {
        let roots = reqwest::Certificate::from_pem_bundle(&options.extra_roots)
            .map_err(|error| format!("ca_file: {}", innermost(&error)))?;
        builder = builder.tls_certs_merge(roots);
    }
    Ok(builder)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_accessed_at_its_api_host_by_each_of_its_names() {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            let transport = Transport::reading(host, &Options::default()).unwrap();
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
            let transport = Transport::reading(host, &options).unwrap();
            let own = Url::parse(&format!("http://{host}/token")).unwrap();
            transport.check_hop("test", &own).unwrap();
            assert!(
                std::ptr::eq(transport.http_for(&own), &transport.http),
                "{host}"
            );
            let other = Url::parse("http://169.254.169.254/latest").unwrap();
            assert!(transport.check_hop("test", &other).is_err(), "{host}");
            assert!(
                std::ptr::eq(transport.http_for(&other), &transport.guarded_http),
                "{host}"
            );
        }
    }
}
