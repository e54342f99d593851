//! Data as canonical JSON: members sorted by name, no white space, numbers as they are written. Two documents are
//! equal for OPA if their canonical texts are equal, and a text takes hardly more memory than the file.

use std::{borrow::Cow, cmp::Ordering, io::BufRead};

use super::{
    NoDelta,
    scan::{decoded, members},
    work::Work,
};
use crate::bundle::{
    json::{JsonReader, Token},
    json_string,
};

/// The depth to which files that overlap are merged, which is recursive.
const MAX_MERGED_DEPTH: usize = 256;

/// The canonical text of the first JSON value of `content`.
///
/// # Errors
/// When it is not JSON, or a limit is exceeded.
pub(super) fn canonical(content: impl BufRead, work: &Work) -> Result<Vec<u8>, NoDelta> {
    let mut reader = JsonReader::new(content);
    let mut writer = Writer {
        text: Vec::new(),
        counted: 0,
        open: Vec::new(),
        work,
    };
    while let Some(token) = reader.next().map_err(|_| NoDelta::Data)? {
        writer.token(token)?;
    }
    reader.end().map_err(|_| NoDelta::Data)?;
    writer.count()?;
    Ok(writer.text)
}

struct Writer<'a> {
    text: Vec<u8>,
    /// The part of the text that counts as kept.
    counted: usize,
    open: Vec<Open>,
    work: &'a Work,
}

/// An array or object that is open.
enum Open {
    Array { is_empty: bool },
    Object { start: usize, members: Vec<Member> },
}

/// Where a member of an object is in the text: its name begins here, and ends before the colon.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    colon: usize,
}

impl Writer<'_> {
    fn token(&mut self, token: Token<'_>) -> Result<(), NoDelta> {
        match token {
            Token::Key(name) => {
                self.name(name);
                return Ok(());
            }
            Token::EndArray => {
                self.open.pop();
                self.text.push(b']');
            }
            Token::EndObject => self.end_object()?,
            value => {
                self.begin_item();
                self.value(value);
            }
        }
        if self.text.len() - self.counted.min(self.text.len()) >= 1 << 16 {
            self.count()?;
        }
        Ok(())
    }

    /// Counts what was added to the text.
    fn count(&mut self) -> Result<(), NoDelta> {
        match self.text.len().checked_sub(self.counted) {
            Some(added) => self.work.keep(added)?,
            None => self.work.release(self.counted - self.text.len()),
        }
        self.counted = self.text.len();
        Ok(())
    }

    fn name(&mut self, name: &str) {
        let end = self.text.len();
        if let Some(Open::Object { members, .. }) = self.open.last_mut() {
            if !members.is_empty() {
                self.text.push(b',');
            }
            let start = end + usize::from(!members.is_empty());
            members.push(Member { start, colon: 0 });
        }
        write_string(&mut self.text, name);
        let colon = self.text.len();
        if let Some(Open::Object { members, .. }) = self.open.last_mut()
            && let Some(member) = members.last_mut()
        {
            member.colon = colon;
        }
        self.text.push(b':');
    }

    /// Writes the comma before an item of an array.
    fn begin_item(&mut self) {
        if let Some(Open::Array { is_empty }) = self.open.last_mut()
            && !std::mem::replace(is_empty, false)
        {
            self.text.push(b',');
        }
    }

    fn value(&mut self, value: Token<'_>) {
        match value {
            Token::Bool(true) => self.text.extend_from_slice(b"true"),
            Token::Bool(false) => self.text.extend_from_slice(b"false"),
            Token::Number(text) => self.text.extend_from_slice(text.as_bytes()),
            Token::String(text) => write_string(&mut self.text, text),
            Token::StartArray => {
                self.text.push(b'[');
                self.open.push(Open::Array { is_empty: true });
            }
            Token::StartObject => {
                self.text.push(b'{');
                self.open.push(Open::Object {
                    start: self.text.len(),
                    members: Vec::new(),
                });
            }
            Token::Null | Token::Key(_) | Token::EndArray | Token::EndObject => {
                self.text.extend_from_slice(b"null");
            }
        }
    }

    /// Sorts the members of an object that ends. Of duplicate members the last one counts.
    fn end_object(&mut self) -> Result<(), NoDelta> {
        if let Some(Open::Object { start, members }) = self.open.pop() {
            let text = &self.text;
            let name = |member: &Member| &text[member.start..member.colon];
            let is_sorted =
                members.is_sorted_by(|one, next| compare_names(name(one), name(next)).is_lt());
            if !is_sorted {
                let sorted = self.sorted(start, &members)?;
                self.text.truncate(start);
                self.text.extend_from_slice(&sorted);
            }
        }
        self.text.push(b'}');
        Ok(())
    }

    fn sorted(&self, start: usize, members: &[Member]) -> Result<Vec<u8>, NoDelta> {
        let name = |at: usize| &self.text[members[at].start..members[at].colon];
        let names: Vec<Cow<'_, str>> = (0..members.len()).map(|at| decoded(name(at))).collect();
        let mut order: Vec<usize> = (0..members.len()).collect();
        let kept = (self.text.len() - start) + size_of_val(&*names) + size_of_val(&*order);
        self.work.keep(kept)?;
        // The sort is stable, so that the last one of equal names is that of the file.
        order.sort_by(|one, other| names[*one].as_bytes().cmp(names[*other].as_bytes()));
        let mut sorted = Vec::with_capacity(self.text.len() - start);
        for (place, at) in order.iter().enumerate() {
            let is_replaced = order
                .get(place + 1)
                .is_some_and(|next| names[*at] == names[*next]);
            if is_replaced {
                continue;
            }
            let end = members
                .get(at + 1)
                .map_or(self.text.len(), |next| next.start - 1);
            if !sorted.is_empty() {
                sorted.push(b',');
            }
            sorted.extend_from_slice(&self.text[members[*at].start..end]);
        }
        self.work.release(kept);
        Ok(sorted)
    }
}

