//! `rollouts` and `prometheus` as written.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{
    prometheus, rollouts, schema,
    values::{Failures, Percent, Period},
};

/// How a new version reaches the clients: the steps, and what must hold before the next one. A roll-out
/// keeps the strategy with which it began; a change applies to the next one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Rollout {
    /// The steps, each with more clients than the one before. A step with all clients is added after the
    /// last one if that has fewer; its soak is three polls.
    #[schemars(length(min = 1, max = rollouts::MAX_STEPS))]
    pub(in crate::config) steps: Vec<RolloutStep>,
    /// The part of the clients that were offered the version and have to activate it in each step.
    #[schemars(extend("default" = rollouts::QUORUM))]
    pub(in crate::config) quorum: Option<Percent>,
    /// The number of clients that have to activate it in each step.
    #[schemars(
        range(max = rollouts::MAX_CLIENTS),
        extend("default" = rollouts::MIN_CLIENTS),
    )]
    pub(in crate::config) min_clients: Option<u64>,
    /// The clients that may fail to activate it, as a number or as a part of those that were offered it
    /// (`1%`). One more rolls it back.
    #[schemars(extend("default" = rollouts::MAX_FAILURES))]
    pub(in crate::config) max_failures: Option<Failures>,
    /// The longest time of a step, longer than each soak; the time that a step waits for an approval does not
    /// count.
    #[schemars(
        transform = schema::between(rollouts::MIN_DEADLINE, Some(rollouts::MAX_DEADLINE)),
        extend("default" = schema::period(rollouts::DEADLINE)),
    )]
    pub(in crate::config) deadline: Option<Period>,
    /// What happens at the deadline.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::ON_DEADLINE),
        "default" = schema::words(&rollouts::ON_DEADLINE)[0],
    ))]
    pub(in crate::config) on_deadline: Option<String>,
    /// What happens when a check fails.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::ON_FAILURE),
        "default" = schema::words(&rollouts::ON_FAILURE)[0],
    ))]
    pub(in crate::config) on_failure: Option<String>,
    /// What happens when the stable version is no longer trusted: all clients get the new one, or the bundle
    /// is withdrawn.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::ON_STABLE_LOST),
        "default" = schema::words(&rollouts::ON_STABLE_LOST)[0],
    ))]
    pub(in crate::config) on_stable_lost: Option<String>,
    /// How an earlier stable version comes back when the tag names it again: at once, or in steps.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::ROLLBACK),
        "default" = schema::words(&rollouts::ROLLBACK)[0],
    ))]
    pub(in crate::config) rollback: Option<String>,
    /// Which clients come first: the same ones for each version, or others for each version.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::SALT),
        "default" = schema::words(&rollouts::SALT)[0],
    ))]
    pub(in crate::config) salt: Option<String>,
    /// The longest time between two polls of an OPA, `polling.max_delay_seconds` in its configuration. A soak
    /// is at least three of them.
    #[schemars(
        transform = schema::between(rollouts::MIN_POLL, Some(rollouts::MAX_POLL)),
        extend("default" = schema::period(rollouts::POLL)),
    )]
    pub(in crate::config) poll: Option<Period>,
    /// Queries of `prometheus` whose results have to be in a range.
    #[serde(default)]
    #[schemars(length(max = rollouts::MAX_CHECKS))]
    pub(in crate::config) checks: Vec<RolloutCheck>,
}

