//! The result types of a verification and the assumptions that it is made under.

use jiff::Timestamp;

use super::{policy::Format, reason::Reason};
use crate::{oci::Digest, telemetry};

/// A successful verification: the signers that counted and until when.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    pub(super) signers: Vec<Signer>,
    pub(super) validity: Validity,
}

/// The validity of a successful verification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Validity {
    /// The end of the validity; `None` = no end.
    pub(super) until: Option<Timestamp>,
    /// When the verification is due again, although it still holds.
    pub(super) reverify_after: Option<Timestamp>,
}

/// An authority whose signature counted for an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The authority's name in the configuration.
    pub authority: String,
    /// `sha256:` of the public key, or the name in the certificate.
    pub identity: String,
    /// The storage format of the signature.
    pub format: Format,
    /// The earliest time of signing that a log or a timestamp authority proves.
    pub signed_at: Option<Timestamp>,
    /// The time from which the signature's age counts. Only the signer could obtain a later
    /// one, by signing again.
    pub earliest_time: Option<Timestamp>,
}

/// A failed verification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (digest {digest}){details}")]
pub struct VerificationError {
    /// The most specific reason of all candidates.
    pub reason: Reason,
    /// The digest of the artifact.
    pub digest: Digest,
    /// Further findings, as text; empty or with a separator in front.
    pub details: String,
    /// Whether the digest is revoked or one of the signatures is by a revoked key. Waiting for
    /// another signature is pointless then, regardless of other failures.
    pub revoked: bool,
}

/// The assumptions of a verification.
#[derive(Debug, Clone, Copy)]
pub struct VerificationContext {
    /// The time of the verification.
    pub now: Timestamp,
    /// Whether expired trust roots are still usable. They are for artifacts that they accepted
    /// before they expired.
    pub expired_roots: bool,
}

impl VerificationContext {
    /// The context of a new artifact at the current time.
    pub fn now() -> Self {
        Self {
            now: telemetry::now(),
            expired_roots: false,
        }
    }

    /// The same context for an artifact that the same roots accepted before.
    #[must_use]
    pub fn accepted_before(self) -> Self {
        Self {
            expired_roots: true,
            ..self
        }
    }
}

impl Validity {
    /// When the next verification is due, if ever.
    pub(super) fn due(self) -> Option<Timestamp> {
        [self.until, self.reverify_after]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether no new verification is due at `now`.
    pub(super) fn holds(self, now: Timestamp) -> bool {
        self.due().is_none_or(|due| now <= due)
    }

    /// The validity of two results that are both needed: the earlier of each end.
    pub(super) fn and(self, other: Self) -> Self {
        let earlier = |one: Option<Timestamp>, other: Option<Timestamp>| {
            [one, other].into_iter().flatten().min()
        };
        Self {
            until: earlier(self.until, other.until),
            reverify_after: earlier(self.reverify_after, other.reverify_after),
        }
    }
}
