//! The tokens by which requests to the admin API that change something are authenticated.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use super::clients::Tokens;

/// The current tokens, which are replaced on reload. Without a configured file there are none, and
/// then no request is authenticated by a token. Cheap to clone.
#[derive(Clone, Default)]
pub struct AdminTokens(Arc<RwLock<Option<Arc<Tokens>>>>);

impl AdminTokens {
    /// Replaces the tokens; `None` if no file is configured. With an empty list none is accepted.
    pub fn replace(&self, tokens: Option<Tokens>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tokens.map(Arc::new);
    }

    pub(super) fn current(&self) -> Option<Arc<Tokens>> {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tokens.clone()
    }
}

impl fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminTokens(..)")
    }
}
