//! Where the shared state is, and how bundlegate identifies itself there.

use std::{fmt, io::ErrorKind, path::PathBuf, time::Duration};

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::oci::read_regular;

/// A larger file of a password is the wrong file.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

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
        let Some(file) = &self.password_file else {
            return Ok(None);
        };
        let shown = file.display();
        let bytes = read_regular(file, MAX_PASSWORD_BYTES).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => format!("{shown} is too large; name the right file"),
            _ => format!("{shown} can't be read: {error}; correct the path or its permissions"),
        })?;
        let bytes = Zeroizing::new(bytes);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| format!("{shown} is not UTF-8 text; name the right file"))?;
        match text.trim() {
            "" => Err(format!("{shown} is empty; write the password to it")),
            password => Ok(Some(Zeroizing::new(password.to_owned()))),
        }
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
