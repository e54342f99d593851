//! Checks of bearer tokens that are JSON Web Tokens. A signature takes less time than a TLS handshake,
//! so it is verified on the thread that serves the request; the result is remembered.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    clients::Clients,
    credential::Credential,
    credential_checks::{Check, Identification},
    refusal::Reason,
};
use crate::access::{Jwt, KeySource, RemoteKeys, TokenError, VerifiedToken};

/// Tokens that are remembered, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// How long a token is remembered without a request.
const IDLE: Duration = Duration::from_secs(600);
/// What a token costs besides its claims, in bytes.
const OVERHEAD_BYTES: usize = 512;

/// Verifies tokens, and remembers by their SHA-256 those whose signature is valid. Whether a token
/// is accepted depends on the time and the clients as well, and is decided for each request.
#[derive(Debug)]
pub(super) struct JwtChecks(moka::sync::Cache<[u8; 32], Arc<VerifiedToken>>);

/// A token whose issuer may have published a new key.
pub(super) struct KeyCheck {
    token: Zeroizing<Vec<u8>>,
    sources: Vec<Arc<RemoteKeys>>,
}

impl Default for JwtChecks {
    fn default() -> Self {
        let weight = |_: &[u8; 32], token: &Arc<VerifiedToken>| {
            // The claims are kept as a tree, which takes several times the space of their text.
            let bytes = OVERHEAD_BYTES + 4 * token.size();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let cache = moka::sync::Cache::builder()
            .max_capacity(MAX_BYTES)
            .weigher(weight)
            .time_to_idle(IDLE);
        Self(cache.build())
    }
}

impl JwtChecks {
    /// Looks up a bearer token, which need not be a JWT. Does not block.
    pub(super) fn look_up(&self, clients: &Clients, token: &[u8]) -> Identification {
        let opaque = Credential::token(token);
        // A token of a file may look like a JWT.
        if !clients.kinds().jwt || !Jwt::is_like(token) || clients.know(&opaque) {
            return Identification::Known(opaque);
        }
        let error = match self.verify(clients, token) {
            Ok(token) => return Identification::Known(Credential::Jwt(token)),
            Err(error) => error,
        };
        // Some issuers give a new key the name of the old one.
        let may_be_new = matches!(
            error,
            TokenError::NoKeys | TokenError::UnknownKey | TokenError::Signature
        );
        let sources = remote_keys_of(clients, token);
        if may_be_new && !sources.is_empty() {
            let token = Zeroizing::new(token.to_vec());
            return Identification::Pending(Check::Keys(KeyCheck { token, sources }));
        }
        Identification::Known(Credential::Rejected(Reason::Jwt(error)))
    }

    /// Decides about a token, with the present keys.
    pub(super) fn run(&self, check: &KeyCheck, clients: &Clients) -> Credential {
        match self.verify(clients, &check.token) {
            Ok(token) => Credential::Jwt(token),
            Err(error) => Credential::Rejected(Reason::Jwt(error)),
        }
    }

    /// Verifies the signature of a token, with the keys of the clients that accept its issuer.
    ///
    /// # Errors
    /// The error of the client that comes furthest.
    fn verify(&self, clients: &Clients, token: &[u8]) -> Result<Arc<VerifiedToken>, TokenError> {
        let hash = Sha256::digest(token).into();
        if let Some(known) = self.0.get(&hash) {
            return Ok(known);
        }
        let jwt = Jwt::parse(token)?;
        let mut error = TokenError::Issuer;
        for source in clients.key_sources(jwt.issuer()) {
            let verified = match source.current() {
                Some(keys) => jwt.verify(&keys),
                None => Err(TokenError::NoKeys),
            };
            match verified {
                Ok(verified) => {
                    let verified = Arc::new(verified);
                    self.0.insert(hash, Arc::clone(&verified));
                    return Ok(verified);
                }
                Err(refused) => error = error.max(refused),
            }
        }
        Err(error)
    }
}

impl KeyCheck {
    /// Waits for the keys to be fetched again, if there may be a fetch now, for some seconds at
    /// most. Cancel-safe.
    pub(super) async fn refresh(&self) {
        join_all(self.sources.iter().map(|keys| keys.refresh())).await;
    }
}

/// The keys of a token's issuer that are fetched from a URL.
fn remote_keys_of(clients: &Clients, token: &[u8]) -> Vec<Arc<RemoteKeys>> {
    let Ok(jwt) = Jwt::parse(token) else {
        return Vec::new();
    };
    let sources = clients.key_sources(jwt.issuer());
    let remote = sources.filter_map(|source| match source {
        KeySource::Url(keys) => Some(Arc::clone(keys)),
        KeySource::File(_) => None,
    });
    remote.collect()
}
