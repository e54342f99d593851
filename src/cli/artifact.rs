//! Finds the artifact that a reference names, in the store, in a layout folder or in a
//! registry, and reads the bundle in it.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use tokio::task::spawn_blocking;

use super::{flags::RegistryFlags, store_flag::StoreFlag, table};
use crate::{
    bundle::{Assembled, Bundle, LayerPlan, Limits},
    images::{Images, ImagesError},
    metrics::Metrics,
    oci::{
        Blob, BlobWriter, Descriptor, Manifest, NewBlob, PinnedReference, Reference, WriteError,
    },
    registry::{ReadLimits, Registries, RegistryMetrics, Source},
};

/// Read limits for artifacts on this machine. Bundles have a limit of their own (`--max-size`).
const LIMITS: ReadLimits = ReadLimits {
    manifest: 16 << 20,
    evidence: 16 << 20,
    bundle: u64::MAX,
};
/// Layers up to this size are read into memory, larger ones into an unlinked file.
const MAX_IN_MEMORY_BYTES: u64 = 4 << 20;

/// An artifact, resolved to a digest.
#[derive(Debug)]
pub(super) struct ResolvedArtifact {
    /// The reference as given.
    pub(super) reference: Reference,
    /// The repository that has it.
    pub(super) source: Source,
    pub(super) pinned: PinnedReference,
    pub(super) manifest: Manifest,
    /// Whether the repository is the image store.
    pub(super) in_store: bool,
}

/// Looks a reference up in the store, or in the layout folder that it names.
pub(super) async fn find_local(
    images: &Images,
    reference: &Reference,
) -> anyhow::Result<Option<ResolvedArtifact>> {
    let metrics = RegistryMetrics::new(&Metrics::new()).context("metrics")?;
    let registries = Registries::new(BTreeMap::new(), LIMITS, metrics);
    if reference.repository().host() == "oci-layout" {
        return find_in_registry(&registries, reference).await.map(Some);
    }
    let (store, name) = (images.clone(), reference.clone());
    let Some(entry) = spawn_blocking(move || store.resolve(&name)).await?? else {
        return Ok(None);
    };
    let source = registries
        .source(&images.repository())?
        .with_tag_prefix(reference.repository());
    let pinned = images.repository().pin(entry.digest);
    let manifest = source.manifest(&pinned).await?;
    Ok(Some(ResolvedArtifact {
        reference: reference.clone(),
        source,
        pinned,
        manifest,
        in_store: true,
    }))
}

/// Looks a reference up in the store; an error if the store does not have it.
pub(super) async fn find_in_store(
    images: &Images,
    reference: &Reference,
) -> anyhow::Result<ResolvedArtifact> {
    let found = find_local(images, reference).await?;
    found.ok_or_else(|| ImagesError::NotFound(reference.clone()).into())
}

/// Looks a reference up in the store, and then in its registry; with `registry_only` only in the
/// registry.
pub(super) async fn find(
    store: &StoreFlag,
    flags: &RegistryFlags,
    registry_only: bool,
    reference: &Reference,
) -> anyhow::Result<ResolvedArtifact> {
    if !registry_only || reference.repository().host() == "oci-layout" {
        let store = store.clone();
        let images = spawn_blocking(move || store.open()).await??;
        if let Some(found) = find_local(&images, reference).await? {
            return Ok(found);
        }
    }
    let cli_config = flags.cli_config()?;
    let (registries, _) = flags.registries(cli_config.as_ref(), reference.repository())?;
    let found = find_in_registry(&registries, reference).await;
    if registry_only {
        found
    } else {
        found.map_err(|error| {
            error.context(format!(
                "{reference}: not in the image store; in the registry"
            ))
        })
    }
}

/// Looks a reference up in its registry or layout folder.
pub(super) async fn find_in_registry(
    registries: &Registries,
    reference: &Reference,
) -> anyhow::Result<ResolvedArtifact> {
    let source = registries.source(reference.repository())?;
    let pinned = source.resolve(reference).await?;
    let manifest = source.manifest(&pinned).await?;
    Ok(ResolvedArtifact {
        reference: reference.clone(),
        source,
        pinned,
        manifest,
        in_store: false,
    })
}

impl ResolvedArtifact {
    /// The plan to assemble a bundle from its layers.
    pub(super) fn layer_plan(&self, data_root: Option<&str>) -> anyhow::Result<LayerPlan> {
        LayerPlan::of(&self.manifest, data_root).with_context(|| self.reference.to_string())
    }

    /// Fetches the layers and assembles the bundle's bytes.
    pub(super) async fn bytes(
        &self,
        plan: &LayerPlan,
        limits: Limits,
    ) -> anyhow::Result<Assembled> {
        let size = Descriptor::total(plan.layers());
        if size > limits.bundle {
            bail!(
                "{}: {} exceeds --max-size ({})",
                self.reference,
                table::size(size),
                table::size(limits.bundle)
            );
        }
        let mut blobs = Vec::new();
        for layer in plan.layers() {
            blobs.push(self.fetch(layer).await?);
        }
        let plan = plan.clone();
        let space = NewBlob::system_space();
        let made = spawn_blocking(move || plan.assemble(&blobs, &limits, space)).await?;
        made.with_context(|| self.reference.to_string())
    }

    /// Fetches the bundle and opens it as OPA would.
    pub(super) async fn bundle(&self, plan: &LayerPlan, limits: Limits) -> anyhow::Result<Bundle> {
        let assembled = self.bytes(plan, limits).await?;
        let opened = spawn_blocking(move || assembled.open(&limits)).await?;
        opened.with_context(|| self.reference.to_string())
    }

    async fn fetch(&self, layer: &Descriptor) -> anyhow::Result<Blob> {
        let mut stream = self.source.blob(layer).await?;
        if layer.size <= MAX_IN_MEMORY_BYTES {
            return Ok(stream.collect().await?);
        }
        let spool_error = |error: std::io::Error| {
            anyhow!("temporary file: {error}; free some space, or name another folder with TMPDIR")
        };
        loop {
            let file = tempfile::tempfile().map_err(spool_error)?;
            let writer = BlobWriter::in_file(layer.clone(), file);
            let written = stream.copy_to(writer, BlobWriter::write, &()).await?;
            match written.and_then(|writer| Ok(writer.finish(Into::into)?)) {
                Ok(blob) => return Ok(blob),
                Err(WriteError::Io(error)) => return Err(spool_error(error)),
                Err(WriteError::Mismatch(mismatch)) => stream.restart(&mismatch).await?,
            }
        }
    }
}
