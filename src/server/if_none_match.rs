//! `If-None-Match` as OPA sends it: a list since 1.22, its first tag being what it runs.

use hyper::header::{HeaderMap, IF_NONE_MATCH};

/// The client's tags that are looked at. OPA sends those of the bundles that it has replaced,
/// which are few.
const MOST: usize = 32;
/// A longer tag is none of ours.
const LONGEST: usize = 128;

/// The client's tags, without quotes and weakness, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tags(Vec<String>);

impl Tags {
    /// Lenient: weak tags compare weakly and unquoted ones are taken as they are. The list
    /// is split here, because the `etag` crate reads `"a", "b"` as one tag.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        let tags = lines.flat_map(|line| line.split(',')).map(opaque).filter(|tag| !tag.is_empty());
        // They are kept for as long as the request is held, so what is kept has a limit.
        let kept = |tag: &str| if tag.len() > LONGEST { String::new() } else { tag.to_owned() };
        Self(tags.take(MOST).map(kept).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the client runs what `etag` names.
    pub(super) fn runs(&self, etag: &str) -> bool {
        self.0.first().is_some_and(|first| same(first, etag))
    }

    /// Whether the client knows what `etag` names.
    pub(super) fn knows(&self, etag: &str) -> bool {
        self.0.iter().any(|tag| same(tag, etag))
    }
}

fn same(tag: &str, etag: &str) -> bool {
    tag == "*" || tag == opaque(etag)
}

fn opaque(tag: &str) -> &str {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(lines: &[&'static str]) -> Tags {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, line.parse().unwrap());
        }
        Tags::of(&headers)
    }

    #[test]
    fn the_first_tag_is_what_the_client_runs_and_all_are_what_it_knows() {
        for lines in [&["\"a\", \"b\""][..], &["W/\"a\",b"], &["a", "b"], &[", \"a\" ,,\"b\""]] {
            let tags = tags(lines);
            assert!(tags.runs("\"a\"") && !tags.runs("\"b\"") && tags.knows("\"b\""), "{lines:?}");
            assert!(!tags.knows("\"c\""));
        }
        let long: &'static str = "\"b\",".repeat(10_000).leak();
        assert!(tags(&["\"a\"", long]).0.len() == MOST);
        let longest: &'static str = "b".repeat(LONGEST + 1).leak();
        let unknown = tags(&[longest, "\"a\""]);
        assert!(!unknown.is_empty() && !unknown.runs("\"a\"") && !unknown.runs(longest) && unknown.knows("\"a\""));
        assert!(tags(&["*"]).runs("\"x\""));
        assert!(tags(&[]).is_empty() && tags(&["", " , "]).is_empty());
    }
}
