//! The state of a client for a bundle.

use super::{Millis, TagHash};

/// A client that was not seen for this many of its intervals may be gone.
const SILENT_INTERVALS: u64 = 3;
/// No client is silent before this time.
const MIN_SILENCE: Millis = 10 * 60 * 1000;
/// For how long a client may run another version than the served one without being behind.
const BEHIND_AFTER: Millis = 10 * 60 * 1000;
/// Complete transfers of a version after which a client that still runs another one refuses it.
const REFUSED_AFTER: u32 = 2;
/// Requests without a tag after which a client runs no version.
const NONE_AFTER: u32 = 2;

/// The state of a client for a bundle: the first of these that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientState {
    /// It can't activate the served version: its OPA reports so, or it goes on with another version
    /// although it has downloaded this one twice.
    Failing,
    /// It was not seen for three of its intervals, and for ten minutes at least.
    Silent,
    /// It has asked twice in a row without naming a version: it runs none.
    None,
    /// It runs the version that is being rolled out in steps.
    Candidate,
    /// It runs the served version.
    Current,
    /// It has run another version for ten minutes.
    Behind,
    /// It runs another version, or is not known to run one.
    Changing,
}

/// What the server would send to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The version; `None` while nothing is served.
    pub tag: Option<TagHash>,
    /// Since when it is served.
    pub since: Millis,
    /// The version that some clients get instead, where one is rolled out in steps.
    pub candidate: Option<TagHash>,
}

/// What is known of a client, as far as its state depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The version that it named last; `None` if it named none.
    pub runs: Option<TagHash>,
    /// Since when it names that version, or none.
    pub since: Millis,
    /// When it was last seen.
    pub seen: Millis,
    /// Whether one of its requests is being held.
    pub is_waiting: bool,
    /// The time between its requests.
    pub interval: Millis,
    /// Its latest requests without a tag, in a row.
    pub without_tag: u32,
    /// The version that it has downloaded, and how often, since it named another one.
    pub offered: Option<(TagHash, u32)>,
    /// When it last had downloaded that completely.
    pub offered_at: Millis,
    /// Since when its OPA reports the same error; meaningless without one.
    pub error_since: Millis,
    /// Whether its OPA has reported an error, and it has not run the served version since.
    pub has_error: bool,
    /// Whether several clients share its identity, so that its downloads say nothing about it.
    pub is_shared: bool,
}

impl ClientState {
    /// All states, in the order in which they are examined.
    pub const ALL: [Self; 7] = [
        Self::Failing,
        Self::Silent,
        Self::None,
        Self::Candidate,
        Self::Current,
        Self::Behind,
        Self::Changing,
    ];

    /// Its name for operators.
    pub fn label(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Silent => "silent",
            Self::None => "none",
            Self::Candidate => "candidate",
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Changing => "changing",
        }
    }

    /// The state with this name.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == label)
    }
}

impl Facts {
    /// Whether it was not seen for three of its intervals, and for ten minutes at least.
    pub fn is_silent(&self, now: Millis) -> bool {
        is_silent(self, now)
    }
}

/// The state of a client at a time.
pub fn state_of(facts: &Facts, expected: Expected, now: Millis) -> ClientState {
    let runs_candidate = facts.runs.is_some() && facts.runs == expected.candidate;
    let runs_expected = facts.runs.is_some() && facts.runs == expected.tag;
    let is_refusing = is_refusing(facts, expected.candidate)
        || (!runs_expected && is_refusing(facts, expected.tag));
    if facts.has_error || (!runs_candidate && is_refusing) {
        ClientState::Failing
    } else if is_silent(facts, now) {
        ClientState::Silent
    } else if facts.runs.is_none() && facts.without_tag >= NONE_AFTER {
        ClientState::None
    } else if runs_candidate {
        ClientState::Candidate
    } else if runs_expected {
        ClientState::Current
    } else if now.saturating_sub(facts.since.max(expected.since)) >= BEHIND_AFTER {
        ClientState::Behind
    } else {
        ClientState::Changing
    }
}

/// Whether a client has downloaded the served version repeatedly and goes on with another one. One that
/// names no version may be a script, which is not an OPA that fails.
fn is_refusing(facts: &Facts, expected: Option<TagHash>) -> bool {
    let is_repeated = facts
        .offered
        .is_some_and(|(tag, times)| Some(tag) == expected && times >= REFUSED_AFTER);
    is_repeated && facts.runs.is_some() && !facts.is_shared
}

