//! Signature verification: decides whether an artifact is trusted. Besides `sign`, the only
//! module that names sigstore crates; the only one that constructs a [`Verified`].
//!
//! [`collect()`] fetches the evidence from a registry without verifying it. [`Verified::verify`]
//! verifies it without any network access, so that the same evidence can be verified again from
//! disk.

mod attestation_rule;
mod authority_check;
mod budget;
mod bundle_v03;
mod ca;
mod candidate;
mod certificate;
mod collect;
mod collection;
pub mod conformance;
mod evidence;
mod fulcio_extension;
mod keys;
mod legacy;
mod matching;
mod outcome;
mod path;
mod pattern;
mod policy;
mod private_ca;
mod reason;
mod report;
mod restrict;
mod roots;
mod sanitize;
mod sigstore;
mod statement;
mod useless;
mod verdict_cache;
mod verification;
mod verified;

pub use attestation_rule::{AttestationRule, BadRule};
pub use ca::{BadCaRoots, CaRoots};
pub use collection::{Collection, ReferrersApi, collect};
pub use evidence::{BeyondLimit, Evidence, EvidenceError};
pub use fulcio_extension::FulcioExtension;
pub use keys::{BadKey, PublicKey, Scheme};
pub use outcome::{Signer, VerificationContext, VerificationError};
pub use path::PathVerdict;
pub use pattern::{BadPattern, Pattern};
pub use policy::{
    Attestation, Authority, AuthorityKey, AuthorityKind, ClaimedRepository, Format, Identity,
    InvalidPolicy, PolicyRevision, Requirements, Rule, San, SigningTime, TlogPolicy, TrustPolicy,
    X509,
};
pub use reason::Reason;
pub use report::{Check, Report, SignatureReport};
pub use restrict::TrustBase;
pub use roots::{
    BadRoot, BadSource, RefreshError, Refreshed, RootFailure, RootSource, TrustRoot,
    TrustRootMetrics, TrustRootRefresher, TrustRootStatus, TrustRoots, TufOptions, UnusableRoot,
};
pub use useless::UselessReferrers;
pub use verdict_cache::VerdictCache;
pub use verified::Verified;
