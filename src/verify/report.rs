//! The human-readable report of a verification. The checks themselves write it, so it can't differ
//! from the result.

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{outcome::Signer, policy::Format, reason::CandidateError, sanitize::sanitize};
use crate::telemetry::{NAME_BYTES, cut};

/// All candidate signatures of an artifact and the result of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The candidates, in the order of their verification.
    pub signatures: Vec<SignatureReport>,
    /// Signature material that could not be used, with the reason.
    pub skipped: Vec<String>,
}

/// The checks of one candidate signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureReport {
    /// The storage format of the signature.
    pub format: Format,
    /// The authority that made it, if one of the policy did, even where a later check failed.
    pub signer: Option<Signer>,
    /// The checks up to the first failure. If several authorities were tried, those of the
    /// authority that passed the most.
    pub checks: Vec<Check>,
}

/// One check of a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The name: `format`, `signature`, `certificate`, `log`, `timestamp`, `root`, `identity`,
    /// `validity`, `statement`, `digest`, `referrer`, `repository`, `annotations` or `age`.
    #[serde(rename = "check")]
    pub name: &'static str,
    /// Whether the check passed.
    pub ok: bool,
    /// A short explanation; foreign text in it is sanitized.
    pub detail: String,
}

/// The checks of a candidate so far.
#[derive(Debug, Default)]
pub(super) struct CheckLog(Vec<Check>);

impl CheckLog {
    /// Records the outcome of a check and returns it.
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
        self.0.push(Check {
            name,
            ok: outcome.is_ok(),
            detail: sanitize(&detail),
        });
        outcome
    }

    /// Records the outcome of a check only if it failed, and returns it.
    pub(super) fn record_failure<T>(
        &mut self,
        name: &'static str,
        outcome: Result<T, CandidateError>,
    ) -> Result<T, CandidateError> {
        if outcome.is_ok() {
            outcome
        } else {
            self.record(name, outcome, |_| String::new())
        }
    }

    /// Appends the checks of `other`.
    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn into_report(self, format: Format, signer: Option<Signer>) -> SignatureReport {
        SignatureReport {
            format,
            signer,
            checks: self.0,
        }
    }
}

impl SignatureReport {
    /// Whether all checks passed.
    pub fn is_verified(&self) -> bool {
        self.signer.is_some() && self.checks.iter().all(|check| check.ok)
    }
}

/// The JSON of `verify --json` and `/status`.
impl Serialize for SignatureReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SignatureReport", 5)?;
        fields.serialize_field("format", self.format.label())?;
        fields.serialize_field(
            "authority",
            &self.signer.as_ref().map(|signer| &signer.authority),
        )?;
        fields.serialize_field(
            "identity",
            &self
                .signer
                .as_ref()
                .map(|signer| cut(&signer.identity, NAME_BYTES)),
        )?;
        fields.serialize_field("verified", &self.is_verified())?;
        fields.serialize_field("checks", &self.checks)?;
        fields.end()
    }
}
