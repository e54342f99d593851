//! Scans scalars in quotes.

use super::{
    YamlError,
    cursor::{Cursor, Mark},
    plain_scalar::Blanks,
    token::{Style, TokenKind},
};

/// Scans a scalar at its opening quote.
pub(super) fn scan(cursor: &mut Cursor<'_>, quote: u8) -> Result<TokenKind, YamlError> {
    let start = cursor.mark();
    cursor.skip();
    let mut value = String::new();
    loop {
        if cursor.is_document_indicator() || cursor.is_end() {
            return Err(start.error("unterminated quoted string"));
        }
        let mut blanks = Blanks::after(scan_word(cursor, quote, start, &mut value)?);
        if cursor.byte() == quote {
            cursor.skip();
            return Ok(TokenKind::Scalar {
                value,
                style: Style::Quoted,
            });
        }
        blanks.scan(cursor, None)?;
        blanks.join_to(&mut value);
    }
}

/// Scans up to a blank, a line break or the closing quote. Returns true after an escaped
/// line break, which joins the lines without a space.
fn scan_word(
    cursor: &mut Cursor<'_>,
    quote: u8,
    start: Mark,
    value: &mut String,
) -> Result<bool, YamlError> {
    while !cursor.is_blank_or_end(0) {
        match (quote, cursor.byte()) {
            (b'\'', b'\'') if cursor.peek(1) == b'\'' => {
                value.push('\'');
                cursor.skip();
                cursor.skip();
            }
            (_, byte) if byte == quote => return Ok(false),
            (b'"', b'\\') if cursor.is_break(1) => {
                cursor.skip();
                cursor.skip_break();
                return Ok(true);
            }
            (b'"', b'\\') => value.push(scan_escape(cursor, start)?),
            _ => cursor.read(value),
        }
    }
    Ok(false)
}

fn scan_escape(cursor: &mut Cursor<'_>, start: Mark) -> Result<char, YamlError> {
    let escaped = match cursor.peek(1) {
        b'0' => '\0',
        b'a' => '\u{7}',
        b'b' => '\u{8}',
        b't' | b'\t' => '\t',
        b'n' => '\n',
        b'v' => '\u{b}',
        b'f' => '\u{c}',
        b'r' => '\r',
        b'e' => '\u{1b}',
        same @ (b' ' | b'"' | b'\'' | b'\\') => char::from(same),
        b'N' => '\u{85}',
        b'_' => '\u{a0}',
        b'L' => '\u{2028}',
        b'P' => '\u{2029}',
        b'x' => return scan_code(cursor, 2),
        b'u' => return scan_code(cursor, 4),
        b'U' => return scan_code(cursor, 8),
        0 => return Err(start.error("unterminated quoted string")),
        _ => {
            return Err(cursor
                .mark()
                .error("unknown escape; in double quotes write a backslash as `\\\\`"));
        }
    };
    cursor.skip();
    cursor.skip();
    Ok(escaped)
}

/// Scans an escape with a character code of `digits` hexadecimal digits.
fn scan_code(cursor: &mut Cursor<'_>, digits: usize) -> Result<char, YamlError> {
    let mark = cursor.mark();
    cursor.skip();
    cursor.skip();
    let mut code: u32 = 0;
    for _ in 0..digits {
        let digit = char::from(cursor.byte()).to_digit(16);
        let digit = digit
            .ok_or_else(|| mark.error(format!("this escape takes {digits} hexadecimal digits")))?;
        code = (code << 4) | digit;
        cursor.skip();
    }
    char::from_u32(code).ok_or_else(|| mark.error("the escape is not a Unicode character"))
}
