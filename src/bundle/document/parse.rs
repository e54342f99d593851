//! Parses JSON and YAML data files into documents, as OPA does, and keeps the required detail only.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
};

use super::{Document, Node, NodeId, member_memory};
use crate::bundle::{
    json::{JsonError, JsonReader, Token},
    yaml,
};

/// The maximum number of keys that are kept of documents which have to be compared: those that
/// overlap, and those that reach outside the roots. A key takes about 100 bytes.
const MAX_OUTLINE_KEYS: usize = 1 << 20;

/// The part of a document that is kept.
#[derive(Clone, Copy)]
pub(in crate::bundle) enum Detail<'a> {
    /// Everything.
    Values,
    /// Everything, in at most this number of bytes of memory ([`Document::memory`]).
    ValuesWithin(u64),
    /// The objects and their keys.
    Objects,
    /// The objects and their keys, without the content of pruned objects.
    Outline {
        /// The path at which the document is mounted.
        mount: &'a [String],
        /// Whether an object is pruned, by its path from the root of all data, such as `a/b`.
        prunes: &'a dyn Fn(&str) -> bool,
    },
}

impl Detail<'_> {
    fn keeps_values(self) -> bool {
        matches!(self, Self::Values | Self::ValuesWithin(_))
    }
}

/// The first JSON value of a file.
pub(in crate::bundle) struct FirstValue {
    pub(in crate::bundle) document: Document,
    /// Its length with the whitespace before it, in bytes.
    pub(in crate::bundle) length: u64,
    /// Whether nothing but whitespace follows it.
    pub(in crate::bundle) is_whole: bool,
}

/// An error in parsing a document.
#[derive(Debug, thiserror::Error)]
pub(in crate::bundle) enum DocumentError {
    /// OPA would refuse it; the sentence begins with `LINE:COLUMN` if that is known.
    #[error("{0}")]
    Syntax(String),
    /// It can't be read.
    #[error(transparent)]
    Io(io::Error),
    /// It has too many keys to compare.
    #[error(
        "more than {MAX_OUTLINE_KEYS} keys to compare with other data files or roots; put all data into one file"
    )]
    TooManyKeys,
    /// It takes too much memory to compare or hash its values.
    #[error("its values take more than {limit} bytes of memory; split the data, or remove some")]
    TooMuchMemory {
        /// The limit.
        limit: u64,
    },
}

impl From<JsonError> for DocumentError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Io(error) => Self::Io(error),
            syntax @ JsonError::Syntax { .. } => Self::Syntax(syntax.to_string()),
        }
    }
}

impl Document {
    /// Parses a `data.json` as OPA does.
    ///
    /// # Errors
    /// When OPA would refuse it.
    pub(in crate::bundle) fn of_json(
        content: impl BufRead,
        detail: Detail<'_>,
    ) -> Result<Self, DocumentError> {
        let mut reader = JsonReader::new(content);
        let document = Builder::read(&mut reader, detail)?;
        reader.end()?;
        Ok(document)
    }

    /// Parses the first JSON value of a file, and ignores what follows it.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(in crate::bundle) fn of_first_value(content: &[u8]) -> Result<Self, DocumentError> {
        Builder::read(&mut JsonReader::new(content), Detail::Values)
    }

    /// As [`Self::of_first_value`], of a stream, with the place where the value ends.
    ///
    /// # Errors
    /// When it does not begin with JSON.
    pub(in crate::bundle) fn of_start(
        content: impl BufRead,
        detail: Detail<'_>,
    ) -> Result<FirstValue, DocumentError> {
        let mut content = CountedReader {
            inner: content,
            count: 0,
        };
        let document = Builder::read(&mut JsonReader::new(&mut content), detail)?;
        Ok(FirstValue {
            document,
            length: content.count,
            is_whole: JsonReader::new(&mut content).is_at_end(),
        })
    }

    /// Parses a `data.yaml` as OPA 1.22 does: as JSON if it is valid JSON, and otherwise as YAML.
    ///
    /// # Errors
    /// When OPA would refuse it.
    pub(in crate::bundle) fn of_yaml(
        content: &[u8],
        detail: Detail<'_>,
    ) -> Result<Self, DocumentError> {
        let content = without_bom(content);
        if is_json(content) {
            return Self::of_json(content, detail);
        }
        let json =
            yaml::to_json(content).map_err(|error| DocumentError::Syntax(error.to_string()))?;
        Self::of_json(json.as_slice(), detail)
    }

    /// Parses a data file as JSON or YAML, by its name.
    ///
    /// # Errors
    /// When OPA would refuse it.
    pub(in crate::bundle) fn of_file(
        name: &str,
        content: &[u8],
        detail: Detail<'_>,
    ) -> Result<Self, DocumentError> {
        if name.ends_with(".json") {
            Self::of_json(content, detail)
        } else {
            Self::of_yaml(content, detail)
        }
    }
}

/// Counts the bytes that are consumed.
struct CountedReader<R> {
    inner: R,
    count: u64,
}

