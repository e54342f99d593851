//! The history of the versions that a bundle has served, as far as it tells whether another one is
//! older. It is kept with the cache on disk, and stays when the bundle is removed.

use std::{cmp::Ordering, fmt, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::expect::OnOlder;
use crate::{
    oci::{Digest, Version},
    publish::{State, Withdrawal, WithdrawnVersion},
};

/// The maximum number of digests in a history. A digest that comes back after more than this many
/// others looks new.
const MAX_DIGESTS: usize = 64;

/// The history of one bundle under one reference.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct History {
    /// The highest position that was served so far.
    floor: Option<Position>,
    /// The digests of the images that were served, oldest first: in the order in which they came,
    /// except those that were known to be older.
    served: Vec<Digest>,
    /// The withdrawal of the last served version, while it is withdrawn.
    withdrawn: Option<WithdrawalRecord>,
    /// The tag of the last served version, where a rule chose it.
    #[serde(default)]
    tag: Option<String>,
}

/// A [`Withdrawal`] of a version that had been served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WithdrawalRecord {
    reason: String,
    #[serde(rename = "lost")]
    version: WithdrawnVersion,
}

/// The position of a version in an order. Positions in different orders can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) enum Position {
    Version(Version),
    Created(Timestamp),
    Signed(Timestamp),
}

/// A stored position that this version of the program can't read.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no position")]
pub(super) struct NotAPosition(String);

impl History {
    pub(super) fn floor(&self) -> Option<&Position> {
        self.floor.as_ref()
    }

