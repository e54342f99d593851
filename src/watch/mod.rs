//! Watchers: one task per bundle turns a moving reference into snapshots.

mod expect;
mod expectations;
mod fallback;
mod freshness;
mod handle;
mod history;
mod opa_check;
mod persist;
mod pipeline;
mod pool;
mod publisher;
mod reverify;
mod schedule;
mod snapshot;
mod state;
mod verdict;
mod version;
mod watcher;

pub use expect::{Expect, OnOlder, Order};
pub use fallback::{FallbackStatus, Offer, OnWithdraw, Runs, Seen, View, appoint};
pub use handle::{FailureStatus, Handle, SignerStatus, Status};
pub use opa_check::OpaCheck;
pub use pipeline::{Found, Pipeline, Remembered};
pub use pool::{Court, Proof};
pub use snapshot::{Headers, Snapshot, Unpublishable};
pub use state::{Failure, FailureClass, Lost, OnMissing, Outcome, State, Step, Withdrawal, next};
pub use verdict::VerdictStatus;
pub use version::{NotAVersion, Version};
pub use watcher::{Rules, Watcher};