/// Compares two names as they are written, quotes included: by the bytes of what they stand for.
pub(super) fn compare_names(one: &[u8], other: &[u8]) -> Ordering {
    let is_plain = |name: &[u8]| !name.contains(&b'\\');
    if is_plain(one) && is_plain(other) {
        let inner = |name: &[u8]| name.len().saturating_sub(1);
        return one[1..inner(one)].cmp(&other[1..inner(other)]);
    }
    decoded(one).cmp(&decoded(other))
}

/// Writes a string, in quotes.
pub(super) fn write_string(text: &mut Vec<u8>, value: &str) {
    // Can't fail: writes to memory succeed.
    let _ = json_string::write_string(text, value);
}

/// The text of a document that is mounted at a path.
pub(super) fn mounted(text: Vec<u8>, path: &[String]) -> Vec<u8> {
    if path.is_empty() {
        return text;
    }
    let mut whole = Vec::with_capacity(text.len() + 32 * path.len());
    for name in path {
        whole.push(b'{');
        write_string(&mut whole, name);
        whole.push(b':');
    }
    whole.extend_from_slice(&text);
    whole.resize(whole.len() + path.len(), b'}');
    whole
}

/// Merges objects as OPA merges data files. Each text is copied a few times at most, however many there are.
///
/// # Errors
/// When two of them set the same path, which opening a bundle has excluded, or a limit is exceeded.
pub(super) fn merged(mut texts: Vec<Vec<u8>>, work: &Work) -> Result<Vec<u8>, NoDelta> {
    while texts.len() > 1 {
        let mut halved = Vec::with_capacity(texts.len().div_ceil(2));
        let mut pairs = texts.into_iter();
        while let Some(one) = pairs.next() {
            let Some(other) = pairs.next() else {
                halved.push(one);
                break;
            };
            let kept = one.len() + other.len();
            let mut text = Vec::with_capacity(kept);
            work.keep(kept)?;
            merge(&one, &other, &mut text, MAX_MERGED_DEPTH)?;
            work.release(kept);
            halved.push(text);
        }
        texts = halved;
    }
    Ok(texts.pop().unwrap_or_else(|| b"{}".to_vec()))
}

