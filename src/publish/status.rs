//! What operators see of a bundle, typed; the server makes JSON of it.

use std::sync::Arc;

use jiff::Timestamp;

use super::state::{FailureClass, StateKind, Step};
use crate::{
    oci::{Digest, Reference},
    telemetry,
    verify::{PolicyRevision, Report, SignatureReport, Signer, TrustPolicy},
};

/// A bundle's part of `/status`, but for what the server counts.
#[derive(Debug, Clone)]
pub struct Status {
    /// Pending, serving or withdrawn.
    pub state: StateKind,
    /// As configured.
    pub reference: Reference,
    /// The digest of the manifest being served.
    pub manifest: Option<Digest>,
    /// The entity tag of the bundle being served.
    pub etag: Option<String>,
    /// The bundle's own revision, cut to the length of a label.
    pub revision: Option<String>,
    /// Bytes of the tarball.
    pub size: Option<u64>,
    /// The name of the policy that decides.
    pub policy: String,
    /// The revision of that policy, which covers its trust roots.
    pub policy_revision: PolicyRevision,
    /// The signers of the version being served.
    pub signers: Vec<Signer>,
    /// When this state began.
    pub since: Timestamp,
    /// When the registry last answered.
    pub last_check: Option<Timestamp>,
    /// The last failure; cleared by the next success.
    pub last_failure: Option<FailureStatus>,
    /// How the version being served is older than one that was served before, if it is.
    pub older: Option<String>,
    /// The name of the fallback, for the log.
    pub(super) fallback: Option<Arc<str>>,
    /// The verdict about the version being served.
    pub verdict: Option<VerdictStatus>,
    /// The verdict about the version that was refused last; cleared by the next success.
    pub rejected: Option<VerdictStatus>,
}

/// The last failure of a bundle.
#[derive(Debug, Clone)]
pub struct FailureStatus {
    /// When.
    pub at: Timestamp,
    /// What kind.
    pub class: FailureClass,
    /// At which step.
    pub step: Step,
    /// About which manifest, if known.
    pub digest: Option<Digest>,
    /// For people.
    pub message: String,
}

/// A verdict of the verification, in the terms of `bundlegate verify --json`.
#[derive(Debug, Clone)]
pub struct VerdictStatus {
    /// The manifest.
    pub digest: Digest,
    /// Whether it was accepted.
    pub verified: bool,
    /// The policy's name in the configuration.
    pub policy: String,
    /// The policy's revision, which covers its trust roots.
    pub policy_revision: PolicyRevision,
    /// When it was verified.
    pub at: Timestamp,
    /// Until when that holds; `None` = as long as the policy does.
    pub valid_until: Option<Timestamp>,
    /// The signatures that were found: those that count, and of the others as many as make 64
    /// together.
    pub signatures: Vec<SignatureReport>,
    /// Signature material that could not be used, in words.
    pub skipped: Vec<String>,
}

impl Status {
    /// The status of a pending bundle.
    pub(super) fn new(reference: Reference, policy: &TrustPolicy) -> Self {
        Self {
            state: StateKind::Pending,
            reference,
            manifest: None,
            etag: None,
            revision: None,
            size: None,
            policy: policy.name().to_owned(),
            policy_revision: policy.revision().clone(),
            signers: Vec::new(),
            since: telemetry::now(),
            last_check: None,
            last_failure: None,
            older: None,
            fallback: None,
            verdict: None,
            rejected: None,
        }
    }
}

impl VerdictStatus {
    /// The verdict of a refusal, until `verified` is set.
    pub(crate) fn new(
        digest: &Digest,
        policy: &TrustPolicy,
        valid_until: Option<Timestamp>,
        report: &Report,
    ) -> Self {
        Self {
            digest: digest.clone(),
            verified: false,
            policy: policy.name().to_owned(),
            policy_revision: policy.revision().clone(),
            at: telemetry::now(),
            valid_until,
            signatures: most_telling(&report.signatures),
            skipped: skipped(report),
        }
    }
}

/// Anyone who may push can attach thousands; those that count are kept in any case.
const MAX_SIGNATURES: usize = 64;

fn most_telling(findings: &[SignatureReport]) -> Vec<SignatureReport> {
    let mut others =
        MAX_SIGNATURES.saturating_sub(findings.iter().filter(|one| one.is_verified()).count());
    let is_shown = |one: &&SignatureReport| {
        let is_shown = one.is_verified() || others > 0;
        others = others.saturating_sub(usize::from(!one.is_verified()));
        is_shown
    };
    findings
        .iter()
        .filter(is_shown)
        .take(MAX_SIGNATURES)
        .cloned()
        .collect()
}

fn skipped(report: &Report) -> Vec<String> {
    let mut skipped = report.skipped.clone();
    let more = report.signatures.len().saturating_sub(MAX_SIGNATURES);
    if more > 0 {
        skipped.push(format!(
            "{more} more signatures were checked and are not shown"
        ));
    }
    skipped
}
