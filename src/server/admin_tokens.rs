//! The tokens by which requests to the admin API that change something are authenticated.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The current tokens, which are replaced on reload. Without a configured file there are none, and
/// then no request is authenticated by a token. Cheap to clone.
#[derive(Clone, Default)]
pub struct AdminTokens(Arc<RwLock<Option<Arc<Tokens>>>>);

/// SHA-256 of each token.
pub(super) struct Tokens(Vec<[u8; 32]>);

impl AdminTokens {
    /// Replaces the tokens; `None` if no file is configured. With an empty list none is accepted.
    pub fn replace(&self, tokens: Option<&[&[u8]]>) {
        let hash = |token: &&[u8]| Sha256::digest(token).into();
        let tokens = tokens.map(|tokens| Arc::new(Tokens(tokens.iter().map(hash).collect())));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    pub(super) fn current(&self) -> Option<Arc<Tokens>> {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tokens.clone()
    }
}

impl Tokens {
    /// Whether this is one of the tokens. All are compared, so that the time does not reveal which
    /// one matches.
    pub(super) fn contain(&self, token: &[u8]) -> bool {
        let token: [u8; 32] = Sha256::digest(token).into();
        let hits = self.0.iter().map(|known| known.ct_eq(&token).unwrap_u8());
        hits.fold(0, |all, hit| all | hit) == 1
    }
}

impl fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminTokens(..)")
    }
}
