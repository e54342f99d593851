//! Staged roll-outs: one task reads and writes the plans of all bundles, counts their clients, and, on the replica
//! that holds the lease, observes the steps. What it decides, it decides by [`crate::rollout`].
//!
//! | file | holds |
//! |---|---|
//! | `sync` | the task: it reads plans, puts them in force and writes them |
//! | `known` | what is known of one bundle's roll-out |
//! | `propose` | what a replica finds by itself: failing clients, versions, distrust |
//! | `lead` | what the replica that holds the lease does |
//! | `operators` | what operators ask for, and what they see |
//! | `start` | what it needs from the start of the gateway on |
//! | `store` | where plans are: the shared state, or this replica alone |
//! | `plan_file` | the plans on disk, for the time after a restart |
//! | `clients` | counting clients |
//! | `checks` | evaluating checks |

mod checks;
mod clients;
mod known;
mod lead;
mod operators;
mod plan_file;
mod propose;
mod start;
mod store;
mod sync;

pub(super) use self::{
    plan_file::PlanFile,
    start::{RolloutStart, restore_plans},
    sync::RolloutSync,
};
