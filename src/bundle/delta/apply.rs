//! Applies a `patch.json` to a document as OPA does. It shares nothing with what computes the patch but the text
//! that OPA will read, so that it proves the patch.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use percent_encoding::percent_decode_str;

use super::{
    NoDelta,
    canonical::{compare_names, write_string},
    diff::Action,
    scan::{decoded, items, members},
    work::Work,
};

/// The depth of a path, because applying is recursive.
const MAX_DEPTH: usize = 512;

/// What changes in an object or array.
#[derive(Default)]
struct Edits<'a> {
    /// In the order of the patch. The last segment of a path, and the action with its value.
    here: Vec<(String, Action, &'a [u8])>,
    below: BTreeMap<String, Edits<'a>>,
}

/// The document after the patch; both are canonical texts.
///
/// # Errors
/// [`NoDelta::NotProved`] when OPA would refuse the patch, or when it has a path below an item of an array; and when
/// the time is over.
pub(super) fn apply(patch: &[u8], document: &[u8], work: &Work) -> Result<Vec<u8>, NoDelta> {
    let mut edits = Edits::default();
    let (_, operations) = members(patch)
        .find(|(name, _)| *name == b"\"data\"")
        .ok_or(NoDelta::NotProved)?;
    for operation in items(operations) {
        edits.add(operation)?;
    }
    let mut text = Vec::with_capacity(document.len());
    edits.apply(document, &mut text, work)?;
    Ok(text)
}

impl<'a> Edits<'a> {
    fn add(&mut self, operation: &'a [u8]) -> Result<(), NoDelta> {
        let (mut action, mut path, mut value) = (None, None, None);
        for (name, member) in members(operation) {
            match name {
                b"\"op\"" => {
                    action = match member {
                        b"\"upsert\"" => Some(Action::Upsert),
                        b"\"replace\"" => Some(Action::Replace),
                        b"\"remove\"" => Some(Action::Remove),
                        _ => return Err(NoDelta::NotProved),
                    }
                }
                b"\"path\"" => path = Some(decoded(member)),
                b"\"value\"" => value = Some(member),
                _ => return Err(NoDelta::NotProved),
            }
        }
        let (action, path) = (
            action.ok_or(NoDelta::NotProved)?,
            path.ok_or(NoDelta::NotProved)?,
        );
        if value.is_none() != (action == Action::Remove) {
            return Err(NoDelta::NotProved);
        }
        let mut segments = segments(&path)?;
        let last = segments.pop().ok_or(NoDelta::NotProved)?;
        let mut edits = self;
        for segment in segments {
            edits = edits.below.entry(segment).or_default();
        }
        edits.here.push((last, action, value.unwrap_or_default()));
        Ok(())
    }

    fn apply(&self, value: &[u8], text: &mut Vec<u8>, work: &Work) -> Result<(), NoDelta> {
        // Each level is read twice, and copied.
        work.process(3 * value.len())?;
        match value.first() {
            Some(b'{') => self.apply_to_object(value, text, work),
            Some(b'[') if self.below.is_empty() => self.apply_to_array(value, text),
            _ => Err(NoDelta::NotProved),
        }
    }

    fn apply_to_object(
        &self,
        object: &[u8],
        text: &mut Vec<u8>,
        work: &Work,
    ) -> Result<(), NoDelta> {
        let mut here = BTreeMap::new();
        for (name, action, value) in &self.here {
            let is_twice = here.insert(name.as_str(), (*action, *value)).is_some();
            if is_twice || self.below.contains_key(name) {
                return Err(NoDelta::NotProved);
            }
        }
        let mut added: Vec<(Vec<u8>, &[u8])> = Vec::new();
        let mut names = BTreeSet::new();
        for (name, _) in members(object) {
            let name = decoded(name);
            if here.contains_key(&*name) || self.below.contains_key(&*name) {
                names.insert(name);
            }
        }
        if self.below.keys().any(|name| !names.contains(name.as_str())) {
            return Err(NoDelta::NotProved);
        }
        for (name, (action, value)) in &here {
            match (action, names.contains(*name)) {
                (Action::Upsert, true) | (Action::Replace | Action::Remove, true) => {}
                (Action::Upsert, false) => {
                    let mut written = Vec::new();
                    write_string(&mut written, name);
                    added.push((written, value));
                }
                (Action::Replace | Action::Remove, false) => return Err(NoDelta::NotProved),
            }
        }
        added.sort_by(|(one, _), (other, _)| compare_names(one, other));
        let mut added = added.iter().peekable();
        let mut output = Output::begin(text);
        for (name, value) in members(object) {
            while let Some((new, value)) =
                added.next_if(|(new, _)| compare_names(new, name) == Ordering::Less)
            {
                output.member(new).extend_from_slice(value);
            }
            let key = decoded(name);
            match (here.get(&*key), self.below.get(&*key)) {
                (Some((Action::Remove, _)), _) => {}
                (Some((_, value)), _) => output.member(name).extend_from_slice(value),
                (None, Some(edits)) => edits.apply(value, output.member(name), work)?,
                (None, None) => output.member(name).extend_from_slice(value),
            }
        }
        for (new, value) in added {
            output.member(new).extend_from_slice(value);
        }
        text.push(b'}');
        Ok(())
    }

