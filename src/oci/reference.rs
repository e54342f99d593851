//! References to artifacts. The grammar is part of the stable interface:
//! `HOST/REPOSITORY:TAG`, `…@sha256:…`, `…:TAG@sha256:…`, `oci-layout:PATH[:TAG|@sha256:…]`.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use super::{Digest, TagRule, check_tilde};

/// The repository of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Repository {
    /// A repository of a registry: `host[:port]` and the path below it.
    Registry {
        /// `host` or `host:port`, as written.
        host: String,
        /// The repository's name, such as `acme/authz`.
        path: String,
    },
    /// A folder in the OCI image layout format.
    Layout {
        /// The folder.
        path: PathBuf,
    },
}

/// The version within a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The manifest that the tag names now.
    Tag(String),
    /// The manifest with this digest.
    Digest(Digest),
    /// The only manifest of a layout.
    Only,
    /// The manifest of the tag that the rule chooses now.
    Rule(Arc<TagRule>),
}

/// A reference as a user writes it. A tag may name another digest tomorrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    repository: Repository,
    selector: Selector,
    text: String,
}

/// A repository and a digest: the result of resolving a [`Reference`] once. Only a pinned reference
/// can be verified or fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PinnedReference {
    repository: Repository,
    digest: Digest,
}

/// An error in parsing a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text does not begin with a registry host.
    #[error("reference {0:?} names no registry host; write it out, such as ghcr.io/acme/authz:v1")]
    NoHost(String),
    /// The text has neither tag nor digest.
    #[error("reference {0:?} names neither tag nor digest; add one, such as {0}:v1")]
    NoVersion(String),
    /// The name of a repository has a tag or digest.
    #[error(
        "repository {0:?} has a tag or digest; write HOST/REPOSITORY alone, such as ghcr.io/acme/authz"
    )]
    Version(String),
    /// The text does not follow the grammar of the distribution specification.
    #[error("reference {text:?} is malformed: {reason}")]
    Malformed {
        /// The text as given.
        text: String,
        /// The violation.
        reason: String,
    },
}

impl Reference {
    /// A repository whose tags a rule chooses from: `HOST/REPOSITORY` or `oci-layout:PATH`.
    ///
    /// # Errors
    /// When the text is malformed, or has a tag or digest.
    pub fn with_rule(text: &str, rule: TagRule) -> Result<Self, ReferenceError> {
        let repository = match text.strip_prefix("oci-layout:") {
            Some(rest) => {
                let layout = Self::layout(text, rest)?;
                if layout.selector != Selector::Only {
                    return Err(ReferenceError::Version(text.to_owned()));
                }
                layout.repository
            }
            None => text.parse()?,
        };
        Ok(Self {
            repository,
            selector: Selector::Rule(Arc::new(rule)),
            text: text.to_owned(),
        })
    }

    /// A tag of the same repository; `None` if the text is no tag.
    pub fn tagged(&self, tag: &str) -> Option<Self> {
        is_tag(tag).then(|| Self {
            repository: self.repository.clone(),
            selector: Selector::Tag(tag.to_owned()),
            text: format!("{}:{tag}", self.repository),
        })
    }

    /// The reference as it was written, without a rule.
    pub fn written(&self) -> &str {
        &self.text
    }

    /// The rule that chooses the tag, if there is one.
    pub fn rule(&self) -> Option<&TagRule> {
        match &self.selector {
            Selector::Rule(rule) => Some(rule),
            Selector::Tag(_) | Selector::Digest(_) | Selector::Only => None,
        }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The version.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The tag, if the reference names one and no digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            Selector::Tag(tag) => Some(tag),
            Selector::Digest(_) | Selector::Only | Selector::Rule(_) => None,
        }
    }

    /// The pinned reference, if this reference has a digest.
    pub fn pinned(&self) -> Option<PinnedReference> {
        match &self.selector {
            Selector::Digest(digest) => Some(self.repository.pin(digest.clone())),
            Selector::Tag(_) | Selector::Only | Selector::Rule(_) => None,
        }
    }

    /// The same reference with a relative layout folder resolved against `base`.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        match self.repository {
            Repository::Layout { path } => Self {
                repository: Repository::Layout {
                    path: base.join(path),
                },
                ..self
            },
            Repository::Registry { .. } => self,
        }
    }

    fn layout(text: &str, rest: &str) -> Result<Self, ReferenceError> {
        let malformed = |reason: &str| ReferenceError::Malformed {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (path, selector) = match rest.split_once("@sha") {
            Some((path, digest)) => {
                let digest = format!("sha{digest}")
                    .parse()
                    .map_err(|error| malformed(&format!("{error}")))?;
                (path, Selector::Digest(digest))
            }
            None => match rest.rsplit_once(':') {
                // A tag has no `/`, so `dir/a:b/c` is a folder.
                Some((path, tag)) if is_tag(tag) => (path, Selector::Tag(tag.to_owned())),
                _ => (rest, Selector::Only),
            },
        };
        if path.is_empty() {
            return Err(malformed("the folder after oci-layout: is empty"));
        }
        check_tilde(Path::new(path)).map_err(|error| malformed(&error.to_string()))?;
        Ok(Self {
            repository: Repository::Layout { path: path.into() },
            selector,
            text: text.to_owned(),
        })
    }
}

