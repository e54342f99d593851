//! The configuration file: `raw` is the file as written, [`Config`] the checked values, and
//! the only way from one to the other is to load the file. Code that has a [`Config`] needs no
//! further checks.
//!
//! Every error is one line that names the key, the problem and a fix.
//!
//! [`schema`] describes the file for editors and CI. It is made from `raw` and from the constants of
//! the parser, so a new key has its description in one place.

mod admin;
mod bundles;
mod certificates;
mod cli_config;
mod client_credential;
mod clients;
mod credentials;
mod delta;
mod difference;
mod errors;
mod expect;
mod files;
mod fleet;
mod key_path;
mod keys;
mod limits;
mod load;
mod log;
mod name_matcher;
mod opa_check;
mod opa_signature;
mod patterns;
mod problem;
mod prometheus;
mod proxy;
mod raw;
mod reader;
mod registries;
mod rollouts;
mod schema;
mod server;
mod shared;
mod tag_rule;
mod tls;
mod token_file;
mod tracing;
mod tree;
mod trust;
mod values;
mod webhooks;

#[cfg(test)]
mod tests;

pub use bundles::BundleConfig;
pub use cli_config::CliConfig;
pub use client_credential::{Credential, Jwks, Secret};
pub use clients::ClientConfig;
pub use errors::ConfigText;
pub use files::MAX_FILE_BYTES as MAX_BYTES;
pub use limits::{Cache, Limits};
pub use load::Config;
pub use log::Log;
pub use opa_signature::ConfigWarning;
pub use patterns::PatternConfig;
pub use problem::ConfigError;
pub use rollouts::RolloutChoice;
pub use schema::schema;
pub use server::{Drain, LongPoll, Server};
pub use shared::SharedConfig;
pub use tls::Tls;
pub use token_file::TokenFile;
pub use trust::{CurrentRoot, Policies};
pub use values::Size;
