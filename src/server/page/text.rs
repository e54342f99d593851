//! Times, sizes and other small parts of the page.

use jiff::{SignedDuration, Timestamp};

use super::html::Html;

/// A coloured word: `good`, `warn`, `bad` or `calm`.
pub(super) fn badge(html: &mut Html, colour: &'static str, label: &str) {
    let class = match colour {
        "good" => "badge good",
        "warn" => "badge warn",
        "bad" => "badge bad",
        _ => "badge",
    };
    html.element("span").class(class).text(label);
}

/// A digest, which the style sheet shortens: the whole of it can be selected and searched.
pub(super) fn digest(html: &mut Html, digest: &str) {
    let code = html.element("code").class("digest");
    code.attribute("title", digest).text(digest);
}

/// A section with a frame around its content.
pub(super) fn section(
    html: &mut Html,
    id: &'static str,
    title: &str,
    content: impl FnOnce(&mut Html),
) {
    let section = html.element("section").attribute("id", id);
    section.attribute("aria-label", title).content(|html| {
        html.element("h2").text(title);
        html.element("div").class("frame").content(content);
    });
}

/// A table with these columns.
pub(super) fn table(html: &mut Html, names: &[&str], rows: impl FnOnce(&mut Html)) {
    let table = html.element("table").class("plain");
    table.attribute("role", "table").content(|html| {
        columns(html, names);
        html.element("tbody")
            .attribute("role", "rowgroup")
            .content(rows);
    });
}

/// A row of a table.
pub(super) fn row(html: &mut Html, cells: impl FnOnce(&mut Html)) {
    let row = html.element("tr").class("main");
    row.attribute("role", "row").content(cells);
}

/// The cell that names a row.
pub(super) fn row_head(html: &mut Html, content: impl FnOnce(&mut Html)) {
    let head = html.element("th").attribute("scope", "row");
    head.attribute("role", "rowheader").content(content);
}

/// The head of a table.
pub(super) fn columns(html: &mut Html, columns: &[&str]) {
    html.element("thead").content(|html| {
        html.element("tr").attribute("role", "row").content(|html| {
            for column in columns {
                let head = html.element("th").attribute("scope", "col");
                head.attribute("role", "columnheader").text(column);
            }
        });
    });
}

/// A cell. On a narrow screen it is a line that begins with `label`.
pub(super) fn cell(html: &mut Html, label: &str, content: impl FnOnce(&mut Html)) {
    let cell = html.element("td").attribute("role", "cell");
    cell.attribute("data-label", label).content(|html| {
        html.element("div").content(content);
    });
}

/// An entry of a list of facts.
pub(super) fn fact(html: &mut Html, label: &str, content: impl FnOnce(&mut Html)) {
    html.element("dt").text(label);
    html.element("dd").content(content);
}

/// A time as its age.
pub(super) fn ago(html: &mut Html, then: Timestamp, now: Timestamp) {
    time(
        html,
        then,
        &format!("{} ago", duration(now.duration_since(then))),
    );
}

/// The time since another one.
pub(super) fn duration_since(html: &mut Html, then: Timestamp, now: Timestamp) {
    time(html, then, &duration(now.duration_since(then)));
}

/// A time of the day, in UTC.
pub(super) fn clock(html: &mut Html, at: Timestamp) {
    let text = format!("{at:.0}");
    let clock = text.split_once('T').map_or(&*text, |(_, clock)| clock);
    time(html, at, &format!("{} UTC", clock.trim_end_matches('Z')));
}

/// A time with a text that stands for it.
pub(super) fn time(html: &mut Html, at: Timestamp, text: &str) {
    let exact = format!("{at:.3}");
    let time = html.element("time").attribute("datetime", &exact);
    time.attribute("title", &exact).text(text);
}

/// A duration such as `3 hours`; a negative one is zero.
pub(super) fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A number with its noun.
pub(super) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A size such as `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_counts_and_sizes_are_short() {
        let seconds = [-5, 0, 59, 60, 3599, 3600, 172_799, 172_800, 864_000];
        assert_eq!(
            seconds.map(|seconds| duration(SignedDuration::from_secs(seconds))),
            [
                "0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 days", "10 days"
            ]
        );
        assert_eq!(
            [0, 1, 2].map(|number| count(number, "bundle")),
            ["0 bundles", "1 bundle", "2 bundles"]
        );
        assert_eq!([5, 1536, 5 << 20].map(size), ["5 B", "1.5 KiB", "5.0 MiB"]);
    }

    #[test]
    fn a_time_has_its_exact_value_beside_the_text() {
        let mut html = Html::default();
        clock(&mut html, "2026-01-02T03:04:05.678Z".parse().unwrap());
        assert_eq!(
            html.into_string(),
            "<time datetime=\"2026-01-02T03:04:05.678Z\" title=\"2026-01-02T03:04:05.678Z\">03:04:05 UTC</time>"
        );
    }
}
