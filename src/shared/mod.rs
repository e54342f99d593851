//! The state that the replicas of a gateway share, in Valkey or Redis. This module holds the only
//! code that names the `redis` crate.
//!
//! The engine holds two things, whose content is opaque here:
//!
//! - **records**, which are hashes that expire, for a replica that starts or has missed something;
//! - a **log** of the latest changes, a capped stream that each replica follows.
//!
//! A replica that starts takes the end of the log ([`SharedState::end_of_log`]), reads all records
//! ([`SharedState::scan`]), and follows the log from that end ([`SharedState::read_log`]). A write
//! stores its records before it appends to the log, so a replica that does it in this order misses
//! nothing. [`LogRead::Missed`] tells a replica to begin again. It is returned when the entry of a
//! [`LogPosition`] is no longer in the log, which was trimmed, expired or emptied, and when another
//! process answers than before: a restarted engine or a promoted replica may lack the last writes.
//! Then the replica should also write its own records again, since they may be lost.
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
//! +xrevrange +scan +hgetall`.
//!
//! | file | holds |
//! |---|---|
//! | `state` | the calls, their deadline, when a connection is opened |
//! | `batch` | what is written and read |
//! | `commands` | the commands and their replies |
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
    state::SharedState,
};
