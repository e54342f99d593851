//! The path of a key in the configuration.

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The path as text, such as `clients[0].bundles`. A key with dots in it, such as a host, stays as
/// it is written.
pub(super) fn render(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                // Errors are one line.
                for char in shortened(key, MAX_KEY_CHARS).chars() {
                    if char.is_control() {
                        text.extend(char.escape_default())
                    } else {
                        text.push(char)
                    }
                }
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// The text, or the beginning and the end of one above `max_chars`: the fix is at the end.
pub(super) fn shortened(text: &str, max_chars: usize) -> String {
    let length = text.chars().count();
    if length <= max_chars {
        return text.to_owned();
    }
    let start: String = text.chars().take(max_chars / 2).collect();
    let end: String = text.chars().skip(length - max_chars / 2).collect();
    format!("{start} … {end}")
}

/// The maximum length of a key in an error, in characters.
const MAX_KEY_CHARS: usize = 200;
