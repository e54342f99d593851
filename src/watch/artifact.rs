//! From the manifest that a reference names to the bundle: the way through image indexes, the layers,
//! and what is made of them.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    pool::NotOpened,
    refresh::{Pipeline, defect, transient},
};
use crate::{
    bundle::{LayerError, LayerPlan, Signer, Verifier},
    oci::{
        Blob, Descriptor, Digest, Document, Manifest, ManifestPath, PinnedReference, Platform,
        choose_manifest,
    },
    publish::{Failure, Snapshot, Step, VerificationRecord, is_intact},
    verify::Verified,
};

/// The deepest nesting of image indexes, which is OPA's (`maxIndexDepth` in
/// `v1/download/oci_download.go`).
const MAX_INDEXES: usize = 4;
/// Bundles of this size and above are also kept in an unlinked file. Below it, sending from memory
/// is as fast.
const MIN_COPIED_BYTES: u64 = 64 << 10;
/// The number of layers of one artifact that are fetched at a time.
const CONCURRENT_LAYERS: usize = 4;
/// The metric label of a failure of the disk.
const DISK: &str = "disk";
/// The metric label of an artifact in which there is no bundle.
const NO_BUNDLE: &str = "no_bundle";

/// The metric label of a bundle that is not signed for OPA by a configured key.
const OPA_SIGNATURE: &str = "opa_signature";
/// The metric label of a bundle that can't be signed for OPA.
const UNSIGNABLE: &str = "unsignable";

/// How the artifact of a bundle is read, and what is made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArtifactOptions {
    /// Which manifest of an image index is served (`platform`).
    pub platform: Option<Platform>,
    /// The folder below which the data of conftest's artifacts is mounted (`data_root`).
    pub data_root: Option<String>,
    /// The keys of which one must have signed the bundle for OPA (`opa_signature`).
    pub opa_verifier: Option<Arc<Verifier>>,
    /// The key that signs the bundle for OPA (`resign`).
    pub signer: Option<Arc<Signer>>,
}

impl Pipeline {
    /// The path to the manifest of an image. An index costs one request for each manifest below it.
    pub(super) async fn find_image(
        &self,
        pinned: &PinnedReference,
        manifest: Manifest,
    ) -> Result<ManifestPath, Failure> {
        let digest = pinned.digest();
        let refused = |message| defect(Step::Manifest, digest, "index", message);
        let mut path = ManifestPath::new(digest.clone(), manifest);
        loop {
            let Document::Index { manifests } = path.last().document() else {
                return Ok(path);
            };
            if path.length() > MAX_INDEXES {
                return Err(refused(format!(
                    "image indexes are nested more than {MAX_INDEXES} levels deep"
                )));
            }
            let chosen = choose_manifest(manifests, self.artifact.platform.as_ref());
            let entry = chosen.map_err(|error| refused(error.to_string()))?.clone();
            let manifest = self.source().described_manifest(&entry).await;
            let manifest = manifest
                .map_err(|error| self.registry_failure(Step::Manifest, Some(digest), &error))?;
            path = path
                .descend(manifest)
                .map_err(|error| refused(error.to_string()))?;
        }
    }

    /// Whether the path is the one that [`Self::find_image`] would find now. `platform` may have
    /// changed since it was stored.
    pub(super) fn would_choose(&self, path: &ManifestPath) -> bool {
        let next = path.manifests().skip(1);
        path.manifests().zip(next).all(|((_, index), (_, next))| {
            let Document::Index { manifests } = index.document() else {
                return false;
            };
            let chosen = choose_manifest(manifests, self.artifact.platform.as_ref());
            chosen.is_ok_and(|entry| entry.digest.recompute(next.raw()) == entry.digest)
        })
    }

    /// The plan for the bundle in an artifact.
    pub(super) fn layer_plan(&self, manifest: &Manifest) -> Result<LayerPlan, LayerError> {
        let artifact = &self.artifact;
        let plan = LayerPlan::of(manifest, artifact.data_root.as_deref())?;
        Ok(plan
            .verified_by(artifact.opa_verifier.clone())
            .signed_by(artifact.signer.clone()))
    }

