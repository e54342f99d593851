//! Watchers: one task per bundle turns a moving reference into published snapshots.

mod artifact;
mod deltas;
mod expect;
mod expectations;
mod hints;
mod history;
mod metrics;
mod opa_check;
mod persist;
mod pool;
mod refresh;
mod reverify;
mod schedule;
mod tag_choice;
mod trigger;
mod watcher;

pub use artifact::ArtifactOptions;
pub use deltas::{DeltaOptions, Deltas};
pub use expect::{Expect, OnOlder, Order};
pub use metrics::{WatchMetrics, WatcherMetrics};
pub use opa_check::OpaCheck;
pub use pool::VerificationPool;
pub use refresh::{Pipeline, RefreshResult, Restored};
pub use tag_choice::Choice;
pub use watcher::{Siblings, WatchOptions, Watcher};
