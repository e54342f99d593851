//! Where an artifact is looked for: its registry, a layout folder, or the image store.

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::{flags::RegistryFlags, store_flag::StoreFlag};
use crate::{
    config::Access,
    images::{Filling, Images},
    oci::{PinnedReference, Reference, Repository},
    registry::{Destination, ReadLimits, Registries, Source},
    verify::TrustPolicy,
};

/// Somewhere to read an artifact, and what is attached to it, and to attach more.
#[derive(Debug)]
pub(super) struct Location {
    registries: Registries,
    limits: ReadLimits,
    source: Source,
    /// The repository that the reference names; in the store, part of every name.
    named: Repository,
    /// Where the source is the image store.
    images: Option<Images>,
    /// What is read, or was just put beside it, is not swept away meanwhile.
    _filling: Option<Filling>,
}

impl Location {
    /// The store where `local` says so, else what the reference names.
    pub(super) fn of(
        reference: &Reference,
        local: bool,
        store: &StoreFlag,
        registry: &RegistryFlags,
        access: Option<&Access>,
    ) -> anyhow::Result<Self> {
        let named = reference.repository().clone();
        let (registries, limits) = registry.registries(access, &named)?;
        let images = local.then(|| store.open()).transpose()?;
        // A store that may only be read is not swept by those who may not write either, and
        // who can't take the lock can't write.
        let filling = images.as_ref().and_then(|images| images.filling().ok());
        let source = match &images {
            Some(images) => registries.source(&images.repository())?.naming(&named),
            None => registries.source(&named)?,
        };
        Ok(Self { registries, limits, source, named, images, _filling: filling })
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
            let location = Self::of(reference, true, store, registry, access)?;
            if location.find(reference).await?.is_some() {
                return Ok(location);
            }
        }
        Self::of(reference, false, store, registry, access)
    }

    /// Whether it is neither the store nor a folder.
    pub(super) fn is_registry(&self) -> bool {
        matches!(self.source.repository(), Repository::Registry { .. })
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Where what vouches for the artifact is: beside it, unless the policy says otherwise. The
    /// store and folders have everything in one place.
    pub(super) fn signatures(&self, policy: &TrustPolicy) -> anyhow::Result<Source> {
        match policy.signatures() {
            Some(repository) if self.is_registry() => Ok(self.registries.source(repository)?),
            _ => Ok(self.source.clone()),
        }
    }

    pub(super) fn limits(&self) -> ReadLimits {
        self.limits
    }

    /// The same place, to write to.
    pub(super) fn destination(&self) -> anyhow::Result<Destination> {
        let destination = self.registries.destination(self.source.repository())?;
        Ok(if self.images.is_some() { destination.naming(&self.named) } else { destination })
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