fn is_silent(facts: &Facts, now: Millis) -> bool {
    let limit = MIN_SILENCE.max(facts.interval.saturating_mul(SILENT_INTERVALS));
    !facts.is_waiting && now.saturating_sub(facts.seen) >= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = 60 * 1000;
    const NOW: Millis = 1_000 * MINUTE;

    fn facts(runs: Option<&str>) -> Facts {
        Facts {
            runs: runs.map(TagHash::of),
            since: NOW - MINUTE,
            seen: NOW - MINUTE,
            is_waiting: false,
            interval: MINUTE,
            without_tag: 0,
            offered: None,
            offered_at: 0,
            error_since: 0,
            has_error: false,
            is_shared: false,
        }
    }

    fn state(change: impl FnOnce(&mut Facts)) -> ClientState {
        let mut facts = facts(Some("old"));
        change(&mut facts);
        let expected = Expected {
            tag: Some(TagHash::of("new")),
            since: NOW - 2 * MINUTE,
            candidate: None,
        };
        state_of(&facts, expected, NOW)
    }

    #[test]
    fn the_first_state_that_holds_counts() {
        use ClientState::{Behind, Changing, Current, Failing, None, Silent};
        let new = Some(TagHash::of("new"));
        let offered = |tag, times| Some((TagHash::of(tag), times));
        assert_eq!(state(|_| {}), Changing);
        assert_eq!(state(|one| one.runs = new), Current);
        assert_eq!(state(|one| one.offered = offered("new", 1)), Changing);
        assert_eq!(state(|one| one.offered = offered("new", 2)), Failing);
        assert_eq!(state(|one| one.offered = offered("another", 5)), Changing);
        let shared = |one: &mut Facts| (one.offered, one.is_shared) = (offered("new", 2), true);
        assert_eq!(state(shared), Changing);
        let activated = |one: &mut Facts| (one.offered, one.runs) = (offered("new", 2), new);
        assert_eq!(state(activated), Current);
        assert_eq!(
            state(|one| (one.has_error, one.runs) = (true, new)),
            Failing
        );
        let script = |one: &mut Facts| {
            (one.runs, one.without_tag, one.offered) = (Option::None, 5, offered("new", 5));
        };
        assert_eq!(state(script), None);
        assert_eq!(
            state(|one| (one.runs, one.without_tag) = (Option::None, 1)),
            Changing
        );
        assert_eq!(state(|one| one.seen = NOW - 10 * MINUTE), Silent);
        assert_eq!(state(|one| one.seen = NOW - 10 * MINUTE + 1), Changing);
        let slow = |one: &mut Facts| (one.seen, one.interval) = (NOW - 11 * MINUTE, 4 * MINUTE);
        assert_eq!(state(slow), Changing);
        let held = |one: &mut Facts| (one.seen, one.is_waiting) = (NOW - 60 * MINUTE, true);
        assert_eq!(state(held), Changing);
        let failed = |one: &mut Facts| (one.seen, one.has_error) = (NOW - 60 * MINUTE, true);
        assert_eq!(state(failed), Failing);
        // A version that was published two minutes ago leaves no client behind yet.
        assert_eq!(state(|one| one.since = 0), Changing);
        let old = Expected {
            tag: new,
            since: NOW - 10 * MINUTE,
            candidate: Option::None,
        };
        let mut facts = facts(Some("old"));
        assert_eq!(state_of(&facts, old, NOW), Changing);
        facts.since = 0;
        assert_eq!(state_of(&facts, old, NOW), Behind);
        let withdrawn = Expected {
            tag: Option::None,
            ..old
        };
        assert_eq!(state_of(&facts, withdrawn, NOW), Behind);
        facts.runs = Option::None;
        assert_eq!(
            state_of(&facts, withdrawn, NOW),
            Behind,
            "no tag is not the tag of no version"
        );
    }

    #[test]
    fn a_state_is_read_as_it_is_written() {
        for state in ClientState::ALL {
            assert_eq!(ClientState::from_label(state.label()), Some(state));
        }
        assert_eq!(ClientState::from_label("Current"), None);
    }
}
