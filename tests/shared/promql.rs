//! The names in a PromQL expression.

use std::collections::BTreeSet;

/// What an expression reads.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) metrics: BTreeSet<String>,
    pub(crate) labels: BTreeSet<String>,
}

/// Words that are followed by a list of labels.
const GROUPING: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
const OPERATORS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// The metrics and labels of an expression, whose strings have no escaped quotes.
pub(crate) fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    let mut last = "";
    // Within the braces of a selector, or the parentheses after a word of grouping.
    let (mut is_selector, mut is_list) = (false, false);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => 2 + rest[1..].find('"').expect("a string ends"),
            '[' => 1 + rest.find(']').expect("a range ends"),
            _ if is_word(first) => rest.find(|char| !is_word(char)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let token = &rest[..length];
        rest = &rest[length..];
        match first {
            '{' => is_selector = true,
            '}' => is_selector = false,
            '(' => is_list = GROUPING.contains(&last),
            ')' => is_list = false,
            _ if !is_name(first) => {}
            _ if is_selector || is_list => drop(names.labels.insert(token.to_owned())),
            _ => {
                let next = rest.trim_start();
                let is_function = ["(", "by (", "by(", "without (", "without("]
                    .iter()
                    .any(|start| next.starts_with(start));
                let is_keyword = GROUPING.contains(&token) || OPERATORS.contains(&token);
                if !is_function && !is_keyword {
                    names.metrics.insert(token.to_owned());
                }
            }
        }
        if !first.is_whitespace() {
            last = token;
        }
    }
    names
}

fn is_name(first: char) -> bool {
    first.is_ascii_alphabetic() || first == '_'
}

/// Numbers are words as well, with their units and exponents.
fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '_' | ':' | '.')
}
