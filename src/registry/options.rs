//! The options of one registry host: scheme, certificates, credentials, proxy, limits, timeouts and
//! mirrors.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    client_certificate::ClientCertificate, docker::DockerConfig, file_state::FileState,
    proxy::Proxy,
};

/// The options of one registry host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// HTTPS unless plain HTTP is configured; never guessed.
    pub scheme: Scheme,
    /// PEM certificates added to the system's roots.
    pub extra_roots: Vec<u8>,
    /// Whether the registry's certificate is verified.
    pub tls: TlsTrust,
    /// `None` for anonymous access.
    pub credentials: Option<Credentials>,
    /// The certificate by which bundlegate identifies itself, to the registry's own origin only.
    pub client_certificate: Option<ClientCertificate>,
    /// How connections are made.
    pub proxy: Proxy,
    /// Requests at a time. Where the registry does not speak HTTP/2, each takes a connection, so
    /// thousands of bundles that start together would open thousands.
    pub max_concurrent: usize,
    /// The least time between the beginnings of two requests.
    pub request_interval: Option<Duration>,
    /// The deadlines of its requests.
    pub timeouts: Timeouts,
    /// The hosts that are read from before this one, in this order, each with its own options. The
    /// mirrors of a mirror are not asked.
    pub mirrors: Vec<String>,
    /// The state of the files that are read when the registry is accessed ([`Self::files`]), so that
    /// options with other files are other options.
    pub file_state: FileState,
}

/// The default of [`Options::max_concurrent`].
pub(super) const MAX_CONCURRENT: usize = 128;

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Whether the certificate of a registry is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsTrust {
    /// Against the system's roots and `extra_roots`.
    #[default]
    Verified,
    /// Not at all: any host on the network path can answer in the registry's place.
    Unverified,
}

/// Where user name and password come from. Files are read at every use, and helpers are asked again
/// every five minutes and when their answer is refused, so a rotated password needs no restart.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and the file that holds the password.
    PasswordFile {
        /// The user's name.
        username: String,
        /// The file with the password; white space around it is dropped.
        password_file: PathBuf,
    },
    /// Docker's configuration and the credential helpers that it names.
    DockerConfig {
        /// Where it is.
        config: DockerConfig,
        /// What happens to a registry that it does not list.
        unlisted: Unlisted,
    },
    /// User name and password from a prompt or standard input.
    Typed {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
}

/// What happens to a registry that docker's configuration does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It is accessed anonymously, as docker does.
    Anonymous,
    /// Requests fail, because credentials are expected.
    Error,
}

/// The three deadlines of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For establishing the connection, TLS included.
    pub connect: Duration,
    /// The longest pause before and within an answer.
    pub read: Duration,
    /// For the whole request with its retries.
    pub total: Duration,
}

/// The most bytes that are read of each kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// A manifest or index (`limits.manifest`).
    pub manifest: u64,
    /// All signature material of one manifest or index together (`limits.evidence`).
    pub evidence: u64,
    /// A bundle layer (`limits.bundle`).
    pub bundle: u64,
}

/// Options that no HTTP client can be built from.
#[derive(Debug, thiserror::Error)]
#[error("registries.{host}: {reason}")]
pub struct InvalidOptions {
    /// The registry.
    pub host: String,
    /// What is wrong.
    pub reason: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            scheme: Scheme::Https,
            extra_roots: Vec::new(),
            tls: TlsTrust::Verified,
            credentials: None,
            client_certificate: None,
            proxy: Proxy::default(),
            max_concurrent: MAX_CONCURRENT,
            request_interval: None,
            timeouts: Timeouts::default(),
            mirrors: Vec::new(),
            file_state: FileState::default(),
        }
    }
}

impl Options {
    /// The files that are read when the registry is accessed, in a fixed order: those of the
    /// credentials, of the client certificate and of the proxy. Of several that are searched, some
    /// may be missing.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = match &self.credentials {
            Some(Credentials::PasswordFile { password_file, .. }) => vec![password_file],
            Some(Credentials::DockerConfig { config, .. }) => config.files().collect(),
            Some(Credentials::Typed { .. }) | None => Vec::new(),
        };
        if let Some(ClientCertificate { certificate, key }) = &self.client_certificate {
            files.extend([certificate.as_path(), key]);
        }
        if let Proxy::Server(server) = &self.proxy {
            files.extend(server.password_file.as_deref());
        }
        files
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(15),
            total: Duration::from_secs(300),
        }
    }
}

impl Scheme {
    /// The scheme in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PasswordFile { username, .. } | Self::Typed { username, .. } => {
                f.write_str(username)
            }
            Self::DockerConfig { config, .. } => write!(f, "the user in {config}"),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({self})")
    }
}
