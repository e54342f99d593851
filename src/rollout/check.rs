//! A check: a query whose result decides whether a roll-out goes on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{QueryTemplate, strategy::milliseconds};
use crate::{
    fleet::Millis,
    telemetry::{cut, is_hidden},
};

/// The maximum size of the reason of an inconclusive evaluation, in bytes.
const MAX_REASON_BYTES: usize = 1 << 10;

/// A query that is evaluated during each step of a roll-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The name, unique within the roll-out.
    pub name: String,
    /// The query.
    pub query: QueryTemplate,
    /// The smallest value in range; `None` for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The largest value in range; `None` for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The time between two evaluations; in JSON in milliseconds, as `every_ms`.
    #[serde(rename = "every_ms", with = "milliseconds")]
    pub every: Duration,
    /// The number of failures in a row with which the check has failed, at least 1.
    pub failures: u32,
    /// What a result without data means.
    pub no_data: NoData,
}

/// What a result without data means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoData {
    /// Neither a success nor a failure.
    #[default]
    Inconclusive,
    /// As a value in range.
    Pass,
    /// As a value out of range.
    Fail,
}

/// The result of a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// A finite number: a scalar, or a vector of one series.
    Number(f64),
    /// An empty vector, or NaN.
    NoData,
    /// Nothing that can be compared, and why: several series, an infinite number, another type.
    Ambiguous(String),
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The value is in range.
    Passed {
        /// The value; `None` without data.
        value: Option<f64>,
    },
    /// The value is out of range.
    Failed {
        /// The value; `None` without data.
        value: Option<f64>,
    },
    /// The roll-out neither goes on nor back.
    Inconclusive {
        /// Why, at most 1 KiB, in one line.
        reason: String,
    },
}

/// The evaluations of a check so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckState {
    /// The number of failures since the last success.
    pub consecutive_failures: u32,
    /// The result of the last evaluation.
    pub last: Option<Outcome>,
    /// When the last evaluation ended.
    pub last_at: Option<Millis>,
}

impl Check {
    /// The time between two evaluations where the configuration names none.
    pub const DEFAULT_EVERY: Duration = Duration::from_secs(60);

    /// What the result of the query means; an error is its text.
    pub fn outcome(&self, result: &Result<Sample, String>) -> Outcome {
        match result {
            Ok(Sample::Number(value)) => self.compare(*value),
            Ok(Sample::NoData) => match self.no_data {
                NoData::Pass => Outcome::Passed { value: None },
                NoData::Fail => Outcome::Failed { value: None },
                NoData::Inconclusive => Outcome::inconclusive("no data"),
            },
            Ok(Sample::Ambiguous(reason)) | Err(reason) => Outcome::inconclusive(reason),
        }
    }

    fn compare(&self, value: f64) -> Outcome {
        if !value.is_finite() {
            return Outcome::inconclusive(&format!("{value} is not a finite number"));
        }
        let is_in_range =
            self.min.is_none_or(|min| value >= min) && self.max.is_none_or(|max| value <= max);
        let value = Some(value);
        match is_in_range {
            true => Outcome::Passed { value },
            false => Outcome::Failed { value },
        }
    }
}

impl Outcome {
    /// The outcome as a label of a metric.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Passed { .. } => "passed",
            Self::Failed { .. } => "failed",
            Self::Inconclusive { .. } => "inconclusive",
        }
    }

    fn inconclusive(reason: &str) -> Self {
        let visible = |char| if is_hidden(char) { ' ' } else { char };
        let reason = cut(reason, MAX_REASON_BYTES).chars().map(visible).collect();
        Self::Inconclusive { reason }
    }
}

impl CheckState {
    /// Records an evaluation. One that is inconclusive leaves the failures in a row as they are.
    pub fn record(&mut self, outcome: Outcome, now: Millis) {
        self.consecutive_failures = match outcome {
            Outcome::Passed { .. } => 0,
            Outcome::Failed { .. } => self.consecutive_failures.saturating_add(1),
            Outcome::Inconclusive { .. } => self.consecutive_failures,
        };
        self.last = Some(outcome);
        self.last_at = Some(now);
    }

    /// Whether the check should be evaluated now.
    pub fn is_due(&self, check: &Check, now: Millis) -> bool {
        // A clock that was set back by more than the interval delays nothing.
        self.last_at
            .is_none_or(|last| Duration::from_millis(now.abs_diff(last)) >= check.every)
    }

    /// Whether the number of failures in a row is reached.
    pub fn has_failed(&self, check: &Check) -> bool {
        self.consecutive_failures >= check.failures.max(1)
    }

    /// The last value, in words.
    pub fn last_value(&self) -> String {
        match &self.last {
            Some(
                Outcome::Passed { value: Some(value) } | Outcome::Failed { value: Some(value) },
            ) => value.to_string(),
            Some(Outcome::Inconclusive { reason }) => reason.clone(),
            Some(_) => "no data".to_owned(),
            None => "not evaluated".to_owned(),
        }
    }

