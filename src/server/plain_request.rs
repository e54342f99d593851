//! The request heads that the fast path takes: those that OPA sends. What it takes means the same
//! to hyper, and everything else is left to hyper.

use std::mem::MaybeUninit;

use httparse::{Header, Request, Status};
use hyper::Version;

use super::request_head::{HeaderLines, IdentityHeader, ReadMethod, RequestHead};

/// Headers of a request that the fast path takes; OPA sends about six.
const MAX_HEADERS: usize = 32;

/// A complete request head without a body.
#[derive(Debug)]
pub(super) struct PlainRequest<'a> {
    pub(super) head: RequestHead<'a>,
    /// The length of the head in bytes.
    pub(super) length: usize,
    /// Whether the client asks for the connection to be closed.
    pub(super) closes: bool,
}

/// The headers that decide whether a request is plain, and those that the bundle API reads.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    connection: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    if_none_match: Option<&'a [u8]>,
    prefer: Option<&'a [u8]>,
    x_forwarded_for: Option<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
    identity: Option<&'a [u8]>,
}

/// The request at the start of `bytes`; `None` if it is incomplete or not plain.
///
/// A plain request is a GET over HTTP/1.1 for a path, with exactly one `Host` and at most one of
/// each other header that is read, without anything that announces a body or another protocol.
/// `identity`: the header that names a client.
pub(super) fn parse<'a>(
    bytes: &'a [u8],
    identity: Option<&IdentityHeader>,
) -> Option<PlainRequest<'a>> {
    if !bytes.starts_with(b"GET /") {
        return None;
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut headers);
    let Ok(Status::Complete(length)) = parsed else {
        return None;
    };
    if request.version != Some(1) {
        return None;
    }
    let path = path(request.path?)?;
    let fields = Fields::read(request.headers, identity)?;
    fields.host?;
    let closes = match fields.connection {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"keep-alive") => false,
        Some(value) if value.eq_ignore_ascii_case(b"close") => true,
        Some(_) => return None,
    };
    let head = RequestHead {
        version: Version::HTTP_11,
        method: ReadMethod::Get,
        path,
        authorization: fields.authorization,
        user_agent: fields.user_agent,
        if_none_match: HeaderLines::single(visible(fields.if_none_match)?),
        prefer: HeaderLines::single(visible(fields.prefer)?),
        x_forwarded_for: HeaderLines::single(visible(fields.x_forwarded_for)?),
        traceparent: fields.traceparent,
        identity: fields.identity,
    };
    Some(PlainRequest {
        head,
        length,
        closes,
    })
}

impl<'a> Fields<'a> {
    /// `None` if a header is not allowed in a plain request, or is repeated.
    fn read(headers: &[Header<'a>], identity: Option<&IdentityHeader>) -> Option<Self> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // It may be one of the headers below, too.
            if identity.is_some_and(|identity| identity.is(header.name)) {
                fields.identity = fields.identity.or(Some(header.value));
            }
            // The length tells most names apart, so that few are compared.
            let field = match header.name.len() {
                4 if is("host") => &mut fields.host,
                6 if is("prefer") => &mut fields.prefer,
                6 if is("expect") => return None,
                7 if is("upgrade") || is("trailer") => return None,
                10 if is("connection") => &mut fields.connection,
                10 if is("user-agent") => &mut fields.user_agent,
                11 if is("traceparent") => &mut fields.traceparent,
                13 if is("if-none-match") => &mut fields.if_none_match,
                13 if is("authorization") => &mut fields.authorization,
                14 if is("content-length") => return None,
                15 if is("x-forwarded-for") => &mut fields.x_forwarded_for,
                17 if is("transfer-encoding") => return None,
                _ => continue,
            };
            if field.replace(header.value).is_some() {
                return None;
            }
        }
        Some(fields)
    }
}

/// The path without the query, if the target consists of characters that no parser of URIs reads
/// in another way.
fn path(target: &str) -> Option<&str> {
    if !target.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        return None;
    }
    target.split('?').next()
}

/// The characters of a path and a query (RFC 3986 §3.3, §3.4).
const PLAIN: [bool; 256] = {
    let (mut plain, characters) = ([false; 256], b"/-._~%?=&+,;:@!$'()*");
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < characters.len() {
        plain[characters[index] as usize] = true;
        index += 1;
    }
    plain
};

/// A value as text; `None` for one outside visible ASCII, which [`HeaderLines`] leaves out.
#[expect(
    clippy::option_option,
    reason = "a header may be absent, and it may not be plain"
)]
fn visible(value: Option<&[u8]>) -> Option<Option<&str>> {
    let Some(value) = value else {
        return Some(None);
    };
    let is_visible = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    is_visible
        .then(|| str::from_utf8(value).ok())
        .flatten()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OPA 1.22 sends, with and without a token.
    #[test]
    fn the_requests_of_opa_are_plain() {
        let polling = "GET /bundles/authz/main HTTP/1.1\r\nHost: gate:8443\r\n\
                       User-Agent: Open Policy Agent/1.22.2 (linux, amd64)\r\n\
                       If-None-Match: \"a\"\r\nPrefer: modes=snapshot,delta;wait=60\r\n\
                       Accept-Encoding: gzip\r\n";
        for more in [
            "",
            "Authorization: Bearer token\r\n",
            "Connection: close\r\n",
        ] {
            let bytes = format!("{polling}{more}\r\nGET /");
            let request = parse(bytes.as_bytes(), None).unwrap();
            assert_eq!(request.length, bytes.len() - "GET /".len());
            assert_eq!(request.closes, more.starts_with("Connection"));
            let RequestHead {
                path,
                authorization,
                user_agent,
                if_none_match,
                prefer,
                ..
            } = request.head;
            assert_eq!(path, "/bundles/authz/main");
            assert_eq!(authorization.is_some(), more.starts_with("Authorization"));
            assert!(user_agent.is_some_and(|agent| agent.starts_with(b"Open Policy Agent/")));
            assert!(if_none_match.iter().eq(["\"a\""]));
            assert!(prefer.iter().eq(["modes=snapshot,delta;wait=60"]));
        }
    }

    #[test]
    fn what_may_mean_something_else_is_not_plain() {
        for text in [
            "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nPrefer: a\r\nPrefer: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nPrefer: \u{e4}\r\n\r\n",
            "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /# HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /\u{e4} HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes(), None).is_none(), "{text}");
        }
    }
}
