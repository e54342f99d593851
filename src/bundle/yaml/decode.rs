//! Decodes nodes to values, by the rules of go-yaml 3 (`decode.go`) for a target without a type.
//!
//! The decoder is a loop over frames instead of a recursion: neither depth nor aliases cost stack.
//! go-yaml counts the nodes that it decodes, and those that it decodes through aliases, and refuses
//! a text if the share of the latter is too high; so the order of the steps is that of go-yaml.

use std::collections::{HashMap, HashSet};

use super::{
    YamlError, binary,
    key::Key,
    object::{self, Member, ValueId},
    resolve,
    scalar::{Scalar, Tag},
    timestamp::Timestamp,
    tree::{Kind, NodeId, Tree},
};

/// Up to this number of decoded nodes, 99 of 100 may come from aliases.
const ALIAS_RANGE_LOW: f64 = 400_000.0;
/// From this number on, 10 of 100 may; between the two the share falls linearly.
const ALIAS_RANGE_HIGH: f64 = 4_000_000.0;

pub(super) const TOO_LARGE: &str = "aliases (`*name`) make the text too large";

#[derive(Debug)]
pub(super) struct Value<'a> {
    /// The node of the value, for messages.
    pub(super) node: NodeId,
    pub(super) content: Content<'a>,
}

#[derive(Debug)]
pub(super) enum Content<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(&'a str),
    /// A `!!binary` value, which need not be UTF-8.
    Bytes(Vec<u8>),
    Time(Timestamp),
    Sequence(Vec<ValueId>),
    /// Sorted by name.
    Object(Vec<Member<'a>>),
    /// A mapping that JSON can't represent. It is an error only if it is part of the result.
    NotAnObject(String),
}

/// The values of a document, the last of which is the document itself. Their texts, each as
/// often as it is decoded, may have `max_bytes` together.
pub(super) fn decode(
    tree: &Tree,
    root: NodeId,
    max_bytes: usize,
) -> Result<Vec<Value<'_>>, YamlError> {
    let mut decoder = Decoder::new(tree, max_bytes);
    let mut made = decoder.enter(root)?;
    while let Some(frame) = decoder.frames.pop() {
        made = match frame {
            Frame::Alias(alias) => {
                decoder.leave_alias(alias);
                made
            }
            Frame::Sequence(sequence) => decoder.step_sequence(sequence, made)?,
            Frame::Mapping(mapping) => decoder.step_mapping(mapping, made)?,
        };
    }
    Ok(decoder.values)
}

#[derive(Debug)]
enum Frame {
    Alias(NodeId),
    Sequence(SequenceFrame),
    Mapping(MappingFrame),
}

#[derive(Debug)]
struct SequenceFrame {
    node: NodeId,
    next: usize,
    items: Vec<ValueId>,
}

#[derive(Debug)]
struct MappingFrame {
    node: NodeId,
    /// The next key among the children.
    next: usize,
    origin: Origin,
    merge: Option<NodeId>,
    /// The mappings that `merge` names, last one first.
    sources: Vec<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The mapping is a value with a target of its own.
    Value,
    /// The mapping is merged into the one below it on the stack, through an alias or directly.
    Merge { alias: Option<NodeId> },
}

/// The object that the topmost mappings are decoded into.
#[derive(Debug, Default)]
struct Target<'a> {
    members: HashMap<Key<'a>, ValueId>,
    /// The key whose value is being decoded.
    pending: Option<Key<'a>>,
    /// Whether all keys are strings, so that merged keys become strings as well.
    has_text_keys: bool,
    /// The keys that merged mappings may not set, once merging has begun.
    set: HashSet<Key<'a>>,
}

struct Decoder<'a> {
    tree: &'a Tree,
    values: Vec<Value<'a>>,
    frames: Vec<Frame>,
    targets: Vec<Target<'a>>,
    open_aliases: HashSet<NodeId>,
    decoded: u32,
    decoded_by_alias: u32,
    bytes_left: usize,
}

