//! Foreign text in messages.

/// The maximum size of one message, in bytes.
const MAX_MESSAGE_BYTES: usize = 400;

/// Foreign text on one line, truncated.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<_> = text
        .split(|character: char| character.is_whitespace() || character.is_control())
        .collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    cut(&words.join(" "), MAX_MESSAGE_BYTES)
}

/// Truncates a text to `max` bytes and an ellipsis.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
