//! Answering a registry's challenge: Basic, or a Bearer token from the server it names.
//!
//! Failures are failures: a token server that is down never turns a request into an
//! anonymous one, because a public artifact of the same name would then be served under
//! the wrong identity.

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
    client::{Wire, innermost},
    docker::{DockerConfig, DockerLogin},
    error::{Identity, RegistryError},
    options::{Credentials, Scheme},
    retry,
    scope::Access,
};
use crate::{
    oci::read_regular,
    telemetry::{NAME_BYTES, cut},
};

/// A token answer longer than this is not read.
const TOKEN_LIMIT: u64 = 1 << 20;
/// "If `expires_in` is omitted, this defaults to 60 seconds" (distribution, `auth/token.md`).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A password or token is longer than this only by mistake.
const PASSWORD_LIMIT: u64 = 1 << 20;
/// Who asks, to an OAuth2 token server.
const CLIENT: &str = "bundlegate";
const FORM: &str = "application/x-www-form-urlencoded";
/// A token this close to its end may be expired when it arrives.
const SKEW: Duration = Duration::from_secs(5);

/// What one client knows about authenticating at one registry.
#[derive(Debug)]
pub(super) struct Authenticator {
    host: String,
    scheme: Scheme,
    credentials: Option<Credentials>,
    /// By access: one token allows one thing.
    known: Mutex<HashMap<String, Authorization>>,
    /// One token request at a time; the others wait and find its result.
    asking: tokio::sync::Mutex<()>,
    /// Whether docker's configuration turned out to have something for this registry.
    logged_in: AtomicBool,
}

#[derive(Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
    challenge: Challenge,
}

