//! Why a request got no authorization. Unlike [`RegistryError`] it can be cloned: all requests that
//! waited for the same answer get the same error.

use std::time::Duration;

use super::error::{CredentialSource, RegistryError};

/// A failed attempt to get an authorization. Contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthError {
    /// The registry or its token server refused these credentials a moment ago, or wants some and
    /// there are none.
    Denied { status: u16 },
    /// The credentials can't be read or used.
    Credentials {
        reason: String,
        /// Whether they may be readable a moment later: a helper failed.
        transient: bool,
    },
    /// The token server issued no token.
    Token {
        /// Its address without query.
        realm: String,
        reason: String,
        failure: TokenFailure,
    },
}

/// The kind of a token server's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenFailure {
    /// It refused the credentials with this status.
    Denied(u16),
    /// It asks to retry later.
    RateLimited(Option<Duration>),
    /// It did not answer, or not with a token.
    Unavailable,
}

impl AuthError {
    pub(super) fn credentials(reason: String) -> Self {
        Self::Credentials {
            reason,
            transient: false,
        }
    }

    pub(super) fn at(self, host: &str, credentials: CredentialSource) -> RegistryError {
        let host = host.to_owned();
        match self {
            Self::Denied { status } => RegistryError::Denied {
                operation: "authenticate",
                host,
                status,
                credentials,
            },
            Self::Credentials { reason, transient } => RegistryError::CredentialsUnavailable {
                host,
                reason,
                transient,
            },
            Self::Token {
                realm,
                reason,
                failure,
            } => RegistryError::Token {
                reason: match failure {
                    TokenFailure::Denied(_) => {
                        format!("{reason}, it refuses {}", credentials.refused(&host))
                    }
                    TokenFailure::RateLimited(_) | TokenFailure::Unavailable => reason,
                },
                host,
                realm,
                denied: matches!(failure, TokenFailure::Denied(_)),
                limited: matches!(failure, TokenFailure::RateLimited(_)),
                retry_after: match failure {
                    TokenFailure::RateLimited(wait) => wait,
                    TokenFailure::Denied(_) | TokenFailure::Unavailable => None,
                },
            },
        }
    }
}
