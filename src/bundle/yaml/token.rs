//! The tokens of the scanner.

use super::cursor::Mark;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Quoted,
    Block,
}

#[derive(Debug)]
pub(super) enum TokenKind {
    StreamStart,
    StreamEnd,
    VersionDirective {
        major: u8,
        minor: u8,
    },
    TagDirective {
        handle: String,
        prefix: Vec<u8>,
    },
    DocumentStart,
    DocumentEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowSequenceEnd,
    FlowMappingStart,
    FlowMappingEnd,
    BlockEntry,
    FlowEntry,
    Key,
    Value,
    Alias(String),
    Anchor(String),
    /// An empty handle stands for a verbatim tag or for the tag `!`.
    Tag {
        handle: String,
        suffix: Vec<u8>,
    },
    Scalar {
        value: String,
        style: Style,
    },
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    /// The start of the token.
    pub(super) mark: Mark,
}
