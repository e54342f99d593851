//! The check of a bundle by the real `opa` before it is published, once for each bundle and `opa`.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::timeout;

use super::refresh::{Pipeline, defect, transient};
use crate::{
    bundle::{Bundle, Provenance},
    oci::Digest,
    opa_check::{Checker, Opa, Problems, Unavailable, Verdict},
    publish::{Failure, Snapshot, Step},
    store::CheckResults,
};

/// The metric label of a bundle that `opa` refuses.
const REFUSED: &str = "opa_check";
/// The metric label of an `opa` that gives no answer.
const UNAVAILABLE: &str = "opa_unavailable";

/// The check of one bundle of the configuration.
#[derive(Debug, Clone)]
pub struct OpaCheck {
    checker: Checker,
    results: CheckResults,
    /// The program that made the last refusal.
    refused_by: Arc<Mutex<Option<Arc<Opa>>>>,
}

impl OpaCheck {
    /// A check that looks into `results` before it runs `opa`.
    pub fn new(checker: Checker, results: CheckResults) -> Self {
        Self {
            checker,
            results,
            refused_by: Arc::default(),
        }
    }

    async fn verdict(&self, opa: &Arc<Opa>, bundle: &Bundle) -> Result<Verdict, Unavailable> {
        let (digest, options) = (&identity(bundle), self.checker.options_key());
        let stored = self.results.get(digest, options, opa.digest()).await;
        if let Some(verdict) = stored.and_then(|stored| serde_json::from_value(stored).ok()) {
            return Ok(verdict);
        }
        let verdict = self.checker.check(opa, bundle.blob()).await?;
        if let Ok(result) = serde_json::to_value(&verdict) {
            self.results
                .put(digest, options, opa.digest(), result)
                .await;
        }
        Ok(verdict)
    }

    /// Whether any `opa` accepted this bundle before.
    async fn accepted_before(&self, bundle: &Bundle) -> bool {
        let results = self
            .results
            .all(&identity(bundle), self.checker.options_key())
            .await;
        let mut verdicts = results
            .into_iter()
            .filter_map(|result| serde_json::from_value(result).ok());
        verdicts.any(|verdict| matches!(verdict, Verdict::Passed { .. }))
    }

    fn note_refusal(&self, opa: &Arc<Opa>) {
        *self
            .refused_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(opa));
    }

    /// Whether the program that made the last refusal is still the one on disk.
    async fn refusal_holds(&self) -> bool {
        let refused_by = self
            .refused_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match refused_by {
            Some(opa) => opa.is_current().await,
            None => false,
        }
    }
}

impl Pipeline {
    /// Lets `opa` load a version that is about to be published.
    pub(super) async fn check_with_opa(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let Some(check) = &self.opa_check else {
            return Ok(());
        };
        match self.opa_verdict(check, snapshot.bundle()).await {
            Ok(None) => Ok(()),
            Ok(Some(problems)) => Err(refused(snapshot, &problems)),
            Err(error) => {
                let way_out = match error {
                    Unavailable::TimedOut { .. } => {
                        "; raise opa_check.timeout, or make the policy cheaper to load"
                    }
                    _ => "; it is asked again",
                };
                Err(transient(
                    Step::Open,
                    snapshot.manifest_digest(),
                    UNAVAILABLE,
                    format!("{error}{way_out}"),
                ))
            }
        }
    }

    /// Lets `opa` load a version that was served before the process started. An `opa` that gives no
    /// answer does not withhold it, nor does a new `opa` that refuses bytes which an earlier one
    /// accepted: clients run them. Clients wait no longer than one check may take, however many
    /// bundles are checked at the start.
    pub(super) async fn check_restored_with_opa(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let Some(check) = &self.opa_check else {
            return Ok(());
        };
        let (bundle, content) = (&*self.name, snapshot.bundle());
        let limit = check.checker.timeout();
        let verdict = timeout(limit, self.opa_verdict(check, content)).await;
        match verdict.unwrap_or(Err(Unavailable::TimedOut { limit })) {
            Ok(None) => Ok(()),
            Ok(Some(problems)) if check.accepted_before(content).await => {
                tracing::error!(
                    bundle,
                    %problems,
                    "this opa refuses what an earlier one accepted; it is still served, for clients run it"
                );
                Ok(())
            }
            Ok(Some(problems)) => Err(refused(snapshot, &problems)),
            Err(error) => {
                tracing::warn!(bundle, %error, "the version served before the restart could not be checked");
                Ok(())
            }
        }
    }

    /// Whether a known defect still holds: `opa` may have been replaced.
    pub(super) async fn defect_holds(&self, known: &Failure) -> bool {
        match &self.opa_check {
            Some(check) if known.reason == REFUSED => check.refusal_holds().await,
            _ => true,
        }
    }

    async fn opa_verdict(
        &self,
        check: &OpaCheck,
        bundle: &Bundle,
    ) -> Result<Option<Problems>, Unavailable> {
        let opa = check.checker.opa().await?;
        match check.verdict(&opa, bundle).await? {
            Verdict::Passed { tests } => {
                tracing::debug!(
                    bundle = &*self.name,
                    opa = opa.version(),
                    tests,
                    "opa accepts the bundle"
                );
                Ok(None)
            }
            Verdict::Refused(problems) => {
                check.note_refusal(&opa);
                Ok(Some(problems))
            }
        }
    }
}

/// The digest under which results are stored. A bundle that was made here has other bytes after a
/// restart if it is signed, or if another compressor made it.
fn identity(bundle: &Bundle) -> Digest {
    let of_bytes = || bundle.blob().digest().clone();
    bundle
        .provenance()
        .map_or_else(of_bytes, Provenance::digest)
}

fn refused(snapshot: &Snapshot, problems: &Problems) -> Failure {
    defect(
        Step::Open,
        snapshot.manifest_digest(),
        REFUSED,
        format!("opa: {problems}"),
    )
}
