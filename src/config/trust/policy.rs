//! `trust.policies`.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobSet;

use crate::{
    bundle::nests_too_deep,
    config::{
        files::Base,
        keys,
        problem::Problem,
        raw,
        values::{self, glob, name},
    },
    oci::{Digest, Repository, cosign::SIGN_PREDICATE},
    verify::{
        Attestation, AttestationRule, Authority, ClaimedRepository, Format, Requirements,
        TrustPolicy,
    },
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
        self.matches
            .iter()
            .filter(|one| one.glob.is_match(repository))
            .map(|one| one.length)
            .max()
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
        raw::Policy::Keyword(word) if word == raw::UNSIGNED => {
            return Ok(Policy {
                trust: TrustPolicy::unsigned(policy.to_owned()),
                matches: Vec::new(),
            });
        }
        raw::Policy::Keyword(word) => {
            let hint = "write `unsigned` or `{ require: { any_of: [AUTHORITY] } }`";
            return Err(Problem::new(format!("{word:?} is not a policy; {hint}")));
        }
        raw::Policy::Keys(rules) => rules,
    };
    let globs = rules.matches.iter().flat_map(|raw::Globs(globs)| globs);
    let matches = each(globs, |text| match_pattern(text)).map_err(|problem| problem.at("match"))?;
    let requirements = requirements(rules, authorities, base)?;
    Ok(Policy {
        trust: TrustPolicy::signed(policy.to_owned(), requirements).map_err(Problem::from)?,
        matches,
    })
}

fn requirements(
    raw: raw::PolicyRules,
    authorities: &BTreeMap<String, Authority>,
    base: Base<'_>,
) -> Result<Requirements, Problem> {
    let attestations = each(&raw.attestations, |raw| attestation(raw, base))
        .map_err(|problem| problem.at("attestations"))?;
    let (authorities, at_least) = authorities_and_threshold(&raw.require, authorities)
        .map_err(|problem| problem.at("require"))?;
    let mut requirements = Requirements {
        at_least,
        attestations,
        ..Requirements::any_of(authorities)
    };
    if let Some(types) = &raw.predicate_types {
        let types = each(types, |text| predicate_type(text))
            .map_err(|problem| problem.at("predicate_types"))?;
        requirements.predicate_types = types.into_iter().collect();
        if requirements.predicate_types.is_empty() {
            let message =
                format!("nothing would count as a signature; write [\"{SIGN_PREDICATE}\"]");
            return Err(Problem::new(message).at("predicate_types"));
        }
    }
    if let Some(words) = &raw.formats {
        let formats: Vec<_> =
            each(words, |word| format(word)).map_err(|problem| problem.at("formats"))?;
        requirements.formats = formats.into_iter().collect();
    }
    for (key, raw::Scalar(value)) in raw.annotations {
        if key.is_empty() {
            return Err(
                Problem::new("an annotation has an empty name; write one").at("annotations")
            );
        }
        requirements.annotations.insert(key, value);
    }
    if let Some(text) = &raw.claimed_repository {
        requirements.claimed_repository =
            claimed_repository(text).map_err(|problem| problem.at("claimed_repository"))?;
    }
    if let Some(raw) = &raw.signatures {
        let signatures = repository(&raw.repository)
            .map_err(|problem| problem.at("repository").at("signatures"))?;
        requirements.signatures = Some(signatures);
    }
    let age = raw
        .max_signature_age
        .map(|time| time.at_least(MIN_SIGNATURE_AGE, "2160h"))
        .transpose();
    requirements.max_signature_age = age.map_err(|problem| problem.at("max_signature_age"))?;
    let digests = each(&raw.revoked_digests, |text| {
        text.parse::<Digest>()
            .map_err(|error| Problem::new(format!("{error}; write one such as sha256:…")))
    });
    requirements.revoked_digests = digests
        .map_err(|problem| problem.at("revoked_digests"))?
        .into_iter()
        .collect::<BTreeSet<_>>();
    Ok(requirements)
}

/// The authorities that count, and the number of them that must have signed.
fn authorities_and_threshold(
    raw: &raw::Require,
    all: &BTreeMap<String, Authority>,
) -> Result<(Vec<Authority>, usize), Problem> {
    let named =
        |key: &str, names: &[String]| authorities(names, all).map_err(|problem| problem.at(key));
    match (&raw.any_of, &raw.all_of, raw.at_least, &raw.of) {
        (Some(names), None, None, None) => Ok((named("any_of", names)?, 1)),
        (None, Some(names), None, None) => Ok((named("all_of", names)?, names.len())),
        (None, None, Some(at_least), Some(names)) => Ok((named("of", names)?, at_least)),
        (None, None, None, Some(_)) => Err(Problem::new(
            "`of` needs `at_least`; write `at_least: 1`, or more",
        )),
        (None, None, Some(_), None) => Err(Problem::new(
            "`at_least` needs `of`; write `of: [AUTHORITY, AUTHORITY]`",
        )),
        (None, None, None, None) => Err(Problem::new(
            "nothing is required; write `any_of: [AUTHORITY]`, `all_of`, or `at_least` and `of`",
        )),
        _ => Err(Problem::new(
            "these are alternatives; keep `any_of`, `all_of`, or `at_least` with `of`",
        )),
    }
}

