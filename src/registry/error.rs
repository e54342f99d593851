//! Errors of registry operations, and what each means for the caller.

use std::time::Duration;

use super::options::InvalidOptions;
use crate::oci::{Digest, LayoutError, ManifestError, Reference};

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// May go away by itself: network, 5xx, token server, a broken transfer.
    Transient,
    /// The registry asks to retry later.
    RateLimited {
        /// The delay, where the registry gave one.
        retry_after: Option<Duration>,
    },
    /// The registry answers, and has no such thing.
    NotFound,
    /// The registry answers, and refuses the credentials.
    Denied,
    /// A property of the bytes under a matching digest: a retry cannot help.
    Defect,
}

/// Where the credentials of a request come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialSource {
    /// None are configured.
    Anonymous,
    /// Docker's configuration has none for this registry.
    NotLoggedIn,
    /// The configuration.
    Configured,
    /// Docker's configuration.
    LoggedIn,
    /// A prompt or standard input.
    Typed,
}

impl CredentialSource {
    /// What the registry refused, and how to correct it.
    pub(super) fn refused(self, host: &str) -> String {
        match self {
            Self::Anonymous => format!("anonymous access; check registries.{host}.credentials"),
            Self::Configured => {
                format!("the configured credentials; check registries.{host}.credentials")
            }
            Self::NotLoggedIn => format!("anonymous access; log in with `bundlegate login {host}`"),
            Self::LoggedIn => {
                format!(
                    "the stored credentials; log in as a user with access: `bundlegate login {host}`"
                )
            }
            Self::Typed => "this user name and password; check both".to_owned(),
        }
    }
}

