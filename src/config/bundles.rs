//! `bundles`: what is served under which name.

use std::{collections::BTreeMap, time::Duration};

use super::{files::Base, keys, problem::Problem, raw, trust::Policies};
use crate::{oci::Reference, verify::TrustPolicy, watch::OnMissing};

/// One entry of `bundles`.
#[derive(Debug, Clone)]
pub struct BundleConfig {
    /// The name in the URL; may contain `/`.
    pub name: String,
    /// What is watched.
    pub reference: Reference,
    /// Whose signature it needs.
    pub trust: TrustPolicy,
    /// How often the registry is asked.
    pub poll: Duration,
    /// How old a check may be that contradicts a client.
    pub confirm_within: Duration,
    /// What to do when the reference points at nothing any more.
    pub on_missing: OnMissing,
    /// How long to serve without one successful check.
    pub max_stale: Option<Duration>,
}

/// Reads all of `bundles`.
pub(super) fn read(
    raw: BTreeMap<String, raw::Bundle>,
    policies: &Policies,
    base: Base<'_>,
) -> Result<Vec<BundleConfig>, Problem> {
    unambiguous(raw.keys())?;
    raw.into_iter()
        .map(|(name, raw)| {
            check_name(&name)
                .and_then(|()| bundle(name.clone(), &raw, policies, base))
                .map_err(|problem| problem.at(&name))
        })
        .collect()
}

fn bundle(name: String, raw: &raw::Bundle, policies: &Policies, base: Base<'_>) -> Result<BundleConfig, Problem> {
    let reference: Reference =
        raw.reference.parse().map_err(|error| Problem::new(format!("{error}")).at("reference"))?;
    let reference = reference.relative_to(base.folder());
    let trust = match &raw.trust {
        Some(policy) => policies.named(policy),
        None => policies.matching(reference.repository()),
    };
    let poll = raw.poll.map_or(Ok(POLL), |time| time.at_least(LEAST, "30s")).map_err(|problem| problem.at("poll"))?;
    let confirm_within = raw.confirm_within.map_or(Ok(CONFIRM_WITHIN), |time| time.at_least(LEAST, "2s"));
    // A shorter time would withdraw a healthy bundle between two polls, or while the second
    // one takes its time.
    let max_stale = raw.max_stale.map(|time| time.at_least(poll.saturating_mul(2), "24h")).transpose();
    Ok(BundleConfig {
        name,
        trust: trust.map_err(|problem| problem.at("trust"))?,
        reference,
        poll,
        confirm_within: confirm_within.map_err(|problem| problem.at("confirm_within"))?,
        on_missing: on_missing(raw.on_missing.as_deref()).map_err(|problem| problem.at("on_missing"))?,
        max_stale: max_stale.map_err(|problem| problem.at("max_stale"))?,
    })
}

fn on_missing(word: Option<&str>) -> Result<OnMissing, Problem> {
    match word {
        None | Some("keep") => Ok(OnMissing::Keep),
        Some("withdraw") => Ok(OnMissing::Withdraw),
        Some(other) => {
            let suggestion = keys::suggestion(other, ["keep", "withdraw"].into_iter());
            Err(Problem::new(format!("{other:?} is neither `keep` nor `withdraw`; {suggestion}")))
        }
    }
}

/// A name that survives every URL library on the way: those fold `.`, `..` and `//`.
fn check_name(name: &str) -> Result<(), Problem> {
    let refused = |what: &str| Err(Problem::new(format!("{what}; write a name such as authz/main")));
    if name.is_empty() {
        return refused("a bundle's name is not empty");
    }
    if name.chars().any(char::is_control) {
        return refused("a bundle's name has no control characters");
    }
    if name.split('/').any(str::is_empty) {
        return refused("a bundle's name has no slash at either end and no empty segment");
    }
    if name.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refused("a bundle's name has no segment `.` or `..`");
    }
    Ok(())
}

/// Every bundle answers on three paths; no path may mean two bundles.
fn unambiguous<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for name in names {
        for path in [format!("/bundles/{name}"), format!("/bundle/{name}"), format!("/{name}")] {
            if let Some(other) = owners.insert(path.clone(), name) {
                let sentence = format!("the path {path} could mean this bundle or {other}; rename one of them");
                return Err(Problem::new(sentence).at(name));
            }
        }
    }
    Ok(())
}

const POLL: Duration = Duration::from_secs(30);
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
const LEAST: Duration = Duration::from_millis(100);
