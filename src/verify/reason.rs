//! The reasons for which an artifact or a single candidate is rejected.

use std::fmt;

use super::keys::Scheme;

/// The reason for which an artifact is not trusted. Of several reasons the last one in this order
/// is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no signature.
    Unsigned,
    /// All signatures are in formats that the policy does not allow.
    Format,
    /// There is signature material, but none that can be parsed.
    Malformed,
    /// There are attestations, but no signature.
    NotASignature,
    /// All signatures are by keys that the policy does not have.
    AnotherKey,
    /// A certificate does not chain to a trusted authority, or did not at the time of signing.
    Certificate,
    /// A signature was not made with the key of its certificate.
    Signature,
    /// A transparency log does not have the signature, or has another one.
    Log,
    /// Nothing trusted proves the time of signing.
    Timestamp,
    /// A trust root has expired or has not been fetched yet.
    Root,
    /// The signer is not the one that the policy names.
    Identity,
    /// The signer is right, but a claim in the certificate is not.
    Claim,
    /// A trusted key signed with a scheme that is not declared for it.
    Scheme,
    /// A trusted key signed, but this program can't verify the signature as the policy requires.
    Unsupported,
    /// A trusted key signed outside its validity.
    Validity,
    /// A trusted key signed another digest.
    OtherDigest,
    /// A trusted key signed this digest for another repository.
    Repository,
    /// A trusted key signed this digest without the required annotations.
    Annotations,
    /// A trusted key signed this digest longer than `max_signature_age` ago.
    TooOld,
    /// A revoked key signed this artifact.
    RevokedKey,
    /// Fewer authorities signed than the policy requires.
    TooFewVotes,
    /// The artifact is signed, but a required attestation is missing or does not satisfy its
    /// rule.
    Attestation,
    /// The digest is revoked.
    RevokedDigest,
}

/// The reason for which one candidate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CandidateError {
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("the policy does not allow {0} signatures (formats)")]
    Format(&'static str),
    #[error("signed statement of type {0:?}")]
    NotASignature(String),
    #[error("no authority in the policy matches this signer")]
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
    #[error("signed by {subject:?} (issuer {issuer:?})")]
    Identity { subject: String, issuer: String },
    #[error("{0}")]
    Claim(String),
    #[error("made with {0}, which is not among the key's schemes")]
    Scheme(Scheme),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Validity(String),
    #[error("signed by the revoked key {0}")]
    RevokedKey(String),
    #[error("the signature is for {0}")]
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

    /// The more specific error of two; the later one of equals.
    pub(super) fn or_more_specific(self, other: Self) -> Self {
        if other.reason() >= self.reason() {
            other
        } else {
            self
        }
    }

    /// The name of the check that failed.
    pub(super) fn check(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Format(_) => "format",
            Self::NotASignature(_) => "statement",
            Self::AnotherKey | Self::Signature(_) | Self::Scheme(_) | Self::RevokedKey(_) => {
                "signature"
            }
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

    /// The text of the error, unless the reason contains it.
    pub(super) fn detail(&self) -> Option<String> {
        (*self != Self::AnotherKey).then(|| self.to_string())
    }
}

impl Reason {
    /// The value of the metric label.
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

    /// Whether the artifact is revoked, so that waiting for another signature is pointless.
    pub fn is_revocation(self) -> bool {
        matches!(self, Self::RevokedKey | Self::RevokedDigest)
    }

    /// Whether the passage of time alone may change the result.
    pub fn is_of_time(self) -> bool {
        matches!(
            self,
            Self::Log
                | Self::Timestamp
                | Self::Root
                | Self::Certificate
                | Self::Validity
                | Self::TooOld
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "no signature",
            Self::Format => "no signature in an allowed format",
            Self::Malformed => "no readable signature",
            Self::NotASignature => "attestations, but no signature",
            Self::AnotherKey => "signature by another key",
            Self::Certificate => "signature by an untrusted certificate",
            Self::Signature => "signature does not match its certificate",
            Self::Log => "signature without valid transparency log proof",
            Self::Timestamp => "signature without a proven signing time",
            Self::Root => "trust root out of date",
            Self::Identity => "signature by another identity",
            Self::Claim => "certificate claims do not match",
            Self::Scheme => "signature in an undeclared scheme",
            Self::Unsupported => "signature of an unsupported kind",
            Self::Validity => "signature outside the key's validity",
            Self::RevokedKey => "signature by a revoked key",
            Self::OtherDigest => "signature for another digest",
            Self::Repository => "signature for another repository",
            Self::Annotations => "signature without the required annotations",
            Self::TooOld => "signature too old",
            Self::TooFewVotes => "too few authorities signed",
            Self::Attestation => "signed, but a required attestation is missing",
            Self::RevokedDigest => "revoked digest",
        })
    }
}
