//! Where an artifact is looked for: its registry, a layout folder, or the image store.

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::flags::{RegistryFlags, StoreFlag};
use crate::{
    config::Access,
    images::Images,
    oci::{PinnedReference, Reference, Repository},
    registry::{ReadLimits, Registries, Source},
};

/// A repository that is read from, and the way to what a reference means there.
#[derive(Debug)]
pub(super) struct Place {
    source: Source,
    limits: ReadLimits,
    /// Where the source is the image store.
    images: Option<Images>,
}

impl Place {
    /// The store where `local` says so, else what the reference names.
    pub(super) fn of(
        reference: &Reference,
        local: bool,
        store: &StoreFlag,
        registry: &RegistryFlags,
        access: Option<&Access>,
    ) -> anyhow::Result<Self> {
        let (registries, limits) = registry.registries(access, reference.repository())?;
        if local {
            return Self::store(store, &registries, limits);
        }
        Ok(Self { source: registries.source(reference.repository())?, limits, images: None })
    }

    /// The store if it has what the reference means, else its registry. A folder is what it
    /// is.
    pub(super) async fn nearest(
        reference: &Reference,
        store: &StoreFlag,
        registry: &RegistryFlags,
        access: Option<&Access>,
    ) -> anyhow::Result<Self> {
        if matches!(reference.repository(), Repository::Registry { .. }) {
            let place = Self::of(reference, true, store, registry, access)?;
            if place.find(reference).await?.is_some() {
                return Ok(place);
            }
        }
        Self::of(reference, false, store, registry, access)
    }

    fn store(store: &StoreFlag, registries: &Registries, limits: ReadLimits) -> anyhow::Result<Self> {
        let images = store.open()?;
        Ok(Self { source: registries.source(&images.repository())?, limits, images: Some(images) })
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    pub(super) fn limits(&self) -> ReadLimits {
        self.limits
    }

    /// What the reference means here, now.
    pub(super) async fn resolve(&self, reference: &Reference) -> anyhow::Result<PinnedReference> {
        if self.images.is_none() {
            return Ok(self.source.resolve(reference).await?);
        }
        let found = self.find(reference).await?;
        found.with_context(|| format!("{reference}: not in the image store; pull it, or drop --local"))
    }

    /// What the reference means in the store.
    async fn find(&self, reference: &Reference) -> anyhow::Result<Option<PinnedReference>> {
        let Some(images) = self.images.clone() else { return Ok(None) };
        let name = reference.clone();
        let found = spawn_blocking(move || images.resolve(&name)).await??;
        Ok(found.map(|found| self.source.repository().pin(found.digest)))
    }
}
