//! Deciding whether an artifact may be trusted. The only code (with `sign`) that names
//! sigstore crates, and the only code that makes a [`Verified`].
//!
//! [`collect`] gathers what a registry offers as evidence, without judging it;
//! [`Verified::judge`] judges, without talking to anyone, so that the same evidence can be
//! judged again from disk.

mod bundle_v03;
mod collect;
mod evidence;
mod keys;
mod legacy;
mod policy;
mod report;
mod verdict;

pub use collect::collect;
pub use evidence::{Evidence, EvidenceError};
pub use keys::{BadKey, PublicKey};
pub use policy::{Authority, PolicyRevision, TrustPolicy};
pub use report::{Check, Finding, Report};
pub use verdict::{Format, Reason, Rejection, Signer, Verified};
