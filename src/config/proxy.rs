//! `registries.HOST.proxy`.

use url::Url;

use super::{files::Base, problem::Problem, raw};
use crate::registry::{Proxy, ProxyServer};

/// Reads `none`, a URL, or a URL with a user.
pub(super) fn read(raw: Option<raw::Proxy>, base: Base<'_>) -> Result<Proxy, Problem> {
    match raw {
        None => Ok(Proxy::Environment),
        Some(raw::Proxy::Keyword(word)) if word == raw::NONE => Ok(Proxy::Direct),
        Some(raw::Proxy::Keyword(text)) => server(&text).map(Proxy::Server),
        Some(raw::Proxy::Keys(keys)) => with_user(keys, base).map(Proxy::Server),
    }
}

/// Reads the password once, so that a wrong path fails the start and not the first poll.
fn with_user(raw: raw::ProxyKeys, base: Base<'_>) -> Result<ProxyServer, Problem> {
    let mut server = server(&raw.url).map_err(|problem| problem.at("url"))?;
    match (&raw.username, &server.username) {
        (Some(_), Some(_)) => {
            let message = "`url` names a user as well; remove one of them";
            return Err(Problem::new(message).at("username"));
        }
        (Some(name), None) if name.is_empty() || !is_user(name) => {
            let message =
                "the user name is empty, or has colons or control characters; write another";
            return Err(Problem::new(message).at("username"));
        }
        (Some(_), None) => server.username = raw.username,
        (None, None) if raw.password_file.is_some() => {
            return Err(Problem::new("missing; write it").at("username"));
        }
        (None, _) => {}
    }
    let at_file = |problem: Problem| problem.at("password_file");
    let file = raw
        .password_file
        .map(|file| base.bytes(&file).and_then(|_| base.path(&file)));
    server.password_file = file.transpose().map_err(at_file)?;
    server
        .password()
        .map_err(|reason| at_file(Problem::new(reason)))?;
    Ok(server)
}

/// Parses the URL of a proxy. No error quotes it: it may have a password.
fn server(text: &str) -> Result<ProxyServer, Problem> {
    let malformed = || {
        let example =
            "write one such as \"http://proxy.lan:3128\", or `none` for direct connections";
        Problem::new(format!("not the URL of a proxy; {example}"))
    };
    let mut url = Url::parse(text).map_err(|_| malformed())?;
    if !matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") {
        return Err(Problem::new(
            "a proxy is reached by `http`, `https`, `socks5` or `socks5h`; write a URL such as \
             \"http://proxy.lan:3128\"",
        ));
    }
    if url.password().is_some() {
        return Err(Problem::new(
            "a password in the configuration can be read by everyone who can read the file; write \
             `{ url: URL, username: USER, password_file: FILE }`",
        ));
    }
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    let is_bare =
        matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !has_host || !is_bare {
        return Err(malformed());
    }
    let username = percent_encoding::percent_decode_str(url.username()).decode_utf8();
    let username = username.map_err(|_| malformed())?.into_owned();
    if !is_user(&username) {
        return Err(malformed());
    }
    url.set_username("").map_err(|()| malformed())?;
    Ok(ProxyServer {
        url,
        username: (!username.is_empty()).then_some(username),
        password_file: None,
    })
}

fn is_user(name: &str) -> bool {
    !name.contains(':') && !name.chars().any(char::is_control)
}
