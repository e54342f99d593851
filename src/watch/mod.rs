//! Watchers: one task per bundle turns a moving reference into snapshots.

mod board;
mod expect;
mod fallback;
mod freshness;
mod handle;
mod history;
mod pipeline;
mod schedule;
mod scribe;
mod snapshot;
mod state;
mod version;
mod watcher;

pub use expect::{Expect, OnOlder, Order};
pub use fallback::OnWithdraw;
pub use handle::{FailureStatus, Handle, SignerStatus, Status};
pub use pipeline::{Found, Pipeline, Remembered};
pub use snapshot::{Headers, Snapshot, Unpublishable};
pub use state::{Failure, FailureClass, Lost, OnMissing, Outcome, State, Step, Withdrawal, next};
pub use version::{NotAVersion, Version};
pub use watcher::{Rules, Watcher};
