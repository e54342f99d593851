//! Composes the events of the first document to nodes.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{
    YamlError,
    cursor::Mark,
    parser::{EventKind, Parser, Properties},
    resolve,
    scalar::Tag,
    token::Style,
};

/// The maximum number of nodes of a text, which take about 256 MiB.
const MAX_NODES: usize = 4 << 20;

pub(super) type NodeId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Scalar,
    Sequence,
    Mapping,
    Alias(NodeId),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// As written, or as resolved from the text of a plain scalar.
    pub(super) tag: Tag,
    /// Whether it is a scalar without quotes and without a tag.
    pub(super) is_plain: bool,
    line: u32,
    column: u32,
    text: Range<u32>,
    /// The items of a sequence, or keys and values of a mapping in turn.
    pub(super) children: Vec<NodeId>,
}

/// A document. An alias is a node that names another, so this is a graph, and may have cycles.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    text: String,
    pub(super) root: Option<NodeId>,
}

impl Tree {
    /// Parses a text to its end and keeps the first document.
    ///
    /// # Errors
    /// When go-yaml would refuse any document of the text, or the first has too many nodes.
    pub(super) fn parse(text: &str) -> Result<Self, YamlError> {
        let mut parser = Parser::new(text);
        let mut composer = Composer::default();
        loop {
            let event = parser.next()?;
            match event.kind {
                EventKind::StreamEnd => return Ok(composer.tree),
                EventKind::DocumentStart => {}
                EventKind::DocumentEnd => composer.is_first_complete = true,
                EventKind::CollectionEnd => drop(composer.open.pop()),
                EventKind::Alias(name) => composer.alias(name, event.mark)?,
                EventKind::Scalar {
                    properties,
                    value,
                    style,
                } => {
                    composer.scalar(properties, &value, style, event.mark)?;
                }
                EventKind::SequenceStart(properties) => {
                    composer.start(Kind::Sequence, Tag::Sequence, properties, event.mark)?;
                }
                EventKind::MappingStart(properties) => {
                    composer.start(Kind::Mapping, Tag::Mapping, properties, event.mark)?;
                }
            }
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[index(id)]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[index(id)]
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The text of a scalar, or the name of an alias.
    pub(super) fn text(&self, id: NodeId) -> &str {
        let range = &self.node(id).text;
        &self.text[index(range.start)..index(range.end)]
    }

    /// The node, or the node that it is an alias of.
    pub(super) fn target(&self, id: NodeId) -> NodeId {
        match self.node(id).kind {
            Kind::Alias(target) => target,
            _ => id,
        }
    }

    pub(super) fn error(&self, id: NodeId, reason: impl Into<String>) -> YamlError {
        let node = self.node(id);
        YamlError::at(node.line.into(), node.column.into(), reason)
    }

    /// Adds a sequence with the position of another node.
    pub(super) fn add_sequence(
        &mut self,
        at: NodeId,
        children: Vec<NodeId>,
    ) -> Result<NodeId, YamlError> {
        let Node { line, column, .. } = *self.node(at);
        let node = Node {
            kind: Kind::Sequence,
            tag: Tag::Sequence,
            is_plain: false,
            line,
            column,
            text: 0..0,
            children,
        };
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<NodeId, YamlError> {
        if self.nodes.len() >= MAX_NODES {
            let reason = format!("the text has more than {MAX_NODES} values");
            return Err(YamlError::at(node.line.into(), node.column.into(), reason));
        }
        let id = offset(self.nodes.len());
        self.nodes.push(node);
        Ok(id)
    }
}

#[derive(Debug, Default)]
struct Composer {
    tree: Tree,
    /// Collections that have started and not ended.
    open: Vec<NodeId>,
    /// The anchors of all documents so far, which go-yaml keeps. After the first document only
    /// their names matter.
    anchors: HashMap<String, NodeId>,
    later_anchors: HashSet<String>,
    is_first_complete: bool,
}

impl Composer {
    fn alias(&mut self, name: String, mark: Mark) -> Result<(), YamlError> {
        let target = self.anchors.get(&name).copied();
        if target.is_none() && !self.later_anchors.contains(&name) {
            return Err(mark.error(format!(
                "unknown alias *{name}: no anchor &{name} precedes it"
            )));
        }
        match target {
            Some(target) if !self.is_first_complete => self
                .add(Kind::Alias(target), Tag::Other, false, &name, mark)
                .map(drop),
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        properties: Properties,
        value: &str,
        style: Style,
        mark: Mark,
    ) -> Result<(), YamlError> {
        let is_plain = style == Style::Plain && properties.tag.is_none();
        let tag = match properties.tag.as_deref().and_then(Tag::parse) {
            Some(tag) => tag,
            None if style == Style::Plain => resolve::plain_tag(value),
            None => Tag::Str,
        };
        // The tag `!` is not kept, so the scalar counts as untagged.
        let is_plain =
            is_plain || (style == Style::Plain && properties.tag.as_deref() == Some(b"!"));
        if self.is_first_complete {
            self.later_anchors.extend(properties.anchor);
            return Ok(());
        }
        let id = self.add(Kind::Scalar, tag, is_plain, value, mark)?;
        self.anchors
            .extend(properties.anchor.map(|name| (name, id)));
        Ok(())
    }

    fn start(
        &mut self,
        kind: Kind,
        default: Tag,
        properties: Properties,
        mark: Mark,
    ) -> Result<(), YamlError> {
        if self.is_first_complete {
            self.later_anchors.extend(properties.anchor);
            return Ok(());
        }
        let tag = properties
            .tag
            .as_deref()
            .and_then(Tag::parse)
            .unwrap_or(default);
        let id = self.add(kind, tag, false, "", mark)?;
        self.anchors
            .extend(properties.anchor.map(|name| (name, id)));
        self.open.push(id);
        Ok(())
    }

    fn add(
        &mut self,
        kind: Kind,
        tag: Tag,
        is_plain: bool,
        text: &str,
        mark: Mark,
    ) -> Result<NodeId, YamlError> {
        let start = offset(self.tree.text.len());
        self.tree.text.push_str(text);
        if self.tree.text.len() > u32::MAX as usize {
            return Err(mark.error("the text is larger than 4 GiB"));
        }
        let node = Node {
            kind,
            tag,
            is_plain,
            line: u32::try_from(mark.line + 1).unwrap_or(u32::MAX),
            column: u32::try_from(mark.column + 1).unwrap_or(u32::MAX),
            text: start..offset(self.tree.text.len()),
            children: Vec::new(),
        };
        let id = self.tree.add(node)?;
        match self.open.last() {
            Some(parent) => self.tree.node_mut(*parent).children.push(id),
            None => self.tree.root = Some(id),
        }
        Ok(id)
    }
}

fn index(offset: u32) -> usize {
    offset as usize
}

/// Callers stay below `u32::MAX`.
fn offset(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
