//! The authorization of requests to one registry: answers challenges, renews tokens before they
//! expire, and replaces credentials that were rotated.
//!
//! An error stays an error: a failing token server never turns a request into an anonymous one,
//! because a public artifact of the same name would then be served under the wrong identity.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{StatusCode, header::HeaderValue};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tracing::Instrument as _;

use super::{
    auth_error::{AuthError, TokenFailure},
    auth_state::{Authorization, Refusal, ScopeEntry, Scopes},
    challenge::Challenge,
    credentials::{CredentialReader, secret_header},
    docker_auths::Login,
    error::{CredentialSource, RegistryError},
    options::{Credentials, Scheme},
    scope::TokenScope,
    token::TokenRequest,
    transport::Transport,
};

/// After this time credentials that the registry itself accepts are read again, in case that they
/// were rotated while the old ones still work.
const CREDENTIAL_LIFETIME: Duration = Duration::from_secs(30);
/// Tokens that are renewed at a time before they expire, so that requests come first.
const MAX_RENEWALS: usize = 16;
/// Credentials of which it is known whether they got a token.
const MAX_TRIALS: usize = 100;

/// The credentials of one client at one registry, and the answers to its challenges.
#[derive(Debug)]
pub(super) struct Authenticator {
    shared: Arc<Shared>,
    /// Tokens that are being renewed before they expire.
    renewals: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    scheme: Scheme,
    reader: CredentialReader,
    /// By scope: a token is good for one.
    scopes: Mutex<Scopes>,
    /// Credentials that the token server refused, whatever the scope.
    refused: Mutex<Option<Refusal>>,
    trials: Mutex<HashMap<Login, Trial>>,
    /// Held while a token is requested with credentials that have not been tried: refused
    /// credentials are then sent once, and not for each bundle.
    trying: tokio::sync::Mutex<()>,
    renewing: Semaphore,
}

/// The last request to the token server with some credentials.
#[derive(Debug)]
struct Trial {
    at: Instant,
    result: Result<(), AuthError>,
}

impl Authenticator {
    pub(super) fn new(
        transport: Transport,
        scheme: Scheme,
        credentials: Option<Credentials>,
    ) -> Self {
        let reader = CredentialReader::new(transport.host().to_owned(), credentials);
        Self {
            shared: Arc::new(Shared {
                transport,
                scheme,
                reader,
                scopes: Mutex::default(),
                refused: Mutex::default(),
                trials: Mutex::default(),
                trying: tokio::sync::Mutex::default(),
                renewing: Semaphore::new(MAX_RENEWALS),
            }),
            renewals: Mutex::default(),
        }
    }

    /// The kind of credentials in use, for an error message.
    pub(super) fn credential_source(&self) -> CredentialSource {
        self.shared.reader.source()
    }

    /// The header for a request. `None` before the registry's first challenge. An expired token is
    /// replaced; one that expires soon is renewed while the request is sent with it.
    pub(super) async fn authorization(
        &self,
        scope: TokenScope<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let entry = self.shared.entry(scope);
        let (value, is_due) = {
            let mut state = entry.lock();
            let now = Instant::now();
            let valid = state.valid(now).map(|valid| valid.value.clone());
            let is_due = valid.is_some() && state.take_renewal(now);
            state.last_used = Some(now);
            (valid, is_due)
        };
        if is_due {
            self.renew(Arc::clone(&entry));
        }
        if value.is_some() {
            return Ok(value);
        }
        let authorization = self.shared.expired_or_refused(&entry).await;
        authorization.map_err(|error| self.error(error))
    }

    /// The header for another attempt, after the registry refused a request (401 or 403) that was
    /// sent with the header `sent`, and offered `challenge`. `None` if there is nothing better to
    /// send: the refusal is the answer.
    pub(super) async fn after_refusal(
        &self,
        scope: TokenScope<'_>,
        challenge: Option<Challenge>,
        sent: Option<&HeaderValue>,
        status: StatusCode,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let entry = self.shared.entry(scope);
        let refused = self.shared.replace(&entry, challenge, sent, status).await;
        refused.map_err(|error| self.error(error))
    }

