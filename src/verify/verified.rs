//! [`Verified`], the proof of a successful verification, and its only constructors.

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

/// A value that a trust policy accepted, or a manifest that an accepted image index lists by its
/// digest. [`Verified::verify`] and its variants are the only constructors, so code that takes a
/// `Verified` can't be given anything else:
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
    /// Verifies `manifest`, fetched as `pinned`, against `policy` with `evidence`. A pure
    /// computation, well below a millisecond for ordinary evidence.
    ///
    /// # Errors
    /// The most specific reason for which no candidate counted.
    pub fn verify(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
    ) -> Result<Self, VerificationError> {
        Self::verify_with_report(
            policy,
            pinned,
            manifest,
            evidence,
            VerificationContext::now(),
        )
        .0
    }

    /// The same verification, with a report of every check.
    ///
    /// # Errors
    /// The most specific reason for which no candidate counted.
    pub fn verify_with_report(
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
        context: VerificationContext,
    ) -> (Result<Self, VerificationError>, Report) {
        let skipped = evidence.skipped.iter().map(|text| sanitize(text)).collect();
        let mut report = Report {
            signatures: Vec::new(),
            skipped,
        };
        let digest = pinned.digest();
        if digest.recompute(manifest.raw()) != *digest {
            let details = format!("; the manifest is {}", manifest.digest());
            return (
                Err(VerificationError {
                    reason: Reason::OtherDigest,
                    digest: digest.clone(),
                    details,
                    revoked: false,
                }),
                report,
            );
        }
        let accepted = match policy.rule() {
            _ if policy.revokes_manifest(digest, &manifest) => {
                let (reason, digest) = (Reason::RevokedDigest, digest.clone());
                Err(VerificationError {
                    reason,
                    digest,
                    details: String::new(),
                    revoked: true,
                })
            }
            Rule::Unsigned => Ok(Accepted::default()),
            Rule::Signed(requirements) => Verification {
                requirements,
                pinned,
                context,
            }
            .verify(evidence, &mut report.signatures),
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

    /// A manifest that this index lists with its digest and size, which the verification of the
    /// index covers. Only [`super::VerdictCache::verify_path`] calls it, which refuses revoked
    /// digests.
    ///
    /// # Errors
    /// `OtherDigest` when this is no index, or does not list it.
    pub(super) fn child(self, manifest: Manifest) -> Result<Self, VerificationError> {
        let Some(digest) = self.value.listed_digest(&manifest) else {
            return Err(VerificationError {
                reason: Reason::OtherDigest,
                digest: self.pinned.digest().clone(),
                details: format!("; it does not list {}", manifest.digest()),
                revoked: false,
            });
        };
        Ok(Self {
            value: manifest,
            pinned: self.pinned.repository().pin(digest),
            ..self
        })
    }

    /// Restores the result of an earlier verification of the same digest by the same policy.
    /// `None` if `manifest` does not have that digest. Only [`super::VerdictCache`] calls it.
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
    /// The verified value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The reference by which it was fetched.
    pub fn pinned(&self) -> &PinnedReference {
        &self.pinned
    }

    /// The authorities that signed it; empty if the policy is `unsigned`.
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// The revision of the policy that accepted it.
    pub fn revision(&self) -> &PolicyRevision {
        &self.revision
    }

    /// The end of its validity; `None` = as long as the policy stays the same.
    pub fn valid_until(&self) -> Option<Timestamp> {
        self.validity.until
    }

    /// When the next verification is due, if ever: at the end of the validity, or earlier if the
    /// result may change with time, as an attestation rule's may.
    pub fn due(&self) -> Option<Timestamp> {
        self.validity.due()
    }

    pub(super) fn validity(&self) -> Validity {
        self.validity
    }

    /// The latest time from which a counted signature's age counts; `None` if no signature has a
    /// proven time.
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.signers
            .iter()
            .map(|signer| signer.earliest_time)
            .max()
            .flatten()
    }
}

#[cfg(test)]
mod tests;
