//! What clients see of a bundle, and how a refresh changes it: one pure function.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Snapshot;
use crate::{
    oci::Digest,
    telemetry::{SENTENCE_BYTES, cut},
};

/// What clients see.
#[derive(Debug, Clone)]
pub enum State {
    /// No attempt has come to an end yet, or none with a fact about the artifact.
    Pending,
    /// There is something to serve.
    Serving(Arc<Snapshot>),
    /// There is nothing to serve.
    Withdrawn(Withdrawal),
}

/// Which state it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// [`State::Pending`].
    Pending,
    /// [`State::Serving`].
    Serving,
    /// [`State::Withdrawn`].
    Withdrawn,
}

/// Why there is nothing to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// For people.
    pub reason: Arc<str>,
    /// What clients should not run any more. `None` where nothing was served before: what they
    /// run may be all right, and another replica's to judge.
    pub version: Option<Arc<WithdrawnVersion>>,
    /// Whether this replica has served the bundle: then what its clients run came from here, or
    /// is older. Otherwise only those that run `lost` itself are known to run it.
    pub was_served: bool,
}

/// What was served, and is not to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawnVersion {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Entity tag, by which those are known who run it.
    pub etag: Option<String>,
}

/// How a refresh ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A new digest, accepted.
    Accepted(Arc<Snapshot>),
    /// The reference still means the digest being served.
    Unchanged,
    /// Anything else.
    Failed(Failure),
}

/// Why a refresh did not end with something to serve.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of trouble.
    pub class: FailureClass,
    /// Where in the pipeline.
    pub step: Step,
    /// The manifest it was about, where known.
    pub digest: Option<Digest>,
    /// The entity tag of the bundle that it was about, where known.
    pub etag: Option<String>,
    /// A metric label.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The rows of the table in [`next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// May pass by itself.
    Transient,
    /// The registry asks for patience.
    RateLimited(Option<Duration>),
    /// The reference points at nothing.
    NotFound,
    /// The registry refuses us.
    Denied,
    /// Evidence is missing or insufficient; it may follow.
    Evidence,
    /// The configuration names it, or the key that signed it, as revoked.
    Revoked,
    /// A property of the bytes: never again for this digest.
    Defect,
    /// What is being served lost its trust.
    Distrusted,
}

/// The steps of a refresh, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Step {
    Resolve,
    Manifest,
    Evidence,
    Verify,
    Fetch,
    Open,
    Publish,
}

/// What happens to a served bundle whose tag is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// Keep serving, with an alarm.
    #[default]
    Keep,
    /// Stop serving.
    Withdraw,
}

/// The state after `outcome`. The table of the crate documentation, row by row:
///
/// | outcome | Pending | Serving | Withdrawn |
/// |---|---|---|---|
/// | accepted | Serving | Serving | Serving |
/// | unchanged | stay | stay | stay |
/// | transient, rate-limited, denied | stay | stay | stay |
/// | not found | Withdrawn | stay, or Withdrawn where configured | stay |
/// | evidence, revoked, defect | Withdrawn | stay | stay |
/// | distrusted | Withdrawn | Withdrawn | stay |
///
/// What was served and then withdrawn is lost, until something is accepted. So is what is
/// revoked without having been served here: somewhere it was, or nobody would have revoked it.
/// But then other clients may run something else with every right, so it is lost for those alone
/// that run it: anybody who can move the tag could else have the fallback served to all of them.
pub(super) fn next(state: &State, outcome: &Outcome, on_missing: OnMissing) -> State {
    let failure = match outcome {
        Outcome::Accepted(snapshot) => return State::Serving(Arc::clone(snapshot)),
        Outcome::Unchanged => return state.clone(),
        Outcome::Failed(failure) => failure,
    };
    let withdrawn = || {
        let was_served = state.was_served();
        let revoked = matches!(failure.class, FailureClass::Revoked | FailureClass::Distrusted);
        let manifest = failure.digest.clone().filter(|_| revoked);
        let named = manifest.map(|manifest| Arc::new(WithdrawnVersion { manifest, etag: failure.etag.clone() }));
        // Of what was never served here, the newest is what can be said.
        let version =
            if was_served { state.withdrawn_version().or(named) } else { named.or_else(|| state.withdrawn_version()) };
        State::Withdrawn(Withdrawal { reason: cut(&failure.message, SENTENCE_BYTES).into(), version, was_served })
    };
    match (failure.class, state) {
        (FailureClass::Transient | FailureClass::RateLimited(_) | FailureClass::Denied, _)
        | (FailureClass::Evidence | FailureClass::Revoked | FailureClass::Defect, State::Serving(_)) => state.clone(),
        (FailureClass::NotFound, State::Serving(_)) if on_missing == OnMissing::Keep => state.clone(),
        // The newest reason is the one worth reading.
        (
            FailureClass::NotFound
            | FailureClass::Evidence
            | FailureClass::Revoked
            | FailureClass::Defect
            | FailureClass::Distrusted,
            _,
        ) => withdrawn(),
    }
}

