//! Scans text to tokens, by the rules of go-yaml 3 (`scannerc.go`): those of YAML 1.1 with its
//! deviations, which determine the texts that OPA accepts.
//!
//! A *simple key* is a node that may turn out to be a mapping key once a `:` follows it on
//! the same line, within 1 024 characters. The tokens KEY and, where the key starts a mapping,
//! BLOCK-MAPPING-START are then inserted in front of it.

use std::collections::{HashMap, VecDeque};

use super::{
    YamlError, block_scalar, comment,
    cursor::{Cursor, Mark},
    flow_scalar, plain_scalar, tag,
    token::{Token, TokenKind},
};

/// Depth of flow collections, and separately of block collections, beyond which go-yaml
/// refuses a text.
const MAX_DEPTH: usize = 10_000;
const MAX_SIMPLE_KEY_CHARS: u64 = 1024;
/// go-yaml scans this many tokens beyond the next, for its comments. The position at which a simple
/// key is found invalid depends on it.
const LOOKAHEAD: usize = 2;

#[derive(Debug)]
pub(super) struct Scanner<'a> {
    pub(super) cursor: Cursor<'a>,
    tokens: VecDeque<Token>,
    /// The number of tokens that the parser has taken, which is the number of the first in
    /// `tokens`.
    taken: usize,
    is_next_ready: bool,
    is_started: bool,
    is_ended: bool,
    /// The column of the current block collection; -1 outside of all.
    pub(super) indent: i64,
    indents: Vec<i64>,
    pub(super) flow_level: usize,
    /// One for each flow level.
    simple_keys: Vec<SimpleKey>,
    simple_key_by_token: HashMap<usize, usize>,
    pub(super) is_simple_key_allowed: bool,
}