fn merge(one: &[u8], other: &[u8], text: &mut Vec<u8>, depth: usize) -> Result<(), NoDelta> {
    let below = depth.checked_sub(1).ok_or(NoDelta::Data)?;
    let (mut ours, mut theirs) = (members(one).peekable(), members(other).peekable());
    text.push(b'{');
    let start = text.len();
    loop {
        let order = match (ours.peek(), theirs.peek()) {
            (Some((name, _)), Some((their_name, _))) => compare_names(name, their_name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let (mine, added) = match order {
            Ordering::Less => (ours.next(), None),
            Ordering::Greater => (theirs.next(), None),
            Ordering::Equal => (ours.next(), theirs.next()),
        };
        let Some((name, value)) = mine else {
            break;
        };
        if text.len() > start {
            text.push(b',');
        }
        text.extend_from_slice(name);
        text.push(b':');
        match added {
            None => text.extend_from_slice(value),
            Some((_, added)) if value.starts_with(b"{") && added.starts_with(b"{") => {
                merge(value, added, text, below)?;
            }
            Some(_) => return Err(NoDelta::Data),
        }
    }
    text.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::*;

    fn work() -> Work {
        Work::new(1 << 20, Instant::now() + Duration::from_secs(60))
    }

    fn text(json: &str) -> String {
        String::from_utf8(canonical(json.as_bytes(), &work()).unwrap()).unwrap()
    }

    #[test]
    fn members_are_sorted_and_the_last_of_equal_names_counts() {
        for (json, expected) in [
            (
                r#" { "b" : [ 1.0 , {"y":1,"x":2} ], "a" : null } "#,
                r#"{"a":null,"b":[1.0,{"x":2,"y":1}]}"#,
            ),
            (
                r#"{"a":1,"b":{"c":2},"a":[],"b":1e3}"#,
                r#"{"a":[],"b":1e3}"#,
            ),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("[]", "[]"),
            ("{}", "{}"),
            ("-0", "-0"),
            // A quote is less than a letter, and its escape is greater.
            (r#"{"a":1,"\"":2,"!":3}"#, r#"{"!":3,"\"":2,"a":1}"#),
            (
                r#"{"ab":1,"a":2,"":3,"a\u0000":4}"#,
                r#"{"":3,"a":2,"a\u0000":4,"ab":1}"#,
            ),
            (
                r#""\u2028\u2029\u00e9/<\u007f\b\f\n\r\t\u0001\ud800""#,
                "\"\\u2028\\u2029\u{e9}/<\u{7f}\\b\\f\\n\\r\\t\\u0001\u{fffd}\"",
            ),
            ("\"\u{2030}\u{20ac}\"", "\"\u{2030}\u{20ac}\""),
        ] {
            assert_eq!(text(json), expected, "{json}");
        }
    }

    #[test]
    fn the_text_of_the_text_is_the_same() {
        let json = r#"{"z":{"b":[{"d":1,"c":"\"\\"}],"a":{}},"":[[],[null,true]]}"#;
        assert_eq!(text(&text(json)), text(json));
    }

    #[test]
    fn documents_are_merged_below_their_mount_points() {
        let documents = [
            (r#"{"x":1}"#, vec!["a", "b"]),
            (r#"{"c":{"y":2}}"#, vec!["a"]),
            (r#"{"z":3}"#, vec![]),
            ("[4]", vec!["a", "c", "w"]),
        ];
        let texts = documents.map(|(json, path)| {
            let path: Vec<_> = path.into_iter().map(str::to_owned).collect();
            mounted(json.as_bytes().to_vec(), &path)
        });
        let whole = merged(texts.to_vec(), &work()).unwrap();
        assert_eq!(
            String::from_utf8(whole).unwrap(),
            r#"{"a":{"b":{"x":1},"c":{"w":[4],"y":2}},"z":3}"#
        );
        assert_eq!(merged(Vec::new(), &work()).unwrap(), b"{}");
        let twice = [r#"{"a":1}"#, r#"{"a":{}}"#].map(|text| text.as_bytes().to_vec());
        assert_eq!(merged(twice.to_vec(), &work()), Err(NoDelta::Data));
    }

    #[test]
    fn memory_and_time_are_limited() {
        let long = format!("[{}1]", "1,".repeat(1 << 20));
        let error = canonical(long.as_bytes(), &work()).unwrap_err();
        assert_eq!(error, NoDelta::Memory);
        let over = Work::new(1 << 30, Instant::now() - Duration::from_secs(1));
        let error = canonical(long.as_bytes(), &over).unwrap_err();
        assert_eq!(error, NoDelta::Time);
    }
}
