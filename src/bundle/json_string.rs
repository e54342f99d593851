//! Strings as Go's `encoding/json` writes them with `SetEscapeHTML(false)`: so OPA hashes them.

use std::io::{self, Write};

/// Writes a string, in quotes. `encoding/json` of Go 1.22 and later writes `\b` and `\f`; earlier ones wrote
/// `\u0008` and `\u000c`, so an OPA that was built with Go before 1.22 computes another hash of a
/// document with such a character.
pub(super) fn write_string<W: Write>(output: &mut W, text: &str) -> io::Result<()> {
    output.write_all(b"\"")?;
    // Most strings have nothing to escape.
    if text.bytes().any(begins_escaped) {
        write_escaped(output, text)?;
    } else {
        output.write_all(text.as_bytes())?;
    }
    output.write_all(b"\"")
}

fn write_escaped<W: Write>(output: &mut W, text: &str) -> io::Result<()> {
    let mut unwritten = 0;
    for (at, character) in text.char_indices() {
        if !is_escaped(character) {
            continue;
        }
        output.write_all(&text.as_bytes()[unwritten..at])?;
        write_escape(output, character)?;
        unwritten = at + character.len_utf8();
    }
    output.write_all(&text.as_bytes()[unwritten..])
}

fn is_escaped(character: char) -> bool {
    matches!(
        character,
        '"' | '\\' | '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}'
    )
}

/// Whether a byte may be the first one of an escaped character.
fn begins_escaped(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0xe2)
}

fn write_escape<W: Write>(output: &mut W, character: char) -> io::Result<()> {
    let letter = match character {
        '"' | '\\' => character,
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        other => return write!(output, "\\u{:04x}", u32::from(other)),
    };
    write!(output, "\\{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let written = |text: &str| {
            let mut bytes = Vec::new();
            write_string(&mut bytes, text).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        for (text, expected) in [
            ("", r#""""#),
            ("a/b\u{7f}<>&é😀", "\"a/b\u{7f}<>&é😀\""),
            ("\u{8}\u{c}\n\r\t\"\\", r#""\b\f\n\r\t\"\\""#),
            ("\0\u{b}\u{1b}\u{1f}", r#""\u0000\u000b\u001b\u001f""#),
            ("x\u{2028}y\u{2029}", r#""x\u2028y\u2029""#),
            ("\u{fffd}", "\"\u{fffd}\""),
        ] {
            assert_eq!(written(text), expected);
        }
    }
}
