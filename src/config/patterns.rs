//! `patterns`.

use std::time::Duration;

use super::{
    bundles::{self, BundleConfig, Defaults},
    files::Base,
    problem::Problem,
    raw,
    trust::Policies,
};
use crate::{
    catalog::{Pattern, PatternError},
    oci::Reference,
    verify::TrustPolicy,
};

/// One entry of `patterns`: bundles that are added when a client asks for them.
#[derive(Debug, Clone)]
pub struct PatternConfig {
    /// The names, and the reference of each.
    pub pattern: Pattern,
    /// The configuration of a bundle, but for its name and reference.
    template: BundleConfig,
    /// The time after the last request when a bundle is removed.
    pub idle: Duration,
    /// The maximum number of bundles.
    pub max: usize,
}

impl PatternConfig {
    /// The configuration of the bundle `name`, which has this reference.
    pub fn bundle(&self, name: &str, reference: Reference) -> BundleConfig {
        BundleConfig {
            name: name.to_owned(),
            reference,
            ..self.template.clone()
        }
    }

    /// The configuration of a bundle of this pattern, for the options that all of them share.
    pub fn sample(&self) -> &BundleConfig {
        &self.template
    }

    /// The trust policy of its bundles.
    pub fn trust(&self) -> &TrustPolicy {
        &self.template.trust
    }
}

/// Reads all of `patterns`.
pub(super) fn read(
    raw: Vec<raw::Pattern>,
    policies: &Policies,
    defaults: &Defaults,
    base: Base<'_>,
) -> Result<Vec<PatternConfig>, Problem> {
    if raw.len() > MAX_PATTERNS {
        return Err(Problem::new(format!(
            "more than {MAX_PATTERNS} patterns; use captures to join some of them"
        )));
    }
    let mut patterns: Vec<PatternConfig> = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let pattern = pattern(raw, policies, defaults, base)
            .and_then(|pattern| distinct(pattern, &patterns))
            .map_err(|problem| problem.at_index(index))?;
        patterns.push(pattern);
    }
    Ok(patterns)
}

fn pattern(
    raw: raw::Pattern,
    policies: &Policies,
    defaults: &Defaults,
    base: Base<'_>,
) -> Result<PatternConfig, Problem> {
    let pattern =
        Pattern::parse(&raw.resource, &raw.reference, base.folder()).map_err(|error| {
            let key = match error {
                PatternError::Resource(_) => "resource",
                PatternError::Reference(_) => "reference",
            };
            Problem::new(error.to_string()).at(key)
        })?;
    let sample = pattern
        .sample()
        .map_err(|error| Problem::new(error.to_string()).at("reference"))?;
    let idle = raw
        .idle
        .map_or(Ok(IDLE), |time| time.at_least(MIN_IDLE, "1h"))
        .map_err(|problem| problem.at("idle"))?;
    let max = raw.max.unwrap_or(DEFAULT_MAX);
    if !(1..=HIGHEST_MAX).contains(&max) {
        return Err(Problem::new(format!(
            "{max} is not between 1 and {HIGHEST_MAX}; write a number such as {DEFAULT_MAX}"
        ))
        .at("max"));
    }
    let options = raw::Bundle {
        reference: sample.to_string(),
        semver: None,
        filter_tags: None,
        suspend: None,
        platform: raw.platform,
        data_root: raw.data_root,
        trust: Some(raw.trust),
        poll: raw.poll,
        confirm_within: raw.confirm_within,
        on_missing: raw.on_missing,
        max_stale: raw.max_stale,
        expect: raw::Expect::default(),
        on_withdraw: None,
        opa_check: raw.opa_check,
        resign: raw.resign,
        opa_signature: raw.opa_signature,
        opa_keys: raw.opa_keys,
        rollout: None,
        delta: raw.delta,
    };
    Ok(PatternConfig {
        template: bundles::bundle(raw.resource, options, policies, defaults, base)?,
        pattern,
        idle,
        max,
    })
}

/// Checks that no name can match two patterns.
fn distinct(pattern: PatternConfig, others: &[PatternConfig]) -> Result<PatternConfig, Problem> {
    let overlaps = |other: &&PatternConfig| pattern.pattern.overlaps(&other.pattern);
    match others.iter().find(overlaps) {
        Some(other) => Err(Problem::new(format!(
            "a name could match this pattern and {}; change a literal segment of one of them",
            other.pattern.resource()
        ))
        .at("resource")),
        None => Ok(pattern),
    }
}

pub(super) const IDLE: Duration = Duration::from_secs(3600);
pub(super) const MIN_IDLE: Duration = Duration::from_secs(1);
pub(super) const DEFAULT_MAX: usize = 1000;
/// Each bundle has a watcher, with its polls and some 20 KiB of memory.
pub(super) const HIGHEST_MAX: usize = 100_000;
/// A name is compared with each of them.
pub(super) const MAX_PATTERNS: usize = 256;
