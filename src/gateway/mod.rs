//! Composition: watchers, trust roots and server, made from one configuration and changed with it.

mod bundles;
mod fleet_sync;
#[expect(
    clippy::module_inception,
    reason = "the file is named after the type that it holds"
)]
mod gateway;
mod metrics;
mod on_demand;
mod open_files;
mod options;
mod plan;
mod reload;
mod rollouts;
mod signals;
mod staging;
mod supervision;
mod watched;

pub use gateway::Gateway;
pub use options::server_options;
pub use signals::StopSignals;
pub use watched::start_opas;
