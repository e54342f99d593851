//! What a request wants to do, which its token must allow.

/// In the words of distribution's `auth/scope.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access<'a> {
    /// Read a repository.
    Pull(&'a str),
    /// Write to a repository, which includes reading it.
    Push(&'a str),
    /// Write to a repository what another one has.
    Mount { into: &'a str, from: &'a str },
    /// List repositories.
    Catalog,
    /// See whether the credentials are any good.
    Nothing,
}

impl Access<'_> {
    /// The scopes to ask for, given those in a challenge. The name of the repository is the
    /// challenge's, because a mirror's names may differ from ours; the actions are those that the
    /// operation needs, whatever the challenge names: a token that allows more could be used by
    /// whoever gets hold of it. Other resources are not asked for. Without a usable scope in the
    /// challenge, our own.
    pub(super) fn scopes(self, challenged: Option<&str>) -> Vec<String> {
        let mut repositories = challenged.unwrap_or_default().split_ascii_whitespace().filter_map(repository);
        match self {
            Self::Pull(ours) => vec![scope(repositories.next().unwrap_or(ours), PULL)],
            Self::Push(ours) => vec![scope(repositories.next().unwrap_or(ours), PUSH)],
            Self::Mount { into, from } => {
                let into = repositories.find(|name| *name != from).unwrap_or(into);
                vec![scope(into, PUSH), scope(from, PULL)]
            }
            Self::Catalog | Self::Nothing => self.own(),
        }
    }

    /// Tokens are kept by this.
    pub(super) fn key(self) -> String {
        self.own().join(" ")
    }

    fn own(self) -> Vec<String> {
        match self {
            Self::Pull(repository) => vec![scope(repository, PULL)],
            Self::Push(repository) => vec![scope(repository, PUSH)],
            Self::Mount { into, from } => vec![scope(into, PUSH), scope(from, PULL)],
            Self::Catalog => vec!["registry:catalog:*".to_owned()],
            Self::Nothing => Vec::new(),
        }
    }
}

const PULL: &str = "pull";
const PUSH: &str = "pull,push";
/// Longer names of repositories are not repeated to a token server (distribution-spec: 255
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
    fn reading_asks_for_what_the_registry_named_and_writing_for_more() {
        let named = Some("repository:library/authz:pull");
        assert_eq!(Access::Pull("authz").scopes(named), ["repository:library/authz:pull"]);
        assert_eq!(Access::Pull("authz").scopes(None), ["repository:authz:pull"]);
        let named = Some("repository:authz:pull registry:quota:get");
        assert_eq!(Access::Push("authz").scopes(named), ["repository:authz:pull,push"]);
    }

    #[test]
    fn a_challenge_chooses_the_name_and_never_the_actions() {
        for (challenged, pull, push) in [
            ("repository:mirror/authz:*", "mirror/authz", "mirror/authz"),
            ("repository:authz:pull,push,delete", "authz", "authz"),
            ("repository:authz:delete", "authz", "authz"),
            ("repository:authz:", "authz", "authz"),
            ("repository:r.example:5000/authz:pull", "r.example:5000/authz", "r.example:5000/authz"),
            ("repository:a:pull repository:secret:pull,push", "a", "a"),
            ("registry:catalog:* repository:authz:push", "authz", "authz"),
            // Nothing usable: our own.
            ("aws", "ours", "ours"),
            ("repository::pull", "ours", "ours"),
            ("repository:*:pull", "ours", "ours"),
            ("repository(plugin):authz:pull", "ours", "ours"),
            ("registry:catalog:*", "ours", "ours"),
            ("", "ours", "ours"),
        ] {
            let challenged = Some(challenged);
            assert_eq!(Access::Pull("ours").scopes(challenged), [format!("repository:{pull}:pull")], "{challenged:?}");
            let pushing = [format!("repository:{push}:pull,push")];
            assert_eq!(Access::Push("ours").scopes(challenged), pushing, "{challenged:?}");
        }
        let greedy = Some("registry:catalog:* repository:authz:pull,push,delete");
        assert_eq!(Access::Catalog.scopes(greedy), ["registry:catalog:*"]);
        assert_eq!(Access::Nothing.scopes(greedy), [""; 0]);
        let mount = Access::Mount { into: "a", from: "b" };
        let both = ["repository:mirror/a:pull,push", "repository:b:pull"];
        assert_eq!(mount.scopes(Some("repository:b:* repository:mirror/a:*")), both);
    }

    #[test]
    fn mounting_asks_to_read_the_other_repository_as_well() {
        let mount = Access::Mount { into: "a", from: "b" };
        assert_eq!(mount.scopes(Some("repository:a:pull,push")), ["repository:a:pull,push", "repository:b:pull"]);
    }
}
