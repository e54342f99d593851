//! What clients see of a bundle, and how a refresh changes it: one pure function.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::Snapshot;
use crate::oci::Digest;

/// What clients see.
#[derive(Debug, Clone)]
pub enum State {
    /// No attempt has come to an end yet, or none with a fact about the artifact.
    Pending,
    /// There is something to serve.
    Serving(Arc<Snapshot>),
    /// There is nothing to serve, for a reason that people should read.
    Withdrawn(Arc<str>),
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
/// | evidence, defect | Withdrawn | stay | stay |
/// | distrusted | Withdrawn | Withdrawn | stay |
pub fn next(state: &State, outcome: &Outcome, on_missing: OnMissing) -> State {
    let failure = match outcome {
        Outcome::Accepted(snapshot) => return State::Serving(Arc::clone(snapshot)),
        Outcome::Unchanged => return state.clone(),
        Outcome::Failed(failure) => failure,
    };
    let withdrawn = || State::Withdrawn(failure.message.as_str().into());
    match (failure.class, state) {
        (FailureClass::Transient | FailureClass::RateLimited(_) | FailureClass::Denied, _)
        | (FailureClass::Evidence | FailureClass::Defect, State::Serving(_)) => state.clone(),
        (FailureClass::NotFound, State::Serving(_)) if on_missing == OnMissing::Keep => state.clone(),
        // The newest reason is the one worth reading.
        (FailureClass::NotFound | FailureClass::Evidence | FailureClass::Defect | FailureClass::Distrusted, _) => {
            withdrawn()
        }
    }
}

impl State {
    /// As `/status` and the metrics have it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving(_) => "serving",
            Self::Withdrawn(_) => "withdrawn",
        }
    }

    /// What clients see at this time: nothing is served by a verdict that is over, in the
    /// moment until it has been reached again.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self.snapshot() {
            Some(snapshot) if !snapshot.is_valid_at(now) => {
                Self::Withdrawn("what speaks for it has run out; it is being judged again".into())
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
            Self::Distrusted => "distrusted",
        }
    }

    /// Whether the registry said what the reference means, so that a client which runs
    /// something else may be contradicted.
    pub fn registry_answered(self) -> bool {
        matches!(self, Self::NotFound | Self::Evidence | Self::Defect | Self::Distrusted)
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
