//! Answering a registry's challenge: Basic, or a Bearer token from the server it names.
//!
//! Failures are failures: a token server that is down never turns a request into an
//! anonymous one, because a public artifact of the same name would then be served under
//! the wrong identity.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::{
    challenge::Challenge,
    error::RegistryError,
    http::{Wire, innermost},
    options::{Credentials, Scheme},
    retry,
};

/// A token answer longer than this is not read.
const TOKEN_LIMIT: u64 = 1 << 20;
/// "If `expires_in` is omitted, this defaults to 60 seconds" (distribution, `auth/token.md`).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token this close to its end may be expired when it arrives.
const SKEW: Duration = Duration::from_secs(5);

/// What one client knows about authenticating at one registry.
#[derive(Debug)]
pub(super) struct Authenticator {
    host: String,
    scheme: Scheme,
    credentials: Option<Credentials>,
    /// By repository path: one token speaks for one repository only.
    known: Mutex<HashMap<String, Authorization>>,
    /// One token request at a time; the others wait and find its result.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Authenticator {
    pub(super) fn new(host: String, scheme: Scheme, credentials: Option<Credentials>) -> Self {
        Self { host, scheme, credentials, known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// Words for an error message.
    pub(super) fn identity(&self) -> &'static str {
        if self.credentials.is_some() { "our credentials" } else { "anonymous access" }
    }

    /// The header to send right away, where an earlier challenge was answered.
    pub(super) fn known(&self, repository: &str) -> Option<HeaderValue> {
        let known = self.lock();
        let authorization = known.get(repository)?;
        authorization.is_fresh().then(|| authorization.value.clone())
    }

    /// Answers `challenge`, sent in reply to a request that carried `refused` (or nothing).
    pub(super) async fn answer(
        &self,
        wire: &Wire,
        repository: &str,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let _one_at_a_time = self.asking.lock().await;
        // Another request may have been through this while we waited.
        if let Some(value) = self.known(repository).filter(|value| Some(value) != refused) {
            return Ok(value);
        }
        let authorization = match challenge {
            Challenge::Basic => Authorization { value: self.basic().await?, until: None },
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
                self.token(wire, realm, service.as_deref(), &scope).await?
            }
        };
        let value = authorization.value.clone();
        self.lock().insert(repository.to_owned(), authorization);
        Ok(value)
    }

    async fn basic(&self) -> Result<HeaderValue, RegistryError> {
        let Some(credentials) = &self.credentials else {
            return Err(RegistryError::Denied {
                operation: "authenticate",
                host: self.host.clone(),
                status: 401,
                credentials: self.identity(),
            });
        };
        let failed = |reason: String| RegistryError::Token {
            host: self.host.clone(),
            realm: credentials.password_file.display().to_string(),
            reason,
            denied: true,
            limited: false,
            retry_after: None,
        };
        // Read at every use: a rotated password needs no restart.
        let password = tokio::fs::read_to_string(&credentials.password_file)
            .await
            .map_err(|error| failed(format!("the password file can't be read: {error}")))?;
        let pair = STANDARD.encode(format!("{}:{}", credentials.username, password.trim()));
        sensitive(&format!("Basic {pair}")).ok_or_else(|| failed("the credentials don't fit in a header".into()))
    }

    async fn token(
        &self,
        wire: &Wire,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Authorization, RegistryError> {
        let url = self.realm_url(realm, service, scope)?;
        let shown = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let mut failure = Failure { host: &self.host, realm: &shown, denied: false, limited: false, retry_after: None };
        let mut request = wire.client().get(url);
        if self.credentials.is_some() {
            request = request.header(reqwest::header::AUTHORIZATION, self.basic().await?);
        }
        let response = request.send().await.map_err(|error| failure.because(innermost(&error)))?;
        let status = response.status();
        if !status.is_success() {
            failure.denied = matches!(status.as_u16(), 400 | 401 | 403);
            failure.limited = status.as_u16() == 429;
            failure.retry_after = retry::retry_after(response.headers(), std::time::SystemTime::now());
            return Err(failure.because(format!("HTTP {}", status.as_u16())));
        }
        let body =
            wire.read_limited(response, TOKEN_LIMIT).await.map_err(|error| failure.because(error.to_string()))?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| failure.because("the answer is not a token".into()))?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        let value = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .and_then(|token| sensitive(&format!("Bearer {token}")))
            .ok_or_else(|| failure.because("the answer holds no usable token".into()))?;
        // Far-off ends overflow the clock of some systems; a day is long enough.
        let life = life.min(Duration::from_secs(24 * 3600)).saturating_sub(SKEW);
        Ok(Authorization { value, until: Some(Instant::now() + life) })
    }

    fn realm_url(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<Url, RegistryError> {
        let failure =
            Failure { host: &self.host, realm: "its realm", denied: false, limited: false, retry_after: None };
        let mut url = Url::parse(realm).map_err(|_| failure.because("the realm is not a URL".into()))?;
        // Whoever answers over TLS must not be able to lure the password out in clear.
        let allowed = match self.scheme {
            Scheme::Https => url.scheme() == "https",
            Scheme::Http => matches!(url.scheme(), "http" | "https"),
        };
        if !allowed || !url.username().is_empty() || url.password().is_some() {
            return Err(failure.because(format!("the realm's scheme {:?} is not allowed here", url.scheme())));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            // "scope" may hold several scopes, space-separated in a challenge, repeated in a query.
            for scope in scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
        }
        Ok(url)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Authorization>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

struct Failure<'a> {
    host: &'a str,
    realm: &'a str,
    denied: bool,
    limited: bool,
    retry_after: Option<Duration>,
}

impl Failure<'_> {
    fn because(&self, reason: String) -> RegistryError {
        RegistryError::Token {
            host: self.host.to_owned(),
            realm: self.realm.to_owned(),
            reason,
            denied: self.denied,
            limited: self.limited,
            retry_after: self.retry_after,
        }
    }
}

impl Authorization {
    fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").field("until", &self.until).finish_non_exhaustive()
    }
}

/// A header value that `Debug` does not print.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