impl<'a> Decoder<'a> {
    fn new(tree: &'a Tree, max_bytes: usize) -> Self {
        Self {
            tree,
            values: Vec::new(),
            frames: Vec::new(),
            targets: Vec::new(),
            open_aliases: HashSet::new(),
            // The document itself is a node, too.
            decoded: 1,
            decoded_by_alias: 0,
            bytes_left: max_bytes,
        }
    }

    /// Begins a node. A scalar is complete at once.
    fn enter(&mut self, node: NodeId) -> Result<Option<ValueId>, YamlError> {
        self.count(node)?;
        let target = self.tree.target(node);
        if target != node {
            self.enter_alias(node)?;
            self.frames.push(Frame::Alias(node));
            self.count(target)?;
        }
        match self.tree.node(target).kind {
            Kind::Sequence => {
                self.frames.push(Frame::Sequence(SequenceFrame {
                    node: target,
                    next: 0,
                    items: Vec::new(),
                }));
                Ok(None)
            }
            Kind::Mapping => {
                self.check_unique_keys(target)?;
                let has_text_keys = self.has_text_keys(target);
                self.targets.push(Target {
                    has_text_keys,
                    ..Target::default()
                });
                self.enter_mapping(target, Origin::Value);
                Ok(None)
            }
            Kind::Scalar | Kind::Alias(_) => self
                .scalar(target)
                .map(|content| Some(self.add(target, content))),
        }
    }

    fn count(&mut self, node: NodeId) -> Result<(), YamlError> {
        self.decoded = self.decoded.saturating_add(1);
        if !self.open_aliases.is_empty() {
            self.decoded_by_alias = self.decoded_by_alias.saturating_add(1);
        }
        let bytes_left = self.bytes_left.checked_sub(self.tree.text(node).len());
        self.bytes_left = bytes_left.ok_or_else(|| self.tree.error(node, TOO_LARGE))?;
        let (all, aliased) = (f64::from(self.decoded), f64::from(self.decoded_by_alias));
        if aliased > 100.0 && all > 1000.0 && aliased / all > allowed_share(all) {
            return Err(self
                .tree
                .error(node, "aliases (`*name`) make up too much of the text"));
        }
        Ok(())
    }

    fn enter_alias(&mut self, alias: NodeId) -> Result<(), YamlError> {
        if !self.open_aliases.insert(alias) {
            let reason = format!(
                "the value of the anchor &{} contains itself",
                self.tree.text(alias)
            );
            return Err(self.tree.error(alias, reason));
        }
        Ok(())
    }

    fn leave_alias(&mut self, alias: NodeId) {
        self.open_aliases.remove(&alias);
    }

    fn add(&mut self, node: NodeId, content: Content<'a>) -> ValueId {
        self.values.push(Value { node, content });
        self.values.len() - 1
    }

    fn scalar(&self, node: NodeId) -> Result<Content<'a>, YamlError> {
        let text = self.tree.text(node);
        if self.tree.node(node).tag == Tag::Binary {
            return self.binary(node).map(Content::Bytes);
        }
        Ok(match self.resolve(node)? {
            Scalar::Null => Content::Null,
            Scalar::Bool(bool) => Content::Bool(bool),
            Scalar::Int(int) => Content::Int(int),
            Scalar::Uint(int) => Content::Uint(int),
            Scalar::Float(float) => Content::Float(float),
            Scalar::Text => Content::Text(text),
            Scalar::Time(time) => Content::Time(time),
        })
    }

    fn resolve(&self, node: NodeId) -> Result<Scalar, YamlError> {
        resolve::resolve(self.tree.node(node).tag, self.tree.text(node))
            .map_err(|reason| self.tree.error(node, reason))
    }

    fn binary(&self, node: NodeId) -> Result<Vec<u8>, YamlError> {
        let bytes = binary::decode(self.tree.text(node));
        bytes.ok_or_else(|| self.tree.error(node, "the value of !!binary is not base64"))
    }

    fn step_sequence(
        &mut self,
        mut frame: SequenceFrame,
        made: Option<ValueId>,
    ) -> Result<Option<ValueId>, YamlError> {
        frame.items.extend(made);
        let Some(child) = self.tree.node(frame.node).children.get(frame.next).copied() else {
            return Ok(Some(self.add(frame.node, Content::Sequence(frame.items))));
        };
        frame.next += 1;
        self.frames.push(Frame::Sequence(frame));
        self.enter(child)
    }
}

