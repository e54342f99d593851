//! The published view of a bundle: immutable snapshots, the state that clients see, and the status
//! that operators see. No I/O and no task: watchers publish here, and the server reads.

mod freshness;
mod handle;
mod machine;
mod metrics;
mod publisher;
mod snapshot;
mod state;
mod status;
mod view;

pub(crate) use handle::{CheckEnd, Wanted};
pub use handle::{Checked, Handle, Hint};
pub use machine::{Change, Effects, Event, Now, Outdated, Persist, StateMachine};
pub(crate) use metrics::{PublishMetrics, PublisherMetrics};
pub(crate) use publisher::{Publisher, PublisherOptions};
pub use snapshot::{Content, Headers, Inputs, Snapshot, Unpublishable, VerificationRecord};
pub(crate) use snapshot::{is_expired, is_intact, tag_of};
pub use state::{
    Failure, FailureClass, OnMissing, Outcome, State, StateKind, Step, Withdrawal, WithdrawnVersion,
};
pub use status::{ChosenTag, FailureStatus, Status, VerdictStatus};
pub use view::{ClientVersion, FallbackStatus, OnWithdraw, Seen, Selection, View, link_fallbacks};

#[cfg(test)]
pub(crate) use publisher::tests::pending;
#[cfg(test)]
pub(crate) use state::tests::{same, snapshot};
