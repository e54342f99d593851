//! `trust.policies`: what it takes.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobSet;

use super::unmeetable;
use crate::{
    bundle::nests_too_deep,
    config::{
        files::Base,
        keys,
        problem::Problem,
        raw,
        values::{glob, name},
    },
    oci::{Digest, Repository, cosign::SIGN_PREDICATE},
    verify::{Attestation, AttestationRule, Authority, ClaimedRepository, Format, Requirements, TrustPolicy},
};

/// One of `trust.policies`.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) trust: TrustPolicy,
    matches: Vec<Match>,
}

#[derive(Debug, Clone)]
struct Match {
    length: usize,
    glob: GlobSet,
}

impl Policy {
    /// The length of the longest pattern that matches `HOST/REPOSITORY`.
    pub(super) fn longest_match(&self, repository: &str) -> Option<usize> {
        self.matches.iter().filter(|one| one.glob.is_match(repository)).map(|one| one.length).max()
    }
}

/// Reads one policy.
pub(super) fn read(
    policy: &str,
    raw: raw::Policy,
    authorities: &BTreeMap<String, Authority>,
    base: Base<'_>,
) -> Result<Policy, Problem> {
    name(policy)?;
    let rules = match raw {
        raw::Policy::Word(word) if word == "unsigned" => {
            return Ok(Policy { trust: TrustPolicy::unsigned(policy.to_owned()), matches: Vec::new() });
        }
        raw::Policy::Word(word) => {
            let way_out = "write `unsigned` or `{ require: { any_of: [AUTHORITY] } }`";
            return Err(Problem::new(format!("{word:?} is no policy; {way_out}")));
        }
        raw::Policy::Keys(rules) => rules,
    };
    let globs = rules.matches.iter().flat_map(|raw::Globs(globs)| globs);
    let matches = each(globs, |text| matcher(text)).map_err(|problem| problem.at("match"))?;
    let requirements = requirements(rules, authorities, base)?;
    Ok(Policy { trust: TrustPolicy::signed(policy.to_owned(), requirements).map_err(unmeetable)?, matches })
}

fn requirements(
    raw: raw::PolicyRules,
    authorities: &BTreeMap<String, Authority>,
    base: Base<'_>,
) -> Result<Requirements, Problem> {
    let (authorities, at_least) = votes(&raw.require, authorities).map_err(|problem| problem.at("require"))?;
    let mut requirements = Requirements { at_least, ..Requirements::any_of(authorities) };
    if let Some(types) = &raw.predicate_types {
        let types = each(types, |text| predicate_type(text)).map_err(|problem| problem.at("predicate_types"))?;
        requirements.predicate_types = types.into_iter().collect();
        if requirements.predicate_types.is_empty() {
            let sentence = format!("no bundle could count as a signature; write [\"{SIGN_PREDICATE}\"]");
            return Err(Problem::new(sentence).at("predicate_types"));
        }
    }
    requirements.attestations =
        each(&raw.attestations, |raw| attestation(raw, base)).map_err(|problem| problem.at("attestations"))?;
    if let Some(words) = &raw.formats {
        let formats: Vec<_> = each(words, |word| format(word)).map_err(|problem| problem.at("formats"))?;
        requirements.formats = formats.into_iter().collect();
    }
    for (key, raw::Scalar(value)) in raw.annotations {
        if key.is_empty() {
            return Err(Problem::new("an annotation has a name; write it").at("annotations"));
        }
        requirements.annotations.insert(key, value);
    }
    if let Some(text) = &raw.claimed_repository {
        requirements.claimed_repository = claimed(text).map_err(|problem| problem.at("claimed_repository"))?;
    }
    if let Some(raw) = &raw.signatures {
        let signatures = repository(&raw.repository).map_err(|problem| problem.at("repository").at("signatures"))?;
        requirements.signatures = Some(signatures);
    }
    let age = raw.max_signature_age.map(|time| time.at_least(LEAST_AGE, "2160h")).transpose();
    requirements.max_signature_age = age.map_err(|problem| problem.at("max_signature_age"))?;
    let digests = each(&raw.revoked_digests, |text| {
        text.parse::<Digest>().map_err(|error| Problem::new(format!("{error}; write one such as sha256:…")))
    });
    requirements.revoked_digests =
        digests.map_err(|problem| problem.at("revoked_digests"))?.into_iter().collect::<BTreeSet<_>>();
    Ok(requirements)
}

