//! `shared`: the state that replicas share.

use std::time::Duration;

use url::{Host, Url};

use super::{files::Base, limits::Cache, problem::Problem, raw};
use crate::shared::{Endpoint, Options, Servers};

/// What replicas share, and for how long they do without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedConfig {
    /// Nothing: there is one replica, which keeps the plans of roll-outs in its cache folder.
    Local {
        /// See [`SharedConfig::grace`].
        grace: Duration,
    },
    /// The fleet view and the plans of roll-outs, in an engine.
    Engine {
        /// How the engine is reached.
        options: Options,
        /// See [`SharedConfig::grace`].
        grace: Duration,
    },
}

impl SharedConfig {
    /// How the engine is reached; `None` without one.
    pub fn engine(&self) -> Option<&Options> {
        match self {
            Self::Local { .. } => None,
            Self::Engine { options, .. } => Some(options),
        }
    }

    /// How long the plans of roll-outs can't be read before clients whose version this replica does not know
    /// are given another one.
    pub fn grace(&self) -> Duration {
        match self {
            Self::Local { grace } | Self::Engine { grace, .. } => *grace,
        }
    }
}

/// The defaults.
pub(super) const PREFIX: &str = "bundlegate";
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);
/// The limits of a timeout: a call of a replica waits for it.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(50);
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const GRACE: Duration = Duration::from_secs(10 * 60);
pub(super) const MIN_GRACE: Duration = Duration::from_secs(60);
pub(super) const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
/// The URL of a replica without an engine.
pub(super) const LOCAL: &str = "local:";
/// The keys of an engine.
pub(super) const ENGINE_KEYS: [&str; 6] = [
    "sentinel",
    "username",
    "password_file",
    "ca_file",
    "prefix",
    "timeout",
];
/// The ports of an engine and of a sentinel without one.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// The most sentinels, and the longest prefix.
pub(super) const MAX_SENTINELS: usize = 16;
pub(super) const MAX_PREFIX_BYTES: usize = 64;
const EXAMPLE: &str = "write one such as \"rediss://valkey.example:6379/0\"";
const SENTINEL_EXAMPLE: &str = "write its scheme and database, such as \"rediss:///0\"";

/// What the URL says.
struct Address {
    tls: bool,
    endpoint: Option<Endpoint>,
    database: u32,
}

/// Reads the key; `None` if it is absent.
pub(super) fn read(
    raw: Option<raw::Shared>,
    cache: &Cache,
    base: Base<'_>,
) -> Result<Option<SharedConfig>, Problem> {
    let Some(raw) = raw else {
        return Ok(None);
    };
    let grace = raw.grace.map_or(Ok(GRACE), |grace| {
        grace.at_least(MIN_GRACE, "10m")?;
        grace.at_most(MAX_GRACE, "the engine has to be repaired by then")
    });
    let grace = grace.map_err(|problem| problem.at("grace"))?;
    if raw.url == LOCAL {
        check_local(&raw, cache)?;
        return Ok(Some(SharedConfig::Local { grace }));
    }
    options(raw, base).map(|options| Some(SharedConfig::Engine { options, grace }))
}

/// Refuses what a replica without an engine can't use, and one that would forget its plans.
fn check_local(raw: &raw::Shared, cache: &Cache) -> Result<(), Problem> {
    let written = [
        raw.sentinel.is_some(),
        raw.username.is_some(),
        raw.password_file.is_some(),
        raw.ca_file.is_some(),
        raw.prefix.is_some(),
        raw.timeout.is_some(),
    ];
    let mut keys = ENGINE_KEYS.iter().zip(written);
    if let Some((key, _)) = keys.find(|(_, is_written)| *is_written) {
        let message = "`url: \"local:\"` has no engine; remove this key, or write the URL of one";
        return Err(Problem::new(message).at(key));
    }
    match cache.directory {
        Some(_) => Ok(()),
        None => {
            let message =
                "`local:` keeps the plans of roll-outs in `cache.directory`; write that key";
            Err(Problem::new(message).at("url"))
        }
    }
}

