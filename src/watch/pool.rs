//! The threads that verify and open artifacts: off the async threads, a few at a time for all
//! watchers, each with a deadline.

use std::{
    fmt,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use jiff::Timestamp;
use prometheus::HistogramVec;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
    time::{Duration, Instant, timeout},
};

use crate::{
    metrics::Series,
    oci::{Digest, Manifest, ManifestPath, Repository},
    publish::{Failure, FailureClass, Step, VerdictStatus, VerificationRecord, is_expired},
    store::{Acceptance, Attempt},
    telemetry,
    verify::{Evidence, PathVerdict, TrustPolicy, VerdictCache, VerificationContext, Verified},
};

/// The time limit of one verification, including the wait for a permit. A verification that hangs
/// must not keep a version in service that only an earlier policy accepted.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for opening one bundle, once it has its permit. The limits of a bundle end the
/// opening long before.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// The number of bundles that are restored from disk at a time: each holds its evidence in memory
/// while it waits to be verified and opened.
const MAX_RESTORES: usize = 16;

/// The threads for verifying and opening, shared by all watchers. A signature costs milliseconds of
/// computing: five hundred at once would take every core from the server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct VerificationPool {
    verify_permits: Arc<Semaphore>,
    /// Separate from `verify_permits`, because a large bundle takes seconds to open and a
    /// verification has a deadline.
    open_permits: Arc<Semaphore>,
    restore_permits: Arc<Semaphore>,
    /// For the deltas that publications wait for.
    compare_permits: Arc<Semaphore>,
    /// For all other deltas, which take longer together.
    background_permits: Arc<Semaphore>,
    verdicts: VerdictCache,
}

/// The permit to compare two versions of a bundle.
#[derive(Debug)]
pub(super) struct ComparePermit(Option<OwnedSemaphorePermit>);

impl ComparePermit {
    /// Runs off the async threads.
    pub(super) fn run<T: Send + 'static>(
        self,
        compare: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        spawn_blocking(move || {
            // Held by the work, which ends at its own deadline, whether or not its result is awaited.
            let _permit = self.0;
            compare()
        })
    }
}

/// Why the opening of a bundle did not end, which says nothing about its bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOpened {
    #[error("opening the bundle panicked: {0}; please report this")]
    Panic(tokio::task::JoinError),
    #[error(
        "opening the bundle took longer than {}",
        humantime::format_duration(OPEN_TIMEOUT)
    )]
    Timeout,
}

/// An artifact to verify.
#[derive(Debug, Clone)]
pub(super) struct VerificationJob {
    pub(super) policy: Arc<TrustPolicy>,
    pub(super) repository: Repository,
    /// The manifests from the one that the reference names to that of the image.
    pub(super) path: Arc<ManifestPath>,
    /// The signature material of the first manifests of the path.
    pub(super) evidence: Vec<Arc<Evidence>>,
    /// The policy and the trust roots that accepted it earlier, if any.
    pub(super) accepted: Option<Acceptance>,
}

/// A version that was not accepted.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) failure: Failure,
    /// The verdict for operators, if the verification has ended.
    pub(super) verdict: Option<Box<VerdictStatus>>,
}

impl Default for VerificationPool {
    /// A pool that leaves one core to the server.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let permits = || Arc::new(Semaphore::new(cores.saturating_sub(1).max(1)));
        let restore_permits = Arc::new(Semaphore::new(MAX_RESTORES));
        Self {
            verify_permits: permits(),
            open_permits: permits(),
            restore_permits,
            compare_permits: Arc::new(Semaphore::new(1)),
            background_permits: Arc::new(Semaphore::new(1)),
            verdicts: VerdictCache::default(),
        }
    }
}

impl VerificationPool {
    /// Verifies an artifact within [`VERIFY_TIMEOUT`]; every error on the way is a rejection.
    /// `attempt` is awaited once the job has its permit. `durations` are of the work itself.
    pub(super) async fn verify(
        &self,
        job: VerificationJob,
        attempt: impl Future<Output = Attempt>,
        durations: Series<HistogramVec>,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let (digest, verdicts) = (job.path.digest().clone(), self.verdicts.clone());
        let work = move || {
            let began = Instant::now();
            let result = job.verify(&verdicts);
            if let Some(durations) = durations.with(&[verification_outcome(&result)]) {
                durations.observe(began.elapsed().as_secs_f64());
            }
            result
        };
        self.run(digest, attempt, work).await
    }

