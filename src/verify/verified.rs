//! The verdict: [`Verified`] or a [`VerificationError`], and nothing between.

use jiff::Timestamp;

use super::{
    evidence::Evidence,
    outcome::{Accepted, Signer, Validity, VerificationContext, VerificationError},
    policy::{PolicyRevision, Rule, TrustPolicy},
    reason::Reason,
    report::Report,
    sanitize::sanitize,
    verification::Verification,
};
use crate::oci::{Manifest, PinnedReference};

/// Something that a trust policy accepted. There is no other way to one than
/// [`Verified::verify`], so code that asks for a `Verified` can't be given anything else:
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
    validity: Validity,
}

impl Verified<Manifest> {
    /// Judges `manifest`, fetched as `pinned`, by `policy` on the strength of `evidence`.
    /// Pure computation, well below a millisecond for ordinary evidence.
    ///
    /// # Errors
    /// The most telling reason for refusing.
    pub fn verify(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
    ) -> Result<Self, VerificationError> {
        Self::verify_with_report(policy, pinned, manifest, evidence, VerificationContext::now()).0
    }

    /// The same judgement, together with what it saw on the way.
    ///
    /// # Errors
    /// The most telling reason for refusing.
    pub fn verify_with_report(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
        context: VerificationContext,
    ) -> (Result<Self, VerificationError>, Report) {
        let skipped = evidence.skipped.iter().map(|text| sanitize(text)).collect();
        let mut report = Report { signatures: Vec::new(), skipped };
        let digest = pinned.digest();
        if digest.recompute(manifest.raw()) != *digest {
            let details = format!("; the manifest is {}", manifest.digest());
            return (
                Err(VerificationError { reason: Reason::OtherDigest, digest: digest.clone(), details, revoked: false }),
                report,
            );
        }
        let accepted = match policy.rule() {
            Rule::Unsigned if policy.revokes(digest) => {
                let (reason, digest) = (Reason::RevokedDigest, digest.clone());
                Err(VerificationError { reason, digest, details: String::new(), revoked: true })
            }
            Rule::Unsigned => Ok(Accepted::default()),
            Rule::Signed(requirements) => {
                Verification { requirements, pinned, context }.verify(evidence, &mut report.signatures)
            }
        };
        let verified = accepted.map(|Accepted { signers, validity }| Self {
            value: manifest,
            pinned: pinned.clone(),
            signers,
            revision: policy.revision().clone(),
            validity,
        });
        (verified, report)
    }

    /// A verdict that was reached before, for this very digest and policy; `None` where
    /// `manifest` is not what it was about. For [`super::VerdictCache`] alone.
    pub(super) fn from_cache(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: &Manifest,
        signers: &[Signer],
        validity: Validity,
    ) -> Option<Self> {
        let same = pinned.digest().recompute(manifest.raw()) == *pinned.digest();
        same.then(|| Self {
            value: manifest.clone(),
            pinned: pinned.clone(),
            signers: signers.to_vec(),
            revision: policy.revision().clone(),
            validity,
        })
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

    /// Until when the verdict holds; `None` = as long as the policy does.
    pub fn valid_until(&self) -> Option<Timestamp> {
        self.validity.until
    }

    /// After which it is to be judged again, if ever: at its end, or before it where what was
    /// judged may look otherwise some day.
    pub fn due(&self) -> Option<Timestamp> {
        self.validity.due()
    }

    pub(super) fn validity(&self) -> Validity {
        self.validity
    }

    /// When it was signed, where that is proved: by the last of those who had to.
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.signers.iter().map(|signer| signer.earliest_time).max().flatten()
    }
}

#[cfg(test)]
mod tests;
