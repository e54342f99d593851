//! `trust`: roots, authorities and policies, and the policy that applies to a repository.

pub(super) mod authority;
pub(super) mod policy;
pub(super) mod roots;

use std::collections::BTreeMap;

use super::{files::Base, keys, problem::Problem, raw};
use crate::{
    oci::Repository,
    verify::{RootSource, TrustBase, TrustPolicy},
};

use policy::Policy;
use roots::Roots;

pub use roots::CurrentRoot;

/// The trust policies by name.
#[derive(Debug, Clone)]
pub struct Policies {
    policies: BTreeMap<String, Policy>,
    sources: BTreeMap<String, RootSource>,
    base: TrustBase,
}

impl Policies {
    /// Reads all of `trust`, including unused parts.
    pub(super) fn read(
        raw: raw::Trust,
        current: CurrentRoot<'_>,
        base: Base<'_>,
    ) -> Result<Self, Problem> {
        let roots = Roots::read(raw.roots, current, base).map_err(|problem| problem.at("roots"))?;
        let authorities = authority::read(raw.authorities, &roots, base)
            .map_err(|problem| problem.at("authorities"))?;
        let mut policies = BTreeMap::new();
        for (name, raw) in raw.policies {
            let policy = policy::read(&name, raw, &authorities, base);
            let policy = policy.map_err(|problem| problem.at(&name).at("policies"))?;
            policies.insert(name, policy);
        }
        let digests = policies
            .values()
            .filter_map(|policy| policy.trust.requirements());
        let revoked_digests = digests
            .flat_map(|requirements| requirements.revoked_digests.iter().cloned())
            .collect();
        let (sources, roots) = roots.into_parts();
        Ok(Self {
            policies,
            sources,
            base: TrustBase {
                authorities,
                roots,
                revoked_digests,
            },
        })
    }

    /// All authorities, roots and revoked digests, including unused ones.
    pub fn base(&self) -> &TrustBase {
        &self.base
    }

    /// The sources of the roots that `policies` use, by name.
    pub fn roots_of<'a>(
        &self,
        policies: impl IntoIterator<Item = &'a TrustPolicy>,
    ) -> BTreeMap<String, RootSource> {
        let requirements = policies.into_iter().filter_map(TrustPolicy::requirements);
        let roots = requirements
            .flat_map(|requirements| &requirements.authorities)
            .filter_map(|a| a.root.as_ref());
        roots
            .filter_map(|root| self.sources.get_key_value(root.name()))
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect()
    }

    /// The policy with this name.
    pub(super) fn named(&self, name: &str) -> Result<TrustPolicy, Problem> {
        self.policies
            .get(name)
            .map(|policy| policy.trust.clone())
            .ok_or_else(|| {
                let suggestion = keys::suggestion(name, self.names());
                Problem::new(format!("trust.policies has no {name:?}; {suggestion}"))
            })
    }

    /// Whether there are no policies.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The policy with this name, or without a name the one that applies to a bundle from
    /// `repository`.
    ///
    /// # Errors
    /// A message that lists the known policies.
    pub fn choose(
        &self,
        name: Option<&str>,
        repository: &Repository,
    ) -> Result<TrustPolicy, String> {
        let chosen = match name {
            Some(name) => self.named(name),
            None => self.matching(repository),
        };
        chosen.map_err(|problem| problem.to_string())
    }

    /// The policy with the longest pattern that matches `HOST/REPOSITORY`.
    pub(super) fn matching(&self, repository: &Repository) -> Result<TrustPolicy, Problem> {
        let named = keys::list(self.names());
        let Repository::Registry { .. } = repository else {
            let message =
                format!("no `match` applies to a folder; name one here (trust.policies: {named})");
            return Err(Problem::new(message));
        };
        let text = repository.to_string();
        let mut found: Vec<(usize, &str, &Policy)> = self
            .policies
            .iter()
            .filter_map(|(name, policy)| {
                Some((policy.longest_match(&text)?, name.as_str(), policy))
            })
            .collect();
        found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        match found.as_slice() {
            [] => Err(Problem::new(format!(
                "no policy matches {text}; name one here (trust.policies: {named}) or give one `match: \"{text}\"`"
            ))),
            [(first, one, _), (second, other, _), ..] if first == second => {
                Err(Problem::new(format!(
                    "the policies {one} and {other} match {text} equally well; name one of them here"
                )))
            }
            [(_, _, policy), ..] => Ok(policy.trust.clone()),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.policies.keys().map(String::as_str)
    }
}
