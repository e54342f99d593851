//! The values of scalars, and the tags of nodes.

use super::{parser::YAML_TAG_PREFIX, timestamp::Timestamp};

/// The value of a scalar.
#[derive(Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer beyond the range of `i64`.
    Uint(u64),
    Float(f64),
    /// The text itself.
    Text,
    Time(Timestamp),
}

/// The tags with a meaning; all others are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Null,
    Bool,
    Int,
    Float,
    Str,
    Timestamp,
    Binary,
    Merge,
    Sequence,
    Mapping,
    Other,
}

impl Tag {
    /// Parses the long or short form of a tag; `None` for the non-specific tag `!`.
    pub(super) fn parse(tag: &[u8]) -> Option<Self> {
        let short = tag
            .strip_prefix(YAML_TAG_PREFIX)
            .or_else(|| tag.strip_prefix(b"!!"));
        match short {
            None if tag == b"!" => None,
            Some(b"null") => Some(Self::Null),
            Some(b"bool") => Some(Self::Bool),
            Some(b"int") => Some(Self::Int),
            Some(b"float") => Some(Self::Float),
            Some(b"str") => Some(Self::Str),
            Some(b"timestamp") => Some(Self::Timestamp),
            Some(b"binary") => Some(Self::Binary),
            Some(b"merge") => Some(Self::Merge),
            Some(b"seq") => Some(Self::Sequence),
            Some(b"map") => Some(Self::Mapping),
            _ => Some(Self::Other),
        }
    }
}
