//! Iterates over canonical text without parsing it: the members of an object, the items of an array.

use std::borrow::Cow;

use crate::bundle::json::{JsonReader, Token};

/// The members of an object: the name as it is written, quotes included, and the value.
pub(super) fn members(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 1;
    std::iter::from_fn(move || {
        if object.get(at)? == &b'}' {
            return None;
        }
        let colon = end_of_string(object, at);
        let end = end_of_value(object, colon + 1);
        let member = (object.get(at..colon)?, object.get(colon + 1..end)?);
        // The comma, or the end of the object.
        at = if object.get(end)? == &b',' {
            end + 1
        } else {
            end
        };
        Some(member)
    })
}

/// The items of an array.
pub(super) fn items(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 1;
    std::iter::from_fn(move || {
        if array.get(at)? == &b']' {
            return None;
        }
        let end = end_of_value(array, at);
        let item = array.get(at..end)?;
        at = if array.get(end)? == &b',' {
            end + 1
        } else {
            end
        };
        Some(item)
    })
}

/// What a string stands for; quotes are included in `text`.
pub(super) fn decoded(text: &[u8]) -> Cow<'_, str> {
    let inner = text
        .get(1..text.len().saturating_sub(1))
        .unwrap_or_default();
    if !inner.contains(&b'\\') {
        return String::from_utf8_lossy(inner);
    }
    match JsonReader::new(text).next() {
        Ok(Some(Token::String(text))) => Cow::Owned(text.to_owned()),
        _ => Cow::Borrowed(""),
    }
}

/// The end of the value at a position.
fn end_of_value(text: &[u8], start: usize) -> usize {
    match text.get(start) {
        Some(b'"') => end_of_string(text, start),
        Some(b'{' | b'[') => end_of_container(text, start),
        _ => text[start.min(text.len())..]
            .iter()
            .position(|byte| matches!(byte, b',' | b'}' | b']'))
            .map_or(text.len(), |length| start + length),
    }
}

fn end_of_container(text: &[u8], start: usize) -> usize {
    let mut rest = text[start..].iter();
    let mut depth = 0_usize;
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => skip_string(&mut rest),
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => break,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    text.len() - rest.len()
}

/// The position after the quote that ends the string at a position.
fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut rest = text.get(start + 1..).unwrap_or_default().iter();
    skip_string(&mut rest);
    text.len() - rest.len()
}

/// Skips the rest of a string and the quote that ends it.
fn skip_string(rest: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                rest.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_items_are_found_whatever_strings_contain() {
        let object = br#"{"":1,"a\"}":{"b":[",]",{}]},"c":"\\","d":-1.5e3,"e":[]}"#;
        let found: Vec<_> = members(object).collect();
        let expected: [(&[u8], &[u8]); 5] = [
            (br#""""#, b"1"),
            (br#""a\"}""#, br#"{"b":[",]",{}]}"#),
            (br#""c""#, br#""\\""#),
            (br#""d""#, b"-1.5e3"),
            (br#""e""#, b"[]"),
        ];
        assert_eq!(found, expected);
        let found: Vec<_> = items(br#"[[1,2],"]",null,{"a":{}}]"#).collect();
        let expected: [&[u8]; 4] = [b"[1,2]", br#""]""#, b"null", br#"{"a":{}}"#];
        assert_eq!(found, expected);
        assert_eq!((members(b"{}").count(), items(b"[]").count()), (0, 0));
        assert_eq!(decoded(br#""a\"}""#), "a\"}");
    }
}
