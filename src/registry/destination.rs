//! One repository that is written to.

use std::path::PathBuf;

use bytes::Bytes;

use super::{
    blob_stream::BlobStream, error::RegistryError, options::ReadLimits, payload::Load, remote::Remote,
    writer::LayoutWriter,
};
use crate::oci::{Blob, Descriptor, Manifest, PinnedReference, Repository};

/// A repository of a registry, or an OCI layout folder, to write to. Cheap to clone.
///
/// A manifest is put after everything that it names: registries refuse it before, and a
/// reader of a folder would find it broken.
#[derive(Debug, Clone)]
pub struct Destination {
    repository: Repository,
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Remote(Remote),
    LayoutWriter(LayoutWriter),
}

/// Hears how far a blob is.
pub trait Progress: Send + Sync {
    /// `done` bytes are over; fewer than before after a broken transfer.
    fn at(&self, blob: &Descriptor, done: u64);
    /// The blob is there.
    fn finished(&self, blob: &Descriptor, how: Passage);
}

/// How a blob came to be at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Its bytes went over.
    Sent,
    /// It was there.
    Present,
    /// The registry had it in another repository.
    Mounted,
}

/// Nobody listens.
impl Progress for () {
    fn at(&self, _: &Descriptor, _: u64) {}
    fn finished(&self, _: &Descriptor, _: Passage) {}
}

impl Destination {
    pub(super) fn remote(repository: Repository, remote: Remote) -> Self {
        Self { repository, backend: Backend::Remote(remote) }
    }

    pub(super) fn layout(repository: Repository, root: PathBuf, limits: ReadLimits) -> Self {
        Self { repository, backend: Backend::LayoutWriter(LayoutWriter::new(root, limits)) }
    }

    /// In a layout, tags are written as the ends of full references to `repository`, so that
    /// one folder holds many; in a registry nothing changes.
    #[must_use]
    pub fn naming(self, repository: &Repository) -> Self {
        match self.backend {
            Backend::LayoutWriter(writer) => Self { backend: Backend::LayoutWriter(writer.naming(repository)), ..self },
            Backend::Remote(_) => self,
        }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.has_blob(descriptor).await,
            Backend::LayoutWriter(writer) => writer.has_blob(descriptor).await,
        }
    }

    /// Asks the registry to take a blob over from another of its repositories. `false` when
    /// it does not, for whatever reason: then the bytes have to be sent.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses to be written to.
    pub async fn mount(&self, descriptor: &Descriptor, from: &Repository) -> Result<bool, RegistryError> {
        match (&self.backend, from) {
            (Backend::Remote(remote), Repository::Registry { host, path }) if *host == self.repository.host() => {
                remote.mount(descriptor, path).await
            }
            _ => Ok(false),
        }
    }

    /// Puts a blob there, unless it is there. Large ones go in chunks where the registry
    /// takes them, and a broken transfer goes on where the registry says that it ended.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or says that it got something else.
    pub async fn put_blob(
        &self,
        descriptor: &Descriptor,
        blob: &Blob,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if self.has_blob(descriptor).await? {
            progress.finished(descriptor, Passage::Present);
            return Ok(());
        }
        self.send_blob(descriptor, blob, progress).await
    }

    /// As [`Self::put_blob`], for a blob of which the caller knows that it is not there.
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
            Backend::Remote(remote) => remote.upload(descriptor, &Load::Blob(blob.clone()), progress).await?,
            Backend::LayoutWriter(writer) => writer.store(blob).await?,
        }
        progress.finished(descriptor, Passage::Sent);
        Ok(())
    }

    /// Puts a blob there straight from where it comes, without keeping it in between: from a
    /// folder, since a registry checks what it gets, and into one, where it has no name
    /// before it was checked. From server to server the stream comes back untouched.
    ///
    /// # Errors
    /// When either side fails, or the bytes are not the blob's.
    pub async fn take(&self, stream: BlobStream, progress: &dyn Progress) -> Result<Option<BlobStream>, RegistryError> {
        let descriptor = stream.descriptor().clone();
        match &self.backend {
            Backend::Remote(remote) => match stream.into_file().await? {
                Ok(load) => remote.upload(&descriptor, &load, progress).await?,
                Err(stream) => return Ok(Some(stream)),
            },
            Backend::LayoutWriter(writer) => writer.receive(stream, progress).await?,
        }
        progress.finished(&descriptor, Passage::Sent);
        Ok(None)
    }

    /// Puts a manifest there, under its digest alone or under a tag as well.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or says that it got something else.
    pub async fn put_manifest(&self, raw: &Bytes, media_type: &str, tag: Option<&str>) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.put_manifest(raw, media_type, tag).await.map(drop),
            Backend::LayoutWriter(writer) => writer.put_manifest(raw, media_type, tag).await,
        }
    }

    /// Lists a manifest that has no tag among those of a layout, where nothing else would
    /// lead to it; a registry finds it by its digest.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn list(&self, manifest: &Descriptor) -> Result<(), RegistryError> {
        match &self.backend {
            Backend::Remote(_) => Ok(()),
            Backend::LayoutWriter(writer) => writer.list(manifest).await,
        }
    }

    /// Puts a manifest there that refers to `subject`, and sees to it that it is found:
    /// where the registry does not keep an index of referrers, in the index under
    /// `sha256-<hex of subject>` (distribution-spec, "Unavailable Referrers API").
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or when that tag names something else.
    pub async fn attach(&self, referrer: &Bytes, subject: &PinnedReference) -> Result<(), RegistryError> {
        let manifest = Manifest::parse(referrer.clone(), None, referrer.len() as u64)?;
        let entry = manifest.as_referrer();
        match &self.backend {
            Backend::Remote(remote) => remote.attach(&manifest, &entry, subject.digest()).await,
            Backend::LayoutWriter(writer) => writer.attach(&manifest, &entry, subject.digest()).await,
        }
    }
}

/// The index of referrers with one more entry; `None` where it is listed already. Whatever
/// else the index says is kept as it is.
pub(super) fn with_referrer(index: Option<&Manifest>, entry: &Descriptor) -> Result<Option<Bytes>, serde_json::Error> {
    let mut index: serde_json::Value = match index {
        Some(index) => serde_json::from_slice(index.raw())?,
        None => serde_json::from_slice(&crate::oci::LayoutIndex::default().to_bytes()?)?,
    };
    let Some(entries) = index.get_mut("manifests").and_then(serde_json::Value::as_array_mut) else {
        return Err(serde::de::Error::custom("it has no list of manifests"));
    };
    if entries
        .iter()
        .any(|known| known.get("digest").and_then(serde_json::Value::as_str) == Some(entry.digest.as_str()))
    {
        return Ok(None);
    }
    entries.push(serde_json::to_value(entry)?);
    serde_json::to_vec(&index).map(|bytes| Some(bytes.into()))
}
