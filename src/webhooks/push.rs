//! What a notification says: repositories and tags that something was pushed to.

use crate::oci::{Digest, Reference, Repository};

/// The maximum number of events in one notification.
pub const MAX_EVENTS: usize = 200;

/// The content of a notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notification {
    /// The pushes.
    pub pushes: Vec<Push>,
    /// The number of events that are no push of a manifest.
    pub ignored: usize,
}

/// A push, as a sender claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The hosts by which the registry may be known; empty where the sender names none.
    pub hosts: Vec<String>,
    /// The repository; several where the sender's fields can mean several.
    pub repositories: Vec<String>,
    /// Whether the repositories below those are meant as well.
    pub is_prefix: bool,
    /// What was pushed.
    pub pushed: Pushed,
}

/// What was pushed to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// A manifest under this tag.
    Tag(String),
    /// Possibly evidence, for the artifact with this digest where it is known: a signature tag, a
    /// referrer, or a manifest without a tag, which may be a referrer.
    Evidence(Option<Digest>),
    /// The sender does not say.
    Unknown,
}

/// A body that is not what its sender documents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    Json(String),
    /// A field is missing, or is not text.
    #[error("the body has no text at {0}; check the webhook's `kind`")]
    Missing(&'static str),
    /// The text at a configured pointer is no name of an image.
    #[error("the body has no name of an image at {0}; check the webhook's `pointer`")]
    Pointer(String),
    /// The text is no base64.
    #[error("{0} is not base64")]
    Base64(&'static str),
    /// There are too many events.
    #[error("the body has more than {MAX_EVENTS} events; send fewer at a time")]
    TooMany,
}

impl Notification {
    /// One push.
    pub(super) fn of(push: Push) -> Self {
        Self {
            pushes: vec![push],
            ignored: 0,
        }
    }

    /// One event that is no push.
    pub(super) fn ignored() -> Self {
        Self {
            pushes: Vec::new(),
            ignored: 1,
        }
    }

    /// The notifications of several events.
    pub(super) fn all<T>(
        events: &[T],
        parse: impl Fn(&T) -> Result<Self, Malformed>,
    ) -> Result<Self, Malformed> {
        if events.len() > MAX_EVENTS {
            return Err(Malformed::TooMany);
        }
        let mut all = Self::default();
        for event in events {
            let Self { pushes, ignored } = parse(event)?;
            all.pushes.extend(pushes);
            all.ignored += ignored;
        }
        if all.pushes.len() > MAX_EVENTS {
            return Err(Malformed::TooMany);
        }
        Ok(all)
    }
}

impl Push {
    /// A push to one repository.
    pub(super) fn new(host: Option<&str>, repository: &str, pushed: Pushed) -> Self {
        Self {
            hosts: host.map(str::to_owned).into_iter().collect(),
            repositories: vec![repository.to_owned()],
            is_prefix: false,
            pushed,
        }
    }

    /// Whether the push is to the repository of `reference`. `host` replaces the sender's name of
    /// the registry.
    pub fn is_to(&self, reference: &Reference, host: Option<&str>) -> bool {
        let Repository::Registry { host: own, path } = reference.repository() else {
            return false;
        };
        let is_host = match host {
            Some(host) => own == host,
            None => self.hosts.iter().any(|host| own == host),
        };
        is_host
            && self.repositories.iter().any(|repository| {
                path.strip_prefix(repository.as_str())
                    .is_some_and(|rest| rest.is_empty() || self.is_prefix && rest.starts_with('/'))
            })
    }

    /// Whether `reference`, which is in the repository of the push, may name another artifact now.
    pub fn may_move(&self, reference: &Reference) -> bool {
        if reference.pinned().is_some() {
            return false;
        }
        match &self.pushed {
            // A reference without a tag selects among all tags.
            Pushed::Tag(tag) => reference.tag().is_none_or(|own| own == tag),
            Pushed::Unknown => true,
            Pushed::Evidence(_) => false,
        }
    }

    /// Whether the push may be evidence for an artifact of its repository.
    pub fn may_be_evidence(&self) -> bool {
        matches!(self.pushed, Pushed::Evidence(_) | Pushed::Unknown)
    }

    /// The artifact that the evidence is for.
    pub fn subject(&self) -> Option<&Digest> {
        match &self.pushed {
            Pushed::Evidence(subject) => subject.as_ref(),
            Pushed::Tag(_) | Pushed::Unknown => None,
        }
    }
}

impl Pushed {
    /// A manifest under this tag, if it has one.
    pub(super) fn tagged(tag: Option<&str>) -> Self {
        match tag.filter(|tag| !tag.is_empty()) {
            None => Self::Evidence(None),
            Some(tag) => match evidence_tag(tag) {
                Some(subject) => Self::Evidence(subject),
                None => Self::Tag(tag.to_owned()),
            },
        }
    }
}

/// Whether a tag names evidence, `sha256-<hex>` with or without a suffix such as `.sig`, and of
/// which artifact.
fn evidence_tag(tag: &str) -> Option<Option<Digest>> {
    let (stem, _) = tag.split_once('.').unwrap_or((tag, ""));
    let (algorithm, hex) = stem.split_once('-')?;
    let is_digest = matches!(algorithm, "sha256" | "sha384" | "sha512")
        && hex.len() >= 64
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    // The referrers tag of a longer digest is cut to 64 digits.
    is_digest.then(|| format!("{algorithm}:{hex}").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn signature_tags_name_their_artifact() {
        let digest = Digest::sha256(b"a");
        let hex = digest.hex();
        for (tag, subject) in [
            (format!("sha256-{hex}"), Some(&digest)),
            (format!("sha256-{hex}.sig"), Some(&digest)),
            (format!("sha256-{hex}.att"), Some(&digest)),
            (format!("sha512-{hex}"), None),
        ] {
            let pushed = Pushed::tagged(Some(&tag));
            assert_eq!(pushed, Pushed::Evidence(subject.cloned()), "{tag}");
        }
        for tag in ["live", "sha256-short.sig", "v1.sig", &format!("md5-{hex}")] {
            assert_eq!(Pushed::tagged(Some(tag)), Pushed::Tag(tag.to_owned()));
        }
        for none in [None, Some("")] {
            assert_eq!(Pushed::tagged(none), Pushed::Evidence(None));
        }
    }

    #[test]
    fn a_push_is_to_a_repository_by_host_and_path() {
        let mut push = Push::new(Some("r.example"), "acme/authz", Pushed::Unknown);
        for (text, host, is_to) in [
            ("r.example/acme/authz:v1", None, true),
            ("r.example/acme/authz:v1", Some("r.example"), true),
            ("r.example/acme/authz:v1", Some("other.example"), false),
            ("other.example/acme/authz:v1", Some("other.example"), true),
            ("other.example/acme/authz:v1", None, false),
            ("r.example/acme/authz/sub:v1", None, false),
            ("r.example/acme/authz-2:v1", None, false),
            ("r.example/acme:v1", None, false),
            ("oci-layout:acme/authz:v1", None, false),
        ] {
            assert_eq!(push.is_to(&reference(text), host), is_to, "{text} {host:?}");
        }
        push.is_prefix = true;
        for (text, is_to) in [
            ("r.example/acme/authz:v1", true),
            ("r.example/acme/authz/sub:v1", true),
            ("r.example/acme/authz-2:v1", false),
        ] {
            assert_eq!(push.is_to(&reference(text), None), is_to, "{text}");
        }
        push.hosts.clear();
        assert!(!push.is_to(&reference("r.example/acme/authz:v1"), None));
    }

    #[test]
    fn a_tag_moves_its_own_references_and_no_digest() {
        let pinned = format!("r.example/a@{}", Digest::sha256(b"a"));
        let push = |pushed| Push::new(Some("r.example"), "a", pushed);
        let live = push(Pushed::Tag("live".to_owned()));
        for (text, moves) in [
            ("r.example/a:live", true),
            ("r.example/a:v1", false),
            (pinned.as_str(), false),
        ] {
            assert_eq!(live.may_move(&reference(text)), moves, "{text}");
            let unknown = push(Pushed::Unknown).may_move(&reference(text));
            assert_eq!(unknown, text != pinned);
            assert!(!push(Pushed::Evidence(None)).may_move(&reference(text)));
        }
    }
}
