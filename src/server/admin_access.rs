//! Who may send the requests to the admin API that change something, and which requests of a browser
//! may read.
//!
//! Programs on this machine may change something, and everyone with a token. A web page that a user
//! opens can send requests as well: to loopback from this machine, and to other addresses from every
//! machine that reaches them. None of its requests passes here, with a token or without.
//!
//! Every program that reaches the listener may read. What a page of another site could read by the
//! browser of a user, it may not: see [`AdminAccess::check_read`].

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{
        ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, FORWARDED, HOST, HeaderName, HeaderValue,
        ORIGIN, WWW_AUTHENTICATE,
    },
    http::request::Parts,
};
use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use super::{
    LiveSettings,
    admin_tokens::AdminTokens,
    connection::Peer,
    credential::Authorization,
    prefer,
    refusal::RefusalLog,
    request_body::RequestBody,
    request_head::{HeaderLines, PREFER},
    response,
    response_body::ResponseBody,
};

/// The size of a body.
const MAX_BODY_BYTES: usize = 4 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request without `Prefer: wait` waits for its result.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Decides who may change something.
#[derive(Debug)]
pub(super) struct AdminAccess {
    /// Any of them is accepted.
    pub(super) tokens: AdminTokens,
    /// The names of the admin listener: those of its certificate, and further ones.
    pub(super) settings: LiveSettings,
    pub(super) refusals: RefusalLog,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("the request comes from a web page, and only programs may do this")]
    Origin,
    #[error("send `Content-Type: application/json`")]
    ContentType,
    #[error("send a token of server.admin_token_file, as `Authorization: Bearer TOKEN`")]
    Token,
    #[error(
        "without a token only programs on this machine may do this; configure \
         server.admin_token_file, or send the request to a loopback address"
    )]
    Address,
    #[error(
        "a proxy has forwarded the request, and without a token only programs on this machine may \
         do this; configure server.admin_token_file"
    )]
    Forwarded,
    #[error(
        "the Host header names another machine; use localhost, 127.0.0.1 or [::1], or with a token \
         an address, a name of the certificate or one of server.admin_hosts"
    )]
    Host,
    #[error(
        "the Host header is not a name of this gateway; use localhost, an address or a name of the \
         certificate, or add the name to server.admin_hosts"
    )]
    ReadHost,
    #[error("a page of another site has sent the request; open the address itself")]
    OtherSite,
}

/// The page, which browsers alone read.
const PAGE: &str = "/";

impl AdminAccess {
    /// The response to a request that changes nothing and must not read; `None` if it may.
    pub(super) fn refuse_read(
        &self,
        request: &Request<RequestBody>,
    ) -> Option<Response<ResponseBody>> {
        let authority = request.uri().authority();
        let authority = authority.map(|authority| authority.as_str());
        let checked = self.check_read(request.uri().path(), authority, request.headers());
        checked.err().map(Denied::response)
    }

