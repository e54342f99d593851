//! The parts of a request's head that the bundle API reads, borrowed from the parser that read
//! them.

use hyper::{
    Method, Request, Version,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, USER_AGENT},
};

/// The header in which proxies report the addresses of their clients.
pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The header of the position in a trace (W3C Trace Context §3.2).
const TRACEPARENT: &str = "traceparent";
/// The header of preferences (RFC 7240), which `http` does not name.
pub(super) static PREFER: HeaderName = HeaderName::from_static("prefer");

static TAGS: HeaderName = IF_NONE_MATCH;

/// A request to the bundle API.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHead<'a> {
    pub(super) version: Version,
    pub(super) method: ReadMethod,
    /// The path as it was sent, without the query.
    pub(super) path: &'a str,
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a [u8]>,
    pub(super) if_none_match: HeaderLines<'a>,
    pub(super) prefer: HeaderLines<'a>,
    pub(super) x_forwarded_for: HeaderLines<'a>,
    /// The position in the trace of the client (W3C Trace Context).
    pub(super) traceparent: Option<&'a [u8]>,
    /// The name of the client (`fleet.identity`).
    pub(super) identity: Option<&'a [u8]>,
}

/// The header that names a client (`fleet.identity`).
#[derive(Debug)]
pub(super) struct IdentityHeader {
    name: HeaderName,
    /// As Go's programs write it, OPA among them: `Bundlegate-Client`.
    canonical: Box<str>,
}

/// The methods by which a bundle is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadMethod {
    Get,
    Head,
}

/// The values of one header in their order. Values outside visible ASCII are left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderLines<'a> {
    single: Option<&'a str>,
    all: Option<(&'a HeaderMap, &'a HeaderName)>,
}

impl<'a> RequestHead<'a> {
    /// `None` for a method that reads no bundle. `identity`: the header that names a client.
    pub(super) fn of<B>(
        request: &'a Request<B>,
        identity: Option<&IdentityHeader>,
    ) -> Option<Self> {
        let method = match *request.method() {
            Method::GET => ReadMethod::Get,
            Method::HEAD => ReadMethod::Head,
            _ => return None,
        };
        Some(Self::with_method(request, method, identity))
    }

    /// As if the request had this method.
    pub(super) fn with_method<B>(
        request: &'a Request<B>,
        method: ReadMethod,
        identity: Option<&IdentityHeader>,
    ) -> Self {
        let headers = request.headers();
        let value = |name| headers.get(name).map(HeaderValue::as_bytes);
        Self {
            version: request.version(),
            method,
            path: request.uri().path(),
            authorization: value(AUTHORIZATION),
            user_agent: value(USER_AGENT),
            if_none_match: HeaderLines::of(headers, &TAGS),
            prefer: HeaderLines::of(headers, &PREFER),
            x_forwarded_for: HeaderLines::of(headers, &X_FORWARDED_FOR),
            traceparent: headers.get(TRACEPARENT).map(HeaderValue::as_bytes),
            identity: identity
                .and_then(|identity| headers.get(&identity.name))
                .map(HeaderValue::as_bytes),
        }
    }
}

impl IdentityHeader {
    pub(super) fn new(name: HeaderName) -> Self {
        let mut canonical = name.as_str().to_owned();
        let mut begins_word = true;
        for (index, byte) in name.as_str().bytes().enumerate() {
            if begins_word {
                canonical[index..=index].make_ascii_uppercase();
            }
            begins_word = byte == b'-';
        }
        Self {
            name,
            canonical: canonical.into(),
        }
    }

    /// Whether this is its name.
    pub(super) fn is(&self, name: &str) -> bool {
        // Most senders write it like this, and then no letter has to be converted.
        name == &*self.canonical || name.eq_ignore_ascii_case(&self.canonical)
    }
}

impl ReadMethod {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

impl<'a> HeaderLines<'a> {
    /// The lines of a header that was sent once or not at all. `line` is visible ASCII.
    pub(super) const fn single(line: Option<&'a str>) -> Self {
        Self {
            single: line,
            all: None,
        }
    }

    pub(super) fn of(headers: &'a HeaderMap, name: &'a HeaderName) -> Self {
        Self {
            single: None,
            all: Some((headers, name)),
        }
    }

    /// Whether the header was not sent.
    pub(super) fn is_absent(self) -> bool {
        let is_in_all = |(headers, name): (&HeaderMap, &HeaderName)| headers.contains_key(name);
        self.single.is_none() && !self.all.is_some_and(is_in_all)
    }

    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = &'a str> {
        let all = self
            .all
            .into_iter()
            .flat_map(|(headers, name)| headers.get_all(name).iter());
        let all = all.filter_map(|line| line.to_str().ok());
        self.single.into_iter().chain(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_header_is_known_in_any_case() {
        let header = IdentityHeader::new(HeaderName::from_static("x-opa-1d"));
        assert_eq!(&*header.canonical, "X-Opa-1d");
        for name in ["X-Opa-1d", "x-opa-1d", "X-OPA-1D"] {
            assert!(header.is(name), "{name}");
        }
        assert!(!header.is("X-Opa-1") && !header.is("X-Opa-Id"));
    }
}
