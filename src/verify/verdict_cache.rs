//! A cache of successful verifications.

use std::{fmt, sync::Arc};

use moka::sync::Cache;

use super::{
    evidence::Evidence,
    outcome::{Signer, Validity, VerificationContext, VerificationError},
    policy::TrustPolicy,
    report::Report,
    verified::Verified,
};
use crate::oci::{Digest, Manifest, PinnedReference};

/// The total weight of the entries, approximately in bytes.
const CAPACITY: u64 = 16 << 20;
/// The weight of an entry without its texts.
const OVERHEAD: usize = 512;

/// Caches successful verifications for as long as they are valid. Failures are not cached: a later
/// verification may succeed, and the watcher retries. Cheap to clone.
///
/// An entry is found only by the same repository, digest, evidence and policy revision, and the
/// revision covers the content of every trust root.
#[derive(Clone)]
pub struct VerdictCache {
    accepted: Cache<CacheKey, Arc<CachedVerdict>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CacheKey {
    artifact: String,
    evidence: String,
    revision: String,
}

#[derive(Debug)]
struct CachedVerdict {
    signers: Vec<Signer>,
    validity: Validity,
    /// The entry is not valid before this time, in case the clock is set back.
    reached: jiff::Timestamp,
    report: Report,
}

impl Default for VerdictCache {
    fn default() -> Self {
        let weigh = |key: &CacheKey, cached: &Arc<CachedVerdict>| {
            let texts: usize = cached
                .report
                .signatures
                .iter()
                .flat_map(|one| &one.checks)
                .map(|one| one.detail.len())
                .sum();
            let skipped: usize = cached.report.skipped.iter().map(String::len).sum();
            u32::try_from(OVERHEAD + key.artifact.len() + texts + skipped).unwrap_or(u32::MAX)
        };
        Self {
            accepted: Cache::builder()
                .max_capacity(CAPACITY)
                .weigher(weigh)
                .build(),
        }
    }
}

impl VerdictCache {
    /// [`Verified::verify_with_report`] with this cache in front.
    ///
    /// # Errors
    /// The most specific reason for which no candidate counted.
    pub fn verify_with_report(
        &self,
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
        context: VerificationContext,
    ) -> (Result<Verified<Manifest>, VerificationError>, Report) {
        // An unsigned policy costs nothing to apply, and evidence that can't be serialized has no
        // key.
        let (Some(_), Ok(bytes)) = (policy.requirements(), evidence.to_bytes()) else {
            return Verified::verify_with_report(policy, pinned, manifest, evidence, context);
        };
        let key = CacheKey {
            artifact: pinned.to_string(),
            evidence: Digest::sha256(&bytes).to_string(),
            revision: policy.revision().to_string(),
        };
        if let Some(cached) = self
            .accepted
            .get(&key)
            .filter(|cached| cached.holds(context))
            && let Some(verified) =
                Verified::from_cache(policy, pinned, &manifest, &cached.signers, cached.validity)
        {
            return (Ok(verified), cached.report.clone());
        }
        let (verdict, report) =
            Verified::verify_with_report(policy, pinned, manifest, evidence, context);
        if let Ok(verified) = &verdict {
            let cached = CachedVerdict {
                signers: verified.signers().to_vec(),
                validity: verified.validity(),
                reached: context.now,
                report: report.clone(),
            };
            self.accepted.insert(key, Arc::new(cached));
        }
        (verdict, report)
    }
}

impl CachedVerdict {
    fn holds(&self, context: VerificationContext) -> bool {
        self.reached <= context.now && self.validity.holds(context.now)
    }
}

impl fmt::Debug for VerdictCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerdictCache")
            .field("entries", &self.accepted.entry_count())
            .finish()
    }
}
