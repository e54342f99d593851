//! How a version is rolled out: the steps, and what must hold before the next one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Check;

/// How a version is rolled out (`rollouts.NAME`). A plan carries it as it was when the roll-out began, so
/// that a changed configuration applies to the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Strategy {
    /// Its name in the configuration.
    pub name: String,
    /// The steps, at least one. They are cumulative, and the last one has all clients.
    pub steps: Vec<Step>,
    /// The part of the clients that were offered the candidate and must have activated it.
    pub quorum: Share,
    /// Clients that must have activated the candidate in each step.
    pub min_clients: u32,
    /// Failures that are tolerated.
    pub max_failures: Tolerance,
    /// The longest time of a step, without the time that it waits for an approval.
    #[serde(with = "milliseconds")]
    pub deadline: Duration,
    /// What happens when a step exceeds its deadline.
    pub on_deadline: Halt,
    /// What happens when a check fails.
    pub on_failure: Halt,
    /// What happens when the stable version is no longer trusted.
    pub on_stable_lost: OnStableLost,
    /// How an earlier stable version comes back when its tag does.
    pub rollback: Rollback,
    /// Which clients come first.
    pub order: Order,
    /// What a monitoring system must say.
    pub checks: Vec<Check>,
}

/// A step: the clients that get the candidate. A client is in it if one of the first four says so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Step {
    /// Globs over the names of configured clients, whose credentials requests have.
    pub clients: Vec<String>,
    /// Globs over the names in the identity header.
    pub ids: Vec<String>,
    /// The part of all clients.
    pub share: Share,
    /// The number of clients, for a fleet in which `share` is less than one.
    pub at_least: u32,
    /// How long the step is observed at least.
    #[serde(with = "milliseconds")]
    pub soak: Duration,
    /// Whether a person has to promote it to the next step.
    pub approve: bool,
}

/// A part of a whole, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u16);

/// How many failures are tolerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// This number of clients.
    Clients(u32),
    /// This part of the clients that were offered the candidate.
    Share(Share),
}

/// What ends a roll-out that does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Halt {
    /// It waits for an operator.
    Pause,
    /// All clients go back to the stable version.
    RollBack,
}

/// What happens when the stable version is no longer trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStableLost {
    /// All clients get the candidate.
    Promote,
    /// The bundle is withdrawn, for the clients that run the candidate as well.
    Withdraw,
}

/// How an earlier stable version comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rollback {
    /// All clients get it at once.
    Immediate,
    /// In steps, as a new version.
    Staged,
}

/// Which clients come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The same ones for each version.
    Fixed,
    /// Others for each version.
    ByVersion,
}

impl Share {
    /// All.
    pub const ALL: Self = Self(10_000);

    /// From a percentage, rounded to hundredths; `None` below 0 and above 100.
    pub fn from_percent(percent: f64) -> Option<Self> {
        let is_valid = (0.0..=100.0).contains(&percent);
        is_valid.then(|| Self((percent * 100.0).round() as u16))
    }

    /// As a percentage.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// The smallest number that is at least this part of `count`.
    pub fn of(self, count: u64) -> u64 {
        count.saturating_mul(self.0.into()).div_ceil(10_000)
    }

    /// The largest number that is at most this part of `count`.
    pub fn at_most_of(self, count: u64) -> u64 {
        count.saturating_mul(self.0.into()) / 10_000
    }

    /// The hash below which this part of all hashes is.
    pub(super) fn threshold(self) -> u64 {
        match self {
            Self::ALL => u64::MAX,
            Self(part) => u64::MAX / 10_000 * u64::from(part),
        }
    }
}

impl Tolerance {
    /// Whether so many failures are too many, of so many clients that were offered the candidate.
    pub fn is_exceeded(self, failed: u64, offered: u64) -> bool {
        match self {
            Self::Clients(clients) => failed > clients.into(),
            Self::Share(share) => failed > share.at_most_of(offered),
        }
    }
}

/// Durations in milliseconds.
pub(super) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        serializer.serialize_u64(millis)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_rounds_against_the_roll_out() {
        let share = |percent| Share::from_percent(percent).unwrap();
        assert_eq!(share(90.0).of(10), 9);
        assert_eq!(share(90.0).of(11), 10);
        assert_eq!(share(1.0).at_most_of(199), 1);
        assert_eq!(share(0.01).percent(), 0.01);
        assert_eq!(Share::ALL.threshold(), u64::MAX);
        assert_eq!(share(0.0).threshold(), 0);
        for percent in [-0.1, 100.1, f64::NAN] {
            assert_eq!(Share::from_percent(percent), None);
        }
        assert!(!Tolerance::Clients(0).is_exceeded(0, 10));
        assert!(Tolerance::Clients(0).is_exceeded(1, 10));
        assert!(Tolerance::Share(share(1.0)).is_exceeded(1, 99));
        assert!(!Tolerance::Share(share(1.0)).is_exceeded(1, 100));
    }
}
