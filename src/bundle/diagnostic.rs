//! Errors in source files, with their position.

use std::fmt;

/// One error in a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's name in messages.
    pub file: String,
    /// Counted from 1; 0 stands for the whole file.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The error, in one line.
    pub reason: String,
    /// The source line; empty if it is not known.
    pub source: String,
}

impl Diagnostic {
    /// `place` is `FILE:LINE:COLUMN` or `FILE`; `text` is the whole source.
    pub(super) fn new(place: &str, reason: String, text: &str) -> Self {
        let mut parts = place.rsplitn(3, ':');
        let (column, line) = (parts.next(), parts.next());
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<usize>().ok());
        let (file, line, column) = match (parts.next(), number(line), number(column)) {
            (Some(file), Some(line), Some(column)) => (file, line, column),
            _ => (place, 0, 0),
        };
        let source = line
            .checked_sub(1)
            .and_then(|line| text.lines().nth(line))
            .unwrap_or_default();
        Self {
            file: file.to_owned(),
            line,
            column,
            reason,
            source: source.to_owned(),
        }
    }

    /// `FILE:LINE:COLUMN`, or `FILE` for the whole file.
    pub fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.reason)
    }
}

/// Moves a `LINE:COLUMN: ` at the start of `reason` to the end of `place`.
pub(super) fn with_position(place: &str, reason: &str) -> (String, String) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match reason.split_once(": ") {
        Some((position, rest)) if position.split(':').all(is_number) => {
            (format!("{place}:{position}"), rest.to_owned())
        }
        _ => (place.to_owned(), reason.to_owned()),
    }
}
