//! Errors in a configuration: one line that names the key.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::key_path::{Segment, render};
use crate::verify::InvalidPolicy;

/// An error in a configuration: key, problem and fix. Contains no content of secret files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: Option<PathBuf>,
    line: Option<u64>,
    key: String,
    message: String,
}

/// An error whose key path is still incomplete: each level adds its key on the way to the root.
#[derive(Debug)]
pub(super) struct Problem {
    /// The innermost key comes first.
    path: Vec<Segment>,
    pub(super) message: Message,
}

/// The text of a problem.
#[derive(Debug)]
pub(super) enum Message {
    Text(String),
    /// An unknown key, with the known keys of its mapping.
    UnknownKey(&'static [&'static str]),
}

impl ConfigError {
    /// The path of the key, such as `bundles.authz/main.poll`; empty if the error is about the
    /// whole file.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The line in the file, counted from 1.
    pub fn line(&self) -> Option<u64> {
        self.line
    }

    /// An error about the whole file.
    pub(super) fn unreadable(line: Option<u64>, message: String) -> Self {
        Self {
            file: None,
            line,
            key: String::new(),
            message,
        }
    }

    /// An error about a key.
    pub(super) fn at(path: &[Segment], line: u64, message: String) -> Self {
        Self {
            file: None,
            line: Some(line),
            key: render(path),
            message,
        }
    }

    /// Adds the name of the file.
    pub(super) fn in_file(self, file: &Path) -> Self {
        Self {
            file: Some(file.to_owned()),
            ..self
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}, line {line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl Problem {
    /// A problem with this message.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            message: Message::Text(message.into()),
        }
    }

    /// An unknown key, with the known keys of its mapping.
    pub(super) fn unknown_key(name: &str, known: &'static [&'static str]) -> Self {
        Self {
            path: vec![Segment::Key(name.to_owned())],
            message: Message::UnknownKey(known),
        }
    }

    /// Adds the key of the mapping that contains the value.
    pub(super) fn at(mut self, key: &str) -> Self {
        self.path.push(Segment::Key(key.to_owned()));
        self
    }

    /// Adds the index in the list that contains the value.
    pub(super) fn at_index(mut self, index: usize) -> Self {
        self.path.push(Segment::Index(index));
        self
    }

    /// The path of the key. Complete once the root has been reached.
    pub(super) fn path(&self) -> Vec<Segment> {
        self.path.iter().rev().cloned().collect()
    }
}

impl From<InvalidPolicy> for Problem {
    /// The key of the error may be several levels deep.
    fn from(InvalidPolicy { key, sentence }: InvalidPolicy) -> Self {
        key.split('.').rev().fold(Self::new(sentence), Self::at)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Message::Text(message) => f.write_str(message),
            Message::UnknownKey(_) => f.write_str("unknown key"),
        }
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(
        unexpected: serde::de::Unexpected<'_>,
        expected: &dyn serde::de::Expected,
    ) -> Self {
        let expected = match expected.to_string().as_str() {
            "a map" => "a mapping of keys".to_owned(),
            // serde names the Rust struct.
            text if text.starts_with("struct ") => "a mapping of keys".to_owned(),
            "a sequence" => "a list".to_owned(),
            "a string" | "path string" => "text".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "u64" | "usize" => "a whole number".to_owned(),
            other => other.to_owned(),
        };
        let scalar = !matches!(
            unexpected,
            serde::de::Unexpected::Seq | serde::de::Unexpected::Map
        );
        let hint = if expected == "text" && scalar {
            "put it in quotes"
        } else {
            "correct the value"
        };
        let unexpected = match unexpected {
            serde::de::Unexpected::Seq => "a list".to_owned(),
            serde::de::Unexpected::Map => "a mapping of keys".to_owned(),
            serde::de::Unexpected::Str(text) => format!("{text:?}"),
            other => format!("the {other}"),
        };
        Self::new(format!("expected {expected}, found {unexpected}; {hint}"))
    }

    fn invalid_value(
        unexpected: serde::de::Unexpected<'_>,
        expected: &dyn serde::de::Expected,
    ) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown_key(field, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("missing; write it").at(field)
    }
}
