//! Watchers: one task per bundle turns a moving reference into snapshots.

mod handle;
mod pipeline;
mod schedule;
mod snapshot;
mod state;
mod watcher;

pub use handle::{FailureStatus, Handle, SignerStatus, Status};
pub use pipeline::Pipeline;
pub use snapshot::{Headers, Snapshot, Unpublishable};
pub use state::{Failure, FailureClass, OnMissing, Outcome, State, Step, next};
pub use watcher::{Rules, Watcher};
