//! `trust`: authorities, policies, and which policy a repository falls under.

use std::collections::BTreeMap;

use globset::GlobMatcher;

use super::{
    files::Base,
    keys,
    problem::Problem,
    raw,
    values::{glob, name},
};
use crate::{
    oci::Repository,
    verify::{Authority, PublicKey, Requirements, TrustPolicy},
};

/// All policies by name.
#[derive(Debug)]
pub struct Policies(BTreeMap<String, Policy>);

#[derive(Debug)]
struct Policy {
    trust: TrustPolicy,
    matches: Vec<Match>,
}

#[derive(Debug)]
struct Match {
    length: usize,
    glob: GlobMatcher,
}

impl Policies {
    /// Reads all of `trust`.
    pub(super) fn read(raw: raw::Trust, base: Base<'_>) -> Result<Self, Problem> {
        let authorities = raw
            .authorities
            .into_iter()
            .map(|(name, raw)| {
                let authority = authority(&name, &raw, base).map_err(|problem| problem.at(&name))?;
                Ok((name, authority))
            })
            .collect::<Result<BTreeMap<_, _>, Problem>>()
            .map_err(|problem| problem.at("authorities"))?;
        raw.policies
            .into_iter()
            .map(|(name, raw)| {
                let policy = policy(&name, &raw, &authorities).map_err(|problem| problem.at(&name))?;
                Ok((name, policy))
            })
            .collect::<Result<_, Problem>>()
            .map(Self)
            .map_err(|problem| problem.at("policies"))
    }

    /// The policy that a bundle asks for.
    pub(super) fn named(&self, name: &str) -> Result<TrustPolicy, Problem> {
        self.0.get(name).map(|policy| policy.trust.clone()).ok_or_else(|| {
            let suggestion = keys::suggestion(name, self.names());
            Problem::new(format!("trust.policies has no {name:?}; {suggestion}"))
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The policy that somebody asks for by `name`, or else the one that a bundle from
    /// `repository` would fall under.
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub fn choose(&self, name: Option<&str>, repository: &Repository) -> Result<TrustPolicy, String> {
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
            let sentence = format!("a folder falls under no policy by itself; name one here (trust.policies: {named})");
            return Err(Problem::new(sentence));
        };
        let text = repository.to_string();
        let mut found: Vec<(usize, &str, &Policy)> = self
            .0
            .iter()
            .filter_map(|(name, policy)| Some((policy.longest_match(&text)?, name.as_str(), policy)))
            .collect();
        found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        match found.as_slice() {
            [] => Err(Problem::new(format!(
                "no policy matches {text}; name one here (trust.policies: {named}) or give one `match: \"{text}\"`"
            ))),
            [(first, one, _), (second, other, _), ..] if first == second => Err(Problem::new(format!(
                "the policies {one} and {other} match {text} equally well; name one of them here"
            ))),
            [(_, _, policy), ..] => Ok(policy.trust.clone()),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.keys().map(String::as_str)
    }
}

impl Policy {
    fn longest_match(&self, repository: &str) -> Option<usize> {
        self.matches.iter().filter(|one| one.glob.is_match(repository)).map(|one| one.length).max()
    }
}

fn authority(authority: &str, raw: &raw::Authority, base: Base<'_>) -> Result<Authority, Problem> {
    // The names stand in a header, separated by commas.
    name(authority)?;
    if raw.tlog.as_deref() != Some("none") {
        let sentence = "transparency log checks are not supported yet; write `tlog: none`";
        return Err(Problem::new(sentence).at("tlog"));
    }
    if raw.keys.is_empty() {
        return Err(Problem::new("without a key nobody speaks for it; name a PEM public key file").at("keys"));
    }
    let keys = raw.keys.iter().enumerate().map(|(index, raw::KeyFile(path))| {
        let key = base.text(path).and_then(|text| {
            let refused = |reason: String| Problem::new(format!("{}: {reason}", path.display()));
            if text.matches("-----BEGIN PUBLIC KEY-----").count() > 1 {
                return Err(refused("it holds several keys; put each into a file of its own".to_owned()));
            }
            PublicKey::from_pem(&text).map_err(|error| refused(error.to_string()))
        });
        key.map_err(|problem| problem.at_index(index).at("keys"))
    });
    Ok(Authority::with_keys(authority.to_owned(), keys.collect::<Result<Vec<_>, _>>()?))
}

fn policy(policy: &str, raw: &raw::Policy, authorities: &BTreeMap<String, Authority>) -> Result<Policy, Problem> {
    name(policy)?;
    let rules = match raw {
        raw::Policy::Word(word) if word == "unsigned" => {
            return Ok(Policy { trust: TrustPolicy::unsigned(policy.to_owned()), matches: Vec::new() });
        }
        raw::Policy::Word(word) => {
            let way_out = "write `unsigned` or `{ require: { any_of: [AUTHORITY] } }`";
            return Err(Problem::new(format!("{word:?} is no policy; {way_out}")));
        }
        raw::Policy::Rules(rules) => rules,
    };
    let globs = rules.matches.iter().flat_map(|raw::Globs(globs)| globs);
    let matches = globs.enumerate().map(|(index, text)| matcher(text).map_err(|problem| problem.at_index(index)));
    let matches = matches.collect::<Result<_, _>>().map_err(|problem| problem.at("match"))?;
    let votes = votes(&rules.require.any_of, authorities).map_err(|problem| problem.at("any_of").at("require"))?;
    let Ok(trust) = TrustPolicy::signed(policy.to_owned(), Requirements::any_of(votes)) else {
        let known = keys::list(authorities.keys().map(String::as_str));
        let sentence = format!("without an authority nothing could pass; name one of trust.authorities: {known}");
        return Err(Problem::new(sentence).at("any_of").at("require"));
    };
    Ok(Policy { trust, matches })
}

fn votes(names: &[String], authorities: &BTreeMap<String, Authority>) -> Result<Vec<Authority>, Problem> {
    let mut votes: Vec<Authority> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let refused = |sentence: String| Err(Problem::new(sentence).at_index(index));
        let Some(authority) = authorities.get(name) else {
            let suggestion = keys::suggestion(name, authorities.keys().map(String::as_str));
            return refused(format!("trust.authorities has no {name:?}; {suggestion}"));
        };
        if votes.iter().any(|vote| vote.name == *name) {
            return refused(format!("{name} is named twice; name it once"));
        }
        // One key must not count for two voters.
        let keys_of =
            |authority: &Authority| authority.keys().iter().map(|key| key.key.identity().to_owned()).collect();
        let own: Vec<String> = keys_of(authority);
        if let Some(other) =
            votes.iter().find(|vote| vote.keys().iter().any(|key| own.iter().any(|id| id == key.key.identity())))
        {
            return refused(format!("{name} and {} share a key; leave one of them out", other.name));
        }
        votes.push(authority.clone());
    }
    Ok(votes)
}

/// A pattern that can match some `HOST/REPOSITORY`.
fn matcher(text: &str) -> Result<Match, Problem> {
    if text.contains("://") {
        return Err(Problem::new(format!("{text:?} has a scheme; write HOST/REPOSITORY, such as \"ghcr.io/acme/**\"")));
    }
    if !text.contains('/') && text != "**" {
        return Err(Problem::new(format!("{text:?} matches no HOST/REPOSITORY; write \"{text}/**\"")));
    }
    let last = text.rsplit('/').next().unwrap_or(text);
    if last.contains([':', '@']) {
        return Err(Problem::new(format!("{text:?} has a tag or digest; match HOST/REPOSITORY without it")));
    }
    Ok(Match { length: text.chars().count(), glob: glob(text)? })
}
