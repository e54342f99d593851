//! The plan of a roll-out: what all replicas agree on.

use serde::{Deserialize, Serialize};

use super::{Millis, Strategy};
use crate::{fleet::TagHash, oci::Digest, publish::opaque_tag};

/// Digests, tags and earlier versions that a plan lists; the oldest ones are dropped.
pub(super) const MAX_LISTED: usize = 16;
/// Transitions that a plan lists.
pub(super) const MAX_HISTORY: usize = 20;
/// The longest revision, reason and name of a person in a plan, in bytes.
pub(super) const MAX_TEXT_BYTES: usize = 256;

/// What all replicas agree on for one bundle: the version that its clients are meant to run, and the one
/// that is being rolled out. It has digests and tags, never bytes. Only [`next`](super::next) makes another
/// one of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Increases with each change. It is stored beside the rest.
    #[serde(skip)]
    pub epoch: u64,
    /// Increases with each candidate and each retry. Clients are counted anew from then on.
    pub generation: u64,
    /// The phase.
    pub phase: Phase,
    /// The current step, from 0; meaningless while idle.
    pub step: usize,
    /// When the phase or the step began.
    pub since: Millis,
    /// When the generation began.
    pub began: Millis,
    /// The version that clients are meant to run.
    pub stable: Version,
    /// The version that is being rolled out, or was rolled back. `None` only while idle.
    pub candidate: Option<Version>,
    /// How it is rolled out.
    pub strategy: Strategy,
    /// The hash below which a client is in the current step.
    pub threshold: u64,
    /// Whether an operator has paused it.
    #[serde(default)]
    pub is_paused_by_operator: bool,
    /// Manifests that are not rolled out again unless an operator says so.
    #[serde(default)]
    pub refused: Vec<Digest>,
    /// Versions that a client may still run though they are neither stable nor the candidate.
    #[serde(default)]
    pub superseded: Vec<Version>,
    /// Earlier stable versions, oldest first.
    #[serde(default)]
    pub earlier: Vec<Version>,
    /// When an earlier version last became stable at once.
    #[serde(default)]
    pub reverted: Millis,
    /// The last transitions, oldest first.
    #[serde(default)]
    pub history: Vec<Transition>,
}

/// The phase of a roll-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is being rolled out.
    Idle,
    /// The clients of the current step get the candidate.
    Progressing,
    /// As [`Self::Progressing`], but no further step begins.
    Paused,
    /// All clients get the stable version.
    RolledBack,
}

/// A version in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// Its revision, cut to 256 bytes, if it has one.
    pub revision: Option<String>,
}

/// A change of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// When it happened, by the engine's clock.
    pub at: Millis,
    /// The phase that it led to.
    pub to: Phase,
    /// The step that it led to, from 0.
    pub step: usize,
    /// The candidate that it was about.
    pub candidate: Option<Digest>,
    /// The cause, as a metric label.
    pub cause: Cause,
    /// The reason in a sentence.
    pub reason: String,
    /// The person that an operator's request named.
    pub by: Option<String>,
}

/// The cause of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The reference names another version.
    Version,
    /// The criteria of a step are met.
    Criteria,
    /// A step has exceeded its deadline.
    Deadline,
    /// Clients can't activate the candidate.
    Failures,
    /// A check has failed.
    Check,
    /// An operator has asked for it.
    Operator,
    /// A version is no longer trusted.
    Trust,
    /// The bundle was withdrawn.
    Withdrawn,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 4] = [
        Self::Idle,
        Self::Progressing,
        Self::Paused,
        Self::RolledBack,
    ];

    /// Its name for operators.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Progressing => "progressing",
            Self::Paused => "paused",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Of two plans with one epoch, the one with the higher rank counts: the more careful one.
    pub fn rank(self) -> u8 {
        self as u8
    }

    /// Whether clients get the candidate.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Progressing | Self::Paused)
    }
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 8] = [
        Self::Version,
        Self::Criteria,
        Self::Deadline,
        Self::Failures,
        Self::Check,
        Self::Operator,
        Self::Trust,
        Self::Withdrawn,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Criteria => "criteria",
            Self::Deadline => "deadline",
            Self::Failures => "failures",
            Self::Check => "check",
            Self::Operator => "operator",
            Self::Trust => "trust",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl Version {
    /// A version with this tag, with or without quotes.
    pub fn new(manifest: Digest, etag: &str, revision: &str) -> Self {
        let revision = (!revision.is_empty()).then(|| limited(revision));
        Self {
            manifest,
            etag: opaque_tag(etag).to_owned(),
            revision,
        }
    }

    /// The hash of its tag.
    pub fn tag(&self) -> TagHash {
        TagHash::of(&self.etag)
    }
}

impl Plan {
    /// The version that the reference names, as far as the plan knows.
    pub fn newest(&self) -> &Version {
        self.candidate.as_ref().unwrap_or(&self.stable)
    }

    /// The candidate while clients get it.
    pub fn live_candidate(&self) -> Option<&Version> {
        self.candidate.as_ref().filter(|_| self.phase.is_live())
    }

    /// Whether a manifest is refused.
    pub fn is_refused(&self, manifest: &Digest) -> bool {
        self.refused.contains(manifest)
    }

    /// Whether it has another candidate, stable version, phase, step or reach than another plan: clients may
    /// get something else.
    pub fn differs_for_clients(&self, other: &Self) -> bool {
        let of = |plan: &Self| (plan.generation, plan.phase, plan.step, plan.threshold);
        of(self) != of(other)
            || self.stable != other.stable
            || self.candidate != other.candidate
            || self.superseded != other.superseded
    }

    /// The part of all clients that the current step has, in percent with two decimals: 0 for a step of named
    /// clients, and while no client gets the candidate.
    pub fn percent(&self) -> f64 {
        let part = self.threshold as f64 / u64::MAX as f64;
        (part * 10_000.0).round() / 100.0
    }

    /// The plan as it is stored, without its epoch.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Encoding can't fail, because all keys are strings.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the output of [`Self::to_bytes`].
    ///
    /// # Errors
    /// When it is not one of this release, or has no step.
    pub fn from_bytes(epoch: u64, bytes: &[u8]) -> Result<Self, PlanError> {
        let mut plan: Self = serde_json::from_slice(bytes).map_err(PlanError::Json)?;
        plan.epoch = epoch;
        let is_complete = !plan.phase.is_live() || plan.candidate.is_some();
        match is_complete && plan.step < plan.strategy.steps.len() {
            true => Ok(plan),
            false => Err(PlanError::Incomplete),
        }
    }
}

/// A stored plan that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is no JSON of a plan.
    #[error("the stored plan can't be read: {0}")]
    Json(serde_json::Error),
    /// It has no candidate or no such step.
    #[error("the stored plan lacks its candidate or its current step")]
    Incomplete,
}

/// A text, cut to [`MAX_TEXT_BYTES`].
pub(super) fn limited(text: &str) -> String {
    crate::telemetry::cut(text, MAX_TEXT_BYTES).into_owned()
}
