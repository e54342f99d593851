//! Deciding whether an artifact may be trusted. The only code (with `sign`) that names
//! sigstore crates, and the only code that makes a [`Verified`].
//!
//! [`collect()`] gathers what a registry offers as evidence, without judging it;
//! [`Verified::judge`] judges, without talking to anyone, so that the same evidence can be
//! judged again from disk.

mod attestation_rule;
mod authority_check;
mod budget;
mod bundle_v03;
mod ca;
mod candidate;
mod certificate;
mod collect;
pub mod conformance;
mod evidence;
mod fulcio_extension;
mod keys;
mod legacy;
mod matching;
mod pattern;
mod policy;
mod private_ca;
mod reason;
mod report;
mod restrict;
mod roots;
mod sigstore;
mod statement;
mod verdict_cache;
mod verification;
mod verified;

pub use attestation_rule::{BadRule, StatementRule};
pub use ca::{BadCaRoots, CaRoots};
pub use collect::collect;
pub use evidence::{Evidence, EvidenceError};
pub use fulcio_extension::Claim;
pub use keys::{BadKey, PublicKey, Scheme};
pub use pattern::{BadPattern, Pattern};
pub use policy::{
    Attestation, Authority, AuthorityKey, ClaimedRepository, Format, Identity, Log, PolicyRevision, Proof,
    Requirements, Rule, SIGNATURE_PREDICATE, San, SigningTime, TrustPolicy, Unmeetable, X509,
};
pub use reason::Reason;
pub use report::{Check, Finding, Report};
pub use restrict::TrustBase;
pub use roots::{
    BadRoot, BadSource, LiveRoots, RefreshFault, Refreshed, RootKeeper, RootSource, RootTrouble, TrustRoot, TufOptions,
};
pub use verdict_cache::Verdicts;
pub use verified::{Circumstances, Rejection, Signer, Verified};