fn authorities(
    names: &[String],
    all: &BTreeMap<String, Authority>,
) -> Result<Vec<Authority>, Problem> {
    if names.is_empty() {
        let known = keys::list(all.keys().map(String::as_str));
        let message = format!("the list is empty; name one of trust.authorities: {known}");
        return Err(Problem::new(message));
    }
    let mut votes: Vec<Authority> = Vec::new();
    let mut named = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let refused = |message: String| Err(Problem::new(message).at_index(index));
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
    // Statements have URIs, never the short names of cosign's command line.
    if !text.contains(':')
        || text
            .chars()
            .any(|char| char.is_whitespace() || char.is_control())
    {
        let message =
            format!("{text:?} is not a predicate type; write a URI such as \"{SIGN_PREDICATE}\"");
        return Err(Problem::new(message));
    }
    Ok(text.to_owned())
}

fn attestation(raw: &raw::Attestation, base: Base<'_>) -> Result<Attestation, Problem> {
    let predicate_type =
        predicate_type(&raw.predicate_type).map_err(|problem| problem.at("predicate_type"))?;
    let rule = raw.rego.as_ref().map(|path| {
        let rule = base.text(path).and_then(|text| {
            let name = path.display().to_string();
            if nests_too_deep(&text) {
                let message =
                    format!("{name}: brackets are nested too deep; use intermediate rules");
                return Err(Problem::new(message));
            }
            AttestationRule::parse(&name, &text)
                .map_err(|error| Problem::new(format!("{name}: {error}")))
        });
        rule.map_err(|problem| problem.at("rego"))
    });
    Ok(Attestation {
        predicate_type,
        rule: rule.transpose()?,
    })
}

fn format(word: &str) -> Result<Format, Problem> {
    values::word(word, &FORMATS.map(|format| (format.label(), format)))
}

fn claimed_repository(text: &str) -> Result<ClaimedRepository, Problem> {
    match text {
        IGNORE => Ok(ClaimedRepository::Ignore),
        MATCH => Ok(ClaimedRepository::Match),
        // A repository always has a slash.
        word if !word.contains('/') => {
            let suggestion = keys::suggestion(word, [IGNORE, MATCH, "HOST/REPOSITORY"].into_iter());
            Err(Problem::new(format!(
                "{word:?} is neither `ignore`, `match` nor a repository; {suggestion}"
            )))
        }
        text => Ok(ClaimedRepository::Exactly(repository(text)?.to_string())),
    }
}

fn repository(text: &str) -> Result<Repository, Problem> {
    text.parse()
        .map_err(|error| Problem::new(format!("{error}")))
}

/// Reads a pattern, which must be able to match some `HOST/REPOSITORY`.
fn match_pattern(text: &str) -> Result<Match, Problem> {
    if text.contains("://") {
        return Err(Problem::new(format!(
            "{text:?} has a scheme; write HOST/REPOSITORY, such as \"ghcr.io/acme/**\""
        )));
    }
    if !text.contains('/') && text != "**" {
        return Err(Problem::new(format!(
            "{text:?} matches no HOST/REPOSITORY; write \"{text}/**\""
        )));
    }
    let last = text.rsplit('/').next().unwrap_or(text);
    if last.contains([':', '@']) {
        return Err(Problem::new(format!(
            "{text:?} has a tag or digest; match HOST/REPOSITORY without it"
        )));
    }
    Ok(Match {
        length: text.chars().count(),
        glob: glob(text)?,
    })
}

/// Reads every item of a list; each problem gets the index of its item.
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

/// The minimum of `max_signature_age`. A shorter one would reject signatures that have just been
/// made.
pub(in crate::config) const MIN_SIGNATURE_AGE: std::time::Duration =
    std::time::Duration::from_secs(1);
/// The values of `formats`, which are the default as well.
pub(in crate::config) const FORMATS: [Format; 2] = [Format::Bundle, Format::Legacy];
/// The words of `claimed_repository`; the first is the default.
pub(in crate::config) const IGNORE: &str = "ignore";
pub(in crate::config) const MATCH: &str = "match";
