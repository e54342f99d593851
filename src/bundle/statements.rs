//! Splits a Rego file into statements, and the body of a rule into expressions, without a parser.

/// The lines of a file that belong to one statement, such as a rule with its `else`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    /// Its first line, counted from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

/// One expression of a rule's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expression<'a> {
    /// Its first line within the rule, counted from 0.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

/// The statements of a file. A statement begins at every line that is not indented, unless the line
/// closes or continues another statement, or is inside a raw string.
pub(super) fn statements(text: &str) -> Vec<Statement<'_>> {
    let mut starts: Vec<(usize, usize)> = Vec::new();
    let mut offset = 0;
    let mut in_raw_string = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if !in_raw_string && begins_statement(line) {
            starts.push((index + 1, offset));
        }
        in_raw_string ^= toggles_raw_string(line, in_raw_string);
        offset += line.len();
    }
    let ends = starts
        .iter()
        .skip(1)
        .map(|(_, start)| *start)
        .chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|((line, start), end)| Statement {
            line: *line,
            text: &text[*start..end],
        })
        .collect()
}

fn begins_statement(line: &str) -> bool {
    let word = line
        .split(|character: char| !character.is_alphanumeric())
        .next()
        .unwrap_or_default();
    line.starts_with(|character: char| !character.is_whitespace() && !"})]#".contains(character))
        && word != "else"
}

/// Whether a raw string begins or ends in a line; `open` is true if one is open before it.
fn toggles_raw_string(line: &str, open: bool) -> bool {
    let mut now = open;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '`' => now = !now,
            '#' if !now => break,
            '"' if !now => skip_quoted(&mut characters),
            _ => {}
        }
    }
    now != open
}

/// Consumes the rest of a string after its opening quote.
pub(super) fn skip_quoted(characters: &mut std::str::Chars<'_>) {
    while let Some(character) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// The expressions of a rule's body, which is `{ … }` at its end, or the text after `if`. Empty if
/// the rule has no body, or more than one.
pub(super) fn expressions(rule: &str) -> Vec<Expression<'_>> {
    let Some((start, end)) = body(rule) else {
        return Vec::new();
    };
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut add = |from: usize, to: usize| {
        let text = &rule[from..to];
        if text.trim().is_empty() {
            return;
        }
        let from = from + (text.len() - text.trim_start().len());
        match found.last_mut() {
            Some(last) if is_continuation(&rule[last.0..last.1], &rule[from..to]) => last.1 = to,
            _ => found.push((from, to)),
        }
    };
    let (mut depth, mut from, mut to) = (0_usize, start, start);
    scan(&rule[start..end], |at, character| {
        let at = start + at;
        match character {
            '\n' | ';' if depth == 0 => {
                add(from, to.max(from));
                from = at + 1;
                return;
            }
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !character.is_whitespace() {
            to = at + character.len_utf8();
        }
    });
    add(from, to.max(from));
    let expression = |(from, to): &(usize, usize)| Expression {
        line: rule[..*from].matches('\n').count(),
        text: &rule[*from..*to],
    };
    found.iter().map(expression).collect()
}

/// Whether a line continues the one before it.
fn is_continuation(before: &str, line: &str) -> bool {
    let is_operator = |character: char| "=<>+-*/%|&,:!".contains(character);
    before.ends_with(is_operator) || line.starts_with("with ") || line.starts_with(is_operator)
}

/// The range of a rule's body.
fn body(rule: &str) -> Option<(usize, usize)> {
    let first = rule.lines().next().unwrap_or_default();
    let start = match first.find(" if ") {
        Some(at) => at + " if ".len(),
        // Rego v0 has no `if`.
        None => first.find('{').filter(|_| !first.contains(":="))?,
    };
    let start = start + (rule[start..].len() - rule[start..].trim_start().len());
    if !rule[start..].starts_with('{') {
        return Some((start, rule.len()));
    }
    let close = start + closing_bracket(&rule[start..])?;
    // Otherwise an `else`, a second body or the rest of an expression follows.
    let alone = rule[close + 1..]
        .lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with('#'));
    alone.then_some((start + 1, close))
}

/// The position of the bracket that closes the one at the start of `text`.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut end = None;
    scan(text, |at, character| {
        match character {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            _ => return,
        }
        if depth == 0 && end.is_none() {
            end = Some(at);
        }
    });
    end
}

/// Calls `visit` for every character outside of strings and comments, for the closing quote of a
/// string, and for the end of a comment's line.
fn scan(text: &str, mut visit: impl FnMut(usize, char)) {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '#' => {
                if let Some((at, end)) = characters.find(|(_, character)| *character == '\n') {
                    visit(at, end);
                }
            }
            '`' => {
                if let Some((at, end)) = characters.find(|(_, character)| *character == '`') {
                    visit(at, end);
                }
            }
            '"' => {
                while let Some((at, character)) = characters.next() {
                    match character {
                        '\\' => drop(characters.next()),
                        '"' => {
                            visit(at, '"');
                            break;
                        }
                        _ => {}
                    }
                }
            }
            character => visit(at, character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rule: &str) -> Vec<(usize, &str)> {
        expressions(rule)
            .into_iter()
            .map(|one| (one.line, one.text))
            .collect()
    }

    #[test]
    fn a_statement_begins_where_a_line_is_not_indented() {
        let text = "package a\n\n# a comment\nallow if {\n\tx\n}\nelse := 1 if y\n\ns := `\nnot one\n`\n\ndeny if z\n";
        let lines: Vec<_> = statements(text).iter().map(|one| one.line).collect();
        assert_eq!(lines, [1, 4, 9, 13]);
        assert_eq!(statements(text)[3].text, "deny if z\n");
        assert_eq!(statements(""), []);
    }

    #[test]
    fn a_body_is_split_into_its_expressions() {
        assert_eq!(texts("test_a if x == 1 # one\n"), [(0, "x == 1")]);
        assert_eq!(
            texts(
                "test_a if {\n\tx := [1,\n\t\t2]; y\n\t# no\n\tb.allow\n\t\twith input as {\"a\": \"};\"}\n\tz ==\n\t\t1\n}\n"
            ),
            [
                (1, "x := [1,\n\t\t2]"),
                (2, "y"),
                (4, "b.allow\n\t\twith input as {\"a\": \"};\"}"),
                (6, "z ==\n\t\t1")
            ]
        );
        assert_eq!(texts("test_old {\n  not x\n}\n"), [(1, "not x")]);
        for none in [
            "test_a := 1",
            "test_a if {\n x\n}\nelse := true",
            "test_a if {\"a\": 1} == y",
            "test_a if {",
            "",
        ] {
            assert_eq!(texts(none), [], "{none}");
        }
    }
}
