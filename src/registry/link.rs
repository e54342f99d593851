//! The `Link` header (RFC 8288), as registries write it.

/// The target with `rel=next` in one header, which may hold several links. A header without
/// brackets is one link, as some registries write it.
pub(super) fn next(header: &str) -> Option<&str> {
    if !header.contains('<') {
        let (target, parameters) = split(header, ';');
        let target = target.trim();
        return (!target.is_empty() && has_next(parameters)).then_some(target);
    }
    let mut rest = header;
    while let Some((target, after)) = rest
        .split_once('<')
        .and_then(|(_, link)| link.split_once('>'))
    {
        let (parameters, after) = split(after, ',');
        if has_next(parameters) {
            return Some(target);
        }
        rest = after;
    }
    None
}

fn has_next(mut parameters: &str) -> bool {
    while !parameters.is_empty() {
        let (parameter, others) = split(parameters, ';');
        if is_next(parameter) {
            return true;
        }
        parameters = others;
    }
    false
}

/// Whether a parameter is `rel` with `next` among its relations.
fn is_next(parameter: &str) -> bool {
    let Some((name, relations)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = relations.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

/// Splits at the first separator that is not in quotes.
fn split(text: &str, separator: char) -> (&str, &str) {
    let mut quoted = false;
    let at = text.find(|character| {
        quoted ^= character == '"';
        character == separator && !quoted
    });
    at.map_or((text, ""), |at| {
        (&text[..at], &text[at + separator.len_utf8()..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        for header in [
            r#"</v2/a/tags/list?n=1&last=b>; rel="next""#,
            r#"</v2/a/tags/list?n=1&last=b>;type=json ; REL = next"#,
            r#"</v2/a/tags/list?n=1&last=b>; rel="last Next""#,
            r#"</first>; rel="prev", </v2/a/tags/list?n=1&last=b>; rel="next", </x>"#,
            r#"</first>; title="a, <b>; rel=next", </v2/a/tags/list?n=1&last=b>; rel="next""#,
            r#"/v2/a/tags/list?n=1&last=b; rel="next""#,
            r#" /v2/a/tags/list?n=1&last=b ;rel=next"#,
        ] {
            assert_eq!(next(header), Some("/v2/a/tags/list?n=1&last=b"), "{header}");
        }
    }

    #[test]
    fn a_header_without_rel_next_has_no_next_page() {
        for header in [
            "",
            "<",
            "<>",
            "</a>",
            "</a>; rel=prev",
            "/a",
            "/a; rel=prev",
            "; rel=next",
            "rel=next",
            "</a>; rel=\"",
            "</a>, rel=next",
            "<<>",
            "</a>; rel=\"ne xt\"",
        ] {
            assert_eq!(next(header), None, "{header}");
        }
    }
}