impl Repository {
    /// This repository at `digest`. The digest must come from a resolution or from
    /// content-addressed data, so this is private to the crate.
    pub(crate) fn pin(&self, digest: Digest) -> PinnedReference {
        PinnedReference {
            repository: self.clone(),
            digest,
        }
    }

    /// The registry's host (and port), or `oci-layout` for a folder: a metric label.
    pub fn host(&self) -> &str {
        match self {
            Self::Registry { host, .. } => host,
            Self::Layout { .. } => "oci-layout",
        }
    }
}

impl PinnedReference {
    /// The repository of the artifact.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix("oci-layout:") {
            return Self::layout(text, rest);
        }
        if let Some(reason) = scheme_error(text) {
            return Err(ReferenceError::Malformed {
                text: text.to_owned(),
                reason,
            });
        }
        let (host, rest) = text.split_once('/').unwrap_or(("", text));
        // Docker's test for a host. Where it fails, docker assumes docker.io; here it is an error.
        if !(host.contains(['.', ':']) || host == "localhost") {
            return Err(ReferenceError::NoHost(text.to_owned()));
        }
        let selector = match common_selector(host, rest) {
            Some(selector) => selector,
            None => selector_by_grammar(text, rest)?,
        };
        let path = rest.split(['@', ':']).next().unwrap_or(rest).to_owned();
        let repository = Repository::Registry {
            host: host.to_owned(),
            path,
        };
        Ok(Self {
            repository,
            selector,
            text: text.to_owned(),
        })
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// `HOST/REPOSITORY`, by the same grammar as a [`Reference`].
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let malformed = |reason: &str| ReferenceError::Malformed {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        if text.starts_with("oci-layout:") {
            return Err(malformed("this is a folder; write HOST/REPOSITORY"));
        }
        if text.contains("://") {
            return Err(malformed("it has a scheme; write HOST/REPOSITORY"));
        }
        let any = format!("{text}@{}", Digest::sha256(b""));
        let repository = match any.parse::<Reference>() {
            Ok(reference) => reference.repository,
            Err(ReferenceError::NoHost(_)) => return Err(ReferenceError::NoHost(text.to_owned())),
            // For example, the text has a digest of its own.
            Err(_) if text.contains('@') => return Err(ReferenceError::Version(text.to_owned())),
            Err(ReferenceError::Malformed { reason, .. }) if reason.contains("upper case") => {
                return Err(malformed(&reason));
            }
            Err(_) => {
                return Err(malformed(
                    "write HOST/REPOSITORY, such as ghcr.io/acme/authz",
                ));
            }
        };
        if repository.to_string() != text {
            return Err(ReferenceError::Version(text.to_owned()));
        }
        Ok(repository)
    }
}

/// The selector of a reference in its most common form; `None` for any other text. oci-client
/// decides about that with a regular expression, whose compilation was measured to take 0.08 s and
/// 19 MB.
fn common_selector(host: &str, rest: &str) -> Option<Selector> {
    const MAX_PATH_BYTES: usize = 200;
    let (named, digest) = match rest.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse::<Digest>().ok()?)),
        None => (rest, None),
    };
    let (path, tag) = match named.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (named, None),
    };
    let (name, port) = host.split_once(':').unwrap_or((host, "1"));
    let is_common = is_part(name, &['.', '-'], |byte| byte.is_ascii_alphanumeric())
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && path.len() <= MAX_PATH_BYTES
        && path.split('/').all(|part| {
            is_part(part, &['.', '-', '_'], |byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit()
            })
        })
        && tag.is_none_or(is_tag);
    match (digest, tag) {
        _ if !is_common => None,
        (Some(digest), _) => Some(Selector::Digest(digest)),
        (None, Some(tag)) => Some(Selector::Tag(tag.to_owned())),
        (None, None) => None,
    }
}

