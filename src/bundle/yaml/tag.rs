//! Scans directives, tags, anchors and aliases.

use super::{YamlError, cursor::Cursor, token::TokenKind};

/// Scans a directive at its `%`, up to and including its line break.
pub(super) fn scan_directive(cursor: &mut Cursor<'_>) -> Result<TokenKind, YamlError> {
    let start = cursor.mark();
    cursor.skip();
    let name = scan_word(cursor);
    if !cursor.is_blank_or_end(0) {
        return Err(start.error("the name of a directive must be followed by a space"));
    }
    let kind =
        match name.as_str() {
            "YAML" => scan_version(cursor)?,
            "TAG" => scan_tag_directive(cursor)?,
            _ => return Err(start.error(
                "unknown directive: only %YAML and %TAG exist; quote a text that starts with `%`",
            )),
        };
    cursor.skip_blanks();
    if cursor.byte() == b'#' {
        cursor.skip_to_break();
    }
    if !cursor.is_break_or_end(0) {
        return Err(cursor.mark().error("unexpected text after a directive"));
    }
    cursor.skip_break();
    Ok(kind)
}

fn scan_version(cursor: &mut Cursor<'_>) -> Result<TokenKind, YamlError> {
    cursor.skip_blanks();
    let major = scan_number(cursor)?;
    if cursor.byte() != b'.' {
        return Err(cursor
            .mark()
            .error("a YAML version consists of two numbers with a `.` in between"));
    }
    cursor.skip();
    Ok(TokenKind::VersionDirective {
        major,
        minor: scan_number(cursor)?,
    })
}

fn scan_number(cursor: &mut Cursor<'_>) -> Result<u8, YamlError> {
    let (mut number, mut digits) = (0, 0);
    while cursor.byte().is_ascii_digit() && digits < 2 {
        number = number * 10 + (cursor.byte() - b'0');
        digits += 1;
        cursor.skip();
    }
    match digits {
        0 => Err(cursor
            .mark()
            .error("a YAML version consists of two numbers with a `.` in between")),
        _ if cursor.byte().is_ascii_digit() => Err(cursor
            .mark()
            .error("a number of a YAML version has at most two digits")),
        _ => Ok(number),
    }
}

fn scan_tag_directive(cursor: &mut Cursor<'_>) -> Result<TokenKind, YamlError> {
    cursor.skip_blanks();
    let handle = scan_handle(cursor)?;
    if !handle.ends_with('!') {
        return Err(cursor.mark().error("a tag handle starts and ends with `!`"));
    }
    if !cursor.is_blank(0) {
        return Err(cursor
            .mark()
            .error("a tag handle must be followed by a space"));
    }
    cursor.skip_blanks();
    let mut prefix = Vec::new();
    scan_uri(cursor, &mut prefix)?;
    if prefix.is_empty() {
        return Err(cursor.mark().error("a %TAG directive without a prefix"));
    }
    if !cursor.is_blank_or_end(0) {
        return Err(cursor.mark().error("this character can't be part of a tag"));
    }
    Ok(TokenKind::TagDirective { handle, prefix })
}

/// Scans an anchor at its `&`, or an alias at its `*`.
pub(super) fn scan_anchor(cursor: &mut Cursor<'_>) -> Result<TokenKind, YamlError> {
    let start = cursor.mark();
    let is_alias = cursor.byte() == b'*';
    cursor.skip();
    let name = scan_word(cursor);
    let ends = cursor.is_blank_or_end(0)
        || matches!(
            cursor.byte(),
            b'?' | b':' | b',' | b']' | b'}' | b'%' | b'@' | b'`'
        );
    if name.is_empty() || !ends {
        return Err(start.error("the name of an anchor consists of letters, digits, `_` and `-`"));
    }
    Ok(if is_alias {
        TokenKind::Alias(name)
    } else {
        TokenKind::Anchor(name)
    })
}