impl<R: BufRead> Read for CountedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for CountedReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.count += length as u64;
        self.inner.consume(length);
    }
}

/// A document that is being parsed.
struct Builder<'a> {
    document: Document,
    detail: Detail<'a>,
    /// The arrays and objects that are open.
    open: Vec<OpenContainer>,
    keys: usize,
    /// The memory that it takes so far, in bytes; counted for [`Detail::ValuesWithin`] only.
    memory: u64,
}

struct OpenContainer {
    node: NodeId,
    /// The key of the next value.
    key: Option<Box<str>>,
    /// Its path from the root of all data, as OPA writes it; empty unless an outline is kept.
    path: String,
}

impl<'a> Builder<'a> {
    fn read<R: BufRead>(
        reader: &mut JsonReader<R>,
        detail: Detail<'a>,
    ) -> Result<Document, DocumentError> {
        let document = Document {
            nodes: Vec::new(),
            origins: Vec::new(),
        };
        let mut builder = Self {
            document,
            detail,
            open: Vec::new(),
            keys: 0,
            memory: 0,
        };
        while let Some(token) = reader.next()? {
            match token {
                Token::Key(key) => builder.key(key)?,
                Token::Null => builder.value(Node::Null)?,
                Token::Bool(value) => builder.value(Node::Bool(value))?,
                Token::Number(text) => builder.value(Node::Number(text.into()))?,
                Token::String(text) => builder.value(Node::String(text.into()))?,
                Token::StartArray if detail.keeps_values() => {
                    builder.container(Node::Array(Vec::new()), String::new())?;
                }
                Token::StartArray => {
                    reader.skip_container()?;
                    builder.value(Node::Outlined)?;
                }
                Token::StartObject => {
                    let path = builder.path();
                    if builder.is_pruned(&path) {
                        reader.skip_container()?;
                        builder.value(Node::Pruned)?;
                    } else {
                        builder.container(Node::Object(BTreeMap::new()), path)?;
                    }
                }
                Token::EndArray | Token::EndObject => drop(builder.open.pop()),
            }
        }
        builder
            .document
            .origins
            .resize(builder.document.nodes.len(), 0);
        Ok(builder.document)
    }

    fn key(&mut self, key: &str) -> Result<(), DocumentError> {
        self.count(member_memory(key) as u64)?;
        if !self.detail.keeps_values() {
            self.keys += 1;
            if self.keys > MAX_OUTLINE_KEYS {
                return Err(DocumentError::TooManyKeys);
            }
        }
        if let Some(open) = self.open.last_mut() {
            open.key = Some(key.into());
        }
        Ok(())
    }

    /// Counts memory, and fails above the limit.
    fn count(&mut self, bytes: u64) -> Result<(), DocumentError> {
        let Detail::ValuesWithin(limit) = self.detail else {
            return Ok(());
        };
        self.memory += bytes;
        if self.memory > limit {
            return Err(DocumentError::TooMuchMemory { limit });
        }
        Ok(())
    }

    fn value(&mut self, node: Node) -> Result<(), DocumentError> {
        let outlined = !self.detail.keeps_values() && !matches!(node, Node::Pruned);
        self.count(node.memory())?;
        self.add(if outlined { Node::Outlined } else { node });
        Ok(())
    }

    fn container(&mut self, node: Node, path: String) -> Result<(), DocumentError> {
        self.count(node.memory())?;
        let node = self.add(node);
        self.open.push(OpenContainer {
            node,
            key: None,
            path,
        });
        Ok(())
    }

    /// Adds a node to the open container. Of duplicate members the last counts.
    fn add(&mut self, node: Node) -> NodeId {
        let id = self.document.nodes.len();
        self.document.nodes.push(node);
        let Some(open) = self.open.last_mut() else {
            return id;
        };
        match (&mut self.document.nodes[open.node], open.key.take()) {
            (Node::Object(members), Some(key)) => drop(members.insert(key, id)),
            (Node::Array(items), _) => items.push(id),
            _ => {}
        }
        id
    }

    fn path(&self) -> String {
        match (self.detail, self.open.last()) {
            (Detail::Outline { mount, .. }, None) => {
                mount.iter().map(|key| format!("/{key}")).collect()
            }
            (Detail::Outline { .. }, Some(open)) => {
                format!("{}/{}", open.path, open.key.as_deref().unwrap_or_default())
            }
            _ => String::new(),
        }
    }

    fn is_pruned(&self, path: &str) -> bool {
        matches!(self.detail, Detail::Outline { prunes, .. } if prunes(path.trim_matches('/')))
    }
}

/// Whether the whole content is one JSON value (`json.Valid`).
pub(in crate::bundle) fn is_json(content: &[u8]) -> bool {
    let content = without_bom(content);
    let mut reader = JsonReader::new(content);
    let read = loop {
        match reader.next() {
            Ok(Some(Token::StartArray | Token::StartObject)) => {
                if reader.skip_container().is_err() {
                    break false;
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    read && reader.is_at_end()
}

fn without_bom(content: &[u8]) -> &[u8] {
    content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content)
}
