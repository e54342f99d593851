//! The only code that talks to a registry, be it a server or a folder.
//!
//! [`Registries`] holds the connections; [`Source`] is one repository of one of them, and
//! what everybody else uses. Everything it gives is bounded in bytes and in time, and
//! everything that has a digest is checked against it.

mod auth;
mod blob_stream;
mod challenge;
mod error;
mod http;
mod layout;
mod options;
mod remote;
mod retry;
mod source;

pub use blob_stream::BlobStream;
pub use error::{Class, RegistryError};
pub use http::BadOptions;
pub use options::{Credentials, Options, ReadLimits, Scheme, Timeouts};
pub use source::{Referrers, Registries, Source};
