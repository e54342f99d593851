//! `bundlegate login` and `bundlegate logout`.

use std::io::{IsTerminal as _, Read as _, Write as _, stderr, stdin};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{
    flags::{RegistryFlags, docker_config},
    interruptible, tell,
};
use crate::{
    oci::Repository,
    registry::{Credentials, DockerConfig, StoredIn},
};

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate login ghcr.io                                        asks for name and password
  echo \"$TOKEN\" | bundlegate login ghcr.io -u robot --password-stdin

The credentials go where docker's go: to the helper that ~/.docker/config.json (or the one in
DOCKER_CONFIG) names, else into that file. What `docker login` stored is used, too.";

pub(super) const LOGOUT_EXAMPLES: &str = "Example:
  bundlegate logout ghcr.io";

/// A password is longer than this only by mistake.
const PASSWORD_LIMIT: u64 = 1 << 20;

/// How to run `login`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The registry: HOST or HOST:PORT.
    #[arg(value_name = "HOST", value_parser = host)]
    host: String,
    /// The user's name; asked for where it is missing.
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

/// How to run `logout`.
#[derive(Debug, Args)]
pub(super) struct LogoutOptions {
    /// The registry: HOST or HOST:PORT.
    #[arg(value_name = "HOST", value_parser = host)]
    host: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let config = home()?;
    let Options { host, username, password_stdin, registry } = options;
    let (username, password) = spawn_blocking(move || ask(username, password_stdin)).await??;
    let access = registry.access()?;
    let login = Credentials::Typed { username: username.clone(), password: password.to_string() };
    // The configuration's own credentials are not what is being tried.
    let mut access = access;
    if let Some(options) = access.as_mut().and_then(|access| access.registries.get_mut(&host)) {
        options.credentials = None;
    }
    let registries = registry.registries_as(access.as_ref(), &[(&host, &registry)], Some(login))?;
    interruptible(registries.check_credentials(&host)).await??;
    match config.store(&host, &username, &password).await? {
        StoredIn::Helper(helper) => {
            tell(&format!("logged in to {host}; docker-credential-{helper} keeps the password"))
        }
        StoredIn::File(file) => {
            tell(&format!("logged in to {host}; the password is in {}, readable by you alone", file.display()));
        }
    }
    Ok(())
}

pub(super) async fn logout(options: LogoutOptions) -> anyhow::Result<()> {
    let host = options.host;
    match home()?.erase(&host).await? {
        true => tell(&format!("logged out of {host}")),
        false => tell(&format!("{host}: nobody was logged in")),
    }
    Ok(())
}

fn home() -> anyhow::Result<DockerConfig> {
    docker_config().context("credentials: there is no home folder; name a folder with DOCKER_CONFIG")
}

/// Blocks on whoever types.
fn ask(username: Option<String>, password_stdin: bool) -> anyhow::Result<(String, Zeroizing<String>)> {
    if !password_stdin && !stdin().is_terminal() {
        bail!("password: there is no terminal to ask at; use --username and --password-stdin");
    }
    let username = username.map_or_else(ask_name, Ok)?;
    if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
        bail!("user name: it is not empty and has neither colons nor control characters; write another");
    }
    let password = if password_stdin { piped()? } else { typed(&username)? };
    if password.is_empty() {
        bail!("password: it is empty; write one");
    }
    Ok((username, password))
}

fn ask_name() -> anyhow::Result<String> {
    write!(stderr(), "Username: ").and_then(|()| stderr().flush())?;
    let mut name = String::new();
    stdin().read_line(&mut name).context("user name")?;
    Ok(name.trim().to_owned())
}

fn typed(username: &str) -> anyhow::Result<Zeroizing<String>> {
    rpassword::prompt_password(format!("Password for {username}: ")).map(Zeroizing::new).context("password")
}

fn piped() -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    stdin().take(PASSWORD_LIMIT).read_to_string(&mut text).context("password from standard input")?;
    Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// `host[:port]`, such as a reference begins with.
fn host(text: &str) -> Result<String, String> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
    if bare != text || bare.contains('/') {
        let bare = bare.split('/').next().unwrap_or(bare);
        return Err(format!("a registry is named by host and port alone; write {bare}"));
    }
    match format!("{text}/x:x").parse::<crate::oci::Reference>() {
        Ok(reference) => match reference.repository() {
            Repository::Registry { host, .. } if host == text => Ok(text.to_owned()),
            _ => Err(format!("{text:?} is no HOST or HOST:PORT")),
        },
        Err(_) => Err(format!("{text:?} is no HOST or HOST:PORT such as ghcr.io or registry.lan:5000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_host_and_not_a_url() {
        assert_eq!(host("registry.lan:5000").unwrap(), "registry.lan:5000");
        assert!(host("https://ghcr.io/").unwrap_err().ends_with("write ghcr.io"));
        assert!(host("ghcr.io/acme").unwrap_err().ends_with("write ghcr.io"));
        assert!(host("ghcr").is_err());
        assert!(host("").is_err());
    }
}
