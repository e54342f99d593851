//! Composition: watchers, trust roots and server, made from one configuration and changed with it.

#[expect(clippy::module_inception, reason = "the file is named after the type that it holds")]
mod gateway;
mod open_files;
mod reload;
mod signals;

pub use gateway::{Gateway, checkers, server_options};
pub use signals::StopSignals;
