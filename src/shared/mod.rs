//! The state that the replicas of a gateway share, in Valkey or Redis. This module holds the only
//! code that names the `redis` crate.
//!
//! The engine holds four things, whose content is opaque here:
//!
//! - **records**, which are hashes that expire, for a replica that starts or has missed something;
//! - a **log** of the latest changes, a capped stream that each replica follows;
//! - **plans**, which do not expire, and of which each change is made by one replica;
//! - a **lease**, which one replica holds at a time, with a note for the next holder.
//!
//! A replica that starts takes the end of the log ([`SharedState::end_of_log`]), reads all records
//! ([`SharedState::scan`]), and follows the log from that end ([`SharedState::read_log`]). A write
//! stores its records before it appends to the log, so a replica that does it in this order misses
//! nothing. [`LogRead::Missed`] tells a replica to begin again. It is returned when the entry of a
//! [`LogPosition`] is no longer in the log, which was trimmed, expired or emptied, and when another
//! process answers than before: a restarted engine or a promoted replica may lack the last writes.
//! Then the replica should also write its own records again, since they may be lost.
//!
//! A plan has an **epoch**, which grows with each change. A change names the epoch that it replaces
//! and fails if the engine has another one ([`SharedState::replace_plan`]). A replica that knows a
//! higher epoch than the engine, which has lost data, writes its plan again
//! ([`SharedState::restore_plan`]). Of two plans with one epoch, which two primaries may have got
//! during a failover, the higher **rank** wins. A former primary whose connections are still open
//! answers reads with old plans; the epoch shows it.
//!
//! A reader names the [version](PlanVersion) that it knows of each plan, and gets only the contents
//! that have changed ([`SharedState::read_plans`]). A plan that another program has damaged is
//! reported in its place and affects no other one.
//!
//! Changes of plans and of the lease are scripts, sent with their text, so that they need nothing
//! that a new primary may lack. After an error, a change of a plan may have happened or not; see
//! [`SharedState::replace_plan`].
//!
//! Everything here can be lost, and nothing in it can make a bundle servable.
//!
//! # Availability
//!
//! Every call returns within [`Options::timeout`], whatever the engine does. There is one
//! connection, opened by the first call that needs it; calls use it one after the other. While the
//! engine fails, calls open a new connection at growing intervals of at most a second; those in
//! between fail at once with the last error. Each attempt resolves names, reads the password and, with
//! sentinels, asks for the primary again, so a failover or a new password needs no restart.
//!
//! # Access
//!
//! All keys begin with the [prefix](Options::prefix) in braces, so they share a hash slot. These
//! permissions suffice: `~{bundlegate}:* +info +select +time +hset +pexpire +xadd +xrange
//! +xrevrange +scan +hgetall +hmget +eval +get +set`.
//!
//! | key | type | expires after |
//! |---|---|---|
//! | `{bundlegate}:record:KEY` | hash | [`Batch::ttl`] |
//! | `{bundlegate}:log` | stream | a day without writes |
//! | `{bundlegate}:plan:NAME` | hash: `epoch`, `rank`, `digest`, `content` | – |
//! | `{bundlegate}:lead` | string: the holder | the time that the holder asks for |
//! | `{bundlegate}:lead-note` | string | a day without a renewal of the lease |
//!
//! | file | holds |
//! |---|---|
//! | `state` | the calls, their deadline, when a connection is opened |
//! | `batch` | records and messages, as they are written and read |
//! | `commands` | the commands for them, and their replies |
//! | `plan` | plans and the lease |
//! | `plan_commands`, `lua` | the commands and scripts for them, and their replies |
//! | `connection` | one connection: TCP, TLS, authentication, the role of the server |
//! | `sentinel` | finding the primary |
//! | `reply_limit` | the largest reply |
//! | `health` | whether the state is reachable, in the log and the metrics |
//! | `options`, `error`, `metrics` | addresses and credentials, errors, what is counted |

mod batch;
mod commands;
mod connection;
mod error;
mod health;
mod metrics;
mod options;
mod plan;
mod plan_commands;
mod reply_limit;
mod sentinel;
mod state;

pub use self::{
    batch::{
        Batch, Cursor, LogPosition, LogRead, MAX_BATCH_BYTES, MAX_MESSAGE_BYTES, Page, Record,
        Written,
    },
    commands::MIN_LOG_LENGTH,
    error::SharedError,
    metrics::SharedMetrics,
    options::{Endpoint, Options, Servers},
    plan::{
        Lease, MAX_EPOCH, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanRead, PlanVersion, PlanWrite,
        PlansRead, StoredPlan,
    },
    state::SharedState,
};
