//! What operators see of a bundle, typed; the server makes JSON of it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::state::{FailureClass, StateKind, Step};
use crate::{
    oci::{Digest, Reference},
    telemetry,
    verify::{PolicyRevision, Report, SignatureReport, Signer, TrustPolicy},
};

/// A bundle's part of `/status`, except what the server counts.
#[derive(Debug, Clone)]
pub struct Status {
    /// Pending, serving or withdrawn.
    pub state: StateKind,
    /// The configured reference.
    pub reference: Reference,
    /// The tag that the last check chose, where the reference has a rule. The version being served
    /// may still be that of another tag: then [`Self::last_failure`] says why.
    pub chosen: Option<ChosenTag>,
    /// The tag by which a rule has found the version being served, if it is known.
    pub served_tag: Option<String>,
    /// The time between checks of a healthy registry.
    pub poll: Duration,
    /// Whether the registry is not checked (`suspend`).
    pub suspended: bool,
    /// The digest of the manifest being served, as the reference names it.
    pub manifest: Option<Digest>,
    /// The digest of the image's manifest, where `manifest` is an index.
    pub image: Option<Digest>,
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
    /// The sentence that says how the version being served is older than an earlier one; `None` if
    /// it is not older.
    pub older: Option<String>,
    /// The name of the fallback, for the log.
    pub(super) fallback: Option<Arc<str>>,
    /// The verdict about the version being served.
    pub verdict: Option<VerdictStatus>,
    /// The verdict about the version that was refused last; cleared by the next success.
    pub rejected: Option<VerdictStatus>,
    /// The version that was refused last, for whatever reason; cleared by the next success. It stays
    /// while checks fail for other reasons.
    pub(super) refused: Option<Digest>,
}

/// The choice of a rule among the tags of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenTag {
    /// The tag.
    pub tag: String,
    /// The number of tags that the rule had to choose from.
    pub candidates: usize,
    /// The reason in a sentence.
    pub reason: String,
}

/// The last failure of a bundle.
#[derive(Debug, Clone)]
pub struct FailureStatus {
    /// The time of the failure.
    pub at: Timestamp,
    /// Its class.
    pub class: FailureClass,
    /// The step of the refresh that failed.
    pub step: Step,
    /// The digest of the manifest, if it is known.
    pub digest: Option<Digest>,
    /// The digests of the manifests to which that one leads, if it is an image index.
    pub below: Arc<Vec<Digest>>,
    /// The failure in a sentence.
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
    /// When the verdict expires; `None` if it holds for as long as the policy does.
    pub valid_until: Option<Timestamp>,
    /// The signatures that were found: all that count, and others up to a total of 64.
    pub signatures: Vec<SignatureReport>,
    /// Sentences about signature material that could not be used.
    pub skipped: Vec<String>,
}

impl Status {
    /// The status of a pending bundle.
    pub(super) fn new(reference: Reference, poll: Duration, policy: &TrustPolicy) -> Self {
        Self {
            state: StateKind::Pending,
            reference,
            chosen: None,
            served_tag: None,
            poll,
            suspended: false,
            manifest: None,
            image: None,
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
            refused: None,
        }
    }

    /// The tag that a rule has chosen; a reference without a rule has its tag itself.
    pub(super) fn tag(&self) -> Option<&str> {
        self.chosen.as_ref().map(|chosen| &*chosen.tag)
    }

    /// The tag of the version being served; `None` if nothing is served, or it has none.
    pub fn tag_of_served(&self) -> Option<&str> {
        self.manifest.as_ref()?;
        let served = self.served_tag.as_deref();
        served.or_else(|| self.reference.tag())
    }

    /// Whether the version that the reference names is refused, while another one or none is served.
    pub fn is_refusing(&self) -> bool {
        self.refused.is_some() && self.refused != self.manifest
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

/// The maximum number of signatures in a status, because anyone who may push can attach thousands.
/// Those that count are always kept.
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