/// Who may vote, and how many have to.
fn votes(raw: &raw::Require, all: &BTreeMap<String, Authority>) -> Result<(Vec<Authority>, usize), Problem> {
    let named = |key: &str, names: &[String]| authorities(names, all).map_err(|problem| problem.at(key));
    match (&raw.any_of, &raw.all_of, raw.at_least, &raw.of) {
        (Some(names), None, None, None) => Ok((named("any_of", names)?, 1)),
        (None, Some(names), None, None) => Ok((named("all_of", names)?, names.len())),
        (None, None, Some(at_least), Some(names)) => Ok((named("of", names)?, at_least)),
        (None, None, None, Some(_)) => Err(Problem::new("nothing says how many of them; write `at_least: 1`, or more")),
        (None, None, Some(_), None) => Err(Problem::new("nothing says of whom; write `of: [AUTHORITY, AUTHORITY]`")),
        (None, None, None, None) => {
            Err(Problem::new("nothing is required; write `any_of: [AUTHORITY]`, `all_of`, or `at_least` and `of`"))
        }
        _ => Err(Problem::new("it says more than one thing; keep `any_of`, `all_of`, or `at_least` with `of`")),
    }
}

fn authorities(names: &[String], all: &BTreeMap<String, Authority>) -> Result<Vec<Authority>, Problem> {
    if names.is_empty() {
        let known = keys::list(all.keys().map(String::as_str));
        let sentence = format!("without an authority nothing could pass; name one of trust.authorities: {known}");
        return Err(Problem::new(sentence));
    }
    let mut votes: Vec<Authority> = Vec::new();
    let mut named = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let refused = |sentence: String| Err(Problem::new(sentence).at_index(index));
        let Some(authority) = all.get(name) else {
            let suggestion = keys::suggestion(name, all.keys().map(String::as_str));
            return refused(format!("trust.authorities has no {name:?}; {suggestion}"));
        };
        if !named.insert(name) {
            return refused(format!("{name} is named twice; name it once"));
        }
        votes.push(authority.clone());
    }
    Ok(votes)
}

fn predicate_type(text: &str) -> Result<String, Problem> {
    // The short names of cosign's command line are never in a statement.
    if !text.contains(':') || text.chars().any(|char| char.is_whitespace() || char.is_control()) {
        let sentence = format!("{text:?} is no predicate type; write a URI such as \"{SIGN_PREDICATE}\"");
        return Err(Problem::new(sentence));
    }
    Ok(text.to_owned())
}

fn attestation(raw: &raw::Attestation, base: Base<'_>) -> Result<Attestation, Problem> {
    let predicate_type = predicate_type(&raw.predicate_type).map_err(|problem| problem.at("predicate_type"))?;
    let rule = raw.rego.as_ref().map(|path| {
        let rule = base.text(path).and_then(|text| {
            let name = path.display().to_string();
            if nests_too_deep(&text) {
                let sentence = format!("{name}: brackets in it are nested too deep; write intermediate rules");
                return Err(Problem::new(sentence));
            }
            AttestationRule::parse(&name, &text).map_err(|error| Problem::new(format!("{name}: {error}")))
        });
        rule.map_err(|problem| problem.at("rego"))
    });
    Ok(Attestation { predicate_type, rule: rule.transpose()? })
}

fn format(word: &str) -> Result<Format, Problem> {
    keys::word(word, &[Format::Bundle, Format::Legacy].map(|format| (format.label(), format)))
}

fn claimed(text: &str) -> Result<ClaimedRepository, Problem> {
    match text {
        "ignore" => Ok(ClaimedRepository::Ignore),
        "match" => Ok(ClaimedRepository::Match),
        // A repository has a host with a dot, a colon or `localhost`, and a slash.
        word if !word.contains('/') => {
            let suggestion = keys::suggestion(word, ["ignore", "match", "HOST/REPOSITORY"].into_iter());
            Err(Problem::new(format!("{word:?} is neither `ignore`, `match` nor a repository; {suggestion}")))
        }
        text => Ok(ClaimedRepository::Exactly(repository(text)?.to_string())),
    }
}

fn repository(text: &str) -> Result<Repository, Problem> {
    text.parse().map_err(|error| Problem::new(format!("{error}")))
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

/// Every item of a list, each problem with its index.
fn each<'a, I, T>(
    items: impl IntoIterator<Item = &'a I>,
    read: impl Fn(&'a I) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem>
where
    I: ?Sized + 'a,
{
    let read = |(index, item)| read(item).map_err(|problem| problem.at_index(index));
    items.into_iter().enumerate().map(read).collect()
}

/// A younger age would refuse signatures on their way from the signer to here.
const LEAST_AGE: std::time::Duration = std::time::Duration::from_secs(1);
