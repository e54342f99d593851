//! What is wrong with a configuration, said in one sentence that names the key.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{keys, tree::Node};

/// Why a configuration is refused: the key, what is wrong with it, and the way out.
///
/// Holds no value of a secret file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: Option<PathBuf>,
    line: Option<u64>,
    key: String,
    sentence: String,
}

/// A problem on its way up to the root, which collects the path of its key.
#[derive(Debug)]
pub(super) struct Problem {
    /// From the inside out.
    path: Vec<Segment>,
    what: What,
}

/// One step from a value to one inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

#[derive(Debug)]
enum What {
    Sentence(String),
    /// A key that the schema lacks, and those that it has in that place.
    UnknownKey(&'static [&'static str]),
}

impl ConfigError {
    /// The path of the key, such as `bundles.authz/main.poll`; empty when the file as a
    /// whole is meant.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The line in the file, from 1.
    pub fn line(&self) -> Option<u64> {
        self.line
    }

    pub(super) fn unreadable(line: Option<u64>, sentence: String) -> Self {
        Self { file: None, line, key: String::new(), sentence }
    }

    pub(super) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..self }
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
        f.write_str(&self.sentence)
    }
}

impl Problem {
    /// Something that `sentence` says completely.
    pub(super) fn new(sentence: impl Into<String>) -> Self {
        Self { path: Vec::new(), what: What::Sentence(sentence.into()) }
    }

    /// A key that nobody knows in this place.
    pub(super) fn unknown_key(name: &str, known: &'static [&'static str]) -> Self {
        Self { path: vec![Segment::Key(name.to_owned())], what: What::UnknownKey(known) }
    }

    /// The same problem seen from the mapping that holds it under `key`.
    pub(super) fn at(mut self, key: &str) -> Self {
        self.path.push(Segment::Key(key.to_owned()));
        self
    }

    /// The same problem seen from the list that holds it.
    pub(super) fn at_index(mut self, index: usize) -> Self {
        self.path.push(Segment::Index(index));
        self
    }

    /// The path from the root, once it is complete.
    pub(super) fn path(&self) -> Vec<Segment> {
        self.path.iter().rev().cloned().collect()
    }

    /// Adds the line, once the path is complete.
    pub(super) fn into_error(self, root: &Node) -> ConfigError {
        let path = root.in_file(&self.path());
        let sentence = match &self.what {
            What::Sentence(sentence) => shortened(sentence, SENTENCE_CHARS),
            What::UnknownKey(known) => keys::unknown(&path, known),
        };
        ConfigError { file: None, line: Some(root.line_of(&path)), key: render(&path), sentence }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Sentence(sentence) => f.write_str(sentence),
            What::UnknownKey(_) => f.write_str("unknown key"),
        }
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(unexpected: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        let expected = match expected.to_string().as_str() {
            "a map" => "a mapping of keys".to_owned(),
            // Its name is ours.
            text if text.starts_with("struct ") => "a mapping of keys".to_owned(),
            "a sequence" => "a list".to_owned(),
            "a string" | "path string" => "text".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "u64" | "usize" => "a whole number".to_owned(),
            other => other.to_owned(),
        };
        let scalar = !matches!(unexpected, serde::de::Unexpected::Seq | serde::de::Unexpected::Map);
        let way_out = if expected == "text" && scalar { "put it into quotes" } else { "write that instead" };
        let unexpected = match unexpected {
            serde::de::Unexpected::Seq => "a list".to_owned(),
            serde::de::Unexpected::Map => "a mapping of keys".to_owned(),
            serde::de::Unexpected::Str(text) => format!("{text:?}"),
            other => format!("the {other}"),
        };
        Self::new(format!("{unexpected} stands where {expected} is wanted; {way_out}"))
    }

    fn invalid_value(unexpected: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown_key(field, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is missing; write it").at(field)
    }
}

/// The beginning and the end of a text that is too long for a line: the end has the way out.
fn shortened(text: &str, chars: usize) -> String {
    let length = text.chars().count();
    if length <= chars {
        return text.to_owned();
    }
    let start: String = text.chars().take(chars / 2).collect();
    let end: String = text.chars().skip(length - chars / 2).collect();
    format!("{start} … {end}")
}

/// What a person reads of a sentence that quotes something long.
const SENTENCE_CHARS: usize = 1000;
const KEY_CHARS: usize = 200;

/// `clients[0].bundles`; a key with dots in it, such as a host, stays as it is written.
fn render(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                // Errors are one line.
                for char in shortened(key, KEY_CHARS).chars() {
                    if char.is_control() { text.extend(char.escape_default()) } else { text.push(char) }
                }
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
