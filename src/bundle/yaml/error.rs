//! The error for a YAML text.

use std::fmt;

/// A YAML text that OPA refuses, or whose value can't be represented exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bundle) struct YamlError {
    /// Counted from 1; every line break of YAML 1.1 counts.
    line: Option<u64>,
    /// In characters, counted from 1.
    column: Option<u64>,
    reason: String,
}

impl YamlError {
    /// An error at a position, both numbers counted from 1.
    pub(super) fn at(line: u64, column: u64, reason: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            column: Some(column),
            reason: reason.into(),
        }
    }

    /// The error without its position.
    #[cfg(test)]
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for YamlError {}
