//! The position in a text up to which it has been scanned.

use super::YamlError;

/// A position: index and column in characters, and line, all counted from 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub(super) index: u64,
    pub(super) line: u64,
    pub(super) column: i64,
}

impl Mark {
    pub(super) fn error(self, reason: impl Into<String>) -> YamlError {
        YamlError::at(self.line + 1, self.column.unsigned_abs() + 1, reason)
    }
}

/// Reads a text character by character. Beyond its end it reads NUL, which no text contains.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    mark: Mark,
    after_break: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            mark: Mark::default(),
            after_break: false,
        }
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Whether only blanks were read since the last line break.
    pub(super) fn is_after_break(&self) -> bool {
        self.after_break
    }

    /// The byte `ahead` of the current one.
    pub(super) fn peek(&self, ahead: usize) -> u8 {
        self.text
            .as_bytes()
            .get(self.at.saturating_add(ahead))
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn byte(&self) -> u8 {
        self.peek(0)
    }

    pub(super) fn is_end(&self) -> bool {
        self.at >= self.text.len()
    }

    pub(super) fn is_blank(&self, ahead: usize) -> bool {
        matches!(self.peek(ahead), b' ' | b'\t')
    }

    /// Whether the byte begins a line break of YAML 1.1: CR, LF, NEL, LS or PS.
    pub(super) fn is_break(&self, ahead: usize) -> bool {
        self.break_width(ahead) > 0
    }

    pub(super) fn is_break_or_end(&self, ahead: usize) -> bool {
        self.peek(ahead) == 0 || self.is_break(ahead)
    }

    pub(super) fn is_blank_or_end(&self, ahead: usize) -> bool {
        self.is_blank(ahead) || self.is_break_or_end(ahead)
    }

    /// Whether the byte may be part of an anchor or a tag handle: an ASCII letter or digit, `_` or
    /// `-`.
    pub(super) fn is_word(&self) -> bool {
        self.byte().is_ascii_alphanumeric() || matches!(self.byte(), b'_' | b'-')
    }

    /// Whether `---` or `...` follows at the start of a line, as a separate word.
    pub(super) fn is_document_indicator(&self) -> bool {
        self.mark.column == 0
            && matches!(
                [self.peek(0), self.peek(1), self.peek(2)],
                [b'-', b'-', b'-'] | [b'.', b'.', b'.']
            )
            && self.is_blank_or_end(3)
    }

    /// Skips one character that is not a line break.
    pub(super) fn skip(&mut self) {
        self.take();
    }

    /// Reads one character that is not a line break, and appends it to `out`.
    pub(super) fn read(&mut self, out: &mut String) {
        let taken = self.take();
        out.push_str(taken);
    }

    fn take(&mut self) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let width = rest.chars().next().map_or(0, char::len_utf8);
        if !self.is_blank(0) {
            self.after_break = false;
        }
        self.at += width;
        self.mark.index += 1;
        self.mark.column += 1;
        &rest[..width]
    }

    pub(super) fn skip_blanks(&mut self) {
        while self.is_blank(0) {
            self.skip();
        }
    }

    /// Skips everything up to the next line break or the end.
    pub(super) fn skip_to_break(&mut self) {
        while !self.is_break_or_end(0) {
            self.skip();
        }
    }

    /// Skips a line break, if there is one.
    pub(super) fn skip_break(&mut self) {
        let width = self.break_width(0);
        if width == 0 {
            return;
        }
        let is_pair = self.byte() == b'\r' && self.peek(1) == b'\n';
        self.at += if is_pair { 2 } else { width };
        self.mark.index += if is_pair { 2 } else { 1 };
        self.mark.line += 1;
        self.mark.column = 0;
        self.after_break = true;
    }

    /// Reads a line break, if there is one, and appends it to `out`: LS and PS as they are, any
    /// other as LF.
    pub(super) fn read_break(&mut self, out: &mut String) {
        match self.break_width(0) {
            0 => return,
            3 => out.push(if self.peek(2) == 0xa8 {
                '\u{2028}'
            } else {
                '\u{2029}'
            }),
            _ => out.push('\n'),
        }
        self.skip_break();
    }

    fn break_width(&self, ahead: usize) -> usize {
        match self.peek(ahead) {
            b'\r' | b'\n' => 1,
            0xc2 if self.peek(ahead + 1) == 0x85 => 2,
            0xe2 if self.peek(ahead + 1) == 0x80 && matches!(self.peek(ahead + 2), 0xa8 | 0xa9) => {
                3
            }
            _ => 0,
        }
    }
}
