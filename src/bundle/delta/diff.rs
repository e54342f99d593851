//! The difference of two documents as operations of a `patch.json`.
//!
//! OPA applies the operations one after the other, in one transaction of its store (`applyPatches` in
//! `v1/bundle/store.go`). What its stores do decides what is generated here:
//! - A path leads through objects only. Its last segment may be an index of an array; a changed item is replaced
//!   as a whole, because the store in memory changes what is below an item in place, before the transaction ends.
//! - `upsert` makes the store in memory copy the object that it adds to, unless it is the first operation within
//!   that object. So additions come first, and few are made to a large object.
//! - The store on disk reads and writes a whole partition for each operation, so there are few operations.

use std::cmp::Ordering;

use super::{
    NoDelta,
    canonical::compare_names,
    scan::{decoded, items, members},
    work::Work,
};

/// The most operations of a delta.
const MAX_OPERATIONS: usize = 1000;
/// The depth to which objects are compared. A deeper change replaces the object there.
const MAX_DEPTH: usize = 128;
/// Bytes of objects that OPA may have to copy for one delta, as they are in the text.
const MAX_COPIED_BYTES: usize = 64 << 20;
/// Items of arrays that OPA may have to copy for one delta.
const MAX_COPIED_ITEMS: usize = 1 << 25;
/// What an operation takes beside its path and its value.
const OPERATION_BYTES: usize = 32;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Sets a value that was not there, or inserts an item of an array.
    Upsert,
    /// Sets a value that was there.
    Replace,
    Remove,
}

/// One operation of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation<'a> {
    pub(super) action: Action,
    /// As it is written: `/a/b`, escaped.
    pub(super) path: String,
    /// The canonical text of the value; empty for [`Action::Remove`].
    pub(super) value: &'a [u8],
}

/// A change that no operation can express at its place.
struct NotExpressible;

/// Why a value is not changed by operations below it.
enum Stop {
    /// An operation can replace it as a whole.
    Replace,
    None(NoDelta),
}

impl From<NotExpressible> for Stop {
    fn from(_: NotExpressible) -> Self {
        Self::Replace
    }
}

impl From<NoDelta> for Stop {
    fn from(reason: NoDelta) -> Self {
        Self::None(reason)
    }
}

/// The operations that make `target` of `base`, both of them canonical texts of objects.
///
/// # Errors
/// When there are too many, or one of them can't be expressed.
pub(super) fn operations<'a>(
    base: &'a [u8],
    target: &'a [u8],
    work: &Work,
) -> Result<Vec<Operation<'a>>, NoDelta> {
    let mut difference = Difference {
        operations: Vec::new(),
        size: 0,
        copied_bytes: 0,
        copied_items: 0,
        work,
    };
    match difference.objects(base, target, "", MAX_DEPTH) {
        Ok(()) => Ok(difference.operations),
        Err(Stop::Replace) => Err(NoDelta::Inexpressible),
        Err(Stop::None(reason)) => Err(reason),
    }
}

struct Difference<'a, 'w> {
    operations: Vec<Operation<'a>>,
    /// Bytes of the operations.
    size: usize,
    copied_bytes: usize,
    copied_items: usize,
    work: &'w Work,
}

