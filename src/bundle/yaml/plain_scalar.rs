//! Scans scalars without quotes.

use super::{
    YamlError,
    cursor::Cursor,
    scanner::Scanner,
    token::{Style, TokenKind},
};

/// Scans a plain scalar, which may continue on lines that are indented deeper than the current
/// block collection.
pub(super) fn scan(scanner: &mut Scanner<'_>) -> Result<TokenKind, YamlError> {
    let indent = scanner.indent + 1;
    let in_flow = scanner.flow_level > 0;
    let cursor = &mut scanner.cursor;
    let mut value = String::new();
    let mut blanks = Blanks::default();
    while !cursor.is_document_indicator() && cursor.byte() != b'#' {
        while !cursor.is_blank_or_end(0) && !ends_plain(cursor, in_flow) {
            blanks.join_to(&mut value);
            cursor.read(&mut value);
        }
        if !cursor.is_blank(0) && !cursor.is_break(0) {
            break;
        }
        blanks.scan(cursor, Some(indent))?;
        if !in_flow && cursor.mark().column < indent {
            break;
        }
    }
    if blanks.has_break {
        scanner.is_simple_key_allowed = true;
    }
    Ok(TokenKind::Scalar {
        value,
        style: Style::Plain,
    })
}

fn ends_plain(cursor: &Cursor<'_>, in_flow: bool) -> bool {
    match cursor.byte() {
        b':' => cursor.is_blank_or_end(1),
        b',' | b'?' | b'[' | b']' | b'{' | b'}' => in_flow,
        _ => false,
    }
}

/// Blanks and line breaks within a scalar. They become part of it if more text follows: blanks as
/// they are, one line break as a space, several without the first.
#[derive(Debug, Default)]
pub(super) struct Blanks {
    spaces: String,
    first_break: String,
    more_breaks: String,
    has_break: bool,
}

impl Blanks {
    /// No blanks; with `has_break`, after a line break that was escaped.
    pub(super) fn after(has_break: bool) -> Self {
        Self {
            has_break,
            ..Self::default()
        }
    }

    /// Scans blanks and line breaks. A tab within the indentation, if one is given, is an error.
    pub(super) fn scan(
        &mut self,
        cursor: &mut Cursor<'_>,
        indent: Option<i64>,
    ) -> Result<(), YamlError> {
        loop {
            if cursor.is_blank(0) {
                let is_indentation =
                    self.has_break && indent.is_some_and(|indent| cursor.mark().column < indent);
                if is_indentation && cursor.byte() == b'\t' {
                    return Err(cursor
                        .mark()
                        .error("a tab can't be used for indentation; use spaces"));
                }
                if self.has_break {
                    cursor.skip();
                } else {
                    cursor.read(&mut self.spaces);
                }
            } else if !cursor.is_break(0) {
                return Ok(());
            } else if self.has_break {
                cursor.read_break(&mut self.more_breaks);
            } else {
                self.spaces.clear();
                cursor.read_break(&mut self.first_break);
                self.has_break = true;
            }
        }
    }

    /// Appends the blanks to `value` as they are folded, and clears them.
    pub(super) fn join_to(&mut self, value: &mut String) {
        if !self.has_break {
            value.push_str(&self.spaces);
        } else if self.first_break != "\n" {
            value.push_str(&self.first_break);
            value.push_str(&self.more_breaks);
        } else if self.more_breaks.is_empty() {
            value.push(' ');
        } else {
            value.push_str(&self.more_breaks);
        }
        self.spaces.clear();
        self.first_break.clear();
        self.more_breaks.clear();
        self.has_break = false;
    }
}