impl State {
    /// Which state it is.
    pub fn kind(&self) -> StateKind {
        match self {
            Self::Pending => StateKind::Pending,
            Self::Serving(_) => StateKind::Serving,
            Self::Withdrawn(_) => StateKind::Withdrawn,
        }
    }

    /// As `/status` and the metrics have it.
    pub fn label(&self) -> &'static str {
        self.kind().label()
    }

    /// What clients see at this time: nothing is served by a verdict that is over, in the
    /// moment until it has been reached again.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self.snapshot() {
            Some(snapshot) if !snapshot.is_valid_at(now) => {
                Self::Withdrawn("the verification has expired; re-verifying".into())
            }
            Some(_) | None => self,
        }
    }

    /// What is being served.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        match self {
            Self::Serving(snapshot) => Some(snapshot),
            Self::Pending | Self::Withdrawn(_) => None,
        }
    }

    /// What is lost if nothing is served from now on.
    pub(crate) fn withdrawn_version(&self) -> Option<Arc<WithdrawnVersion>> {
        match self {
            Self::Pending => None,
            Self::Serving(snapshot) => Some(Arc::new(WithdrawnVersion::of(snapshot))),
            Self::Withdrawn(withdrawal) => withdrawal.version.clone(),
        }
    }
}

impl State {
    /// Whether this replica has served the bundle, as far as the state tells.
    fn was_served(&self) -> bool {
        match self {
            Self::Pending => false,
            Self::Serving(_) => true,
            Self::Withdrawn(withdrawal) => withdrawal.was_served,
        }
    }

    /// The same state of a bundle that this replica has served before.
    #[must_use]
    pub(crate) fn served_before(mut self) -> Self {
        if let Self::Withdrawn(withdrawal) = &mut self {
            withdrawal.was_served = true;
        }
        self
    }
}

impl WithdrawnVersion {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        Self { manifest: snapshot.manifest_digest().clone(), etag: Some(snapshot.etag().to_owned()) }
    }
}

impl StateKind {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Serving, Self::Withdrawn];

    /// As `/status` and the metrics have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving => "serving",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl From<&str> for Withdrawal {
    /// Of something that was never there.
    fn from(reason: &str) -> Self {
        Self { reason: reason.into(), version: None, was_served: false }
    }
}

impl FailureClass {
    /// As `/status` has it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::RateLimited(_) => "rate_limited",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Evidence => "evidence",
            Self::Defect => "defect",
            Self::Revoked | Self::Distrusted => "distrusted",
        }
    }

    /// Whether the registry said what the reference means, so that a client which runs
    /// something else may be contradicted.
    pub fn registry_answered(self) -> bool {
        matches!(self, Self::NotFound | Self::Evidence | Self::Revoked | Self::Defect | Self::Distrusted)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolve",
            Self::Manifest => "manifest",
            Self::Evidence => "evidence",
            Self::Verify => "verify",
            Self::Fetch => "fetch",
            Self::Open => "open",
            Self::Publish => "publish",
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