/// Whether a text consists of words with single separators between them.
fn is_part(text: &str, separators: &[char], is_word: fn(u8) -> bool) -> bool {
    text.split(separators)
        .all(|word| !word.is_empty() && word.bytes().all(is_word))
}

/// The selector of a reference, by the grammar of the distribution specification.
fn selector_by_grammar(text: &str, rest: &str) -> Result<Selector, ReferenceError> {
    let malformed = |reason: String| ReferenceError::Malformed {
        text: text.to_owned(),
        reason,
    };
    let parsed = oci_client::Reference::try_from(text)
        .map_err(|error| malformed(grammar_error(rest).unwrap_or_else(|| error.to_string())))?;
    // oci-client accepts letters and digits of every script.
    if let Some(tag) = parsed.tag().filter(|tag| !is_tag(tag)) {
        return Err(malformed(tag_error(tag).unwrap_or_default()));
    }
    match (parsed.digest(), parsed.tag()) {
        (Some(digest), _) => digest
            .parse()
            .map(Selector::Digest)
            .map_err(|error| malformed(format!("{error}"))),
        // oci-client adds `latest`; only a written tag counts.
        (None, Some(tag)) if rest.ends_with(&format!(":{tag}")) => {
            Ok(Selector::Tag(tag.to_owned()))
        }
        (None, _) => Err(ReferenceError::NoVersion(text.to_owned())),
    }
}

/// The error for a reference with a scheme, as other tools write it.
fn scheme_error(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = match scheme {
        "http" => " (plain HTTP is a setting of the registry: --plain-http, or `scheme: http`)",
        _ => "",
    };
    Some(format!(
        "it begins with {scheme}://; write {rest} alone{plain}"
    ))
}

/// The first violation of the distribution specification's grammar after the host.
fn grammar_error(rest: &str) -> Option<String> {
    if let Some(odd) = rest
        .chars()
        .find(|odd| odd.is_whitespace() || odd.is_control())
    {
        return Some(format!("it contains {odd:?}; remove it"));
    }
    let (named, digest) = rest
        .split_once('@')
        .map_or((rest, None), |(named, digest)| (named, Some(digest)));
    // A repository has no colon.
    let (path, tag) = named
        .split_once(':')
        .map_or((named, None), |(path, tag)| (path, Some(tag)));
    path_error(path).or_else(|| tag_error(tag?)).or_else(|| {
        let error = digest?.parse::<Digest>().err()?;
        Some(format!(
            "{error}; a digest is sha256: and 64 hexadecimal digits"
        ))
    })
}

fn path_error(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some(
            "the repository after the host is missing; write one, such as ghcr.io/acme/authz:v1"
                .to_owned(),
        );
    }
    if path.chars().any(char::is_uppercase) {
        let lower = path.to_lowercase();
        return Some(format!("a repository has no upper case; write {lower:?}"));
    }
    if path.split('/').any(str::is_empty) {
        return Some(
            "a part of the repository is empty; write single slashes between names".to_owned(),
        );
    }
    let fits =
        |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "/._-".contains(char);
    if let Some(odd) = path.chars().find(|char| !fits(*char)) {
        return Some(format!(
            "a repository has no {odd:?}; use a-z, 0-9 and . _ - / only"
        ));
    }
    let edge = |part: &str| {
        !part.starts_with(char::is_alphanumeric) || !part.ends_with(char::is_alphanumeric)
    };
    path.split('/')
        .any(edge)
        .then(|| "every part of a repository begins and ends with a letter or digit".to_owned())
}

fn tag_error(tag: &str) -> Option<String> {
    if is_tag(tag) {
        return None;
    }
    Some(match tag {
        "" => "the tag after the colon is empty; write one, such as v1".to_owned(),
        // helm replaces the `+` of semantic versions the same way.
        tag if tag.contains('+') => {
            format!(
                "a tag has no `+`; write `_` for it, as {:?}",
                tag.replace('+', "_")
            )
        }
        tag if tag.chars().count() > 128 => {
            "a tag has at most 128 characters; write a shorter one".to_owned()
        }
        tag => format!("{tag:?} is not a tag; use letters, digits and . _ - only, at most 128"),
    })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution-spec, "Pulling manifests").
