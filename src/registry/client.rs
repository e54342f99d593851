//! One registry host over HTTP: deadlines, retries, challenges, redirects, byte limits.

use std::{error::Error as _, sync::Arc, time::SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Response, StatusCode,
    dns::Resolve,
    header::{self, HeaderValue},
    redirect,
};
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, sleep, timeout_at},
};
use url::Url;

use super::{
    address::{GuardedResolver, SystemResolver, forbidden_host},
    auth::Authenticator,
    certificate,
    challenge::Challenge,
    error::{Class, RegistryError},
    link,
    options::{Options, Scheme, Timeouts, TlsTrust},
    payload::Payload,
    retry,
    scope::Access,
};
use crate::{
    metrics::Metrics,
    telemetry::{self, NAME_BYTES, SENTENCE_BYTES, cut},
};

const MAX_REDIRECTS: usize = 5;
/// Requests to one host at a time. Each takes a connection where the registry does not speak
/// HTTP/2, so thousands of bundles that start together would open thousands.
const MAX_REQUESTS: usize = 128;
/// Artifacts that are fetched from one host at a time.
const MAX_TRANSFERS: usize = 64;
/// A longer `Retry-After` is the caller's to honour, by asking again later.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(10);
/// The same for a caller that asks again by itself, and may have less time than that left
/// (`max_stale`).
pub(super) const MAX_WAIT_BETWEEN_CHECKS: Duration = Duration::from_secs(1);
/// What rustls says when an HTTP server answers its greeting.
const NO_TLS: &str = "InvalidContentType";
/// How often an upload is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The most of it that is told.
const REFUSAL_BYTES: usize = 200;
/// A longer explanation of an error is not read.
const DETAIL_LIMIT: u64 = 16 << 10;
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
    /// The longest `Retry-After` that is waited for here.
    max_wait: Duration,
    /// For the registry's own origin.
    client: reqwest::Client,
    /// For where its answers lead.
    guarded: reqwest::Client,
    auth: Authenticator,
    metrics: Metrics,
    requests: Semaphore,
    transfers: Arc<Semaphore>,
}

/// One request, before retries.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    /// For errors and metrics.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    /// Tokens are per access.
    pub(super) access: Access<'a>,
    pub(super) target: Target<'a>,
    pub(super) payload: Option<Sending<'a>>,
}

#[derive(Debug, Clone)]
pub(super) enum Target<'a> {
    /// Below `/v2/`.
    Below(&'a str),
    /// Where the registry said: a next page, an upload's session.
    At(Url),
}

