//! Data documents whose values stay as they were written: numbers keep their digits.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

/// An object with its members, or anything else as its text.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Document {
    Object(BTreeMap<String, Document>),
    Value(Box<RawValue>),
}

impl Document {
    pub(super) fn of_json(content: &[u8]) -> Result<Self, String> {
        let content = content.strip_prefix(BOM).unwrap_or(content);
        let raw: Box<RawValue> = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        Self::of_raw(raw, MAX_DEPTH)
    }

    pub(super) fn of_yaml(content: &[u8]) -> Result<Self, String> {
        Self::of_json(super::shape::yaml(content)?.to_string().as_bytes())
    }

    fn of_raw(raw: Box<RawValue>, depth: usize) -> Result<Self, String> {
        if !raw.get().starts_with('{') {
            return Ok(Self::Value(raw));
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("objects in it are nested more than {MAX_DEPTH} levels deep"));
        };
        let members: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        let members = members.into_iter().map(|(key, raw)| Ok((key, Self::of_raw(raw, depth)?)));
        Ok(Self::Object(members.collect::<Result<_, String>>()?))
    }

    /// Joins two documents as OPA does: objects melt, everything else collides. On collision
    /// gives the path of it.
    pub(super) fn merge(&mut self, other: Self) -> Result<(), Vec<String>> {
        let (Self::Object(ours), Self::Object(theirs)) = (self, other) else { return Err(Vec::new()) };
        join(ours, theirs, Self::merge)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map_err(|error| error.to_string())
    }
}

/// Joins the members of two objects, those of one name by `merge`. On collision gives the
/// path of it.
pub(super) fn join<T>(
    ours: &mut BTreeMap<String, T>,
    theirs: BTreeMap<String, T>,
    merge: impl Fn(&mut T, T) -> Result<(), Vec<String>>,
) -> Result<(), Vec<String>> {
    for (key, theirs) in theirs {
        match ours.get_mut(&key) {
            Some(ours) => merge(ours, theirs).map_err(|mut path| {
                path.insert(0, key);
                path
            })?,
            None => {
                ours.insert(key, theirs);
            }
        }
    }
    Ok(())
}

/// As deep as JSON is read elsewhere. Each level takes a part of the stack, and the text is
/// read once for each.
const MAX_DEPTH: usize = 128;
const BOM: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn document(json: &str) -> Document {
        Document::of_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn values_survive_to_the_letter() {
        let mut one = document(r#"{"a":{"n":12345678901234567890123.10}}"#);
        one.merge(document(r#"{"a":{"b":1e3}}"#)).unwrap();
        assert_eq!(one.to_bytes().unwrap(), br#"{"a":{"b":1e3,"n":12345678901234567890123.10}}"#);
        assert_eq!(one.merge(document(r#"{"a":{"b":1e3}}"#)).unwrap_err(), ["a", "b"]);
    }

    #[test]
    fn a_document_that_is_nested_without_end_is_refused() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        document(&nested(MAX_DEPTH));
        for depth in [MAX_DEPTH + 1, 100_000] {
            let error = Document::of_json(nested(depth).as_bytes()).unwrap_err();
            assert!(error.contains("nested"), "{error}");
        }
    }

    #[test]
    fn yaml_becomes_json() {
        let yaml = Document::of_yaml(b"b: [1, x]\na: {c: true}\n").unwrap();
        assert_eq!(yaml.to_bytes().unwrap(), br#"{"a":{"c":true},"b":[1,"x"]}"#);
        let twice = Document::of_yaml(b"a: 1\na: 2\n").unwrap();
        assert_eq!(twice.to_bytes().unwrap(), br#"{"a":2}"#, "OPA takes the last");
    }
}
