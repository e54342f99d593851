//! Plans and the lease of the leader, as the engine has them.

use std::time::Duration;

/// The largest content of a plan.
pub const MAX_PLAN_BYTES: usize = 64 << 10;
/// The largest note of a leader.
pub const MAX_NOTE_BYTES: usize = 1 << 20;
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

/// What the engine has of the plans that a call names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlansRead {
    /// The plans in the order of the names; `None` where there is none.
    pub plans: Vec<Option<StoredPlan>>,
    /// The clock of the engine after the last plan was read, since 1970.
    pub engine_time: Duration,
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

/// The epoch of the plan that replaces one with this epoch.
pub(super) fn next_epoch(epoch: u64) -> u64 {
    epoch.saturating_add(1).min(MAX_EPOCH)
}