    /// Fetches the layers that a plan needs. `digest` is what the reference named.
    pub(super) async fn fetch_layers(
        &self,
        digest: &Digest,
        plan: &LayerPlan,
    ) -> Result<Vec<Blob>, Failure> {
        let layers = plan.layers();
        let (size, limit) = (Descriptor::total(layers), self.limits.bundle);
        let too_large = |message| Err(defect(Step::Fetch, digest, "too_large", message));
        if size > limit {
            let what = if layers.len() == 1 {
                "bundle"
            } else {
                "layers"
            };
            return too_large(format!(
                "{what} of {size} bytes exceeds the limit of {limit} bytes (limits.bundle)"
            ));
        }
        if layers.len() as u64 > self.limits.files {
            return too_large(format!(
                "{} layers exceed the limit of {} (limits.files)",
                layers.len(),
                self.limits.files
            ));
        }
        let source = &self.source();
        let fetched = stream::iter(layers.to_vec())
            .map(|layer| async move { self.store.blob(source, &layer).await })
            .buffered(CONCURRENT_LAYERS)
            .try_collect::<Vec<_>>();
        fetched.await.map_err(|error| match error.registry() {
            Some(error) => self.registry_failure(Step::Fetch, Some(digest), error),
            None => transient(Step::Fetch, digest, DISK, error.to_string()),
        })
    }

    /// Makes the bundle of its layers, and opens it.
    pub(super) async fn open(
        &self,
        verified: Verified<Manifest>,
        record: VerificationRecord,
        plan: LayerPlan,
        layers: Vec<Blob>,
    ) -> Result<Arc<Snapshot>, Failure> {
        let (limits, space) = (self.limits, self.store.space());
        let copies = Arc::clone(&space);
        let digest = record.path.digest().clone();
        let image = record.path.last().digest().clone();
        let attempt = self.attempt_at(Step::Open, &image);
        if let Some(root) = plan.guessed_root() {
            tracing::warn!(
                bundle = &*self.name,
                %digest,
                root,
                "the artifact does not say where its data begins; set data_root of the bundle to be sure"
            );
        }
        let open = move || {
            let assembled = plan.assemble(&layers, &limits, space).map_err(|error| {
                let reason = match &error {
                    LayerError::Temporary(_) => DISK,
                    LayerError::Refused(_) => not_a_bundle(&layers),
                    LayerError::Layers(_) | LayerError::File { .. } => NO_BUNDLE,
                    LayerError::OpaSignature(_) => with_intact(&layers, OPA_SIGNATURE),
                    LayerError::Unsignable(_) => with_intact(&layers, UNSIGNABLE),
                };
                (Step::Open, reason, error.to_string())
            })?;
            let mut bundle = assembled
                .open(&limits)
                .map_err(|error| (Step::Open, not_a_bundle(&layers), error.to_string()))?;
            if bundle.blob().size() >= MIN_COPIED_BYTES
                && let Err(error) = bundle.keep_copy(&*copies)
            {
                tracing::debug!(%error, "a large bundle is sent from memory");
            }
            Snapshot::new(verified, record, bundle)
                .map_err(|error| (Step::Publish, "unpublishable", error.to_string()))
        };
        match self.pool.open(attempt, open).await {
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

    /// The layers that a served bundle was made from, to be stored. Layers that are neither in
    /// memory nor on disk any more are fetched again.
    pub(super) async fn layers_of(&self, snapshot: &Snapshot) -> Option<Vec<Blob>> {
        let content = snapshot.content();
        if content.bundle_is_layer() {
            return Some(vec![content.bytes().clone()]);
        }
        let plan = self.layer_plan(snapshot.manifest().value()).ok()?;
        match self.fetch_layers(snapshot.manifest_digest(), &plan).await {
            Ok(layers) => Some(layers),
            Err(failure) => {
                tracing::error!(
                    bundle = &*self.name,
                    error = failure.message,
                    "a version can't be written to the cache: its layers are not there any more"
                );
                None
            }
        }
    }
}

/// The label of a defect of layers. Bytes that the disk has lost are none.
fn not_a_bundle(layers: &[Blob]) -> &'static str {
    with_intact(layers, "not_a_bundle")
}

/// The label of a defect, if the layers still have their bytes.
fn with_intact(layers: &[Blob], label: &'static str) -> &'static str {
    if layers.iter().all(is_intact) {
        label
    } else {
        DISK
    }
}
