//! The verification of an artifact before `verify` reports it and `pull` stores it.

use anyhow::anyhow;

use crate::{
    oci::{Manifest, PinnedReference},
    registry::{RegistryError, Source},
    verify::{
        self, Evidence, Reason, Report, TrustPolicy, VerificationContext, VerificationError,
        Verified,
    },
};

/// An artifact to verify.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) pinned: &'a PinnedReference,
    pub(super) manifest: &'a Manifest,
    /// Where the artifact is.
    pub(super) source: &'a Source,
    /// Where its signatures are.
    pub(super) signatures: &'a Source,
    /// The limit of the signature material in bytes.
    pub(super) limit: u64,
}

/// A verdict and the report of all checks.
pub(super) struct Verification {
    pub(super) verdict: Result<Verified<Manifest>, VerificationError>,
    pub(super) report: Report,
}

impl Subject<'_> {
    /// Verifies the artifact. The lists of signatures of one mirror suffice to accept it; before it
    /// is refused, those of every host are read, and if they exceed the limit those of the registry
    /// alone: what a mirror lists may have left none of the limit to them.
    ///
    /// # Errors
    /// When the evidence does not suffice and the registry did not deliver all of it: it may have
    /// been the signature that counts.
    pub(super) async fn verify(self, policy: &TrustPolicy) -> anyhow::Result<Verification> {
        let mut verified = self.verify_at(self.signatures, policy).await;
        let is_accepted = matches!(&verified, Ok((found, _)) if found.verdict.is_ok());
        if self.signatures.has_mirrors() && !is_accepted {
            let everywhere = self.signatures.clone().at_every_host();
            verified = self.verify_at(&everywhere, policy).await;
            let exceeds_limit = |(found, evidence): &(Verification, Evidence)| {
                found.verdict.is_err() && evidence.beyond_limit().is_some()
            };
            if verified.as_ref().is_ok_and(exceeds_limit) {
                let origin = self.signatures.clone().at_origin();
                verified = self.verify_at(&origin, policy).await;
            }
        }
        let (verification, evidence) = verified?;
        if let Err(rejection) = &verification.verdict
            && rejection.reason != Reason::RevokedDigest
        {
            self.check_delivered(rejection, &evidence).await?;
        }
        Ok(verification)
    }

    async fn verify_at(
        self,
        signatures: &Source,
        policy: &TrustPolicy,
    ) -> Result<(Verification, Evidence), RegistryError> {
        let evidence = verify::collect(signatures, self.pinned, self.limit).await?;
        let (verdict, report) = Verified::verify_with_report(
            policy,
            self.pinned,
            self.manifest.clone(),
            &evidence,
            VerificationContext::now(),
        );
        Ok((Verification { verdict, report }, evidence))
    }

    /// Whether the registry delivered all evidence, so that a rejection for the lack of it counts.
    async fn check_delivered(
        self,
        rejection: &VerificationError,
        evidence: &Evidence,
    ) -> anyhow::Result<()> {
        let withheld = |error: &RegistryError| {
            anyhow!(
                "{}: {error}; not all signatures could be read, and those that could do not \
                 suffice: {rejection}",
                self.pinned
            )
        };
        if let Some(error) = evidence.unavailable() {
            return Err(withheld(error));
        }
        // A refused tag counts as a missing one only while the registry delivers the artifact.
        if let Some(beside) = evidence.denied_beside() {
            let origin = self.source.clone().at_origin();
            origin
                .manifest(beside)
                .await
                .map_err(|error| withheld(&error))?;
        }
        Ok(())
    }
}
