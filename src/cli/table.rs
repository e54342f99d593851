//! Formats results as text: columns, sizes, ages.

use jiff::{SignedDuration, Timestamp};

use crate::telemetry::is_hidden;

/// A table with columns as wide as their widest cell, separated by two spaces.
pub(super) fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| printable(cell)))
        .collect();
    let mut widths = header.map(|title| title.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let body = rows
        .iter()
        .map(|row| line(row.each_ref().map(String::as_str)));
    [line(header)]
        .into_iter()
        .chain(body)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names and values, one pair per line.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let lines = facts.iter().map(|(name, value)| {
        format!("{name:width$}  {}", printable(value))
            .trim_end()
            .to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Escapes control and invisible characters. Annotations, for example, come from anyone who can
/// push; they must not move the cursor, clear the screen or fake a line of output.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_hidden(character) {
            shown.extend(character.escape_default())
        } else {
            shown.push(character)
        }
    }
    shown
}

/// Joins lines, each escaped by [`printable`].
pub(super) fn printable_lines(lines: &[String]) -> String {
    lines
        .iter()
        .map(|line| printable(line))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Escapes the same characters in a JSON document, where they can occur only in strings.
pub(super) fn printable_json(document: &str) -> String {
    let mut shown = String::with_capacity(document.len());
    for character in document.chars() {
        // The line breaks of the document.
        if character == '\n' || !is_hidden(character) {
            shown.push(character);
            continue;
        }
        let mut units = [0; 2];
        character
            .encode_utf16(&mut units)
            .iter()
            .for_each(|unit| shown.push_str(&format!("\\u{unit:04x}")));
    }
    shown
}

/// A size such as `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// An age such as `3 hours ago`.
pub(super) fn age(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(now.duration_since(then)))
}

/// A duration such as `3 hours`; a negative one is zero.
pub(super) fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let table = columns(
            ["A", "LONG"],
            &[["xyz".into(), "1".into()], ["é".into(), String::new()]],
        );
        assert_eq!(table, "A    LONG\nxyz  1\né");
        assert_eq!(
            facts(&[("a", "1".into()), ("bcd", "2".into())]),
            "a    1\nbcd  2"
        );
    }

    #[test]
    fn foreign_text_cannot_break_lines_or_control_the_terminal() {
        let foreign = || "r1\nsigned  yes\u{1b}[2J\u{9b}".to_owned();
        assert_eq!(
            columns(["A"], &[[foreign()]]),
            "A\nr1\\nsigned  yes\\u{1b}[2J\\u{9b}"
        );
        assert_eq!(
            facts(&[("a", foreign())]),
            "a  r1\\nsigned  yes\\u{1b}[2J\\u{9b}"
        );
    }

    #[test]
    fn json_and_text_escape_the_same_characters_and_json_stays_the_same_document() {
        let hostile =
            "a\u{7f}b\u{9b}31mc\u{202e}d\u{2066}e\u{200f}f\u{2028}g\u{e0041}h\u{e9}\u{65e5}";
        let escaped = printable(hostile);
        assert!(
            escaped.ends_with("h\u{e9}\u{65e5}") && escaped.chars().all(|shown| !is_hidden(shown)),
            "{escaped}"
        );
        let value = serde_json::json!({ "key\u{85}": [hostile] });
        let document = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            document
                .chars()
                .all(|shown| shown == '\n' || !is_hidden(shown)),
            "{document}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&document).unwrap(),
            value
        );
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 20].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB"]
        );
        assert_eq!(size(200 << 30), "200.0 GiB");
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let since = |text: &str| age(text.parse().unwrap(), now);
        assert_eq!(since("2026-01-01T23:59:59Z"), "1 second ago");
        assert_eq!(since("2026-01-01T22:30:00Z"), "1 hour ago");
        assert_eq!(since("2025-12-01T00:00:00Z"), "32 days ago");
        assert_eq!(since("2026-01-03T00:00:00Z"), "0 seconds ago");
    }
}
