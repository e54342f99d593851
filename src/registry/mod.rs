//! The only code that talks to a registry, which may be a server or an OCI layout folder.
//!
//! [`Registries`] holds the connections. A [`Source`] is one repository to read from, a
//! [`Destination`] one to write to; the other modules use these two. Every read is bounded in
//! bytes and in time, and all content with a digest is verified against it.
//!
//! Layers, from the bottom: `transport` sends HTTP requests, `credentials` reads user names,
//! passwords and tokens, `auth` answers challenges with them, `client` adds retries and redirects, `remote` and `upload` speak the distribution
//! specification.

mod address;
mod auth;
mod auth_error;
mod auth_state;
mod blob_stream;
mod capabilities;
mod certificate;
mod challenge;
mod client;
mod credential_helper;
mod credentials;
mod destination;
mod discovery;
mod docker;
mod docker_auths;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layout;
mod link;
mod listing;
mod metrics;
mod options;
mod payload;
mod progress;
mod referrers;
mod referrers_api;
mod registries;
mod remote;
mod retry;
mod scope;
mod source;
mod tags;
mod token;
mod transport;
mod upload;

pub use blob_stream::BlobStream;
pub use credential_helper::HelperError;
pub use destination::Destination;
pub use docker::{DockerConfig, DockerConfigError, StoredIn};
pub use error::{Class, CredentialSource, RegistryError};
pub use layout::{SourceChange, SourceWatch};
pub use listing::{Listing, Member};
pub use metrics::RegistryMetrics;
pub use options::{
    Credentials, InvalidOptions, Options, ReadLimits, Scheme, Timeouts, TlsTrust, Unlisted,
};
pub use progress::{BlobTransfer, Progress};
pub use referrers::Referrers;
pub use registries::Registries;
pub use source::{Lookup, Resolved, Source, TransferPermit};
