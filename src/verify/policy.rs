//! Whose signature counts.

use std::fmt;

use super::PublicKey;
use crate::oci::Digest;

/// What an artifact needs before it is served.
///
/// A later policy may ask for more than one vote; keyless authorities, transparency logs
/// and timestamps become further kinds of [`Authority`].
#[derive(Debug, Clone)]
pub enum TrustPolicy {
    /// Nothing, because the configuration says `unsigned`.
    Unsigned {
        /// The policy's name in the configuration.
        name: String,
    },
    /// One vote of any of these authorities. Never empty: [`TrustPolicy::any_of`] sees to it.
    AnyOf(Authorities),
}

/// A non-empty list of authorities under a policy's name.
#[derive(Debug, Clone)]
pub struct Authorities {
    name: String,
    list: Vec<Authority>,
}

/// Somebody whose signatures count, and the keys that prove it.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its name in the configuration.
    pub name: String,
    /// Any of these keys speaks for it; signatures carry no transparency log (`tlog: none`).
    pub keys: Vec<PublicKey>,
}

/// Names the content of a policy: two policies with the same revision accept the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRevision(String);

impl TrustPolicy {
    /// A policy that any one of `authorities` satisfies. `None` when there is no authority
    /// or one without keys: an empty policy would accept everything.
    pub fn any_of(name: String, authorities: Vec<Authority>) -> Option<Self> {
        let usable = !authorities.is_empty() && authorities.iter().all(|authority| !authority.keys.is_empty());
        usable.then_some(Self::AnyOf(Authorities { name, list: authorities }))
    }

    /// The policy's name in the configuration.
    pub fn name(&self) -> &str {
        match self {
            Self::Unsigned { name } | Self::AnyOf(Authorities { name, .. }) => name,
        }
    }

    /// The authorities whose vote counts.
    pub fn authorities(&self) -> &[Authority] {
        match self {
            Self::Unsigned { .. } => &[],
            Self::AnyOf(authorities) => &authorities.list,
        }
    }

    /// Changes whenever the policy does.
    pub fn revision(&self) -> PolicyRevision {
        let mut text = match self {
            Self::Unsigned { .. } => "unsigned\n".to_owned(),
            Self::AnyOf(_) => "any_of\n".to_owned(),
        };
        for authority in self.authorities() {
            text.push_str(&format!("{:?}\n", authority.name));
            for key in &authority.keys {
                text.push_str(&format!("  {}\n", key.identity()));
            }
        }
        PolicyRevision(Digest::sha256(text.as_bytes()).to_string())
    }
}

impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_policy_cannot_be_made() {
        assert!(TrustPolicy::any_of("p".into(), Vec::new()).is_none());
        let keyless = Authority { name: "a".into(), keys: Vec::new() };
        assert!(TrustPolicy::any_of("p".into(), vec![keyless]).is_none());
    }
}
