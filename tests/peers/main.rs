//! The product's program among the real ones: OPA, registries, cosign, oras.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers too"
)]
#![allow(
    clippy::print_stdout,
    reason = "measured figures are told, not asserted"
)]

mod airgap;
mod archives;
mod artifacts;
mod builds;
mod clients;
mod cold_clients;
mod connections;
mod cosign;
mod crash;
mod credentials;
mod dashboard;
mod deltas;
mod deploy;
mod dev;
mod evaluation;
mod expect;
mod fleet;
mod interop;
mod keyless;
mod keys;
mod logins;
mod matrix;
mod mirrors;
mod notifications;
mod opa_check;
mod outages;
mod page;
mod policy_change;
mod prometheus;
mod promql;
mod pushes;
mod quirks;
mod readme;
mod refusals;
mod reload;
mod replicas;
mod resign;
mod rolling_restart;
mod rollouts;
mod session;
mod setups;
#[path = "../shared/mod.rs"]
mod shared;
mod shared_state;
mod shells;
mod sigstore;
mod support;
mod token_auth;
mod traces;
#[path = "../it/tuf.rs"]
#[allow(dead_code, reason = "its faults are for `it`")]
mod tuf;
mod verdicts;
mod versions;
mod webhooks;
mod yaml;