    /// Checks that no page of another site reads by the browser of a user.
    ///
    /// - A request that a page of another site causes is refused, as the browser says so in
    ///   `Sec-Fetch-Site`. A link to a document is followed: that page can't read it.
    /// - Another page reads what it likes once its own name has been resolved to the address of this
    ///   listener (DNS rebinding). Then `Host` is its name. A request of a browser is therefore
    ///   answered under the names of this listener alone: loopback names, any address, the names of
    ///   the certificate and `server.admin_hosts`. Each GET of [`PAGE`] counts as one, and of other
    ///   paths each that has a header which browsers send. Programs send none of them, so that
    ///   Prometheus and probes may use any name.
    fn check_read(
        &self,
        path: &str,
        authority: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<(), Denied> {
        if is_of_other_site(headers) {
            return Err(Denied::OtherSite);
        }
        if path != PAGE && !is_of_browser(headers) {
            return Ok(());
        }
        let is_own = |host: &str| is_loopback(host) || self.has_name(host);
        check_host(authority, headers, is_own).map_err(|NotOwn| Denied::ReadHost)
    }

    /// Returns the head and body of a request that may change something, or the response to another one. The
    /// body is always read, so that the connection can be used again.
    pub(super) async fn admit(
        &self,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Result<(Parts, Bytes), Response<ResponseBody>> {
        let (head, body) = request.into_parts();
        let authority = head.uri.authority().map(|authority| authority.as_str());
        let checked = self.check(peer.address, authority, &head.headers);
        checked.map_err(|denied| {
            let path = head.uri.path();
            self.refusals
                .admin_request(&denied.to_string(), path, peer.address);
            denied.response()
        })?;
        match body.read(MAX_BODY_BYTES, BODY_TIMEOUT).await {
            Ok(body) => Ok((head, body)),
            Err(error) => Err(response::unreadable_body(error, MAX_BODY_BYTES)),
        }
    }

    /// Checks that a program sends the request, and that it may.
    ///
    /// - `Origin` is missing: browsers send it with every POST.
    /// - `Content-Type` is one that a page can't send to another origin without asking first.
    /// - The request has a token, or a program on this machine sends it: the client's address is a
    ///   loopback address or that of a Unix socket, and no header says that a proxy has forwarded
    ///   it. A wrong token is refused on this machine as well.
    /// - `Host` names this listener: a page whose own name was resolved to its address (DNS
    ///   rebinding) sends its name. Without a token it is a loopback name. With one it is any
    ///   address, which can't be rebound, or a configured name.
    fn check(
        &self,
        client: IpAddr,
        authority: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<(), Denied> {
        if headers.contains_key(ORIGIN) {
            return Err(Denied::Origin);
        }
        if !is_json(headers) {
            return Err(Denied::ContentType);
        }
        let tokens = self.tokens.current();
        let has_token = match (&tokens, headers.get(AUTHORIZATION)) {
            (Some(tokens), Some(credential)) => {
                match Authorization::of(Some(credential.as_bytes())) {
                    Authorization::Bearer(token) if tokens.contain_token(token) => true,
                    _ => return Err(Denied::Token),
                }
            }
            _ => false,
        };
        if !has_token {
            check_local(client, headers).map_err(|denied| match tokens {
                Some(_) => Denied::Token,
                None => denied,
            })?;
        }
        let is_own = |host: &str| is_loopback(host) || has_token && self.has_name(host);
        check_host(authority, headers, is_own).map_err(|NotOwn| Denied::Host)
    }

    /// Whether a host is an address or a name of this listener.
    fn has_name(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_name_of = |certificate: &CertificateDer<'_>| {
            let name = ServerName::try_from(host).ok();
            let certificate = EndEntityCert::try_from(certificate).ok();
            certificate.zip(name).is_some_and(|(certificate, name)| {
                certificate.verify_is_valid_for_subject_name(&name).is_ok()
            })
        };
        let settings = self.settings.current();
        let certificate = settings
            .admin_tls
            .as_ref()
            .and_then(|tls| tls.chain.first());
        address(host).is_some()
            || settings
                .admin_hosts
                .iter()
                .any(|own| own.eq_ignore_ascii_case(host))
            || certificate.is_some_and(is_name_of)
    }
}

impl Denied {
    fn response(self) -> Response<ResponseBody> {
        let (status, reason) = match self {
            Self::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Token => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Address
            | Self::Forwarded
            | Self::Origin
            | Self::Host
            | Self::ReadHost
            | Self::OtherSite => (StatusCode::FORBIDDEN, "forbidden"),
        };
        let mut response = response::error(status, reason, &self.to_string(), None);
        if self == Self::Token {
            let headers = response.headers_mut();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// How long a request waits for its result.
pub(super) fn wait_of(head: &Parts) -> Duration {
    let wait = prefer::wait(HeaderLines::of(&head.headers, &PREFER));
    wait.map_or(DEFAULT_WAIT, |wait| wait.min(MAX_WAIT))
}

/// The request names another host, or none.
struct NotOwn;

/// Checks that a request names this listener.
fn check_host(
    authority: Option<&str>,
    headers: &HeaderMap,
    is_own: impl Fn(&str) -> bool,
) -> Result<(), NotOwn> {
    // Over HTTP/2 the authority takes the place of `Host`; both may be there.
    let host = match headers.get(HOST) {
        Some(host) => Some(host.to_str().map_err(|_| NotOwn)?),
        None => None,
    };
    let names = [authority, host];
    let mut names = names.into_iter().flatten().map(without_port).peekable();
    if names.peek().is_none() || !names.all(is_own) {
        return Err(NotOwn);
    }
    Ok(())
}

/// Whether a browser sends the request: pages can set `Accept-Language`, but not leave it out.
fn is_of_browser(headers: &HeaderMap) -> bool {
    [ACCEPT_LANGUAGE, ORIGIN, SEC_FETCH_SITE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// Whether a page of another site causes the request, and not a user who follows a link.
fn is_of_other_site(headers: &HeaderMap) -> bool {
    let is = |name: &HeaderName, value: &str| headers.get(name).is_some_and(|sent| sent == value);
    let is_own = ["same-origin", "none"]
        .iter()
        .any(|site| is(&SEC_FETCH_SITE, site));
    let is_link = is(&SEC_FETCH_MODE, "navigate") && is(&SEC_FETCH_DEST, "document");
    headers.contains_key(SEC_FETCH_SITE) && !is_own && !is_link
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Checks that a program on this machine sends the request.
fn check_local(client: IpAddr, headers: &HeaderMap) -> Result<(), Denied> {
    if !client.is_loopback() {
        return Err(Denied::Address);
    }
    let of_proxies = [FORWARDED.as_str(), "x-forwarded-for", "x-real-ip", "via"];
    if of_proxies.iter().any(|name| headers.contains_key(*name)) {
        return Err(Denied::Forwarded);
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"))
}

/// The host in `HOST` or `HOST:PORT`.
fn without_port(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            host
        }
        _ => text,
    }
}

/// The address that a host is; `None` for a name.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse().ok()
}

/// Whether a host is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use hyper::header::HeaderName;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::server::{AdminTls, Settings, clients::Tokens};

    const JSON: (&str, &str) = ("content-type", "application/json");
    const LOCAL: (&str, &str) = ("host", "127.0.0.1:8090");
    const TOKEN: (&str, &str) = ("authorization", "Bearer s3cret");
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    /// With the certificate of `gate.example`.
    fn access(tokens: Option<&[&[u8]]>) -> AdminAccess {
        let certified = rcgen::generate_simple_self_signed(["gate.example".into()]).unwrap();
        let chain = vec![certified.cert.der().clone()];
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key)
        .unwrap();
        let settings = Settings {
            admin_tls: Some(AdminTls {
                config: Arc::new(config),
                chain,
            }),
            admin_hosts: vec!["admin.internal".to_owned()],
            ..Settings::fixture()
        };
        let access = AdminAccess {
            tokens: AdminTokens::default(),
            settings: settings.into(),
            refusals: RefusalLog::default(),
        };
        let tokens = tokens.map(|tokens| Tokens::new(tokens.iter().copied()));
        access.tokens.replace(tokens);
        access
    }

    fn headers(headers: &[(&str, &str)]) -> HeaderMap {
        let parsed = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
        parsed.collect()
    }

    #[test]
    fn without_tokens_only_programs_on_this_machine_pass() {
        let access = access(None);
        let charset = ("content-type", "Application/JSON; charset=utf-8");
        for (client, sent, expected) in [
            (HERE, &[LOCAL, JSON][..], Ok(())),
            (HERE, &[("host", "localhost"), JSON], Ok(())),
            (HERE, &[("host", "LocalHost:1"), JSON], Ok(())),
            (HERE, &[("host", "[::1]:8090"), JSON], Ok(())),
            (HERE, &[LOCAL, charset], Ok(())),
            // It means nothing here.
            (HERE, &[LOCAL, JSON, TOKEN], Ok(())),
            (THERE, &[LOCAL, JSON], Err(Denied::Address)),
            (THERE, &[LOCAL, JSON, TOKEN], Err(Denied::Address)),
            (HERE, &[JSON], Err(Denied::Host)),
            (
                HERE,
                &[("host", "rebound.example:8090"), JSON],
                Err(Denied::Host),
            ),
            (
                HERE,
                &[("host", "127.0.0.1.example"), JSON],
                Err(Denied::Host),
            ),
            (HERE, &[("host", "10.0.0.1"), JSON], Err(Denied::Host)),
            (HERE, &[("host", "gate.example"), JSON], Err(Denied::Host)),
        ] {
            let checked = access.check(client, None, &headers(sent));
            assert_eq!(checked, expected, "{client} {sent:?}");
        }
        let authorities = |authority: &str, sent: &[(&str, &str)]| {
            access.check(HERE, Some(authority), &headers(sent))
        };
        assert_eq!(authorities("localhost:1", &[JSON]), Ok(()));
        let other = ("host", "a.example");
        assert_eq!(authorities("localhost", &[other, JSON]), Err(Denied::Host));
        assert_eq!(authorities("a.example", &[LOCAL, JSON]), Err(Denied::Host));
    }

    #[test]
    fn with_tokens_a_token_counts_everywhere_and_this_machine_needs_none() {
        let access = access(Some(&[b"other", b"s3cret"]));
        for (client, sent, expected) in [
            (HERE, &[LOCAL, JSON][..], Ok(())),
            (HERE, &[LOCAL, JSON, TOKEN], Ok(())),
            (THERE, &[("host", "10.0.0.9:8090"), JSON, TOKEN], Ok(())),
            (THERE, &[("host", "[fd00::1]:8090"), JSON, TOKEN], Ok(())),
            (
                THERE,
                &[("host", "Admin.Internal:8090"), JSON, TOKEN],
                Ok(()),
            ),
            (
                THERE,
                &[("host", "GATE.example.:8090"), JSON, TOKEN],
                Ok(()),
            ),
            (
                THERE,
                &[("host", "rebound.example"), JSON, TOKEN],
                Err(Denied::Host),
            ),
            (
                HERE,
                &[("host", "rebound.example"), JSON, TOKEN],
                Err(Denied::Host),
            ),
            (
                HERE,
                &[("host", "rebound.example"), JSON],
                Err(Denied::Host),
            ),
            (THERE, &[JSON, TOKEN], Err(Denied::Host)),
            (THERE, &[LOCAL, JSON], Err(Denied::Token)),
            (
                HERE,
                &[LOCAL, JSON, ("via", "1.1 proxy")],
                Err(Denied::Token),
            ),
            (HERE, &[LOCAL, JSON, TOKEN, ("via", "1.1 proxy")], Ok(())),
            (
                HERE,
                &[LOCAL, JSON, ("authorization", "Bearer s3cre")],
                Err(Denied::Token),
            ),
            (
                HERE,
                &[LOCAL, JSON, ("authorization", "Basic s3cret")],
                Err(Denied::Token),
            ),
        ] {
            let checked = access.check(client, None, &headers(sent));
            assert_eq!(checked, expected, "{client} {sent:?}");
        }
        // The file is empty, or the tokens are revoked.
        access.tokens.replace(Some(Tokens::new([])));
        let sent = [("host", "10.0.0.9"), JSON, TOKEN];
        assert_eq!(
            access.check(THERE, None, &headers(&sent)),
            Err(Denied::Token)
        );
    }

    #[test]
    fn no_request_of_a_web_page_passes() {
        for tokens in [None, Some(&[&b"s3cret"[..]][..])] {
            let access = access(tokens);
            for (page, expected) in [
                (
                    &[JSON, ("origin", "http://evil.example")][..],
                    Denied::Origin,
                ),
                (&[JSON, ("origin", "http://127.0.0.1:8090")], Denied::Origin),
                (&[JSON, ("origin", "null")], Denied::Origin),
                (&[], Denied::ContentType),
                (&[("content-type", "text/plain")], Denied::ContentType),
                (
                    &[("content-type", "text/plain; application/json")],
                    Denied::ContentType,
                ),
                (
                    &[("content-type", "application/x-www-form-urlencoded")],
                    Denied::ContentType,
                ),
            ] {
                for credential in [&[LOCAL][..], &[LOCAL, TOKEN]] {
                    let sent = [page, credential].concat();
                    let checked = access.check(HERE, None, &headers(&sent));
                    assert_eq!(checked, Err(expected), "{sent:?}");
                }
            }
        }
    }

    #[test]
    fn browsers_read_under_the_names_of_the_listener_and_programs_under_any() {
        const LANGUAGE: (&str, &str) = ("accept-language", "en");
        let access = access(None);
        let read =
            |path: &str, sent: &[(&str, &str)]| access.check_read(path, None, &headers(sent));
        for (host, is_own) in [
            ("localhost:8090", true),
            ("127.0.0.1", true),
            ("[::1]:8090", true),
            ("10.0.0.9:8090", true),
            ("Gate.example.", true),
            ("admin.internal:8090", true),
            ("rebound.example", false),
            ("rebound.example:8090", false),
            ("127.0.0.1.example", false),
            ("sub.admin.internal", false),
            ("", false),
        ] {
            let expected = if is_own {
                Ok(())
            } else {
                Err(Denied::ReadHost)
            };
            let host = ("host", host);
            assert_eq!(read("/", &[host]), expected, "{host:?}");
            for path in ["/status", "/metrics", "/readyz"] {
                assert_eq!(read(path, &[host]), Ok(()), "{host:?}");
                for browser in [
                    LANGUAGE,
                    ("sec-fetch-site", "same-origin"),
                    ("accept-language", ""),
                ] {
                    assert_eq!(
                        read(path, &[host, browser]),
                        expected,
                        "{host:?} {browser:?}"
                    );
                }
            }
        }
        assert_eq!(read("/", &[]), Err(Denied::ReadHost));
        assert_eq!(read("/status", &[]), Ok(()));
        // Over HTTP/2.
        let authority = |name| access.check_read("/", Some(name), &headers(&[LANGUAGE]));
        assert_eq!(authority("localhost:8090"), Ok(()));
        assert_eq!(authority("rebound.example"), Err(Denied::ReadHost));
        let both = access.check_read(
            "/",
            Some("localhost"),
            &headers(&[("host", "rebound.example")]),
        );
        assert_eq!(both, Err(Denied::ReadHost));
    }

    #[test]
    fn a_page_of_another_site_reads_nothing_and_may_link() {
        let access = access(None);
        let read = |sent: &[(&str, &str)]| {
            let sent = [&[LOCAL, ("accept-language", "en")], sent].concat();
            let headers = headers(&sent);
            let paths = ["/", "/status", "/metrics"];
            let all = paths.map(|path| access.check_read(path, None, &headers));
            assert!(all.iter().all(|one| *one == all[0]), "{sent:?}");
            all[0]
        };
        let site = |site| ("sec-fetch-site", site);
        let (mode, dest) = (
            |mode| ("sec-fetch-mode", mode),
            |dest| ("sec-fetch-dest", dest),
        );
        for own in ["same-origin", "none"] {
            assert_eq!(read(&[site(own), mode("cors"), dest("empty")]), Ok(()));
        }
        for other in ["cross-site", "same-site", "unknown"] {
            let refused = Err(Denied::OtherSite);
            assert_eq!(read(&[site(other)]), refused);
            assert_eq!(read(&[site(other), mode("cors"), dest("empty")]), refused);
            assert_eq!(
                read(&[site(other), mode("no-cors"), dest("script")]),
                refused
            );
            assert_eq!(
                read(&[site(other), mode("navigate"), dest("iframe")]),
                refused
            );
            assert_eq!(
                read(&[site(other), mode("navigate"), dest("document")]),
                Ok(())
            );
        }
        let sentence = Denied::ReadHost.to_string();
        assert!(sentence.contains("server.admin_hosts"), "{sentence}");
    }

    #[test]
    fn a_proxy_on_this_machine_is_recognised_by_each_of_its_headers() {
        for forwarded in [
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("via", "1.1 proxy"),
        ] {
            let sent = headers(&[LOCAL, JSON, forwarded]);
            let refused = Err(Denied::Forwarded);
            assert_eq!(
                access(None).check(HERE, None, &sent),
                refused,
                "{forwarded:?}"
            );
        }
    }
}