/// A body, and who hears how far it is.
#[derive(Clone, Copy)]
pub(super) struct Sending<'a> {
    pub(super) payload: &'a Payload,
    pub(super) progress: &'a (dyn Fn(u64) + Send + Sync),
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
    /// For requests without bodies; `max_wait` is the longest `Retry-After` that is waited for.
    pub(super) fn reading(
        host: &str,
        options: &Options,
        metrics: Metrics,
        max_wait: Duration,
    ) -> Result<Self, BadOptions> {
        let wire = Self::new(host, options, metrics, Some(options.timeouts.read), Arc::new(SystemResolver))?;
        Ok(Self { max_wait, ..wire })
    }

    /// For uploads. To reqwest a body on its way is silence, so the longest silence is
    /// watched here.
    pub(super) fn writing(host: &str, options: &Options, metrics: Metrics) -> Result<Self, BadOptions> {
        Self::new(host, options, metrics, None, Arc::new(SystemResolver))
    }

    fn new(
        host: &str,
        options: &Options,
        metrics: Metrics,
        silence: Option<Duration>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, BadOptions> {
        let bad = |reason: String| BadOptions { host: host.to_owned(), reason };
        let base = Url::parse(&format!("{}://{host}/v2/", options.scheme.as_str()))
            .map_err(|error| bad(format!("not a host or host:port: {error}")))?;
        let client = |resolver: Arc<dyn Resolve>| {
            let client = client(options, silence).map_err(bad)?.dns_resolver(resolver);
            client.build().map_err(|error| bad(innermost(&error)))
        };
        Ok(Self {
            client: client(Arc::clone(&resolver))?,
            guarded: client(Arc::new(GuardedResolver::new(resolver)))?,
            auth: Authenticator::new(host.to_owned(), options.scheme, options.credentials.clone()),
            host: host.to_owned(),
            base,
            scheme: options.scheme,
            timeouts: options.timeouts,
            max_wait: MAX_WAIT,
            metrics,
            requests: Semaphore::new(MAX_REQUESTS),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Held by whoever fetches an artifact.
    pub(super) fn transfers(&self) -> &Arc<Semaphore> {
        &self.transfers
    }

    /// The client for a request to `url`. Every request is made through it: those to the
    /// registry's own origin are the configuration's doing, all others an answer's.
    pub(super) fn client(&self, url: &Url) -> &reqwest::Client {
        if self.is_ours(url) { &self.client } else { &self.guarded }
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
            if attempt == retry::ATTEMPTS || !may_pass(&error) || wait.is_some_and(|wait| wait > self.max_wait) {
                return Err(error);
            }
            attempt += 1;
            let delay = retry::delay(attempt, wait);
            let error = error.to_string();
            let error = &*cut(&error, SENTENCE_BYTES);
            tracing::debug!(host = self.host, attempt, ?delay, error, "asking the registry again");
            sleep(delay).await;
        }
    }

    /// Sends a request once: for what must not be repeated blindly.
    pub(super) async fn attempt(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let sent = if telemetry::is_clock_usable() {
            let turn = self.requests.acquire().await;
            let sent = self.authorized(call).await;
            drop(turn);
            sent
        } else {
            // Certificates can't be judged, and rustls panics before 1970.
            let reason = "the system's clock is before 1970 or after 9999; set it".to_owned();
            Err(self.unreachable(call.operation, reason))
        };
        let outcome = match sent {
            Ok(response) => self.judge(call, response).await,
            Err(error) => Err(error),
        };
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

    async fn judge(&self, call: &Call<'_>, response: Response) -> Result<Response, RegistryError> {
        let status = response.status().as_u16();
        match status {
            200..=299 | 404 => Ok(response),
            401 | 403 => Err(RegistryError::Denied {
                operation: call.operation,
                host: self.host.clone(),
                status,
                identity: self.auth.identity(),
            }),
            _ => Err(RegistryError::Status {
                operation: call.operation,
                host: self.host.clone(),
                status,
                retry_after: retry::retry_after(response.headers(), SystemTime::now()),
                detail: self.detail(response).await,
            }),
        }
    }

    /// What the registry says of its refusal.
    async fn detail(&self, response: Response) -> String {
        let read = tokio::time::timeout(self.timeouts.read, self.read_limited(response, DETAIL_LIMIT)).await;
        let Ok(Ok(body)) = read else { return String::new() };
        told(&body)
    }

    /// Sends with what we know, and once more after a challenge.
    async fn authorized(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let known = match call.payload {
            // A body is too much to send only to hear that the token has expired.
            Some(_) => self.auth.renewed(self, call.access).await?,
            None => self.auth.known(call.access),
        };
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
        let answer = self.auth.answer(self, call.access, &challenge, known.as_ref()).await?;
        self.redirected(call, Some(answer)).await
    }

    /// Follows redirects by hand: credentials stay with the registry's own origin, and TLS
    /// is never given up on the way.
    async fn redirected(&self, call: &Call<'_>, authorization: Option<HeaderValue>) -> Result<Response, RegistryError> {
        let mut url = match &call.target {
            Target::Below(path) => self
                .base
                .join(path)
                .map_err(|error| self.protocol(call.operation, format!("no URL for {path}: {error}")))?,
            Target::At(url) => url.clone(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let mut request =
                self.client(&url).request(call.method.clone(), url.clone()).header(header::ACCEPT, ACCEPT);
            // Some servers refuse a body whose length is not said, even where there is none.
            if call.payload.is_none() && !call.method.is_safe() {
                request = request.header(header::CONTENT_LENGTH, 0);
            }
            if let Some(value) = authorization.as_ref().filter(|_| self.is_ours(&url)) {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let response = match call.payload {
                None => self.answer_in_time(call.operation, request).await?,
                Some(sending) => self.send_watched(call.operation, request, sending).await?,
            };
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            if matches!(status, 301..=303) && !call.method.is_safe() {
                return Err(self.protocol(call.operation, format!("HTTP {status}, which would turn it into a GET")));
            }
            url = self.next_hop(call.operation, &url, &response)?;
        }
        Err(self.protocol(call.operation, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// The answer's head within `timeouts.read`.
    pub(super) async fn answer_in_time(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let sent = tokio::time::timeout(self.timeouts.read, request.send()).await;
        sent.map_err(|_| self.unreachable(operation, "timed out".to_owned()))?
            .map_err(|error| self.unreachable(operation, innermost(&error)))
    }

    /// Sends a body of any length: as long as bytes move, it takes as long as it takes.
    /// Once all are sent, the registry may need the whole of `timeouts.total` to store them.
    async fn send_watched(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
        Sending { payload, progress }: Sending<'_>,
    ) -> Result<Response, RegistryError> {
        let mut request = request
            .header(header::CONTENT_TYPE, payload.media_type())
            .header(header::CONTENT_LENGTH, payload.length())
            .body(payload.body());
        if let Some(range) = payload.range() {
            request = request.header(header::CONTENT_RANGE, range);
        }
        let mut answer = std::pin::pin!(request.send());
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut answer).await {
                progress(payload.sent());
                return answer.map_err(|error| self.unreachable(operation, innermost(&error)));
            }
            let sent = payload.sent();
            if sent != seen {
                (seen, since) = (sent, Instant::now());
                progress(sent);
            }
            let patience = if sent < payload.length() { self.timeouts.read } else { self.timeouts.total };
            if since.elapsed() > patience {
                let patience = humantime::format_duration(patience);
                return Err(self.unreachable(operation, format!("nothing moved for {patience}")));
            }
        }
    }

    fn next_hop(&self, operation: &'static str, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to = location
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| self.protocol(operation, "a redirect without a usable Location".into()))?;
        self.check_hop(operation, &to)?;
        Ok(to)
    }

    /// An answer leads neither out of TLS nor to where clouds keep their credentials.
    pub(super) fn check_hop(&self, operation: &'static str, to: &Url) -> Result<(), RegistryError> {
        let kept = to.scheme() == "https" || (self.scheme == Scheme::Http && to.scheme() == "http");
        if !kept {
            return Err(
                self.protocol(operation, format!("it sends us on from https to {}", cut(to.scheme(), NAME_BYTES)))
            );
        }
        match forbidden_host(to) {
            Some(address) if !self.is_ours(to) => Err(self
                .protocol(operation, format!("its answer leads to {address}, a link-local or cloud metadata address"))),
            _ => Ok(()),
        }
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

    /// The next page as `Link` has it, within this registry only.
    pub(super) fn next_page(&self, response: &Response) -> Option<Url> {
        let mut links = response.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
        let target = links.find_map(link::next)?;
        let url = response.url().join(target).ok()?;
        self.is_ours(&url).then_some(url)
    }

    /// Whether a URL belongs to the registry itself, as opposed to where it redirects.
    pub(super) fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// The longest silence.
    pub(super) fn patience(&self) -> Duration {
        self.timeouts.read
    }

    pub(super) fn unreachable(&self, operation: &'static str, mut reason: String) -> RegistryError {
        if reason.contains(NO_TLS) {
            reason = "it does not speak TLS; if it is meant to be plain HTTP, say so \
                      (--plain-http, or `scheme: http` in the configuration)"
                .to_owned();
        }
        RegistryError::Unreachable { operation, host: self.host.clone(), reason }
    }

    pub(super) fn protocol(&self, operation: &'static str, reason: String) -> RegistryError {
        RegistryError::Protocol { operation, host: self.host.clone(), reason }
    }
}

fn client(options: &Options, silence: Option<Duration>) -> Result<reqwest::ClientBuilder, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(options.timeouts.connect)
        .https_only(options.scheme == Scheme::Https);
    if let Some(silence) = silence {
        builder = builder.read_timeout(silence);
    }
    if options.tls == TlsTrust::Unverified {
        builder = builder.tls_danger_accept_invalid_certs(true).tls_danger_accept_invalid_hostnames(true);
    }
    if !options.extra_roots.is_empty() {
        let roots = reqwest::Certificate::from_pem_bundle(&options.extra_roots)
            .map_err(|error| format!("ca_file: {}", innermost(&error)))?;
        builder = builder.tls_certs_merge(roots);
    }
    Ok(builder)
}

/// The body of an error.
#[derive(serde::Deserialize)]
struct Refusal {
    errors: Vec<RefusalEntry>,
}

#[derive(serde::Deserialize)]
struct RefusalEntry {
    code: Option<String>,
    message: Option<String>,
}

impl std::fmt::Debug for Sending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").field("payload", self.payload).finish_non_exhaustive()
    }
}

/// What the body of an error says (distribution-spec, "Error codes"), with nothing in it
/// that could move a terminal's cursor.
pub(super) fn told(body: &[u8]) -> String {
    let Some(first) = serde_json::from_slice::<Refusal>(body).ok().and_then(|told| told.errors.into_iter().next())
    else {
        return String::new();
    };
    let told = [first.code, first.message].into_iter().flatten().filter(|text| !text.is_empty());
    let told = told.collect::<Vec<_>>().join(", ");
    let shown: String = told.chars().filter(|shown| !shown.is_control()).collect();
    let shown = cut(&shown, REFUSAL_BYTES);
    if shown.is_empty() { String::new() } else { format!(" ({shown})") }
}

/// Whether the same request may succeed a moment later.
pub(super) fn may_pass(error: &RegistryError) -> bool {
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
    if let Some(sentence) = certificate::explain(error) {
        return sentence;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { String::new() };
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() { "the request failed".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{super::address::tests::Fixed, *};

    /// Names as an attacker's DNS gives them.
    const NAMES: Fixed = Fixed(&[
        ("metadata.example", &["169.254.169.254"]),
        ("metadata6.example", &["fd00:ec2::254"]),
        ("alibaba.example", &["100.100.100.200"]),
        ("mapped.example", &["::ffff:169.254.169.254"]),
        ("nat64.example", &["64:ff9b::a9fe:a9fe"]),
    ]);

    /// Answers each request with the next of these, and then with the last.
    async fn registry(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = answers.next().unwrap_or_else(|| "HTTP/1.1 500 x\r\n".to_owned());
                let whole = format!("{answer}content-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(whole.as_bytes()).await.unwrap();
            }
        });
        host
    }

    fn wire(host: &str) -> Wire {
        let read = Duration::from_secs(5);
        let timeouts = Timeouts { connect: read, read, total: read };
        let options = Options { scheme: Scheme::Http, timeouts, ..Options::default() };
        Wire::new(host, &options, Metrics::new().unwrap(), None, Arc::new(NAMES)).unwrap()
    }

    async fn ask(wire: &Wire) -> Result<Response, RegistryError> {
        let target = Target::Below("acme/authz/manifests/live");
        let call =
            Call { operation: "test", method: Method::GET, access: Access::Pull("acme/authz"), target, payload: None };
        wire.attempt(&call).await
    }

    #[tokio::test]
    async fn no_name_in_an_answer_leads_to_a_metadata_service() {
        for (name, _) in NAMES.0 {
            let url = format!("http://{name}/latest/meta-data/");
            for answer in [
                format!("HTTP/1.1 307 x\r\nlocation: {url}\r\n"),
                format!("HTTP/1.1 401 x\r\nwww-authenticate: Bearer realm=\"{url}\",service=\"x\"\r\n"),
            ] {
                let host = registry(vec![answer]).await;
                let error = ask(&wire(&host)).await.unwrap_err();
                assert!(error.to_string().contains("cloud metadata address"), "{name}: {error}");
                assert_eq!(error.class(), Class::Transient, "{name}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_is_followed() {
        let blobs = registry(vec!["HTTP/1.1 200 x\r\n".to_owned()]).await;
        let port = blobs.rsplit_once(':').unwrap().1.to_owned();
        let host = registry(vec![format!("HTTP/1.1 307 x\r\nlocation: http://blobs.example:{port}/x\r\n")]).await;
        let options = Options { scheme: Scheme::Http, ..Options::default() };
        let names = Fixed(&[("blobs.example", &["169.254.169.254", "127.0.0.1"])]);
        let wire = Wire::new(&host, &options, Metrics::new().unwrap(), None, Arc::new(names)).unwrap();
        assert_eq!(ask(&wire).await.unwrap().status(), 200);
    }

    /// Where the registry itself is, is the configuration's to say, by address or by name.
    #[test]
    fn the_registry_itself_may_be_at_such_an_address_and_its_own_origin_is_no_detour() {
        for host in ["169.254.169.254:5000", "[fe80::1]:5000", "metadata.example"] {
            let wire = wire(host);
            let own = Url::parse(&format!("http://{host}/token")).unwrap();
            wire.check_hop("test", &own).unwrap();
            assert!(std::ptr::eq(wire.client(&own), &wire.client), "{host}");
            let other = Url::parse("http://169.254.169.254/latest").unwrap();
            assert!(wire.check_hop("test", &other).is_err(), "{host}");
            assert!(std::ptr::eq(wire.client(&other), &wire.guarded), "{host}");
        }
    }
}
