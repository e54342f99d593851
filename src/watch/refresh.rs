//! One refresh as straight-line code: resolve → manifest → evidence → verify → fetch → open →
//! `opa`, where configured → snapshot. Each step consumes the type that the one before it made, so
//! none can be left out; verification comes before the download.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Expect, OpaCheck,
    history::History,
    metrics::WatcherMetrics,
    pool::{NotOpened, Rejection, VerificationJob, VerificationPool},
    tag_choice::Choice,
};
use crate::{
    bundle::{self, Bundle, LayerPlan},
    oci::{Blob, Descriptor, Digest, Manifest, PinnedReference, Reference},
    publish::{
        Failure, FailureClass, Outcome, Snapshot, Step, Unpublishable, VerdictStatus,
        VerificationRecord, is_intact, tag_of,
    },
    registry::{Class, Lookup, Registries, RegistryError, Resolved, Source},
    store::{Acceptance, Attempt, Change, SetAside, Store, StoredBundle},
    verify::{
        Collection, Evidence, Reason, ReferrersApi, Rule, TrustPolicy, UselessReferrers, Verified,
    },
};

/// The limit of manifest and evidence together when they are read back from disk.
const MAX_STORED_BYTES: u64 = 64 << 20;

/// The metric label of a failure of the disk.
const DISK: &str = "disk";

/// The sources, limits and metrics with which one bundle is refreshed.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The bundle's name.
    pub name: Arc<str>,
    /// The reference to serve.
    pub reference: Reference,
    /// The repository of `reference`.
    pub source: Source,
    /// The registries, for a policy that names another repository for signatures.
    pub registries: Arc<Registries>,
    /// The expectations beside signatures (`expect`).
    pub expect: Arc<Expect>,
    /// The cache of blobs.
    pub store: Store,
    /// The limits of a bundle.
    pub limits: bundle::Limits,
    /// The check by the real `opa`, where configured.
    pub opa_check: Option<OpaCheck>,
    /// The limit of signature material in bytes (`limits.evidence`).
    pub evidence_limit: u64,
    /// The referrers that hold no signature, as far as they are known.
    pub useless_referrers: Arc<UselessReferrers>,
    /// The threads that verify and open.
    pub pool: VerificationPool,
    /// What the bundle's watchers count.
    pub metrics: Arc<WatcherMetrics>,
}

/// The result of a check of the registry.
#[derive(Debug)]
pub struct RefreshResult {
    /// The outcome.
    pub outcome: Outcome,
    /// The verdict about a version that was rejected.
    pub rejected: Option<Box<VerdictStatus>>,
    /// The choice of the tag, where a rule has chosen it.
    pub choice: Option<Choice>,
}

/// A version restored from disk.
#[derive(Debug)]
pub struct Restored {
    /// The version, verified again.
    pub snapshot: Arc<Snapshot>,
    /// When the registry last confirmed it, by the clock of that time.
    pub checked: Option<Timestamp>,
}

impl RefreshResult {
    pub(super) fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            rejected: None,
            choice: None,
        }
    }
}

impl Pipeline {
    /// Checks the reference once, under one policy. The versions `serving` and `known_defect` are
    /// not fetched again.
    pub(super) async fn refresh(
        &self,
        policy: &Arc<TrustPolicy>,
        serving: Option<&Snapshot>,
        known_defect: Option<&Failure>,
        past: &History,
    ) -> RefreshResult {
        match self.attempt(policy, serving, known_defect, past).await {
            Ok(Some(snapshot)) => RefreshResult::of(Outcome::Accepted(snapshot)),
            Ok(None) => RefreshResult::of(Outcome::Unchanged),
            Err(Rejection { failure, verdict }) => RefreshResult {
                rejected: verdict,
                ..RefreshResult::of(Outcome::Failed(failure))
            },
        }
    }

