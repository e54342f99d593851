//! The headers of the responses with one version of a bundle, built in advance.

use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue, InvalidHeaderValue},
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::telemetry::cut;

/// The longest header value in bytes, because clients and proxies refuse responses with longer
/// headers. Percent-encoding makes three bytes of one.
const MAX_HEADER_BYTES: usize = 1024;
/// Everything outside visible ASCII, and `%` itself.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// The content type by which OPA recognises a bundle service with long polling.
const BUNDLE_CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.openpolicyagent.bundles");
const MANIFEST: HeaderName = HeaderName::from_static("bundlegate-manifest");
const REVISION: HeaderName = HeaderName::from_static("bundlegate-revision");
const SIGNER: HeaderName = HeaderName::from_static("bundlegate-signer");

/// The headers of the responses with a snapshot.
#[derive(Debug)]
pub struct Headers {
    bundle: Vec<(HeaderName, HeaderValue)>,
    not_modified: Vec<(HeaderName, HeaderValue)>,
    http1_bundle: Box<[u8]>,
    http1_not_modified: Box<[u8]>,
}

/// What the headers say.
#[derive(Debug)]
pub(super) struct HeaderTexts<'a> {
    /// `ETag`.
    pub(super) etag: &'a str,
    /// `Bundlegate-Manifest`.
    pub(super) manifest: &'a str,
    /// `Bundlegate-Revision`, percent-encoded outside visible ASCII; where that takes more than
    /// 1024 bytes its beginning, with the length and the start of the SHA-256 of the whole.
    pub(super) revision: &'a str,
    /// `Bundlegate-Signer`; absent where the policy is `unsigned`.
    pub(super) signers: &'a str,
    /// The size of the bundle in bytes.
    pub(super) size: u64,
}

impl Headers {
    /// # Errors
    /// When a text can't be written in a header.
    pub(super) fn new(texts: &HeaderTexts<'_>) -> Result<Self, InvalidHeaderValue> {
        let not_modified = vec![
            (CONTENT_TYPE, BUNDLE_CONTENT_TYPE),
            (ETAG, HeaderValue::from_str(texts.etag)?),
            (MANIFEST, HeaderValue::from_str(texts.manifest)?),
        ];
        let mut bundle = not_modified.clone();
        bundle.push((REVISION, HeaderValue::from_str(&encoded(texts.revision))?));
        if !texts.signers.is_empty() {
            bundle.push((SIGNER, HeaderValue::from_str(&encoded(texts.signers))?));
        }
        let mut http1_bundle = http1_head(StatusCode::OK, pairs(&bundle));
        http1_bundle.extend_from_slice(format!("content-length: {}\r\n", texts.size).as_bytes());
        Ok(Self {
            http1_bundle: http1_bundle.into(),
            http1_not_modified: http1_head(StatusCode::NOT_MODIFIED, pairs(&not_modified)).into(),
            bundle,
            not_modified,
        })
    }

    /// The headers of a response with status 200, without `Content-Length` and `Date`.
    pub fn bundle(&self) -> &[(HeaderName, HeaderValue)] {
        &self.bundle
    }

    /// The headers of a response with status 304, without `Date`.
    pub fn not_modified(&self) -> &[(HeaderName, HeaderValue)] {
        &self.not_modified
    }

    /// The status line and the headers of [`Self::bundle`] with `Content-Length` as HTTP/1.1 sends
    /// them.
    pub fn http1_bundle(&self) -> &[u8] {
        &self.http1_bundle
    }

    /// The status line and the headers of [`Self::not_modified`] as HTTP/1.1 sends them.
    pub fn http1_not_modified(&self) -> &[u8] {
        &self.http1_not_modified
    }
}

fn pairs(
    headers: &[(HeaderName, HeaderValue)],
) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().map(|(name, value)| (name, value))
}

/// A status line and headers as HTTP/1.1 sends them (RFC 9112 §4, §5), each line with its end.
pub(crate) fn http1_head<'a>(
    status: StatusCode,
    headers: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("Unknown");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head
}

/// Text as a header, of at most [`MAX_HEADER_BYTES`].
fn encoded(text: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    // Encoding never makes text shorter.
    let whole = (text.len() <= MAX_HEADER_BYTES)
        .then(|| encode(text))
        .filter(|whole| whole.len() <= MAX_HEADER_BYTES);
    whole.unwrap_or_else(|| encode(&cut(text, MAX_HEADER_BYTES / 3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http1_head_has_the_status_line_and_the_headers() {
        let texts = HeaderTexts {
            etag: "\"a\"",
            manifest: "sha256:b",
            revision: "v 1",
            signers: "",
            size: 17,
        };
        let headers = Headers::new(&texts).unwrap();
        let both = "content-type: application/vnd.openpolicyagent.bundles\r\n\
                    etag: \"a\"\r\nbundlegate-manifest: sha256:b\r\n";
        assert_eq!(
            str::from_utf8(headers.http1_bundle()).unwrap(),
            format!(
                "HTTP/1.1 200 OK\r\n{both}bundlegate-revision: v%201\r\ncontent-length: 17\r\n"
            )
        );
        assert_eq!(
            str::from_utf8(headers.http1_not_modified()).unwrap(),
            format!("HTTP/1.1 304 Not Modified\r\n{both}")
        );
    }

    #[test]
    fn a_header_is_whole_or_cut_and_never_too_long() {
        assert_eq!(encoded("v1.4.0 of today"), "v1.4.0%20of%20today");
        assert_eq!(
            encoded(&"x".repeat(MAX_HEADER_BYTES)),
            "x".repeat(MAX_HEADER_BYTES)
        );
        for unit in ["x", " ", "ä", "𝄞", "\n"] {
            let [one, other] = [1_000_000, 1_000_001].map(|length| encoded(&unit.repeat(length)));
            assert!(
                one.len() <= MAX_HEADER_BYTES && HeaderValue::from_str(&one).is_ok(),
                "{one}"
            );
            assert!(
                one.contains("bytes,%20sha256:") && one != other,
                "{one} {other}"
            );
        }
    }
}
