//! One refresh as straight-line code: resolve → manifest, by way of image indexes → evidence → verify
//! → fetch → open → `opa`, where configured → snapshot. Each step consumes the type that the one
//! before it made, so none can be left out; verification comes before the download.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    ArtifactOptions, Deltas, Expect, OpaCheck,
    history::History,
    metrics::WatcherMetrics,
    pool::{Rejection, VerificationJob, VerificationPool, verification_outcome},
    tag_choice::Choice,
};
use crate::{
    bundle,
    oci::{Digest, Manifest, ManifestPath, Reference},
    publish::{
        Failure, FailureClass, Outcome, Snapshot, Step, Unpublishable, VerdictStatus,
        VerificationRecord, tag_of,
    },
    registry::{Class, LiveSource, Lookup, RegistryError, Resolved, Source},
    store::{Acceptance, Attempt, Change, SetAside, Store, StoredBundle},
    traces::{Traces, step},
    verify::{
        Collection, Evidence, Reason, ReferrersApi, Requirements, Rule, TrustPolicy,
        UselessReferrers, Verified,
    },
};

/// The limit of manifest and evidence together when they are read back from disk.
const MAX_STORED_BYTES: u64 = 64 << 20;

/// The sources, limits and metrics with which one bundle is refreshed.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The bundle's name.
    pub name: Arc<str>,
    /// The reference to serve.
    pub reference: Reference,
    /// The part of the tag of `reference` that may state a version.
    pub version_text: Option<Arc<str>>,
    /// The repository of `reference`.
    pub source: LiveSource,
    /// How the artifact is read.
    pub artifact: ArtifactOptions,
    /// The expectations beside signatures (`expect`).
    pub expect: Arc<Expect>,
    /// The cache of blobs.
    pub store: Store,
    /// The limits of a bundle.
    pub limits: bundle::Limits,
    /// The check by the real `opa`, where configured.
    pub opa_check: Option<OpaCheck>,
    /// The versions between which deltas are computed, where that is configured.
    pub deltas: Option<Arc<Deltas>>,
    /// The limit of signature material in bytes (`limits.evidence`).
    pub evidence_limit: u64,
    /// The referrers that hold no signature, as far as they are known.
    pub useless_referrers: Arc<UselessReferrers>,
    /// The threads that verify and open.
    pub pool: VerificationPool,
    /// What the bundle's watchers count.
    pub metrics: Arc<WatcherMetrics>,
    /// Records checks.
    pub traces: Traces,
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
        let source = self.source();
        let resolved = step("resolve", source.look_up(&self.reference, lookup)).await;
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
        self.check_set_aside(digest, digest)?;
        let turn = source.transfer_permit().await;
        let failed =
            |step| move |error: RegistryError| self.registry_failure(step, Some(digest), &error);
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => {
                let manifest = step("manifest", source.manifest(&pinned)).await;
                manifest.map_err(failed(Step::Manifest))?
            }
        };
        let path = step("image", self.find_image(&pinned, manifest)).await?;
        let path = Arc::new(path);
        self.check_set_aside(path.last().digest(), digest)?;
        let verified = step("evidence", self.collect_and_verify(policy, path, past));
        let (verified, record) = verified.await?;
        let plan = self
            .layer_plan(verified.value())
            .map_err(|error| defect(Step::Open, digest, "no_bundle", error.to_string()))?;
        let layers = step("layers", self.fetch_layers(digest, &plan)).await?;
        let snapshot = step("open", self.open(verified, record, plan, layers)).await?;
        self.expect_snapshot(&snapshot, past)?;
        // `opa` may take long; other bundles can be fetched meanwhile.
        drop(turn);
        step("opa_check", self.check_with_opa(&snapshot)).await?;
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
                self.source().identity(),
                MAX_STORED_BYTES,
            )
            .await?;
        let evidence = stored
            .evidence
            .iter()
            .map(|piece| Evidence::from_bytes(piece));
        let evidence: Result<Vec<_>, _> = evidence.map(|piece| piece.map(Arc::new)).collect();
        let evidence = evidence.ok()?;
        let path = stored_path(stored.digest, stored.manifests)?;
        for digest in [path.digest(), path.last().digest()] {
            if let Err(set_aside) = self.check_set_aside(digest, path.digest()) {
                return Some(Err(set_aside.into()));
            }
        }
        if !self.would_choose(&path) {
            return None;
        }
        // A digest in the configuration overrides the disk.
        if self
            .reference
            .pinned()
            .is_some_and(|wanted| wanted.digest() != path.digest())
        {
            return None;
        }
        let plan = self.layer_plan(path.last()).ok()?;
        let job = VerificationJob {
            policy: Arc::clone(policy),
            repository: self.reference.repository().clone(),
            path: Arc::new(path),
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
        let opened = self.open(verified, record, plan, stored.layers).await;
        let snapshot = opened.ok()?;
        if let Err(failure) = self.expect_snapshot(&snapshot, past) {
            let etag = Some(snapshot.etag().into());
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
            repository: manifest.pinned().repository().clone(),
            path: Arc::clone(&record.path),
            evidence: record.evidence.clone(),
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
        if !self.store.is_persistent() {
            return;
        }
        let evidence = snapshot.record().evidence.iter();
        let Ok(evidence) = evidence.map(|piece| piece.to_bytes()).collect() else {
            return;
        };
        let Some(layers) = self.layers_of(snapshot).await else {
            // The history detects a rollback after a restart, and an older version must not come
            // back.
            return self.remove(history).await;
        };
        let accepted = acceptance(snapshot.record());
        let reference = self.reference.to_string();
        let path = &snapshot.record().path;
        let source = self.source();
        let (name, reference, identity) = (&*self.name, reference.as_str(), source.identity());
        let stored = StoredBundle {
            name,
            reference,
            identity,
            path,
            layers,
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

    /// Verifies an image by the signature material in the registry, and checks the expectations
    /// about it: another signature may meet them. Where an index leads to it, that of the index
    /// counts first, and that of a manifest below it is asked for only if it does not suffice.
    async fn collect_and_verify(
        &self,
        policy: &Arc<TrustPolicy>,
        path: Arc<ManifestPath>,
        past: &History,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let mut job = VerificationJob {
            policy: Arc::clone(policy),
            repository: self.reference.repository().clone(),
            path: Arc::clone(&path),
            evidence: Vec::new(),
            accepted: None,
        };
        let Rule::Signed(requirements) = policy.rule() else {
            job.evidence.push(Arc::default());
            return self.verify_expected(job, past).await;
        };
        let signatures = self.signature_source(requirements, path.digest())?;
        let mut refused: Option<Rejection> = None;
        for (digest, _) in path.manifests() {
            let subject = self.reference.repository().pin(digest.clone());
            let collection = Collection {
                source: &signatures,
                subject: &subject,
                limit: self.evidence_limit,
                api: ReferrersApi::AskUnlessMissing,
                formats: Some(&requirements.formats),
                useless: Some(&self.useless_referrers),
            };
            let collected = job.evidence.len();
            match self.verify_by(collection, &mut job, past).await {
                // The evidence of the next manifest may suffice.
                Err(rejection)
                    if job.evidence.len() > collected && may_be_overruled(&rejection.failure) =>
                {
                    if rejection.verdict.is_none() {
                        // Not refused by the policy, but by an expectation: while it is there, the
                        // evidence of the next manifest does not count.
                        job.evidence.truncate(collected);
                        job.evidence.push(Arc::default());
                    }
                    // A list that the registry withheld may have had the signature, and an
                    // expectation says more than a manifest without one.
                    let is_kept = |earlier: &Rejection| {
                        earlier.verdict.is_none() || !depends_on_evidence(&earlier.failure)
                    };
                    if !refused.as_ref().is_some_and(is_kept) {
                        refused = Some(rejection);
                    }
                }
                other => return other,
            }
        }
        Err(refused.unwrap_or_else(|| no_evidence(path.digest()).into()))
    }

    /// The repository of the reference, by the options of its registry as they are now.
    pub(super) fn source(&self) -> Source {
        self.source.current()
    }

    /// The repository in which the signatures are.
    fn signature_source(
        &self,
        requirements: &Requirements,
        digest: &Digest,
    ) -> Result<Source, Failure> {
        let Some(repository) = &requirements.signatures else {
            return Ok(self.source());
        };
        let registries = self.source.registries();
        registries
            .source(repository)
            .map_err(|error| self.registry_failure(Step::Evidence, Some(digest), &error.into()))
    }

    /// Collects the signature material of one more manifest of the path, adds it to the job, and
    /// verifies.
    async fn verify_by(
        &self,
        collection: Collection<'_>,
        job: &mut VerificationJob,
        past: &History,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let root = job.path.digest().clone();
        let failed = |error| self.registry_failure(Step::Evidence, Some(&root), &error);
        let evidence = Arc::new(collection.collect().await.map_err(failed)?);
        job.evidence.push(Arc::clone(&evidence));
        let refused = match self.verify_expected(job.clone(), past).await {
            Err(refused) if depends_on_evidence(&refused.failure) => refused,
            other => return other,
        };
        // Neither the lists of a mirror nor what the registry answered for other artifacts may
        // hide a signature.
        let overlooked = collection.source.has_mirrors()
            || (evidence.api_assumed_missing()
                && collection
                    .ask_referrers_api()
                    .await
                    .map_err(failed)?
                    .is_some());
        if !overlooked {
            return Err(self.explain(refused, &evidence).await);
        }
        let mut source = collection.source.clone().at_every_host();
        loop {
            let collection = Collection {
                source: &source,
                api: ReferrersApi::Ask,
                ..collection
            };
            let evidence = Arc::new(collection.collect().await.map_err(failed)?);
            job.evidence.pop();
            job.evidence.push(Arc::clone(&evidence));
            let refused = match self.verify_expected(job.clone(), past).await {
                Ok(verified) => return Ok(verified),
                Err(refused) => refused,
            };
            // What a mirror lists may have left none of `limits.evidence` to the signatures that
            // the registry has.
            let is_crowded_out = source.has_mirrors()
                && evidence.beyond_limit().is_some()
                && depends_on_evidence(&refused.failure);
            if !is_crowded_out {
                return Err(self.explain(refused, &evidence).await);
            }
            source = source.at_origin();
        }
    }

    async fn verify_expected(
        &self,
        job: VerificationJob,
        past: &History,
    ) -> Result<(Verified<Manifest>, VerificationRecord), Rejection> {
        let (verified, record) = self.verify(job).await?;
        self.expect_manifest(&record.path, &verified, past)?;
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
            && let Err(error) = self.source().at_origin().manifest(pinned).await
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
        let plan = self.layer_plan(job.path.last());
        let path = Arc::clone(&job.path);
        let attempt = self.attempt_at(Step::Verify, path.last().digest());
        let durations = self.metrics.verification_durations.clone();
        let verifying = self.pool.verify(job, attempt, durations);
        let mut result = step("verify", verifying).await;
        if let Err(Rejection { failure, .. }) = &mut result {
            failure.below = below(&path);
            // Clients may run the refused version nevertheless.
            let digest = plan.ok().and_then(|plan| plan.expected_digest());
            failure.etag = digest.and_then(|digest| tag_of(&digest)).map(Into::into);
        }
        let reason = match &result {
            Ok(_) => "none",
            Err(refused) => refused.failure.reason,
        };
        self.metrics
            .count_verification(verification_outcome(&result), reason);
        result
    }

    /// Records that a step begins which may kill the process. `digest` is that of the image itself:
    /// anyone can put a new index in front of it.
    pub(super) async fn attempt_at(&self, step: Step, digest: &Digest) -> Attempt {
        self.store
            .attempt(digest, &step.to_string(), &self.limits_key())
            .await
    }

    /// Refuses a digest in whose verification or opening the process has died twice. `named` is what
    /// the reference named.
    fn check_set_aside(&self, digest: &Digest, named: &Digest) -> Result<(), Failure> {
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
        Err(defect(step, named, "set_aside", set_aside.to_string()))
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
            below: Arc::default(),
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

/// Whether the evidence of another manifest of the path can change the verdict.
fn may_be_overruled(failure: &Failure) -> bool {
    depends_on_evidence(failure) || failure.step == Step::Evidence
}

/// The digests of the manifests to which the first one of a path leads.
pub(super) fn below(path: &ManifestPath) -> Arc<Vec<Digest>> {
    let below = path.manifests().skip(1);
    Arc::new(below.map(|(digest, _)| digest.clone()).collect())
}

/// The path of a stored version; `None` if the manifests do not list each other.
fn stored_path(digest: Digest, manifests: Vec<Bytes>) -> Option<ManifestPath> {
    let mut parsed = manifests
        .into_iter()
        .map(|raw| Manifest::parse(raw, None, MAX_STORED_BYTES).ok());
    let mut path = ManifestPath::new(digest, parsed.next()??);
    for manifest in parsed {
        path = path.descend(manifest?).ok()?;
    }
    Some(path)
}

fn acceptance(record: &VerificationRecord) -> Acceptance {
    Acceptance {
        policy: record.policy_revision.to_string(),
        roots: record.root_revisions.clone(),
    }
}

/// Never needed: every path has a manifest.
fn no_evidence(digest: &Digest) -> Failure {
    let message = "no manifest to verify".to_owned();
    transient(Step::Verify, digest, "internal", message)
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
        below: Arc::default(),
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
        below: Arc::default(),
        etag: None,
        reason,
        message,
    }
}
