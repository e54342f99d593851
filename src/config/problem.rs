//! Errors in a configuration: one line that names the key.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    key_path::{Segment, render},
    tree::Place,
};
use crate::verify::InvalidPolicy;

/// An error in a configuration: key, problem and fix. Contains no content of secret files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: Option<PathBuf>,
    place: Option<Place>,
    key: String,
    message: String,
    missing_file: Option<PathBuf>,
}

/// An error whose key path is still incomplete: each level adds its key on the way to the root.
#[derive(Debug)]
pub(super) struct Problem {
    /// The innermost key comes first.
    path: Vec<Segment>,
    pub(super) message: Message,
    /// The file that does not exist, if that is the problem.
    pub(super) missing_file: Option<PathBuf>,
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

    /// The file of the configuration, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The line in the file, counted from 1.
    pub fn line(&self) -> Option<u64> {
        self.place.map(|place| place.line)
    }

    /// The column in the line, in characters, counted from 1.
    pub fn column(&self) -> Option<u64> {
        self.place.map(|place| place.column)
    }

    /// The problem and the fix, without file, place and key.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The file that the key names and that does not exist, if that is the error.
    pub fn missing_file(&self) -> Option<&Path> {
        self.missing_file.as_deref()
    }

    /// A configuration that can't be read; `name` stands for its file.
    pub fn unreadable(name: impl Into<PathBuf>, message: &str) -> Self {
        Self::whole(None, message.to_owned()).in_file(&name.into())
    }

    /// An error about the whole file.
    pub(super) fn whole(place: Option<Place>, message: String) -> Self {
        Self {
            file: None,
            place,
            key: String::new(),
            message,
            missing_file: None,
        }
    }

    /// An error about a key.
    pub(super) fn at(
        path: &[Segment],
        place: Place,
        message: String,
        missing_file: Option<PathBuf>,
    ) -> Self {
        Self {
            file: None,
            place: Some(place),
            key: render(path),
            message,
            missing_file,
        }
    }

    /// The place for sorting.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
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
        // As compilers write it, so that editors and CI can jump to the place.
        match (&self.file, self.place) {
            (Some(file), Some(Place { line, column })) => {
                write!(f, "{}:{line}:{column}: ", file.display())?;
            }
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(Place { line, column })) => write!(f, "line {line}, column {column}: ")?,
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
            missing_file: None,
        }
    }

    /// A problem with a file that does not exist.
    pub(super) fn missing(file: &Path, message: impl Into<String>) -> Self {
        Self {
            missing_file: Some(file.to_owned()),
            ..Self::new(message)
        }
    }

    /// An unknown key, with the known keys of its mapping.
    pub(super) fn unknown_key(name: &str, known: &'static [&'static str]) -> Self {
        Self {
            path: vec![Segment::Key(name.to_owned())],
            message: Message::UnknownKey(known),
            missing_file: None,
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
            "f64" => "a number".to_owned(),
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
