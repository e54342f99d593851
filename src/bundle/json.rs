//! Parses JSON as OPA does, that is as Go's `encoding/json`, which is more lenient than RFC 8259 in
//! strings and as strict in syntax.
//!
//! Each byte that is not UTF-8 and each unpaired surrogate is read as U+FFFD, numbers have any size
//! and keep their text, and nesting ends at 10 000 levels. Values are read one token at a time, so
//! a document takes no more memory than its longest token.

use std::io::{self, BufRead};

/// The maximum depth of nesting in `encoding/json` (`maxNestingDepth` in its `scanner.go`).
pub(super) const MAX_DEPTH: usize = 10_000;

/// One token of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Null,
    Bool(bool),
    /// The text of a number.
    Number(&'a str),
    String(&'a str),
    /// The name of an object's member; its value follows.
    Key(&'a str),
    StartArray,
    EndArray,
    StartObject,
    EndObject,
}

/// An error in parsing a document.
#[derive(Debug, thiserror::Error)]
pub(super) enum JsonError {
    /// The input can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The input is not JSON.
    #[error("{line}:{column}: {reason}")]
    Syntax {
        /// Counted from 1.
        line: u64,
        /// In bytes, counted from 1.
        column: u64,
        /// The error.
        reason: String,
    },
}

/// The tokens of one JSON value at the start of `input`.
#[derive(Debug)]
pub(super) struct JsonReader<R> {
    input: R,
    line: u64,
    column: u64,
    /// The open arrays and objects.
    open: Vec<Container>,
    state: State,
    /// The text of the current token.
    text: String,
    /// Whether the text of tokens is kept.
    keeps_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    FirstItem,
    FirstKey,
    AfterValue,
    Done,
}

impl<R: BufRead> JsonReader<R> {
    pub(super) fn new(input: R) -> Self {
        let text = String::new();
        Self {
            input,
            line: 1,
            column: 1,
            open: Vec::new(),
            state: State::Value,
            text,
            keeps_text: true,
        }
    }

    /// The next token; `None` after the last one of the value.
    ///
    /// # Errors
    /// When `encoding/json` would refuse the input, with the position.
    pub(super) fn next(&mut self) -> Result<Option<Token<'_>>, JsonError> {
        if self.state == State::Done {
            return Ok(None);
        }
        self.skip_space()?;
        match (self.state, self.peek()?) {
            (State::FirstItem, Some(b']')) | (State::FirstKey, Some(b'}')) => {
                self.close().map(Some)
            }
            (State::FirstKey, _) => self.key().map(Some),
            (State::AfterValue, Some(b',')) => {
                self.bump();
                self.skip_space()?;
                match self.open.last() {
                    Some(Container::Object) => self.key().map(Some),
                    _ => self.value().map(Some),
                }
            }
            (State::AfterValue, Some(b']')) if self.open.last() == Some(&Container::Array) => {
                self.close().map(Some)
            }
            (State::AfterValue, Some(b'}')) if self.open.last() == Some(&Container::Object) => {
                self.close().map(Some)
            }
            (State::AfterValue, found) => Err(self.unexpected(found, "after a value")),
            _ => self.value().map(Some),
        }
    }

    /// Skips the value of a key.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) fn skip_value(&mut self) -> Result<(), JsonError> {
        let depth = self.open.len();
        self.skip_to(depth)
    }

    /// Skips the rest of the innermost open array or object.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) fn skip_container(&mut self) -> Result<(), JsonError> {
        let depth = self.open.len().saturating_sub(1);
        self.skip_to(depth)
    }

    fn skip_to(&mut self, depth: usize) -> Result<(), JsonError> {
        self.keeps_text = false;
        loop {
            let is_key = matches!(self.next()?, Some(Token::Key(_)));
            if !is_key && self.open.len() <= depth {
                break;
            }
        }
        self.keeps_text = true;
        Ok(())
    }

    /// Consumes the end of the innermost open array if it comes next, and returns whether it did.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) fn ends_array(&mut self) -> Result<bool, JsonError> {
        self.skip_space()?;
        let ends = self.open.last() == Some(&Container::Array)
            && matches!(self.state, State::FirstItem | State::AfterValue)
            && self.peek()? == Some(b']');
        if ends {
            self.close()?;
        }
        Ok(ends)
    }

    /// Checks that nothing but whitespace follows, as OPA does. OPA reads one more token, and takes
    /// `null` for the end (`unmarshalJSON` in `v1/util/json.go`).
    ///
    /// # Errors
    /// When anything else follows.
    pub(super) fn end(&mut self) -> Result<(), JsonError> {
        self.skip_space()?;
        match self.peek()? {
            None => Ok(()),
            Some(b'n') => self.literal(b"null", Token::Null).map(drop),
            found => Err(self.unexpected(found, "after the document")),
        }
    }

    /// The line and column of the next byte, counted from 1.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.line, self.column)
    }

    /// Whether nothing but whitespace follows; `false` if the input can't be read.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.skip_space().is_ok() && matches!(self.peek(), Ok(None))
    }

    fn value(&mut self) -> Result<Token<'_>, JsonError> {
        match self.peek()? {
            Some(b'{') => self.open(Container::Object, State::FirstKey, Token::StartObject),
            Some(b'[') => self.open(Container::Array, State::FirstItem, Token::StartArray),
            Some(b'"') => {
                self.string()?;
                self.state = self.after_value();
                Ok(Token::String(&self.text))
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                self.state = self.after_value();
                Ok(Token::Number(&self.text))
            }
            Some(b't') => self.literal(b"true", Token::Bool(true)),
            Some(b'f') => self.literal(b"false", Token::Bool(false)),
            Some(b'n') => self.literal(b"null", Token::Null),
            found => Err(self.unexpected(found, "instead of a value")),
        }
    }

    fn open(
        &mut self,
        container: Container,
        state: State,
        token: Token<'static>,
    ) -> Result<Token<'static>, JsonError> {
        if self.open.len() == MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.bump();
        self.open.push(container);
        self.state = state;
        Ok(token)
    }

    fn close(&mut self) -> Result<Token<'static>, JsonError> {
        self.bump();
        let container = self.open.pop();
        self.state = self.after_value();
        Ok(if container == Some(Container::Array) {
            Token::EndArray
        } else {
            Token::EndObject
        })
    }

    fn after_value(&self) -> State {
        if self.open.is_empty() {
            State::Done
        } else {
            State::AfterValue
        }
    }

    fn key(&mut self) -> Result<Token<'_>, JsonError> {
        match self.peek()? {
            Some(b'"') => self.string()?,
            found => return Err(self.unexpected(found, "instead of a key")),
        }
        self.skip_space()?;
        match self.peek()? {
            Some(b':') => self.bump(),
            found => return Err(self.unexpected(found, "instead of a colon after a key")),
        }
        self.state = State::Value;
        Ok(Token::Key(&self.text))
    }

    fn literal(&mut self, word: &[u8], token: Token<'static>) -> Result<Token<'static>, JsonError> {
        for expected in word {
            match self.peek()? {
                Some(byte) if byte == *expected => self.bump(),
                found => return Err(self.unexpected(found, "in a literal")),
            }
        }
        self.state = self.after_value();
        Ok(token)
    }

    fn number(&mut self) -> Result<(), JsonError> {
        self.text.clear();
        self.take_if(|byte| byte == b'-')?;
        if !self.take_if(|byte| byte == b'0')? {
            self.digits()?;
        }
        if self.take_if(|byte| byte == b'.')? {
            self.digits()?;
        }
        if self.take_if(|byte| matches!(byte, b'e' | b'E'))? {
            self.take_if(|byte| matches!(byte, b'+' | b'-'))?;
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !self.take_if(|byte| byte.is_ascii_digit())? {
            let found = self.peek()?;
            return Err(self.unexpected(found, "in a number"));
        }
        loop {
            let buffer = self.input.fill_buf()?;
            let digits = buffer.iter().take_while(|byte| byte.is_ascii_digit());
            let length = digits.count();
            if length == 0 {
                return Ok(());
            }
            if self.keeps_text {
                // Digits are ASCII, so nothing is replaced.
                self.text
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            self.input.consume(length);
            self.column += length as u64;
        }
    }

    /// Consumes the next byte, an ASCII character, if it is wanted, and adds it to the text.
    fn take_if(&mut self, wanted: impl Fn(u8) -> bool) -> Result<bool, JsonError> {
        let Some(byte) = self.peek()?.filter(|byte| wanted(*byte)) else {
            return Ok(false);
        };
        self.bump();
        if self.keeps_text {
            self.text.push(char::from(byte));
        }
        Ok(true)
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.bump();
        self.text.clear();
        loop {
            self.plain_text()?;
            match self.peek()? {
                Some(b'"') => {
                    self.bump();
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(byte) if byte >= 0x80 => self.character(byte)?,
                found => return Err(self.unexpected(found, "in a string")),
            }
        }
    }

    /// Consumes ordinary ASCII characters, a buffer at a time.
    fn plain_text(&mut self) -> Result<(), JsonError> {
        loop {
            let buffer = self.input.fill_buf()?;
            let length = length_of(buffer, is_plain);
            if length == 0 {
                return Ok(());
            }
            if self.keeps_text {
                // Plain text is ASCII, so nothing is replaced.
                self.text
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            self.input.consume(length);
            self.column += length as u64;
        }
    }

    /// Consumes a multi-byte character, or one byte of an invalid one as U+FFFD.
    fn character(&mut self, first: u8) -> Result<(), JsonError> {
        let length = match first {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        let mut bytes = [first, 0, 0, 0];
        self.bump();
        let mut taken = 1;
        while taken < length {
            // A byte that can't continue the character is parsed again.
            match self.peek()?.filter(|byte| continues(first, taken, *byte)) {
                Some(byte) => {
                    bytes[taken] = byte;
                    self.bump();
                    taken += 1;
                }
                None => break,
            }
        }
        match std::str::from_utf8(&bytes[..taken]) {
            Ok(text) => text.chars().for_each(|character| self.push_char(character)),
            // `utf8.DecodeRune` skips one byte at a time.
            Err(_) => (0..taken).for_each(|_| self.push_char(char::REPLACEMENT_CHARACTER)),
        }
        Ok(())
    }

    fn push_char(&mut self, character: char) {
        if self.keeps_text {
            self.text.push(character);
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.bump();
        if self.peek()? == Some(b'u') {
            self.unicode_escape()
        } else {
            self.simple_escape()
        }
    }

    /// Consumes the letter of an escape other than `\u`.
    fn simple_escape(&mut self) -> Result<(), JsonError> {
        let character = match self.peek()? {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            found => return Err(self.unexpected(found, "in an escape")),
        };
        self.bump();
        self.push_char(character);
        Ok(())
    }

    /// Consumes `\uXXXX`, and the escapes after it as long as one may complete a surrogate pair.
    fn unicode_escape(&mut self) -> Result<(), JsonError> {
        let mut unit = self.code_unit()?;
        loop {
            if let Some(character) = char::from_u32(unit) {
                self.push_char(character);
                return Ok(());
            }
            // A surrogate, which the next escape may complete.
            if self.peek()? != Some(b'\\') {
                self.push_char(char::REPLACEMENT_CHARACTER);
                return Ok(());
            }
            self.bump();
            if self.peek()? != Some(b'u') {
                self.push_char(char::REPLACEMENT_CHARACTER);
                return self.simple_escape();
            }
            let second = self.code_unit()?;
            if (0xd800..0xdc00).contains(&unit) && (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((unit - 0xd800) << 10) + (second - 0xdc00);
                self.push_char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                return Ok(());
            }
            self.push_char(char::REPLACEMENT_CHARACTER);
            unit = second;
        }
    }

    /// Consumes the four digits after `u`.
    fn code_unit(&mut self) -> Result<u32, JsonError> {
        self.bump();
        let mut unit = 0;
        for _ in 0..4 {
            let found = self.peek()?;
            let Some(digit) = found.and_then(|byte| char::from(byte).to_digit(16)) else {
                return Err(self.unexpected(found, "in an escape"));
            };
            unit = unit * 16 + digit;
            self.bump();
        }
        Ok(unit)
    }

    #[inline]
    fn skip_space(&mut self) -> Result<(), JsonError> {
        // Most tokens have no space before them.
        match self.peek()? {
            Some(byte) if is_space(byte) => self.skip_all_space(),
            _ => Ok(()),
        }
    }

    fn skip_all_space(&mut self) -> Result<(), JsonError> {
        loop {
            let buffer = self.input.fill_buf()?;
            // Often one line break and indentation.
            let length = buffer.iter().take_while(|byte| is_space(**byte)).count();
            if length == 0 {
                return Ok(());
            }
            for byte in &buffer[..length] {
                self.column += 1;
                if *byte == b'\n' {
                    self.line += 1;
                    self.column = 1;
                }
            }
            self.input.consume(length);
        }
    }

    #[inline]
    fn peek(&mut self) -> Result<Option<u8>, JsonError> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    fn bump(&mut self) {
        self.input.consume(1);
        self.column += 1;
    }

    fn unexpected(&self, found: Option<u8>, place: &str) -> JsonError {
        match found {
            None => self.error("unexpected end of input".to_owned()),
            Some(byte) if byte.is_ascii_graphic() || byte == b' ' => {
                self.error(format!("unexpected {:?} {place}", char::from(byte)))
            }
            Some(byte) => self.error(format!("unexpected byte 0x{byte:02x} {place}")),
        }
    }

    fn error(&self, reason: String) -> JsonError {
        JsonError::Syntax {
            line: self.line,
            column: self.column,
            reason,
        }
    }
}

/// The number of bytes at the start of `bytes` that are `wanted`.
fn length_of(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    const CHUNK: usize = 32;
    // Without an early exit within a chunk, the compiler compares all its bytes at once.
    let chunks = bytes.chunks_exact(CHUNK);
    let whole = chunks
        .take_while(|chunk| chunk.iter().fold(true, |all, byte| all & wanted(*byte)))
        .count()
        * CHUNK;
    let rest = bytes[whole..].iter().take_while(|byte| wanted(**byte));
    whole + rest.count()
}

/// Whether a byte of a string stands for itself.
fn is_plain(byte: u8) -> bool {
    (0x20..0x80).contains(&byte) & (byte != b'"') & (byte != b'\\')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Whether a byte is allowed at `position` of the character that begins with `first` (RFC 3629 §4).
fn continues(first: u8, position: usize, byte: u8) -> bool {
    let second = match first {
        0xe0 => 0xa0..=0xbf,
        0xed => 0x80..=0x9f,
        0xf0 => 0x90..=0xbf,
        0xf4 => 0x80..=0x8f,
        _ => 0x80..=0xbf,
    };
    if position == 1 {
        second.contains(&byte)
    } else {
        (0x80..=0xbf).contains(&byte)
    }
}
