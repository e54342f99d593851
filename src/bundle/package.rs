//! Reads the package of a Rego file without a Rego parser, which is enough to find the files that
//! OPA refuses before it compiles anything.

/// The first statement of a Rego file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Declaration {
    /// A package, with its segments.
    Package(Vec<String>),
    /// Another statement, which every OPA refuses, and why.
    Invalid(&'static str),
    /// A package whose name only a parser can read.
    NeedsParser,
}

/// Reads the first statement of a file as OPA's parser does (`parsePackage` in
/// `v1/ast/parser.go`).
pub(super) fn declaration(text: &str) -> Declaration {
    let text = skip_space(text.strip_prefix('\u{feff}').unwrap_or(text));
    if text.is_empty() {
        return Declaration::Invalid("the file is empty; OPA refuses a module without a package");
    }
    let (word, rest) = split_identifier(text);
    if word != "package" || rest.starts_with(['.', '[']) {
        return Declaration::Invalid("the first statement is not a package declaration");
    }
    let name = rest.trim_start_matches([' ', '\t']);
    if name.len() == rest.len() {
        return Declaration::NeedsParser;
    }
    let (first, mut rest) = split_identifier(name);
    if first.is_empty() {
        return Declaration::NeedsParser;
    }
    let mut path = vec![first.to_owned()];
    loop {
        let segment = if let Some(after) = rest.strip_prefix('.') {
            let (segment, after) = split_identifier(after);
            (!segment.is_empty()).then(|| (segment.to_owned(), after))
        } else if let Some(after) = rest.strip_prefix('[') {
            split_string(after)
        } else if rest.starts_with(';') {
            return Declaration::Invalid("a semicolon after the package");
        } else {
            return Declaration::Package(path);
        };
        let Some((segment, after)) = segment else {
            return Declaration::NeedsParser;
        };
        path.push(segment);
        rest = after;
    }
}

fn skip_space(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(comment) = text.strip_prefix('#') else {
            return text;
        };
        text = comment.split_once('\n').map_or("", |(_, rest)| rest);
    }
}

fn split_identifier(text: &str) -> (&str, &str) {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let end = text
        .find(|character| !is_part(character))
        .unwrap_or(text.len());
    if text.starts_with(|character: char| character.is_ascii_digit()) {
        ("", text)
    } else {
        text.split_at(end)
    }
}

/// Splits off a string and the bracket after it.
fn split_string(text: &str) -> Option<(String, &str)> {
    let (segment, rest) = if let Some(raw) = text.strip_prefix('`') {
        let (segment, rest) = raw.split_once('`')?;
        (segment.to_owned(), rest)
    } else {
        let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let segment = strings.next()?.ok()?;
        (segment, &text[strings.byte_offset()..])
    };
    Some((segment, rest.strip_prefix(']')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_found_where_opa_finds_it() {
        for (text, path) in [
            ("package a", "a"),
            (
                "\u{feff}# a comment\r\n\t\n  package\ta.b_1.c2 # another\nimport x",
                "a.b_1.c2",
            ),
            ("package a[\"b.c\"].d[`e`]\n", "a.b.c.d.e"),
            ("package a[\"\\u0062\"]", "a.b"),
        ] {
            let Declaration::Package(found) = declaration(text) else {
                panic!("{text}: {:?}", declaration(text))
            };
            assert_eq!(found.join("."), path, "{text}");
        }
    }

    #[test]
    fn files_without_a_package_are_invalid() {
        for text in [
            "",
            "\n# only a comment",
            "x := 1\npackage a",
            "\0\u{5}\u{16}\u{7}",
            "import data.x\n",
            "package.x",
            "package a;x := 1",
        ] {
            assert!(
                matches!(declaration(text), Declaration::Invalid(_)),
                "{text:?}"
            );
        }
        for text in [
            "package",
            "package\na",
            "package \u{e9}",
            "package a[x]",
            "package 1",
        ] {
            assert_eq!(declaration(text), Declaration::NeedsParser, "{text:?}");
        }
    }
}
