//! The keys of an issuer, fetched from its URL in the background.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use reqwest::StatusCode;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use url::Url;

use super::key_set::{InvalidKeySet, KeySet};
use crate::telemetry::{self, SENTENCE_BYTES, cut, with_causes};

/// How often the keys are fetched.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// The minimum time between two fetches: after a failure, and when tokens name an unknown key.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long keys are used while fetching them fails. A key that the issuer has removed counts for
/// this long at most.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Time for one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request with an unknown key waits for a fetch.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of the document, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Where an issuer publishes its keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyUrl {
    /// The URL of a JSON Web Key Set: `https`, or `http` on this machine.
    pub url: Url,
    /// PEM certificates of authorities, besides those of the system; may be empty.
    pub extra_roots: Vec<u8>,
}

/// The keys of an issuer.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// Keys from a file, which never change: another file is another source.
    File(Arc<KeySet>),
    /// Keys from a URL.
    Url(Arc<RemoteKeys>),
}

/// The keys at a URL, which are kept current while this exists.
#[derive(Debug)]
pub struct RemoteKeys {
    source: KeyUrl,
    shared: Arc<Shared>,
    task: OnceLock<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    fetched: watch::Sender<Fetched>,
    wanted: Notify,
}

/// The result of the fetches so far.
#[derive(Debug, Default)]
struct Fetched {
    keys: Option<(Arc<KeySet>, Instant)>,
    /// When the last fetch ended, whatever its result.
    last: Option<Instant>,
}

/// The keys of all URLs. Clients that name the same URL share its keys, also across changes of the
/// configuration. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RemoteKeySets(Arc<Sets>);

#[derive(Debug, Default)]
struct Sets {
    known: Mutex<HashMap<KeyUrl, Weak<RemoteKeys>>>,
    runtime: OnceLock<Handle>,
}

/// Why keys could not be fetched. Contains no part of the answer.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("making the HTTP client failed")]
    Client(#[source] reqwest::Error),
    #[error("the system's clock is before 1970 or after 9999; set it")]
    Clock,
    #[error("no answer within {} s", FETCH_TIMEOUT.as_secs())]
    Timeout,
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("HTTP {}", .0.as_u16())]
    Status(StatusCode),
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Invalid(InvalidKeySet),
}

impl RemoteKeySets {
    /// The keys at a URL, which are fetched from now on if [`Self::start`] was called.
    pub fn get(&self, source: &KeyUrl) -> Arc<RemoteKeys> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, keys| keys.strong_count() > 0);
        if let Some(keys) = known.get(source).and_then(Weak::upgrade) {
            return keys;
        }
        let keys = Arc::new(RemoteKeys::new(source.clone()));
        known.insert(source.clone(), Arc::downgrade(&keys));
        if let Some(runtime) = self.0.runtime.get() {
            keys.start(runtime);
        }
        keys
    }

    /// Fetches the keys on a runtime from now on.
    pub fn start(&self, runtime: &Handle) {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = self.0.runtime.get_or_init(|| runtime.clone());
        for keys in known.values().filter_map(Weak::upgrade) {
            keys.start(runtime);
        }
    }
}

impl KeySource {
    /// The keys; `None` if they could not be fetched for a day, or never.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::File(keys) => Some(Arc::clone(keys)),
            Self::Url(keys) => keys.current(),
        }
    }
}

impl RemoteKeys {
    fn new(source: KeyUrl) -> Self {
        Self {
            source,
            shared: Arc::new(Shared {
                fetched: watch::channel(Fetched::default()).0,
                wanted: Notify::new(),
            }),
            task: OnceLock::new(),
        }
    }

    fn start(&self, runtime: &Handle) {
        self.task.get_or_init(|| {
            let (source, shared) = (self.source.clone(), Arc::clone(&self.shared));
            runtime.spawn(keep_current(source, shared)).abort_handle()
        });
    }

    /// The keys as they were last fetched; `None` if they are more than a day old, or never were.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        let fetched = self.shared.fetched.borrow();
        let (keys, at) = fetched.keys.as_ref()?;
        (at.elapsed() <= MAX_AGE).then(|| Arc::clone(keys))
    }

    /// Waits for the next fetch, if there may be one now: the keys have not been fetched within 10
    /// seconds. Waits for 5 seconds at most. Cancel-safe.
    pub async fn refresh(&self) {
        let mut fetched = self.shared.fetched.subscribe();
        let last = fetched.borrow_and_update().last;
        if last.is_some_and(|last| last.elapsed() < MIN_INTERVAL) {
            return;
        }
        self.shared.wanted.notify_one();
        let _ = timeout(WAIT_TIMEOUT, fetched.changed()).await;
    }
}

