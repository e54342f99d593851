//! What is known about the authorization for one scope: the current one, the last challenge, and
//! which credentials were accepted or refused. No I/O.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;
use tokio::time::Instant;

use super::{
    auth_error::AuthError,
    challenge::Challenge,
    docker_auths::Login,
    scope::{OwnedScope, TokenScope},
};

/// For this time, credentials that were refused are not sent again unless they change: registries
/// lock accounts after some failures.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// The time between two attempts to renew a token before it expires.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(5);

/// The number of scopes below which none is dropped.
const MIN_SWEEP: usize = 1024;

/// The authorizations of one registry by scope: a token is good for one. A scope without a valid
/// authorization is dropped some time after its last request, since bundles come and go.
#[derive(Debug)]
pub(super) struct Scopes {
    entries: HashMap<String, Arc<ScopeEntry>>,
    /// The number of scopes at which unused ones are dropped: twice those that the last sweep
    /// kept, so that N scopes cost N.
    sweep_at: usize,
}

impl Default for Scopes {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            sweep_at: MIN_SWEEP,
        }
    }
}

impl Scopes {
    pub(super) fn entry(&mut self, scope: TokenScope<'_>) -> Arc<ScopeEntry> {
        let key = scope.key();
        if let Some(entry) = self.entries.get(&key) {
            return Arc::clone(entry);
        }
        if self.entries.len() >= self.sweep_at {
            let now = Instant::now();
            // A request that is under way holds its entry.
            self.entries
                .retain(|_, entry| Arc::strong_count(entry) > 1 || entry.lock().is_needed(now));
            self.sweep_at = MIN_SWEEP.max(2 * self.entries.len());
        }
        let entry = Arc::new(ScopeEntry::new(scope.to_owned()));
        self.entries.insert(key, Arc::clone(&entry));
        entry
    }
}

/// The authorization for one scope. All bundles of a repository share it.
#[derive(Debug)]
pub(super) struct ScopeEntry {
    pub(super) scope: OwnedScope,
    state: Mutex<ScopeState>,
    /// Held while an authorization is obtained: other requests wait and use the result.
    pub(super) obtaining: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct ScopeState {
    pub(super) authorization: Option<Authorization>,
    /// The last challenge, for a refusal without one.
    pub(super) challenge: Option<Challenge>,
    /// The credentials with which a request of this scope succeeded: a later refusal may be about
    /// the content that was asked for.
    pub(super) accepted: Option<Login>,
    pub(super) refused: Option<Refusal>,
    /// The last failure, for the requests that waited for its end.
    pub(super) failed: Option<(Instant, AuthError)>,
    /// When a token of accepted credentials may be replaced after a refusal.
    pub(super) replace_after: Option<Instant>,
    /// When the authorization may be renewed before it expires.
    pub(super) renew_after: Option<Instant>,
    pub(super) last_used: Option<Instant>,
}

/// The answer to a challenge.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) value: HeaderValue,
    pub(super) login: Login,
    /// Whether a token server issued it.
    pub(super) is_token: bool,
    pub(super) obtained: Instant,
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) login: Login,
    pub(super) status: u16,
    pub(super) until: Instant,
}

impl ScopeEntry {
    pub(super) fn new(scope: OwnedScope) -> Self {
        Self {
            scope,
            state: Mutex::default(),
            obtaining: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ScopeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another request obtained while this one waited since `asked`: a header other than the
    /// refused one, or the error with which it failed.
    pub(super) fn result_since(
        &self,
        asked: Instant,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let state = self.lock();
        let valid = state.valid(Instant::now()).map(|valid| &valid.value);
        match (valid.filter(|value| Some(*value) != refused), &state.failed) {
            (Some(value), _) => Ok(Some(value.clone())),
            (None, Some((at, error))) if *at >= asked => Err(error.clone()),
            (None, _) => Ok(None),
        }
    }

    pub(super) fn failed(&self, error: AuthError) -> AuthError {
        self.lock().failed = Some((Instant::now(), error.clone()));
        error
    }
}

impl ScopeState {
    pub(super) fn valid(&self, now: Instant) -> Option<&Authorization> {
        self.authorization.as_ref().filter(|one| now < one.until)
    }

    /// Whether the state must be kept without a request: a valid authorization, or a refusal
    /// because of which credentials are not sent.
    fn is_needed(&self, now: Instant) -> bool {
        self.valid(now).is_some() || self.refused.as_ref().is_some_and(Refusal::is_recent)
    }

    /// Whether the authorization has to be renewed now, because it may have expired at the next
    /// use. The caller then has to renew it.
    pub(super) fn take_renewal(&mut self, now: Instant) -> bool {
        let (Some(authorization), Some(last_used)) = (&self.authorization, self.last_used) else {
            return false;
        };
        if !authorization.is_token || self.renew_after.is_some_and(|after| now < after) {
            return false;
        }
        let lifetime = authorization.until - authorization.obtained;
        // With a margin for jitter; a token is used for at least half of its lifetime.
        let next_use = (now - last_used).mul_f64(1.25).max(lifetime / 5);
        let is_due = authorization.until - now < next_use.min(lifetime / 2);
        if is_due {
            self.renew_after = Some(now + RENEWAL_INTERVAL.min(lifetime / 4));
        }
        is_due
    }

    /// Records that the registry refused an authorization of these credentials.
    pub(super) fn refuse(&mut self, login: Login, status: u16) {
        if self.accepted.as_ref() == Some(&login) {
            // They may still be good for other content of this scope. Further refusals do not
            // postpone the next token.
            let now = Instant::now();
            if self.replace_after.is_none_or(|at| at <= now) {
                self.replace_after = Some(now + REFUSED_FOR);
            }
        } else {
            self.refused = Some(Refusal::now(login, status));
            self.authorization = None;
        }
    }
}

impl Refusal {
    pub(super) fn now(login: Login, status: u16) -> Self {
        Self {
            login,
            status,
            until: Instant::now() + REFUSED_FOR,
        }
    }

    pub(super) fn is_recent(&self) -> bool {
        Instant::now() < self.until
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn authorized(until: Instant) -> Authorization {
        Authorization {
            value: HeaderValue::from_static("Bearer x"),
            login: Login::Anonymous,
            is_token: true,
            obtained: Instant::now(),
            until,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scopes_without_a_valid_authorization_are_dropped() {
        let mut scopes = Scopes::default();
        let hour = Instant::now() + Duration::from_secs(3600);
        let held = scopes.entry(TokenScope::Pull("held"));
        scopes.entry(TokenScope::Pull("valid")).lock().authorization = Some(authorized(hour));
        scopes.entry(TokenScope::Pull("refused")).lock().refused =
            Some(Refusal::now(Login::Anonymous, 401));
        for number in 0..10 * MIN_SWEEP {
            scopes.entry(TokenScope::Pull(&number.to_string()));
            assert!(scopes.entries.len() <= MIN_SWEEP + 3);
        }
        assert!(Arc::ptr_eq(&held, &scopes.entry(TokenScope::Pull("held"))));
        let is_kept = |scopes: &Scopes, name| {
            let key = TokenScope::Pull(name).key();
            scopes.entries.contains_key(&key)
        };
        assert!(is_kept(&scopes, "valid") && is_kept(&scopes, "refused"));
        advance(Duration::from_secs(3600)).await;
        for number in 0..2 * MIN_SWEEP {
            scopes.entry(TokenScope::Push(&number.to_string()));
        }
        assert!(!is_kept(&scopes, "valid") && !is_kept(&scopes, "refused"));
    }
}