fn options(raw: raw::Shared, base: Base<'_>) -> Result<Options, Problem> {
    let address = address(&raw.url).map_err(|problem| problem.at("url"))?;
    let servers = servers(address.endpoint, raw.sentinel)?;
    if raw.username.is_some() && raw.password_file.is_none() {
        return Err(Problem::new("missing; write it").at("password_file"));
    }
    let username = raw.username.map(username).transpose();
    let password_file = raw.password_file.map(|file| {
        base.path(&file).and_then(|path| {
            // Watched like the other files, and read once, so that a wrong path fails the start.
            base.text(&file)?;
            Ok(path)
        })
    });
    let extra_roots = match raw.ca_file {
        Some(_) if !address.tls => {
            let message = "`url` is not rediss; remove this key, or write rediss:// there";
            return Err(Problem::new(message).at("ca_file"));
        }
        Some(file) => base
            .root_store(&file)
            .and_then(|_| base.certificates(&file))
            .map_err(|problem| problem.at("ca_file"))?,
        None => Vec::new(),
    };
    let timeout = raw.timeout.map_or(Ok(TIMEOUT), |timeout| {
        timeout.at_least(MIN_TIMEOUT, "500ms")?;
        timeout.at_most(MAX_TIMEOUT, "a replica waits for it")
    });
    let options = Options {
        servers,
        tls: address.tls,
        database: address.database,
        username: username.map_err(|problem| problem.at("username"))?,
        password_file: password_file
            .transpose()
            .map_err(|problem| problem.at("password_file"))?,
        extra_roots,
        prefix: prefix(raw.prefix).map_err(|problem| problem.at("prefix"))?,
        timeout: timeout.map_err(|problem| problem.at("timeout"))?,
    };
    match options.password() {
        Ok(_) => Ok(options),
        Err(reason) => Err(Problem::new(reason).at("password_file")),
    }
}

/// Parses the URL. No error quotes it: it may have a password.
fn address(text: &str) -> Result<Address, Problem> {
    let url = Url::parse(text)
        .map_err(|error| Problem::new(format!("not a URL ({error}); {EXAMPLE}")))?;
    let tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        _ => {
            return Err(Problem::new(format!(
                "neither `redis`, nor `rediss` (with TLS), nor `local:` (a single replica); {EXAMPLE}"
            )));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        let message = "a password in the configuration can be read by everyone who can read the \
                       file; remove the user from the URL, and write `username` and `password_file`";
        return Err(Problem::new(message));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Problem::new(format!(
            "the URL has more than a host, a port and a database; {EXAMPLE}"
        )));
    }
    let database = match url.path().strip_prefix('/').unwrap_or_default() {
        "" => Some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let database = database.ok_or_else(|| {
        Problem::new(format!(
            "the path is not the number of a database; {EXAMPLE}"
        ))
    })?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let endpoint = host.map(|host| Endpoint {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: url.port().unwrap_or(PORT),
    });
    Ok(Address {
        tls,
        endpoint,
        database,
    })
}

/// The one server of the URL, or the sentinels.
fn servers(
    endpoint: Option<Endpoint>,
    sentinel: Option<raw::SharedSentinel>,
) -> Result<Servers, Problem> {
    match (endpoint, sentinel) {
        (Some(endpoint), None) => Ok(Servers::Address(endpoint)),
        (None, Some(sentinel)) => sentinels(sentinel).map_err(|problem| problem.at("sentinel")),
        (None, None) => {
            let message = format!("the URL has no host, and `sentinel` names none; {EXAMPLE}");
            Err(Problem::new(message).at("url"))
        }
        (Some(_), Some(_)) => Err(Problem::new(format!(
            "the URL has a host, and `sentinel` names the server; {SENTINEL_EXAMPLE}"
        ))
        .at("url")),
    }
}

