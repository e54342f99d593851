//! A verdict as people read it in `/status`, in the words of `bundlegate verify --json`.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    oci::Digest,
    telemetry,
    verify::{Finding, Report, TrustPolicy},
};

/// What was judged, by what, and how it came to that.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerdictStatus {
    /// The manifest.
    pub digest: String,
    /// Whether it was accepted.
    pub verified: bool,
    /// The policy's name in the configuration.
    pub policy: String,
    /// Names the policy's content, trust roots included.
    pub policy_revision: String,
    /// When it was judged.
    pub at: String,
    /// Until when that holds; `null` = as long as the policy does.
    pub valid_until: Option<String>,
    /// The signatures that were found: those that count, and of the others as many as make 64
    /// together.
    pub signatures: Vec<Finding>,
    /// Signature material that could not be used, in words.
    pub skipped: Vec<String>,
}

impl VerdictStatus {
    /// A refusal, unless somebody says otherwise.
    pub(crate) fn new(digest: &Digest, policy: &TrustPolicy, valid_until: Option<Timestamp>, report: &Report) -> Self {
        Self {
            digest: digest.to_string(),
            verified: false,
            policy: policy.name().to_owned(),
            policy_revision: policy.revision().to_string(),
            at: milliseconds(telemetry::now()),
            valid_until: valid_until.map(milliseconds),
            signatures: most_telling(&report.findings),
            skipped: skipped(report),
        }
    }
}

/// Whoever may push can attach thousands; what counts is told in any case.
const MAX_SIGNATURES: usize = 64;

fn most_telling(findings: &[Finding]) -> Vec<Finding> {
    let mut others = MAX_SIGNATURES.saturating_sub(findings.iter().filter(|one| one.is_verified()).count());
    let is_told = |one: &&Finding| {
        let is_told = one.is_verified() || others > 0;
        others = others.saturating_sub(usize::from(!one.is_verified()));
        is_told
    };
    findings.iter().filter(is_told).take(MAX_SIGNATURES).cloned().collect()
}

fn skipped(report: &Report) -> Vec<String> {
    let mut skipped = report.skipped.clone();
    let more = report.findings.len().saturating_sub(MAX_SIGNATURES);
    if more > 0 {
        skipped.push(format!("{more} more signatures were judged, and are not told here"));
    }
    skipped
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn milliseconds(time: Timestamp) -> String {
    format!("{time:.3}")
}
