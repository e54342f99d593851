//! bundlegate: an OPA bundle service in front of any OCI registry, which serves only
//! what a cosign signature vouches for.
//!
//! Watchers turn a moving reference into an immutable, verified snapshot; the server
//! only ever looks at snapshots.

pub mod bundle;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod oci;
pub mod registry;
pub mod server;
pub mod sign;
pub mod store;
pub mod telemetry;
pub mod verify;
pub mod watch;
