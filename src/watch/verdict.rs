//! A verdict as people read it in `/status`, in the words of `bundlegate verify --json`.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    oci::Digest,
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
    /// Every signature that was found.
    pub signatures: Vec<Finding>,
    /// Signature material that could not be used, in words.
    pub skipped: Vec<String>,
}

impl VerdictStatus {
    /// A refusal, unless somebody says otherwise.
    pub(super) fn new(digest: &Digest, policy: &TrustPolicy, valid_until: Option<Timestamp>, report: &Report) -> Self {
        Self {
            digest: digest.to_string(),
            verified: false,
            policy: policy.name().to_owned(),
            policy_revision: policy.revision().to_string(),
            at: milliseconds(Timestamp::now()),
            valid_until: valid_until.map(milliseconds),
            signatures: report.findings.clone(),
            skipped: report.skipped.clone(),
        }
    }
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn milliseconds(time: Timestamp) -> String {
    format!("{time:.3}")
}
