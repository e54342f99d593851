//! Applies a later configuration to a policy of an earlier one. A bundle that the file no longer
//! names is served until the next start, but the keys, digests and roots that the later
//! configuration revokes or removes count for it as well.

use std::collections::{BTreeMap, BTreeSet};

use super::{Authority, AuthorityKey, AuthorityKind, Requirements, Rule, TrustPolicy, TrustRoot};
use crate::oci::Digest;

/// The authorities, trust roots and revoked digests of a configuration, whether a policy or
/// bundle refers to them or not.
#[derive(Debug, Clone, Default)]
pub struct TrustBase {
    /// By name.
    pub authorities: BTreeMap<String, Authority>,
    /// By name.
    pub roots: BTreeMap<String, TrustRoot>,
    /// The revoked digests of all policies.
    pub revoked_digests: BTreeSet<Digest>,
}

impl TrustBase {
    fn revokes(&self, key: &AuthorityKey) -> bool {
        let keys = self.authorities.values().flat_map(Authority::keys);
        keys.filter(|known| known.revoked)
            .any(|known| known.key.identity() == key.key.identity())
    }

    /// The authority of the same name in this configuration; without one, the given authority with
    /// the revoked keys marked. `None` if its trust root was removed.
    fn restrict(&self, authority: &Authority) -> Option<Authority> {
        if let Some(today) = self.authorities.get(&authority.name) {
            return Some(today.clone());
        }
        let root = match &authority.root {
            Some(root) => Some(self.roots.get(root.name())?.clone()),
            None => None,
        };
        let mut authority = Authority {
            root,
            ..authority.clone()
        };
        if let AuthorityKind::Keys(keys) = &mut authority.kind {
            keys.iter_mut()
                .for_each(|key| key.revoked |= self.revokes(key));
        }
        Some(authority)
    }
}

impl TrustPolicy {
    /// The policy as far as `base` allows it: authorities of the same name are replaced by those
    /// of `base`, keys and digests that `base` revokes are revoked, and authorities whose trust
    /// root `base` does not have are removed. If too few remain, the policy accepts nothing.
    #[must_use]
    pub fn restricted(&self, base: &TrustBase) -> Self {
        match self.rule() {
            Rule::Unsigned => self.clone().without(&base.revoked_digests),
            Rule::Signed(requirements) => {
                let authorities = requirements.authorities.iter();
                let mut requirements = Requirements {
                    authorities: authorities
                        .filter_map(|authority| base.restrict(authority))
                        .collect(),
                    ..Requirements::clone(requirements)
                };
                requirements
                    .revoked_digests
                    .extend(base.revoked_digests.iter().cloned());
                Self::of(self.name().to_owned(), requirements)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::PublicKey;

    fn key() -> PublicKey {
        PublicKey::from_pem(&rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap()
    }

    fn policy(authorities: impl IntoIterator<Item = Authority>) -> TrustPolicy {
        TrustPolicy::signed(
            "p".into(),
            Requirements::any_of(authorities.into_iter().collect()),
        )
        .unwrap()
    }

    fn base(authorities: impl IntoIterator<Item = Authority>) -> TrustBase {
        let authorities = authorities
            .into_iter()
            .map(|authority| (authority.name.clone(), authority))
            .collect();
        TrustBase {
            authorities,
            ..TrustBase::default()
        }
    }

    fn revoked(name: &str, key: PublicKey) -> Authority {
        let mut authority = Authority::with_keys(name.into(), [key]);
        let AuthorityKind::Keys(keys) = &mut authority.kind else {
            panic!("no keys")
        };
        keys[0].revoked = true;
        authority
    }

    fn names(policy: &TrustPolicy) -> Vec<(String, Vec<bool>)> {
        let authorities = policy.requirements().unwrap().authorities.iter();
        authorities
            .map(|one| {
                (
                    one.name.clone(),
                    one.keys().iter().map(|key| key.revoked).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn a_policy_that_the_new_configuration_does_not_restrict_keeps_its_revision() {
        let policy = policy([Authority::with_keys("release".into(), [key()])]);
        assert_eq!(
            policy.restricted(&TrustBase::default()).revision(),
            policy.revision()
        );
        assert_eq!(
            policy
                .restricted(&base([revoked("other", key())]))
                .revision(),
            policy.revision()
        );
        let unsigned = TrustPolicy::unsigned("dev".into());
        assert_eq!(
            unsigned.restricted(&TrustBase::default()).revision(),
            unsigned.revision()
        );
    }

    #[test]
    fn a_key_that_is_revoked_under_another_name_is_revoked() {
        let (stolen, good) = (key(), key());
        let policy = policy([Authority::with_keys(
            "release".into(),
            [stolen.clone(), good],
        )]);
        let restricted = policy.restricted(&base([revoked("renamed", stolen)]));
        assert_eq!(
            names(&restricted),
            [("release".to_owned(), vec![true, false])]
        );
        assert_ne!(restricted.revision(), policy.revision());
    }

    #[test]
    fn an_authority_of_the_same_name_is_replaced() {
        let today = key();
        let policy = policy([Authority::with_keys("release".into(), [key()])]);
        let restricted = policy.restricted(&base([Authority::with_keys(
            "release".into(),
            [today.clone()],
        )]));
        assert_eq!(
            restricted.requirements().unwrap().authorities[0].keys()[0]
                .key
                .identity(),
            today.identity()
        );
    }

    #[test]
    fn an_authority_without_its_root_is_removed_and_without_authorities_nothing_is_accepted() {
        let root = crate::verify::RootSource::Builtin { tuf: None }
            .initial("corp")
            .unwrap();
        let logged = |name: &str| {
            let tlog = crate::verify::TlogPolicy::Require;
            Authority {
                tlog,
                root: Some(root.clone()),
                ..Authority::with_keys(name.into(), [key()])
            }
        };
        let policy = policy([
            logged("release"),
            Authority::with_keys("backup".into(), [key()]),
        ]);
        assert_eq!(
            names(&policy.restricted(&TrustBase::default())),
            [("backup".to_owned(), vec![false])]
        );
        let kept = TrustBase {
            roots: [("corp".to_owned(), root.clone())].into(),
            ..TrustBase::default()
        };
        assert_eq!(policy.restricted(&kept).revision(), policy.revision());
        let alone = self::policy([logged("release")]).restricted(&TrustBase::default());
        assert!(alone.requirements().unwrap().authorities.is_empty());
    }

    #[test]
    fn a_digest_that_any_policy_revokes_is_revoked() {
        let digest = Digest::sha256(b"x");
        let base = TrustBase {
            revoked_digests: [digest.clone()].into(),
            ..TrustBase::default()
        };
        let signed = policy([Authority::with_keys("release".into(), [key()])]).restricted(&base);
        let unsigned = TrustPolicy::unsigned("dev".into()).restricted(&base);
        for policy in [signed, unsigned] {
            assert!(
                policy.revokes(&digest) && !policy.revokes(&Digest::sha256(b"y")),
                "{policy:?}"
            );
        }
    }
}
