//! Skips blanks, line breaks and comments between tokens.
//!
//! go-yaml keeps comments, and does not check the text that it scans for them as it checks other
//! text: tabs are allowed before a comment and on empty lines between comments.

use super::{cursor::Cursor, scanner::Scanner};

/// The distance that go-yaml looks ahead for a comment, in bytes.
const COMMENT_LOOKAHEAD: usize = 512;

/// Skips everything up to the next token. A tab is skipped where no key may start.
pub(super) fn skip_to_token(scanner: &mut Scanner<'_>) {
    loop {
        let is_tab_allowed = scanner.flow_level > 0 || !scanner.is_simple_key_allowed;
        let cursor = &mut scanner.cursor;
        while cursor.byte() == b' ' || (is_tab_allowed && cursor.byte() == b'\t') {
            cursor.skip();
        }
        if cursor.byte() == b'#' {
            skip_comments(cursor, scanner.flow_level > 0);
        }
        if !cursor.is_break(0) {
            return;
        }
        cursor.skip_break();
        if scanner.flow_level == 0 {
            scanner.is_simple_key_allowed = true;
        }
    }
}

/// Skips a comment that follows a token on its line.
pub(super) fn skip_line_comment(cursor: &mut Cursor<'_>) {
    if cursor.is_after_break() {
        return;
    }
    let blanks = (0..COMMENT_LOOKAHEAD)
        .take_while(|ahead| cursor.is_blank(*ahead))
        .count();
    if blanks < COMMENT_LOOKAHEAD && cursor.peek(blanks) == b'#' {
        cursor.skip_to_break();
    }
}

/// Skips the comment at the current position, and the comments on the following lines that are
/// separated by blanks and line breaks only.
fn skip_comments(cursor: &mut Cursor<'_>, in_flow: bool) {
    cursor.skip_to_break();
    while let Some(bytes) = next_comment(cursor, in_flow) {
        skip_bytes(cursor, bytes);
        cursor.skip_to_break();
    }
}

/// The distance to the next comment from the line break at the end of the last one.
fn next_comment(cursor: &Cursor<'_>, in_flow: bool) -> Option<usize> {
    for ahead in 1..COMMENT_LOOKAHEAD {
        match cursor.peek(ahead) {
            b'#' => return Some(ahead),
            b']' | b'}' if in_flow => return None,
            _ if cursor.is_blank(ahead) || cursor.is_break(ahead) => {}
            _ => return None,
        }
    }
    None
}

fn skip_bytes(cursor: &mut Cursor<'_>, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        left -= match [cursor.byte(), cursor.peek(1)] {
            [b'\r', b'\n'] if left > 1 => 2,
            _ => 1,
        };
        if cursor.is_break(0) {
            cursor.skip_break();
        } else {
            cursor.skip();
        }
    }
}