/// A failed registry operation.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The reference names no artifact.
    #[error("{reference}: no such tag or manifest")]
    NoSuchReference {
        /// The reference.
        reference: Reference,
    },
    /// A manifest or blob is missing.
    #[error("{what} {digest} is not in {repository}")]
    Missing {
        /// `manifest` or `blob`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// The repository without it.
        repository: String,
    },
    /// The registry has no repository of this name, or hides it.
    #[error("{repository}: no such repository")]
    NoSuchRepository {
        /// The repository.
        repository: String,
    },
    /// No answer, because of the connection, TLS or a deadline.
    #[error("{operation} at {host}: {reason}")]
    Unreachable {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// The innermost cause, without URLs, which may contain signatures.
        reason: String,
    },
    /// A status that means neither success nor a fact about the artifact.
    #[error("{operation} at {host}: HTTP {status}{detail}")]
    Status {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// The status code.
        status: u16,
        /// `Retry-After`, where sent.
        retry_after: Option<Duration>,
        /// The registry's explanation in parentheses, or empty.
        detail: String,
    },
    /// 401 or 403 after the credentials were used.
    #[error("{operation} at {host}: HTTP {status}, the registry refuses {}", credentials.refused(host))]
    Denied {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// The status code.
        status: u16,
        /// Which credentials it refused.
        credentials: CredentialSource,
    },
    /// 401 or 403 of a server that the registry redirects to, which got no credentials: it says
    /// nothing about those of the registry, nor about what it has.
    #[error("{operation} at {host}: it redirects to {target}, which answers HTTP {status}")]
    Redirected {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// The origin of the other server.
        target: String,
        /// The status code.
        status: u16,
    },
    /// The configured credentials can't be read or used.
    #[error("credentials for {host}: {reason}")]
    CredentialsUnavailable {
        /// The registry.
        host: String,
        /// What is wrong, without the secret.
        reason: String,
        /// Whether they may be available a moment later: a credential helper failed.
        transient: bool,
    },
    /// The token server that the registry names did not issue a token.
    #[error("token for {host} from {realm}: {reason}")]
    Token {
        /// The registry.
        host: String,
        /// The token server's address, without query.
        realm: String,
        /// How it failed.
        reason: String,
        /// Whether it refused the credentials; otherwise it failed.
        denied: bool,
        /// `Retry-After`, where it answered 429.
        retry_after: Option<Duration>,
        /// Whether it answered 429.
        limited: bool,
    },
    /// A body is longer than its limit.
    #[error("{what} is larger than the limit of {limit} bytes ({key})")]
    TooLarge {
        /// What was read.
        what: String,
        /// The limit.
        limit: u64,
        /// The configuration key that holds it.
        key: &'static str,
        /// Whether the digest of all of its bytes is the requested one. Otherwise they may be
        /// anything, such as a proxy's error page.
        proven: bool,
    },
    /// The received bytes have another digest or size than requested.
    #[error(
        "{what} {expected} arrived as {actual}: the transfer or the registry's storage is corrupt"
    )]
    Mismatch {
        /// `manifest` or `blob`.
        what: &'static str,
        /// The requested digest.
        expected: String,
        /// The digest of the bytes.
        actual: String,
    },
    /// The answer is complete, but shorter than the blob.
    #[error(
        "blob {digest} ends after {actual} of {expected} bytes: the transfer or the registry's storage is cut short"
    )]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Its size.
        expected: u64,
        /// The number of received bytes.
        actual: u64,
    },
    /// Bytes with the requested digest are not a valid manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// `Content-Type`, which no digest covers, contradicts the manifest.
    #[error("{operation} at {host}: {reason}")]
    ContentType {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// Names both types.
        reason: String,
    },
    /// An answer does not follow the specification.
    #[error("{operation} at {host}: {reason}")]
    Protocol {
        /// The operation.
        operation: &'static str,
        /// The registry.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// An OCI layout folder could not be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl RegistryError {
    /// The kind of failure as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoSuchReference { .. } => "no_such_tag",
            Self::Missing { .. } | Self::NoSuchRepository { .. } => "missing",
            Self::Unreachable { .. } => "unreachable",
            Self::Status {
                status: 403 | 429, ..
            }
            | Self::Token { limited: true, .. } => "rate_limited",
            Self::Status { .. } | Self::Redirected { .. } => "registry_error",
            Self::CredentialsUnavailable { .. } => "credentials",
            Self::Denied { .. } | Self::Token { denied: true, .. } => "denied",
            Self::Token { .. } => "token",
            Self::TooLarge { .. } => "too_large",
            Self::Mismatch { .. } => "corrupt",
            Self::Truncated { .. } => "truncated",
            Self::Manifest(_) => "not_a_manifest",
            Self::Protocol { .. } | Self::ContentType { .. } => "protocol",
            Self::Layout(_) => "layout",
        }
    }

    /// What the failure means for the caller.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSuchReference { .. } | Self::Missing { .. } | Self::NoSuchRepository { .. } => {
                Class::NotFound
            }
            Self::Denied { .. }
            | Self::CredentialsUnavailable {
                transient: false, ..
            }
            | Self::Token { denied: true, .. } => Class::Denied,
            // 403 with the headers of a rate limit; any other is `Denied`.
            Self::Status {
                status: 403 | 429,
                retry_after,
                ..
            }
            | Self::Token {
                limited: true,
                retry_after,
                ..
            } => Class::RateLimited {
                retry_after: *retry_after,
            },
            Self::TooLarge { proven: true, .. } | Self::Manifest(_) => Class::Defect,
            Self::TooLarge { .. }
            | Self::ContentType { .. }
            | Self::CredentialsUnavailable { .. }
            | Self::Unreachable { .. }
            | Self::Redirected { .. }
            | Self::Status { .. }
            | Self::Token { .. }
            | Self::Mismatch { .. }
            | Self::Truncated { .. }
            | Self::Protocol { .. }
            | Self::Layout(_) => Class::Transient,
        }
    }

    /// The delay that the registry asks for before the next request.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::Token { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry answered and the content is missing, malformed, too large or
    /// contradicts itself. For a piece of evidence that is a fact about this piece alone. Otherwise
    /// the registry did not answer, refused, or failed.
    pub fn is_unusable_content(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::NoSuchReference { .. }
            | Self::NoSuchRepository { .. }
            | Self::TooLarge { .. }
            | Self::Mismatch { .. }
            | Self::Truncated { .. }
            | Self::Manifest(_)
            | Self::ContentType { .. } => true,
            // The registry does not serve this content: 400 for a digest or tag that it calls
            // invalid, 410 Gone, 412 for an artifact that a scanner blocks, 451.
            Self::Status { status, .. } => {
                matches!(status, 400..=499)
                    && !matches!(status, 401 | 403 | 407 | 408 | 421 | 425 | 429)
            }
            Self::Unreachable { .. }
            | Self::Denied { .. }
            | Self::Redirected { .. }
            | Self::CredentialsUnavailable { .. }
            | Self::Token { .. }
            | Self::Protocol { .. }
            | Self::Layout(_) => false,
        }
    }
}

impl RegistryError {
    /// As [`Self::is_unusable_content`], for a list of signatures: a status that a registry answers
    /// for a while, such as 423 during maintenance, is no fact about the list.
    pub(super) fn is_unusable_list(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 400 | 404 | 405 | 406 | 410 | 412 | 422 | 451)
            }
            error => error.is_unusable_content(),
        }
    }
}

impl From<InvalidOptions> for RegistryError {
    fn from(InvalidOptions { host, reason }: InvalidOptions) -> Self {
        Self::Protocol {
            operation: "connect",
            host,
            reason,
        }
    }
}