    async fn attempt(
        &self,
        policy: &Arc<TrustPolicy>,
        serving: Option<&Snapshot>,
        known_defect: Option<&Failure>,
        past: &History,
    ) -> Result<Option<Arc<Snapshot>>, Rejection> {
        // A version that is known is most likely still there. Otherwise the manifest is needed in
        // any case.
        let lookup = if serving.is_none() && known_defect.is_none() {
            Lookup::Manifest
        } else {
            Lookup::Digest
        };
        let resolved = self.source.look_up(&self.reference, lookup).await;
        let Resolved { pinned, manifest } =
            resolved.map_err(|error| self.registry_failure(Step::Resolve, None, &error))?;
        let digest = pinned.digest();
        if let Some(snapshot) = serving.filter(|serving| serving.manifest_digest() == digest) {
            // A rule may have chosen another tag of it, which may state another version.
            self.expect_tag(snapshot)?;
            return Ok(None);
        }
        if let Some(known) = known_defect.filter(|failure| failure.digest.as_ref() == Some(digest))
            && self.defect_holds(known).await
        {
            return Err(known.clone().into());
        }
        self.check_set_aside(digest)?;
        let turn = self.source.transfer_permit().await;
        let failed =
            |step| move |error: RegistryError| self.registry_failure(step, Some(digest), &error);
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => {
                let manifest = self.source.manifest(&pinned).await;
                manifest.map_err(failed(Step::Manifest))?
            }
        };
        let verified = self.collect_and_verify(policy, &pinned, manifest, past);
        let (verified, record) = verified.await?;
        let layer = bundle_layer(verified.value())
            .map_err(|reason| defect(Step::Open, digest, "no_bundle", reason))?;
        if layer.size > self.limits.bundle {
            let (size, limit) = (layer.size, self.limits.bundle);
            let message = format!(
                "bundle of {size} bytes exceeds the limit of {limit} bytes (limits.bundle)"
            );
            return Err(defect(Step::Fetch, digest, "too_large", message).into());
        }
        let blob = self
            .store
            .blob(&self.source, &layer)
            .await
            .map_err(|error| match error.registry() {
                Some(error) => self.registry_failure(Step::Fetch, Some(digest), error),
                None => transient(Step::Fetch, digest, "disk", error.to_string()),
            })?;
        let snapshot = self.open(verified, record, blob).await?;
        self.expect_snapshot(&snapshot, past)?;
        // `opa` may take long; other bundles can be fetched meanwhile.
        drop(turn);
        self.check_with_opa(&snapshot).await?;
        Ok(Some(snapshot))
    }

    /// The version that was served before the process started, verified again under the current
    /// policy. `None` when nothing usable is stored.
    pub(super) async fn restore(
        &self,
        policy: &Arc<TrustPolicy>,
        past: &History,
    ) -> Option<Result<Restored, Rejection>> {
        let reference = self.reference.to_string();
        let stored = self
            .store
            .get(
                &self.name,
                &reference,
                self.source.identity(),
                MAX_STORED_BYTES,
            )
            .await?;
        if let Err(set_aside) = self.check_set_aside(&stored.digest) {
            return Some(Err(set_aside.into()));
        }
        let evidence = Arc::new(Evidence::from_bytes(&stored.evidence).ok()?);
        let manifest = Manifest::parse(stored.manifest, None, MAX_STORED_BYTES).ok()?;
        let pinned = self.source.repository().pin(stored.digest);
        // A digest in the configuration overrides the disk.
        if self
            .reference
            .pinned()
            .is_some_and(|wanted| wanted != pinned)
        {
            return None;
        }
        let job = VerificationJob {
            policy: Arc::clone(policy),
            pinned,
            manifest,
            evidence,
            accepted: stored.accepted,
        };
        let (verified, record) = match self.verify(job).await {
            Ok(accepted) => accepted,
            Err(refused)
                if matches!(
                    refused.failure.class,
                    FailureClass::Evidence | FailureClass::Revoked
                ) =>
            {
                return Some(Err(refused.distrusted()));
            }
            Err(_) => return None,
        };
        let snapshot = self.open(verified, record, stored.layer).await.ok()?;
        if let Err(failure) = self.expect_snapshot(&snapshot, past) {
            let etag = Some(snapshot.etag().to_owned());
            return Some(Err(
                Rejection::from(Failure { etag, ..failure }).distrusted()
            ));
        }
        // The check of the registry that follows finds the version again, and reports the refusal.
        self.check_restored_with_opa(&snapshot).await.ok()?;
        Some(Ok(Restored {
            snapshot,
            checked: stored.checked,
        }))
    }

    /// Verifies an accepted version again, from the evidence in hand.
    pub(super) async fn reverify(
        &self,
        snapshot: &Snapshot,
        policy: &Arc<TrustPolicy>,
    ) -> Result<Arc<Snapshot>, Rejection> {
        let (manifest, record) = (snapshot.manifest(), snapshot.record());
        let job = VerificationJob {
            policy: Arc::clone(policy),
            pinned: manifest.pinned().clone(),
            manifest: manifest.value().clone(),
            evidence: Arc::clone(&record.evidence),
            accepted: Some(acceptance(record)),
        };
        let (verified, record) = self.verify(job).await?;
        let again = snapshot.reverified(verified, record);
        let failed = |error: Unpublishable| {
            defect(
                Step::Publish,
                snapshot.manifest_digest(),
                "unpublishable",
                error.to_string(),
            )
            .into()
        };
        again.map(Arc::new).map_err(failed)
    }

    /// Writes a version for [`Self::restore`] to find.
    pub(super) async fn persist(
        &self,
        snapshot: &Snapshot,
        checked: Option<Timestamp>,
        history: Bytes,
    ) {
        let Ok(evidence) = snapshot.record().evidence.to_bytes() else {
            return;
        };
        let accepted = acceptance(snapshot.record());
        let reference = self.reference.to_string();
        let (manifest, layer) = (snapshot.manifest().value(), snapshot.bundle().blob());
        let (name, reference, identity) = (&*self.name, reference.as_str(), self.source.identity());
        let stored = StoredBundle {
            name,
            reference,
            identity,
            manifest,
            layer,
            evidence,
            checked,
            accepted,
            history,
        };
        self.store.put(stored).await;
    }

    /// Records the time of a check for [`Self::restore`], if the stored version has this manifest.
    /// Returns the change to flush for it to survive a crash.
    pub(super) fn confirm(
        &self,
        snapshot: &Snapshot,
        checked: Option<Timestamp>,
    ) -> Option<Change> {
        let (reference, accepted) = (self.reference.to_string(), acceptance(snapshot.record()));
        self.store.touch_later(
            &self.name,
            &reference,
            snapshot.manifest_digest(),
            checked,
            accepted,
        )
    }

    /// Removes the version that [`Self::restore`] would find.
    pub(super) async fn remove(&self, history: Bytes) {
        self.store
            .remove(&self.name, &self.reference.to_string(), history)
            .await;
    }

    /// Verifies a manifest by the signature material in the registry, and checks the expectations
    /// about it: another signature may meet them.
    async fn collect_and_verify(
        &self,
        policy: &Arc<TrustPolicy>,
        pinned: &PinnedReference,
        manifest: Manifest,
        past: &History,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let failed = |error| self.registry_failure(Step::Evidence, Some(pinned.digest()), &error);
        let job = |manifest, evidence| VerificationJob {
            policy: Arc::clone(policy),
            pinned: pinned.clone(),
            manifest,
            evidence,
            accepted: None,
        };
        let Rule::Signed(requirements) = policy.rule() else {
            return self
                .verify_expected(job(manifest, Arc::default()), past)
                .await;
        };
        let source = match &requirements.signatures {
            Some(repository) => self
                .registries
                .source(repository)
                .map_err(|error| failed(error.into()))?,
            None => self.source.clone(),
        };
        let collection = Collection {
            source: &source,
            subject: pinned,
            limit: self.evidence_limit,
            api: ReferrersApi::AskUnlessMissing,
            formats: Some(&requirements.formats),
            useless: Some(&self.useless_referrers),
        };
        let evidence = Arc::new(collection.collect().await.map_err(failed)?);
        let verified = self
            .verify_expected(job(manifest.clone(), Arc::clone(&evidence)), past)
            .await;
        let refused = match verified {
            Err(refused) if depends_on_evidence(&refused.failure) => refused,
            other => return other,
        };
        // Neither the lists of a mirror nor what the registry answered for other artifacts may
        // hide a signature.
        let overlooked = source.has_mirrors()
            || (evidence.api_assumed_missing()
                && collection
                    .ask_referrers_api()
                    .await
                    .map_err(failed)?
                    .is_some());
        if !overlooked {
            return Err(self.explain(refused, &evidence).await);
        }
        let everywhere = source.clone().at_every_host();
        let collection = Collection {
            source: &everywhere,
            api: ReferrersApi::Ask,
            ..collection
        };
        let evidence = Arc::new(collection.collect().await.map_err(failed)?);
        let verified = self.verify_expected(job(manifest, Arc::clone(&evidence)), past);
        match verified.await {
            Ok(verified) => Ok(verified),
            Err(refused) => Err(self.explain(refused, &evidence).await),
        }
    }

    async fn verify_expected(
        &self,
        job: VerificationJob,
        past: &History,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let (verified, record) = self.verify(job).await?;
        self.expect_manifest(&verified, past)?;
        Ok((verified, record))
    }

    /// Turns a rejection for missing evidence into a failure of the registry where the registry
    /// withheld a piece of it: that may have been the signature. Where `limits.evidence` left
    /// pieces unread, says so.
    async fn explain(&self, mut refused: Rejection, evidence: &Evidence) -> Rejection {
        if !depends_on_evidence(&refused.failure) {
            return refused;
        }
        let withheld = |error| {
            let digest = refused.failure.digest.as_ref();
            self.registry_failure(Step::Evidence, digest, error)
        };
        if let Some(error) = evidence.unavailable() {
            refused.failure = withheld(error);
        } else if let Some(pinned) = evidence.denied_beside()
            && let Err(error) = self.source.clone().at_origin().manifest(pinned).await
        {
            // The registry refuses the artifact as well now, so the refusal of the tag does not
            // mean that the tag is missing.
            refused.failure = withheld(&error);
        } else if let Some(beyond) = evidence.beyond_limit() {
            let message = &mut refused.failure.message;
            *message = format!("{message}; {beyond}");
        }
        refused
    }

    async fn verify(
        &self,
        job: VerificationJob,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let layer = bundle_layer(&job.manifest);
        let digest = job.pinned.digest().clone();
        let mut result = self
            .pool
            .verify(job, self.attempt_at(Step::Verify, &digest))
            .await;
        if let (Err(refused), Ok(layer)) = (&mut result, layer) {
            // Clients may run the refused version nevertheless.
            refused.failure.etag = tag_of(&layer.digest);
        }
        let (outcome, reason) = match &result {
            Ok(_) => ("accepted", "none"),
            Err(refused) => ("rejected", refused.failure.reason),
        };
        self.metrics.count_verification(outcome, reason);
        result
    }

    async fn open(
        &self,
        verified: Verified<Manifest>,
        record: VerificationRecord,
        blob: Blob,
    ) -> Result<Arc<Snapshot>, Failure> {
        let limits = self.limits;
        let digest = verified.pinned().digest().clone();
        let open = move || {
            let bytes = blob.clone();
            let bundle = Bundle::open(blob, &limits).map_err(|error| {
                // Bytes that the disk has lost are not a defect of the bundle.
                let reason = if is_intact(&bytes) {
                    "not_a_bundle"
                } else {
                    DISK
                };
                (Step::Open, reason, error.to_string())
            })?;
            Snapshot::new(verified, record, bundle)
                .map_err(|error| (Step::Publish, "unpublishable", error.to_string()))
        };
        match self
            .pool
            .open(self.attempt_at(Step::Open, &digest), open)
            .await
        {
            Ok(Ok(snapshot)) => Ok(Arc::new(snapshot)),
            Ok(Err((step, DISK, message))) => Err(transient(step, &digest, DISK, message)),
            Ok(Err((step, reason, message))) => Err(defect(step, &digest, reason, message)),
            Err(error @ NotOpened::Timeout) => {
                Err(defect(Step::Open, &digest, "timeout", error.to_string()))
            }
            Err(error @ NotOpened::Panic(_)) => Err(transient(
                Step::Open,
                &digest,
                "internal",
                error.to_string(),
            )),
        }
    }

    /// Records that a step begins which may kill the process.
    async fn attempt_at(&self, step: Step, digest: &Digest) -> Attempt {
        self.store
            .attempt(digest, &step.to_string(), &self.limits_key())
            .await
    }

    /// Refuses a digest in whose verification or opening the process has died twice.
    fn check_set_aside(&self, digest: &Digest) -> Result<(), Failure> {
        let Some(set_aside) = self.store.set_aside(digest, &self.limits_key()) else {
            return Ok(());
        };
        let SetAside { step, deaths, .. } = &set_aside;
        tracing::error!(bundle = &*self.name, %digest, step, deaths, "not opened again: {set_aside}");
        let step = if *step == Step::Verify.to_string() {
            Step::Verify
        } else {
            Step::Open
        };
        Err(defect(step, digest, "set_aside", set_aside.to_string()))
    }

    /// A key that changes with the limits under which a bundle is verified or opened.
    fn limits_key(&self) -> String {
        let limits = format!("{:?} {}", self.limits, self.evidence_limit);
        Digest::sha256(limits.as_bytes()).hex()[..16].to_owned()
    }

    pub(super) fn registry_failure(
        &self,
        step: Step,
        digest: Option<&Digest>,
        error: &RegistryError,
    ) -> Failure {
        let class = match error.class() {
            Class::Transient => FailureClass::Transient,
            Class::RateLimited { retry_after } => FailureClass::RateLimited(retry_after),
            Class::Denied => FailureClass::Denied,
            Class::Defect => FailureClass::Defect,
            // A tag that resolves to a missing manifest is a push or a garbage collection under
            // way.
            Class::NotFound if step == Step::Resolve || self.reference.pinned().is_some() => {
                FailureClass::NotFound
            }
            Class::NotFound => FailureClass::Transient,
        };
        Failure {
            class,
            step,
            digest: digest.cloned(),
            etag: None,
            reason: error.label(),
            message: error.to_string(),
        }
    }
}