fn sentinels(raw: raw::SharedSentinel) -> Result<Servers, Problem> {
    if raw.master.is_empty() || raw.master.chars().any(|char| char.is_control()) {
        let message = "empty, or with control characters; write the name in `sentinel monitor`";
        return Err(Problem::new(message).at("master"));
    }
    if raw.nodes.is_empty() || raw.nodes.len() > MAX_SENTINELS {
        let message = format!("write 1 to {MAX_SENTINELS} sentinels, such as \"s1.example:26379\"");
        return Err(Problem::new(message).at("nodes"));
    }
    let nodes = raw.nodes.iter().enumerate();
    let nodes = nodes
        .map(|(index, text)| node(text).map_err(|problem| problem.at_index(index).at("nodes")));
    Ok(Servers::Sentinel {
        master: raw.master,
        nodes: nodes.collect::<Result<_, _>>()?,
    })
}

/// Parses `HOST` or `HOST:PORT`.
fn node(text: &str) -> Result<Endpoint, Problem> {
    let refused = || {
        Problem::new(format!(
            "{text:?} is not a host and a port; write one such as \"s1.example:26379\""
        ))
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| refused())?),
        _ => (text, SENTINEL_PORT),
    };
    // As in a URL: an address in brackets, or a name.
    let host = match Host::parse(host).map_err(|_| refused())? {
        Host::Ipv6(address) => address.to_string(),
        host => host.to_string(),
    };
    Ok(Endpoint { host, port })
}

fn username(name: String) -> Result<String, Problem> {
    match name.is_empty() || name.chars().any(|char| char.is_control() || char == ' ') {
        true => Err(Problem::new(
            "the user name is empty, or has spaces or control characters; write another",
        )),
        false => Ok(name),
    }
}

fn prefix(text: Option<String>) -> Result<String, Problem> {
    let text = text.unwrap_or_else(|| PREFIX.to_owned());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=MAX_PREFIX_BYTES).contains(&text.len()) && text.bytes().all(is_plain) {
        true => Ok(text),
        false => Err(Problem::new(format!(
            "{text:?} is not 1 to {MAX_PREFIX_BYTES} letters, digits, dots, dashes and underscores; write such a prefix"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_and_a_database() {
        for (text, tls, host, port, database) in [
            ("redis://v", false, "v", 6379, 0),
            ("rediss://v.corp:1234/", true, "v.corp", 1234, 0),
            ("redis://127.0.0.1/7", false, "127.0.0.1", 6379, 7),
            ("redis://[::1]:7000/1", false, "::1", 7000, 1),
        ] {
            let address = address(text).unwrap();
            let endpoint = address.endpoint.unwrap();
            assert_eq!((address.tls, address.database), (tls, database), "{text}");
            assert_eq!((&*endpoint.host, endpoint.port), (host, port), "{text}");
        }
        for (text, tls, database) in [("redis:///3", false, 3), ("rediss://", true, 0)] {
            let address = address(text).unwrap();
            assert_eq!((address.tls, address.database), (tls, database), "{text}");
            assert_eq!(address.endpoint, None, "{text}");
        }
        for text in ["redis://v//1", "redis://v/+1", "redis://v/4294967296"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sentinel_is_a_host_with_a_port_or_without() {
        for (text, host, port) in [
            ("s1", "s1", 26379),
            ("s1.corp:7", "s1.corp", 7),
            ("[::1]:9", "::1", 9),
            ("[::1]", "::1", 26379),
            ("10.0.0.1:26379", "10.0.0.1", 26379),
        ] {
            let node = node(text).unwrap();
            assert_eq!((&*node.host, node.port), (host, port), "{text}");
        }
        for text in [
            "",
            "s1:",
            "s1:x",
            "s1:65536",
            "::1",
            "a b:1",
            "redis://s1:1",
        ] {
            assert!(node(text).is_err(), "{text}");
        }
    }
}
