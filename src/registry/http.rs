//! One registry host over HTTP: deadlines, retries, challenges, redirects, byte limits.

use std::{error::Error as _, time::SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Response, StatusCode,
    header::{self, HeaderValue},
    redirect,
};
use tokio::time::{Duration, Instant, sleep, timeout_at};
use url::Url;

use super::{
    auth::Authenticator,
    challenge::Challenge,
    error::{Class, RegistryError},
    options::{Options, Scheme, Timeouts},
    retry,
};
use crate::metrics::Metrics;

const MAX_REDIRECTS: usize = 5;
/// A longer `Retry-After` is the caller's to honour, by asking again later.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Signature bundles and manifests of every kind, in the order of preference. Always all
/// of them: docker-registry answers 404 for a type that is not listed.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";

/// The connection pool and the manners towards one host under one credential.
#[derive(Debug)]
pub(super) struct Wire {
    host: String,
    base: Url,
    scheme: Scheme,
    timeouts: Timeouts,
    client: reqwest::Client,
    auth: Authenticator,
    metrics: Metrics,
}

/// One request, before retries.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    /// For errors and metrics.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    /// Repository path; tokens are per repository.
    pub(super) repository: &'a str,
    /// Below `/v2/<repository>/`, or a whole URL path with query for a next page.
    pub(super) target: Target<'a>,
}

#[derive(Debug, Clone)]
pub(super) enum Target<'a> {
    Below(&'a str),
    Page(Url),
}

/// Why a client can't be built.
#[derive(Debug, thiserror::Error)]
#[error("registries.{host}: {reason}")]
pub struct BadOptions {
    /// The registry.
    pub host: String,
    /// What is wrong.
    pub reason: String,
}

impl Wire {
    pub(super) fn new(host: &str, options: &Options, metrics: Metrics) -> Result<Self, BadOptions> {
        let bad = |reason: String| BadOptions { host: host.to_owned(), reason };
        let base = Url::parse(&format!("{}://{host}/v2/", options.scheme.as_str()))
            .map_err(|error| bad(format!("not a host or host:port: {error}")))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(options.timeouts.connect)
            .read_timeout(options.timeouts.read)
            .https_only(options.scheme == Scheme::Https);
        if !options.extra_roots.is_empty() {
            let roots = reqwest::Certificate::from_pem_bundle(&options.extra_roots)
                .map_err(|error| bad(format!("ca_file: {}", innermost(&error))))?;
            builder = builder.tls_certs_merge(roots);
        }
        Ok(Self {
            client: builder.build().map_err(|error| bad(innermost(&error)))?,
            auth: Authenticator::new(host.to_owned(), options.scheme, options.credentials.clone()),
            host: host.to_owned(),
            base,
            scheme: options.scheme,
            timeouts: options.timeouts,
            metrics,
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// When an operation that starts now must be over.
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
            Err(self
                .unreachable(operation, format!("not done within {limit} (registries.{}.timeouts.total)", self.host)))
        })
    }