#[derive(Clone, Copy, Debug)]
struct SimpleKey {
    is_possible: bool,
    /// Whether only a key is allowed at this position.
    is_required: bool,
    token: usize,
    mark: Mark,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            cursor: Cursor::new(text),
            tokens: VecDeque::new(),
            taken: 0,
            is_next_ready: false,
            is_started: false,
            is_ended: false,
            indent: -1,
            indents: Vec::new(),
            flow_level: 0,
            simple_keys: Vec::new(),
            simple_key_by_token: HashMap::new(),
            is_simple_key_allowed: true,
        }
    }

    /// The next token, without taking it.
    pub(super) fn peek(&mut self) -> Result<&Token, YamlError> {
        if !self.is_next_ready {
            self.fetch_more()?;
            self.is_next_ready = true;
        }
        self.tokens.front().ok_or_else(|| end_error(&self.cursor))
    }

    /// Takes the next token.
    pub(super) fn next(&mut self) -> Result<Token, YamlError> {
        self.peek()?;
        self.is_next_ready = false;
        self.taken += 1;
        self.tokens
            .pop_front()
            .ok_or_else(|| end_error(&self.cursor))
    }

    fn fetch_more(&mut self) -> Result<(), YamlError> {
        while !self.is_ended {
            if self.tokens.len() > LOOKAHEAD {
                // The next token can be returned only once it is known whether it is a key.
                let Some(level) = self.simple_key_by_token.get(&self.taken).copied() else {
                    return Ok(());
                };
                if !self.is_simple_key(level)? {
                    return Ok(());
                }
            }
            self.fetch_token()?;
        }
        Ok(())
    }

    fn fetch_token(&mut self) -> Result<(), YamlError> {
        if !self.is_started {
            self.is_started = true;
            let mark = self.cursor.mark();
            self.simple_keys.push(SimpleKey {
                is_possible: false,
                is_required: false,
                token: 0,
                mark,
            });
            self.push(TokenKind::StreamStart, mark);
            return Ok(());
        }
        comment::skip_to_token(self);
        self.unroll_indent(self.cursor.mark().column);
        if self.cursor.is_end() {
            return self.fetch_stream_end();
        }
        if self.cursor.mark().column == 0 && self.cursor.byte() == b'%' {
            return self.fetch_directive();
        }
        if self.cursor.is_document_indicator() {
            return self.fetch_document_indicator();
        }
        self.fetch_content()?;
        if !self
            .tokens
            .back()
            .is_some_and(|token| matches!(token.kind, TokenKind::BlockEntry))
        {
            comment::skip_line_comment(&mut self.cursor);
        }
        Ok(())
    }

    fn fetch_content(&mut self) -> Result<(), YamlError> {
        let in_flow = self.flow_level > 0;
        let is_word_end = self.cursor.is_blank_or_end(1);
        match self.cursor.byte() {
            b'[' => self.fetch_flow_start(TokenKind::FlowSequenceStart),
            b'{' => self.fetch_flow_start(TokenKind::FlowMappingStart),
            b']' => self.fetch_flow_end(TokenKind::FlowSequenceEnd),
            b'}' => self.fetch_flow_end(TokenKind::FlowMappingEnd),
            b',' => self.fetch_flow_entry(),
            b'-' if is_word_end => self.fetch_block_entry(),
            b'?' if in_flow || is_word_end => self.fetch_key(),
            b':' if in_flow || is_word_end => self.fetch_value(),
            b'*' | b'&' => self.fetch_anchor(),
            b'!' => self.fetch_tag(),
            b'|' | b'>' if !in_flow => self.fetch_block_scalar(),
            quote @ (b'\'' | b'"') => self.fetch_flow_scalar(quote),
            b'-' => self.fetch_plain_scalar(),
            b'?' | b':' if !in_flow => self.fetch_plain_scalar(),
            b'\t' => Err(self.error("a tab can't be used for indentation; use spaces")),
            b'?' | b':' | b'#' | b'|' | b'>' | b'%' | b'@' | b'`' => {
                let found = char::from(self.cursor.byte());
                Err(self.error(format!("a value can't start with `{found}`; quote it")))
            }
            _ => self.fetch_plain_scalar(),
        }
    }

    /// An error at the current position.
    pub(super) fn error(&self, reason: impl Into<String>) -> YamlError {
        self.cursor.mark().error(reason)
    }

    fn push(&mut self, kind: TokenKind, mark: Mark) {
        self.tokens.push_back(Token { kind, mark });
    }

    /// Pushes the token of an indicator of `chars` characters, and skips them.
    fn push_indicator(&mut self, kind: TokenKind, chars: usize) {
        self.push(kind, self.cursor.mark());
        for _ in 0..chars {
            self.cursor.skip();
        }
    }

    /// Inserts a token in front of the token with this number.
    fn insert(&mut self, number: usize, kind: TokenKind, mark: Mark) {
        let position = number.saturating_sub(self.taken).min(self.tokens.len());
        self.tokens.insert(position, Token { kind, mark });
    }

    fn next_number(&self) -> usize {
        self.taken + self.tokens.len()
    }
}

/// Simple keys.
impl Scanner<'_> {
    /// Whether a `:` at the current position would make it a key.
    fn is_simple_key(&mut self, level: usize) -> Result<bool, YamlError> {
        let here = self.cursor.mark();
        let Some(key) = self
            .simple_keys
            .get_mut(level)
            .filter(|key| key.is_possible)
        else {
            return Ok(false);
        };
        if key.mark.line < here.line || key.mark.index + MAX_SIMPLE_KEY_CHARS < here.index {
            if key.is_required {
                return Err(no_colon(key.mark));
            }
            key.is_possible = false;
            return Ok(false);
        }
        Ok(true)
    }

    /// Records that the token at the current position may become a key.
    fn save_simple_key(&mut self) -> Result<(), YamlError> {
        if !self.is_simple_key_allowed {
            return Ok(());
        }
        self.remove_simple_key()?;
        let mark = self.cursor.mark();
        let is_required = self.flow_level == 0 && self.indent == mark.column;
        let token = self.next_number();
        let level = self.simple_keys.len().saturating_sub(1);
        if let Some(key) = self.simple_keys.last_mut() {
            *key = SimpleKey {
                is_possible: true,
                is_required,
                token,
                mark,
            };
            self.simple_key_by_token.insert(token, level);
        }
        Ok(())
    }

    fn remove_simple_key(&mut self) -> Result<(), YamlError> {
        let Some(key) = self.simple_keys.last_mut().filter(|key| key.is_possible) else {
            return Ok(());
        };
        if key.is_required {
            return Err(no_colon(key.mark));
        }
        key.is_possible = false;
        let token = key.token;
        self.simple_key_by_token.remove(&token);
        Ok(())
    }
}

