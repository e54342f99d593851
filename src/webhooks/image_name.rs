//! Names of images as text: `[HOST/]REPOSITORY[:TAG][@DIGEST]`.

/// The parts of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageName<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) repository: &'a str,
    pub(super) tag: Option<&'a str>,
}

impl<'a> ImageName<'a> {
    /// Splits a name; `None` without a repository. The first part is a host if it has a dot or a
    /// port, or is `localhost`, as docker decides.
    pub(super) fn split(text: &'a str) -> Option<Self> {
        let (named, _digest) = text.split_once('@').unwrap_or((text, ""));
        let (host, rest) = match named.split_once('/') {
            Some((host, rest)) if is_host(host) => (Some(host), rest),
            _ => (None, named),
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        (!repository.is_empty()).then_some(Self {
            host,
            repository,
            tag,
        })
    }
}

fn is_host(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

/// The host and the path of a URL or of `HOST/PATH`.
pub(super) fn host_and_path(text: &str) -> Option<(&str, &str)> {
    let (_scheme, rest) = text.split_once("://").unwrap_or(("", text));
    rest.split_once('/')
        .filter(|(host, path)| !host.is_empty() && !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_up_to_four_parts() {
        let name = |host, repository, tag| {
            Some(ImageName {
                host,
                repository,
                tag,
            })
        };
        for (text, parts) in [
            (
                "r.example/a/b:v1",
                name(Some("r.example"), "a/b", Some("v1")),
            ),
            ("r.example:5000/a", name(Some("r.example:5000"), "a", None)),
            ("localhost/a@sha256:00", name(Some("localhost"), "a", None)),
            ("a/b:v1@sha256:00", name(None, "a/b", Some("v1"))),
            ("a", name(None, "a", None)),
            ("", None),
            (":v1", None),
            ("r.example/", None),
        ] {
            assert_eq!(ImageName::split(text), parts, "{text}");
        }
    }

    #[test]
    fn a_url_has_a_host_and_a_path() {
        for (text, parts) in [
            ("https://r.example/a/b", Some(("r.example", "a/b"))),
            ("quay.io/a/b", Some(("quay.io", "a/b"))),
            ("r.example", None),
            ("https:///a", None),
            ("https://r.example/", None),
        ] {
            assert_eq!(host_and_path(text), parts, "{text}");
        }
    }
}
