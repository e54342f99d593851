//! Errors in source files, printed with file, line, column and an excerpt with a caret.

use std::{fmt, path::Path};

use super::{read, table::printable};
use crate::bundle::{Diagnostic, PackError};

/// The maximum length of an excerpt, in characters.
const WIDTH: usize = 100;
/// The maximum size of a file that is read for an excerpt, in bytes.
const SOURCE_LIMIT: u64 = 16 << 20;

/// Errors in source files. `Display` prints the first one, on one line.
#[derive(Debug)]
pub(super) struct SourceErrors {
    errors: Vec<Diagnostic>,
    hint: Option<&'static str>,
}

impl fmt::Display for SourceErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.errors.first() {
            write!(f, "{first}")?;
        }
        self.hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for SourceErrors {}

impl SourceErrors {
    /// Converts an error in the files of a folder. `hint` is appended to errors in Rego.
    pub(super) fn of(error: PackError, hint: &'static str) -> anyhow::Error {
        match error {
            PackError::Rego { errors, .. } => Self {
                errors,
                hint: Some(hint),
            }
            .into(),
            PackError::File { place, reason } => match located(&place, &reason) {
                Some(error) => Self {
                    errors: vec![error],
                    hint: None,
                }
                .into(),
                None => PackError::File { place, reason }.into(),
            },
            error => error.into(),
        }
    }

    /// An error in a JSON text. `place` names the text in the message.
    pub(super) fn json(place: &str, text: &str, error: &serde_json::Error) -> anyhow::Error {
        let error = Diagnostic {
            file: place.to_owned(),
            line: error.line(),
            column: error.column(),
            reason: without_place(&error.to_string()).to_owned(),
            source: line_of(text, error.line()),
        };
        Self {
            errors: vec![error],
            hint: None,
        }
        .into()
    }
}

/// The lines to print below the message: the excerpt of the first error, then message and excerpt
/// of all others.
pub(super) fn source_excerpts(error: &anyhow::Error) -> Vec<String> {
    let Some(SourceErrors { errors, .. }) = error.chain().find_map(|cause| cause.downcast_ref())
    else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for (index, error) in errors.iter().enumerate() {
        if index > 0 {
            lines.push(printable(&error.to_string()));
        }
        lines.extend(excerpt(error));
    }
    lines
}

/// The source line and a caret below the column; empty if the line is unknown.
fn excerpt(error: &Diagnostic) -> Vec<String> {
    if error.line == 0 {
        return Vec::new();
    }
    let source: Vec<char> = error
        .source
        .chars()
        .map(|shown| if shown == '\t' { ' ' } else { shown })
        .collect();
    let column = error.column.saturating_sub(1).min(source.len());
    let from = column.saturating_sub(WIDTH / 2);
    let shown: String = source.iter().skip(from).take(WIDTH).collect();
    // Escaped characters are wider, which moves the caret.
    let before = printable(&source[from..column].iter().collect::<String>())
        .chars()
        .count();
    let number = error.line.to_string();
    vec![
        format!("  {number} | {}", printable(shown.trim_end())),
        format!("  {:width$} | {:before$}^", "", "", width = number.len()),
    ]
}

/// Parses an error location `FILE:LINE:COLUMN`, the form of errors in JSON and YAML.
fn located(place: &str, reason: &str) -> Option<Diagnostic> {
    let (rest, column) = place.rsplit_once(':')?;
    let (file, line) = rest.rsplit_once(':')?;
    let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
    let text = read::regular(Path::new(file), SOURCE_LIMIT).unwrap_or_default();
    Some(Diagnostic {
        file: file.to_owned(),
        line,
        column,
        reason: reason.to_owned(),
        source: line_of(&String::from_utf8_lossy(&text), line),
    })
}

fn line_of(text: &str, line: usize) -> String {
    line.checked_sub(1)
        .and_then(|line| text.lines().nth(line))
        .unwrap_or_default()
        .to_owned()
}

/// The location in `… at line 3 column 5`, with or without a comma.
fn place_in(reason: &str) -> Option<(usize, usize)> {
    let (_, place) = reason.rsplit_once(" line ")?;
    let (line, column) = place.split_once(" column ")?;
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    Some((
        line.trim_end_matches(',').parse().ok()?,
        column.parse().ok()?,
    ))
}

fn without_place(reason: &str) -> &str {
    match place_in(reason) {
        Some(_) => reason
            .rsplit_once(" at line ")
            .map_or(reason, |(reason, _)| reason),
        None => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: &str, column: usize) -> Diagnostic {
        Diagnostic {
            file: "p.rego".into(),
            line: 12,
            column,
            reason: "no".into(),
            source: source.into(),
        }
    }

    #[test]
    fn the_caret_is_below_the_column() {
        assert_eq!(
            excerpt(&error("\tx := 1 +", 9)),
            ["  12 |  x := 1 +", "     |         ^"]
        );
        assert_eq!(excerpt(&error("", 1)), ["  12 | ", "     | ^"]);
        let long = format!("{}!{}", "a".repeat(5000), "b".repeat(5000));
        let [line, mark] = excerpt(&error(&long, 5001)).try_into().unwrap();
        assert_eq!(line.find('!'), mark.find('^'));
        assert!(line.chars().count() < 120);
        assert!(!excerpt(&error("a\u{1b}[2J", 2)).concat().contains('\u{1b}'));
    }

    #[test]
    fn a_json_error_begins_with_its_location() {
        let text = "{\n  \"a\": 1,\n}\n";
        let reason = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
        let error = SourceErrors::json("data.json", text, &reason);
        assert_eq!(error.to_string(), "data.json:3:1: trailing comma");
        assert_eq!(source_excerpts(&error), ["  3 | }", "    | ^"]);
        assert_eq!(
            place_in("did not find it at line 3, column 5, while"),
            Some((3, 5))
        );
        assert_eq!(place_in("no place"), None);
    }
}