    /// Whether the last evaluation found the value in range.
    pub fn is_in_range(&self) -> bool {
        matches!(self.last, Some(Outcome::Passed { .. }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(min: Option<f64>, max: Option<f64>) -> Check {
        Check {
            name: "denials".to_owned(),
            query: QueryTemplate::parse("vector(1)").unwrap(),
            min,
            max,
            every: Check::DEFAULT_EVERY,
            failures: 2,
            no_data: NoData::Inconclusive,
        }
    }

    fn passed(value: impl Into<Option<f64>>) -> Outcome {
        let value = value.into();
        Outcome::Passed { value }
    }

    fn failed(value: impl Into<Option<f64>>) -> Outcome {
        let value = value.into();
        Outcome::Failed { value }
    }

    fn inconclusive(reason: &str) -> Outcome {
        let reason = reason.to_owned();
        Outcome::Inconclusive { reason }
    }

    #[test]
    fn a_number_is_compared_with_both_limits() {
        for (min, max, value, outcome) in [
            (None, Some(0.0), 0.0, passed(0.0)),
            (None, Some(0.0), -0.0, passed(-0.0)),
            (None, Some(0.0), 1e-9, failed(1e-9)),
            (Some(1.0), None, 1.0, passed(1.0)),
            (Some(1.0), None, 0.9, failed(0.9)),
            (Some(1.0), Some(2.0), 2.0, passed(2.0)),
            (Some(1.0), Some(2.0), 2.1, failed(2.1)),
            (Some(1.0), Some(2.0), -1.5, failed(-1.5)),
            (
                None,
                Some(1.0),
                f64::NAN,
                inconclusive("NaN is not a finite number"),
            ),
            (
                None,
                Some(1.0),
                f64::NEG_INFINITY,
                inconclusive("-inf is not a finite number"),
            ),
        ] {
            let result = check(min, max).outcome(&Ok(Sample::Number(value)));
            assert_eq!(result, outcome, "{min:?} {max:?} {value}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_inconclusive_unless_the_check_says_otherwise() {
        let mut check = check(None, Some(0.0));
        for (no_data, outcome) in [
            (NoData::Inconclusive, inconclusive("no data")),
            (NoData::Pass, passed(None)),
            (NoData::Fail, failed(None)),
        ] {
            check.no_data = no_data;
            assert_eq!(check.outcome(&Ok(Sample::NoData)), outcome);
            let several = Sample::Ambiguous("2 series".to_owned());
            assert_eq!(check.outcome(&Ok(several)), inconclusive("2 series"));
            let error = Err("no\nanswer\u{202e}".to_owned());
            assert_eq!(check.outcome(&error), inconclusive("no answer "));
        }
        let Outcome::Inconclusive { reason } = check.outcome(&Err("x".repeat(1 << 20))) else {
            panic!("an error is inconclusive");
        };
        assert_eq!(reason.len(), MAX_REASON_BYTES);
    }

    #[test]
    fn failures_in_a_row_are_counted_and_inconclusive_ones_do_not_interrupt_them() {
        let check = check(None, Some(0.0));
        let mut state = CheckState::default();
        assert!(!state.has_failed(&check) && !state.is_in_range());
        for (outcome, has_failed, is_in_range) in [
            (inconclusive("a"), false, false),
            (failed(1.0), false, false),
            (passed(0.0), false, true),
            (failed(1.0), false, false),
            (inconclusive("b"), false, false),
            (failed(None), true, false),
            (inconclusive("c"), true, false),
            (passed(None), false, true),
            (inconclusive("d"), false, false),
        ] {
            state.record(outcome.clone(), 7);
            assert_eq!(state.has_failed(&check), has_failed, "{outcome:?}");
            assert_eq!(state.is_in_range(), is_in_range, "{outcome:?}");
            assert_eq!(state.last, Some(outcome));
        }
    }

    #[test]
    fn a_check_without_failures_has_not_failed() {
        let mut check = check(None, Some(0.0));
        check.failures = 0;
        assert!(!CheckState::default().has_failed(&check));
    }

    #[test]
    fn a_check_is_due_after_its_interval_whatever_the_clock_does() {
        let check = check(None, Some(0.0));
        let mut state = CheckState::default();
        assert!(state.is_due(&check, 0));
        state.record(passed(0.0), 1_000_000);
        for (now, is_due) in [
            (1_000_000, false),
            (1_059_999, false),
            (1_060_000, true),
            (2_000_000, true),
            (999_999, false),
            (940_000, true),
            (0, true),
            (u64::MAX, true),
        ] {
            assert_eq!(state.is_due(&check, now), is_due, "{now}");
        }
    }

    #[test]
    fn checks_and_states_are_json() {
        let mut check = check(None, Some(0.5));
        let json = json!({
            "name": "denials", "query": "vector(1)", "max": 0.5, "every_ms": 60_000,
            "failures": 2, "no_data": "inconclusive",
        });
        assert_eq!(serde_json::to_value(&check).unwrap(), json);
        assert_eq!(serde_json::from_value::<Check>(json).unwrap(), check);
        check.min = Some(-1.0);
        let json = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<Check>(&json).unwrap(), check);

        for (outcome, json) in [
            (passed(0.25), json!({ "outcome": "passed", "value": 0.25 })),
            (failed(None), json!({ "outcome": "failed", "value": null })),
            (
                inconclusive("no data"),
                json!({ "outcome": "inconclusive", "reason": "no data" }),
            ),
        ] {
            assert_eq!(outcome.label(), json["outcome"]);
            let mut state = CheckState::default();
            state.record(outcome, 7);
            let shown = serde_json::to_value(&state).unwrap();
            assert_eq!(shown["last"], json);
            assert_eq!(serde_json::from_value::<CheckState>(shown).unwrap(), state);
        }
    }
}