/// Mappings.
impl<'a> Decoder<'a> {
    /// Begins a mapping whose target is the topmost one.
    fn enter_mapping(&mut self, node: NodeId, origin: Origin) {
        let frame = MappingFrame {
            node,
            next: 0,
            origin,
            merge: None,
            sources: Vec::new(),
        };
        self.frames.push(Frame::Mapping(frame));
    }

    fn step_mapping(
        &mut self,
        mut frame: MappingFrame,
        made: Option<ValueId>,
    ) -> Result<Option<ValueId>, YamlError> {
        self.set_pending(made);
        while let Some([key, value]) = self.pair(frame.node, frame.next) {
            frame.next += 2;
            if self.is_merge(key) {
                frame.merge = Some(value);
            } else if self.take_key(key, frame.origin != Origin::Value)? {
                self.frames.push(Frame::Mapping(frame));
                return self.enter(value);
            }
        }
        if let Some(merge) = frame.merge.take() {
            if frame.origin == Origin::Value {
                self.record_set_keys(frame.node)?;
            }
            frame.sources = self.merge_sources(merge)?;
        }
        if let Some(source) = frame.sources.pop() {
            self.frames.push(Frame::Mapping(frame));
            return self.enter_merged(source).map(|()| None);
        }
        match frame.origin {
            Origin::Value => return Ok(self.end_object(frame.node)),
            Origin::Merge { alias: Some(alias) } => self.leave_alias(alias),
            Origin::Merge { alias: None } => {}
        }
        Ok(None)
    }

    fn pair(&self, node: NodeId, at: usize) -> Option<[NodeId; 2]> {
        self.tree
            .node(node)
            .children
            .get(at..)?
            .first_chunk()
            .copied()
    }

    fn set_pending(&mut self, made: Option<ValueId>) {
        let Some(target) = self.targets.last_mut() else {
            return;
        };
        if let (Some(key), Some(value)) = (target.pending.take(), made) {
            // A Go map replaces a key by an equal one, such as 0.0 by -0.0.
            target.members.remove(&key);
            target.members.insert(key, value);
        }
    }

    /// Decodes a key and makes it the pending one. Returns false if its value is to be skipped.
    fn take_key(&mut self, node: NodeId, is_merged: bool) -> Result<bool, YamlError> {
        let has_text_keys = self
            .targets
            .last()
            .is_some_and(|target| target.has_text_keys);
        let Some(key) = self.key(node, has_text_keys)? else {
            return Ok(false);
        };
        let Some(target) = self.targets.last_mut() else {
            return Ok(false);
        };
        if is_merged && !target.set.insert(key.clone()) {
            return Ok(false);
        }
        target.pending = Some(key);
        Ok(true)
    }