    fn apply_to_array(&self, array: &[u8], text: &mut Vec<u8>) -> Result<(), NoDelta> {
        let mut values: Vec<&[u8]> = items(array).collect();
        for (segment, action, value) in &self.here {
            let is_end = segment == "-";
            let at = match segment.parse::<usize>() {
                Ok(at) if at.to_string() == *segment && at <= values.len() => at,
                _ if is_end => values.len(),
                _ => return Err(NoDelta::NotProved),
            };
            match action {
                Action::Upsert => values.insert(at, value),
                Action::Replace | Action::Remove if at == values.len() => {
                    return Err(NoDelta::NotProved);
                }
                Action::Replace => values[at] = value,
                Action::Remove => drop(values.remove(at)),
            }
        }
        text.push(b'[');
        text.extend_from_slice(&values.join(&b','));
        text.push(b']');
        Ok(())
    }
}

/// An object that is being written.
struct Output<'a> {
    text: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Output<'a> {
    fn begin(text: &'a mut Vec<u8>) -> Self {
        text.push(b'{');
        let start = text.len();
        Self { text, start }
    }

    /// Begins a member whose value follows.
    fn member(&mut self, name: &[u8]) -> &mut Vec<u8> {
        if self.text.len() > self.start {
            self.text.push(b',');
        }
        self.text.extend_from_slice(name);
        self.text.push(b':');
        self.text
    }
}

/// The segments of a path, as `ParsePatchPathEscaped` reads it.
fn segments(path: &str) -> Result<Vec<String>, NoDelta> {
    let path = path.trim_matches('/');
    if path.is_empty() || path.split('/').count() > MAX_DEPTH {
        return Err(NoDelta::NotProved);
    }
    let decode = |segment: &str| {
        let hex = |escape: &str| {
            escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
        };
        if !segment.split('%').skip(1).all(hex) {
            return Err(NoDelta::NotProved);
        }
        let segment = percent_decode_str(segment).decode_utf8();
        let segment = segment.map_err(|_| NoDelta::NotProved)?;
        Ok(segment.replace("~1", "/").replace("~0", "~"))
    };
    path.split('/').map(decode).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::*;

    fn applied(operations: &str, document: &str) -> Option<String> {
        let patch = format!("{{\"data\":[{operations}]}}");
        let work = Work::new(1 << 20, Instant::now() + Duration::from_secs(60));
        let text = apply(patch.as_bytes(), document.as_bytes(), &work).ok()?;
        Some(String::from_utf8(text).unwrap())
    }

    #[test]
    fn operations_are_applied_as_opa_applies_them() {
        let document = r#"{"a":{"b":[1,2,3],"c":null},"d":1}"#;
        for (operations, expected) in [
            (
                r#"{"op":"upsert","path":"/a/x","value":{}}"#,
                Some(r#"{"a":{"b":[1,2,3],"c":null,"x":{}},"d":1}"#),
            ),
            (
                r#"{"op":"upsert","path":"d","value":2},{"op":"remove","path":"/a/"}"#,
                Some(r#"{"d":2}"#),
            ),
            (
                r#"{"op":"replace","path":"/a/b/0","value":9},{"op":"remove","path":"/a/b/1"},{"op":"upsert","path":"/a/b/-","value":4},{"op":"upsert","path":"/a/b/0","value":0}"#,
                Some(r#"{"a":{"b":[0,9,3,4],"c":null},"d":1}"#),
            ),
            (
                r#"{"op":"upsert","path":"/~01%2F~1","value":0}"#,
                Some(r#"{"a":{"b":[1,2,3],"c":null},"d":1,"~1//":0}"#),
            ),
            (r#"{"op":"replace","path":"/x","value":2}"#, None),
            (r#"{"op":"remove","path":"/a/x"}"#, None),
            (r#"{"op":"remove","path":"/a/b/3"}"#, None),
            (r#"{"op":"replace","path":"/a/b/01","value":2}"#, None),
            (r#"{"op":"upsert","path":"/a/b/4","value":2}"#, None),
            (r#"{"op":"upsert","path":"/d/x","value":2}"#, None),
            (r#"{"op":"add","path":"/x","value":2}"#, None),
            (r#"{"op":"upsert","path":"/","value":{}}"#, None),
            (r#"{"op":"upsert","path":"/%zz","value":{}}"#, None),
        ] {
            assert_eq!(
                applied(operations, document).as_deref(),
                expected,
                "{operations}"
            );
        }
    }
}