impl<'a> Difference<'a, '_> {
    fn objects(
        &mut self,
        base: &'a [u8],
        target: &'a [u8],
        path: &str,
        depth: usize,
    ) -> Result<(), Stop> {
        let below = depth.checked_sub(1).ok_or(NotExpressible)?;
        self.work.process(base.len() + target.len())?;
        let (mut ours, mut theirs) = (members(base).peekable(), members(target).peekable());
        let (mut gone, mut changed, mut has_added) = (Vec::new(), Vec::new(), false);
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (Some((ours, _)), Some((theirs, _))) => compare_names(ours, theirs),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let before = (order != Ordering::Greater).then(|| ours.next()).flatten();
            let after = (order != Ordering::Less).then(|| theirs.next()).flatten();
            match (before, after) {
                (Some((_, one)), Some((_, other))) if one == other => {}
                (Some((name, one)), Some((_, other))) => changed.push((name, one, other)),
                (Some((name, _)), None) => gone.push(name),
                (None, Some((name, value))) => {
                    if std::mem::replace(&mut has_added, true) {
                        self.copied_bytes += base.len();
                    }
                    self.push(Action::Upsert, member_path(path, name), value)?;
                }
                (None, None) => break,
            }
            // Each of them takes an operation at least.
            if self.copied_bytes > MAX_COPIED_BYTES || gone.len() + changed.len() > MAX_OPERATIONS {
                return Err(Stop::Replace);
            }
        }
        for name in gone {
            self.push(Action::Remove, member_path(path, name), b"")?;
        }
        for (name, one, other) in changed {
            self.changed(one, other, member_path(path, name), below)?;
        }
        Ok(())
    }

    /// Changes a value by operations below it, or replaces it if that is possible or shorter.
    fn changed(
        &mut self,
        base: &'a [u8],
        target: &'a [u8],
        path: String,
        depth: usize,
    ) -> Result<(), Stop> {
        let (count, size) = (self.operations.len(), self.size);
        let copied = (self.copied_bytes, self.copied_items);
        let within = match (base.first(), target.first()) {
            (Some(b'{'), Some(b'{')) => self.objects(base, target, &path, depth),
            (Some(b'['), Some(b'[')) => self.arrays(base, target, &path),
            _ => Err(Stop::Replace),
        };
        let replaced = OPERATION_BYTES + path.len() + target.len();
        match within {
            Ok(()) if self.size - size < replaced => return Ok(()),
            Ok(()) | Err(Stop::Replace) => {}
            Err(none) => return Err(none),
        }
        self.operations.truncate(count);
        self.size = size;
        (self.copied_bytes, self.copied_items) = copied;
        self.push(Action::Replace, path, target)
    }

    fn arrays(&mut self, base: &'a [u8], target: &'a [u8], path: &str) -> Result<(), Stop> {
        let [ours, theirs] = [base, target].map(|array| items(array).collect::<Vec<_>>());
        let kept = size_of_val(&*ours) + size_of_val(&*theirs);
        self.work.keep(kept)?;
        let result = self.items(&ours, &theirs, path);
        self.work.release(kept);
        result
    }

    /// Replaces the items between the first and the last ones that are equal, and inserts or removes the rest there.
    fn items(&mut self, ours: &[&'a [u8]], theirs: &[&'a [u8]], path: &str) -> Result<(), Stop> {
        let shorter = ours.len().min(theirs.len());
        let pairs = ours.iter().zip(theirs);
        let before = pairs.take_while(|(one, other)| one == other).count();
        let pairs = ours.iter().rev().zip(theirs.iter().rev());
        let pairs = pairs.take(shorter - before);
        let after = pairs.take_while(|(one, other)| one == other).count();
        let (last, new_last) = (ours.len() - after, theirs.len() - after);
        let both = last.min(new_last);
        let copied = ours.len().max(theirs.len());
        let mut push = |action, at: usize, value| {
            self.copied_items += copied;
            if self.copied_items > MAX_COPIED_ITEMS {
                return Err(Stop::Replace);
            }
            self.push(action, format!("{path}/{at}"), value)
        };
        for at in before..both {
            if ours[at] != theirs[at] {
                push(Action::Replace, at, theirs[at])?;
            }
        }
        for _ in both..last {
            push(Action::Remove, both, b"")?;
        }
        for (at, item) in theirs.iter().enumerate().take(new_last).skip(both) {
            push(Action::Upsert, at, item)?;
        }
        Ok(())
    }

    fn push(&mut self, action: Action, path: String, value: &'a [u8]) -> Result<(), Stop> {
        // OPA trims slashes at both ends of a path, so an empty segment can't be the first or the last one.
        if path.starts_with("//") || path.ends_with('/') {
            return Err(Stop::Replace);
        }
        if self.operations.len() == MAX_OPERATIONS {
            return Err(NoDelta::TooManyChanges.into());
        }
        self.size += OPERATION_BYTES + path.len() + value.len();
        self.operations.push(Operation {
            action,
            path,
            value,
        });
        Ok(())
    }
}

/// The path of a member; `name` as it is written in the text, quotes included.
fn member_path(path: &str, name: &[u8]) -> String {
    let mut path = path.to_owned();
    push_segment(&mut path, &decoded(name));
    path
}

