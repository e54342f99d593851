//! Any sender whose JSON holds the name of an image.

use serde_json::Value;

use super::{
    image_name::ImageName,
    json,
    push::{Malformed, Notification, Push, Pushed},
};

/// A JSON pointer (RFC 6901) to the name of an image, `[HOST/]REPOSITORY[:TAG]`, or to a list of
/// names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// `None` if the text is no pointer: it begins with a slash, and after each `~` comes 0 or 1.
    pub fn new(text: &str) -> Option<Self> {
        let is_escaped = |rest: &str| rest.starts_with(['0', '1']);
        let is_pointer =
            text.is_empty() || text.starts_with('/') && text.split('~').skip(1).all(is_escaped);
        is_pointer.then(|| Self(text.to_owned()))
    }
}

/// Reads the names at the pointer. A body without a value there is ignored: the sender has other
/// events.
pub(super) fn parse(pointer: &Pointer, body: &[u8]) -> Result<Notification, Malformed> {
    let body = json::parse(body)?;
    let names = match body.pointer(&pointer.0) {
        None | Some(Value::Null) => return Ok(Notification::ignored()),
        Some(Value::Array(names)) => names.as_slice(),
        Some(name) => std::slice::from_ref(name),
    };
    Notification::all(names, |name| {
        let name = name.as_str().and_then(ImageName::split);
        let name = name.ok_or_else(|| Malformed::Pointer(pointer.0.clone()))?;
        let pushed = match name.tag {
            Some(tag) => Pushed::tagged(Some(tag)),
            None => Pushed::Unknown,
        };
        Ok(Notification::of(Push::new(
            name.host,
            name.repository,
            pushed,
        )))
    })
}
