//! Resolves the text of a scalar to a value, by the rules of go-yaml 3 (`resolve.go`): booleans of
//! YAML 1.2, integers and floats of both versions, and timestamps.

use super::{
    number,
    scalar::{Scalar, Tag},
    timestamp::Timestamp,
};

/// The tag of a plain scalar without a tag.
pub(super) fn plain_tag(text: &str) -> Tag {
    if text == "<<" {
        return Tag::Merge;
    }
    tag_of(&guess(text, true))
}

/// The value of a scalar under its tag, or a sentence why it has none.
pub(super) fn resolve(tag: Tag, text: &str) -> Result<Scalar, String> {
    if !matches!(
        tag,
        Tag::Bool | Tag::Int | Tag::Float | Tag::Null | Tag::Timestamp
    ) {
        return Ok(Scalar::Text);
    }
    match (guess(text, tag == Tag::Timestamp), tag) {
        (Scalar::Int(int), Tag::Float) => Ok(Scalar::Float(number::to_float(int))),
        (scalar, _) if tag_of(&scalar) == tag => Ok(scalar),
        _ => Err(format!("the text does not match its tag {}", name_of(tag))),
    }
}

/// Resolves a text without regard to its tag. Timestamps are recognised only if they are allowed.
fn guess(text: &str, allows_time: bool) -> Scalar {
    let scalar = match text.as_bytes().first() {
        None => Some(Scalar::Null),
        Some(b'+' | b'-' | b'.' | b'~' | b'n' | b'N' | b't' | b'T' | b'f' | b'F') => named(text),
        _ => None,
    };
    if let Some(scalar) = scalar {
        return scalar;
    }
    let number = match text.as_bytes().first() {
        Some(b'.') => number::parse_fraction(text).map(Scalar::Float),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let time = if allows_time {
                Timestamp::parse(text)
            } else {
                None
            };
            time.map(Scalar::Time).or_else(|| number::parse(text))
        }
        _ => None,
    };
    number.unwrap_or(Scalar::Text)
}

fn named(text: &str) -> Option<Scalar> {
    Some(match text {
        "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" => Scalar::Bool(true),
        "false" | "False" | "FALSE" => Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        _ => return None,
    })
}

fn tag_of(scalar: &Scalar) -> Tag {
    match scalar {
        Scalar::Null => Tag::Null,
        Scalar::Bool(_) => Tag::Bool,
        Scalar::Int(_) | Scalar::Uint(_) => Tag::Int,
        Scalar::Float(_) => Tag::Float,
        Scalar::Text => Tag::Str,
        Scalar::Time(_) => Tag::Timestamp,
    }
}

fn name_of(tag: Tag) -> &'static str {
    match tag {
        Tag::Bool => "!!bool",
        Tag::Int => "!!int",
        Tag::Float => "!!float",
        Tag::Null => "!!null",
        _ => "!!timestamp",
    }
}