/// Whether more evidence can change the verdict. A signature by a revoked key is one of several
/// that an artifact may have; a revoked digest is final.
fn depends_on_evidence(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Evidence => true,
        FailureClass::Revoked => failure.reason != Reason::RevokedDigest.label(),
        _ => false,
    }
}

/// The layer that is served, byte for byte. An artifact that would have to be repacked is refused;
/// `bundlegate pull` and `save` repack it.
fn bundle_layer(manifest: &Manifest) -> Result<Descriptor, String> {
    let plan = LayerPlan::of(manifest, None).map_err(|error| error.to_string())?;
    match plan.layers() {
        [only] => Ok(only.clone()),
        many => Err(format!(
            "no OPA bundle: {} layers of single files; make one of them with `bundlegate pull` and `save`",
            many.len()
        )),
    }
}

fn acceptance(record: &VerificationRecord) -> Acceptance {
    Acceptance {
        policy: record.policy_revision.to_string(),
        roots: record.root_revisions.clone(),
    }
}

pub(super) fn defect(
    step: Step,
    digest: &Digest,
    reason: &'static str,
    message: String,
) -> Failure {
    Failure {
        class: FailureClass::Defect,
        step,
        digest: Some(digest.clone()),
        etag: None,
        reason,
        message,
    }
}

pub(super) fn transient(
    step: Step,
    digest: &Digest,
    reason: &'static str,
    message: String,
) -> Failure {
    Failure {
        class: FailureClass::Transient,
        step,
        digest: Some(digest.clone()),
        etag: None,
        reason,
        message,
    }
}
