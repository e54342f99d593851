//! How to talk to one registry.

use std::{fmt, path::PathBuf, time::Duration};

/// Everything that configuration says about one registry host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// HTTPS unless plain HTTP was written out; never guessed.
    pub scheme: Scheme,
    /// PEM certificates added to the system's roots.
    pub extra_roots: Vec<u8>,
    /// Whether the certificate is looked at.
    pub tls: TlsTrust,
    /// Who we are; `None` is anonymous.
    pub credentials: Option<Credentials>,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Whether a registry must show a certificate that somebody trusted vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsTrust {
    /// It must.
    #[default]
    Verified,
    /// Anybody on the way may answer in its place.
    Unverified,
}

/// Where user name and password are. Files and helpers are asked at every use, so a rotated
/// password needs no restart.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and the file that holds the password.
    PasswordFile {
        /// The user's name.
        username: String,
        /// The file with the password; white space around it is dropped.
        password_file: PathBuf,
    },
    /// Docker's configuration and the credential helpers that it names; what is not in it
    /// is accessed anonymously.
    DockerConfig {
        /// Its `config.json`; none there is as good as an empty one.
        file: PathBuf,
    },
    /// What has just been typed.
    Typed {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
}

/// The three deadlines of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// The longest silence while an answer is due or running.
    pub read: Duration,
    /// The whole request with its retries.
    pub total: Duration,
}

/// How many bytes of what are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// A manifest or index (`limits.manifest`).
    pub manifest: u64,
    /// All signature material of one artifact together (`limits.evidence`).
    pub evidence: u64,
    /// A bundle layer (`limits.bundle`).
    pub bundle: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            scheme: Scheme::Https,
            extra_roots: Vec::new(),
            tls: TlsTrust::Verified,
            credentials: None,
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), read: Duration::from_secs(15), total: Duration::from_secs(300) }
    }
}

impl Scheme {
    /// As it stands in a URL.
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
            Self::PasswordFile { username, .. } | Self::Typed { username, .. } => f.write_str(username),
            Self::DockerConfig { file } => write!(f, "the user in {}", file.display()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({self})")
    }
}
