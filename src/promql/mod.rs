//! Where Prometheus is, for the checks of roll-outs, and how bundlegate identifies itself there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use rustls::pki_types::CertificateDer;
use url::Url;
use zeroize::Zeroizing;

use crate::oci::read_password;

/// How Prometheus is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The URL whose path, if any, is a prefix of the API: `http` or `https`, without a user, a query
    /// and a fragment.
    pub url: Url,
    /// The credential; `None` for requests without one.
    pub credential: Option<Credential>,
    /// Certificates that are trusted for TLS in addition to the system's roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The longest time that a query takes, here and in Prometheus.
    pub timeout: Duration,
}

/// A credential in a file, which is read for each query. White space around it is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A bearer token.
    BearerFile(PathBuf),
    /// A line `USER:PASSWORD`.
    BasicFile(PathBuf),
}

impl Credential {
    /// The value of the `Authorization` header, marked as sensitive. Blocks.
    ///
    /// # Errors
    /// When the file can't be read or holds no such credential. The text has nothing of its content.
    pub fn header(&self) -> Result<HeaderValue, String> {
        match self {
            Self::BearerFile(file) => {
                let token = read_password(file)?;
                sensitive("Bearer", &token).ok_or_else(|| {
                    wrong(
                        file,
                        "has white space or control characters within the token",
                    )
                })
            }
            Self::BasicFile(file) => {
                let line = read_password(file)?;
                let is_pair = line.find(':').is_some_and(|at| at > 0);
                if !is_pair || line.chars().any(char::is_control) {
                    return Err(wrong(file, "is not one line USER:PASSWORD"));
                }
                let encoded = Zeroizing::new(BASE64_STANDARD.encode(line.as_bytes()));
                sensitive("Basic", &encoded).ok_or_else(|| wrong(file, "is not usable"))
            }
        }
    }
}

/// A header value of visible ASCII.
fn sensitive(scheme: &str, credential: &str) -> Option<HeaderValue> {
    if !credential.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let text = Zeroizing::new(format!("{scheme} {credential}"));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn wrong(file: &Path, what: &str) -> String {
    format!("{} {what}; name the right file", file.display())
}
