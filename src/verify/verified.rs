//! The verdict: [`Verified`] or a [`VerificationError`], and nothing between.

use jiff::Timestamp;

use super::{
    evidence::Evidence,
    policy::{Format, PolicyRevision, Rule, TrustPolicy},
    reason::Reason,
    report::{Report, clean},
    verification::{Accepted, Verification},
};
use crate::{
    oci::{Digest, Manifest, PinnedReference},
    telemetry,
};

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

/// How long a verdict holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Validity {
    /// Until then, if not for ever.
    pub(super) until: Option<Timestamp>,
    /// After that it is reached again, though it holds meanwhile.
    pub(super) reverify_after: Option<Timestamp>,
}

/// An authority that voted for an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The authority's name in the configuration.
    pub authority: String,
    /// `sha256:` of the public key, or the name in the certificate.
    pub identity: String,
    /// Where the signature was found.
    pub format: Format,
    /// When it was made, where a log or a timestamp authority vouches for that; the earliest
    /// of such times.
    pub signed_at: Option<Timestamp>,
    /// From when on its age counts: a time that nobody can make later without the signer.
    pub earliest_time: Option<Timestamp>,
}

/// No.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (digest {digest}){details}")]
pub struct VerificationError {
    /// The most telling reason.
    pub reason: Reason,
    /// What was judged.
    pub digest: Digest,
    /// What else was seen, in words; empty or with a separator in front.
    pub details: String,
    /// Whether a revoked key signed it, or the digest is revoked: then there is nothing to wait
    /// for, whatever else is wrong.
    pub revoked: bool,
}

/// What a judgement takes for granted.
#[derive(Debug, Clone, Copy)]
pub struct VerificationContext {
    /// The time of judging.
    pub now: Timestamp,
    /// Whether trust roots that were not refreshed in time may still speak: about what they
    /// have accepted before.
    pub expired_roots: bool,
}

impl VerificationContext {
    /// Something new, now.
    pub fn now() -> Self {
        Self { now: telemetry::now(), expired_roots: false }
    }

    /// Something that the same roots have accepted before.
    #[must_use]
    pub fn accepted_before(self) -> Self {
        Self { expired_roots: true, ..self }
    }
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
        let skipped = evidence.skipped.iter().map(|text| clean(text)).collect();
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

impl Validity {
    fn due(self) -> Option<Timestamp> {
        [self.until, self.reverify_after].into_iter().flatten().min()
    }

    /// Whether the verdict need not be reached again yet.
    pub(super) fn holds(self, now: Timestamp) -> bool {
        self.due().is_none_or(|due| now <= due)
    }

    /// As long as both do.
    pub(super) fn and(self, other: Self) -> Self {
        let earlier = |one: Option<Timestamp>, other: Option<Timestamp>| [one, other].into_iter().flatten().min();
        Self {
            until: earlier(self.until, other.until),
            reverify_after: earlier(self.reverify_after, other.reverify_after),
        }
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
