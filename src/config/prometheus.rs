//! `prometheus`: where the checks of roll-outs are evaluated.

use std::time::Duration;

use url::Url;

use super::{files::Base, problem::Problem, raw};
use crate::promql::{Credential, Options};

/// The default.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The limits of a timeout: a check waits for it.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// A URL without a user, a query and a fragment.
pub(super) const URL: &str = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\s]+(/[^?#\s]*)?$";
const EXAMPLE: &str = "write one such as \"http://prometheus.example:9090\"";

/// Reads the key; `None` if it is absent.
pub(super) fn read(
    raw: Option<raw::Prometheus>,
    base: Base<'_>,
) -> Result<Option<Options>, Problem> {
    raw.map(|raw| options(raw, base)).transpose()
}

fn options(raw: raw::Prometheus, base: Base<'_>) -> Result<Options, Problem> {
    let url = url(&raw.url).map_err(|problem| problem.at("url"))?;
    let extra_roots = match raw.ca_file {
        Some(_) if url.scheme() == "http" => {
            let message = "`url` is not https; remove this key, or write https there";
            return Err(Problem::new(message).at("ca_file"));
        }
        Some(file) => base
            .root_store(&file)
            .and_then(|_| base.certificates(&file))
            .map_err(|problem| problem.at("ca_file"))?,
        None => Vec::new(),
    };
    let credential = match (raw.bearer_token_file, raw.basic_file) {
        (Some(_), Some(_)) => {
            let message = "either `bearer_token_file` or `basic_file`; remove one of them";
            return Err(Problem::new(message).at("basic_file"));
        }
        (Some(file), None) => Some(("bearer_token_file", file)),
        (None, Some(file)) => Some(("basic_file", file)),
        (None, None) => None,
    };
    let credential = credential.map(|(key, file)| {
        let credential = base.path(&file).and_then(|path| {
            // Watched like the other files.
            base.text(&file)?;
            checked(match key {
                "basic_file" => Credential::BasicFile(path),
                _ => Credential::BearerFile(path),
            })
        });
        credential.map_err(|problem| problem.at(key))
    });
    let timeout = raw.timeout.map_or(Ok(TIMEOUT), |timeout| {
        timeout.at_least(MIN_TIMEOUT, "10s")?;
        timeout.at_most(MAX_TIMEOUT, "a check waits for it")
    });
    Ok(Options {
        url,
        credential: credential.transpose()?,
        extra_roots,
        timeout: timeout.map_err(|problem| problem.at("timeout"))?,
    })
}

/// The file is read once, so that a wrong one fails the start and not the first query.
fn checked(credential: Credential) -> Result<Credential, Problem> {
    match credential.header() {
        Ok(_) => Ok(credential),
        Err(reason) => Err(Problem::new(reason)),
    }
}

/// Parses the URL. No error quotes it: it may have a password.
fn url(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text)
        .map_err(|error| Problem::new(format!("not a URL ({error}); {EXAMPLE}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Problem::new(format!(
            "neither `http` nor `https`; {EXAMPLE}"
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let message = "a password in the configuration can be read by everyone who can read the \
                       file; remove the user from the URL, and write `basic_file`";
        return Err(Problem::new(message));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Problem::new(format!(
            "the URL has a query or a fragment; {EXAMPLE}"
        )));
    }
    Ok(url)
}
