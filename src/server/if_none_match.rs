//! `If-None-Match` as OPA sends it: since 1.22 a list whose first tag names the version that the
//! client runs.

use super::request_head::HeaderLines;
use crate::publish::opaque_tag;

/// Tags that are read; further ones are ignored. OPA sends those of the versions that it has
/// replaced, which are few.
const MAX_TAGS: usize = 32;
/// A longer tag can't be one of this server, whose tags have 43 bytes.
pub(super) const MAX_TAG_BYTES: usize = 128;
/// Stands for a tag that is too long in [`OwnedIfNoneMatch`]; it equals no tag of this server.
const UNKNOWN_TAG: &str = "?";

/// The entity tags of a request in their order. They are parsed leniently: weak tags are compared
/// weakly (RFC 9110 §13.1.2), and unquoted ones are accepted. The list is split here, because the
/// `etag` crate reads `"a", "b"` as one tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct IfNoneMatch<'a>(HeaderLines<'a>);

/// The entity tags of a request that is held, separated by commas. Their size is limited.
#[derive(Debug)]
pub(super) struct OwnedIfNoneMatch(Box<str>);

impl<'a> IfNoneMatch<'a> {
    pub(super) fn new(lines: HeaderLines<'a>) -> Self {
        Self(lines)
    }

    pub(super) fn is_empty(self) -> bool {
        self.tags().next().is_none()
    }

    /// The first tag, without quotes and `W/`.
    pub(super) fn first(self) -> Option<&'a str> {
        self.tags().next()
    }

    /// Whether the client runs the version with this tag: whether it is the first one.
    pub(super) fn is_current(self, etag: &str) -> bool {
        self.tags()
            .next()
            .is_some_and(|first| is_match(first, etag))
    }

    /// Whether the client names this tag at all.
    pub(super) fn contains(self, etag: &str) -> bool {
        self.tags().any(|tag| is_match(tag, etag))
    }

    pub(super) fn to_owned(self) -> OwnedIfNoneMatch {
        let kept = |tag: &'a str| {
            if tag.len() > MAX_TAG_BYTES {
                UNKNOWN_TAG
            } else {
                tag
            }
        };
        let tags: Vec<_> = self.tags().map(kept).collect();
        OwnedIfNoneMatch(tags.join(",").into())
    }

    /// The tags without quotes and `W/`.
    fn tags(self) -> impl Iterator<Item = &'a str> {
        let tags = self
            .0
            .iter()
            .flat_map(|line| line.split(','))
            .map(|tag| opaque_tag(tag.trim()));
        tags.filter(|tag| !tag.is_empty()).take(MAX_TAGS)
    }
}

impl OwnedIfNoneMatch {
    pub(super) fn get(&self) -> IfNoneMatch<'_> {
        IfNoneMatch(HeaderLines::single(Some(&self.0)))
    }
}

fn is_match(tag: &str, etag: &str) -> bool {
    tag == "*" || tag == opaque_tag(etag)
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderMap, IF_NONE_MATCH};

    use super::*;

    fn with_tags(lines: &[&'static str], test: impl Fn(IfNoneMatch<'_>)) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, line.parse().unwrap());
        }
        let tags = IfNoneMatch::new(HeaderLines::of(&headers, &IF_NONE_MATCH));
        test(tags);
        test(tags.to_owned().get());
    }

    #[test]
    fn the_first_tag_is_current_and_all_tags_are_contained() {
        for lines in [
            &["\"a\", \"b\""][..],
            &["W/\"a\",b"],
            &["a", "b"],
            &[", \"a\" ,,\"b\""],
        ] {
            with_tags(lines, |tags| {
                assert!(
                    tags.is_current("\"a\"") && !tags.is_current("\"b\"") && tags.contains("\"b\""),
                    "{lines:?}"
                );
                assert!(!tags.contains("\"c\""));
            });
        }
        let long: &'static str = "\"b\",".repeat(10_000).leak();
        with_tags(&["\"a\"", long], |tags| {
            assert_eq!(tags.tags().count(), MAX_TAGS)
        });
        let longest: &'static str = "b".repeat(MAX_TAG_BYTES + 1).leak();
        with_tags(&[longest, "\"a\""], |unknown| {
            assert!(!unknown.is_empty() && !unknown.is_current("\"a\""));
            assert!(unknown.contains("\"a\""));
            assert!(unknown.to_owned().0.len() <= MAX_TAG_BYTES);
        });
        with_tags(&["*"], |any| assert!(any.is_current("\"x\"")));
        with_tags(&[], |none| assert!(none.is_empty()));
        with_tags(&["", " , "], |none| assert!(none.is_empty()));
    }
}
