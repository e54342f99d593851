//! Verification of an image that an index leads to.

use super::{
    evidence::Evidence,
    outcome::{VerificationContext, VerificationError},
    policy::TrustPolicy,
    reason::Reason,
    report::Report,
    verdict_cache::VerdictCache,
    verified::Verified,
};
use crate::oci::{Digest, Manifest, ManifestPath, Repository};

/// The result of [`VerdictCache::verify_path`].
#[derive(Debug)]
pub struct PathVerdict {
    /// The image at the end of the path, or the most specific reason for which no manifest of it
    /// was accepted.
    pub result: Result<Verified<Manifest>, VerificationError>,
    /// The manifest that `report` is about.
    pub digest: Digest,
    /// Every check of the signatures of that manifest.
    pub report: Report,
}

impl VerdictCache {
    /// Verifies the image at the end of `path`, whose first manifest a reference names. A signature
    /// of an index covers the manifests that it lists, since it has their digests. `evidence` is
    /// that of the first manifests of the path, in their order; the first of them that the policy
    /// accepts decides. A revoked digest anywhere on the path is refused.
    pub fn verify_path<'a>(
        &self,
        policy: &TrustPolicy,
        repository: &Repository,
        path: &ManifestPath,
        evidence: impl IntoIterator<Item = &'a Evidence>,
        context: VerificationContext,
    ) -> PathVerdict {
        let mut refused: Option<PathVerdict> = None;
        for (position, ((digest, manifest), evidence)) in path.manifests().zip(evidence).enumerate()
        {
            let pinned = repository.pin(digest.clone());
            let (verdict, report) =
                self.verify_with_report(policy, &pinned, manifest.clone(), evidence, context);
            let verdict = PathVerdict {
                result: verdict.and_then(|verified| {
                    check_revocations(policy, path)?;
                    verified.descend(path, position)
                }),
                digest: digest.clone(),
                report,
            };
            match &verdict.result {
                Err(error) if error.reason != Reason::RevokedDigest => {}
                _ => return verdict,
            }
            refused = Some(match refused {
                Some(before) => before.or_else(verdict),
                None => verdict,
            });
        }
        refused.unwrap_or_else(|| PathVerdict {
            result: Err(error(Reason::Unsigned, path.digest())),
            digest: path.digest().clone(),
            report: Report::default(),
        })
    }
}

impl PathVerdict {
    /// The more specific of two refusals, with the reason of the other.
    fn or_else(self, later: Self) -> Self {
        let (Err(first), Err(second)) = (&self.result, &later.result) else {
            return later;
        };
        let specific = |error: &VerificationError| (error.revoked, error.reason);
        let (mut more, less) = if specific(second) >= specific(first) {
            (later, self)
        } else {
            (self, later)
        };
        if let (Err(more), Err(less)) = (&mut more.result, &less.result) {
            more.details = format!("{}; {} (digest {})", more.details, less.reason, less.digest);
        }
        more
    }
}

impl Verified<Manifest> {
    /// The last manifest of a path, of which this index is the one at `position`.
    fn descend(self, path: &ManifestPath, position: usize) -> Result<Self, VerificationError> {
        let mut below = path.manifests().skip(position + 1);
        below.try_fold(self, |index, (_, manifest)| index.child(manifest.clone()))
    }
}

fn check_revocations(policy: &TrustPolicy, path: &ManifestPath) -> Result<(), VerificationError> {
    let mut manifests = path.manifests();
    match manifests.find(|(digest, manifest)| policy.revokes_manifest(digest, manifest)) {
        Some((digest, _)) => Err(VerificationError {
            revoked: true,
            ..error(Reason::RevokedDigest, digest)
        }),
        None => Ok(()),
    }
}

fn error(reason: Reason, digest: &Digest) -> VerificationError {
    VerificationError {
        reason,
        digest: digest.clone(),
        details: String::new(),
        revoked: false,
    }
}

#[cfg(test)]
mod tests;
