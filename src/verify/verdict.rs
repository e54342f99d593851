//! The verdict: [`Verified`] or a [`Rejection`], and nothing between.

use std::fmt;

use super::{
    bundle_v03,
    evidence::Evidence,
    legacy,
    policy::{Format, PolicyRevision, Rule, TrustPolicy},
    report::{Finding, Report, clean},
};
use crate::oci::{Digest, Manifest, PinnedReference};

/// Something that a trust policy accepted. There is no other way to one than
/// [`Verified::judge`], so code that asks for a `Verified` can't be given anything else:
///
/// ```compile_fail
/// use bundlegate::verify::Verified;
/// fn forge<T>(value: T) -> Verified<T> {
///     Verified { value }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Verified<T> {
    value: T,
    pinned: PinnedReference,
    signers: Vec<Signer>,
    revision: PolicyRevision,
}

/// An authority that voted for an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The authority's name in the configuration.
    pub authority: String,
    /// `sha256:` of the public key.
    pub identity: String,
    /// Where the signature was found.
    pub format: Format,
}

/// No.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (digest {digest}){details}")]
pub struct Rejection {
    /// The most telling reason.
    pub reason: Reason,
    /// What was judged.
    pub digest: Digest,
    /// What else was seen, in words; empty or with a separator in front.
    pub details: String,
}

/// Why an artifact is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no signature.
    Unsigned,
    /// There is something, but no signature that can be read.
    Malformed,
    /// There are attestations, but none of them approves.
    NotASignature,
    /// There are signatures, by keys that the policy does not know.
    AnotherKey,
    /// A trusted key signed, but something else.
    OtherDigest,
}

/// What is wrong with one candidate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("signed statement of type {0:?}")]
    NotASignature(String),
    #[error("by none of the policy's keys")]
    AnotherKey,
    #[error("signed is {0}")]
    OtherDigest(String),
}

impl Verified<Manifest> {
    /// Judges `manifest`, fetched as `pinned`, by `policy` on the strength of `evidence`.
    /// Pure computation, well below a millisecond for ordinary evidence.
    ///
    /// # Errors
    /// The most telling reason for refusing.
    pub fn judge(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
    ) -> Result<Self, Rejection> {
        Self::explain(policy, pinned, manifest, evidence).0
    }

    /// The same judgement, together with what it saw on the way.
    ///
    /// # Errors
    /// The most telling reason for refusing.
    pub fn explain(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
    ) -> (Result<Self, Rejection>, Report) {
        let mut report =
            Report { findings: Vec::new(), skipped: evidence.skipped.iter().map(|text| clean(text)).collect() };
        let digest = pinned.digest();
        if digest.recompute(manifest.raw()) != *digest {
            let details = format!("; the manifest is {}", manifest.digest());
            return (Err(Rejection { reason: Reason::OtherDigest, digest: digest.clone(), details }), report);
        }
        let signers = match policy.rule() {
            Rule::Unsigned => Ok(Vec::new()),
            Rule::Signed(_) => votes(policy, digest, evidence, &mut report.findings),
        };
        let pinned = pinned.clone();
        (signers.map(|signers| Self { value: manifest, pinned, signers, revision: policy.revision().clone() }), report)
    }
}

impl<T> Verified<T> {
    /// What was accepted.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Under which name.
    pub fn pinned(&self) -> &PinnedReference {
        &self.pinned
    }

    /// Who voted for it; empty where the policy is `unsigned`.
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// By which policy.
    pub fn revision(&self) -> &PolicyRevision {
        &self.revision
    }
}

/// Each authority that signed, once.
fn votes(
    policy: &TrustPolicy,
    digest: &Digest,
    evidence: &Evidence,
    findings: &mut Vec<Finding>,
) -> Result<Vec<Signer>, Rejection> {
    let mut signers: Vec<Signer> = Vec::new();
    let mut faults = Vec::new();
    let mut count = |finding: Finding, outcome: Result<Signer, Fault>| {
        match outcome {
            Ok(signer) if signers.iter().any(|known| known.authority == signer.authority) => {}
            Ok(signer) => signers.push(signer),
            Err(fault) => faults.push(fault),
        }
        findings.push(finding);
    };
    for candidate in &evidence.bundles {
        let mut finding = Finding::new(Format::Bundle);
        let outcome = bundle_v03::judge(candidate, digest, policy, &mut finding);
        count(finding, outcome);
    }
    for candidate in &evidence.legacy {
        let mut finding = Finding::new(Format::Legacy);
        let outcome = legacy::judge(candidate, digest, policy, &mut finding);
        count(finding, outcome);
    }
    if signers.is_empty() { Err(reject(digest, &faults, &evidence.skipped)) } else { Ok(signers) }
}

fn reject(digest: &Digest, faults: &[Fault], skipped: &[String]) -> Rejection {
    let reason = faults.iter().map(Fault::reason).max().unwrap_or(Reason::Unsigned);
    let mut details = String::new();
    for detail in faults.iter().filter_map(Fault::detail).chain(skipped.iter().cloned()).take(4) {
        details.push_str("; ");
        details.push_str(&clean(&detail));
    }
    Rejection { reason, digest: digest.clone(), details }
}

impl Fault {
    fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::Malformed,
            Self::NotASignature(_) => Reason::NotASignature,
            Self::AnotherKey => Reason::AnotherKey,
            Self::OtherDigest(_) => Reason::OtherDigest,
        }
    }

    /// What the reason alone does not say.
    fn detail(&self) -> Option<String> {
        (*self != Self::AnotherKey).then(|| self.to_string())
    }
}

impl Reason {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Malformed => "malformed",
            Self::NotASignature => "not_a_signature",
            Self::AnotherKey => "another_key",
            Self::OtherDigest => "other_digest",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "no signature",
            Self::Malformed => "no readable signature",
            Self::NotASignature => "attestations, but no signature",
            Self::AnotherKey => "signature by another key",
            Self::OtherDigest => "signature of another digest",
        })
    }
}

#[cfg(test)]
mod tests;