    /// Waits for the permit to restore a bundle from disk.
    pub(super) async fn restore_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.restore_permits).acquire_owned().await.ok()
    }

    /// Waits for the permit to compare two versions of a bundle. `is_awaited`: whether a publication waits for that.
    pub(super) async fn compare_permit(&self, is_awaited: bool) -> ComparePermit {
        let permits = match is_awaited {
            true => Arc::clone(&self.compare_permits),
            false => Arc::clone(&self.background_permits),
        };
        ComparePermit(permits.acquire_owned().await.ok())
    }

    /// Makes every verification wait for as long as the permit lives.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(self.verify_permits.available_permits()).unwrap();
        Arc::clone(&self.verify_permits)
            .acquire_many_owned(all)
            .await
            .unwrap()
    }

    /// Opens a bundle off the async threads, a few at a time. `attempt` is awaited once the job has
    /// its permit.
    ///
    /// # Errors
    /// When `open` panics, or does not end: it then keeps its thread, and gives its permit to
    /// another job.
    pub(super) async fn open<T: Send + 'static>(
        &self,
        attempt: impl Future<Output = Attempt>,
        open: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotOpened> {
        let permit = Arc::clone(&self.open_permits).acquire_owned().await;
        let attempt = attempt.await;
        let is_settled = Arc::new(AtomicBool::new(false));
        let settled = Arc::clone(&is_settled);
        let opening = spawn_blocking(move || {
            let opened = attempt.run(open);
            if let (true, Ok(permit)) = (settled.swap(true, Ordering::AcqRel), permit) {
                // The deadline has passed, and the permit was given to another job.
                permit.forget();
            }
            opened
        });
        let Ok(opened) = timeout(OPEN_TIMEOUT, opening).await else {
            if !is_settled.swap(true, Ordering::AcqRel) {
                self.open_permits.add_permits(1);
            }
            return Err(NotOpened::Timeout);
        };
        opened.map_err(NotOpened::Panic)
    }

    async fn run<T: Send + 'static>(
        &self,
        digest: Digest,
        attempt: impl Future<Output = Attempt>,
        work: impl FnOnce() -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Rejection> {
        let failed = |reason, message: String| Rejection {
            failure: Failure {
                class: FailureClass::Transient,
                step: Step::Verify,
                digest: Some(digest.clone()),
                below: Arc::default(),
                etag: None,
                reason,
                message,
            },
            verdict: None,
        };
        let verify_permits = Arc::clone(&self.verify_permits);
        let working = async move {
            let permit = verify_permits.acquire_owned().await;
            let attempt = attempt.await;
            // Parsers read foreign bytes here, and a panic of theirs must end no more than this
            // attempt.
            spawn_blocking(move || {
                // Held by the work, which goes on after the deadline.
                let _permit = permit;
                attempt.run(work)
            })
            .await
        };
        match timeout(VERIFY_TIMEOUT, working).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(panic)) => Err(failed(
                "internal",
                format!("verification panicked: {panic}; please report this"),
            )),
            Err(_) => Err(failed(
                "timeout",
                format!("verification did not end within {VERIFY_TIMEOUT:?}"),
            )),
        }
    }
}

/// The label of a verification in metrics.
pub(super) fn verification_outcome<T>(result: &Result<T, Rejection>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(_) => "rejected",
    }
}

impl VerificationJob {
    fn verify(
        self,
        verdicts: &VerdictCache,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let Self {
            policy,
            repository,
            path,
            evidence,
            accepted: before,
        } = self;
        let root_revisions = roots(&policy);
        if !telemetry::is_clock_usable() {
            return Err(unusable_clock(path.digest()).into());
        }
        let circumstances = VerificationContext::now();
        // Roots that can't be refreshed don't take away what they have accepted themselves.
        let same_roots = before.is_some_and(|before| {
            root_revisions
                .iter()
                .all(|root| before.roots.contains(root))
        });
        let circumstances = if same_roots {
            circumstances.accepted_before()
        } else {
            circumstances
        };
        let pieces = evidence.iter().map(|evidence| &**evidence);
        let PathVerdict {
            result,
            digest,
            report,
        } = verdicts.verify_path(&policy, &repository, &path, pieces, circumstances);
        let status = |valid_until| VerdictStatus::new(&digest, &policy, valid_until, &report);
        match result {
            Ok(verified) if is_expired(verified.valid_until(), circumstances.now) => {
                Err(Rejection {
                    failure: expired(path.digest(), verified.valid_until()),
                    verdict: Some(Box::new(status(None))),
                })
            }
            Ok(verified) => {
                let verdict = VerdictStatus {
                    verified: true,
                    ..status(verified.valid_until())
                };
                let record = VerificationRecord {
                    path,
                    evidence,
                    policy_revision: policy.revision().clone(),
                    root_revisions,
                    verdict: Some(verdict),
                };
                Ok((verified, record))
            }
            Err(rejection) => Err(Rejection {
                failure: Failure {
                    class: if rejection.revoked {
                        FailureClass::Revoked
                    } else {
                        FailureClass::Evidence
                    },
                    step: Step::Verify,
                    // The message has the digest of the manifest that was refused, which an index
                    // may have led to.
                    digest: Some(path.digest().clone()),
                    below: Arc::default(),
                    etag: None,
                    reason: rejection.reason.label(),
                    message: rejection.to_string(),
                },
                verdict: Some(Box::new(status(None))),
            }),
        }
    }
}

