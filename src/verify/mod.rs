//! Deciding whether an artifact may be trusted. The only code (with `sign`) that names
//! sigstore crates, and the only code that makes a [`Verified`].
//!
//! [`collect()`] gathers what a registry offers as evidence, without judging it;
//! [`Verified::judge`] judges, without talking to anyone, so that the same evidence can be
//! judged again from disk.

mod budget;
mod bundle_v03;
mod ca;
mod candidate;
mod certificate;
mod claims;
mod collect;
pub mod conformance;
mod evidence;
mod hearing;
mod keys;
mod legacy;
mod pattern;
mod policy;
mod private_ca;
mod reason;
mod report;
mod restrict;
mod roots;
mod sigstore;
mod statement;
mod statement_rule;
mod tally;
mod verdict;
mod verdicts;
mod vouch;

pub use ca::{BadCaRoots, CaRoots};
pub use claims::Claim;
pub use collect::collect;
pub use evidence::{Evidence, EvidenceError};
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
pub use statement_rule::{BadRule, StatementRule};
pub use verdict::{Circumstances, Rejection, Signer, Verified};
pub use verdicts::Verdicts;
