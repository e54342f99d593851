//! The members of a JSON object.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use super::key::Key;

/// An index into the decoded values.
pub(super) type ValueId = usize;

#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) value: ValueId,
}

/// The members of an object from the keys of a mapping, sorted by name, or a sentence why JSON
/// can't represent the mapping.
pub(super) fn members<'a>(members: HashMap<Key<'a>, ValueId>) -> Result<Vec<Member<'a>>, String> {
    let mut by_name: Vec<(Cow<'a, [u8]>, ValueId)> = Vec::with_capacity(members.len());
    for (key, value) in members {
        let name = key
            .to_name()
            .ok_or("a mapping key can't be null or a timestamp, because JSON has string keys only; quote it")?;
        by_name.push((name, value));
    }
    by_name.sort_unstable();
    if let Some([(name, _), _]) = by_name
        .array_windows()
        .find(|[(one, _), (other, _)]| one == other)
    {
        // OPA takes either one, by the random order of a Go map.
        let name = lossy(Cow::Borrowed(name));
        return Err(format!(
            "two keys of different types are both {name:?} in JSON"
        ));
    }
    let is_text = |name: &Cow<'_, [u8]>| std::str::from_utf8(name).is_ok();
    if by_name.iter().all(|(name, _)| is_text(name)) {
        return Ok(by_name
            .into_iter()
            .map(|(name, value)| Member {
                name: lossy(name),
                value,
            })
            .collect());
    }
    // Names that are not UTF-8 may become equal, and then the last one counts.
    let unique: BTreeMap<_, _> = by_name
        .into_iter()
        .map(|(name, value)| (lossy(name), value))
        .collect();
    Ok(unique
        .into_iter()
        .map(|(name, value)| Member { name, value })
        .collect())
}

/// Bytes as Go's encoding/json writes them: U+FFFD for each byte that is not UTF-8.
pub(super) fn lossy(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    let bytes = match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => return text.into(),
            Err(_) => bytes.to_vec(),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return text.into(),
            Err(error) => error.into_bytes(),
        },
    };
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text.into()
}
