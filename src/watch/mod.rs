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
pub use fallback::{ClientVersion, FallbackStatus, OnWithdraw, Seen, Selection, View, link_fallbacks};
pub use handle::{FailureStatus, Handle, SignerStatus, Status};
pub use opa_check::OpaCheck;
pub use pipeline::{Pipeline, RefreshResult, Restored};
pub use pool::{VerificationPool, VerificationRecord};
pub use snapshot::{Headers, Snapshot, Unpublishable};
pub use state::{Failure, FailureClass, OnMissing, Outcome, State, Step, Withdrawal, WithdrawnVersion, next};
pub use verdict::VerdictStatus;
pub use version::{NotAVersion, Version};
pub use watcher::{WatchOptions, Watcher};
