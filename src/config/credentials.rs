//! `registries.HOST.credentials`.

use std::{env, path::Path};

use super::{files::Base, problem::Problem, raw};
use crate::registry::{Credentials, DockerConfig, Unlisted};

/// The value of `docker_config` for the places where docker's tools look.
const DEFAULT: &str = "default";

/// Reads the credentials of `host`: `username` with `password_file`, or `docker_config`.
pub(super) fn read(
    host: &str,
    raw: raw::Credentials,
    base: Base<'_>,
) -> Result<Credentials, Problem> {
    let missing = |key, message| Err(Problem::new(message).at(key));
    match (raw.docker_config, raw.username, raw.password_file) {
        (Some(file), None, None) => {
            docker_config(host, &file, base).map_err(|problem| problem.at("docker_config"))
        }
        (Some(_), _, _) => Err(Problem::new(
            "either `docker_config`, or `username` and `password_file`; remove one of them",
        )
        .at("docker_config")),
        (None, Some(username), Some(file)) => password_file(username, &file, base),
        (None, Some(_), None) => missing("password_file", "missing; write it"),
        (None, None, Some(_)) => missing("username", "missing; write it"),
        (None, None, None) => {
            let message = "empty; write `username` and `password_file`, or `docker_config`, or \
                           remove the key for anonymous access";
            Err(Problem::new(message))
        }
    }
}

/// Reads the password once, so that a wrong path fails the start and not the first poll.
fn password_file(username: String, file: &Path, base: Base<'_>) -> Result<Credentials, Problem> {
    if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
        let message = "the user name is empty, or has colons or control characters; write another";
        return Err(Problem::new(message).at("username"));
    }
    let at_file = |problem: Problem| problem.at("password_file");
    if base.text(file).map_err(at_file)?.trim().is_empty() {
        let file = file.display();
        return Err(at_file(Problem::new(format!(
            "{file} is empty; write the password to it"
        ))));
    }
    Ok(Credentials::PasswordFile {
        username,
        password_file: base.path(file).map_err(at_file)?,
    })
}

/// Checks that the file has credentials for the host, without running a helper: that may need the
/// network, and its answer can change at any time.
fn docker_config(host: &str, file: &Path, base: Base<'_>) -> Result<Credentials, Problem> {
    let config = if file == Path::new(DEFAULT) {
        DockerConfig::default_locations(|name| env::var_os(name))
    } else if file.starts_with("~") {
        return Err(Problem::new(
            "`~` is not expanded; write the whole path, or `default` for the places where docker \
             looks",
        ));
    } else {
        base.bytes(file)?;
        DockerConfig::new(base.path(file)?)
    };
    config
        .check(host)
        .map_err(|error| Problem::new(error.to_string()))?;
    Ok(Credentials::DockerConfig {
        config,
        unlisted: Unlisted::Error,
    })
}
