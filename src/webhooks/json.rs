//! Reading fields of a JSON body.

use serde_json::Value;

use super::push::Malformed;

/// Parses a body.
pub(super) fn parse(body: &[u8]) -> Result<Value, Malformed> {
    serde_json::from_slice(body).map_err(|error| Malformed::Json(error.to_string()))
}

/// The text at a JSON pointer, unless it is empty.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value
        .pointer(pointer)?
        .as_str()
        .filter(|text| !text.is_empty())
}

/// The text at a JSON pointer, which must be there.
pub(super) fn required<'a>(value: &'a Value, pointer: &'static str) -> Result<&'a str, Malformed> {
    text(value, pointer).ok_or(Malformed::Missing(pointer))
}

/// The items of the list at a JSON pointer.
pub(super) fn list<'a>(value: &'a Value, pointer: &'static str) -> Result<&'a [Value], Malformed> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .ok_or(Malformed::Missing(pointer))
}
