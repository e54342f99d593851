//! Answers a registry's challenge: Basic, or a Bearer token from the server that it names.
//!
//! An error stays an error: a failing token server never turns a request into an anonymous one,
//! because a public artifact of the same name would then be served under the wrong identity.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    address::forbidden_host,
    challenge::Challenge,
    docker::{DockerConfig, DockerLogin},
    error::{CredentialSource, RegistryError},
    options::{Credentials, Scheme},
    retry,
    scope::TokenScope,
    transport::{Transport, innermost},
};
use crate::{
    oci::read_regular,
    telemetry::{NAME_BYTES, cut},
};

/// A longer answer of a token server is not read.
const MAX_TOKEN_BODY_BYTES: u64 = 1 << 20;
/// "If `expires_in` is omitted, this defaults to 60 seconds" (distribution, `auth/token.md`).
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// A longer lifetime counts as this: an instant far away overflows the clock of some systems.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A password or token is longer than this only by mistake.
const MAX_PASSWORD_BYTES: u64 = 1 << 20;
/// `client_id` in a request to an OAuth2 token server.
const CLIENT_ID: &str = "bundlegate";
const FORM_URLENCODED: &str = "application/x-www-form-urlencoded";
/// A token this close to its end may be expired when it arrives.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// The credentials of one client at one registry, and the answers to its challenges.
#[derive(Debug)]
pub(super) struct Authenticator {
    host: String,
    scheme: Scheme,
    credentials: Option<Credentials>,
    /// By scope: a token is good for one.
    authorizations: Mutex<HashMap<String, Authorization>>,
    /// Held while a challenge is answered: other requests wait and use the result.
    answering: tokio::sync::Mutex<()>,
    /// Whether docker's configuration has credentials for this registry.
    logged_in: AtomicBool,
}

/// The answer to a challenge.
#[derive(Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
    challenge: Challenge,
}

