//! The `WWW-Authenticate` header (RFC 9110 §11.6.1), as registries write it.

/// The authentication that a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from `realm` (distribution, `auth/token.md`).
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

impl Challenge {
    /// The preferred challenge: Bearer before Basic. `None` when neither is offered.
    pub(super) fn choose(headers: impl Iterator<Item = impl AsRef<str>>) -> Option<Self> {
        let offered: Vec<_> = headers.flat_map(|header| parse(header.as_ref())).collect();
        let bearer = offered
            .iter()
            .find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or_else(|| offered.first()).cloned()
    }
}

/// One header may hold several challenges, separated by the same commas as parameters. A scheme has
/// parameters, one value (`NTLM TlRMTVNTUAAC==`), or neither.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            break;
        }
        let (parameters, after) = parameters(skip_token68(after));
        let value = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = value("realm") {
                found.push(Challenge::Bearer {
                    realm,
                    service: value("service"),
                    scope: value("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        }
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// `key=value` pairs up to the end or the next scheme.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    loop {
        let start = rest.trim_start_matches([',', ' ', '\t']);
        let (key, after) = token(start);
        let Some(value) = after.trim_start().strip_prefix('=') else {
            return (pairs, start);
        };
        if key.is_empty() {
            // Malformed: continues after the next comma.
            rest = value.find(',').map_or("", |comma| &value[comma..]);
            continue;
        }
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, after) = token(value.trim_start());
                (value.to_owned(), after)
            }
        };
        pairs.push((key.to_owned(), value));
        rest = after;
    }
}

/// The text after the one value of a scheme (`token68`, RFC 9110 §11.2), which is base64 and so may
/// end with `=` like the name of a parameter.
fn skip_token68(text: &str) -> &str {
    let start = text.trim_start();
    let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let rest = start.trim_start_matches(is_token68).trim_start_matches('=');
    let ends = rest.is_empty() || rest.trim_start().starts_with(',');
    // `Negotiate, Bearer …` has a scheme, and no value, before the comma.
    if ends && !start.starts_with(',') && start.len() > rest.len() && text.starts_with(' ') {
        rest
    } else {
        text
    }
}

fn token(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"'))
            .unwrap_or(text.len()),
    )
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(header: &str) -> Option<Challenge> {
        Challenge::choose(std::iter::once(header))
    }

    #[test]
    fn a_bearer_challenge_is_read_with_commas_inside_its_scope() {
        let header = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("reg".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(choose(header), Some(expected));
    }

    #[test]
    fn bearer_is_preferred_and_case_does_not_matter() {
        let chosen = choose(r#"basic Realm="x", BEARER REALM="https://t/", service=plain"#);
        assert!(matches!(chosen, Some(Challenge::Bearer { service: Some(s), .. }) if s == "plain"));
        assert_eq!(
            choose(r#"Basic realm="a \"quoted\" one""#),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn bearer_is_found_behind_other_schemes_in_one_header_or_several() {
        let bearer = r#"Bearer realm="https://t/",service="s""#;
        for others in [
            "Negotiate",
            "NTLM",
            "Negotiate, NTLM",
            "Negotiate oYG2MIGz==",
            "NTLM TlRMTVNTUAACAAAA=, Negotiate YII=",
            "NTLM TlRM",
            r#"Digest realm="a, b", nonce="x==", qop="auth,auth-int""#,
            r#"Basic realm="Gr\u{f6}\u{df}e""#,
            r#"Basic realm="a\"Bearer realm=\"b""#,
            "Basic",
            "Unknown a=, =b",
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=c",
        ] {
            let one = format!("{others}, {bearer}");
            let reversed = format!("{bearer}, {others}");
            let headers = [
                [one.as_str(), ""],
                [reversed.as_str(), ""],
                [others, bearer],
            ];
            for headers in headers {
                let chosen = Challenge::choose(headers.into_iter());
                let Some(Challenge::Bearer { realm, service, .. }) = &chosen else {
                    panic!("{headers:?}: {chosen:?}")
                };
                let parameters = (realm.as_str(), service.as_deref());
                assert_eq!(parameters, ("https://t/", Some("s")), "{headers:?}");
            }
        }
        assert_eq!(
            choose("Negotiate, Basic realm=x, NTLM"),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn garbage_is_no_challenge() {
        for header in [
            "",
            ",,,",
            "=",
            "Bearer",
            "Bearer service=x",
            "Digest a=b",
            "\"",
            "Bearer realm",
            "Bearer =",
            "a=\"b",
        ] {
            assert_eq!(choose(header), None, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics_or_hangs(header in "\\PC{0,80}") {
            let _ = choose(&header);
        }
    }
}
