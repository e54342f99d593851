//! The YAML text as a tree with line numbers, so that every error can name the line of its key.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::{
    key_path::{Segment, shortened},
    keys,
    problem::{ConfigError, Message, Problem},
};

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Counted from 1.
    pub(super) line: u64,
    /// In characters, counted from 1.
    pub(super) column: u64,
}

/// A value and the place where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A YAML value.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// The entries in the order of the file.
    Mapping(Vec<(Key, Node)>),
    /// A placeholder for a removed list item, so that the others keep their index.
    Removed,
}

/// A key and its place.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) name: String,
}

/// The maximum nesting of the configuration, whose keys nest less than 10 levels. The parser recurses,
/// and unoptimised it needs up to 32 KiB of stack for a level.
const MAX_DEPTH: usize = 24;

impl Place {
    fn of(location: Location) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
        }
    }
}

impl Node {
    /// Parses YAML. The parser's budget bounds depth, aliases and size.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! {
            // `unique_keys` finds duplicates, and names the whole path of the key.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            // YAML 1.2 has only `true` and `false`; `no` is text, in an annotation for example.
            strict_booleans: true,
            with_snippet: false,
            budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        };
        let node: Self = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let place = error
                .location()
                .filter(|location| location.line() > 0)
                .map(Place::of);
            if let serde_saphyr::Error::MultipleDocuments { .. } = error.without_snippet() {
                return ConfigError::whole(
                    place,
                    "a second YAML document begins here; keep one".to_owned(),
                );
            }
            ConfigError::whole(place, syntax_error(&error.without_snippet().to_string()))
        })?;
        Ok(node)
    }

    /// Removes the value at `path`, or its nearest existing ancestor. Of several keys with the same
    /// name the last one is removed. Returns the path of the removed value; `None` if that would be
    /// the root.
    pub(super) fn remove(&mut self, path: &[Segment]) -> Option<Vec<Segment>> {
        let (first, rest) = path.split_first()?;
        match (&mut self.value, first) {
            (Value::Mapping(entries), Segment::Key(name)) => {
                let at = entries.iter().rposition(|(key, _)| key.name == *name)?;
                let removed = entries[at].1.remove(rest);
                if removed.is_none() {
                    entries.remove(at);
                }
                Some(
                    std::iter::once(first.clone())
                        .chain(removed.unwrap_or_default())
                        .collect(),
                )
            }
            (Value::List(items), Segment::Index(index)) => {
                let item = items.get_mut(*index)?;
                let removed = item.remove(rest);
                if removed.is_none() {
                    item.value = Value::Removed;
                }
                Some(
                    std::iter::once(first.clone())
                        .chain(removed.unwrap_or_default())
                        .collect(),
                )
            }
            _ => None,
        }
    }

    /// Replaces the value at `path` with a text. Returns whether it exists.
    pub(super) fn replace(&mut self, path: &[Segment], text: &str) -> bool {
        let Some((first, rest)) = path.split_first() else {
            self.value = Value::Text(text.to_owned());
            return true;
        };
        match (&mut self.value, first) {
            (Value::Mapping(entries), Segment::Key(name)) => entries
                .iter_mut()
                .rev()
                .find(|(key, _)| key.name == *name)
                .is_some_and(|(_, node)| node.replace(rest, text)),
            (Value::List(items), Segment::Index(index)) => items
                .get_mut(*index)
                .is_some_and(|item| item.replace(rest, text)),
            _ => false,
        }
    }

    /// Converts a path to the indices in the file: readers of the tree do not count removed
    /// items.
    pub(super) fn in_file(&self, path: &[Segment]) -> Vec<Segment> {
        let Some((first, rest)) = path.split_first() else {
            return Vec::new();
        };
        let (first, below) = match (&self.value, first) {
            (Value::List(items), Segment::Index(index)) => {
                let mut left = items
                    .iter()
                    .enumerate()
                    .filter(|(_, item)| !matches!(item.value, Value::Removed));
                match left.nth(*index) {
                    Some((index, item)) => (Segment::Index(index), Some(item)),
                    None => (first.clone(), None),
                }
            }
            (Value::Mapping(entries), Segment::Key(name)) => {
                let entry = entries.iter().rev().find(|(key, _)| key.name == *name);
                (first.clone(), entry.map(|(_, node)| node))
            }
            _ => (first.clone(), None),
        };
        let rest = below.map_or_else(|| rest.to_vec(), |node| node.in_file(rest));
        std::iter::once(first).chain(rest).collect()
    }

    /// The place of the value at `path`, or of its nearest existing ancestor.
    pub(super) fn place_of(&self, path: &[Segment]) -> Place {
        let Some((first, rest)) = path.split_first() else {
            return self.place;
        };
        match (&self.value, first) {
            // An error about a duplicate key is about the last one.
            (Value::Mapping(entries), Segment::Key(name)) => entries
                .iter()
                .rev()
                .find(|(key, _)| key.name == *name)
                .map_or(self.place, |(key, node)| match (rest, &node.value) {
                    ([], _) => key.place,
                    _ => node.place_of(rest),
                }),
            (Value::List(items), Segment::Index(index)) => items
                .get(*index)
                .map_or(self.place, |node| node.place_of(rest)),
            _ => self.place,
        }
    }

    /// Adds line and key path to a problem whose path begins at this node.
    pub(super) fn locate(&self, problem: Problem) -> ConfigError {
        let path = self.in_file(&problem.path());
        let message = match &problem.message {
            Message::Text(text) => shortened(text, MAX_MESSAGE_CHARS),
            Message::UnknownKey(known) => keys::unknown(&path, known),
        };
        ConfigError::at(&path, self.place_of(&path), message, problem.missing_file)
    }

    /// The value of the key `name` in a mapping.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries
                .iter()
                .find(|(key, _)| key.name == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// An error for the first duplicate key.
    pub(super) fn unique_keys(&self) -> Result<(), Problem> {
        match &self.value {
            Value::Mapping(entries) => {
                let mut first_lines: HashMap<&str, u64> = HashMap::with_capacity(entries.len());
                entries.iter().try_for_each(|(key, node)| {
                    if let Some(first) = first_lines.insert(&key.name, key.place.line) {
                        let message = format!("duplicate key, first on line {first}; keep one");
                        return Err(Problem::new(message).at(&key.name));
                    }
                    node.unique_keys().map_err(|problem| problem.at(&key.name))
                })
            }
            Value::List(items) => items.iter().enumerate().try_for_each(|(index, node)| {
                node.unique_keys()
                    .map_err(|problem| problem.at_index(index))
            }),
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Removed => Ok(()),
        }
    }
}

/// The message for an error of the parser, without the place, which the error has itself.
fn syntax_error(reason: &str) -> String {
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let reason = reason
        .split_once(" at line ")
        .map_or(reason.as_str(), |(reason, _)| reason);
    if reason.starts_with("budget breached") {
        return "too many values, or too deeply nested, with all aliases (`*NAME`) replaced; write \
                fewer"
            .to_owned();
    }
    let fix = match reason.starts_with("tabs ") {
        true => "indent by spaces",
        false => "correct the syntax",
    };
    format!("this is not YAML: {reason}; {fix}")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            place: Place::of(spanned.referenced),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self {
            place: Place::of(spanned.referenced),
            name: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Mapping(entries))
    }
}

/// The maximum length of a message that quotes a long value, in characters.
const MAX_MESSAGE_CHARS: usize = 1000;