/// A step. A client is in it if one of `clients`, `ids`, `percent` and `at_least` says so, here or in a step
/// before.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = schema::rollout_step()))]
pub(in crate::config) struct RolloutStep {
    /// Globs over the names in `clients`, by whose credentials OPAs ask; `*` matches slashes as well.
    #[serde(default)]
    #[schemars(length(max = rollouts::MAX_GLOBS), inner(length(min = 1, max = rollouts::MAX_GLOB_BYTES)))]
    pub(in crate::config) clients: Vec<String>,
    /// Globs over the names in the header `fleet.identity`; `*` matches slashes as well.
    #[serde(default)]
    #[schemars(length(max = rollouts::MAX_GLOBS), inner(length(min = 1, max = rollouts::MAX_GLOB_BYTES)))]
    pub(in crate::config) ids: Vec<String>,
    /// The part of all clients, from 0.01 to 100, not below that of the step before. Absent: as in the step
    /// before.
    #[schemars(range(min = rollouts::MIN_PERCENT, max = 100))]
    pub(in crate::config) percent: Option<f64>,
    /// The number of clients at least, for a fleet in which `percent` is less than one. Absent: as in the step
    /// before.
    #[schemars(range(min = 1, max = rollouts::MAX_AT_LEAST))]
    pub(in crate::config) at_least: Option<u64>,
    /// How long the step is observed at least: three times `poll` or more. With `approve` any time, and 0s if
    /// it is absent.
    pub(in crate::config) soak: Option<Period>,
    /// Whether a person has to promote the step to the next one (`bundlegate rollout promote`).
    #[schemars(extend("default" = false))]
    pub(in crate::config) approve: Option<bool>,
}

/// A query of `prometheus` whose result has to be in a range, in each step.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{ "required": ["min"] }, { "required": ["max"] }]))]
pub(in crate::config) struct RolloutCheck {
    /// The name; unique in the strategy.
    #[schemars(regex(pattern = rollouts::CHECK_NAME))]
    pub(in crate::config) name: String,
    /// The PromQL query, whose result is one number. Variables, texts between quotes only: `{{bundle}}`,
    /// `{{stable.revision}}`, `{{stable.manifest}}`, `{{candidate.revision}}`, `{{candidate.manifest}}`,
    /// `{{step}}`, `{{percent}}`.
    #[schemars(length(min = 1, max = 4096))]
    pub(in crate::config) query: String,
    /// The smallest result in the range. Absent: any.
    pub(in crate::config) min: Option<f64>,
    /// The largest result in the range. Absent: any.
    pub(in crate::config) max: Option<f64>,
    /// The time between two queries.
    #[schemars(
        transform = schema::between(rollouts::MIN_EVERY, Some(rollouts::MAX_EVERY)),
        extend("default" = schema::period(rollouts::EVERY)),
    )]
    pub(in crate::config) every: Option<Period>,
    /// The results out of range in a row with which the check has failed.
    #[schemars(
        range(min = 1, max = rollouts::MAX_CHECK_FAILURES),
        extend("default" = rollouts::CHECK_FAILURES),
    )]
    pub(in crate::config) failures: Option<u64>,
    /// What a result without data means. An inconclusive one neither promotes nor rolls back.
    #[schemars(extend(
        "enum" = schema::words(&rollouts::NO_DATA),
        "default" = schema::words(&rollouts::NO_DATA)[0],
    ))]
    pub(in crate::config) no_data: Option<String>,
}

/// The Prometheus, or another server with its HTTP API, that answers the queries of `rollouts.NAME.checks`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "not" = { "required": ["bearer_token_file", "basic_file"] },
    "if" = { "properties": { "url": { "pattern": "^[Hh][Tt][Tt][Pp]:" } } },
    "then" = { "properties": { "ca_file": false } },
))]
pub(in crate::config) struct Prometheus {
    /// The URL; a path is the prefix of the API.
    #[schemars(regex(pattern = prometheus::URL))]
    pub(in crate::config) url: String,
    /// A file with a bearer token. It is read for each query.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) bearer_token_file: Option<PathBuf>,
    /// A file with a line `USER:PASSWORD`. It is read for each query.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) basic_file: Option<PathBuf>,
    /// PEM certificates for a `url` with https, in addition to the system's roots.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) ca_file: Option<PathBuf>,
    /// The longest time of a query, from 1s to 60s.
    #[schemars(
        transform = schema::between(prometheus::MIN_TIMEOUT, Some(prometheus::MAX_TIMEOUT)),
        extend("default" = schema::period(prometheus::TIMEOUT)),
    )]
    pub(in crate::config) timeout: Option<Period>,
}