/// What there is to log in with.
enum Login {
    Anonymous,
    /// A `Basic` header.
    Basic(HeaderValue),
    /// An identity token, good for nothing but getting other tokens.
    Identity(String),
    /// A token that the registry itself takes.
    Token(HeaderValue),
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
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            logged_in: AtomicBool::default(),
        }
    }

    /// For an error message.
    pub(super) fn identity(&self) -> Identity {
        match &self.credentials {
            None => Identity::Anonymous,
            Some(Credentials::PasswordFile { .. }) => Identity::Configured,
            Some(Credentials::Typed { .. }) => Identity::Typed,
            Some(Credentials::DockerConfig { .. }) if self.logged_in.load(Ordering::Relaxed) => Identity::LoggedIn,
            Some(Credentials::DockerConfig { .. }) => Identity::NotLoggedIn,
        }
    }

    /// The header to send right away, where an earlier challenge was answered.
    pub(super) fn known(&self, access: Access<'_>) -> Option<HeaderValue> {
        let known = self.lock();
        let authorization = known.get(&access.key())?;
        authorization.is_fresh().then(|| authorization.value.clone())
    }

    /// As [`Self::known`], and where the answer has grown old, the same challenge is
    /// answered again.
    pub(super) async fn renewed(&self, wire: &Wire, access: Access<'_>) -> Result<Option<HeaderValue>, RegistryError> {
        let old = self.lock().get(&access.key()).cloned();
        match old {
            Some(old) if !old.is_fresh() => {
                let answer = self.answer(wire, access, &old.challenge, Some(&old.value)).await;
                // The registry may have moved its token server: the next request asks it.
                if answer.is_err() {
                    self.lock().remove(&access.key());
                }
                answer.map(Some)
            }
            old => Ok(old.map(|old| old.value)),
        }
    }

    /// Answers `challenge`, sent in reply to a request that carried `refused` (or nothing).
    pub(super) async fn answer(
        &self,
        wire: &Wire,
        access: Access<'_>,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let _one_at_a_time = self.asking.lock().await;
        // Another request may have been through this while we waited.
        if let Some(value) = self.known(access).filter(|value| Some(value) != refused) {
            return Ok(value);
        }
        let (value, until) = match (challenge, self.login().await?) {
            (_, Login::Token(value)) => (value, None),
            (Challenge::Basic, Login::Basic(value)) => (value, None),
            (Challenge::Basic, Login::Anonymous) => return Err(self.nobody()),
            (Challenge::Basic, Login::Identity(_)) => {
                let reason = "the registry wants a password, and there is only an identity token".to_owned();
                return Err(self.no_login(reason));
            }
            (Challenge::Bearer { realm, service, scope }, login) => {
                let scopes = access.scopes(scope.as_deref());
                self.token(wire, login, realm, service.as_deref(), &scopes).await?
            }
        };
        let authorization = Authorization { value: value.clone(), until, challenge: challenge.clone() };
        self.lock().insert(access.key(), authorization);
        Ok(value)
    }

    async fn login(&self) -> Result<Login, RegistryError> {
        match &self.credentials {
            None => Ok(Login::Anonymous),
            Some(Credentials::Typed { username, password }) => self.basic(username, password),
            Some(Credentials::PasswordFile { username, password_file }) => {
                let password = read_password(password_file)
                    .await
                    .map_err(|error| self.no_login(format!("{} can't be read: {error}", password_file.display())))?;
                self.basic(username, password.trim())
            }
            Some(Credentials::DockerConfig { file }) => {
                let found = DockerConfig::new(file).find(&self.host).await;
                let found = found.map_err(|error| self.no_login(error.to_string()))?;
                self.logged_in.store(found.is_some(), Ordering::Relaxed);
                match found {
                    None => Ok(Login::Anonymous),
                    Some(DockerLogin::Password { username, password }) => self.basic(&username, &password),
                    Some(DockerLogin::IdentityToken(token)) => Ok(Login::Identity(token)),
                    Some(DockerLogin::RegistryToken(token)) => {
                        sensitive(&format!("Bearer {token}")).map(Login::Token).ok_or_else(|| self.does_not_fit())
                    }
                }
            }
        }
    }

    fn basic(&self, username: &str, password: &str) -> Result<Login, RegistryError> {
        let pair = STANDARD.encode(format!("{username}:{password}"));
        sensitive(&format!("Basic {pair}")).map(Login::Basic).ok_or_else(|| self.does_not_fit())
    }

    fn nobody(&self) -> RegistryError {
        let (operation, host, identity) = ("authenticate", self.host.clone(), self.identity());
        RegistryError::Denied { operation, host, status: 401, identity }
    }

    fn does_not_fit(&self) -> RegistryError {
        self.no_login("they don't fit in a header".to_owned())
    }

    fn no_login(&self, reason: String) -> RegistryError {
        RegistryError::NoLogin { host: self.host.clone(), reason }
    }

    async fn token(
        &self,
        wire: &Wire,
        login: Login,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<(HeaderValue, Option<Instant>), RegistryError> {
        let realm = self.realm_url(wire, realm)?;
        let shown = format!("{}{}", realm.origin().ascii_serialization(), realm.path());
        let shown = cut(&shown, NAME_BYTES);
        let mut failure = Failure { host: &self.host, realm: &shown, denied: false, limited: false, retry_after: None };
        let request = token_request(wire, login, realm, service, scopes);
        let response = timeout(wire.patience(), request.send())
            .await
            .map_err(|_| failure.because("timed out".to_owned()))?
            .map_err(|error| failure.because(innermost(&error)))?;
        let status = response.status();
        if !status.is_success() {
            failure.denied = matches!(status.as_u16(), 400 | 401 | 403);
            failure.limited = status.as_u16() == 429;
            failure.retry_after = retry::retry_after(response.headers(), std::time::SystemTime::now());
            return Err(failure.because(format!("HTTP {}", status.as_u16())));
        }
        let body = timeout(wire.patience(), wire.read_limited(response, TOKEN_LIMIT))
            .await
            .map_err(|_| failure.because("timed out".to_owned()))?
            .map_err(|error| failure.because(error.to_string()))?;
        let (value, life) = token_in(&body).map_err(|reason| failure.because(reason.to_owned()))?;
        Ok((value, Some(Instant::now() + life)))
    }

    fn realm_url(&self, wire: &Wire, realm: &str) -> Result<Url, RegistryError> {
        let failure =
            Failure { host: &self.host, realm: "its realm", denied: false, limited: false, retry_after: None };
        let url = Url::parse(realm).map_err(|_| failure.because("the realm is not a URL".into()))?;
        // Whoever answers over TLS must not be able to lure the password out in clear.
        let allowed = match self.scheme {
            Scheme::Https => url.scheme() == "https",
            Scheme::Http => matches!(url.scheme(), "http" | "https"),
        };
        if !allowed || !url.username().is_empty() || url.password().is_some() {
            return Err(
                failure.because(format!("the realm's scheme {:?} is not allowed here", cut(url.scheme(), NAME_BYTES)))
            );
        }
        match forbidden_host(&url) {
            Some(address) if !wire.is_ours(&url) => {
                Err(failure.because(format!("the realm is at {address}, a link-local or cloud metadata address")))
            }
            _ => Ok(url),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Authorization>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A GET with the scopes repeated (distribution, `auth/token.md`), or for an identity token
/// a form with the scopes in one field (`auth/oauth.md`).
fn token_request(
    wire: &Wire,
    login: Login,
    mut realm: Url,
    service: Option<&str>,
    scopes: &[String],
) -> reqwest::RequestBuilder {
    if let Login::Identity(token) = login {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT);
        if let Some(service) = service {
            form.append_pair("service", service);
        }
        form.append_pair("scope", &scopes.join(" ")).append_pair("refresh_token", &token);
        let form = form.finish();
        return wire.client(&realm).post(realm).header(reqwest::header::CONTENT_TYPE, FORM).body(form);
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
    let request = wire.client(&realm).get(realm);
    match login {
        Login::Basic(value) => request.header(reqwest::header::AUTHORIZATION, value),
        Login::Anonymous | Login::Identity(_) | Login::Token(_) => request,
    }
}

/// The header that a token server's answer gives, and for how long.
pub(super) fn token_in(body: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| "the answer is not a token")?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let value = token.and_then(|token| sensitive(&format!("Bearer {token}")));
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    // Far-off ends overflow the clock of some systems; a day is long enough.
    let life = life.min(Duration::from_secs(24 * 3600)).saturating_sub(SKEW);
    Ok((value.ok_or("the answer holds no usable token")?, life))
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
/// Read at every use, so it may be rotated.
async fn read_password(file: &Path) -> io::Result<String> {
    let file = file.to_owned();
    let bytes = spawn_blocking(move || read_regular(&file, PASSWORD_LIMIT)).await??;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
