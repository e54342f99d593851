//! What a text has to look like: an identity, an issuer, a claim of a certificate.

use std::fmt;

use regex::Regex;

/// Texts that no sensible policy accepts all of, by kind: a pattern that lets every one of a
/// kind through was meant to name somebody and names everybody with an e-mail address, say.
const ARBITRARY_IDENTITIES: [[&str; 2]; 2] = [
    ["stranger@example.org", "a.stranger+tag@mail.stranger.invalid"],
    ["https://example.org/stranger", "https://github.com/stranger/stranger/.github/workflows/x.yml@refs/heads/x"],
];
/// Compiled size, in bytes; a configuration can't make the gateway big by accident.
const COMPILED_LIMIT: usize = 1 << 20;

/// A text, or a regex of texts. Always the whole text: a part of it proves nothing, as
/// `acme/policies` is a part of `acme/policies-evil`.
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

/// Why a text is no usable pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Nothing to match.
    #[error("it is empty; write the text that has to be there")]
    Empty,
    /// Not a regular expression, or too large a one.
    #[error("it is no regular expression: {0}")]
    Regex(String),
    /// It would accept whoever comes.
    #[error("it matches everybody; name who it has to be")]
    MatchesEverything,
}

impl Pattern {
    /// Exactly this text.
    ///
    /// # Errors
    /// When it is empty.
    pub fn exact(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return Err(BadPattern::Empty);
        }
        Ok(Self { written: text.to_owned(), kind: Kind::Exact })
    }

    /// `*` stands for anything within one path segment, everything else for itself.
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

    /// A regular expression for the whole text: anchored at both ends, whatever it says
    /// itself.
    ///
    /// # Errors
    /// See [`BadPattern`].
    pub fn regex(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return Err(BadPattern::Empty);
        }
        // By itself first: `a)|(?:b` is no expression, but would become one between anchors.
        Regex::new(text).map_err(|error| BadPattern::Regex(last_line(&error)))?;
        Self::compile(text, text)
    }

    fn compile(written: &str, expression: &str) -> Result<Self, BadPattern> {
        let regex = regex::RegexBuilder::new(&format!(r"\A(?:{expression})\z"))
            .size_limit(COMPILED_LIMIT)
            .build()
            .map_err(|error| BadPattern::Regex(last_line(&error)))?;
        if ARBITRARY_IDENTITIES.iter().any(|kind| kind.iter().all(|identity| regex.is_match(identity))) {
            return Err(BadPattern::MatchesEverything);
        }
        Ok(Self { written: written.to_owned(), kind: Kind::Regex(regex) })
    }

    /// Whether this is such a text.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.kind {
            Kind::Exact => self.written == text,
            Kind::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A regular expression's error draws a picture over several lines; the last one says it.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Exact => "Exact",
            Kind::Regex(regex) => regex.as_str(),
        };
        f.debug_tuple("Pattern").field(&self.written).field(&kind).finish()
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

    const WORKFLOW: &str = "https://github.com/acme/policies/.github/workflows/release.yml@refs/tags/";

    #[test]
    fn a_star_stays_within_one_path_segment() {
        let pattern = Pattern::glob(&format!("{WORKFLOW}*")).unwrap();
        assert!(pattern.is_match(&format!("{WORKFLOW}v1")));
        for other in ["v1/x", "v1\nx", "v1\n", "\u{0}"] {
            assert!(!pattern.is_match(&format!("{WORKFLOW}{other}")), "{other:?}");
        }
        assert!(!pattern.is_match(&format!("x{WORKFLOW}v1")));
    }

    #[test]
    fn a_regular_expression_matches_whole_texts_only() {
        let pattern = Pattern::regex("https://github.com/acme/policies").unwrap();
        for other in ["https://github.com/acme/policies-evil", "xhttps://github.com/acme/policies"] {
            assert!(!pattern.is_match(other));
        }
        for alternatives in ["acme|evil", "^acme|evil$", "(?m)^acme$|^evil$"] {
            let pattern = Pattern::regex(alternatives).unwrap();
            assert!(pattern.is_match("acme") && pattern.is_match("evil"), "{alternatives}");
            for other in ["acme-x", "x-evil", "acme\n", "\nevil", "acme\nevil"] {
                assert!(!pattern.is_match(other), "{alternatives}: {other:?}");
            }
        }
    }

    #[test]
    fn a_pattern_for_everybody_or_nobody_is_refused() {
        for everybody in
            [".*", "^.*$", ".+", "(.|\n)*", "[^ ]*", ".*|acme", ".*@.*", "https://.*", "[^/]+", "https?:.+"]
        {
            assert_eq!(Pattern::regex(everybody).unwrap_err(), BadPattern::MatchesEverything, "{everybody}");
        }
        for everybody in ["*", "**", "*@*", "*.*"] {
            assert_eq!(Pattern::glob(everybody).unwrap_err(), BadPattern::MatchesEverything, "{everybody}");
        }
        for somebody in [".*@example\\.org", "https://github\\.com/.*", "spiffe://corp/.*"] {
            Pattern::regex(somebody).unwrap();
        }
        assert_eq!(Pattern::regex("").unwrap_err(), BadPattern::Empty);
        assert_eq!(Pattern::glob("").unwrap_err(), BadPattern::Empty);
        for broken in ["(", "a)|(?:b", "[z-a]", "a{1000}{1000}{1000}"] {
            assert!(matches!(Pattern::regex(broken).unwrap_err(), BadPattern::Regex(_)), "{broken}");
        }
    }
}
