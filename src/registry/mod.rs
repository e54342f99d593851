//! The only code that talks to a registry, be it a server or a folder.
//!
//! [`Registries`] holds the connections; [`Source`] is one repository of one of them to read
//! from, [`Destination`] one to write to, and what everybody else uses. Everything they give
//! is bounded in bytes and in time, and everything that has a digest is checked against it.

mod address;
mod auth;
mod blob_stream;
mod certificate;
mod challenge;
mod client;
mod destination;
mod discovery;
mod docker;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layout;
mod link;
mod listing;
mod options;
mod payload;
mod remote;
mod retry;
mod scope;
mod source;
mod upload;

pub use blob_stream::BlobStream;
pub use client::BadOptions;
pub use destination::{Destination, Passage, Progress};
pub use docker::{DockerConfig, DockerConfigError, Kept};
pub use error::{Class, Identity, RegistryError};
pub use listing::{Listing, Member};
pub use options::{Credentials, Options, ReadLimits, Scheme, Timeouts, TlsTrust};
pub use source::{Referrers, Registries, Source, TransferTurn};
