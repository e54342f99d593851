//! Where Prometheus is, and how bundlegate identifies itself there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use rustls::pki_types::CertificateDer;
use url::Url;
use zeroize::Zeroizing;

use super::InvalidOptions;
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

impl Options {
    /// The URL of instant queries.
    ///
    /// # Errors
    /// When the URL is not as [`Options::url`] says.
    pub(super) fn endpoint(&self) -> Result<Url, InvalidOptions> {
        let mut url = self.url.clone();
        if !["http", "https"].contains(&url.scheme()) {
            return Err(InvalidOptions::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidOptions::User);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidOptions::Query);
        }
        url.path_segments_mut()
            .map_err(|()| InvalidOptions::Scheme)?
            .pop_if_empty()
            .extend(["api", "v1", "query"]);
        Ok(url)
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    type Kind = fn(PathBuf) -> Credential;

    fn options(url: &str) -> Options {
        Options {
            url: Url::parse(url).unwrap(),
            credential: None,
            extra_roots: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn the_api_is_below_the_path_of_the_url() {
        for (url, endpoint) in [
            ("http://p:9090", "http://p:9090/api/v1/query"),
            ("http://p:9090/", "http://p:9090/api/v1/query"),
            ("https://p/prometheus", "https://p/prometheus/api/v1/query"),
            ("https://p/prometheus/", "https://p/prometheus/api/v1/query"),
            ("https://p/a%2Fb/0", "https://p/a%2Fb/0/api/v1/query"),
        ] {
            assert_eq!(options(url).endpoint().unwrap().as_str(), endpoint);
        }
    }

    #[test]
    fn a_url_with_more_than_a_path_is_refused() {
        for (url, error) in [
            ("ftp://p", "the URL is neither `http` nor `https`"),
            ("mailto:p", "the URL is neither `http` nor `https`"),
            (
                "http://user:secret@p",
                "the URL has a user; write it to a file",
            ),
            ("http://:secret@p", "the URL has a user; write it to a file"),
            (
                "http://p/?a=b",
                "the URL has a query or a fragment; remove it",
            ),
            (
                "http://p/#a",
                "the URL has a query or a fragment; remove it",
            ),
        ] {
            let refused = options(url).endpoint().unwrap_err();
            assert_eq!(refused.to_string(), error, "{url}");
        }
    }

    #[test]
    fn a_file_has_one_credential_and_no_error_quotes_it() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        let bearer: Kind = Credential::BearerFile;
        let basic: Kind = Credential::BasicFile;
        for (credential, content, header) in [
            (bearer, " secret\n", Ok("Bearer secret")),
            (bearer, "secret secret", Err("has white space or control")),
            (bearer, "secr\u{e9}t", Err("has white space or control")),
            (bearer, "secret\nsecret", Err("has white space or control")),
            (bearer, "\n", Err("is empty")),
            (basic, "user:secret\n", Ok("Basic dXNlcjpzZWNyZXQ=")),
            (basic, "user:a:b", Ok("Basic dXNlcjphOmI=")),
            (basic, "user:", Ok("Basic dXNlcjo=")),
            (basic, "us\u{e9}r:x", Ok("Basic dXPDqXI6eA==")),
            (basic, ":secret", Err("is not one line USER:PASSWORD")),
            (basic, "secret", Err("is not one line USER:PASSWORD")),
            (
                basic,
                "user:secret\nb:secret",
                Err("is not one line USER:PASSWORD"),
            ),
        ] {
            fs::write(&file, content).unwrap();
            match (credential(file.clone()).header(), header) {
                (Ok(value), Ok(wanted)) => {
                    assert_eq!(value.to_str().unwrap(), wanted);
                    assert!(value.is_sensitive());
                }
                (Err(error), Err(wanted)) => assert!(
                    error.contains(wanted) && !error.contains("secret"),
                    "{content:?}: {error}"
                ),
                (value, _) => panic!("{content:?}: {value:?}"),
            }
        }
        fs::remove_file(&file).unwrap();
        assert!(bearer(file).header().unwrap_err().contains("can't be read"));
    }
}
