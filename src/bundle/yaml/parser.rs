//! Parses tokens to events, by the grammar of go-yaml 3 (`parserc.go`).
//!
//! The parser is a state machine instead of a recursive descent: nesting costs no stack.

use std::collections::HashMap;

use super::{
    YamlError,
    cursor::Mark,
    scanner::Scanner,
    token::{Style, Token, TokenKind},
};

/// The prefix of the tags that YAML itself defines, written `!!`.
pub(super) const YAML_TAG_PREFIX: &[u8] = b"tag:yaml.org,2002:";

#[derive(Debug)]
pub(super) enum EventKind {
    DocumentStart,
    DocumentEnd,
    StreamEnd,
    Alias(String),
    Scalar {
        properties: Properties,
        value: String,
        style: Style,
    },
    SequenceStart(Properties),
    MappingStart(Properties),
    /// The end of a sequence or a mapping.
    CollectionEnd,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) kind: EventKind,
    pub(super) mark: Mark,
}

/// The properties before a node.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub(super) anchor: Option<String>,
    /// In its long form.
    pub(super) tag: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    StreamStart,
    ImplicitDocumentStart,
    DocumentStart,
    DocumentContent,
    DocumentEnd,
    BlockNode,
    BlockSequenceEntry,
    IndentlessSequenceEntry,
    BlockMappingKey,
    BlockMappingValue,
    FlowSequenceFirstEntry,
    FlowSequenceEntry,
    FlowPairKey,
    FlowPairValue,
    FlowPairEnd,
    FlowMappingFirstKey,
    FlowMappingKey,
    FlowMappingValue,
    FlowMappingEmptyValue,
    End,
}

/// The context of a node, which determines its possible kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Block,
    /// A key or value of a block mapping, where `-` needs no indentation.
    BlockMapping,
    Flow,
}

#[derive(Debug)]
pub(super) struct Parser<'a> {
    scanner: Scanner<'a>,
    state: State,
    /// The states after the current node and its parents.
    states: Vec<State>,
    /// Handles and prefixes of the current document.
    tag_directives: HashMap<String, Vec<u8>>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            scanner: Scanner::new(text),
            state: State::StreamStart,
            states: Vec::new(),
            tag_directives: HashMap::new(),
        }
    }

    /// The next event. After the end of the stream it is `StreamEnd` again.
    pub(super) fn next(&mut self) -> Result<Event, YamlError> {
        match self.state {
            State::StreamStart => {
                self.scanner.next()?;
                self.state = State::ImplicitDocumentStart;
                self.next_document_start(true)
            }
            State::ImplicitDocumentStart => self.next_document_start(true),
            State::DocumentStart => self.next_document_start(false),
            State::DocumentContent => self.next_document_content(),
            State::DocumentEnd => self.next_document_end(),
            State::BlockNode => self.next_node(Place::Block),
            State::BlockSequenceEntry => self.next_block_sequence_entry(),
            State::IndentlessSequenceEntry => self.next_indentless_sequence_entry(),
            State::BlockMappingKey => self.next_block_mapping_key(),
            State::BlockMappingValue => self.next_block_mapping_value(),
            State::FlowSequenceFirstEntry => self.next_flow_sequence_entry(true),
            State::FlowSequenceEntry => self.next_flow_sequence_entry(false),
            State::FlowPairKey => self.next_flow_pair_key(),
            State::FlowPairValue => self.next_flow_pair_value(),
            State::FlowPairEnd => {
                self.state = State::FlowSequenceEntry;
                self.event_here(EventKind::CollectionEnd)
            }
            State::FlowMappingFirstKey => self.next_flow_mapping_key(true),
            State::FlowMappingKey => self.next_flow_mapping_key(false),
            State::FlowMappingValue => self.next_flow_mapping_value(),
            State::FlowMappingEmptyValue => self.empty_scalar_here(State::FlowMappingKey),
            State::End => self.event_here(EventKind::StreamEnd),
        }
    }

    fn peek(&mut self) -> Result<&TokenKind, YamlError> {
        Ok(&self.scanner.peek()?.kind)
    }

    fn mark(&mut self) -> Result<Mark, YamlError> {
        Ok(self.scanner.peek()?.mark)
    }

    fn event_here(&mut self, kind: EventKind) -> Result<Event, YamlError> {
        Ok(Event {
            kind,
            mark: self.mark()?,
        })
    }

    fn empty_scalar_here(&mut self, next: State) -> Result<Event, YamlError> {
        self.state = next;
        let kind = EventKind::Scalar {
            properties: Properties::default(),
            value: String::new(),
            style: Style::Plain,
        };
        self.event_here(kind)
    }

    fn node_then(&mut self, place: Place, next: State) -> Result<Event, YamlError> {
        self.states.push(next);
        self.next_node(place)
    }

    fn end_node(&mut self) {
        self.state = self.states.pop().unwrap_or(State::End);
    }

    fn end_collection(&mut self) -> Result<Event, YamlError> {
        self.end_node();
        let mark = self.scanner.next()?.mark;
        Ok(Event {
            kind: EventKind::CollectionEnd,
            mark,
        })
    }

    fn error_here(&mut self, reason: &str) -> YamlError {
        match self.mark() {
            Ok(mark) => mark.error(reason),
            Err(error) => error,
        }
    }
}

