//! The artifact that a reference means: in the store, in a folder, or in a registry; and
//! the bundle in it.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use tokio::task::spawn_blocking;

use super::{flags::RegistryFlags, store_flag::StoreFlag, table};
use crate::{
    bundle::{Bundle, Limits, Recipe},
    images::{Images, ImagesError},
    metrics::Metrics,
    oci::{Blob, BlobWriter, Descriptor, Manifest, PinnedReference, Reference, WriteError},
    registry::{ReadLimits, Registries, Source},
};

/// What is read of an artifact on this machine at most; bundles have a limit of their own.
const LIMITS: ReadLimits = ReadLimits { manifest: 16 << 20, evidence: 16 << 20, bundle: u64::MAX };
/// Larger bundles go through a file without a name.
const IN_MEMORY: u64 = 4 << 20;

/// An artifact, resolved once.
#[derive(Debug)]
pub(super) struct Found {
    /// As it was asked for.
    pub(super) reference: Reference,
    /// Where it is.
    pub(super) source: Source,
    pub(super) pinned: PinnedReference,
    pub(super) manifest: Manifest,
    /// Whether that is the image store.
    pub(super) in_store: bool,
}

/// What the store, or the layout folder that the reference names, has under it.
pub(super) async fn on_this_machine(images: &Images, reference: &Reference) -> anyhow::Result<Option<Found>> {
    let registries = Registries::new(BTreeMap::new(), LIMITS, Metrics::new().context("metrics")?);
    if reference.repository().host() == "oci-layout" {
        return elsewhere(&registries, reference).await.map(Some);
    }
    let (store, name) = (images.clone(), reference.clone());
    let Some(entry) = spawn_blocking(move || store.resolve(&name)).await?? else { return Ok(None) };
    let source = registries.source(&images.repository())?.naming(reference.repository());
    let pinned = images.repository().pin(entry.digest);
    let manifest = source.manifest(&pinned).await?;
    Ok(Some(Found { reference: reference.clone(), source, pinned, manifest, in_store: true }))
}

/// What the store has under a reference, or the sentence that it has not.
pub(super) async fn in_store(images: &Images, reference: &Reference) -> anyhow::Result<Found> {
    let found = on_this_machine(images, reference).await?;
    found.ok_or_else(|| ImagesError::Unknown(reference.clone()).into())
}

/// What the store has under a reference, or else its registry; `only_there` asks the
/// registry alone.
pub(super) async fn anywhere(
    store: &StoreFlag,
    flags: &RegistryFlags,
    only_there: bool,
    reference: &Reference,
) -> anyhow::Result<Found> {
    if !only_there || reference.repository().host() == "oci-layout" {
        let store = store.clone();
        let images = spawn_blocking(move || store.open()).await??;
        if let Some(found) = on_this_machine(&images, reference).await? {
            return Ok(found);
        }
    }
    let access = flags.access()?;
    let (registries, _) = flags.registries(access.as_ref(), reference.repository())?;
    let found = elsewhere(&registries, reference).await;
    if only_there {
        found
    } else {
        found.map_err(|error| error.context(format!("{reference}: not in the image store, and in the registry")))
    }
}

/// What a registry has under a reference.
pub(super) async fn elsewhere(registries: &Registries, reference: &Reference) -> anyhow::Result<Found> {
    let source = registries.source(reference.repository())?;
    let pinned = source.resolve(reference).await?;
    let manifest = source.manifest(&pinned).await?;
    Ok(Found { reference: reference.clone(), source, pinned, manifest, in_store: false })
}

impl Found {
    /// How its layers become a bundle.
    pub(super) fn recipe(&self, data_root: Option<&str>) -> anyhow::Result<Recipe> {
        Recipe::of(&self.manifest, data_root).with_context(|| self.reference.to_string())
    }

    /// The bundle's bytes, by the recipe.
    pub(super) async fn bytes(&self, recipe: &Recipe, limits: Limits) -> anyhow::Result<Blob> {
        let size = Descriptor::total(recipe.layers());
        if size > limits.bundle {
            bail!(
                "{}: {} are more than --max-size allows ({})",
                self.reference,
                table::size(size),
                table::size(limits.bundle)
            );
        }
        let mut blobs = Vec::new();
        for layer in recipe.layers() {
            blobs.push(self.fetch(layer).await?);
        }
        let recipe = recipe.clone();
        let made = spawn_blocking(move || recipe.follow(&blobs, &limits)).await?;
        made.with_context(|| self.reference.to_string())
    }

    /// The bundle, opened as OPA would.
    pub(super) async fn bundle(&self, recipe: &Recipe, limits: Limits) -> anyhow::Result<Bundle> {
        let blob = self.bytes(recipe, limits).await?;
        let opened = spawn_blocking(move || Bundle::open(blob, &limits)).await?;
        opened.with_context(|| self.reference.to_string())
    }

    async fn fetch(&self, layer: &Descriptor) -> anyhow::Result<Blob> {
        let mut stream = self.source.blob(layer).await?;
        if layer.size <= IN_MEMORY {
            return Ok(stream.collect().await?);
        }
        let no_room =
            |error: std::io::Error| anyhow!("temporary file: {error}; make room, or name a folder with TMPDIR");
        let mut writer = BlobWriter::in_file(layer.clone(), tempfile::tempfile().map_err(no_room)?);
        while let Some(piece) = stream.next().await? {
            writer.write(&piece).map_err(|error| match error {
                WriteError::Io(error) => no_room(error),
                WriteError::Mismatch(mismatch) => stream.mismatch(&mismatch).into(),
            })?;
        }
        Ok(writer.finish(Into::into).map_err(|mismatch| stream.mismatch(&mismatch))?)
    }
}
