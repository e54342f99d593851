//! A writer of HTML into which text gets only escaped.

use std::fmt::Write as _;

use crate::telemetry::{SENTENCE_BYTES, cut, is_hidden};

/// HTML that is being written.
///
/// The names of elements and attributes are literals of this program, and every other text is
/// escaped, in attributes as well: it can neither end an element nor begin one. A text is cut to
/// [`SENTENCE_BYTES`], and control characters and those that change the order of others are written
/// as `\u{…}`, so that a text reads the same for everyone.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// The start tag of an element.
#[derive(Debug)]
#[must_use]
pub(super) struct Tag<'a> {
    html: &'a mut Html,
    name: &'static str,
}

/// The style sheet or the script of the page: a file of this program, which is sent as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asset(&'static str);

impl Html {
    /// A document without content.
    pub(super) fn document() -> Self {
        Self("<!doctype html>\n".to_owned())
    }

    /// Begins an element.
    pub(super) fn element(&mut self, name: &'static str) -> Tag<'_> {
        self.0.push('<');
        self.0.push_str(name);
        Tag { html: self, name }
    }

    /// Writes a text of this program.
    pub(super) fn text(&mut self, text: &str) {
        self.escape(text);
    }

    /// Writes a text from elsewhere, whose direction has no effect on its surroundings.
    pub(super) fn foreign(&mut self, text: &str) {
        self.element("bdi").text(text);
    }

    /// The document, or the part of one.
    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn escape(&mut self, text: &str) {
        for character in cut(text, SENTENCE_BYTES).chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                hidden if is_hidden(hidden) => self.0.extend(hidden.escape_default()),
                other => self.0.push(other),
            }
        }
    }
}

impl<'a> Tag<'a> {
    /// Adds an attribute.
    pub(super) fn attribute(self, name: &'static str, value: &str) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.html.0, " {name}=\"");
        self.html.escape(value);
        self.html.0.push('"');
        self
    }

    /// Adds an attribute without a value.
    pub(super) fn flag(self, name: &'static str) -> Self {
        let _ = write!(self.html.0, " {name}");
        self
    }

    /// Adds the attribute `class`.
    pub(super) fn class(self, class: &'static str) -> Self {
        self.attribute("class", class)
    }

    /// Completes an element with content.
    pub(super) fn content(self, write: impl FnOnce(&mut Html)) {
        let Self { html, name } = self;
        html.0.push('>');
        write(html);
        let _ = write!(html.0, "</{name}>");
    }

    /// Completes an element whose content is a text.
    pub(super) fn text(self, text: &str) {
        self.content(|html| html.text(text));
    }

    /// Completes an element whose content is a text from elsewhere.
    pub(super) fn foreign(self, text: &str) {
        self.content(|html| html.foreign(text));
    }

    /// Completes an element that has no content and no end tag, such as `meta`.
    pub(super) fn void(self) {
        self.html.0.push('>');
    }

    /// Completes a `style` or `script`.
    pub(super) fn asset(self, asset: Asset) {
        self.content(|html| html.0.push_str(asset.0));
    }
}

impl Asset {
    /// A file of this program.
    pub(super) const fn new(file: &'static str) -> Self {
        Self(file)
    }

    /// The text that is sent, whose hash the browser compares.
    pub(super) const fn as_str(self) -> &'static str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut html = Html::default();
        html.element("p").attribute("title", text).foreign(text);
        html.into_string()
    }

    #[test]
    fn text_is_escaped_in_elements_and_in_attributes() {
        assert_eq!(
            written("<b>\"&'\n\u{202e}\u{9b}é"),
            r#"<p title="&lt;b&gt;&quot;&amp;&#39;\n\u{202e}\u{9b}é"><bdi>&lt;b&gt;&quot;&amp;&#39;\n\u{202e}\u{9b}é</bdi></p>"#
        );
        let mut html = Html::document();
        html.element("meta").attribute("charset", "utf-8").void();
        html.element("input").flag("hidden").void();
        html.element("script").asset(Asset::new("a && b"));
        assert_eq!(
            html.into_string(),
            "<!doctype html>\n<meta charset=\"utf-8\"><input hidden><script>a && b</script>"
        );
    }

    #[test]
    fn a_long_text_is_cut_and_names_its_length() {
        let mut html = Html::default();
        html.text(&"<".repeat(1 << 20));
        let text = html.into_string();
        assert!(text.len() < 4 * SENTENCE_BYTES, "{}", text.len());
        assert!(text.contains("[1048576 bytes"), "{text}");
    }

    proptest! {
        /// Whatever the text is, there are the elements and attributes that the program has written.
        #[test]
        fn no_text_makes_an_element_or_an_attribute(text in ".{0,300}|[<>&\"'/=a-z !\\-]{0,60}") {
            let html = written(&text);
            let inner = html.strip_prefix("<p title=\"").unwrap();
            let (title, inner) = inner.split_once("\"><bdi>").unwrap();
            let inner = inner.strip_suffix("</bdi></p>").unwrap();
            for part in [title, inner] {
                prop_assert!(!part.contains(['<', '>', '"', '\'']), "{html}");
                prop_assert!(!part.contains(is_hidden), "{html}");
            }
            // And the browser reads the text itself.
            let read = title.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
            let read = read.replace("&#39;", "'").replace("&amp;", "&");
            let mut shown = String::new();
            for character in cut(&text, SENTENCE_BYTES).chars() {
                match is_hidden(character) {
                    true => shown.extend(character.escape_default()),
                    false => shown.push(character),
                }
            }
            prop_assert_eq!(read, shown);
        }
    }
}
