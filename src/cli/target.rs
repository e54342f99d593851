//! The repository that a subcommand reads from or writes to: in a registry, an OCI image layout, or
//! the image store.

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::{flags::RegistryFlags, store_flag::StoreFlag};
use crate::{
    config::CliConfig,
    images::{Images, WriteLease},
    oci::{PinnedReference, Reference, Repository},
    registry::{Destination, ReadLimits, Registries, Source},
    verify::TrustPolicy,
};

/// A repository with access to it: a source of artifacts and referrers, and a destination.
#[derive(Debug)]
pub(super) struct Target {
    registries: Registries,
    limits: ReadLimits,
    source: Source,
    /// The repository in the reference. In the store it is part of every name.
    named: Repository,
    /// The image store, if the source is one.
    images: Option<Images>,
    /// Keeps other processes from removing blobs that are being read or written.
    _write_lease: Option<WriteLease>,
}

impl Target {
    /// Opens the image store if `local` is set, and else the repository in the reference.
    pub(super) fn new(
        reference: &Reference,
        local: bool,
        store: &StoreFlag,
        registry: &RegistryFlags,
        cli_config: Option<&CliConfig>,
    ) -> anyhow::Result<Self> {
        let named = reference.repository().clone();
        let (registries, limits) = registry.registries(cli_config, &named)?;
        let images = local.then(|| store.open()).transpose()?;
        // Without the lock this process can only read. It continues: a process that may not write
        // to the store can't remove blobs either.
        let lease = images.as_ref().and_then(|images| images.write_lease().ok());
        let source = match &images {
            Some(images) => registries
                .source(&images.repository())?
                .with_tag_prefix(&named),
            None => registries.source(&named)?,
        };
        Ok(Self {
            registries,
            limits,
            source,
            named,
            images,
            _write_lease: lease,
        })
    }

    /// Opens the image store if it has the reference, and else the registry. A reference to a
    /// layout folder is always read from that folder.
    pub(super) async fn store_or_registry(
        reference: &Reference,
        store: &StoreFlag,
        registry: &RegistryFlags,
        cli_config: Option<&CliConfig>,
    ) -> anyhow::Result<Self> {
        if matches!(reference.repository(), Repository::Registry { .. }) {
            let target = Self::new(reference, true, store, registry, cli_config)?;
            if target.find(reference).await?.is_some() {
                return Ok(target);
            }
        }
        Self::new(reference, false, store, registry, cli_config)
    }

    /// Whether it is a registry, neither the store nor a folder.
    pub(super) fn is_registry(&self) -> bool {
        matches!(self.source.repository(), Repository::Registry { .. })
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Reads from the registry itself and not from its mirrors.
    pub(super) fn at_origin(self) -> Self {
        Self {
            source: self.source.at_origin(),
            ..self
        }
    }

    /// The source of the signatures: the artifact's own repository unless the policy names
    /// another. In the store and in folders they are always beside the artifact.
    pub(super) fn signatures(&self, policy: &TrustPolicy) -> anyhow::Result<Source> {
        match policy.signatures() {
            Some(repository) if self.is_registry() => Ok(self.registries.source(repository)?),
            _ => Ok(self.source.clone()),
        }
    }

    pub(super) fn limits(&self) -> ReadLimits {
        self.limits
    }

    /// The same repository, to write to.
    pub(super) fn destination(&self) -> anyhow::Result<Destination> {
        let destination = self.registries.destination(self.source.repository())?;
        Ok(if self.images.is_some() {
            destination.with_tag_prefix(&self.named)
        } else {
            destination
        })
    }

    /// Resolves the reference to a digest.
    pub(super) async fn resolve(&self, reference: &Reference) -> anyhow::Result<PinnedReference> {
        if self.images.is_none() {
            return Ok(self.source.resolve(reference).await?);
        }
        let found = self.find(reference).await?;
        found.with_context(|| {
            format!("{reference}: not in the image store; pull it, or drop --local")
        })
    }

    /// Looks the reference up in the store.
    async fn find(&self, reference: &Reference) -> anyhow::Result<Option<PinnedReference>> {
        let Some(images) = self.images.clone() else {
            return Ok(None);
        };
        let name = reference.clone();
        let found = spawn_blocking(move || images.resolve(&name)).await??;
        Ok(found.map(|found| self.source.repository().pin(found.digest)))
    }
}
