//! One registry host under one credential: authentication, retries, redirects and the limit of
//! transfers at a time, on top of [`Transport`].

use std::{sync::Arc, time::SystemTime};

use reqwest::{
    Method, Response, StatusCode,
    header::{self, HeaderValue},
};
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, sleep, timeout},
};
use url::Url;

use super::{
    auth::{Authenticator, is_refusal},
    capabilities::Capabilities,
    certificate,
    challenge::Challenge,
    error::{Class, RegistryError},
    health::Health,
    limiter::{Limiter, Order},
    metrics::{HostMetrics, RegistryMetrics},
    options::{InvalidOptions, Options},
    payload::Payload,
    retry::{self, is_retryable},
    scope::TokenScope,
    tag_list::Validators,
    traced,
    transport::Transport,
};
use crate::telemetry::{self, NAME_BYTES, SENTENCE_BYTES, cut};

const MAX_REDIRECTS: usize = 5;
/// The parameter that names the registry to a mirror.
const NAMESPACE: &str = "ns";
/// Artifacts that are fetched from one host at a time.
const MAX_TRANSFERS: usize = 64;
/// The longest `Retry-After` that is waited for within an operation; a longer one is left to the
/// caller.
pub(super) const MAX_RETRY_WAIT: Duration = Duration::from_secs(10);
/// As [`MAX_RETRY_WAIT`], for a caller that polls and may have less time left (`max_stale`).
pub(super) const MAX_RETRY_WAIT_POLLING: Duration = Duration::from_secs(1);
/// How often the progress of an upload is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Longer error details are cut.
const MAX_DETAIL_BYTES: usize = 200;
/// A longer body of an error is not read.
const MAX_ERROR_BODY_BYTES: u64 = 16 << 10;
/// Manifests of every kind, in the order of preference. Every request for one lists them all:
/// docker-registry answers 404 for a type that is not listed.
pub(super) const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";

/// Authentication, retries, redirects and limits for one registry host and credential.
#[derive(Debug)]
pub(super) struct RegistryClient {
    pub(super) transport: Transport,
    pub(super) capabilities: Capabilities,
    pub(super) health: Health,
    /// The longest `Retry-After` that is waited for within an operation.
    max_retry_wait: Duration,
    auth: Authenticator,
    metrics: HostMetrics,
    transfers: Arc<Semaphore>,
}

/// One request, before retries.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    /// For errors and metrics.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    /// Tokens are cached per scope.
    pub(super) scope: TokenScope<'a>,
    pub(super) target: Target<'a>,
    /// The registry whose content is requested from this host, which mirrors it. Such a request is
    /// not repeated: the next host is asked.
    pub(super) mirror_of: Option<&'a str>,
    /// The media types of the answer.
    pub(super) accept: &'static str,
    /// The first byte of the requested range, if not the whole is requested.
    pub(super) from: Option<u64>,
    /// The state that is known. With it, 304 is a success.
    pub(super) validators: Option<&'a Validators>,
    pub(super) body: Option<RequestBody<'a>>,
}

#[derive(Debug, Clone)]
pub(super) enum Target<'a> {
    /// A path below `/v2/`.
    Path(&'a str),
    /// A URL from an answer: a next page, or an upload session.
    Url(Url),
}

