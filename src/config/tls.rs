//! The TLS configuration of a listener, which is compared with that of a newer configuration.

use std::{fmt, sync::Arc};

use rustls::ServerConfig;

use crate::{access::Authorities, oci::Digest};

/// A TLS configuration, and what it was made from. Two of them are equal if their files have the
/// same contents.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// The digests of the files.
    files: Vec<Digest>,
    /// The authorities that issue client certificates, if there are any.
    authorities: Option<Authorities>,
}

impl Tls {
    /// `files`: the contents of all files that `config` was made from, in a fixed order.
    pub(super) fn new<'a>(
        config: Arc<ServerConfig>,
        files: impl IntoIterator<Item = &'a [u8]>,
        authorities: Option<Authorities>,
    ) -> Self {
        let files = files.into_iter().map(Digest::sha256).collect();
        Self {
            config,
            files,
            authorities,
        }
    }

    /// The authorities by which client certificates are verified, if there are any.
    pub fn authorities(&self) -> Option<Authorities> {
        self.authorities
    }

    /// The configuration of connections. Its sessions can't be resumed by any other one, so that
    /// each connection after a change was authenticated by the files of that change.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

impl Eq for Tls {}

// Written by hand: that of rustls depends on the provider of the key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}
