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
    /// The scopes to ask for, given those that the registry named: ours where we know
    /// better, and whatever else it wants.
    pub(super) fn scopes(self, challenged: Option<&str>) -> Vec<String> {
        let mut scopes = self.own();
        let challenged = challenged.unwrap_or_default().split_ascii_whitespace();
        if let Self::Pull(_) = self {
            // Its names for its repositories may differ from ours, behind a mirror say.
            let challenged: Vec<_> = challenged.map(str::to_owned).collect();
            return if challenged.is_empty() { scopes } else { challenged };
        }
        for scope in challenged {
            let resource = scope.rsplit_once(':').map_or(scope, |(resource, _)| resource);
            if !scopes.iter().any(|known| known.rsplit_once(':').is_some_and(|(known, _)| known == resource)) {
                scopes.push(scope.to_owned());
            }
        }
        scopes
    }

    /// Tokens are kept by this.
    pub(super) fn key(self) -> String {
        self.own().join(" ")
    }

    fn own(self) -> Vec<String> {
        match self {
            Self::Pull(repository) => vec![format!("repository:{repository}:pull")],
            Self::Push(repository) => vec![format!("repository:{repository}:pull,push")],
            Self::Mount { into, from } => {
                vec![format!("repository:{into}:pull,push"), format!("repository:{from}:pull")]
            }
            Self::Catalog => vec!["registry:catalog:*".to_owned()],
            Self::Nothing => Vec::new(),
        }
    }
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
        assert_eq!(Access::Push("authz").scopes(named), ["repository:authz:pull,push", "registry:quota:get"]);
    }

    #[test]
    fn mounting_asks_to_read_the_other_repository_as_well() {
        let mount = Access::Mount { into: "a", from: "b" };
        assert_eq!(mount.scopes(Some("repository:a:pull,push")), ["repository:a:pull,push", "repository:b:pull"]);
    }
}
