//! Decodes bytes to text: the encodings and characters that go-yaml accepts (`readerc.go`).

use std::borrow::Cow;

use super::YamlError;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Decodes UTF-8, or UTF-16 that begins with a byte order mark, and refuses the characters
/// that YAML 1.1 does not allow.
///
/// A second byte order mark is refused: go-yaml looks for it at the start of its read buffer
/// instead of at the current character, and then drops the first character of every line in that
/// buffer.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, YamlError> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => Cow::Owned(utf16(rest, u16::from_le_bytes)?),
        [0xfe, 0xff, rest @ ..] => Cow::Owned(utf16(rest, u16::from_be_bytes)?),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => Cow::Borrowed(utf8(rest)?),
    };
    match text
        .char_indices()
        .find(|(_, character)| !is_allowed(*character))
    {
        None => Ok(text),
        Some((at, BYTE_ORDER_MARK)) => Err(error_after(
            &text[..at],
            "a byte order mark is allowed only at the start; write it as \"\\uFEFF\"",
        )),
        Some((at, character)) => {
            let reason = format!(
                "the character U+{:04X} is not allowed",
                u32::from(character)
            );
            Err(error_after(&text[..at], &reason))
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, YamlError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        error_after(
            &String::from_utf8_lossy(valid),
            "the text is not valid UTF-8",
        )
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, YamlError> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len());
    for character in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        text.push(character.map_err(|_| error_after(&text, "the text is not valid UTF-16"))?);
    }
    match rest {
        [] => Ok(text),
        _ => Err(error_after(
            &text,
            "the UTF-16 text ends within a character",
        )),
    }
}

fn is_allowed(character: char) -> bool {
    matches!(character,
        '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
        && character != BYTE_ORDER_MARK
}

fn error_after(text: &str, reason: &str) -> YamlError {
    let (mut line, mut column, mut after_cr) = (1, 1, false);
    for character in text.chars() {
        match character {
            '\n' if after_cr => {}
            '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        after_cr = character == '\r';
    }
    YamlError::at(line, column, reason)
}
