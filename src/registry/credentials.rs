//! Reads the credentials of one registry, from where [`Credentials`] says.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::header::HeaderValue;
use tokio::task::spawn_blocking;

use super::{
    auth_error::AuthError,
    credential_helper::HelperCache,
    docker::DockerConfigError,
    docker_auths::Login,
    error::CredentialSource,
    options::{Credentials, Unlisted},
};
use crate::oci::read_regular;

/// A password or token is longer than this only by mistake.
const MAX_PASSWORD_BYTES: u64 = 1 << 20;

/// Reads credentials at every use, so that they may be rotated. Only the answers of helpers are
/// kept, for a bounded time.
#[derive(Debug)]
pub(super) struct CredentialReader {
    host: String,
    credentials: Option<Credentials>,
    helpers: HelperCache,
    /// Whether docker's configuration has credentials for this registry.
    logged_in: AtomicBool,
}

impl CredentialReader {
    pub(super) fn new(host: String, credentials: Option<Credentials>) -> Self {
        Self {
            host,
            credentials,
            helpers: HelperCache::default(),
            logged_in: AtomicBool::default(),
        }
    }

    /// The kind of credentials in use, for an error message.
    pub(super) fn source(&self) -> CredentialSource {
        let logged_in = self.logged_in.load(Ordering::Relaxed);
        match &self.credentials {
            None => CredentialSource::Anonymous,
            Some(Credentials::PasswordFile { .. }) => CredentialSource::Configured,
            Some(Credentials::Typed { .. }) => CredentialSource::Typed,
            Some(Credentials::DockerConfig { unlisted, .. }) => match unlisted {
                Unlisted::Error => CredentialSource::Configured,
                Unlisted::Anonymous if logged_in => CredentialSource::LoggedIn,
                Unlisted::Anonymous => CredentialSource::NotLoggedIn,
            },
        }
    }

    /// The current credentials for `repository`, which is empty for a request to none. `refused`
    /// are credentials that the registry does not accept any more: a helper is asked again.
    pub(super) async fn read(
        &self,
        repository: &str,
        refused: Option<&Login>,
    ) -> Result<Login, AuthError> {
        match &self.credentials {
            None => Ok(Login::Anonymous),
            Some(Credentials::Typed { username, password }) => Ok(Login::Password {
                username: username.clone(),
                password: password.clone(),
            }),
            Some(Credentials::PasswordFile {
                username,
                password_file,
            }) => Ok(Login::Password {
                username: username.clone(),
                password: read_password(password_file).await?,
            }),
            Some(Credentials::DockerConfig { config, unlisted }) => {
                let found = config.find(&self.host, repository, &self.helpers, refused);
                let found = found.await.map_err(|error| AuthError::Credentials {
                    reason: error.to_string(),
                    transient: matches!(error, DockerConfigError::Helper { .. }),
                })?;
                self.logged_in.store(found.is_some(), Ordering::Relaxed);
                match (found, unlisted) {
                    (Some(login), _) => Ok(login),
                    (None, Unlisted::Anonymous) => Ok(Login::Anonymous),
                    (None, Unlisted::Error) => Err(AuthError::credentials(format!(
                        "none in {config}; log in with `docker login {}`, or remove docker_config \
                         for anonymous access",
                        self.host
                    ))),
                }
            }
        }
    }
}

impl Login {
    /// The `Basic` header of a user name and password; `None` without a password.
    pub(super) fn basic(&self) -> Option<Result<HeaderValue, AuthError>> {
        match self {
            Self::Password { username, password } => Some(basic(username, password)),
            Self::IdentityToken {
                username, password, ..
            } if !password.is_empty() => Some(basic(username, password)),
            Self::IdentityToken { .. } | Self::RegistryToken(_) | Self::Anonymous => None,
        }
    }
}

/// A `Basic` header.
pub(super) fn basic(username: &str, password: &str) -> Result<HeaderValue, AuthError> {
    let pair = STANDARD.encode(format!("{username}:{password}"));
    secret_header(&format!("Basic {pair}"))
}

/// A header value that `Debug` does not print.
pub(super) fn secret_header(text: &str) -> Result<HeaderValue, AuthError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        AuthError::credentials("they contain characters that a header can't carry".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read_password(file: &Path) -> Result<String, AuthError> {
    let path = file.to_owned();
    let read = spawn_blocking(move || read_regular(&path, MAX_PASSWORD_BYTES)).await;
    let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
    let text = read.and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
    });
    let file = file.display();
    let text =
        text.map_err(|error| AuthError::credentials(format!("{file} can't be read: {error}")))?;
    match text.trim() {
        // A file is empty for a moment while it is written in place.
        "" => Err(AuthError::credentials(format!(
            "{file} is empty; write the password to it"
        ))),
        password => Ok(password.to_owned()),
    }
}