    /// Sends a request, repeating what may pass. The answer is a success or a 404; every
    /// other status is an error. The body is still to be read.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let wait = match error.class() {
                Class::RateLimited { retry_after } => retry_after,
                _ => None,
            };
            if attempt == retry::ATTEMPTS || !may_pass(&error) || wait.is_some_and(|wait| wait > MAX_WAIT) {
                return Err(error);
            }
            attempt += 1;
            let delay = retry::delay(attempt, wait);
            tracing::debug!(host = self.host, attempt, ?delay, %error, "asking the registry again");
            sleep(delay).await;
        }
    }

    async fn attempt(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let outcome = self.authorized(call).await.and_then(|response| self.judge(call, response));
        let word = match &outcome {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => "not_found",
            Ok(_) => "ok",
            Err(error) => match error.class() {
                Class::Transient => "transient",
                Class::RateLimited { .. } => "rate_limited",
                Class::NotFound => "not_found",
                Class::Denied => "denied",
                Class::Defect => "defect",
            },
        };
        self.metrics.registry_requests.with_label_values(&[self.host.as_str(), call.operation, word]).inc();
        outcome
    }

    fn judge(&self, call: &Call<'_>, response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        match status.as_u16() {
            200..=299 | 404 => Ok(response),
            401 | 403 => Err(RegistryError::Denied {
                operation: call.operation,
                host: self.host.clone(),
                status: status.as_u16(),
                credentials: self.auth.identity(),
            }),
            _ => Err(RegistryError::Status {
                operation: call.operation,
                host: self.host.clone(),
                status: status.as_u16(),
                retry_after: retry::retry_after(response.headers(), SystemTime::now()),
            }),
        }
    }

    /// Sends with what we know, and once more after a challenge.
    async fn authorized(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let known = self.auth.known(call.repository);
        let response = self.redirected(call, known.clone()).await?;
        // ECR answers 403, not 401, to an expired token.
        let refused = response.status() == StatusCode::UNAUTHORIZED
            || (response.status() == StatusCode::FORBIDDEN && known.is_some());
        if !refused || !self.is_ours(response.url()) {
            return Ok(response);
        }
        let offered = response.headers().get_all(header::WWW_AUTHENTICATE);
        let Some(challenge) = Challenge::choose(offered.iter().filter_map(|value| value.to_str().ok())) else {
            return Ok(response);
        };
        let answer = self.auth.answer(self, call.repository, &challenge, known.as_ref()).await?;
        self.redirected(call, Some(answer)).await
    }

    /// Follows redirects by hand: credentials stay with the registry's own origin, and TLS
    /// is never given up on the way.
    async fn redirected(&self, call: &Call<'_>, authorization: Option<HeaderValue>) -> Result<Response, RegistryError> {
        let mut url = match &call.target {
            Target::Below(path) => self
                .base
                .join(&format!("{}/{path}", call.repository))
                .map_err(|error| self.protocol(call.operation, format!("no URL for {path}: {error}")))?,
            Target::Page(url) => url.clone(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(call.method.clone(), url.clone()).header(header::ACCEPT, ACCEPT);
            if let Some(value) = authorization.as_ref().filter(|_| self.is_ours(&url)) {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let response = request.send().await.map_err(|error| self.unreachable(call.operation, innermost(&error)))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = self.next_hop(call.operation, &url, &response)?;
        }
        Err(self.protocol(call.operation, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn next_hop(&self, operation: &'static str, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to = location
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| self.protocol(operation, "a redirect without a usable Location".into()))?;
        let kept = to.scheme() == "https" || (self.scheme == Scheme::Http && to.scheme() == "http");
        if !kept {
            return Err(self.protocol(operation, format!("a redirect from https to {}", to.scheme())));
        }
        Ok(to)
    }

    /// Reads a body of at most `limit` bytes into memory.
    pub(super) async fn read_limited(&self, mut response: Response, limit: u64) -> Result<Bytes, ReadFailure> {
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(ReadFailure::TooLarge);
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| ReadFailure::Broken(innermost(&error)))? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(ReadFailure::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Whether a URL belongs to the registry itself, as opposed to where it redirects.
    pub(super) fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(super) fn unreachable(&self, operation: &'static str, reason: String) -> RegistryError {
        RegistryError::Unreachable { operation, host: self.host.clone(), reason }
    }

    pub(super) fn protocol(&self, operation: &'static str, reason: String) -> RegistryError {
        RegistryError::Protocol { operation, host: self.host.clone(), reason }
    }
}

/// Whether the same request may succeed a moment later.
fn may_pass(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => retry::is_passing(*status),
        _ => matches!(error.class(), Class::Transient | Class::RateLimited { .. }),
    }
}

/// Why a body could not be read whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFailure {
    #[error("the answer is too long")]
    TooLarge,
    #[error("{0}")]
    Broken(String),
}

/// The last cause of an error. The outer ones repeat the URL, whose query may be a
/// signature that grants access.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { String::new() };
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() { "the request failed".to_owned() } else { text }
}
