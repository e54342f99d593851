//! The scope of a token (distribution, `auth/scope.md`).

/// The access that a request needs, and its token must grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenScope<'a> {
    /// Read a repository.
    Pull(&'a str),
    /// Write to a repository, which includes reading it.
    Push(&'a str),
    /// Mount a blob of another repository.
    Mount { into: &'a str, from: &'a str },
    /// List repositories.
    Catalog,
    /// No resource: checks the credentials alone.
    Unscoped,
}

/// A [`TokenScope`] that outlives the request.
#[derive(Debug)]
pub(super) enum OwnedScope {
    Pull(String),
    Push(String),
    Mount { into: String, from: String },
    Catalog,
    Unscoped,
}

impl OwnedScope {
    pub(super) fn borrow(&self) -> TokenScope<'_> {
        match self {
            Self::Pull(repository) => TokenScope::Pull(repository),
            Self::Push(repository) => TokenScope::Push(repository),
            Self::Mount { into, from } => TokenScope::Mount { into, from },
            Self::Catalog => TokenScope::Catalog,
            Self::Unscoped => TokenScope::Unscoped,
        }
    }

    /// The repository for which credentials are looked up; empty for none.
    pub(super) fn repository(&self) -> &str {
        match self {
            Self::Pull(repository)
            | Self::Push(repository)
            | Self::Mount {
                into: repository, ..
            } => repository,
            Self::Catalog | Self::Unscoped => "",
        }
    }
}

impl TokenScope<'_> {
    pub(super) fn to_owned(self) -> OwnedScope {
        match self {
            Self::Pull(repository) => OwnedScope::Pull(repository.to_owned()),
            Self::Push(repository) => OwnedScope::Push(repository.to_owned()),
            Self::Mount { into, from } => OwnedScope::Mount {
                into: into.to_owned(),
                from: from.to_owned(),
            },
            Self::Catalog => OwnedScope::Catalog,
            Self::Unscoped => OwnedScope::Unscoped,
        }
    }

    /// The scopes to request, given those in a challenge. The repository's name is taken from the
    /// challenge, because a mirror's names may differ from ours. The actions are those that the
    /// operation needs, whatever the challenge says, so that a stolen token grants no more. Other
    /// resources in the challenge are not requested. Without a usable scope in the challenge, the
    /// scopes are made of our own names.
    pub(super) fn requested(self, challenged: Option<&str>) -> Vec<String> {
        let mut repositories = challenged
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(repository);
        match self {
            Self::Pull(ours) => vec![scope(repositories.next().unwrap_or(ours), PULL)],
            Self::Push(ours) => vec![scope(repositories.next().unwrap_or(ours), PUSH)],
            Self::Mount { into, from } => {
                let into = repositories.find(|name| *name != from).unwrap_or(into);
                vec![scope(into, PUSH), scope(from, PULL)]
            }
            Self::Catalog | Self::Unscoped => self.scopes(),
        }
    }

    /// The key under which tokens are cached.
    pub(super) fn key(self) -> String {
        self.scopes().join(" ")
    }

    fn scopes(self) -> Vec<String> {
        match self {
            Self::Pull(repository) => vec![scope(repository, PULL)],
            Self::Push(repository) => vec![scope(repository, PUSH)],
            Self::Mount { into, from } => vec![scope(into, PUSH), scope(from, PULL)],
            Self::Catalog => vec!["registry:catalog:*".to_owned()],
            Self::Unscoped => Vec::new(),
        }
    }
}

const PULL: &str = "pull";
const PUSH: &str = "pull,push";
/// Longer names from a challenge are not sent to a token server (distribution-spec: 255
/// characters with the host).
const MAX_NAME_BYTES: usize = 255;

fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

/// The repository that a scope names (`repository:NAME:ACTIONS`; NAME may hold a colon, as part
/// of a host with a port).
fn repository(scope: &str) -> Option<&str> {
    let (name, _) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    (!name.is_empty() && name.len() <= MAX_NAME_BYTES && name != "*").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_requests_the_repository_of_the_challenge_and_writing_push_as_well() {
        let named = Some("repository:library/authz:pull");
        assert_eq!(
            TokenScope::Pull("authz").requested(named),
            ["repository:library/authz:pull"]
        );
        assert_eq!(
            TokenScope::Pull("authz").requested(None),
            ["repository:authz:pull"]
        );
        let named = Some("repository:authz:pull registry:quota:get");
        assert_eq!(
            TokenScope::Push("authz").requested(named),
            ["repository:authz:pull,push"]
        );
    }

    #[test]
    fn a_challenge_sets_the_repository_name_and_never_the_actions() {
        for (challenged, pull, push) in [
            ("repository:mirror/authz:*", "mirror/authz", "mirror/authz"),
            ("repository:authz:pull,push,delete", "authz", "authz"),
            ("repository:authz:delete", "authz", "authz"),
            ("repository:authz:", "authz", "authz"),
            (
                "repository:r.example:5000/authz:pull",
                "r.example:5000/authz",
                "r.example:5000/authz",
            ),
            ("repository:a:pull repository:secret:pull,push", "a", "a"),
            ("registry:catalog:* repository:authz:push", "authz", "authz"),
            // Without a usable scope: our own name.
            ("aws", "ours", "ours"),
            ("repository::pull", "ours", "ours"),
            ("repository:*:pull", "ours", "ours"),
            ("repository(plugin):authz:pull", "ours", "ours"),
            ("registry:catalog:*", "ours", "ours"),
            ("", "ours", "ours"),
        ] {
            let challenged = Some(challenged);
            assert_eq!(
                TokenScope::Pull("ours").requested(challenged),
                [format!("repository:{pull}:pull")],
                "{challenged:?}"
            );
            let pushing = [format!("repository:{push}:pull,push")];
            assert_eq!(
                TokenScope::Push("ours").requested(challenged),
                pushing,
                "{challenged:?}"
            );
        }
        let excessive = Some("registry:catalog:* repository:authz:pull,push,delete");
        assert_eq!(
            TokenScope::Catalog.requested(excessive),
            ["registry:catalog:*"]
        );
        assert_eq!(TokenScope::Unscoped.requested(excessive), [""; 0]);
        let mount = TokenScope::Mount {
            into: "a",
            from: "b",
        };
        let both = ["repository:mirror/a:pull,push", "repository:b:pull"];
        assert_eq!(
            mount.requested(Some("repository:b:* repository:mirror/a:*")),
            both
        );
    }

    #[test]
    fn mounting_requests_pull_on_the_other_repository_as_well() {
        let mount = TokenScope::Mount {
            into: "a",
            from: "b",
        };
        assert_eq!(
            mount.requested(Some("repository:a:pull,push")),
            ["repository:a:pull,push", "repository:b:pull"]
        );
    }
}