    /// Decodes a key. With `as_text`, a scalar of any type is its text, and null is no key.
    fn key(&mut self, node: NodeId, as_text: bool) -> Result<Option<Key<'a>>, YamlError> {
        self.count(node)?;
        let target = self.tree.target(node);
        if target != node {
            self.enter_alias(node)?;
            self.count(target)?;
            self.leave_alias(node);
        }
        let (kind, tag) = (self.tree.node(target).kind, self.tree.node(target).tag);
        if kind != Kind::Scalar {
            return Err(self.tree.error(
                node,
                "a mapping key can't be a sequence or a mapping, because JSON has string keys only",
            ));
        }
        let text = self.tree.text(target);
        if tag == Tag::Binary {
            return Ok(Some(Key::Text(self.binary(target)?.into())));
        }
        Ok(match self.resolve(target)? {
            Scalar::Null if as_text => None,
            _ if as_text => Some(Key::Text(text.as_bytes().into())),
            scalar => Some(Key::new(&scalar, text)),
        })
    }

    fn end_object(&mut self, node: NodeId) -> Option<ValueId> {
        let target = self.targets.pop()?;
        let content = match object::members(target.members) {
            Ok(members) => Content::Object(members),
            Err(reason) => Content::NotAnObject(reason),
        };
        Some(self.add(node, content))
    }

    /// Refuses a mapping with two keys of the same text. Keys with the same name in JSON were
    /// removed before, except aliases, timestamps and null.
    fn check_unique_keys(&self, mapping: NodeId) -> Result<(), YamlError> {
        let mut known = HashSet::new();
        for key in self.tree.node(mapping).children.iter().step_by(2) {
            let kind = std::mem::discriminant(&self.tree.node(*key).kind);
            if !known.insert((kind, self.tree.text(*key))) {
                return Err(self.tree.error(*key, "duplicate key in a mapping"));
            }
        }
        Ok(())
    }

    fn has_text_keys(&self, mapping: NodeId) -> bool {
        let tag = |key: &NodeId| self.tree.node(self.tree.target(*key)).tag;
        self.tree
            .node(mapping)
            .children
            .iter()
            .step_by(2)
            .all(|key| matches!(tag(key), Tag::Str | Tag::Merge))
    }
}

/// Merge keys.
impl Decoder<'_> {
    fn is_merge(&self, key: NodeId) -> bool {
        let node = self.tree.node(key);
        node.kind == Kind::Scalar && node.tag == Tag::Merge && self.tree.text(key) == "<<"
    }

    /// Records the keys of the mapping itself, which take precedence over merged keys.
    fn record_set_keys(&mut self, mapping: NodeId) -> Result<(), YamlError> {
        for key in self.tree.node(mapping).children.iter().step_by(2) {
            if let (Some(key), Some(target)) = (self.key(*key, false)?, self.targets.last_mut()) {
                target.set.insert(key);
            }
        }
        Ok(())
    }

    /// The mappings, or aliases of mappings, that a merge key names, last one first.
    fn merge_sources(&self, merge: NodeId) -> Result<Vec<NodeId>, YamlError> {
        let node = self.tree.node(merge);
        let sources = match node.kind {
            Kind::Sequence => node.children.iter().rev().copied().collect(),
            _ => vec![merge],
        };
        match sources
            .iter()
            .find(|source| self.tree.node(self.tree.target(**source)).kind != Kind::Mapping)
        {
            Some(other) => Err(self.tree.error(
                *other,
                "a merge key `<<` takes a mapping or a sequence of mappings",
            )),
            None => Ok(sources),
        }
    }

    fn enter_merged(&mut self, source: NodeId) -> Result<(), YamlError> {
        self.count(source)?;
        let mapping = self.tree.target(source);
        let mut alias = None;
        if mapping != source {
            self.enter_alias(source)?;
            self.count(mapping)?;
            alias = Some(source);
        }
        self.check_unique_keys(mapping)?;
        self.enter_mapping(mapping, Origin::Merge { alias });
        Ok(())
    }
}

/// The share of nodes that may be decoded through aliases.
fn allowed_share(decoded: f64) -> f64 {
    if decoded <= ALIAS_RANGE_LOW {
        0.99
    } else if decoded >= ALIAS_RANGE_HIGH {
        0.10
    } else {
        0.99 - 0.89 * ((decoded - ALIAS_RANGE_LOW) / (ALIAS_RANGE_HIGH - ALIAS_RANGE_LOW))
    }
}