/// Depth.
impl Scanner<'_> {
    fn increase_flow_level(&mut self) -> Result<(), YamlError> {
        let mark = self.cursor.mark();
        self.flow_level += 1;
        if self.flow_level > MAX_DEPTH {
            return Err(mark.error(format!("collections are nested deeper than {MAX_DEPTH}")));
        }
        let token = self.next_number();
        self.simple_keys.push(SimpleKey {
            is_possible: false,
            is_required: false,
            token,
            mark,
        });
        Ok(())
    }

    fn decrease_flow_level(&mut self) {
        if self.flow_level > 0 {
            self.flow_level -= 1;
            if let Some(key) = self.simple_keys.pop() {
                self.simple_key_by_token.remove(&key.token);
            }
        }
    }

    /// Starts a block collection, in front of the token `number` or at the end, where the
    /// column is deeper than that of the current one.
    fn roll_indent(
        &mut self,
        kind: TokenKind,
        number: Option<usize>,
        mark: Mark,
    ) -> Result<(), YamlError> {
        if self.flow_level > 0 || self.indent >= mark.column {
            return Ok(());
        }
        self.indents.push(self.indent);
        self.indent = mark.column;
        if self.indents.len() > MAX_DEPTH {
            return Err(mark.error(format!("collections are nested deeper than {MAX_DEPTH}")));
        }
        self.insert(number.unwrap_or(usize::MAX), kind, mark);
        Ok(())
    }

    /// Ends the block collections that are deeper than a column.
    fn unroll_indent(&mut self, column: i64) {
        if self.flow_level > 0 {
            return;
        }
        while self.indent > column {
            self.push(TokenKind::BlockEnd, self.cursor.mark());
            self.indent = self.indents.pop().unwrap_or(-1);
        }
    }

    /// Ends all block collections.
    fn end_document(&mut self) -> Result<(), YamlError> {
        self.unroll_indent(-1);
        self.remove_simple_key()?;
        self.is_simple_key_allowed = false;
        Ok(())
    }
}

