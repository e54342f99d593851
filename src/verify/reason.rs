//! Why an artifact or a single signature is refused.

use std::fmt;

use super::keys::Scheme;

/// Why an artifact is not trusted. Of several, the last one in this order is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no signature.
    Unsigned,
    /// There are signatures, in formats that the policy does not look at.
    Format,
    /// There is something, but no signature that can be read.
    Malformed,
    /// There are attestations, but none of them approves.
    NotASignature,
    /// There are signatures, by keys that the policy does not know.
    AnotherKey,
    /// A certificate does not lead to a trusted authority, or not at the time of signing.
    Certificate,
    /// A certificate's signature is not by its key.
    Signature,
    /// A transparency log has not seen the signature, or not this one.
    Log,
    /// Nothing trusted tells when it was signed.
    Timestamp,
    /// A trust root was not refreshed in time, or is not there yet.
    Root,
    /// Somebody else signed.
    Identity,
    /// The right one signed, under other context.
    Claim,
    /// A trusted key signed in a way that is not declared for it.
    Scheme,
    /// What a trusted key did can't be judged here.
    Unsupported,
    /// A trusted key signed, outside the time in which it counts.
    Validity,
    /// A trusted key signed, but something else.
    OtherDigest,
    /// A trusted key signed this digest, in another repository.
    Repository,
    /// A trusted key signed this digest, without the annotations that it takes.
    Annotations,
    /// A trusted key signed this digest, too long ago.
    TooOld,
    /// A revoked key signed.
    RevokedKey,
    /// There are signatures, but of too few.
    TooFewVotes,
    /// It is signed, but a required attestation is missing or does not say what it should.
    Attestation,
    /// This digest is revoked.
    RevokedDigest,
}

/// What is wrong with one candidate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CandidateError {
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("{0} signatures are not looked at")]
    Format(&'static str),
    #[error("signed statement of type {0:?}")]
    NotASignature(String),
    #[error("by nobody whom the policy knows")]
    AnotherKey,
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("{0}")]
    Signature(String),
    #[error("{0}")]
    Log(String),
    #[error("{0}")]
    Timestamp(String),
    #[error("{0}")]
    Root(String),
    #[error("signed by {subject:?} of {issuer:?}")]
    Identity { subject: String, issuer: String },
    #[error("{0}")]
    Claim(String),
    #[error("made with {0}, which is not among the key's schemes")]
    Scheme(Scheme),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Validity(String),
    #[error("by the revoked key {0}")]
    RevokedKey(String),
    #[error("signed is {0}")]
    OtherDigest(String),
    #[error("signed for the repository {0:?}")]
    Repository(String),
    #[error("{0}")]
    Annotations(String),
    #[error("{0}")]
    TooOld(String),
}

impl CandidateError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::Malformed,
            Self::Format(_) => Reason::Format,
            Self::NotASignature(_) => Reason::NotASignature,
            Self::AnotherKey => Reason::AnotherKey,
            Self::Certificate(_) => Reason::Certificate,
            Self::Signature(_) => Reason::Signature,
            Self::Log(_) => Reason::Log,
            Self::Timestamp(_) => Reason::Timestamp,
            Self::Root(_) => Reason::Root,
            Self::Identity { .. } => Reason::Identity,
            Self::Claim(_) => Reason::Claim,
            Self::Scheme(_) => Reason::Scheme,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::Validity(_) => Reason::Validity,
            Self::RevokedKey(_) => Reason::RevokedKey,
            Self::OtherDigest(_) => Reason::OtherDigest,
            Self::Repository(_) => Reason::Repository,
            Self::Annotations(_) => Reason::Annotations,
            Self::TooOld(_) => Reason::TooOld,
        }
    }

    /// The one of two that says more; of equals, the later one.
    pub(super) fn or_more_specific(self, other: Self) -> Self {
        if other.reason() >= self.reason() { other } else { self }
    }

    /// The check of a report that it belongs to.
    pub(super) fn check(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Format(_) => "format",
            Self::NotASignature(_) => "statement",
            Self::AnotherKey | Self::Signature(_) | Self::Scheme(_) | Self::RevokedKey(_) => "signature",
            Self::Certificate(_) => "certificate",
            Self::Log(_) | Self::Unsupported(_) => "log",
            Self::Timestamp(_) => "timestamp",
            Self::Root(_) => "root",
            Self::Identity { .. } | Self::Claim(_) => "identity",
            Self::Validity(_) => "validity",
            Self::OtherDigest(_) => "digest",
            Self::Repository(_) => "repository",
            Self::Annotations(_) => "annotations",
            Self::TooOld(_) => "age",
        }
    }

    /// What the reason alone does not say.
    pub(super) fn detail(&self) -> Option<String> {
        (*self != Self::AnotherKey).then(|| self.to_string())
    }
}

impl Reason {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Format => "format",
            Self::Malformed => "malformed",
            Self::NotASignature => "not_a_signature",
            Self::AnotherKey => "another_key",
            Self::Certificate => "certificate",
            Self::Signature => "signature",
            Self::Log => "log",
            Self::Timestamp => "timestamp",
            Self::Root => "root",
            Self::Identity => "identity",
            Self::Claim => "claim",
            Self::Scheme => "scheme",
            Self::Unsupported => "unsupported",
            Self::Validity => "validity",
            Self::RevokedKey => "revoked_key",
            Self::OtherDigest => "other_digest",
            Self::Repository => "repository",
            Self::Annotations => "annotations",
            Self::TooOld => "too_old",
            Self::TooFewVotes => "too_few_votes",
            Self::Attestation => "attestation",
            Self::RevokedDigest => "revoked_digest",
        }
    }

    /// Whether somebody decided that it should never be trusted again, so that there is nothing
    /// to wait for.
    pub fn is_revocation(self) -> bool {
        matches!(self, Self::RevokedKey | Self::RevokedDigest)
    }

    /// Whether time alone may change it.
    pub fn is_of_time(self) -> bool {
        matches!(self, Self::Log | Self::Timestamp | Self::Root | Self::Certificate | Self::Validity | Self::TooOld)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "no signature",
            Self::Format => "no signature in a format that counts",
            Self::Malformed => "no readable signature",
            Self::NotASignature => "attestations, but no signature",
            Self::AnotherKey => "signature by another key",
            Self::Certificate => "signature by an untrusted certificate",
            Self::Signature => "signature that its certificate did not make",
            Self::Log => "signature that no transparency log vouches for",
            Self::Timestamp => "signature of an unproved time",
            Self::Root => "trust root out of date",
            Self::Identity => "signature by somebody else",
            Self::Claim => "signature under other context",
            Self::Scheme => "signature in an undeclared scheme",
            Self::Unsupported => "signature of an unsupported kind",
            Self::Validity => "signature outside the key's validity",
            Self::RevokedKey => "signature by a revoked key",
            Self::OtherDigest => "signature of another digest",
            Self::Repository => "signature for another repository",
            Self::Annotations => "signature without the required annotations",
            Self::TooOld => "signature too old",
            Self::TooFewVotes => "too few votes",
            Self::Attestation => "signed, but without a required attestation",
            Self::RevokedDigest => "revoked digest",
        })
    }
}
