//! The fleet view: which client runs which version of which bundle.
//!
//! A client names the version that it runs in the first tag of `If-None-Match`, with every request.
//! The server records that here ([`ClientTable::record_poll`]), together with the versions that it
//! has sent ([`Offer`]) and with what OPA reports by its Status API ([`Report`]). Whether a client
//! enforces the served version follows from these by one pure function ([`state_of`]).
//!
//! | file | holds |
//! |---|---|
//! | `identity` | what makes two requests those of one client |
//! | `table` | all clients, within limits |
//! | `client` | a client: its names, its address, its OPA |
//! | `client_bundle` | what one client runs of one bundle |
//! | `version` | the versions of a bundle by their entity tags |
//! | `report` | what an OPA reports about itself and its bundles, read within limits |
//! | `moves` | how often a client is moved from one version to another |
//! | `matching` | which bundle of this server a reported bundle is |
//! | `state` | the state of a client, and what it follows from |
//! | `view` | counts and lists for operators |
//! | `wire`, `replication` | how replicas tell each other of clients |
//! | `fleet`, `options` | the whole, and its options |
//!
//! A client is recorded only for bundles that it may read. Times are milliseconds since 1970, by the
//! system's clock; they are passed in, so that everything here is a function of its arguments.

mod client;
mod client_bundle;
#[expect(
    clippy::module_inception,
    reason = "the file is named after the type that it holds"
)]
mod fleet;
mod identity;
mod matching;
mod moves;
mod options;
mod replication;
mod report;
mod state;
mod table;
mod version;
mod view;
mod wire;

pub use self::{
    client::{Client, ClientDetails},
    client_bundle::{ClientBundle, ClientError, Offer, Poll, WaitingPoll},
    fleet::Fleet,
    identity::{ClientKey, Identity, IdentitySource, usable_name},
    matching::{Polled, match_bundles},
    moves::{Moves, Sending},
    options::Options,
    replication::{Outgoing, Replication},
    report::{BundleReport, OpaInstance, Report, ReportError, ReportedError},
    state::{ClientState, Expected, Facts, state_of},
    table::ClientTable,
    version::{BundleVersions, Version},
    view::{BundleCounts, BundleView, ClientView, Filter, Page},
    wire::{ClockOffset, Encoded, Field},
};

pub use crate::publish::TagHash;

/// Milliseconds since 1970.
pub type Millis = u64;
