//! Entry points for the fuzz targets: one for each parser of input from a registry, a token server
//! or a docker configuration. Compiled for fuzzing only.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

use super::{
    challenge::Challenge,
    client, credential_helper, discovery,
    docker_auths::{self, DockerAuths},
    link, referrers_api, retry, token as token_server,
};
use crate::oci::Descriptor;

/// `WWW-Authenticate`: realm, service and scope of the token to request.
pub fn challenge(headers: &[&str]) -> Option<(String, Option<String>, Option<String>)> {
    match Challenge::choose(headers.iter().copied())? {
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => Some((realm, service, scope)),
        Challenge::Basic => None,
    }
}

/// `Link`.
pub fn next_link(header: &str) -> Option<&str> {
    link::next(header)
}

/// `Retry-After`; `None` for a text that is not a valid header.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let value = HeaderValue::from_str(header).ok()?;
    retry::retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), now)
}

/// The answer of a token server.
pub fn token(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    token_server::token_in(body).ok()
}

/// The body of an error.
pub fn error_detail(body: &[u8]) -> String {
    client::error_detail(body)
}

/// A page of tags or of repositories.
pub fn names(body: &[u8]) -> [Option<Vec<String>>; 2] {
    [discovery::tags_in(body), discovery::repositories_in(body)]
}

/// A page of referrers.
pub fn referrers(body: &[u8]) -> Option<Vec<Descriptor>> {
    referrers_api::referrers_in(body).map(|listing| listing.entries)
}

/// A docker configuration: the helper for `host`, and the login in the file.
pub fn docker_config(text: &[u8], host: &str) -> Option<(Option<String>, Option<Login>)> {
    let auths = DockerAuths::parse(text).ok()?;
    let written = auths.login(host, "acme/authz").ok()?;
    Some((auths.helper(host).ok()?, written.map(Login::from)))
}

/// The answer of a credential helper.
pub fn helper_answer(answer: &[u8]) -> Option<Login> {
    credential_helper::parse(answer)
        .ok()
        .flatten()
        .map(Login::from)
}

/// Stored credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// None.
    Anonymous,
    /// User name and password.
    Password(String, String),
    /// A token of either kind.
    Token(String),
}

impl From<docker_auths::Login> for Login {
    fn from(login: docker_auths::Login) -> Self {
        match login {
            docker_auths::Login::Anonymous => Self::Anonymous,
            docker_auths::Login::Password { username, password } => {
                Self::Password(username, password)
            }
            docker_auths::Login::IdentityToken { token, .. }
            | docker_auths::Login::RegistryToken(token) => Self::Token(token),
        }
    }
}