impl Rejection {
    /// The same rejection of a version that is served.
    pub(super) fn distrusted(self) -> Self {
        let failure = Failure {
            class: FailureClass::Distrusted,
            ..self.failure
        };
        Self { failure, ..self }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl From<Failure> for Rejection {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            verdict: None,
        }
    }
}

fn expired(digest: &Digest, valid_until: Option<Timestamp>) -> Failure {
    let until = valid_until
        .map(|until| until.to_string())
        .unwrap_or_default();
    let message = format!("verification expired at {until} (digest {digest})");
    Failure {
        class: FailureClass::Evidence,
        step: Step::Verify,
        digest: Some(digest.clone()),
        below: Arc::default(),
        etag: None,
        reason: "validity",
        message,
    }
}

/// Certificates, and keys with an end, are verified by the clock, and no library reads one so far
/// off.
fn unusable_clock(digest: &Digest) -> Failure {
    let message =
        "the system's clock is before 1970 or after 9999, so nothing can be verified; set it"
            .to_owned();
    let (class, step) = (FailureClass::Transient, Step::Verify);
    Failure {
        class,
        step,
        digest: Some(digest.clone()),
        below: Arc::default(),
        etag: None,
        reason: "clock",
        message,
    }
}

/// The revisions of the trust roots that a policy relies on, in order.
fn roots(policy: &TrustPolicy) -> Vec<String> {
    let authorities = policy
        .requirements()
        .into_iter()
        .flat_map(|requirements| &requirements.authorities);
    let mut roots: Vec<_> = authorities
        .filter_map(|authority| Some(authority.root.as_ref()?.revision().to_string()))
        .collect();
    roots.sort();
    roots.dedup();
    roots
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    fn digest() -> Digest {
        Digest::sha256(b"x")
    }

    async fn no_attempt() -> Attempt {
        Attempt::default()
    }

    fn pool(verify_permits: usize) -> VerificationPool {
        VerificationPool {
            verify_permits: Arc::new(Semaphore::new(verify_permits)),
            ..VerificationPool::default()
        }
    }

    #[tokio::test]
    async fn a_verification_that_panics_is_a_rejection_and_releases_its_permit() {
        let pool = pool(1);
        let failed = pool
            .run(digest(), no_attempt(), || -> Result<(), _> {
                panic!("at the disco")
            })
            .await
            .unwrap_err();
        assert_eq!(
            (failed.failure.reason, failed.failure.class),
            ("internal", FailureClass::Transient)
        );
        pool.run(digest(), no_attempt(), || Ok(())).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_verification_that_hangs_is_a_rejection() {
        let pool = pool(1);
        let _hanging = pool.verify_permits.try_acquire().unwrap();
        let began = Instant::now();
        let late = pool
            .run(digest(), no_attempt(), || Ok(()))
            .await
            .unwrap_err();
        assert_eq!(
            (late.failure.reason, late.failure.class),
            ("timeout", FailureClass::Transient)
        );
        assert_eq!(began.elapsed(), VERIFY_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bundle_that_is_never_opened_takes_no_permit_from_the_others() {
        let pool = VerificationPool {
            open_permits: Arc::new(Semaphore::new(1)),
            ..VerificationPool::default()
        };
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let endless = pool.open(no_attempt(), move || ended.recv());
        // The paused clock does not advance by itself while a thread works.
        let (late, ()) = tokio::join!(endless, tokio::time::advance(OPEN_TIMEOUT));
        assert_eq!(
            late.unwrap_err().to_string(),
            "opening the bundle took longer than 2m"
        );
        assert_eq!(pool.open(no_attempt(), || 1).await.unwrap(), 1);
        let panic = pool
            .open(no_attempt(), || -> u8 { panic!("at the disco") })
            .await
            .unwrap_err();
        assert!(panic.to_string().contains("panicked"), "{panic}");
        drop(end);
        // If the job ends after all, there is still one permit.
        assert_eq!(pool.open(no_attempt(), || 2).await.unwrap(), 2);
        assert!(pool.open_permits.available_permits() <= 1);
    }

    #[tokio::test]
    async fn a_few_are_verified_at_a_time_and_all_in_the_end() {
        let (pool, now, most) = (
            pool(2),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        let mut all = JoinSet::new();
        for _ in 0..50 {
            let (pool, now, most) = (pool.clone(), Arc::clone(&now), Arc::clone(&most));
            all.spawn(async move {
                let work = move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                pool.run(digest(), no_attempt(), work).await.is_ok()
            });
        }
        assert!(all.join_all().await.into_iter().all(|done| done));
        assert!(
            (1..=2).contains(&most.load(Ordering::SeqCst)),
            "{most:?} at a time"
        );
    }
}
