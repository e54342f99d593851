//! `bundlegate login` and `bundlegate logout`.

use std::io::{IsTerminal as _, Read as _, Write as _, stderr, stdin};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{
    eprint,
    flags::{RegistryFlags, docker_config},
    interruptible,
};
use crate::{
    oci::Repository,
    registry::{Credentials, DockerConfig, StoredIn},
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate login ghcr.io                                        prompts for name and password
  echo \"$TOKEN\" | bundlegate login ghcr.io -u robot --password-stdin

The credentials are stored where docker stores them: with the credential helper that
~/.docker/config.json (or the one in DOCKER_CONFIG) names, or else in that file. Credentials of
`docker login` are used as well.";

pub(super) const LOGOUT_EXAMPLES: &str = "Example:
  bundlegate logout ghcr.io";

/// The maximum length of a password on standard input, in bytes.
const PASSWORD_LIMIT: u64 = 1 << 20;

/// Arguments of `login`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The registry: HOST or HOST:PORT.
    #[arg(value_name = "HOST", value_parser = host)]
    host: String,
    /// User name; default: prompt for it.
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub(super) struct LogoutOptions {
    /// The registry: HOST or HOST:PORT.
    #[arg(value_name = "HOST", value_parser = host)]
    host: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let config = docker_config_or_error()?;
    let Options {
        host,
        username,
        password_stdin,
        registry,
    } = options;
    let (username, password) =
        spawn_blocking(move || read_credentials(username, password_stdin)).await??;
    let cli_config = registry.cli_config()?;
    let login = Credentials::Typed {
        username: username.clone(),
        password: password.to_string(),
    };
    // Check the given credentials, not those of the configuration.
    let mut cli_config = cli_config;
    if let Some(options) = cli_config
        .as_mut()
        .and_then(|cli_config| cli_config.registries.get_mut(&host))
    {
        options.credentials = None;
    }
    let registries =
        registry.registries_as(cli_config.as_ref(), &[(&host, &registry)], Some(login))?;
    interruptible(registries.check_credentials(&host)).await??;
    match config.store(&host, &username, &password).await? {
        StoredIn::Helper(helper) => eprint(&format!(
            "logged in to {host}; docker-credential-{helper} stores the password"
        )),
        StoredIn::File(file) => {
            eprint(&format!(
                "logged in to {host}; the password is stored in {}, readable only by you",
                file.display()
            ));
        }
    }
    Ok(())
}

pub(super) async fn logout(options: LogoutOptions) -> anyhow::Result<()> {
    let host = options.host;
    match docker_config_or_error()?.erase(&host).await? {
        true => eprint(&format!("logged out of {host}")),
        false => eprint(&format!("{host}: not logged in")),
    }
    Ok(())
}

fn docker_config_or_error() -> anyhow::Result<DockerConfig> {
    docker_config()
        .context("credentials: no home folder (HOME is unset); name a folder with DOCKER_CONFIG")
}

/// Reads or prompts for user name and password. Blocks.
fn read_credentials(
    username: Option<String>,
    password_stdin: bool,
) -> anyhow::Result<(String, Zeroizing<String>)> {
    if !password_stdin && !stdin().is_terminal() {
        bail!("password: no terminal to prompt on; use --username and --password-stdin");
    }
    let username = username.map_or_else(prompt_username, Ok)?;
    if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
        bail!("user name: empty, or with colons or control characters; enter another");
    }
    let password = if password_stdin {
        read_password()?
    } else {
        prompt_password(&username)?
    };
    if password.is_empty() {
        bail!("password: empty; enter one");
    }
    Ok((username, password))
}

fn prompt_username() -> anyhow::Result<String> {
    write!(stderr(), "Username: ").and_then(|()| stderr().flush())?;
    let mut name = String::new();
    stdin().read_line(&mut name).context("user name")?;
    Ok(name.trim().to_owned())
}

fn prompt_password(username: &str) -> anyhow::Result<Zeroizing<String>> {
    rpassword::prompt_password(format!("Password for {username}: "))
        .map(Zeroizing::new)
        .context("password")
}

fn read_password() -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    stdin()
        .take(PASSWORD_LIMIT)
        .read_to_string(&mut text)
        .context("password from standard input")?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\n', '\r']).to_owned(),
    ))
}

/// Parses `host[:port]`, the first part of a reference.
fn host(text: &str) -> Result<String, String> {
    let bare = text
        .split_once("://")
        .map_or(text, |(_, rest)| rest)
        .trim_end_matches('/');
    if bare != text || bare.contains('/') {
        let bare = bare.split('/').next().unwrap_or(bare);
        return Err(format!(
            "name the registry by host and port only; write {bare}"
        ));
    }
    match format!("{text}/x:x").parse::<crate::oci::Reference>() {
        Ok(reference) => match reference.repository() {
            Repository::Registry { host, .. } if host == text => Ok(text.to_owned()),
            _ => Err(format!("{text:?} is not a HOST or HOST:PORT")),
        },
        Err(_) => Err(format!(
            "{text:?} is not a HOST or HOST:PORT such as ghcr.io or registry.lan:5000"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_host_and_not_a_url() {
        assert_eq!(host("registry.lan:5000").unwrap(), "registry.lan:5000");
        assert!(
            host("https://ghcr.io/")
                .unwrap_err()
                .ends_with("write ghcr.io")
        );
        assert!(host("ghcr.io/acme").unwrap_err().ends_with("write ghcr.io"));
        assert!(host("ghcr").is_err());
        assert!(host("").is_err());
    }
}