    /// The withdrawal that outlives a restart.
    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        let WithdrawalRecord { reason, version } = self.withdrawn.as_ref()?;
        Some(Withdrawal {
            reason: reason.as_str().into(),
            version: Some(Arc::new(version.clone())),
            was_served: true,
        })
    }

    /// The tag of the last served version, where a rule chose it.
    pub(super) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The history with another tag of the last served version.
    #[must_use]
    pub(super) fn with_tag(self, tag: &str) -> Self {
        Self {
            tag: Some(tag.to_owned()),
            ..self
        }
    }

    /// Whether the bundle was never served here.
    pub(super) fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    /// Compares `digest` with the versions that were served: `Less` if it is older.
    pub(super) fn compare(&self, digest: &Digest, position: Option<&Position>) -> Ordering {
        let by_position = position
            .zip(self.floor())
            .and_then(|(position, floor)| position.partial_cmp(floor));
        match by_position {
            Some(Ordering::Equal) | None if self.was_replaced(digest) => Ordering::Less,
            Some(ordering) => ordering,
            None if self.served.last() == Some(digest) => Ordering::Equal,
            None => Ordering::Greater,
        }
    }

    /// The newest digest that was served.
    pub(super) fn newest(&self) -> Option<&Digest> {
        self.served.last()
    }

    fn was_replaced(&self, digest: &Digest) -> bool {
        self.served
            .split_last()
            .is_some_and(|(_, earlier)| earlier.contains(digest))
    }

    /// The history after `digest` has been served.
    #[must_use]
    pub(super) fn after_serving(
        &self,
        digest: &Digest,
        position: Option<Position>,
        on_older: OnOlder,
    ) -> Self {
        let compared = self.compare(digest, position.as_ref());
        let goes_back = compared.is_lt() && on_older == OnOlder::Serve;
        let mut served = self.served.clone();
        let known = served.iter().position(|known| known == digest);
        match (known, compared) {
            (Some(at), Ordering::Less) if goes_back => served.truncate(at + 1),
            (Some(at), Ordering::Greater) => {
                // After a new signature, for example, an old one is the newest.
                let digest = served.remove(at);
                served.push(digest);
            }
            (Some(_), _) => {}
            (None, Ordering::Less) if !goes_back => served.insert(0, digest.clone()),
            (None, _) => served.push(digest.clone()),
        }
        let excess = served.len().saturating_sub(MAX_DIGESTS);
        served.drain(..excess);
        let floor = match (position, &self.floor) {
            (None, floor) => floor.clone(),
            (Some(position), Some(floor)) if position < *floor && !goes_back => Some(floor.clone()),
            (Some(position), _) => Some(position),
        };
        Self {
            floor,
            served,
            withdrawn: None,
            tag: self.tag.clone(),
        }
    }

    /// The history after a change of state. It records only the withdrawal of a version that was
    /// served: no client misses a bundle that was never served, after a restart either.
    #[must_use]
    pub(super) fn after_showing(&self, state: &State) -> Self {
        let State::Withdrawn(Withdrawal {
            reason,
            version: Some(version),
            ..
        }) = state
        else {
            return self.clone();
        };
        let withdrawn = Some(WithdrawalRecord {
            reason: reason.to_string(),
            version: WithdrawnVersion::clone(version),
        });
        Self {
            withdrawn,
            ..self.clone()
        }
    }

    /// Reads the output of [`Self::to_bytes`]. A history that can't be read is dropped, with an
    /// entry in the log: a damaged cache is no reason not to serve.
    pub(super) fn from_bytes(bundle: &str, bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|error| {
            tracing::error!(bundle, %error, "the history of the versions served can't be read; `expect` has only `minimum`");
            Self::default()
        })
    }

    /// The history as it is stored.
    pub(super) fn to_bytes(&self) -> Bytes {
        // Encoding can't fail, because every part is a string.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Version(one), Self::Version(other)) => Some(one.cmp(other)),
            (Self::Created(one), Self::Created(other))
            | (Self::Signed(one), Self::Signed(other)) => Some(one.cmp(other)),
            (Self::Version(_) | Self::Created(_) | Self::Signed(_), _) => None,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::Created(time) => write!(f, "created {time}"),
            Self::Signed(time) => write!(f, "signed {time}"),
        }
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = NotAPosition;

    fn try_from(text: String) -> Result<Self, NotAPosition> {
        let parsed = text.split_once(' ').and_then(|(kind, value)| match kind {
            "version" => value.parse().ok().map(Self::Version),
            "created" => value.parse().ok().map(Self::Created),
            "signed" => value.parse().ok().map(Self::Signed),
            _ => None,
        });
        parsed.ok_or(NotAPosition(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::publish::snapshot;

    fn digest(number: u8) -> Digest {
        Digest::sha256(&[number])
    }

    fn version(text: &str) -> Option<Position> {
        Some(Position::Version(text.parse().unwrap()))
    }

    fn serving(digests: &[u8]) -> History {
        let mut history = History::default();
        for number in digests {
            history = history.after_serving(&digest(*number), None, OnOlder::Alarm);
        }
        history
    }

    #[test]
    fn without_an_order_a_digest_is_older_once_another_has_replaced_it() {
        let history = serving(&[1, 2]);
        for (number, compared) in [
            (1, Ordering::Less),
            (2, Ordering::Equal),
            (3, Ordering::Greater),
        ] {
            assert_eq!(history.compare(&digest(number), None), compared, "{number}");
        }
        // It stays older while it is served, and the newest is no news.
        let back = history.after_serving(&digest(1), None, OnOlder::Alarm);
        assert_eq!(back.compare(&digest(1), None), Ordering::Less);
        assert_eq!(back.compare(&digest(2), None), Ordering::Equal);
    }

    #[test]
    fn a_deliberate_rollback_starts_the_order_over_from_there() {
        let back = serving(&[1, 2, 3]).after_serving(&digest(1), None, OnOlder::Serve);
        assert_eq!(back, serving(&[1]));
        let versions = History::default()
            .after_serving(&digest(1), version("1.0.0"), OnOlder::Serve)
            .after_serving(&digest(2), version("2.0.0"), OnOlder::Serve);
        let back = versions.after_serving(&digest(1), version("1.0.0"), OnOlder::Serve);
        assert_eq!(back.floor(), version("1.0.0").as_ref());
        assert_eq!(
            back.compare(&digest(2), version("2.0.0").as_ref()),
            Ordering::Greater
        );
    }

    #[test]
    fn positions_decide_and_digests_only_between_equals() {
        let history = History::default()
            .after_serving(&digest(1), version("1.0.0"), OnOlder::Alarm)
            .after_serving(&digest(2), version("1.0.0"), OnOlder::Alarm);
        for (number, position, compared) in [
            (1, version("1.0.0"), Ordering::Less),
            (2, version("1.0.0"), Ordering::Equal),
            (3, version("1.0.0"), Ordering::Equal),
            (3, version("0.9.0"), Ordering::Less),
            (1, version("1.1.0"), Ordering::Greater),
        ] {
            assert_eq!(
                history.compare(&digest(number), position.as_ref()),
                compared,
                "{number} {position:?}"
            );
        }
        // Another order has no floor yet, but the digests are still known.
        let created = Some(Position::Created(Timestamp::UNIX_EPOCH));
        assert_eq!(
            history.compare(&digest(1), created.as_ref()),
            Ordering::Less
        );
        assert_eq!(
            history.compare(&digest(3), created.as_ref()),
            Ordering::Greater
        );
        let switched = history.after_serving(&digest(3), created.clone(), OnOlder::Alarm);
        assert_eq!(switched.floor(), created.as_ref());
    }

    #[test]
    fn an_old_version_that_was_never_served_does_not_make_the_newest_look_old() {
        let history = History::default()
            .after_serving(&digest(2), version("2.0.0"), OnOlder::Alarm)
            .after_serving(&digest(1), version("1.0.0"), OnOlder::Alarm);
        assert_eq!(history.floor(), version("2.0.0").as_ref());
        assert_eq!(
            history.compare(&digest(2), version("2.0.0").as_ref()),
            Ordering::Equal
        );
    }

    #[test]
    fn it_holds_so_many_digests_and_no_more() {
        let history = serving(&(0..=100).collect::<Vec<_>>());
        assert_eq!(history.served.len(), MAX_DIGESTS);
        assert_eq!(history.compare(&digest(100 - 63), None), Ordering::Less);
        assert_eq!(
            history.compare(&digest(0), None),
            Ordering::Greater,
            "forgotten"
        );
        assert!(history.to_bytes().len() < 8 << 10);
    }

    #[test]
    fn a_withdrawal_is_kept_until_a_version_is_served_and_only_if_one_was_served() {
        let withdrawal = Withdrawal {
            reason: "revoked".into(),
            version: Some(WithdrawnVersion::of(&snapshot(1)).into()),
            was_served: true,
        };
        let history = serving(&[1]).after_showing(&State::Withdrawn(withdrawal.clone()));
        let read = History::from_bytes("authz", &history.to_bytes());
        assert_eq!(read.withdrawal(), Some(withdrawal));
        assert_eq!(
            read.after_serving(&digest(1), None, OnOlder::Alarm)
                .withdrawal(),
            None
        );
        let never = Withdrawal {
            reason: "no signature".into(),
            version: None,
            was_served: false,
        };
        assert_eq!(
            serving(&[1]).after_showing(&State::Withdrawn(never)),
            serving(&[1])
        );
    }

    #[test]
    fn the_tag_is_kept_by_what_follows_and_a_history_without_one_can_be_read() {
        let history = serving(&[1]).with_tag("1.4.0");
        let read = History::from_bytes("authz", &history.to_bytes());
        assert_eq!(read.tag(), Some("1.4.0"));
        let again = read.after_serving(&digest(1), None, OnOlder::Alarm);
        assert_eq!(again.tag(), Some("1.4.0"));
        let earlier = br#"{"floor":null,"served":[],"withdrawn":null}"#;
        assert_eq!(History::from_bytes("authz", earlier), History::default());
    }

    #[test]
    fn a_damaged_history_is_dropped_and_nothing_else() {
        for text in [
            "",
            "{}",
            "[1]",
            r#"{"floor":"version x","served":[],"withdrawn":null}"#,
        ] {
            assert_eq!(
                History::from_bytes("authz", text.as_bytes()),
                History::default(),
                "{text}"
            );
        }
    }

    fn position() -> impl Strategy<Value = Option<Position>> {
        let version =
            (0..3_u8, 0..3_u8).prop_map(|(major, minor)| version(&format!("{major}.{minor}.0")));
        prop_oneof![4 => version, 1 => Just(None)]
    }

    fn steps() -> impl Strategy<Value = Vec<(u8, Option<Position>, bool)>> {
        vec((0..6_u8, position(), any::<bool>()), 0..40)
    }

    proptest! {
        #[test]
        fn a_floor_never_goes_down_by_itself(steps in steps(), refuse in any::<bool>()) {
            let on_older = if refuse { OnOlder::Refuse } else { OnOlder::Alarm };
            let mut history = History::default();
            for (number, position, restart) in steps {
                let floor = history.floor().cloned();
                if refuse && history.compare(&digest(number), position.as_ref()).is_lt() {
                    continue;
                }
                history = history.after_serving(&digest(number), position, on_older);
                if restart {
                    history = History::from_bytes("authz", &history.to_bytes());
                }
                if let Some(floor) = floor {
                    prop_assert!(history.floor().is_some_and(|after| *after >= floor));
                }
            }
        }

        #[test]
        fn a_served_version_is_never_newer_and_older_only_if_it_was_when_it_came(steps in steps()) {
            let mut history = History::default();
            for (number, position, _) in steps {
                let before = history.compare(&digest(number), position.as_ref());
                history = history.after_serving(&digest(number), position.clone(), OnOlder::Alarm);
                let after = history.compare(&digest(number), position.as_ref());
                prop_assert!(after.is_le());
                prop_assert_eq!(before.is_lt(), after.is_lt());
            }
        }

        #[test]
        fn served_digests_are_distinct_and_bounded(steps in steps(), serve in any::<bool>()) {
            let on_older = if serve { OnOlder::Serve } else { OnOlder::Alarm };
            let mut history = History::default();
            for (number, position, _) in steps {
                history = history.after_serving(&digest(number), position, on_older);
                let distinct: std::collections::HashSet<_> = history.served.iter().collect();
                prop_assert_eq!(distinct.len(), history.served.len());
                prop_assert!(history.served.len() <= MAX_DIGESTS && history.served.contains(&digest(number)));
            }
        }
    }
}
