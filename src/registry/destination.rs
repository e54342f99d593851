//! A repository to write to.

use std::path::PathBuf;

use bytes::Bytes;

use super::{
    blob_stream::BlobStream,
    error::RegistryError,
    layout::LayoutWriter,
    options::ReadLimits,
    payload::UploadBody,
    progress::{BlobTransfer, Progress},
    remote::Remote,
};
use crate::oci::{Blob, Descriptor, Manifest, PinnedReference, Repository};

/// A repository of a registry, or an OCI layout folder, to write to. Cheap to clone.
///
/// A manifest is put after everything that it names: a registry refuses it before, and a reader
/// of a layout would find it incomplete.
#[derive(Debug, Clone)]
pub struct Destination {
    repository: Repository,
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Remote(Remote),
    Layout(LayoutWriter),
}

impl Destination {
    pub(super) fn remote(repository: Repository, remote: Remote) -> Self {
        Self {
            repository,
            backend: Backend::Remote(remote),
        }
    }

    pub(super) fn layout(repository: Repository, root: PathBuf, limits: ReadLimits) -> Self {
        Self {
            repository,
            backend: Backend::Layout(LayoutWriter::new(root, limits)),
        }
    }

    /// In a layout, writes tags as full references `repository:tag`, so that one folder holds many
    /// repositories. Has no effect on a registry.
    #[must_use]
    pub fn with_tag_prefix(self, repository: &Repository) -> Self {
        match self.backend {
            Backend::Layout(writer) => Self {
                backend: Backend::Layout(writer.with_tag_prefix(repository)),
                ..self
            },
            Backend::Remote(_) => self,
        }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.has_blob(descriptor).await,
            Backend::Layout(writer) => writer.has_blob(descriptor).await,
        }
    }

    /// Asks the registry to mount a blob from another of its repositories. Returns `false` when it
    /// does not: then the bytes have to be sent.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses a write.
    pub async fn mount(
        &self,
        descriptor: &Descriptor,
        from: &Repository,
    ) -> Result<bool, RegistryError> {
        match (&self.backend, from) {
            (Backend::Remote(remote), Repository::Registry { host, path })
                if *host == self.repository.host() =>
            {
                remote.mount(descriptor, path).await
            }
            _ => Ok(false),
        }
    }

    /// Puts a blob, unless the repository has it. A large blob is sent in chunks where the registry
    /// supports them, and a broken transfer resumes at the offset that the registry reports.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or reports another digest.
    pub async fn put_blob(
        &self,
        descriptor: &Descriptor,
        blob: &Blob,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if self.has_blob(descriptor).await? {
            progress.finished(descriptor, BlobTransfer::Present);
            return Ok(());
        }
        self.send_blob(descriptor, blob, progress).await
    }

    /// As [`Self::put_blob`], for a blob that the repository is known to lack.
    ///
    /// # Errors
    /// As [`Self::put_blob`].
    pub async fn send_blob(
        &self,
        descriptor: &Descriptor,
        blob: &Blob,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => {
                remote
                    .upload(descriptor, &UploadBody::Blob(blob.clone()), progress)
                    .await?
            }
            Backend::Layout(writer) => writer.store(blob).await?,
        }
        progress.finished(descriptor, BlobTransfer::Sent);
        Ok(())
    }

    /// Puts a blob directly from its stream, without a copy in between: from a file to a registry,
    /// which verifies what it receives, and into a layout, where a blob gets its name after it was
    /// verified. Returns the untouched stream for a transfer between two registries.
    ///
    /// # Errors
    /// When either side fails, or the bytes don't match the descriptor.
    pub async fn put_stream(
        &self,
        stream: BlobStream,
        progress: &dyn Progress,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let descriptor = stream.descriptor().clone();
        match &self.backend {
            Backend::Remote(remote) => match stream.into_file().await? {
                Ok(body) => remote.upload(&descriptor, &body, progress).await?,
                Err(stream) => return Ok(Some(stream)),
            },
            Backend::Layout(writer) => writer.receive(stream, progress).await?,
        }
        progress.finished(&descriptor, BlobTransfer::Sent);
        Ok(None)
    }

    /// Puts a manifest, under its digest alone or under a tag as well.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or reports another digest.
    pub async fn put_manifest(
        &self,
        raw: &Bytes,
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.put_manifest(raw, media_type, tag).await.map(drop),
            Backend::Layout(writer) => writer.put_manifest(raw, media_type, tag).await,
        }
    }

    /// Makes everything that was put survive a power cut. Only needed before something else than this
    /// names it in the index of a layout. Has no effect on a registry.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn sync(&self) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(_) => Ok(()),
            Backend::Layout(writer) => writer.sync().await,
        }
    }

    /// Lists a manifest without a tag in the index of a layout, which is the only way to find it
    /// there. Has no effect on a registry.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn list(&self, manifest: &Descriptor) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(_) => Ok(()),
            Backend::Layout(writer) => writer.list(manifest).await,
        }
    }

    /// Puts a manifest that refers to `subject`. Where the registry has no referrers API, adds it
    /// to the index under `sha256-<hex of subject>` (distribution-spec, "Unavailable Referrers
    /// API").
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or when that tag does not name an index.
    pub async fn attach(
        &self,
        referrer: &Bytes,
        subject: &PinnedReference,
    ) -> Result<(), RegistryError> {
        let manifest = Manifest::parse(referrer.clone(), None, referrer.len() as u64)?;
        let entry = manifest.as_referrer();
        match &self.backend {
            Backend::Remote(remote) => remote.attach(&manifest, &entry, subject.digest()).await,
            Backend::Layout(writer) => writer.attach(&manifest, &entry, subject.digest()).await,
        }
    }
}
