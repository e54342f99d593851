//! `bundles`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{
    delta, expect,
    files::Base,
    keys,
    limits::Limits,
    opa_check::{self, PartialOptions},
    opa_signature,
    problem::Problem,
    raw,
    rollouts::{self, RolloutChoice, Strategies},
    tag_rule,
    trust::Policies,
    values,
};
use crate::{
    oci::{Platform, Reference},
    opa_check::Options,
    publish::{OnMissing, OnWithdraw},
    verify::TrustPolicy,
    watch::{ArtifactOptions, DeltaOptions, Expect},
};

/// One entry of `bundles`.
#[derive(Debug, Clone)]
pub struct BundleConfig {
    /// The name in the URL; may contain `/`.
    pub name: String,
    /// The watched reference. With `semver` or `filter_tags` it has a rule that chooses the tag.
    pub reference: Reference,
    /// Whether the registry is not checked: what is served stays.
    pub suspend: bool,
    /// How the artifact is read, and how OPA's own signature is verified and written.
    pub artifact: ArtifactOptions,
    /// The trust policy.
    pub trust: TrustPolicy,
    /// The poll interval of the registry.
    pub poll: Duration,
    /// The maximum age of the registry check on which an answer to a client with another version is
    /// based.
    pub confirm_within: Duration,
    /// The reaction to a reference that no longer exists.
    pub on_missing: OnMissing,
    /// The maximum time without a successful check before the bundle is withdrawn.
    pub max_stale: Option<Duration>,
    /// The expectations in addition to the trust policy.
    pub expect: Expect,
    /// The fallback that is served while the bundle is withdrawn.
    pub on_withdraw: Option<OnWithdraw>,
    /// The options of the check by `opa` before the bundle is published; `None` disables the check.
    pub opa_check: Option<Options>,
    /// The size limits, which are those of all bundles.
    pub limits: Limits,
    /// How a new version reaches the clients.
    pub rollout: RolloutChoice,
    /// Which deltas are computed; `None` for no deltas.
    pub delta: Option<DeltaOptions>,
}

/// The keys at the top level that apply to every bundle.
#[derive(Debug)]
pub(super) struct Defaults {
    /// `opa_check`; `None` disables the check.
    pub(super) opa_check: Option<PartialOptions>,
    pub(super) limits: Limits,
    /// `rollouts`, by name.
    pub(super) rollouts: Strategies,
}

/// Reads all of `bundles`.
pub(super) fn read(
    raw: BTreeMap<String, raw::Bundle>,
    policies: &Policies,
    defaults: &Defaults,
    base: Base<'_>,
) -> Result<Vec<BundleConfig>, Problem> {
    unambiguous(raw.keys())?;
    let mut bundles = Vec::new();
    for (name, raw) in raw {
        let bundle =
            check_name(&name).and_then(|()| bundle(name.clone(), raw, policies, defaults, base));
        bundles.push(bundle.map_err(|problem| problem.at(&name))?);
    }
    let by_name: HashMap<&str, &BundleConfig> = bundles
        .iter()
        .map(|bundle| (bundle.name.as_str(), bundle))
        .collect();
    for bundle in &bundles {
        check_fallback(bundle, &by_name)
            .map_err(|problem| problem.at("fallback").at("on_withdraw").at(&bundle.name))?;
    }
    Ok(bundles)
}

/// Reads one entry of `bundles`, whose name has been checked.
pub(super) fn bundle(
    name: String,
    raw: raw::Bundle,
    policies: &Policies,
    defaults: &Defaults,
    base: Base<'_>,
) -> Result<BundleConfig, Problem> {
    let reference = tag_rule::reference(&raw)?.relative_to(base.folder());
    let trust = match &raw.trust {
        Some(policy) => policies.named(policy),
        None => policies.matching(reference.repository()),
    };
    let poll = raw
        .poll
        .map_or(Ok(POLL), |time| time.at_least(MIN_INTERVAL, "30s"))
        .map_err(|problem| problem.at("poll"))?;
    let confirm_within = raw
        .confirm_within
        .map_or(Ok(CONFIRM_WITHIN), |time| time.at_least(MIN_INTERVAL, "2s"));
    // A shorter time could withdraw a healthy bundle between two polls, or during a slow second
    // poll.
    let max_stale = raw
        .max_stale
        .map(|time| time.at_least(poll.saturating_mul(2), "24h"))
        .transpose();
    let trust = trust.map_err(|problem| problem.at("trust"))?;
    let artifact = ArtifactOptions {
        platform: raw.platform.as_deref().map(platform).transpose()?,
        data_root: raw.data_root.map(data_root).transpose()?,
        ..ArtifactOptions::default()
    };
    let delta = delta::read(raw.delta).map_err(|problem| problem.at("delta"))?;
    let opa_keys = opa_signature::Keys {
        has_delta: delta.is_some(),
        resign: raw.resign,
        opa_signature: raw.opa_signature,
        opa_keys: raw.opa_keys,
    };
    let artifact = opa_signature::read(opa_keys, artifact, base)?;
    Ok(BundleConfig {
        name,
        artifact,
        expect: expect::read(raw.expect, &trust).map_err(|problem| problem.at("expect"))?,
        trust,
        reference,
        suspend: raw.suspend.unwrap_or(false),
        poll,
        confirm_within: confirm_within.map_err(|problem| problem.at("confirm_within"))?,
        on_missing: on_missing(raw.on_missing.as_deref())
            .map_err(|problem| problem.at("on_missing"))?,
        max_stale: max_stale.map_err(|problem| problem.at("max_stale"))?,
        on_withdraw: raw.on_withdraw.map(|raw| OnWithdraw {
            fallback: raw.fallback,
        }),
        opa_check: opa_check::of_bundle(raw.opa_check, defaults.opa_check.as_ref(), base)
            .map_err(|problem| problem.at("opa_check"))?,
        limits: defaults.limits,
        rollout: rollouts::choice(raw.rollout.as_deref(), &defaults.rollouts)
            .map_err(|problem| problem.at("rollout"))?,
        delta,
    })
}

