//! What the judge saw of each candidate, for people: written while judging, so that it
//! can't tell another story than the verdict.

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{outcome::Signer, policy::Format, reason::CandidateError, sanitize::sanitize};
use crate::telemetry::{NAME_BYTES, cut};

/// Everything that was offered to vouch for an artifact, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The candidates, in the order in which they were judged.
    pub signatures: Vec<SignatureReport>,
    /// Signature material that could not be used, in words.
    pub skipped: Vec<String>,
}

/// One candidate signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureReport {
    /// Where it was found.
    pub format: Format,
    /// Whose it is, where an authority of the policy made it, whatever else is wrong with it.
    pub signer: Option<Signer>,
    /// What was checked, up to the first failure; of the authority that came furthest, where
    /// several could have made it.
    pub checks: Vec<Check>,
}

/// One thing that a signature has to satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which: `format`, `signature`, `certificate`, `log`, `timestamp`, `root`, `identity`,
    /// `validity`, `statement`, `digest`, `referrer`, `repository`, `annotations`, `age`.
    #[serde(rename = "check")]
    pub name: &'static str,
    /// Whether it does.
    pub ok: bool,
    /// Why, in a few words; foreign text in it is cut and cleaned.
    pub detail: String,
}

/// The checks that a candidate has gone through.
#[derive(Debug, Default)]
pub(super) struct CheckLog(Vec<Check>);

impl CheckLog {
    /// Notes what came out of a check, and passes it on.
    pub(super) fn record<T>(
        &mut self,
        name: &'static str,
        outcome: Result<T, CandidateError>,
        passed: impl FnOnce(&T) -> String,
    ) -> Result<T, CandidateError> {
        let detail = match &outcome {
            Ok(value) => passed(value),
            Err(error) => error.to_string(),
        };
        self.0.push(Check { name, ok: outcome.is_ok(), detail: sanitize(&detail) });
        outcome
    }

    /// Notes a check only where it failed.
    pub(super) fn record_failure<T>(
        &mut self,
        name: &'static str,
        outcome: Result<T, CandidateError>,
    ) -> Result<T, CandidateError> {
        if outcome.is_ok() { outcome } else { self.record(name, outcome, |_| String::new()) }
    }

    /// The checks of `other`, after these.
    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn into_report(self, format: Format, signer: Option<Signer>) -> SignatureReport {
        SignatureReport { format, signer, checks: self.0 }
    }
}

impl SignatureReport {
    /// Whether it counts as a vote.
    pub fn is_verified(&self) -> bool {
        self.signer.is_some() && self.checks.iter().all(|check| check.ok)
    }
}

/// As `verify --json` and `/status` have it.
impl Serialize for SignatureReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SignatureReport", 5)?;
        fields.serialize_field("format", self.format.label())?;
        fields.serialize_field("authority", &self.signer.as_ref().map(|signer| &signer.authority))?;
        fields.serialize_field("identity", &self.signer.as_ref().map(|signer| cut(&signer.identity, NAME_BYTES)))?;
        fields.serialize_field("verified", &self.is_verified())?;
        fields.serialize_field("checks", &self.checks)?;
        fields.end()
    }
}
