//! The state of a bundle that clients see, and the table of what a check of the registry makes of
//! it.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Snapshot;
use crate::{
    oci::Digest,
    telemetry::{SENTENCE_BYTES, cut},
};

/// The state of a bundle that clients see.
#[derive(Debug, Clone)]
pub enum State {
    /// No check has ended yet, or none has established a fact about the artifact.
    Pending,
    /// A version is served.
    Serving(Arc<Snapshot>),
    /// Nothing is served.
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
    /// The reason in a sentence.
    pub reason: Arc<str>,
    /// The version that clients should no longer run. `None` where nothing was served before: the
    /// version that clients run may be valid, and served by another replica.
    pub version: Option<Arc<WithdrawnVersion>>,
    /// Whether this replica has served the bundle. If so, the versions that its clients run came
    /// from here, or are older. Otherwise only clients that run `version` itself are affected.
    pub was_served: bool,
}

/// A version that clients should no longer run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawnVersion {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its entity tag, by which the clients that run it are recognised.
    pub etag: Option<String>,
}

/// The outcome of a check of the registry.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The reference means a new digest, which the policy accepts.
    Accepted(Arc<Snapshot>),
    /// The reference still means the digest being served.
    Unchanged,
    /// The check did not end with a version to serve.
    Failed(Failure),
}

/// Why a check did not end with a version to serve.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The kind of failure.
    pub class: FailureClass,
    /// The step of the pipeline.
    pub step: Step,
    /// The digest of the manifest, where known.
    pub digest: Option<Digest>,
    /// The digests of the manifests to which that one leads, if it is an image index: a signature of
    /// any of them may settle the failure.
    pub below: Arc<Vec<Digest>>,
    /// The entity tag of the bundle, where known.
    pub etag: Option<Box<str>>,
    /// The reason as a metric label.
    pub reason: &'static str,
    /// The failure in a sentence.
    pub message: String,
}

impl fmt::Display for Failure {
    /// The failure in a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The kinds of failure; [`StateMachine::apply`](super::StateMachine::apply) says what each
/// changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The failure may pass by itself.
    Transient,
    /// The registry limits the rate of requests, and may have named a time to wait.
    RateLimited(Option<Duration>),
    /// The reference names nothing.
    NotFound,
    /// The registry denies access.
    Denied,
    /// Evidence is missing or insufficient; it may follow.
    Evidence,
    /// The configuration revokes the digest, or the key that signed it.
    Revoked,
    /// The bytes themselves are defective: this digest is not fetched again.
    Defect,
    /// The version being served no longer passes verification.
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

/// What happens to a served bundle whose tag is gone (`on_missing`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// The bundle stays served, with an alarm.
    #[default]
    Keep,
    /// The bundle is withdrawn.
    Withdraw,
}

/// The state after `outcome`, by the table of [`StateMachine::apply`](super::StateMachine::apply).
///
/// A withdrawal names the version that was served last, until another one is accepted. It also
/// names a revoked version that was never served here, because it was served somewhere. In that
/// case other clients may run a valid version, so only the clients of the revoked one are affected:
/// otherwise anyone who can move the tag could have the fallback served to all of them.
pub(super) fn next(state: &State, outcome: &Outcome, on_missing: OnMissing) -> State {
    let failure = match outcome {
        Outcome::Accepted(snapshot) => return State::Serving(Arc::clone(snapshot)),
        Outcome::Unchanged => return state.clone(),
        Outcome::Failed(failure) => failure,
    };
    let withdrawn = || {
        let was_served = state.was_served();
        let revoked = matches!(
            failure.class,
            FailureClass::Revoked | FailureClass::Distrusted
        );
        let manifest = failure.digest.clone().filter(|_| revoked);
        let named = manifest.map(|manifest| {
            Arc::new(WithdrawnVersion {
                manifest,
                etag: failure.etag.as_deref().map(str::to_owned),
            })
        });
        // Where nothing was served here, the newest revoked version is named.
        let version = if was_served {
            state.withdrawn_version().or(named)
        } else {
            named.or_else(|| state.withdrawn_version())
        };
        State::Withdrawn(Withdrawal {
            reason: cut(&failure.message, SENTENCE_BYTES).into(),
            version,
            was_served,
        })
    };
    match (failure.class, state) {
        (FailureClass::Transient | FailureClass::RateLimited(_) | FailureClass::Denied, _)
        | (
            FailureClass::Evidence | FailureClass::Revoked | FailureClass::Defect,
            State::Serving(_),
        ) => state.clone(),
        (FailureClass::NotFound, State::Serving(_)) if on_missing == OnMissing::Keep => {
            state.clone()
        }
        // The newest reason replaces the previous one.
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

    /// The label in `/status` and in metrics.
    pub fn label(&self) -> &'static str {
        self.kind().label()
    }

    /// The state that clients see at this time: a version whose verification has expired is not
    /// served until it has been verified again.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self.snapshot() {
            Some(snapshot) if !snapshot.is_valid_at(now) => {
                Self::Withdrawn("the verification has expired; re-verifying".into())
            }
            Some(_) | None => self,
        }
    }

    /// The version being served.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        match self {
            Self::Serving(snapshot) => Some(snapshot),
            Self::Pending | Self::Withdrawn(_) => None,
        }
    }

    /// The version that a withdrawal names if nothing is served from now on.
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
        Self {
            manifest: snapshot.manifest_digest().clone(),
            etag: Some(snapshot.etag().to_owned()),
        }
    }
}

impl StateKind {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Serving, Self::Withdrawn];

    /// The label in `/status` and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving => "serving",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl From<&str> for Withdrawal {
    /// The withdrawal of a bundle that was never served.
    fn from(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            version: None,
            was_served: false,
        }
    }
}

impl Outcome {
    /// The label in metrics and logs.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Unchanged => "unchanged",
            Self::Failed(failure) => failure.reason,
        }
    }
}

impl FailureClass {
    /// The label in `/status`.
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

    /// Whether the failure may pass without a change of the artifact, its signatures or the
    /// configuration.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Transient | Self::RateLimited(_))
    }

    /// Whether a version was found and refused, for its evidence or its content.
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Evidence | Self::Revoked | Self::Defect | Self::Distrusted
        )
    }

    /// Whether new evidence may lift the refusal.
    pub fn is_about_evidence(self) -> bool {
        matches!(self, Self::Evidence | Self::Revoked | Self::Distrusted)
    }

    /// Whether the registry said what the reference means, so that the check confirms an answer to
    /// a client that runs another version.
    pub fn registry_answered(self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::Evidence | Self::Revoked | Self::Defect | Self::Distrusted
        )
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
