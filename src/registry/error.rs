//! What can go wrong between us and a registry, and what to do about it.

use std::time::Duration;

use crate::oci::{Digest, LayoutError, ManifestError, Reference};

/// What a failure means for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// May go away by itself: network, 5xx, token server, a broken transfer.
    Transient,
    /// The registry asks to come back later.
    RateLimited {
        /// How much later, where it said so.
        retry_after: Option<Duration>,
    },
    /// The registry answers, and has no such thing.
    NotFound,
    /// The registry answers, and refuses our credentials.
    Denied,
    /// A property of the bytes under a matching digest: asking again cannot help.
    Defect,
}

/// Who we are to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Nobody, and the configuration means it.
    Anonymous,
    /// Nobody, because docker's configuration has nothing for this registry.
    NotLoggedIn,
    /// The user that the configuration names.
    Configured,
    /// The user that docker's configuration names.
    LoggedIn,
    /// The user who has just been typed in.
    Typed,
}

impl Identity {
    /// What is refused, and the way out.
    fn refused(self, host: &str) -> String {
        match self {
            Self::Anonymous => format!("anonymous access; check registries.{host}.credentials"),
            Self::Configured => format!("our credentials; check registries.{host}.credentials"),
            Self::NotLoggedIn => format!("anonymous access; log in with `bundlegate login {host}`"),
            Self::LoggedIn => {
                format!("the stored credentials; log in as one who may with `bundlegate login {host}`")
            }
            Self::Typed => "this user name and password; check both".to_owned(),
        }
    }
}

/// A failed registry operation.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The reference points at nothing.
    #[error("{reference}: no such tag or manifest")]
    NoSuchReference {
        /// What was asked for.
        reference: Reference,
    },
    /// A manifest or blob that should be there is not.
    #[error("{what} {digest} is not in {repository}")]
    Missing {
        /// `manifest` or `blob`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// Where it was looked for.
        repository: String,
    },
    /// The registry has no repository of this name, or shows none to us.
    #[error("{repository}: no such repository")]
    NoSuchRepository {
        /// What was asked for.
        repository: String,
    },
    /// No answer: connection, TLS or a deadline.
    #[error("{operation} at {host}: {reason}")]
    Unreachable {
        /// What was attempted.
        operation: &'static str,
        /// With whom.
        host: String,
        /// The innermost cause, without URLs, which may hold signatures.
        reason: String,
    },
    /// An answer that means neither success nor a fact about the artifact.
    #[error("{operation} at {host}: HTTP {status}{detail}")]
    Status {
        /// What was attempted.
        operation: &'static str,
        /// With whom.
        host: String,
        /// The status code.
        status: u16,
        /// `Retry-After`, where sent.
        retry_after: Option<Duration>,
        /// What the registry says of it: empty, or in parentheses.
        detail: String,
    },
    /// 401 or 403 after the credentials were used.
    #[error("{operation} at {host}: HTTP {status}, the registry refuses {}", identity.refused(host))]
    Denied {
        /// What was attempted.
        operation: &'static str,
        /// With whom.
        host: String,
        /// The status code.
        status: u16,
        /// Who we were.
        identity: Identity,
    },
    /// The credentials are not where they should be.
    #[error("credentials for {host}: {reason}")]
    NoLogin {
        /// The registry.
        host: String,
        /// What is wrong, without the secret.
        reason: String,
    },
    /// The token server named by the registry did not give a token.
    #[error("token for {host} from {realm}: {reason}")]
    Token {
        /// The registry.
        host: String,
        /// The token server's address, without query.
        realm: String,
        /// What it did.
        reason: String,
        /// Whether it refused the credentials, as opposed to being unwell.
        denied: bool,
        /// `Retry-After`, where it said 429.
        retry_after: Option<Duration>,
        /// Whether it said 429.
        limited: bool,
    },
    /// A body longer than allowed.
    #[error("{what} is larger than the limit of {limit} bytes ({key})")]
    TooLarge {
        /// What was read.
        what: String,
        /// The limit.
        limit: u64,
        /// The configuration key that holds it.
        key: &'static str,
        /// Whether the digest of all of its bytes is the one that was asked for. Otherwise they
        /// may be anything: a proxy's error page, say.
        proven: bool,
    },
    /// The bytes that arrived are not those that were asked for.
    #[error("{what} {expected} arrived as {actual}: the transfer or the registry's storage is corrupt")]
    Mismatch {
        /// `manifest` or `blob`.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The answer is whole, and yet shorter than the blob.
    #[error(
        "blob {digest} ends after {actual} of {expected} bytes: the transfer or the registry's storage is cut short"
    )]
    Truncated {
        /// What was asked for.
        digest: Digest,
        /// Its size.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The manifest's bytes are what was asked for, but no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What the registry says of a manifest's type, which no digest covers, contradicts the
    /// manifest.
    #[error("{operation} at {host}: {reason}")]
    ContentType {
        /// What was attempted.
        operation: &'static str,
        /// With whom.
        host: String,
        /// Both types.
        reason: String,
    },
    /// A page of a list that is not what the specification says.
    #[error("{operation} at {host}: {reason}")]
    Protocol {
        /// What was attempted.
        operation: &'static str,
        /// With whom.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// An OCI layout folder could not be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl RegistryError {
    /// The kind of failure in a word: a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoSuchReference { .. } => "no_such_tag",
            Self::Missing { .. } | Self::NoSuchRepository { .. } => "missing",
            Self::Unreachable { .. } => "unreachable",
            Self::Status { status: 429, .. } | Self::Token { limited: true, .. } => "rate_limited",
            Self::Status { .. } => "registry_error",
            Self::Denied { .. } | Self::NoLogin { .. } | Self::Token { denied: true, .. } => "denied",
            Self::Token { .. } => "token",
            Self::TooLarge { .. } => "too_large",
            Self::Mismatch { .. } => "corrupt",
            Self::Truncated { .. } => "truncated",
            Self::Manifest(_) => "not_a_manifest",
            Self::Protocol { .. } | Self::ContentType { .. } => "protocol",
            Self::Layout(_) => "layout",
        }
    }

    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSuchReference { .. } | Self::Missing { .. } | Self::NoSuchRepository { .. } => Class::NotFound,
            Self::Denied { .. } | Self::NoLogin { .. } | Self::Token { denied: true, .. } => Class::Denied,
            Self::Status { status: 429, retry_after, .. } | Self::Token { limited: true, retry_after, .. } => {
                Class::RateLimited { retry_after: *retry_after }
            }
            Self::TooLarge { proven: true, .. } | Self::Manifest(_) => Class::Defect,
            Self::TooLarge { .. }
            | Self::ContentType { .. }
            | Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::Token { .. }
            | Self::Mismatch { .. }
            | Self::Truncated { .. }
            | Self::Protocol { .. }
            | Self::Layout(_) => Class::Transient,
        }
    }

    /// Whether the registry has answered, and what it has, or lacks, can't be used: it is missing,
    /// malformed, too large, or contradicts itself. Of a piece of evidence that is a fact about
    /// this piece alone. Otherwise the registry did not answer, refused, or is unwell.
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
            // The registry does not give out this one: 410 Gone, 412 for an artifact that a
            // scanner holds back, 451.
            Self::Status { status, .. } => matches!(status, 404 | 410 | 412 | 451),
            Self::Unreachable { .. }
            | Self::Denied { .. }
            | Self::NoLogin { .. }
            | Self::Token { .. }
            | Self::Protocol { .. }
            | Self::Layout(_) => false,
        }
    }
}