/// Documents.
impl Parser<'_> {
    fn next_document_start(&mut self, is_first: bool) -> Result<Event, YamlError> {
        while !is_first && matches!(self.peek()?, TokenKind::DocumentEnd) {
            self.scanner.next()?;
        }
        if matches!(self.peek()?, TokenKind::StreamEnd) {
            self.state = State::End;
            return self.event_here(EventKind::StreamEnd);
        }
        let mark = self.mark()?;
        let is_explicit = !is_first
            || matches!(
                self.peek()?,
                TokenKind::VersionDirective { .. }
                    | TokenKind::TagDirective { .. }
                    | TokenKind::DocumentStart
            );
        self.process_directives()?;
        self.state = State::BlockNode;
        if is_explicit {
            if !matches!(self.peek()?, TokenKind::DocumentStart) {
                return Err(self
                    .error_here("text outside of a document: check its indentation, or start a document with `---`"));
            }
            self.scanner.next()?;
            self.state = State::DocumentContent;
        }
        self.states.push(State::DocumentEnd);
        Ok(Event {
            kind: EventKind::DocumentStart,
            mark,
        })
    }

    fn next_document_content(&mut self) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::VersionDirective { .. }
            | TokenKind::TagDirective { .. }
            | TokenKind::DocumentStart
            | TokenKind::DocumentEnd
            | TokenKind::StreamEnd => {
                self.end_node();
                self.empty_scalar_here(self.state)
            }
            _ => self.next_node(Place::Block),
        }
    }

    fn next_document_end(&mut self) -> Result<Event, YamlError> {
        let mark = self.mark()?;
        if matches!(self.peek()?, TokenKind::DocumentEnd) {
            self.scanner.next()?;
        }
        self.tag_directives.clear();
        self.state = State::DocumentStart;
        Ok(Event {
            kind: EventKind::DocumentEnd,
            mark,
        })
    }

    fn process_directives(&mut self) -> Result<(), YamlError> {
        let mut has_version = false;
        while matches!(
            self.peek()?,
            TokenKind::VersionDirective { .. } | TokenKind::TagDirective { .. }
        ) {
            let token = self.scanner.next()?;
            match token.kind {
                TokenKind::VersionDirective { .. } if has_version => {
                    return Err(token.mark.error("a second %YAML directive"));
                }
                TokenKind::VersionDirective { major: 1, minor: 1 } => has_version = true,
                TokenKind::VersionDirective { major, minor } => {
                    let reason =
                        format!("OPA refuses `%YAML {major}.{minor}`: only 1.1 may be declared");
                    return Err(token.mark.error(reason));
                }
                TokenKind::TagDirective { handle, prefix } => {
                    if self.tag_directives.contains_key(&handle) {
                        return Err(token
                            .mark
                            .error(format!("a second %TAG directive for {handle}")));
                    }
                    self.tag_directives.insert(handle, prefix);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The long form of a tag. The handles `!` and `!!` need no directive.
    fn resolve_tag(&self, handle: &str, suffix: Vec<u8>, mark: Mark) -> Result<Vec<u8>, YamlError> {
        let prefix = match (self.tag_directives.get(handle), handle) {
            (_, "") => return Ok(suffix),
            (Some(prefix), _) => prefix.as_slice(),
            (None, "!") => b"!",
            (None, "!!") => YAML_TAG_PREFIX,
            (None, _) => {
                return Err(mark.error(format!("the tag handle {handle} is not declared by %TAG")));
            }
        };
        Ok([prefix, &suffix].concat())
    }
}

/// Nodes.
impl Parser<'_> {
    fn next_node(&mut self, place: Place) -> Result<Event, YamlError> {
        let start = self.mark()?;
        if matches!(self.peek()?, TokenKind::Alias(_)) {
            let token = self.scanner.next()?;
            self.end_node();
            let TokenKind::Alias(name) = token.kind else {
                return Err(start.error("expected an alias"));
            };
            return Ok(Event {
                kind: EventKind::Alias(name),
                mark: start,
            });
        }
        let properties = self.parse_properties()?;
        let in_block = place != Place::Flow;
        let kind = match self.peek()? {
            TokenKind::BlockEntry if place == Place::BlockMapping => {
                self.state = State::IndentlessSequenceEntry;
                EventKind::SequenceStart(properties)
            }
            TokenKind::Scalar { .. } => {
                self.end_node();
                scalar(self.scanner.next()?, properties)
            }
            TokenKind::FlowSequenceStart => {
                self.state = State::FlowSequenceFirstEntry;
                EventKind::SequenceStart(properties)
            }
            TokenKind::FlowMappingStart => {
                self.state = State::FlowMappingFirstKey;
                EventKind::MappingStart(properties)
            }
            TokenKind::BlockSequenceStart if in_block => {
                self.state = State::BlockSequenceEntry;
                self.scanner.next()?;
                EventKind::SequenceStart(properties)
            }
            TokenKind::BlockMappingStart if in_block => {
                self.state = State::BlockMappingKey;
                self.scanner.next()?;
                EventKind::MappingStart(properties)
            }
            _ if properties.anchor.is_some() || properties.tag.is_some() => {
                self.end_node();
                EventKind::Scalar {
                    properties,
                    value: String::new(),
                    style: Style::Plain,
                }
            }
            _ => return Err(self.error_here("expected a value")),
        };
        Ok(Event { kind, mark: start })
    }

    /// Parses an anchor and a tag, of which there is at most one each, in either order.
    fn parse_properties(&mut self) -> Result<Properties, YamlError> {
        let mut properties = Properties::default();
        loop {
            match self.peek()? {
                TokenKind::Anchor(_) if properties.anchor.is_none() => {}
                TokenKind::Tag { .. } if properties.tag.is_none() => {}
                _ => return Ok(properties),
            }
            let token = self.scanner.next()?;
            match token.kind {
                TokenKind::Anchor(name) => properties.anchor = Some(name),
                TokenKind::Tag { handle, suffix } => {
                    properties.tag = Some(self.resolve_tag(&handle, suffix, token.mark)?);
                }
                _ => {}
            }
        }
    }
}

/// Block collections.
impl Parser<'_> {
    fn next_block_sequence_entry(&mut self) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::BlockEntry => {
                self.scanner.next()?;
                match self.peek()? {
                    TokenKind::BlockEntry | TokenKind::BlockEnd => {
                        self.empty_scalar_here(State::BlockSequenceEntry)
                    }
                    _ => self.node_then(Place::Block, State::BlockSequenceEntry),
                }
            }
            TokenKind::BlockEnd => self.end_collection(),
            _ => {
                Err(self
                    .error_here("expected `- ` or the end of the sequence: check the indentation"))
            }
        }
    }

    fn next_indentless_sequence_entry(&mut self) -> Result<Event, YamlError> {
        if !matches!(self.peek()?, TokenKind::BlockEntry) {
            self.end_node();
            return self.event_here(EventKind::CollectionEnd);
        }
        self.scanner.next()?;
        match self.peek()? {
            TokenKind::BlockEntry | TokenKind::Key | TokenKind::Value | TokenKind::BlockEnd => {
                self.empty_scalar_here(State::IndentlessSequenceEntry)
            }
            _ => self.node_then(Place::Block, State::IndentlessSequenceEntry),
        }
    }

    fn next_block_mapping_key(&mut self) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::Key => {
                self.scanner.next()?;
                self.block_mapping_node(State::BlockMappingValue)
            }
            TokenKind::BlockEnd => self.end_collection(),
            _ => Err(self.error_here(
                "expected a key or the end of the mapping: check the indentation and quotes",
            )),
        }
    }

    fn next_block_mapping_value(&mut self) -> Result<Event, YamlError> {
        if !matches!(self.peek()?, TokenKind::Value) {
            return self.empty_scalar_here(State::BlockMappingKey);
        }
        self.scanner.next()?;
        self.block_mapping_node(State::BlockMappingKey)
    }

    fn block_mapping_node(&mut self, next: State) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::Key | TokenKind::Value | TokenKind::BlockEnd => self.empty_scalar_here(next),
            _ => self.node_then(Place::BlockMapping, next),
        }
    }
}

