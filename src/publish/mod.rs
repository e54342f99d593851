//! The published view of a bundle: immutable snapshots, the state that clients see, and the status
//! that operators see. No I/O and no task: watchers publish here, and the server reads.

mod delta;
#[cfg(any(test, fuzzing))]
mod fixture;
mod freshness;
mod handle;
mod headers;
mod machine;
mod metrics;
mod publisher;
mod snapshot;
mod state;
mod status;
mod tag_hash;
mod view;

pub use crate::verify::{RootFailure, TrustRootStatus};
pub use delta::{BaseVersion, Delta, FromBase};
pub(crate) use handle::{CheckEnd, StableVersion, Wanted};
pub use handle::{Checked, Handle, Hint};
pub use headers::Headers;
pub(crate) use headers::http1_head;
pub use machine::{Change, Effects, Event, Now, Outdated, Persist, StateMachine};
pub(crate) use metrics::{PublishMetrics, PublisherMetrics};
pub(crate) use publisher::{Publisher, PublisherOptions};
pub use snapshot::{Content, Inputs, Snapshot, Unpublishable, VerificationRecord};
pub(crate) use snapshot::{is_expired, is_intact, tag_of};
pub use state::{
    Failure, FailureClass, OnMissing, Outcome, State, StateKind, Step, Withdrawal, WithdrawnVersion,
};
pub use status::{ChosenTag, FailureStatus, Status, VerdictStatus};
pub use tag_hash::{TagHash, mix_bytes, opaque_tag};
pub use view::{ClientVersion, FallbackStatus, OnWithdraw, Seen, Selection, View, link_fallbacks};

#[cfg(any(test, fuzzing))]
pub(crate) use fixture::serving;
#[cfg(test)]
pub(crate) use fixture::{pending, snapshot};
#[cfg(test)]
pub(crate) use state::tests::same;
