//! Scans literal (`|`) and folded (`>`) scalars.

use super::{
    YamlError,
    cursor::Cursor,
    token::{Style, TokenKind},
};

/// Scans a block scalar at its indicator, inside a block collection at column `parent`.
pub(super) fn scan(cursor: &mut Cursor<'_>, parent: i64) -> Result<TokenKind, YamlError> {
    let is_folded = cursor.byte() == b'>';
    cursor.skip();
    let header = Header::scan(cursor)?;
    let mut body = Body {
        indent: header.indent.map(|indent| parent.max(0) + indent),
        parent,
        value: String::new(),
        line_break: String::new(),
        empty_lines: String::new(),
    };
    let mut indent = body.scan_empty_lines(cursor)?;
    let mut was_blank = false;
    while cursor.mark().column == indent && !cursor.is_end() {
        let is_blank = cursor.is_blank(0);
        body.join(is_folded && !was_blank && !is_blank);
        was_blank = is_blank;
        while !cursor.is_break_or_end(0) {
            cursor.read(&mut body.value);
        }
        cursor.read_break(&mut body.line_break);
        indent = body.scan_empty_lines(cursor)?;
    }
    Ok(TokenKind::Scalar {
        value: body.chomp(header.chomping),
        style: Style::Block,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chomping {
    Strip,
    Clip,
    Keep,
}

/// The header after the indicator: the handling of the last line breaks, and the indentation
/// relative to the parent, in either order.
#[derive(Debug)]
struct Header {
    chomping: Chomping,
    indent: Option<i64>,
}

impl Header {
    fn scan(cursor: &mut Cursor<'_>) -> Result<Self, YamlError> {
        let mut chomping = scan_chomping(cursor);
        let indent = scan_indent(cursor)?;
        if chomping.is_none() {
            chomping = scan_chomping(cursor);
        }
        cursor.skip_blanks();
        if cursor.byte() == b'#' {
            cursor.skip_to_break();
        }
        if !cursor.is_break_or_end(0) {
            return Err(cursor
                .mark()
                .error("the text of a block scalar must start on the next line"));
        }
        cursor.skip_break();
        Ok(Self {
            chomping: chomping.unwrap_or(Chomping::Clip),
            indent,
        })
    }
}

fn scan_chomping(cursor: &mut Cursor<'_>) -> Option<Chomping> {
    let chomping = match cursor.byte() {
        b'+' => Chomping::Keep,
        b'-' => Chomping::Strip,
        _ => return None,
    };
    cursor.skip();
    Some(chomping)
}

fn scan_indent(cursor: &mut Cursor<'_>) -> Result<Option<i64>, YamlError> {
    match cursor.byte() {
        b'0' => Err(cursor
            .mark()
            .error("the indentation of a block scalar must be at least 1")),
        digit @ b'1'..=b'9' => {
            cursor.skip();
            Ok(Some(i64::from(digit - b'0')))
        }
        _ => Ok(None),
    }
}

#[derive(Debug)]
struct Body {
    /// Unknown until the first line that is not empty.
    indent: Option<i64>,
    parent: i64,
    value: String,
    /// The line break after the last line, and those of the empty lines after it, which are not
    /// part of the value yet.
    line_break: String,
    empty_lines: String,
}

impl Body {
    fn join(&mut self, folds: bool) {
        if folds && self.line_break == "\n" {
            if self.empty_lines.is_empty() {
                self.value.push(' ');
            }
        } else {
            self.value.push_str(&self.line_break);
        }
        self.line_break.clear();
        self.value.push_str(&self.empty_lines);
        self.empty_lines.clear();
    }

    /// Scans indentation and empty lines, and returns the column of the text.
    fn scan_empty_lines(&mut self, cursor: &mut Cursor<'_>) -> Result<i64, YamlError> {
        let mut deepest = 0;
        loop {
            while self.is_indentation(cursor) && cursor.byte() == b' ' {
                cursor.skip();
            }
            deepest = deepest.max(cursor.mark().column);
            if self.is_indentation(cursor) && cursor.byte() == b'\t' {
                return Err(cursor
                    .mark()
                    .error("a tab can't be used for indentation; use spaces"));
            }
            if !cursor.is_break(0) {
                break;
            }
            cursor.read_break(&mut self.empty_lines);
        }
        let indent = self
            .indent
            .unwrap_or_else(|| deepest.max(self.parent + 1).max(1));
        self.indent = Some(indent);
        Ok(indent)
    }

    fn is_indentation(&self, cursor: &Cursor<'_>) -> bool {
        self.indent
            .is_none_or(|indent| cursor.mark().column < indent)
    }

    fn chomp(mut self, chomping: Chomping) -> String {
        if chomping != Chomping::Strip {
            self.value.push_str(&self.line_break);
        }
        if chomping == Chomping::Keep {
            self.value.push_str(&self.empty_lines);
        }
        self.value
    }
}
