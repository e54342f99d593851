//! An OCI image layout folder in the role of a registry.

use std::{collections::BTreeSet, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::{task::spawn_blocking, time::Instant};

use super::{blob_stream::BlobStream, error::RegistryError, options::ReadLimits};
use crate::oci::{Descriptor, Digest, Layout, LayoutError, Manifest, Repository, Selector};

/// A local disk that takes longer is as good as dead.
const DEADLINE: Duration = Duration::from_secs(300);

/// The folder is opened at every use: it may be replaced, or appear later.
#[derive(Debug, Clone)]
pub(super) struct LayoutSource {
    root: PathBuf,
    limits: ReadLimits,
    /// Where one folder holds many repositories: in front of every tag.
    repository: Option<String>,
}

impl LayoutSource {
    pub(super) fn new(root: PathBuf, limits: ReadLimits) -> Self {
        Self { root, limits, repository: None }
    }

    pub(super) fn naming(self, repository: &Repository) -> Self {
        Self { repository: Some(repository.to_string()), ..self }
    }

    /// The digest that `selector` names now; `None` when nothing, or more than one thing, fits.
    pub(super) async fn resolve(&self, selector: Selector) -> Result<Option<Digest>, RegistryError> {
        let repository = self.repository.clone();
        self.blocking(move |layout, _| {
            let index = layout.index()?;
            let find = |tag: &str| match &repository {
                Some(repository) => index.named(&format!("{repository}:{tag}")),
                None => index.find(tag),
            };
            Ok(match selector {
                Selector::Digest(digest) => Some(digest),
                Selector::Tag(tag) => find(&tag).map(|entry| entry.digest.clone()),
                Selector::Only => {
                    // What was copied with its signatures is still the only thing there.
                    let named = |entry: &Descriptor| index.names().any(|(name, at)| at == entry && is_signature(name));
                    let mut entries = index.manifests.iter().filter(|entry| !named(entry)).map(|entry| &entry.digest);
                    let first = entries.next();
                    first.filter(|first| entries.all(|other| other == *first)).cloned()
                }
            })
        })
        .await
    }

    pub(super) async fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, RegistryError> {
        self.blocking(move |layout, limits| {
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
        let opened = self.blocking(move |layout, _| match layout.open_blob(&digest) {
            Ok(file) => Ok(Some(file)),
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        });
        let file = opened.await?;
        let deadline = Instant::now() + DEADLINE;
        Ok(file.map(|file| BlobStream::file(descriptor.clone(), "oci-layout".to_owned(), deadline, file)))
    }

    /// Every tag, sorted; of full references, what is behind the repository.
    pub(super) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        self.blocking(|layout, _| {
            let index = layout.index()?;
            let tags = index.names().map(|(name, _)| tag_of(name).to_owned());
            Ok(tags.collect::<BTreeSet<_>>().into_iter().collect())
        })
        .await
    }

    /// Runs `work` off the async threads on the layout as it is now.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Layout, ReadLimits) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let Self { root, limits, .. } = self.clone();
        spawn_blocking(move || work(Layout::open(root)?.regular_only(), limits)).await.unwrap_or_else(|error| {
            Err(RegistryError::Protocol { operation: "read", host: "oci-layout".to_owned(), reason: error.to_string() })
        })
    }
}

fn tag_of(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, tag)| tag)
}

/// `sha256-<hex>`, with or without an ending such as `.sig`.
fn is_signature(name: &str) -> bool {
    let stem = tag_of(name).split('.').next().unwrap_or_default();
    stem.split_once('-').is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
}

pub(super) fn read_manifest(layout: &Layout, digest: &Digest, limit: u64) -> Result<Option<Bytes>, RegistryError> {
    match layout.read_blob(digest, limit) {
        Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
            Err(RegistryError::TooLarge { what: "manifest".to_owned(), limit, key: "limits.manifest" })
        }
        read => Ok(read?),
    }
}