/// Flow collections.
impl Parser<'_> {
    fn next_flow_sequence_entry(&mut self, is_first: bool) -> Result<Event, YamlError> {
        if is_first {
            self.scanner.next()?;
        } else if !matches!(self.peek()?, TokenKind::FlowSequenceEnd) {
            self.expect_flow_entry("expected `,` or `]`")?;
        }
        match self.peek()? {
            TokenKind::FlowSequenceEnd => self.end_collection(),
            TokenKind::Key => {
                let mark = self.scanner.next()?.mark;
                self.state = State::FlowPairKey;
                Ok(Event {
                    kind: EventKind::MappingStart(Properties::default()),
                    mark,
                })
            }
            _ => self.node_then(Place::Flow, State::FlowSequenceEntry),
        }
    }

    fn next_flow_pair_key(&mut self) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::Value | TokenKind::FlowEntry | TokenKind::FlowSequenceEnd => {
                // As in go-yaml, the token is consumed, so its successor is an error.
                self.scanner.next()?;
                self.empty_scalar_here(State::FlowPairValue)
            }
            _ => self.node_then(Place::Flow, State::FlowPairValue),
        }
    }

    fn next_flow_pair_value(&mut self) -> Result<Event, YamlError> {
        if matches!(self.peek()?, TokenKind::Value) {
            self.scanner.next()?;
            if !matches!(
                self.peek()?,
                TokenKind::FlowEntry | TokenKind::FlowSequenceEnd
            ) {
                return self.node_then(Place::Flow, State::FlowPairEnd);
            }
        }
        self.empty_scalar_here(State::FlowPairEnd)
    }

    fn next_flow_mapping_key(&mut self, is_first: bool) -> Result<Event, YamlError> {
        if is_first {
            self.scanner.next()?;
        } else if !matches!(self.peek()?, TokenKind::FlowMappingEnd) {
            self.expect_flow_entry("expected `,` or `}`")?;
        }
        match self.peek()? {
            TokenKind::FlowMappingEnd => self.end_collection(),
            TokenKind::Key => {
                self.scanner.next()?;
                self.flow_mapping_node(State::FlowMappingValue)
            }
            _ => self.node_then(Place::Flow, State::FlowMappingEmptyValue),
        }
    }

    fn next_flow_mapping_value(&mut self) -> Result<Event, YamlError> {
        if matches!(self.peek()?, TokenKind::Value) {
            self.scanner.next()?;
            if !matches!(
                self.peek()?,
                TokenKind::FlowEntry | TokenKind::FlowMappingEnd
            ) {
                return self.node_then(Place::Flow, State::FlowMappingKey);
            }
        }
        self.empty_scalar_here(State::FlowMappingKey)
    }

    fn flow_mapping_node(&mut self, next: State) -> Result<Event, YamlError> {
        match self.peek()? {
            TokenKind::Value | TokenKind::FlowEntry | TokenKind::FlowMappingEnd => {
                self.empty_scalar_here(next)
            }
            _ => self.node_then(Place::Flow, next),
        }
    }

    fn expect_flow_entry(&mut self, reason: &str) -> Result<(), YamlError> {
        if !matches!(self.peek()?, TokenKind::FlowEntry) {
            return Err(self.error_here(reason));
        }
        self.scanner.next()?;
        Ok(())
    }
}

fn scalar(token: Token, properties: Properties) -> EventKind {
    match token.kind {
        TokenKind::Scalar { value, style } => EventKind::Scalar {
            properties,
            value,
            style,
        },
        _ => EventKind::Scalar {
            properties,
            value: String::new(),
            style: Style::Plain,
        },
    }
}
