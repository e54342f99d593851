//! Patterns for the names in certificates, as `KEY` and `KEY_regex`.

use super::problem::Problem;
use crate::verify::{BadPattern, Pattern};

/// A name in a certificate: `KEY`, with `*` in it, or `KEY_regex`.
pub(super) struct NameMatcher {
    pub(super) key: &'static str,
    /// Whether a certificate can have this name; a pattern for an impossible name never matches.
    pub(super) is: fn(&str) -> bool,
    pub(super) kind: &'static str,
}

impl NameMatcher {
    /// The pattern that is written under either key; `None` if there is none.
    pub(super) fn pattern(
        self,
        glob: Option<String>,
        regex: Option<String>,
    ) -> Result<Option<Pattern>, Problem> {
        let Self { key, is, kind } = self;
        let key_regex = format!("{key}_regex");
        match (glob, regex) {
            (Some(_), Some(_)) => Err(Problem::new(format!(
                "`{key}` and `{key_regex}` are alternatives; keep one"
            ))
            .at(&key_regex)),
            (Some(text), None) => {
                let pattern = Pattern::glob(&text).map_err(|error| refused(error).at(key))?;
                if !is(&text) || text.chars().any(char::is_control) {
                    return Err(Problem::new(format!(
                        "no certificate has {text:?} here; write {kind}"
                    ))
                    .at(key));
                }
                Ok(Some(pattern))
            }
            (None, Some(text)) => Pattern::regex(&text)
                .map(Some)
                .map_err(|error| refused(error).at(&key_regex)),
            (None, None) => Ok(None),
        }
    }
}

/// The problem with a pattern.
pub(super) fn refused(error: BadPattern) -> Problem {
    Problem::new(match error {
        BadPattern::Regex(_) => format!("{error}; correct it"),
        BadPattern::Empty | BadPattern::MatchesEverything => error.to_string(),
    })
}