/// One method for each kind of token.
impl Scanner<'_> {
    fn fetch_stream_end(&mut self) -> Result<(), YamlError> {
        self.end_document()?;
        self.is_ended = true;
        self.push(TokenKind::StreamEnd, self.cursor.mark());
        Ok(())
    }

    fn fetch_directive(&mut self) -> Result<(), YamlError> {
        self.end_document()?;
        let mark = self.cursor.mark();
        let kind = tag::scan_directive(&mut self.cursor)?;
        self.push(kind, mark);
        Ok(())
    }

    fn fetch_document_indicator(&mut self) -> Result<(), YamlError> {
        self.end_document()?;
        let is_start = self.cursor.byte() == b'-';
        self.push_indicator(
            if is_start {
                TokenKind::DocumentStart
            } else {
                TokenKind::DocumentEnd
            },
            3,
        );
        Ok(())
    }

    fn fetch_flow_start(&mut self, kind: TokenKind) -> Result<(), YamlError> {
        self.save_simple_key()?;
        self.increase_flow_level()?;
        self.is_simple_key_allowed = true;
        self.push_indicator(kind, 1);
        Ok(())
    }

    fn fetch_flow_end(&mut self, kind: TokenKind) -> Result<(), YamlError> {
        self.remove_simple_key()?;
        self.decrease_flow_level();
        self.is_simple_key_allowed = false;
        self.push_indicator(kind, 1);
        Ok(())
    }

    fn fetch_flow_entry(&mut self) -> Result<(), YamlError> {
        self.remove_simple_key()?;
        self.is_simple_key_allowed = true;
        self.push_indicator(TokenKind::FlowEntry, 1);
        Ok(())
    }

    fn fetch_block_entry(&mut self) -> Result<(), YamlError> {
        if self.flow_level == 0 {
            if !self.is_simple_key_allowed {
                return Err(self.error("a block sequence can't start here"));
            }
            self.roll_indent(TokenKind::BlockSequenceStart, None, self.cursor.mark())?;
        }
        self.remove_simple_key()?;
        self.is_simple_key_allowed = true;
        self.push_indicator(TokenKind::BlockEntry, 1);
        Ok(())
    }

    fn fetch_key(&mut self) -> Result<(), YamlError> {
        if self.flow_level == 0 {
            if !self.is_simple_key_allowed {
                return Err(self.error("a mapping key can't start here"));
            }
            self.roll_indent(TokenKind::BlockMappingStart, None, self.cursor.mark())?;
        }
        self.remove_simple_key()?;
        self.is_simple_key_allowed = self.flow_level == 0;
        self.push_indicator(TokenKind::Key, 1);
        Ok(())
    }

    fn fetch_value(&mut self) -> Result<(), YamlError> {
        let level = self.simple_keys.len().saturating_sub(1);
        if self.is_simple_key(level)? {
            self.fetch_simple_key(level)?;
        } else {
            if self.flow_level == 0 {
                if !self.is_simple_key_allowed {
                    return Err(self.error(
                        "a mapping value can't start here; quote a text that contains `: `",
                    ));
                }
                self.roll_indent(TokenKind::BlockMappingStart, None, self.cursor.mark())?;
            }
            self.is_simple_key_allowed = self.flow_level == 0;
        }
        self.push_indicator(TokenKind::Value, 1);
        Ok(())
    }

    fn fetch_simple_key(&mut self, level: usize) -> Result<(), YamlError> {
        let Some(key) = self.simple_keys.get_mut(level) else {
            return Ok(());
        };
        key.is_possible = false;
        let SimpleKey { token, mark, .. } = *key;
        self.insert(token, TokenKind::Key, mark);
        self.roll_indent(TokenKind::BlockMappingStart, Some(token), mark)?;
        self.simple_key_by_token.remove(&token);
        self.is_simple_key_allowed = false;
        Ok(())
    }

    fn fetch_anchor(&mut self) -> Result<(), YamlError> {
        self.save_simple_key()?;
        self.is_simple_key_allowed = false;
        let mark = self.cursor.mark();
        let kind = tag::scan_anchor(&mut self.cursor)?;
        self.push(kind, mark);
        Ok(())
    }

    fn fetch_tag(&mut self) -> Result<(), YamlError> {
        self.save_simple_key()?;
        self.is_simple_key_allowed = false;
        let mark = self.cursor.mark();
        let kind = tag::scan_tag(&mut self.cursor)?;
        self.push(kind, mark);
        Ok(())
    }

    fn fetch_block_scalar(&mut self) -> Result<(), YamlError> {
        self.remove_simple_key()?;
        self.is_simple_key_allowed = true;
        let mark = self.cursor.mark();
        let kind = block_scalar::scan(&mut self.cursor, self.indent)?;
        self.push(kind, mark);
        Ok(())
    }

    fn fetch_flow_scalar(&mut self, quote: u8) -> Result<(), YamlError> {
        self.save_simple_key()?;
        self.is_simple_key_allowed = false;
        let mark = self.cursor.mark();
        let kind = flow_scalar::scan(&mut self.cursor, quote)?;
        self.push(kind, mark);
        Ok(())
    }

    fn fetch_plain_scalar(&mut self) -> Result<(), YamlError> {
        self.save_simple_key()?;
        self.is_simple_key_allowed = false;
        let mark = self.cursor.mark();
        let kind = plain_scalar::scan(self)?;
        self.push(kind, mark);
        Ok(())
    }
}

fn no_colon(mark: Mark) -> YamlError {
    mark.error("a mapping key without `:`")
}

fn end_error(cursor: &Cursor<'_>) -> YamlError {
    cursor.mark().error("unexpected end of input")
}