/// A body, and a callback for the number of bytes sent so far.
#[derive(Clone, Copy)]
pub(super) struct RequestBody<'a> {
    pub(super) payload: &'a Payload,
    pub(super) progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl RegistryClient {
    /// For requests without bodies; `max_retry_wait` is the longest `Retry-After` that is waited
    /// for.
    pub(super) fn reading(
        host: &str,
        options: &Options,
        limiter: Arc<Limiter>,
        metrics: RegistryMetrics,
        max_retry_wait: Duration,
    ) -> Result<Self, InvalidOptions> {
        let transport = Transport::reading(host, options, limiter)?;
        Ok(Self {
            max_retry_wait,
            ..Self::new(transport, options, &metrics)
        })
    }

    /// For uploads.
    pub(super) fn writing(
        host: &str,
        options: &Options,
        limiter: Arc<Limiter>,
        metrics: RegistryMetrics,
    ) -> Result<Self, InvalidOptions> {
        let transport = Transport::writing(host, options, limiter)?;
        Ok(Self::new(transport, options, &metrics))
    }

    fn new(transport: Transport, options: &Options, metrics: &RegistryMetrics) -> Self {
        Self {
            auth: Authenticator::new(
                transport.clone(),
                options.scheme,
                options.credentials.clone(),
            ),
            capabilities: Capabilities::default(),
            health: Health::default(),
            max_retry_wait: MAX_RETRY_WAIT,
            metrics: metrics.host(transport.host()),
            transport,
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
        }
    }

    /// The permits for fetching artifacts from this host.
    pub(super) fn transfers(&self) -> &Arc<Semaphore> {
        &self.transfers
    }

    /// Sends a request, and again after a retryable failure. Returns a success or a 404; every
    /// other status is an error. The body is still to be read.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let began = Instant::now();
        let mut attempt = 1;
        loop {
            let error = match self.attempt(call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let wait = error.retry_after();
            if attempt == retry::ATTEMPTS
                || call.mirror_of.is_some()
                || !is_retryable(&error)
                // It would wait in the same queue again.
                || self.transport.is_silent_since(began)
                || wait.is_some_and(|wait| wait > self.max_retry_wait)
            {
                return Err(error);
            }
            attempt += 1;
            let delay = retry::delay(attempt, wait);
            let error = error.to_string();
            let error = &*cut(&error, SENTENCE_BYTES);
            tracing::debug!(
                host = self.transport.host(),
                attempt,
                ?delay,
                error,
                "retrying a request to the registry"
            );
            sleep(delay).await;
        }
    }

    /// Sends a request once, for requests that must not be repeated blindly.
    pub(super) async fn attempt(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let sent = if telemetry::is_clock_usable() {
            self.permitted(call).await
        } else {
            // No certificate can be verified, and rustls panics before 1970.
            let reason = "the system's clock is before 1970 or after 9999; set it".to_owned();
            Err(self.transport.unreachable(call.operation, reason))
        };
        let outcome = match sent {
            Ok(response) => self.classify_status(call, response).await,
            Err(error) => Err(error),
        };
        let label = match &outcome {
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
        self.metrics.count_request(call.operation, label);
        outcome
    }

    /// Sends within the limit of requests at a time. Only an answer with content that is still to
    /// be read keeps its permit: a caller that holds any other answer may send the next request.
    async fn permitted(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let suspensions = self.health.suspensions();
        let permit = self.transport.permit(call.operation).await?;
        let mut response = self.authorized(call, suspensions).await?;
        let status = response.status();
        let has_content =
            call.method == Method::GET && status.is_success() && status != StatusCode::NO_CONTENT;
        let is_refused = is_refusal(status) && !retry::is_rate_limited(response.headers());
        if has_content && self.transport.is_own_origin(response.url()) {
            response.extensions_mut().insert(permit);
        } else if is_refused
            || status == StatusCode::NOT_FOUND
            || status.is_success() && !has_content
        {
            self.transport.drain(&mut response).await;
        }
        Ok(response)
    }

    async fn classify_status(
        &self,
        call: &Call<'_>,
        response: Response,
    ) -> Result<Response, RegistryError> {
        let status = response.status().as_u16();
        match status {
            200..=299 | 404 => Ok(response),
            304 if call.validators.is_some() => Ok(response),
            401 | 403 if status == 401 || !retry::is_rate_limited(response.headers()) => {
                Err(self.refused(call.operation, response.url(), status))
            }
            _ => Err(RegistryError::Status {
                operation: call.operation,
                host: self.transport.host().to_owned(),
                status,
                retry_after: retry::retry_after(response.headers(), SystemTime::now()),
                detail: self.detail(response).await,
            }),
        }
    }

    fn refused(&self, operation: &'static str, url: &Url, status: u16) -> RegistryError {
        let host = self.transport.host().to_owned();
        if self.transport.is_own_origin(url) {
            return RegistryError::Denied {
                operation,
                host,
                status,
                credentials: self.auth.credential_source(),
            };
        }
        let target = url.origin().ascii_serialization();
        RegistryError::Redirected {
            operation,
            host,
            target: cut(&target, NAME_BYTES).into_owned(),
            status,
        }
    }

    /// The detail in the body of an error, empty where it can't be read.
    async fn detail(&self, mut response: Response) -> String {
        let status = response.status();
        if response.content_length() > Some(MAX_ERROR_BODY_BYTES) {
            self.transport.drain(&mut response).await;
            return String::new();
        }
        let read = self.transport.read_limited(response, MAX_ERROR_BODY_BYTES);
        let read = timeout(self.transport.timeouts().read, read).await;
        let Ok(Ok(body)) = read else {
            return String::new();
        };
        certificate::refused_by_proxy(status, &body).unwrap_or_else(|| error_detail(&body))
    }

    /// Fails a request to a mirror that was suspended while the request waited for its turn: the
    /// next host is asked instead.
    fn check_health(&self, call: &Call<'_>, suspensions: u64) -> Result<(), RegistryError> {
        if call.mirror_of.is_some() && self.health.is_suspended_since(suspensions) {
            return Err(self.health.error(call.operation, self.transport.host()));
        }
        Ok(())
    }

    /// Sends with the current authorization, and once more with a better one if the registry itself
    /// refuses it. `suspensions` is the number of those of the host when the request was made.
    async fn authorized(
        &self,
        call: &Call<'_>,
        suspensions: u64,
    ) -> Result<Response, RegistryError> {
        let url = self.url(call)?;
        self.check_health(call, suspensions)?;
        // Before the token, which would expire in a long queue.
        self.admit(call, &url, Order::First).await?;
        self.check_health(call, suspensions)?;
        let sent = self.auth.authorization(call.scope).await?;
        let mut response = self.timed(call, url.clone(), sent.clone()).await?;
        let status = response.status();
        if !is_refusal(status) {
            self.auth.conclude(call.scope, sent.as_ref(), status);
            return Ok(response);
        }
        let is_limited =
            status == StatusCode::FORBIDDEN && retry::is_rate_limited(response.headers());
        if is_limited || !self.transport.is_own_origin(response.url()) {
            return Ok(response);
        }
        let offered = response.headers().get_all(header::WWW_AUTHENTICATE);
        let offered = offered
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()));
        let challenge = Challenge::choose(offered);
        self.transport.drain(&mut response).await;
        let other = self
            .auth
            .after_refusal(call.scope, challenge, sent.as_ref(), status)
            .await?;
        let Some(other) = other else {
            return Ok(response);
        };
        drop(response);
        self.admit(call, &url, Order::FollowUp).await?;
        let response = self.timed(call, url, Some(other.clone())).await?;
        if self.transport.is_own_origin(response.url()) {
            self.auth
                .conclude(call.scope, Some(&other), response.status());
        }
        Ok(response)
    }

    fn url(&self, call: &Call<'_>) -> Result<Url, RegistryError> {
        let mut url = match &call.target {
            Target::Path(path) => self.transport.url(call.operation, path)?,
            Target::Url(url) => url.clone(),
        };
        if let Some(registry) = call.mirror_of {
            add_namespace(&mut url, registry);
        }
        Ok(url)
    }

    async fn admit(&self, call: &Call<'_>, url: &Url, order: Order) -> Result<(), RegistryError> {
        let admitted = self.transport.admit(url, order).await;
        admitted.map_err(|reason| self.transport.protocol(call.operation, reason))
    }

    /// Sends as [`Self::redirected`] does, and records how long the answer took, or its failure.
    async fn timed(
        &self,
        call: &Call<'_>,
        url: Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let began = Instant::now();
        let sent = self.redirected(call, url, authorization).await;
        self.metrics
            .observe_request(call.operation, began.elapsed());
        sent
    }

    /// Sends to an admitted URL, and follows redirects. Credentials go to the registry's own origin
    /// only, and a redirect never leads from TLS to plain HTTP.
    async fn redirected(
        &self,
        call: &Call<'_>,
        mut url: Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let transport = &self.transport;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = transport
                .http_for(&url)
                .request(call.method.clone(), url.clone())
                .header(header::ACCEPT, call.accept);
            if let Some(from) = call.from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(Validators {
                etag,
                last_modified,
            }) = call.validators.cloned()
            {
                let known = [
                    (header::IF_NONE_MATCH, etag),
                    (header::IF_MODIFIED_SINCE, last_modified),
                ];
                for (name, value) in known {
                    if let Some(value) = value {
                        request = request.header(name, value);
                    }
                }
            }
            // Some servers refuse a request whose body has no announced length, even if it has
            // no body.
            if call.body.is_none() && !call.method.is_safe() {
                request = request.header(header::CONTENT_LENGTH, 0);
            }
            if let Some(value) = authorization
                .as_ref()
                .filter(|_| transport.is_own_origin(&url))
            {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let mut response = match call.body {
                None => transport.send(call.operation, request).await?,
                Some(body) => {
                    self.send_with_progress(call.operation, request, body)
                        .await?
                }
            };
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            if matches!(status, 301..=303) && !call.method.is_safe() {
                let reason = format!("HTTP {status}, which would turn the request into a GET");
                return Err(transport.protocol(call.operation, reason));
            }
            url = transport.next_hop(call.operation, &url, &response)?;
            transport.drain(&mut response).await;
            self.admit(call, &url, Order::FollowUp).await?;
        }
        Err(transport.protocol(
            call.operation,
            format!("more than {MAX_REDIRECTS} redirects"),
        ))
    }

    /// Sends a body of any length. It fails when no byte was sent for `timeouts.read`; after the
    /// last byte the registry has `timeouts.total` to store the body and answer.
    async fn send_with_progress(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
        RequestBody { payload, progress }: RequestBody<'_>,
    ) -> Result<Response, RegistryError> {
        let timeouts = self.transport.timeouts();
        let mut request = request
            .header(header::CONTENT_TYPE, payload.media_type())
            .header(header::CONTENT_LENGTH, payload.length())
            .body(payload.body());
        if let Some(range) = payload.range() {
            request = request.header(header::CONTENT_RANGE, range);
        }
        let mut answer = std::pin::pin!(traced::send(operation, request));
        let (mut last_sent, mut since) = (0, Instant::now());
        loop {
            if let Ok(answer) = timeout(PROGRESS_INTERVAL, &mut answer).await {
                progress(payload.sent());
                let answer = answer.map_err(|error| {
                    let reason = self.transport.reason(&error);
                    self.transport.unreachable(operation, reason)
                })?;
                self.transport.record_answer(answer.url());
                return Ok(answer);
            }
            let sent = payload.sent();
            if sent != last_sent {
                (last_sent, since) = (sent, Instant::now());
                progress(sent);
                // It takes the body, so it is not silent.
                self.transport.record_progress();
            }
            let limit = if sent < payload.length() {
                timeouts.read
            } else {
                timeouts.total
            };
            if since.elapsed() > limit {
                let limit = humantime::format_duration(limit);
                return Err(self
                    .transport
                    .unreachable(operation, format!("no progress for {limit}")));
            }
        }
    }
}