impl Drop for RemoteKeys {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Fetches the keys again and again, until it is aborted.
async fn keep_current(source: KeyUrl, shared: Arc<Shared>) {
    let mut was_successful = true;
    loop {
        let result = fetch(&source).await;
        let now = Instant::now();
        let is_successful = result.is_ok();
        match &result {
            Ok(_) if !was_successful => tracing::info!(url = %source.url, "JWKS fetched again"),
            Err(error) if was_successful => tracing::warn!(
                url = %source.url,
                error = %cut(&with_causes(error), SENTENCE_BYTES),
                "fetching the JWKS failed; the last keys are used for a day at most"
            ),
            _ => {}
        }
        was_successful = is_successful;
        shared.fetched.send_modify(|fetched| {
            fetched.last = Some(now);
            if let Ok(keys) = result {
                fetched.keys = Some((Arc::new(keys), now));
            }
        });
        sleep(MIN_INTERVAL).await;
        if is_successful {
            tokio::select! {
                () = sleep_until(now + REFRESH_INTERVAL) => {}
                () = shared.wanted.notified() => {}
            }
        }
    }
}

async fn fetch(source: &KeyUrl) -> Result<KeySet, FetchError> {
    timeout(FETCH_TIMEOUT, download(source))
        .await
        .unwrap_or(Err(FetchError::Timeout))
}

async fn download(source: &KeyUrl) -> Result<KeySet, FetchError> {
    // rustls panics outside of this range.
    if !telemetry::is_clock_usable() {
        return Err(FetchError::Clock);
    }
    let request = |error: reqwest::Error| FetchError::Request(error.without_url());
    let client = client(source).map_err(FetchError::Client)?;
    let mut response = client
        .get(source.url.clone())
        .send()
        .await
        .map_err(request)?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(request)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    KeySet::parse(&body).map_err(FetchError::Invalid)
}

/// A client for one fetch: an idle connection would not be used again within minutes.
fn client(source: &KeyUrl) -> reqwest::Result<reqwest::Client> {
    let is_tls = source.url.scheme() == "https";
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
        // The configuration alone decides which hosts are contacted.
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .https_only(is_tls);
    // Without TLS the URL is on this machine.
    if !is_tls {
        builder = builder.no_proxy();
    }
    if !source.extra_roots.is_empty() {
        let roots = reqwest::Certificate::from_pem_bundle(&source.extra_roots)?;
        builder = builder.tls_certs_merge(roots);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn fetched(keys: &RemoteKeys) {
        let set = KeySet::parse(br#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#).unwrap();
        let now = Instant::now();
        keys.shared.fetched.send_modify(|fetched| {
            *fetched = Fetched {
                keys: Some((Arc::new(set), now)),
                last: Some(now),
            };
        });
    }

    fn keys() -> RemoteKeys {
        RemoteKeys::new(source())
    }

    fn source() -> KeyUrl {
        KeyUrl {
            url: Url::parse("https://issuer.example/jwks").unwrap(),
            extra_roots: Vec::new(),
        }
    }

    /// How long a request waits for a fetch.
    async fn waits(keys: &RemoteKeys) -> Duration {
        let began = Instant::now();
        keys.refresh().await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_used_for_a_day_without_a_fetch() {
        let keys = keys();
        assert!(keys.current().is_none());
        fetched(&keys);
        advance(MAX_AGE).await;
        assert!(keys.current().is_some());
        advance(Duration::from_millis(1)).await;
        assert!(keys.current().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_fetch_only_where_there_may_be_one() {
        let keys = keys();
        // The first fetch has not ended.
        assert_eq!(waits(&keys).await, WAIT_TIMEOUT);
        fetched(&keys);
        assert_eq!(waits(&keys).await, Duration::ZERO);
        advance(MIN_INTERVAL).await;
        let second = Duration::from_secs(1);
        let fetching = async {
            keys.shared.wanted.notified().await;
            sleep(second).await;
            fetched(&keys);
        };
        let (waited, ()) = tokio::join!(waits(&keys), fetching);
        assert_eq!(waited, second);
    }

    #[tokio::test]
    async fn clients_with_one_url_share_its_keys_until_none_is_left() {
        let sets = RemoteKeySets::default();
        let (one, other) = (sets.get(&source()), sets.get(&source()));
        assert!(Arc::ptr_eq(&one, &other));
        fetched(&one);
        drop((one, other));
        assert!(sets.get(&source()).current().is_none());
    }
}
