//! Verdicts that are still good: the same question has the same answer.

use std::{fmt, sync::Arc};

use moka::sync::Cache;

use super::{
    evidence::Evidence,
    policy::TrustPolicy,
    report::Report,
    verified::{Circumstances, Rejection, Signer, Term, Verified},
};
use crate::oci::{Digest, Manifest, PinnedReference};

/// Bytes that remembered verdicts weigh together, roughly.
const CAPACITY: u64 = 16 << 20;
/// What a verdict weighs beside its texts.
const OVERHEAD: usize = 512;

/// Remembers acceptances, as long as they hold. Refusals are not remembered: time may change
/// them, and they are what somebody is waiting for. Cheap to clone.
///
/// A verdict is found only under the very repository, digest, evidence and policy revision
/// that it was reached for, and the revision covers the content of every trust root.
#[derive(Clone)]
pub struct Verdicts {
    accepted: Cache<Question, Arc<Answer>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    artifact: String,
    evidence: String,
    revision: String,
}

#[derive(Debug)]
struct Answer {
    signers: Vec<Signer>,
    term: Term,
    /// It does not hold before it was reached, should the clock be set back.
    reached: jiff::Timestamp,
    report: Report,
}

impl Default for Verdicts {
    fn default() -> Self {
        let weigh = |question: &Question, answer: &Arc<Answer>| {
            let texts: usize =
                answer.report.findings.iter().flat_map(|one| &one.checks).map(|one| one.detail.len()).sum();
            let skipped: usize = answer.report.skipped.iter().map(String::len).sum();
            u32::try_from(OVERHEAD + question.artifact.len() + texts + skipped).unwrap_or(u32::MAX)
        };
        Self { accepted: Cache::builder().max_capacity(CAPACITY).weigher(weigh).build() }
    }
}

impl Verdicts {
    /// As [`Verified::explain`], which is asked where no answer is known.
    ///
    /// # Errors
    /// The most telling reason for refusing.
    pub fn explain(
        &self,
        policy: &TrustPolicy,
        pinned: &PinnedReference,
        manifest: Manifest,
        evidence: &Evidence,
        circumstances: Circumstances,
    ) -> (Result<Verified<Manifest>, Rejection>, Report) {
        // Nothing is saved where nothing is judged, and odd evidence is judged each time.
        let (Some(_), Ok(bytes)) = (policy.requirements(), evidence.to_bytes()) else {
            return Verified::explain(policy, pinned, manifest, evidence, circumstances);
        };
        let question = Question {
            artifact: pinned.to_string(),
            evidence: Digest::sha256(&bytes).to_string(),
            revision: policy.revision().to_string(),
        };
        if let Some(answer) = self.accepted.get(&question).filter(|answer| answer.holds(circumstances))
            && let Some(verified) = Verified::recall(policy, pinned, &manifest, &answer.signers, answer.term)
        {
            return (Ok(verified), answer.report.clone());
        }
        let (verdict, report) = Verified::explain(policy, pinned, manifest, evidence, circumstances);
        if let Ok(verified) = &verdict {
            let answer = Answer {
                signers: verified.signers().to_vec(),
                term: verified.term(),
                reached: circumstances.now,
                report: report.clone(),
            };
            self.accepted.insert(question, Arc::new(answer));
        }
        (verdict, report)
    }
}

impl Answer {
    fn holds(&self, circumstances: Circumstances) -> bool {
        self.reached <= circumstances.now && self.term.holds(circumstances.now)
    }
}

impl fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdicts").field("entries", &self.accepted.entry_count()).finish()
    }
}
