//! An OCI image layout folder in the role of a registry.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{
    blob_stream::BlobStream,
    error::RegistryError,
    layout_index::{Names, SharedLayout, tag_of},
    options::ReadLimits,
};
use crate::oci::{Descriptor, Digest, Layout, LayoutError, Manifest, Repository, Selector};

/// For the transfer of a blob: a local disk that takes longer is as good as dead.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);
/// For every other read, the wait for those in front included: an index has a few MiB.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// The folder is opened at every use: it may be replaced, or appear later.
#[derive(Debug, Clone)]
pub(super) struct LayoutSource {
    root: PathBuf,
    limits: ReadLimits,
    shared: Arc<SharedLayout>,
    /// Where one folder holds many repositories: in front of every tag.
    repository: Option<String>,
}

impl LayoutSource {
    /// `shared` is the same for everyone who reads from this folder.
    pub(super) fn new(root: PathBuf, limits: ReadLimits, shared: Arc<SharedLayout>) -> Self {
        Self { root, limits, shared, repository: None }
    }

    pub(super) fn naming(self, repository: &Repository) -> Self {
        Self { repository: Some(repository.to_string()), ..self }
    }

    /// Held by whoever fetches an artifact.
    pub(super) fn transfers(&self) -> &Arc<Semaphore> {
        &self.shared.transfers
    }

    /// The digest that `selector` names now; `None` when nothing, or more than one thing, fits.
    pub(super) async fn resolve(&self, selector: Selector) -> Result<Option<Digest>, RegistryError> {
        Ok(match selector {
            Selector::Digest(digest) => Some(digest),
            Selector::Tag(tag) => {
                let name = self.repository.as_ref().map(|repository| format!("{repository}:{tag}"));
                self.names().await?.find(name.as_ref().unwrap_or(&tag)).cloned()
            }
            Selector::Only => self.names().await?.only().cloned(),
        })
    }

    async fn names(&self) -> Result<Arc<Names>, RegistryError> {
        let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
        self.blocking(move || Ok(shared.names(&root)?)).await
    }

    pub(super) async fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, RegistryError> {
        let limits = self.limits;
        self.with_layout(move |layout| {
            let Some(raw) = read_manifest(&layout, &digest, limits.manifest)? else { return Ok(None) };
            let actual = digest.recompute(&raw);
            if actual != digest {
                let (expected, actual) = (digest.to_string(), actual.to_string());
                return Err(RegistryError::Mismatch { what: "manifest", expected, actual });
            }
            Ok(Some(Manifest::parse(raw, None, limits.manifest)?))
        })
        .await
    }

    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Option<BlobStream>, RegistryError> {
        let digest = descriptor.digest.clone();
        let opened = self.with_layout(move |layout| match layout.open_blob(&digest) {
            Ok(file) => Ok(Some(file)),
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        });
        let file = opened.await?;
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        Ok(file.map(|file| BlobStream::file(descriptor.clone(), "oci-layout".to_owned(), deadline, file)))
    }

    /// Every tag, sorted; of full references, what is behind the repository.
    pub(super) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        self.with_layout(|layout| {
            let index = layout.index()?;
            let tags = index.names().map(|(name, _)| tag_of(name).to_owned());
            Ok(tags.collect::<BTreeSet<_>>().into_iter().collect())
        })
        .await
    }

    /// Runs `work` on the layout as it is now.
    async fn with_layout<T: Send + 'static>(
        &self,
        work: impl FnOnce(Layout) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let root = self.root.clone();
        self.blocking(move || work(Layout::open(root)?)).await
    }

    /// Runs `work` off the async threads, a few at a time, and waits for it no longer than
    /// [`READ_TIMEOUT`].
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let reads = Arc::clone(&self.shared.reads);
        let reading = async move {
            let turn = reads.acquire_owned().await;
            spawn_blocking(move || {
                // Goes with the work, which goes on when nobody waits for it any more.
                let _turn = turn;
                work()
            })
            .await
        };
        let host = || format!("oci-layout:{}", self.root.display());
        match timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                Err(RegistryError::Protocol { operation: "read", host: host(), reason: error.to_string() })
            }
            Err(_) => Err(RegistryError::Unreachable {
                operation: "read",
                host: host(),
                reason: format!("the disk did not answer within {}", humantime::format_duration(READ_TIMEOUT)),
            }),
        }
    }
}

pub(super) fn read_manifest(layout: &Layout, digest: &Digest, limit: u64) -> Result<Option<Bytes>, RegistryError> {
    match layout.read_blob(digest, limit) {
        Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
            Err(RegistryError::TooLarge { what: "manifest".to_owned(), limit, key: "limits.manifest" })
        }
        read => Ok(read?),
    }
}
