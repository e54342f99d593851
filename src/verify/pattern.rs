//! Patterns for identities, issuers and certificate claims.

use std::fmt;

use regex::Regex;

/// Identities that no sensible policy accepts, by kind. A pattern that matches all samples of a
/// kind is a mistake: it matches, for example, every e-mail address instead of one.
const ARBITRARY_IDENTITIES: [[&str; 2]; 2] = [
    [
        "stranger@example.org",
        "a.stranger+tag@mail.stranger.invalid",
    ],
    [
        "https://example.org/stranger",
        "https://github.com/stranger/stranger/.github/workflows/x.yml@refs/heads/x",
    ],
];
/// The largest compiled expression, in bytes, so that a configuration can't exhaust the memory.
const COMPILED_LIMIT: usize = 1 << 20;

/// A text, a glob or a regular expression. It has to match the whole text: a part of it proves
/// nothing, as `acme/policies` is a part of `acme/policies-evil`.
#[derive(Clone)]
pub struct Pattern {
    written: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Exact,
    Regex(Regex),
}

/// An error in the text of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// The pattern is empty.
    #[error("is empty; write the expected text")]
    Empty,
    /// The text is not a regular expression, or too large a one.
    #[error("not a regular expression: {0}")]
    Regex(String),
    /// The pattern matches arbitrary identities.
    #[error("matches any identity; name the expected one")]
    MatchesEverything,
}

impl Pattern {
    /// A pattern for exactly this text.
    ///
    /// # Errors
    /// When it is empty.
    pub fn exact(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return Err(BadPattern::Empty);
        }
        Ok(Self {
            written: text.to_owned(),
            kind: Kind::Exact,
        })
    }

    /// A glob: `*` matches anything within one path segment, every other character itself.
    ///
    /// # Errors
    /// See [`BadPattern`].
    pub fn glob(text: &str) -> Result<Self, BadPattern> {
        if !text.contains('*') {
            return Self::exact(text);
        }
        let parts: Vec<String> = text.split('*').map(regex::escape).collect();
        Self::compile(text, &parts.join(r"[^/\x00-\x1f\x7f]*"))
    }

    /// A regular expression, anchored at both ends.
    ///
    /// # Errors
    /// See [`BadPattern`].
    pub fn regex(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return Err(BadPattern::Empty);
        }
        // Compiled without the anchors first: `a)|(?:b` is not an expression, but would become
        // one between anchors.
        Regex::new(text).map_err(|error| BadPattern::Regex(last_line(&error)))?;
        Self::compile(text, text)
    }

    fn compile(written: &str, expression: &str) -> Result<Self, BadPattern> {
        let regex = regex::RegexBuilder::new(&format!(r"\A(?:{expression})\z"))
            .size_limit(COMPILED_LIMIT)
            .build()
            .map_err(|error| BadPattern::Regex(last_line(&error)))?;
        if ARBITRARY_IDENTITIES
            .iter()
            .any(|kind| kind.iter().all(|identity| regex.is_match(identity)))
        {
            return Err(BadPattern::MatchesEverything);
        }
        Ok(Self {
            written: written.to_owned(),
            kind: Kind::Regex(regex),
        })
    }

    /// Whether the pattern matches the whole of `text`.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.kind {
            Kind::Exact => self.written == text,
            Kind::Regex(regex) => regex.is_match(text),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        let expression = |pattern: &Self| match &pattern.kind {
            Kind::Exact => None,
            Kind::Regex(regex) => Some(regex.as_str().to_owned()),
        };
        self.written == other.written && expression(self) == expression(other)
    }
}

impl Eq for Pattern {}

/// The last line of the error: the lines before it show the expression with a marker.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Exact => "Exact",
            Kind::Regex(regex) => regex.as_str(),
        };
        f.debug_tuple("Pattern")
            .field(&self.written)
            .field(&kind)
            .finish()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKFLOW: &str =
        "https://github.com/acme/policies/.github/workflows/release.yml@refs/tags/";

    #[test]
    fn a_star_stays_within_one_path_segment() {
        let pattern = Pattern::glob(&format!("{WORKFLOW}*")).unwrap();
        assert!(pattern.is_match(&format!("{WORKFLOW}v1")));
        for other in ["v1/x", "v1\nx", "v1\n", "\u{0}"] {
            assert!(
                !pattern.is_match(&format!("{WORKFLOW}{other}")),
                "{other:?}"
            );
        }
        assert!(!pattern.is_match(&format!("x{WORKFLOW}v1")));
    }

    #[test]
    fn a_glob_and_an_expression_with_the_same_text_are_not_equal() {
        let [glob, exact] = ["a.*", "a.b"].map(|text| Pattern::glob(text).unwrap());
        let [regex, other] = ["a.*", "a.b"].map(|text| Pattern::regex(text).unwrap());
        assert!(glob == Pattern::glob("a.*").unwrap() && regex == Pattern::regex("a.*").unwrap());
        assert!(glob != regex && exact != other && exact != glob);
    }

    #[test]
    fn a_regular_expression_matches_whole_texts_only() {
        let pattern = Pattern::regex("https://github.com/acme/policies").unwrap();
        for other in [
            "https://github.com/acme/policies-evil",
            "xhttps://github.com/acme/policies",
        ] {
            assert!(!pattern.is_match(other));
        }
        for alternatives in ["acme|evil", "^acme|evil$", "(?m)^acme$|^evil$"] {
            let pattern = Pattern::regex(alternatives).unwrap();
            assert!(
                pattern.is_match("acme") && pattern.is_match("evil"),
                "{alternatives}"
            );
            for other in ["acme-x", "x-evil", "acme\n", "\nevil", "acme\nevil"] {
                assert!(!pattern.is_match(other), "{alternatives}: {other:?}");
            }
        }
    }

    #[test]
    fn a_pattern_that_matches_everything_or_nothing_is_rejected() {
        for pattern in [
            ".*",
            "^.*$",
            ".+",
            "(.|\n)*",
            "[^ ]*",
            ".*|acme",
            ".*@.*",
            "https://.*",
            "[^/]+",
            "https?:.+",
        ] {
            assert_eq!(
                Pattern::regex(pattern).unwrap_err(),
                BadPattern::MatchesEverything,
                "{pattern}"
            );
        }
        for pattern in ["*", "**", "*@*", "*.*"] {
            assert_eq!(
                Pattern::glob(pattern).unwrap_err(),
                BadPattern::MatchesEverything,
                "{pattern}"
            );
        }
        for pattern in [
            ".*@example\\.org",
            "https://github\\.com/.*",
            "spiffe://corp/.*",
        ] {
            Pattern::regex(pattern).unwrap();
        }
        assert_eq!(Pattern::regex("").unwrap_err(), BadPattern::Empty);
        assert_eq!(Pattern::glob("").unwrap_err(), BadPattern::Empty);
        for broken in ["(", "a)|(?:b", "[z-a]", "a{1000}{1000}{1000}"] {
            assert!(
                matches!(Pattern::regex(broken).unwrap_err(), BadPattern::Regex(_)),
                "{broken}"
            );
        }
    }
}