/// Credentials in the form in which they are sent.
enum Login {
    Anonymous,
    /// A `Basic` header.
    Basic(HeaderValue),
    /// An identity token, which only a token server accepts.
    IdentityToken(String),
    /// A token that the registry itself accepts.
    RegistryToken(HeaderValue),
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Authenticator {
    pub(super) fn new(host: String, scheme: Scheme, credentials: Option<Credentials>) -> Self {
        Self {
            host,
            scheme,
            credentials,
            authorizations: Mutex::default(),
            answering: tokio::sync::Mutex::default(),
            logged_in: AtomicBool::default(),
        }
    }

    /// The kind of credentials in use, for an error message.
    pub(super) fn credential_source(&self) -> CredentialSource {
        match &self.credentials {
            None => CredentialSource::Anonymous,
            Some(Credentials::PasswordFile { .. }) => CredentialSource::Configured,
            Some(Credentials::Typed { .. }) => CredentialSource::Typed,
            Some(Credentials::DockerConfig { .. }) if self.logged_in.load(Ordering::Relaxed) => {
                CredentialSource::LoggedIn
            }
            Some(Credentials::DockerConfig { .. }) => CredentialSource::NotLoggedIn,
        }
    }

    /// The header from an earlier challenge, while it is valid.
    pub(super) fn cached(&self, scope: TokenScope<'_>) -> Option<HeaderValue> {
        let authorizations = self.lock();
        let authorization = authorizations.get(&scope.key())?;
        authorization
            .is_valid()
            .then(|| authorization.value.clone())
    }

    /// As [`Self::cached`]; an expired header is replaced by answering the same challenge again.
    pub(super) async fn renewed(
        &self,
        transport: &Transport,
        scope: TokenScope<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let old = self.lock().get(&scope.key()).cloned();
        match old {
            Some(old) if !old.is_valid() => {
                let answer = self
                    .answer(transport, scope, &old.challenge, Some(&old.value))
                    .await;
                // The registry may have moved its token server: the next request gets a new
                // challenge.
                if answer.is_err() {
                    self.lock().remove(&scope.key());
                }
                answer.map(Some)
            }
            old => Ok(old.map(|old| old.value)),
        }
    }

    /// Answers `challenge`, which was the reply to a request with `refused` as its authorization,
    /// or without one.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        scope: TokenScope<'_>,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let _one_at_a_time = self.answering.lock().await;
        // Another request may have answered it in the meantime.
        if let Some(value) = self.cached(scope).filter(|value| Some(value) != refused) {
            return Ok(value);
        }
        let (value, until) = match (challenge, self.login().await?) {
            (_, Login::RegistryToken(value)) => (value, None),
            (Challenge::Basic, Login::Basic(value)) => (value, None),
            (Challenge::Basic, Login::Anonymous) => return Err(self.anonymous_denied()),
            (Challenge::Basic, Login::IdentityToken(_)) => {
                let reason =
                    "the registry requires a password, and only an identity token is stored"
                        .to_owned();
                return Err(self.credentials_unavailable(reason));
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope: challenged,
                },
                login,
            ) => {
                let scopes = scope.requested(challenged.as_deref());
                self.token(transport, login, realm, service.as_deref(), &scopes)
                    .await?
            }
        };
        let authorization = Authorization {
            value: value.clone(),
            until,
            challenge: challenge.clone(),
        };
        self.lock().insert(scope.key(), authorization);
        Ok(value)
    }

    async fn login(&self) -> Result<Login, RegistryError> {
        match &self.credentials {
            None => Ok(Login::Anonymous),
            Some(Credentials::Typed { username, password }) => self.basic(username, password),
            Some(Credentials::PasswordFile {
                username,
                password_file,
            }) => {
                let password = read_password(password_file).await.map_err(|error| {
                    self.credentials_unavailable(format!(
                        "{} can't be read: {error}",
                        password_file.display()
                    ))
                })?;
                self.basic(username, password.trim())
            }
            Some(Credentials::DockerConfig { file }) => {
                let found = DockerConfig::new(file).find(&self.host).await;
                let found =
                    found.map_err(|error| self.credentials_unavailable(error.to_string()))?;
                self.logged_in.store(found.is_some(), Ordering::Relaxed);
                match found {
                    None => Ok(Login::Anonymous),
                    Some(DockerLogin::Password { username, password }) => {
                        self.basic(&username, &password)
                    }
                    Some(DockerLogin::IdentityToken(token)) => Ok(Login::IdentityToken(token)),
                    Some(DockerLogin::RegistryToken(token)) => {
                        sensitive(&format!("Bearer {token}"))
                            .map(Login::RegistryToken)
                            .ok_or_else(|| self.invalid_in_a_header())
                    }
                }
            }
        }
    }

    fn basic(&self, username: &str, password: &str) -> Result<Login, RegistryError> {
        let pair = STANDARD.encode(format!("{username}:{password}"));
        sensitive(&format!("Basic {pair}"))
            .map(Login::Basic)
            .ok_or_else(|| self.invalid_in_a_header())
    }

    fn anonymous_denied(&self) -> RegistryError {
        let (operation, host, credentials) =
            ("authenticate", self.host.clone(), self.credential_source());
        RegistryError::Denied {
            operation,
            host,
            status: 401,
            credentials,
        }
    }

    fn invalid_in_a_header(&self) -> RegistryError {
        self.credentials_unavailable("they contain characters that a header can't carry".to_owned())
    }

    fn credentials_unavailable(&self, reason: String) -> RegistryError {
        RegistryError::CredentialsUnavailable {
            host: self.host.clone(),
            reason,
        }
    }

    async fn token(
        &self,
        transport: &Transport,
        login: Login,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<(HeaderValue, Option<Instant>), RegistryError> {
        let realm = self.realm_url(transport, realm)?;
        let shown = format!("{}{}", realm.origin().ascii_serialization(), realm.path());
        let shown = cut(&shown, NAME_BYTES);
        let read_timeout = transport.timeouts().read;
        let mut failure = TokenFailure {
            host: &self.host,
            realm: &shown,
            denied: false,
            limited: false,
            retry_after: None,
        };
        let request = token_request(transport, login, realm, service, scopes);
        let response = timeout(read_timeout, request.send())
            .await
            .map_err(|_| failure.error("timed out".to_owned()))?
            .map_err(|error| failure.error(innermost(&error)))?;
        let status = response.status();
        if !status.is_success() {
            failure.denied = matches!(status.as_u16(), 400 | 401 | 403);
            failure.limited = status.as_u16() == 429;
            failure.retry_after =
                retry::retry_after(response.headers(), std::time::SystemTime::now());
            return Err(failure.error(format!("HTTP {}", status.as_u16())));
        }
        let body = timeout(
            read_timeout,
            transport.read_limited(response, MAX_TOKEN_BODY_BYTES),
        )
        .await
        .map_err(|_| failure.error("timed out".to_owned()))?
        .map_err(|error| failure.error(error.to_string()))?;
        let (value, lifetime) =
            token_in(&body).map_err(|reason| failure.error(reason.to_owned()))?;
        Ok((value, Some(Instant::now() + lifetime)))
    }

    fn realm_url(&self, transport: &Transport, realm: &str) -> Result<Url, RegistryError> {
        let failure = TokenFailure {
            host: &self.host,
            realm: "its realm",
            denied: false,
            limited: false,
            retry_after: None,
        };
        let url = Url::parse(realm).map_err(|_| failure.error("the realm is not a URL".into()))?;
        // An answer over TLS must not get the password sent in clear text.
        let allowed = match self.scheme {
            Scheme::Https => url.scheme() == "https",
            Scheme::Http => matches!(url.scheme(), "http" | "https"),
        };
        if !allowed || !url.username().is_empty() || url.password().is_some() {
            let scheme = cut(url.scheme(), NAME_BYTES);
            return Err(failure.error(format!("the realm's scheme {scheme:?} is not allowed here")));
        }
        match forbidden_host(&url) {
            Some(address) if !transport.is_own_origin(&url) => Err(failure.error(format!(
                "the realm is at {address}, a link-local or cloud metadata address"
            ))),
            _ => Ok(url),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Authorization>> {
        self.authorizations
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A GET with one `scope` parameter for each scope (distribution, `auth/token.md`), or for an
/// identity token a form with all scopes in one field (`auth/oauth.md`).
fn token_request(
    transport: &Transport,
    login: Login,
    mut realm: Url,
    service: Option<&str>,
    scopes: &[String],
) -> reqwest::RequestBuilder {
    if let Login::IdentityToken(token) = login {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID);
        if let Some(service) = service {
            form.append_pair("service", service);
        }
        form.append_pair("scope", &scopes.join(" "))
            .append_pair("refresh_token", &token);
        let form = form.finish();
        return transport
            .http_for(&realm)
            .post(realm)
            .header(reqwest::header::CONTENT_TYPE, FORM_URLENCODED)
            .body(form);
    }
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        for scope in scopes {
            query.append_pair("scope", scope);
        }
    }
    let request = transport.http_for(&realm).get(realm);
    match login {
        Login::Basic(value) => request.header(reqwest::header::AUTHORIZATION, value),
        Login::Anonymous | Login::IdentityToken(_) | Login::RegistryToken(_) => request,
    }
}

/// The header and its lifetime from the answer of a token server.
pub(super) fn token_in(body: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| "the answer is not a token")?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty());
    let value = token.and_then(|token| sensitive(&format!("Bearer {token}")));
    let lifetime = answer
        .expires_in
        .map_or(DEFAULT_TOKEN_LIFETIME, Duration::from_secs);
    let lifetime = lifetime
        .min(MAX_TOKEN_LIFETIME)
        .saturating_sub(EXPIRY_MARGIN);
    Ok((value.ok_or("the answer holds no usable token")?, lifetime))
}

/// The parts of [`RegistryError::Token`] that its reasons share.
struct TokenFailure<'a> {
    host: &'a str,
    realm: &'a str,
    denied: bool,
    limited: bool,
    retry_after: Option<Duration>,
}

impl TokenFailure<'_> {
    fn error(&self, reason: String) -> RegistryError {
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
    fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Reads the password at every use, so that it may be rotated.
async fn read_password(file: &Path) -> io::Result<String> {
    let file = file.to_owned();
    let bytes = spawn_blocking(move || read_regular(&file, MAX_PASSWORD_BYTES)).await??;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// A header value that `Debug` does not print.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
