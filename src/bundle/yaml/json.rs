//! Writes values as JSON.

use std::borrow::Cow;

use super::{
    YamlError,
    decode::{Content, TOO_LARGE, Value},
    number,
    object::{Member, ValueId, lossy},
    tree::Tree,
};

/// The maximum depth of JSON in Go's decoder.
const MAX_DEPTH: usize = 10_000;

/// Writes the last of the values, in no more than `max_bytes`.
///
/// # Errors
/// When JSON can't represent a value, or the text becomes too large or too deeply nested.
pub(super) fn write(
    tree: &Tree,
    values: &[Value<'_>],
    max_bytes: usize,
) -> Result<Vec<u8>, YamlError> {
    let mut writer = Writer {
        tree,
        values,
        out: Vec::new(),
        max_bytes,
        open: Vec::new(),
    };
    writer.value(values.len().saturating_sub(1))?;
    while let Some(rest) = writer.open.pop() {
        writer.step(rest)?;
    }
    Ok(writer.out)
}

struct Writer<'a> {
    tree: &'a Tree,
    values: &'a [Value<'a>],
    out: Vec<u8>,
    max_bytes: usize,
    /// The rest of the collections that have started.
    open: Vec<Rest<'a>>,
}

enum Rest<'a> {
    Items(&'a [ValueId]),
    Members(&'a [Member<'a>]),
}

impl<'a> Writer<'a> {
    /// Writes a scalar, or the start of a collection.
    fn value(&mut self, id: ValueId) -> Result<(), YamlError> {
        let Some(value) = self.values.get(id) else {
            return Ok(());
        };
        let not_json = |what: &str| {
            self.tree
                .error(value.node, format!("JSON can't represent {what}"))
        };
        match &value.content {
            Content::Null => self.push(b"null"),
            Content::Bool(bool) => self.push(bool.to_string().as_bytes()),
            Content::Int(int) => self.push(int.to_string().as_bytes()),
            Content::Uint(int) => self.push(int.to_string().as_bytes()),
            Content::Float(float) => {
                let float =
                    number::to_json(*float).ok_or_else(|| not_json("infinity or NaN; quote it"))?;
                self.push(float.as_bytes());
            }
            Content::Time(time) => {
                let time = time.to_json().ok_or_else(|| not_json("this time zone"))?;
                self.text(&time);
            }
            Content::Text(text) => self.text(text),
            Content::Bytes(bytes) => self.text(&lossy(Cow::Borrowed(bytes))),
            Content::Sequence(items) => {
                self.push(b"[");
                self.open.push(Rest::Items(items));
            }
            Content::Object(members) => {
                self.push(b"{");
                self.open.push(Rest::Members(members));
            }
            Content::NotAnObject(reason) => {
                return Err(self.tree.error(value.node, reason.clone()));
            }
        }
        if self.out.len() > self.max_bytes {
            return Err(self.tree.error(value.node, TOO_LARGE));
        }
        if self.open.len() > MAX_DEPTH {
            return Err(self.tree.error(
                value.node,
                format!("values are nested deeper than {MAX_DEPTH}"),
            ));
        }
        Ok(())
    }

    /// Writes the next item or member, or the end of the collection.
    fn step(&mut self, rest: Rest<'a>) -> Result<(), YamlError> {
        match rest {
            Rest::Items([item, rest @ ..]) => {
                self.separate(b'[');
                self.open.push(Rest::Items(rest));
                self.value(*item)
            }
            Rest::Members([member, rest @ ..]) => {
                self.separate(b'{');
                self.text(&member.name);
                self.push(b":");
                self.open.push(Rest::Members(rest));
                self.value(member.value)
            }
            Rest::Items([]) => {
                self.push(b"]");
                Ok(())
            }
            Rest::Members([]) => {
                self.push(b"}");
                Ok(())
            }
        }
    }

    /// Writes a comma, unless the collection has just started.
    fn separate(&mut self, start: u8) {
        if self.out.last() != Some(&start) {
            self.push(b",");
        }
    }

    fn push(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn text(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        self.push(quoted.as_bytes());
    }
}
