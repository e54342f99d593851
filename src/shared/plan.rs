//! Plans and the lease of the leader, as the engine has them.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// The largest content of a plan.
pub const MAX_PLAN_BYTES: usize = 64 << 10;
/// The largest note of a leader.
pub const MAX_NOTE_BYTES: usize = 1 << 20;
/// The size of the digest of a plan: enough that two contents differ in it.
pub(super) const DIGEST_BYTES: usize = 16;
/// The highest epoch: the scripts compare epochs in floating point, which is exact up to here. A plan
/// never gets there by its changes. If another program writes it, epochs grow no further, and the last
/// writer wins.
pub const MAX_EPOCH: u64 = (1 << 53) - 1;

/// A plan. Only its users know what the content means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPlan {
    /// The number of its changes, from 1 to [`MAX_EPOCH`]. The higher one wins.
    pub epoch: u64,
    /// Of two plans with one epoch, the higher rank wins.
    pub rank: u8,
    /// At most [`MAX_PLAN_BYTES`].
    pub content: Vec<u8>,
}

/// Tells one plan from another without its content. Two plans with one epoch, which two primaries may
/// have got, have different digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanVersion {
    /// See [`StoredPlan::epoch`].
    pub epoch: u64,
    /// The first 16 bytes of the SHA-256 digest of the rank, as one byte, and the content.
    pub digest: [u8; DIGEST_BYTES],
}

/// What the engine has of the plans that a call names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlansRead {
    /// One for each name, in their order.
    pub plans: Vec<PlanRead>,
    /// The clock of the engine after the versions of all plans were read, since 1970. The contents
    /// were read after it, so one of them may be a moment newer.
    pub engine_time: Duration,
}

/// What the engine has of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanRead {
    /// There is no plan.
    Absent,
    /// The plan has the version that the caller knows.
    Unchanged,
    /// The plan has another version, or the caller knows none.
    Plan(StoredPlan),
    /// Another program has changed the key. The text names it, the reason, and what to do.
    Broken(String),
}

/// The result of a write of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanWrite {
    /// The plan as it was written, with its new epoch.
    Written(StoredPlan),
    /// Nothing was written, because of the plan that stands; `None` if there is none.
    Superseded(Option<StoredPlan>),
}

/// The lease of the leader after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// The caller holds it, as it did after its last call. Its note is stored.
    Renewed,
    /// The caller holds it now, with the note that was stored last, which may be empty or its own.
    Taken(Vec<u8>),
    /// Another one holds it.
    Held,
}

impl StoredPlan {
    /// The version of this plan. It hashes the content, which takes some 0.2 ms for the largest:
    /// callers that compare often should keep it.
    pub fn version(&self) -> PlanVersion {
        PlanVersion {
            epoch: self.epoch,
            digest: digest(self.rank, &self.content),
        }
    }
}

/// See [`PlanVersion::digest`].
pub(super) fn digest(rank: u8, content: &[u8]) -> [u8; DIGEST_BYTES] {
    let hash = Sha256::new().chain_update([rank]).chain_update(content);
    let mut digest = [0; DIGEST_BYTES];
    for (byte, of_hash) in digest.iter_mut().zip(hash.finalize()) {
        *byte = of_hash;
    }
    digest
}

/// The epoch of the plan that replaces one with this epoch.
pub(super) fn next_epoch(epoch: u64) -> u64 {
    epoch.saturating_add(1).min(MAX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replicas of different versions compare these digests, so they must not change.
    #[test]
    fn a_version_is_the_epoch_and_the_digest_of_rank_and_content() {
        let version = |epoch, rank, content: &str| {
            let content = content.into();
            let plan = StoredPlan {
                epoch,
                rank,
                content,
            };
            plan.version()
        };
        let one = version(7, 1, "content");
        assert_eq!(one.epoch, 7);
        let digest = u128::from_be_bytes(one.digest);
        assert_eq!(format!("{digest:032x}"), "f57594d639c262944b0de741d88dbe28");
        assert_eq!(one, version(7, 1, "content"));
        for other in [
            version(8, 1, "content"),
            version(7, 2, "content"),
            version(7, 1, "contenu"),
            version(7, 1, ""),
        ] {
            assert_ne!(one, other);
        }
    }
}
