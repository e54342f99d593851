//! The registry client and the watcher over real HTTP, against a registry that misbehaves
//! on demand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers too"
)]
#![allow(clippy::print_stdout, reason = "figures, for those who ask for them")]

mod access;
mod access_log;
mod admin;
mod artifacts;
mod attacks;
mod author;
mod cache;
mod cache_folder;
mod collector;
mod command;
mod compatibility;
mod config_files;
mod config_mistakes;
mod conformance;
mod connections;
mod credentials;
mod dependencies;
mod dev;
mod drain;
mod evaluation;
mod evidence;
mod expect;
mod faulty;
mod files;
mod fleet;
mod fleet_command;
mod forge;
mod forward_proxy;
mod frames;
mod gateway;
mod guides;
mod index;
mod layouts;
mod long_poll;
mod max_connections;
mod metrics;
mod mirrors;
mod monitoring;
mod on_withdraw;
mod opa_check;
mod opa_signatures;
mod pacing;
mod page;
mod patterns;
mod policy_change;
mod protocols;
mod quirks;
mod readiness;
mod reads;
mod refresh;
mod refresh_failures;
mod reload;
mod repeats;
mod responses;
mod rollouts;
mod roots;
mod scale;
mod service_manager;
#[path = "../shared/mod.rs"]
mod shared;
mod shells;
mod signatures;
mod signing;
mod soak;
mod staged;
mod status;
mod traces;
mod transfers;
mod tuf;
mod uploads;
mod versions;
mod waiters;
mod webhooks;
mod writes;
