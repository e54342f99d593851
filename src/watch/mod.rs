//! Watchers: one task per bundle turns a moving reference into snapshots.

mod handle;
mod snapshot;
mod state;

pub use handle::{FailureStatus, Handle, SignerStatus, Status};
pub use snapshot::{Headers, Snapshot, Unpublishable};
pub use state::{Failure, FailureClass, OnMissing, Outcome, State, Step, next};
