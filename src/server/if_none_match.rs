//! `If-None-Match` as OPA sends it: since 1.22 a list whose first tag names the version that the
//! client runs.

use hyper::header::{HeaderMap, IF_NONE_MATCH};

/// Tags that are read; further ones are ignored. OPA sends those of the versions that it has
/// replaced, which are few.
const MAX_TAGS: usize = 32;
/// A longer tag can't be one of this server, whose tags have 43 bytes.
const MAX_TAG_BYTES: usize = 128;

/// The entity tags of a request in their order, without quotes and `W/`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IfNoneMatch(Vec<String>);

impl IfNoneMatch {
    /// Parses leniently: weak tags are compared weakly (RFC 9110 §13.1.2), and unquoted ones are
    /// accepted. The list is split here, because the `etag` crate reads `"a", "b"` as one tag.
    pub(super) fn parse(headers: &HeaderMap) -> Self {
        let lines = headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|line| line.to_str().ok());
        let tags = lines
            .flat_map(|line| line.split(','))
            .map(opaque_tag)
            .filter(|tag| !tag.is_empty());
        // The tags are kept while the request is held, so their size is limited.
        let kept = |tag: &str| {
            if tag.len() > MAX_TAG_BYTES {
                String::new()
            } else {
                tag.to_owned()
            }
        };
        Self(tags.take(MAX_TAGS).map(kept).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the client runs the version with this tag: whether it is the first one.
    pub(super) fn is_current(&self, etag: &str) -> bool {
        self.0.first().is_some_and(|first| is_match(first, etag))
    }

    /// Whether the client names this tag at all.
    pub(super) fn contains(&self, etag: &str) -> bool {
        self.0.iter().any(|tag| is_match(tag, etag))
    }
}

fn is_match(tag: &str, etag: &str) -> bool {
    tag == "*" || tag == opaque_tag(etag)
}

fn opaque_tag(tag: &str) -> &str {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"')
        .and_then(|tag| tag.strip_suffix('"'))
        .unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(lines: &[&'static str]) -> IfNoneMatch {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, line.parse().unwrap());
        }
        IfNoneMatch::parse(&headers)
    }

    #[test]
    fn the_first_tag_is_current_and_all_tags_are_contained() {
        for lines in [
            &["\"a\", \"b\""][..],
            &["W/\"a\",b"],
            &["a", "b"],
            &[", \"a\" ,,\"b\""],
        ] {
            let tags = tags(lines);
            assert!(
                tags.is_current("\"a\"") && !tags.is_current("\"b\"") && tags.contains("\"b\""),
                "{lines:?}"
            );
            assert!(!tags.contains("\"c\""));
        }
        let long: &'static str = "\"b\",".repeat(10_000).leak();
        assert!(tags(&["\"a\"", long]).0.len() == MAX_TAGS);
        let longest: &'static str = "b".repeat(MAX_TAG_BYTES + 1).leak();
        let unknown = tags(&[longest, "\"a\""]);
        assert!(
            !unknown.is_empty()
                && !unknown.is_current("\"a\"")
                && !unknown.is_current(longest)
                && unknown.contains("\"a\"")
        );
        assert!(tags(&["*"]).is_current("\"x\""));
        assert!(tags(&[]).is_empty() && tags(&["", " , "]).is_empty());
    }
}