fn platform(text: &str) -> Result<Platform, Problem> {
    text.parse()
        .map_err(|error| Problem::new(format!("{text:?} is {error}")).at("platform"))
}

/// Checks a folder within an artifact; the empty text is its top.
fn data_root(text: String) -> Result<String, Problem> {
    let leads_out = text.split(['/', '\\']).any(|part| part == "..");
    if leads_out || text.chars().any(char::is_control) {
        let message =
            format!("{text:?} is no folder within the artifact; write one such as policy");
        return Err(Problem::new(message).at("data_root"));
    }
    Ok(text)
}

fn on_missing(word: Option<&str>) -> Result<OnMissing, Problem> {
    word.map_or(Ok(OnMissing::Keep), |word| values::word(word, &ON_MISSING))
}

/// Checks that the fallback exists and has no fallback itself, which excludes chains and loops.
fn check_fallback(
    bundle: &BundleConfig,
    all: &HashMap<&str, &BundleConfig>,
) -> Result<(), Problem> {
    let Some(OnWithdraw { fallback }) = &bundle.on_withdraw else {
        return Ok(());
    };
    if *fallback == bundle.name {
        return Err(Problem::new(
            "a bundle can't be its own fallback; name another bundle",
        ));
    }
    let Some(found) = all.get(fallback.as_str()) else {
        let mut names: Vec<&str> = all.keys().copied().collect();
        names.sort_unstable();
        let suggestion = keys::suggestion(fallback, names.into_iter());
        return Err(Problem::new(format!(
            "bundles has no {fallback:?}; {suggestion}"
        )));
    };
    match &found.on_withdraw {
        Some(next) => Err(Problem::new(format!(
            "{fallback} has a fallback of its own ({}); name that one, or remove its `on_withdraw`",
            next.fallback
        ))),
        None => Ok(()),
    }
}

/// Checks a bundle name. URL libraries normalise `.`, `..` and `//`, so names can't have them.
fn check_name(name: &str) -> Result<(), Problem> {
    let refused = |what: &str| {
        Err(Problem::new(format!(
            "{what}; write a name such as authz/main"
        )))
    };
    if name.is_empty() {
        return refused("a bundle name must not be empty");
    }
    if name.chars().any(char::is_control) {
        return refused("a bundle name must not have control characters");
    }
    if name.split('/').any(str::is_empty) {
        return refused(
            "a bundle name must not begin or end with a slash or have an empty segment",
        );
    }
    if name.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refused("a bundle name must not have a segment `.` or `..`");
    }
    Ok(())
}

/// Checks that no path stands for two bundles: each bundle is served on three paths.
fn unambiguous<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for name in names {
        for path in [
            format!("/bundles/{name}"),
            format!("/bundle/{name}"),
            format!("/{name}"),
        ] {
            if let Some(other) = owners.insert(path.clone(), name) {
                let message = format!(
                    "the path {path} could mean this bundle or {other}; rename one of them"
                );
                return Err(Problem::new(message).at(name));
            }
        }
    }
    Ok(())
}

/// The words of `on_missing`; the first is the default.
pub(super) const ON_MISSING: [(&str, OnMissing); 2] =
    [("keep", OnMissing::Keep), ("withdraw", OnMissing::Withdraw)];
pub(super) const POLL: Duration = Duration::from_secs(30);
pub(super) const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);