pub(crate) fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

impl fmt::Display for Reference {
    /// As written, with the rule in parentheses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.selector {
            Selector::Rule(rule) => write!(f, " ({rule})"),
            Selector::Tag(_) | Selector::Digest(_) | Selector::Only => Ok(()),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, path } => write!(f, "{host}/{path}"),
            Self::Layout { path } => write!(f, "oci-layout:{}", path.display()),
        }
    }
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn parse(text: &str) -> Reference {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn tags_digests_and_both_are_read() {
        let tagged = parse("registry.lan:5000/acme/authz:v1");
        assert_eq!(
            tagged.repository().to_string(),
            "registry.lan:5000/acme/authz"
        );
        assert_eq!(tagged.selector(), &Selector::Tag("v1".into()));
        assert!(tagged.pinned().is_none());
        for text in [
            format!("ghcr.io/a/b@sha256:{HEX}"),
            format!("ghcr.io/a/b:v1@sha256:{HEX}"),
        ] {
            assert_eq!(
                parse(&text).pinned().unwrap().to_string(),
                format!("ghcr.io/a/b@sha256:{HEX}")
            );
        }
        assert_eq!(parse("localhost/a:latest").tag(), Some("latest"));
        assert_eq!(
            parse("127.0.0.1:5000/a/b:x").repository().host(),
            "127.0.0.1:5000"
        );
    }

    proptest! {
        #[test]
        fn the_common_form_is_read_as_by_the_grammar(
            host in "[a-zA-Z0-9.-]{1,6}(:[0-9]{0,3})?",
            path in "[a-z0-9._/-]{1,8}",
            tag in "(:[A-Za-z0-9_.-]{0,3})?",
            digest in proptest::option::of(0..2u8),
        ) {
            let digest = digest.map(|length| format!("@sha256:{HEX}{}", &HEX[..usize::from(length)]));
            let rest = format!("{path}{tag}{}", digest.unwrap_or_default());
            if let Some(selector) = common_selector(&host, &rest) {
                let by_grammar = selector_by_grammar(&format!("{host}/{rest}"), &rest);
                prop_assert_eq!(by_grammar, Ok(selector));
            }
        }
    }

    #[test]
    fn no_host_or_version_is_assumed() {
        assert!(matches!(
            "authz:v1".parse::<Reference>(),
            Err(ReferenceError::NoHost(_))
        ));
        assert!(matches!(
            "acme/authz:v1".parse::<Reference>(),
            Err(ReferenceError::NoHost(_))
        ));
        assert!(matches!(
            "ghcr.io/acme/authz".parse::<Reference>(),
            Err(ReferenceError::NoVersion(_))
        ));
        assert!(matches!(
            "localhost:5000/authz".parse::<Reference>(),
            Err(ReferenceError::NoVersion(_))
        ));
        for text in [
            "",
            "/",
            "ghcr.io/",
            "ghcr.io/UPPER:v1",
            "ghcr.io/a:v 1",
            "ghcr.io/../x:v1",
            "ghcr.io/a@sha256:12",
            "https://ghcr.io/a:v1",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        for (text, expected) in [
            (
                "ghcr.io/Acme/authz:v1",
                "a repository has no upper case; write \"acme/authz\"",
            ),
            (
                "http://ghcr.io/a:v1",
                "it begins with http://; write ghcr.io/a:v1 alone (plain HTTP is a setting",
            ),
            (
                "https://ghcr.io/a:v1",
                "it begins with https://; write ghcr.io/a:v1 alone",
            ),
            (
                "oci://ghcr.io/a:v1",
                "it begins with oci://; write ghcr.io/a:v1 alone",
            ),
            (
                "docker://ghcr.io/a:v1",
                "it begins with docker://; write ghcr.io/a:v1 alone",
            ),
            (
                "ghcr.io/a:1.0.0+build.7",
                "a tag has no `+`; write `_` for it, as \"1.0.0_build.7\"",
            ),
            ("ghcr.io/a:", "the tag after the colon is empty"),
            ("ghcr.io/a//b:v1", "a part of the repository is empty"),
            ("ghcr.io/a/:v1", "a part of the repository is empty"),
            ("ghcr.io/:v1", "the repository after the host is missing"),
            ("ghcr.io/a b:v1", "it contains ' '; remove it"),
            ("ghcr.io/a!:v1", "a repository has no '!'"),
            ("ghcr.io/-a:v1", "begins and ends with a letter or digit"),
            ("ghcr.io/a:-v1", "\"-v1\" is not a tag"),
            ("ghcr.io/a@sha256:12", "sha256: and 64 hexadecimal digits"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(
                error.contains(expected) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
        let error = "ghcr.io/Acme"
            .parse::<Repository>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("upper case"), "{error}");
    }

    #[test]
    fn a_repository_is_named_without_version() {
        for text in [
            "ghcr.io/acme/authz",
            "localhost/a",
            "127.0.0.1:5000/a/b",
            "r.io:5000/sigs",
        ] {
            assert_eq!(text.parse::<Repository>().unwrap().to_string(), text);
        }
        for text in [
            "r.io/a:v1",
            "r.io:5000/a:v1",
            &format!("r.io/a@sha256:{HEX}"),
            "r.io/a@",
        ] {
            assert!(
                matches!(text.parse::<Repository>(), Err(ReferenceError::Version(_))),
                "{text}"
            );
        }
        for text in [
            "",
            "r.io",
            "r.io/",
            "r.io//a",
            "/a",
            "acme/authz",
            "r.io/..",
            "r.io/a/../b",
            "r.io/a/%2e%2e/b",
            "r.io/a%2fb",
            "r.io/a?x=1",
            "r.io/a#x",
            "r.io/a\\b",
            "r.io/a b",
            "r.io/a\n",
            " r.io/a",
            "r.io/A",
            "user@r.io/a",
            "user:password@r.io/a",
            "https://r.io/a",
            "oci-layout:x",
        ] {
            assert!(text.parse::<Repository>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_rule_chooses_from_the_tags_of_a_repository_that_has_no_tag_itself() {
        let rule = || {
            use crate::oci::TagOrder;
            TagRule::new(TagOrder::Version("^1 || ^3".parse().unwrap()), None)
        };
        for text in ["r.io:5000/acme/authz", "oci-layout:/a/b"] {
            let reference = Reference::with_rule(text, rule()).unwrap();
            assert_eq!(reference.to_string(), format!("{text} (semver ^1 || ^3)"));
            assert_eq!((reference.written(), reference.tag()), (text, None));
            assert_eq!(reference.repository().to_string(), text);
            assert!(reference.pinned().is_none());
            let tagged = reference.tagged("1.2.0").unwrap();
            assert_eq!(tagged, parse(&format!("{text}:1.2.0")));
            assert_eq!(reference.tagged("../x"), None);
        }
        for text in [
            "r.io/a:v1",
            "oci-layout:x:v1",
            &format!("r.io/a@sha256:{HEX}"),
        ] {
            let error = Reference::with_rule(text, rule()).unwrap_err();
            assert!(
                matches!(error, ReferenceError::Version(_)),
                "{text}: {error}"
            );
        }
        assert!(Reference::with_rule("acme/authz", rule()).is_err());
    }

    #[test]
    fn a_tag_follows_the_grammar_of_the_specification() {
        let longest = "x".repeat(128);
        parse(&format!("ghcr.io/a:{longest}"));
        for tag in [
            "v\u{661}",
            "\u{443}",
            "v1\u{301}",
            &format!("{longest}x"),
            ".a",
            "-a",
        ] {
            for text in [
                format!("ghcr.io/a:{tag}"),
                format!("ghcr.io/a:{tag}@sha256:{HEX}"),
            ] {
                assert!(
                    matches!(
                        text.parse::<Reference>(),
                        Err(ReferenceError::Malformed { .. })
                    ),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn layouts_take_a_tag_a_digest_or_nothing() {
        assert_eq!(parse("oci-layout:dir").selector(), &Selector::Only);
        assert_eq!(
            parse("oci-layout:/a/b:v1").selector(),
            &Selector::Tag("v1".into())
        );
        assert_eq!(
            parse("oci-layout:/a:b/c").repository().to_string(),
            "oci-layout:/a:b/c"
        );
        assert!(
            parse(&format!("oci-layout:x@sha256:{HEX}"))
                .pinned()
                .is_some()
        );
        assert!("oci-layout:".parse::<Reference>().is_err());
        assert_eq!(
            parse("oci-layout:x:v1")
                .relative_to(Path::new("/etc"))
                .repository()
                .to_string(),
            "oci-layout:/etc/x"
        );
    }
}