/// Scans a tag at its `!`: verbatim, with a handle, or local.
pub(super) fn scan_tag(cursor: &mut Cursor<'_>) -> Result<TokenKind, YamlError> {
    let mut suffix = Vec::new();
    let mut handle = String::new();
    if cursor.peek(1) == b'<' {
        cursor.skip();
        cursor.skip();
        scan_uri(cursor, &mut suffix)?;
        if suffix.is_empty() || cursor.byte() != b'>' {
            return Err(cursor.mark().error("a verbatim tag has the form `!<tag>`"));
        }
        cursor.skip();
    } else {
        handle = scan_handle(cursor)?;
        if handle.len() > 1 && handle.ends_with('!') {
            scan_uri(cursor, &mut suffix)?;
            if suffix.is_empty() {
                return Err(cursor.mark().error("a tag without a name after its handle"));
            }
        } else {
            // The scanned text is the beginning of a local tag.
            suffix.extend_from_slice(&handle.as_bytes()[1..]);
            scan_uri(cursor, &mut suffix)?;
            handle = "!".to_owned();
            if suffix.is_empty() {
                suffix.push(b'!');
                handle.clear();
            }
        }
    }
    if !cursor.is_blank_or_end(0) {
        return Err(cursor.mark().error("a tag must be followed by a space"));
    }
    Ok(TokenKind::Tag { handle, suffix })
}

/// Scans `!`, `!!`, `!name!`, or the beginning of a local tag.
fn scan_handle(cursor: &mut Cursor<'_>) -> Result<String, YamlError> {
    if cursor.byte() != b'!' {
        return Err(cursor.mark().error("a tag handle starts with `!`"));
    }
    let mut handle = String::new();
    cursor.read(&mut handle);
    handle.push_str(&scan_word(cursor));
    if cursor.byte() == b'!' {
        cursor.read(&mut handle);
    }
    Ok(handle)
}

fn scan_word(cursor: &mut Cursor<'_>) -> String {
    let mut word = String::new();
    while cursor.is_word() {
        cursor.read(&mut word);
    }
    word
}

/// Scans the characters of a URI, which may be empty.
fn scan_uri(cursor: &mut Cursor<'_>, uri: &mut Vec<u8>) -> Result<(), YamlError> {
    loop {
        match cursor.byte() {
            b'%' => scan_escaped(cursor, uri)?,
            byte if cursor.is_word() || b";/?:@&=+$,.!~*'()[]".contains(&byte) => {
                uri.push(byte);
                cursor.skip();
            }
            _ => return Ok(()),
        }
    }
}

/// Scans `%XX` for each byte of one character in UTF-8. Only the form of the bytes is
/// checked, as in go-yaml.
fn scan_escaped(cursor: &mut Cursor<'_>, uri: &mut Vec<u8>) -> Result<(), YamlError> {
    let start = cursor.mark();
    let first = scan_octet(cursor)?;
    let more = match first {
        0x00..=0x7f => 0,
        0xc0..=0xdf => 1,
        0xe0..=0xef => 2,
        0xf0..=0xf7 => 3,
        _ => return Err(start.error("the escape in the tag is not valid UTF-8")),
    };
    uri.push(first);
    for _ in 0..more {
        let octet = scan_octet(cursor)?;
        if octet & 0xc0 != 0x80 {
            return Err(start.error("the escape in the tag is not valid UTF-8"));
        }
        uri.push(octet);
    }
    Ok(())
}

fn scan_octet(cursor: &mut Cursor<'_>) -> Result<u8, YamlError> {
    let digits = [cursor.peek(1), cursor.peek(2)].map(|digit| char::from(digit).to_digit(16));
    let (b'%', [Some(high), Some(low)]) = (cursor.byte(), digits) else {
        return Err(cursor.mark().error("an escape in a tag has the form `%XX`"));
    };
    for _ in 0..3 {
        cursor.skip();
    }
    u8::try_from((high << 4) | low)
        .map_err(|_| cursor.mark().error("an escape in a tag has the form `%XX`"))
}