    /// Records what the registry made of a request that was sent with `sent`.
    pub(super) fn conclude(
        &self,
        scope: TokenScope<'_>,
        sent: Option<&HeaderValue>,
        status: StatusCode,
    ) {
        let Some(sent) = sent else { return };
        let entry = self.shared.entry(scope);
        let mut state = entry.lock();
        let Some(current) = state
            .authorization
            .as_ref()
            .filter(|one| one.value == *sent)
        else {
            return;
        };
        let login = current.login.clone();
        if is_refusal(status) {
            state.refuse(login, status.as_u16());
        } else if (status.is_success() || status == StatusCode::NOT_FOUND)
            && state.accepted.as_ref() != Some(&login)
        {
            state.accepted = Some(login);
        }
    }

    fn error(&self, error: AuthError) -> RegistryError {
        error.at(self.shared.transport.host(), self.credential_source())
    }

    /// Renews an authorization in the background.
    fn renew(&self, entry: Arc<ScopeEntry>) {
        let shared = Arc::clone(&self.shared);
        // Before the waits: in a long queue the token may expire, and a request replaces it.
        let asked = Instant::now();
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        while renewals.try_join_next().is_some() {}
        let renewal = async move {
            let Ok(_renewing) = shared.renewing.acquire().await else {
                return;
            };
            // Before the lock of the entry, for which requests with a permit wait.
            let Ok(_permit) = shared.transport.permit("token").await else {
                return;
            };
            if let Err(error) = shared.renewed(&entry, asked).await {
                let error = error.at(shared.transport.host(), shared.reader.source());
                tracing::debug!(%error, "a token can't be renewed before it expires");
            }
        };
        renewals.spawn(renewal.in_current_span());
    }
}

