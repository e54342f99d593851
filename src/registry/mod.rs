//! The only code that talks to a registry, which may be a server or an OCI layout folder.
//!
//! [`Registries`] holds the connections, and [`LiveRegistries`] follows their options. A [`Source`] is one repository to read from, a
//! [`Destination`] one to write to; the other modules use these two. Every read is bounded in
//! bytes and in time, and all content with a digest is verified against it.
//!
//! Layers, from the bottom: `http_clients` holds the connections, `transport` sends HTTP requests
//! within the limits of `limiter`, `credentials` reads user names, passwords and tokens, `auth`
//! answers challenges with them, `client` adds retries and redirects, `remote` and `upload` speak
//! the distribution specification, and `hosts` decides between the mirrors of a registry and the
//! registry itself.

mod address;
mod auth;
mod auth_error;
mod auth_state;
mod blob_hosts;
mod blob_stream;
mod capabilities;
mod certificate;
mod challenge;
mod client;
mod client_certificate;
mod credential_helper;
mod credentials;
mod deadline;
mod destination;
mod discovery;
mod docker;
mod docker_auths;
mod docker_hub;
mod error;
mod file_state;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
mod hosts;
mod http_clients;
mod layout;
mod limiter;
mod link;
mod listing;
mod live;
mod metrics;
mod options;
mod payload;
mod progress;
mod proxy;
mod referrers;
mod referrers_api;
mod registries;
mod remote;
mod retry;
mod scope;
mod source;
mod tag_list;
mod tags;
mod token;
mod traced;
mod transport;
mod upload;

pub use blob_stream::BlobStream;
pub use client_certificate::{ClientCertificate, ClientCertificateError};
pub use credential_helper::HelperError;
pub use destination::Destination;
pub use docker::{DockerConfig, DockerConfigError, StoredIn};
pub use docker_hub::is_same_registry;
pub use error::{Class, CredentialSource, RegistryError};
pub use file_state::FileState;
pub use layout::{SourceChange, SourceWatch};
pub use listing::{Listing, Member};
pub use live::{LiveRegistries, LiveSource};
pub use metrics::RegistryMetrics;
pub use options::{
    Credentials, InvalidOptions, Options, ReadLimits, Scheme, Timeouts, TlsTrust, Unlisted,
};
pub use progress::{BlobTransfer, Progress};
pub use proxy::{Proxy, ProxyServer};
pub use referrers::Referrers;
pub use registries::Registries;
pub use source::{Lookup, Resolved, Source, TransferPermit};
pub use tag_list::{FailedTagList, TagList};