/// Names the registry that a mirror is asked for (distribution-spec, "Registry Proxying").
fn add_namespace(url: &mut Url, registry: &str) {
    if !url.query_pairs().any(|(key, _)| key == NAMESPACE) {
        url.query_pairs_mut().append_pair(NAMESPACE, registry);
    }
}

/// The body of an error.
#[derive(serde::Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(serde::Deserialize)]
struct ErrorEntry {
    code: Option<String>,
    message: Option<String>,
}

impl std::fmt::Debug for RequestBody<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestBody")
            .field("payload", self.payload)
            .finish_non_exhaustive()
    }
}

/// Code and message from the body of an error (distribution-spec, "Error codes"), in parentheses
/// and without control characters; empty where the body has neither.
pub(super) fn error_detail(body: &[u8]) -> String {
    let Some(first) = serde_json::from_slice::<ErrorBody>(body)
        .ok()
        .and_then(|body| body.errors.into_iter().next())
    else {
        return String::new();
    };
    let parts = [first.code, first.message]
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty());
    let text = parts.collect::<Vec<_>>().join(", ");
    let shown: String = text.chars().filter(|shown| !shown.is_control()).collect();
    let shown = cut(&shown, MAX_DETAIL_BYTES);
    if shown.is_empty() {
        String::new()
    } else {
        format!(" ({shown})")
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{super::address::tests::Fixed, *};
    use crate::{
        metrics::Metrics,
        registry::{Scheme, Timeouts},
    };

    /// Addresses as an attacker's DNS server gives them.
    const NAMES: Fixed = Fixed(&[
        ("metadata.example", &["169.254.169.254"]),
        ("metadata6.example", &["fd00:ec2::254"]),
        ("alibaba.example", &["100.100.100.200"]),
        ("mapped.example", &["::ffff:169.254.169.254"]),
        ("nat64.example", &["64:ff9b::a9fe:a9fe"]),
    ]);

    /// Answers each request with the next of `answers`, and with HTTP 500 after the last.
    async fn registry(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = answers
                    .next()
                    .unwrap_or_else(|| "HTTP/1.1 500 x\r\n".to_owned());
                let whole = format!("{answer}content-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(whole.as_bytes()).await.unwrap();
            }
        });
        host
    }

    fn client(host: &str, timeouts: Timeouts, names: Fixed) -> RegistryClient {
        let options = Options {
            scheme: Scheme::Http,
            timeouts,
            ..Options::default()
        };
        let limiter = Arc::new(Limiter::new(1, None));
        let names = Arc::new(names);
        let transport = Transport::new(host, &options, None, limiter, names).unwrap();
        let metrics = RegistryMetrics::new(&Metrics::new()).unwrap();
        RegistryClient::new(transport, &options, &metrics)
    }

    async fn ask(client: &RegistryClient) -> Result<Response, RegistryError> {
        let target = Target::Path("acme/authz/manifests/live");
        let scope = TokenScope::Pull("acme/authz");
        client
            .attempt(&Call {
                operation: "test",
                method: Method::GET,
                scope,
                target,
                mirror_of: None,
                accept: ACCEPT_MANIFESTS,
                from: None,
                validators: None,
                body: None,
            })
            .await
    }

    #[tokio::test]
    async fn no_name_in_an_answer_leads_to_a_metadata_service() {
        let read = Duration::from_secs(5);
        for (name, _) in NAMES.0 {
            let url = format!("http://{name}/latest/meta-data/");
            for answer in [
                format!("HTTP/1.1 307 x\r\nlocation: {url}\r\n"),
                format!(
                    "HTTP/1.1 401 x\r\nwww-authenticate: Bearer realm=\"{url}\",service=\"x\"\r\n"
                ),
            ] {
                let host = registry(vec![answer]).await;
                let client = client(
                    &host,
                    Timeouts {
                        connect: read,
                        read,
                        total: read,
                    },
                    NAMES,
                );
                let error = ask(&client).await.unwrap_err();
                assert!(
                    error.to_string().contains("cloud metadata address"),
                    "{name}: {error}"
                );
                assert_eq!(error.class(), Class::Transient, "{name}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_redirect_to_a_name_with_an_allowed_address_is_followed() {
        let blobs = registry(vec!["HTTP/1.1 200 x\r\n".to_owned()]).await;
        let port = blobs.rsplit_once(':').unwrap().1.to_owned();
        let host = registry(vec![format!(
            "HTTP/1.1 307 x\r\nlocation: http://blobs.example:{port}/x\r\n"
        )])
        .await;
        let names = Fixed(&[("blobs.example", &["169.254.169.254", "127.0.0.1"])]);
        let client = client(&host, Timeouts::default(), names);
        assert_eq!(ask(&client).await.unwrap().status(), 200);
    }
}