/// Adds a segment to a path. OPA splits a path at its slashes, decodes percent signs, and then `~1` and `~0`
/// (`ParsePatchPathEscaped`).
pub(super) fn push_segment(path: &mut String, segment: &str) {
    path.push('/');
    for character in segment.chars() {
        match character {
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            '%' => path.push_str("%25"),
            other => path.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::*;

    fn patch(base: &str, target: &str) -> Result<Vec<String>, NoDelta> {
        let work = Work::new(1 << 20, Instant::now() + Duration::from_secs(60));
        let operations = operations(base.as_bytes(), target.as_bytes(), &work)?;
        let text = |operation: &Operation<'_>| {
            let value = str::from_utf8(operation.value).unwrap();
            format!("{:?} {} {value}", operation.action, operation.path)
        };
        Ok(operations.iter().map(text).collect())
    }

    /// A value that no patch replaces for being short.
    fn long(fill: char) -> String {
        format!("\"{}\"", fill.to_string().repeat(200))
    }

    #[test]
    fn members_are_added_removed_and_replaced_where_they_differ() {
        let z = long('z');
        for (base, target, expected) in [
            (r#"{"a":1}"#, r#"{"a":1}"#, vec![]),
            (
                r#"{"a":1,"b":2}"#,
                r#"{"a":1.0,"c":null}"#,
                vec!["Upsert /c null", "Remove /b ", "Replace /a 1.0"],
            ),
            (
                &*format!(r#"{{"a":{{"b":1,"z":{z}}}}}"#),
                &*format!(r#"{{"a":{{"b":{{}},"z":{z}}}}}"#),
                vec!["Replace /a/b {}"],
            ),
            // Shorter as a whole.
            (
                r#"{"a":{"b":1}}"#,
                r#"{"a":{"c":2}}"#,
                vec![r#"Replace /a {"c":2}"#],
            ),
            (r#"{"a":{}}"#, r#"{"a":[]}"#, vec!["Replace /a []"]),
            (
                r#"{"~/%25":1}"#,
                r#"{"~1":1}"#,
                vec!["Upsert /~01 1", "Remove /~0~1%2525 "],
            ),
        ] {
            assert_eq!(patch(base, target).unwrap(), expected, "{base} {target}");
        }
    }

    #[test]
    fn items_are_replaced_as_a_whole_inserted_and_removed() {
        let z = long('z');
        let object = |items: &[&str]| format!(r#"{{"a":[{}]}}"#, items.join(","));
        for (base, target, expected) in [
            (vec!["1", &z], vec!["2", &z], vec!["Replace /a/0 2"]),
            (
                vec![&z],
                vec![&z, "1", "2"],
                vec!["Upsert /a/1 1", "Upsert /a/2 2"],
            ),
            (
                vec!["0", "1", "2", &z],
                vec!["0", &z],
                vec!["Remove /a/1 ", "Remove /a/1 "],
            ),
            (
                vec!["1", r#"{"b":1}"#, &z],
                vec!["1", r#"{"b":2}"#, "3", &z],
                vec![r#"Replace /a/1 {"b":2}"#, "Upsert /a/2 3"],
            ),
            (vec!["1", "1"], vec!["1"], vec!["Remove /a/1 "]),
        ] {
            let (base, target) = (object(&base), object(&target));
            assert_eq!(patch(&base, &target).unwrap(), expected, "{base} {target}");
        }
    }

    #[test]
    fn an_empty_segment_at_an_end_of_the_path_replaces_the_object_above() {
        let z = long('z');
        let base = format!(r#"{{"a":{{"":1,"z":{z}}}}}"#);
        let target = format!(r#"{{"a":{{"":2,"z":{z}}}}}"#);
        assert_eq!(
            patch(&base, &target).unwrap(),
            [format!(r#"Replace /a {{"":2,"z":{z}}}"#)]
        );
        let base = format!(r#"{{"a":{{"":{{"b":1,"z":{z}}}}}}}"#);
        let target = format!(r#"{{"a":{{"":{{"b":2,"z":{z}}}}}}}"#);
        assert_eq!(patch(&base, &target).unwrap(), ["Replace /a//b 2"]);
        let below = patch(r#"{"":{"a":1}}"#, r#"{"":{"a":2}}"#);
        assert_eq!(below, Err(NoDelta::Inexpressible));
    }

    #[test]
    fn what_would_take_opa_too_long_is_no_delta() {
        let members = |from: usize, to: usize| {
            let members: Vec<_> = (from..to).map(|at| format!("\"{at:06}\":1")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(patch("{}", &members(0, 1000)).unwrap().len(), 1000);
        assert_eq!(patch("{}", &members(0, 1001)), Err(NoDelta::TooManyChanges));
        // Each addition would have OPA copy the object again.
        let large = members(0, 30_000);
        assert_eq!(patch(&large, &members(0, 30_100)).unwrap().len(), 100);
        assert_eq!(
            patch(&large, &members(0, 30_500)),
            Err(NoDelta::Inexpressible)
        );
    }

    #[test]
    fn a_deep_change_replaces_the_object_at_the_deepest_level_that_is_compared() {
        let nested = |value: &str| {
            let depth = 5000;
            format!("{}{value}{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
        };
        let operations = patch(&nested("1"), &nested("2")).unwrap();
        assert_eq!(operations.len(), 1);
        assert!(operations[0].starts_with("Replace /a/a/a"));
    }
}