/// Whether a status means that the registry did not accept the authorization. ECR answers 403, not
/// 401, to an expired one.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Shared {
    fn entry(&self, scope: TokenScope<'_>) -> Arc<ScopeEntry> {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.entry(scope)
    }

    /// Replaces an expired authorization by answering the last challenge again, and stops a request
    /// with credentials that were refused a moment ago. `None` where neither is known: the next
    /// answer brings a challenge.
    async fn expired_or_refused(
        &self,
        entry: &ScopeEntry,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let challenge = {
            let state = entry.lock();
            let is_refused = state.refused.as_ref().is_some_and(Refusal::is_recent);
            if state.authorization.is_none() && !is_refused {
                return Ok(None);
            }
            state.challenge.clone()
        };
        let Some(challenge) = challenge else {
            return Ok(None);
        };
        let asked = Instant::now();
        let _one_at_a_time = entry.obtaining.lock().await;
        if let Some(shared) = entry.result_since(asked, None)? {
            return Ok(Some(shared));
        }
        let obtained = self.obtain(entry, &challenge).await;
        if obtained.is_err() {
            // The registry may have moved its token server: the next request gets a new challenge.
            entry.lock().authorization = None;
        }
        obtained.map(Some)
    }

    /// Replaces an authorization before it expires, unless it was replaced since `asked`. After a
    /// failure the old one stays.
    async fn renewed(&self, entry: &ScopeEntry, asked: Instant) -> Result<(), AuthError> {
        let _one_at_a_time = entry.obtaining.lock().await;
        let challenge = {
            let state = entry.lock();
            let renewed = state
                .authorization
                .as_ref()
                .is_some_and(|one| one.obtained >= asked);
            state.challenge.clone().filter(|_| !renewed)
        };
        match challenge {
            Some(challenge) => self.obtain(entry, &challenge).await.map(drop),
            None => Ok(()),
        }
    }

    async fn replace(
        &self,
        entry: &ScopeEntry,
        challenge: Option<Challenge>,
        sent: Option<&HeaderValue>,
        status: StatusCode,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let asked = Instant::now();
        let _one_at_a_time = entry.obtaining.lock().await;
        if let Some(shared) = entry.result_since(asked, sent)? {
            return Ok(Some(shared));
        }
        let (challenge, current, is_early) = {
            let state = entry.lock();
            let known = challenge.or_else(|| state.challenge.clone());
            let current = state.authorization.clone();
            let is_early = state.replace_after.is_some_and(|at| Instant::now() < at);
            (
                known,
                current.filter(|one| Some(&one.value) == sent),
                is_early,
            )
        };
        let Some(challenge) = challenge else {
            return Ok(None);
        };
        if let Some(current) = &current {
            let read = self.login(entry, Some(&current.login));
            let login = read.await.map_err(|error| entry.failed(error))?;
            // Other credentials are tried, and a new token of the same ones: the old one may have
            // expired or been revoked.
            if login == current.login && (!current.is_token || is_early) {
                entry.lock().refuse(login, status.as_u16());
                return Ok(None);
            }
        }
        self.obtain(entry, &challenge).await.map(Some)
    }

    /// Answers a challenge with the current credentials. `entry.obtaining` is held.
    async fn obtain(
        &self,
        entry: &ScopeEntry,
        challenge: &Challenge,
    ) -> Result<HeaderValue, AuthError> {
        let of = |refusal: &Option<Refusal>| Some(refusal.as_ref()?.login.clone());
        let refused = of(&entry.lock().refused);
        let refused = refused.or_else(|| of(&self.lock_refused()));
        let answer = async {
            let login = self.login(entry, refused.as_ref()).await?;
            self.check_refused(entry, &login)?;
            self.answer(entry, challenge, login).await
        };
        let authorization = answer.await.map_err(|error| entry.failed(error))?;
        let value = authorization.value.clone();
        let mut state = entry.lock();
        state.authorization = Some(authorization);
        state.challenge = Some(challenge.clone());
        state.refused = None;
        state.failed = None;
        Ok(value)
    }

    /// The current credentials. While they can't be read, the last ones that the registry
    /// accepted: a helper fails, or a file is being written in place.
    async fn login(&self, entry: &ScopeEntry, refused: Option<&Login>) -> Result<Login, AuthError> {
        let read = self.reader.read(entry.scope.repository(), refused).await;
        match (read, entry.lock().accepted.clone()) {
            (Err(AuthError::Credentials { reason, .. }), Some(accepted))
                if refused != Some(&accepted) =>
            {
                let host = self.transport.host();
                tracing::warn!(
                    host,
                    reason,
                    "using the last credentials, as new ones can't be read"
                );
                Ok(accepted)
            }
            (read, _) => read,
        }
    }

    async fn answer(
        &self,
        entry: &ScopeEntry,
        challenge: &Challenge,
        login: Login,
    ) -> Result<Authorization, AuthError> {
        let (value, lifetime, is_token) = match (challenge, &login) {
            (_, Login::RegistryToken(token)) => {
                let value = secret_header(&format!("Bearer {token}"))?;
                (value, CREDENTIAL_LIFETIME, false)
            }
            (Challenge::Basic, Login::Anonymous) => {
                return Err(AuthError::Denied { status: 401 });
            }
            (Challenge::Basic, login) => {
                let value = login.basic().ok_or_else(|| {
                    let reason = "the registry requires a password, and only an identity token is \
                                  stored";
                    AuthError::credentials(reason.to_owned())
                })??;
                (value, CREDENTIAL_LIFETIME, false)
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                login,
            ) => {
                let scopes = entry.scope.borrow().requested(scope.as_deref());
                let request = TokenRequest {
                    transport: &self.transport,
                    scheme: self.scheme,
                    realm,
                    service: service.as_deref(),
                    scopes: &scopes,
                };
                let (value, lifetime) = self.request(entry, &request, login).await?;
                (value, lifetime, true)
            }
        };
        let obtained = Instant::now();
        Ok(Authorization {
            value,
            login,
            is_token,
            obtained,
            until: obtained + lifetime,
        })
    }

    /// Requests a token. Only one request at a time has credentials that never got one.
    async fn request(
        &self,
        entry: &ScopeEntry,
        request: &TokenRequest<'_>,
        login: &Login,
    ) -> Result<(HeaderValue, Duration), AuthError> {
        let asked = Instant::now();
        let _trial = match self.trial(login, None) {
            _ if *login == Login::Anonymous => None,
            Some(Ok(())) => None,
            _ => {
                let trying = self.trying.lock().await;
                match self.trial(login, Some(asked)) {
                    None => Some(trying),
                    // Refused for another scope: perhaps not for this one.
                    Some(
                        Ok(())
                        | Err(AuthError::Token {
                            failure: TokenFailure::Denied(400 | 403),
                            ..
                        }),
                    ) => None,
                    Some(Err(error)) => return Err(error),
                }
            }
        };
        // The trial of another request may have ended since this one last checked.
        self.check_refused(entry, login)?;
        let token = request.send(login).await;
        match &token {
            Ok(_) => {
                let mut refused = self.lock_refused();
                refused.take_if(|refusal| refusal.login == *login);
            }
            Err(error) => self.note_refusal(entry, login, error),
        }
        let trial = Trial {
            at: Instant::now(),
            result: token.as_ref().map(|_| ()).map_err(Clone::clone),
        };
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        // Passwords that helpers make up anew each time.
        if trials.len() >= MAX_TRIALS {
            trials.clear();
        }
        trials.insert(login.clone(), trial);
        token
    }

    /// The result of the last request to the token server with these credentials, if it ended
    /// after `since`.
    fn trial(&self, login: &Login, since: Option<Instant>) -> Option<Result<(), AuthError>> {
        let trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        let trial = trials.get(login)?;
        since
            .is_none_or(|since| trial.at >= since)
            .then(|| trial.result.clone())
    }

    /// Credentials that were refused a moment ago are not sent again.
    fn check_refused(&self, entry: &ScopeEntry, login: &Login) -> Result<(), AuthError> {
        let matching = |refusal: &Option<Refusal>| {
            let refusal = refusal.as_ref()?;
            (refusal.login == *login && refusal.is_recent()).then_some(refusal.status)
        };
        let everywhere = matching(&self.lock_refused());
        match everywhere.or_else(|| matching(&entry.lock().refused)) {
            Some(status) => Err(AuthError::Denied { status }),
            None => Ok(()),
        }
    }

    /// Records that the token server refused credentials: with 401 the user name and password
    /// themselves, else perhaps only for this scope.
    fn note_refusal(&self, entry: &ScopeEntry, login: &Login, error: &AuthError) {
        let AuthError::Token {
            failure: TokenFailure::Denied(status),
            ..
        } = error
        else {
            return;
        };
        let refusal = Refusal::now(login.clone(), *status);
        match status {
            401 if *login != Login::Anonymous => *self.lock_refused() = Some(refusal),
            _ => entry.lock().refused = Some(refusal),
        }
    }

    fn lock_refused(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            address::tests::Fixed,
            limiter::{Limiter, Permit},
            options::Options,
        },
        *,
    };

    /// An authorization that was obtained now.
    fn authorized() -> Authorization {
        let now = Instant::now();
        Authorization {
            value: HeaderValue::from_static("Bearer x"),
            login: Login::Anonymous,
            is_token: true,
            obtained: now,
            until: now + Duration::from_secs(60),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_a_request_replaced_while_its_renewal_waited_is_not_renewed_again() {
        let second = Duration::from_secs(1);
        let options = Options {
            scheme: Scheme::Http,
            ..Options::default()
        };
        let limiter = Arc::new(Limiter::new(1, None));
        let names = Arc::new(Fixed(&[]));
        let transport = Transport::new("registry.example", &options, None, limiter, names).unwrap();
        let auth = Authenticator::new(transport.clone(), Scheme::Http, None);
        let entry = auth.shared.entry(TokenScope::Pull("acme/authz"));
        // A renewal leaves its failure: no name resolves.
        let realm = "Bearer realm=\"http://tokens.example/token\"";
        entry.lock().challenge = Challenge::choose([realm].into_iter());
        entry.lock().authorization = Some(authorized());
        for replaced in [true, false] {
            let permit: Permit = transport.permit("test").await.unwrap();
            tokio::time::advance(second).await;
            auth.renew(Arc::clone(&entry));
            // It waits for the permit.
            tokio::time::sleep(second).await;
            if replaced {
                entry.lock().authorization = Some(authorized());
            }
            tokio::time::sleep(second).await;
            drop(permit);
            let renewals = std::mem::take(&mut *auth.renewals.lock().unwrap());
            renewals.join_all().await;
            assert_eq!(entry.lock().failed.is_none(), replaced);
        }
    }
}
