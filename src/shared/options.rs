//! Where the shared state is, and how bundlegate identifies itself there.

use std::{fmt, path::PathBuf, time::Duration};

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::oci::read_password;

/// How the shared state is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The servers.
    pub servers: Servers,
    /// Whether connections use TLS, those to sentinels included.
    pub tls: bool,
    /// The number of the database.
    pub database: u32,
    /// The user; `None` for the default user.
    pub username: Option<String>,
    /// The file with the password; white space around it is dropped. It is read for each connection.
    pub password_file: Option<PathBuf>,
    /// Certificates that are trusted for TLS in addition to the system's roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The beginning of all keys; gateways with different prefixes share nothing.
    pub prefix: String,
    /// The longest time that a call takes.
    pub timeout: Duration,
}

/// The servers of the shared state. Only a primary is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Address(Endpoint),
    /// The primary that sentinels name.
    Sentinel {
        /// The name of the primary in the configuration of the sentinels.
        master: String,
        /// The sentinels; at least one.
        nodes: Vec<Endpoint>,
    },
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Options {
    /// The password; `None` if there is none. Blocks.
    ///
    /// # Errors
    /// When the file can't be read or is empty. The text has nothing of the password.
    pub fn password(&self) -> Result<Option<Zeroizing<String>>, String> {
        self.password_file.as_deref().map(read_password).transpose()
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(endpoint) => endpoint.fmt(f),
            Self::Sentinel { master, nodes } => {
                write!(f, "primary `{master}` of the sentinels")?;
                for (index, node) in nodes.iter().enumerate() {
                    write!(f, "{} {node}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shown_with_every_address() {
        let node = |host: &str| Endpoint {
            host: host.to_owned(),
            port: 26379,
        };
        let servers = Servers::Sentinel {
            master: "main".to_owned(),
            nodes: vec![node("s1"), node("::1")],
        };
        assert_eq!(
            servers.to_string(),
            "primary `main` of the sentinels s1:26379, [::1]:26379"
        );
        assert_eq!(Servers::Address(node("a")).to_string(), "a:26379");
    }
}
