//! Requests that a program on this machine sends.
//!
//! Operations that change something need no credential yet, so they are for this machine only. A
//! web page that a user of this machine opens can send requests to loopback as well; none of its
//! requests passes here.

use std::net::IpAddr;

use hyper::{
    HeaderMap,
    header::{CONTENT_TYPE, FORWARDED, HOST, ORIGIN},
};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotLocal {
    #[error("only programs on this machine may do this; send the request to a loopback address")]
    Address,
    #[error("a proxy has forwarded the request, and only programs on this machine may do this")]
    Forwarded,
    #[error("the request comes from a web page, and only programs may do this")]
    Origin,
    #[error("the Host header names another machine; use localhost, 127.0.0.1 or [::1]")]
    Host,
    #[error("send `Content-Type: application/json`")]
    ContentType,
}

/// Checks that a program on this machine has sent a request.
///
/// - The client's address is a loopback address, and no header says that a proxy has forwarded the request.
/// - `Origin` is missing: browsers send it with every POST.
/// - `Host` is this machine: a page whose own name was resolved to loopback (DNS rebinding) sends
///   its name.
/// - `Content-Type` is one that a page can't send to another origin without asking first.
pub(super) fn check(
    client: IpAddr,
    authority: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), NotLocal> {
    if !client.is_loopback() {
        return Err(NotLocal::Address);
    }
    let of_proxies = [FORWARDED.as_str(), "x-forwarded-for", "x-real-ip", "via"];
    if of_proxies.iter().any(|name| headers.contains_key(*name)) {
        return Err(NotLocal::Forwarded);
    }
    if headers.contains_key(ORIGIN) {
        return Err(NotLocal::Origin);
    }
    // Over HTTP/2 the authority takes the place of `Host`; both may be there.
    let host = match headers.get(HOST) {
        Some(host) => Some(host.to_str().map_err(|_| NotLocal::Host)?),
        None => None,
    };
    let names = [authority, host];
    if names == [None, None] || !names.into_iter().flatten().all(is_loopback_host) {
        return Err(NotLocal::Host);
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next());
    if !media_type.is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json")) {
        return Err(NotLocal::ContentType);
    }
    Ok(())
}

/// Whether `HOST` or `HOST:PORT` is `localhost` or a loopback address.
fn is_loopback_host(text: &str) -> bool {
    let host = match text.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            host
        }
        _ => text,
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hyper::header::HeaderName;

    use super::*;

    const JSON: (&str, &str) = ("content-type", "application/json");

    fn checked(
        client: IpAddr,
        authority: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<(), NotLocal> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        check(client, authority, &headers)
    }

    #[test]
    fn only_programs_on_this_machine_pass() {
        let (here, there) = (
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::new(10, 0, 0, 1).into(),
        );
        let local = ("host", "127.0.0.1:8090");
        for (client, headers, expected) in [
            (here, &[local, JSON][..], Ok(())),
            (here, &[("host", "localhost"), JSON], Ok(())),
            (here, &[("host", "LocalHost:1"), JSON], Ok(())),
            (here, &[("host", "[::1]:8090"), JSON], Ok(())),
            (
                here,
                &[local, ("content-type", "Application/JSON; charset=utf-8")],
                Ok(()),
            ),
            (there, &[local, JSON], Err(NotLocal::Address)),
            (
                here,
                &[local, JSON, ("x-forwarded-for", "10.0.0.1")],
                Err(NotLocal::Forwarded),
            ),
            (
                here,
                &[local, JSON, ("forwarded", "for=10.0.0.1")],
                Err(NotLocal::Forwarded),
            ),
            (
                here,
                &[local, JSON, ("origin", "http://localhost:3000")],
                Err(NotLocal::Origin),
            ),
            (
                here,
                &[local, JSON, ("origin", "null")],
                Err(NotLocal::Origin),
            ),
            (here, &[JSON], Err(NotLocal::Host)),
            (
                here,
                &[("host", "rebound.example:8090"), JSON],
                Err(NotLocal::Host),
            ),
            (
                here,
                &[("host", "127.0.0.1.example"), JSON],
                Err(NotLocal::Host),
            ),
            (here, &[("host", "10.0.0.1"), JSON], Err(NotLocal::Host)),
            (here, &[local], Err(NotLocal::ContentType)),
            (
                here,
                &[local, ("content-type", "text/plain")],
                Err(NotLocal::ContentType),
            ),
            (
                here,
                &[local, ("content-type", "text/plain; application/json")],
                Err(NotLocal::ContentType),
            ),
        ] {
            assert_eq!(
                checked(client, None, headers),
                expected,
                "{client} {headers:?}"
            );
        }
        assert_eq!(checked(here, Some("localhost:1"), &[JSON]), Ok(()));
        assert_eq!(
            checked(here, Some("localhost"), &[("host", "a.example"), JSON]),
            Err(NotLocal::Host)
        );
        assert_eq!(
            checked(here, Some("a.example"), &[local, JSON]),
            Err(NotLocal::Host)
        );
    }

    #[test]
    fn a_proxy_on_this_machine_is_recognised_by_each_of_its_headers() {
        let here = Ipv4Addr::LOCALHOST.into();
        for forwarded in [
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("via", "1.1 proxy"),
        ] {
            let headers = [("host", "127.0.0.1:8090"), JSON, forwarded];
            let refused = Err(NotLocal::Forwarded);
            assert_eq!(checked(here, None, &headers), refused, "{forwarded:?}");
        }
    }
}
