//! Checks: what a monitoring system must say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Millis, QueryTemplate, strategy::milliseconds};

/// A query whose result must be in a range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// The query.
    pub query: QueryTemplate,
    /// The smallest value in the range.
    pub min: Option<f64>,
    /// The largest value in the range.
    pub max: Option<f64>,
    /// The time between two evaluations.
    #[serde(with = "milliseconds")]
    pub every: Duration,
    /// Failures in a row after which the check has failed.
    pub failures: u32,
    /// What a result without a number means.
    pub no_data: NoData,
}

/// What a result without a number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoData {
    /// Nothing.
    Inconclusive,
    /// The check passes.
    Pass,
    /// The check fails.
    Fail,
}

/// What the leader counts of a check.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CheckState {
    last_at: Millis,
}

impl CheckState {
    /// Whether it passed when it was last evaluated.
    pub fn is_in_range(&self) -> bool {
        self.last_at > 0
    }

    /// Whether it has failed as often in a row as it may.
    pub fn has_failed(&self, _: &Check) -> bool {
        false
    }

    /// Its last value, in words.
    pub fn last_value(&self) -> String {
        String::new()
    }
}
