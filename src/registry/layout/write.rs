//! Writes to an OCI image layout folder as to a registry.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    super::{
        blob_stream::BlobStream,
        error::RegistryError,
        options::ReadLimits,
        progress::Progress,
        referrers::{not_an_index, referrers_tag, with_referrer},
    },
    read::read_manifest,
};
use crate::oci::{
    Blob, Descriptor, Digest, Incoming, IncomingError, Layout, LayoutIndex, Manifest, Repository,
    media_type,
};

/// A layout folder to write to, created by the first write.
#[derive(Debug, Clone)]
pub(in crate::registry) struct LayoutWriter {
    root: PathBuf,
    limits: ReadLimits,
    /// The prefix of every tag.
    repository: Option<String>,
    /// The blobs that were written and not synced. They are synced together, before the index
    /// names one of them.
    unsynced: Arc<Mutex<Vec<Digest>>>,
}

impl LayoutWriter {
    pub(in crate::registry) fn new(root: PathBuf, limits: ReadLimits) -> Self {
        Self {
            root,
            limits,
            repository: None,
            unsynced: Arc::default(),
        }
    }

    pub(in crate::registry) fn with_tag_prefix(self, repository: &Repository) -> Self {
        Self {
            repository: Some(repository.to_string()),
            ..self
        }
    }

    pub(in crate::registry) async fn has_blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let (root, digest, size) = (
            self.root.clone(),
            descriptor.digest.clone(),
            descriptor.size,
        );
        // After a power cut, a blob that was not synced may have other bytes.
        blocking(move || Ok(Layout::open(root).is_ok_and(|layout| layout.is_intact(&digest, size))))
            .await
    }

    pub(in crate::registry) async fn store(&self, blob: &Blob) -> Result<(), RegistryError> {
        let (writer, blob) = (self.clone(), blob.clone());
        blocking(move || {
            Layout::create(&writer.root)?.store_blob_unsynced(&blob)?;
            writer.add_unsynced(blob.digest().clone());
            Ok(())
        })
        .await
    }

    /// Syncs what was written.
    pub(in crate::registry) async fn sync(&self) -> Result<(), RegistryError> {
        let writer = self.clone();
        blocking(move || writer.sync_blobs(&Layout::create(&writer.root)?)).await
    }

    fn add_unsynced(&self, digest: Digest) {
        self.lock_unsynced().push(digest);
    }

    fn sync_blobs(&self, layout: &Layout) -> Result<(), RegistryError> {
        let mut unsynced = self.lock_unsynced();
        layout.sync_blobs(&unsynced)?;
        unsynced.clear();
        Ok(())
    }

    fn lock_unsynced(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::registry) async fn receive(
        &self,
        mut stream: BlobStream,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        loop {
            let (root, descriptor) = (self.root.clone(), stream.descriptor().clone());
            let incoming =
                blocking(move || Ok(Layout::create(root)?.receive(&descriptor)?)).await?;
            let copied = stream.copy_to(incoming, Incoming::write, progress).await?;
            let finished = match copied {
                Ok(incoming) => blocking(move || Ok(incoming.finish())).await?,
                Err(error) => Err(error),
            };
            match finished {
                Ok(()) => {
                    self.add_unsynced(stream.descriptor().digest.clone());
                    return Ok(());
                }
                Err(IncomingError::Layout(error)) => return Err(error.into()),
                Err(IncomingError::Mismatch(mismatch)) => stream.restart(&mismatch).await?,
            }
        }
    }

    pub(in crate::registry) async fn put_manifest(
        &self,
        raw: &Bytes,
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<(), RegistryError> {
        let (writer, raw, entry) = (self.clone(), raw.clone(), Descriptor::of(media_type, raw));
        let name = tag.map(|tag| self.name(tag));
        blocking(move || {
            let layout = Layout::create(&writer.root)?;
            layout.write_blob_unsynced(&raw)?;
            writer.add_unsynced(entry.digest.clone());
            if let Some(name) = name {
                writer.sync_blobs(&layout)?;
                layout.update_index(|index| index.set(&name, entry))?;
            }
            Ok(())
        })
        .await
    }

    pub(in crate::registry) async fn list(
        &self,
        manifest: &Descriptor,
    ) -> Result<(), RegistryError> {
        let (writer, manifest) = (self.clone(), manifest.clone());
        blocking(move || {
            let layout = Layout::create(&writer.root)?;
            writer.sync_blobs(&layout)?;
            Ok(layout.update_index(|index| {
                if !index
                    .manifests
                    .iter()
                    .any(|entry| entry.digest == manifest.digest)
                {
                    index.manifests.push(manifest);
                }
            })?)
        })
        .await
    }

    pub(in crate::registry) async fn attach(
        &self,
        referrer: &Manifest,
        entry: &Descriptor,
        subject: &Digest,
    ) -> Result<(), RegistryError> {
        let name = self.name(&referrers_tag(subject));
        let (writer, limit, raw, entry) = (
            self.clone(),
            self.limits.manifest,
            referrer.raw().clone(),
            entry.clone(),
        );
        blocking(move || {
            let layout = Layout::create(&writer.root)?;
            layout.write_blob_unsynced(&raw)?;
            writer.add_unsynced(entry.digest.clone());
            writer.sync_blobs(&layout)?;
            layout.update_index(|index| add_referrer(&layout, index, &name, &entry, limit))?
        })
        .await
    }

    fn name(&self, tag: &str) -> String {
        self.repository.as_ref().map_or_else(
            || tag.to_owned(),
            |repository| format!("{repository}:{tag}"),
        )
    }
}

fn add_referrer(
    layout: &Layout,
    index: &mut LayoutIndex,
    name: &str,
    entry: &Descriptor,
    limit: u64,
) -> Result<(), RegistryError> {
    let old = index.named(name).map(|old| old.digest.clone());
    let old = old
        .map(|old| read_manifest(layout, &old, limit))
        .transpose()?
        .flatten();
    let old = old
        .map(|raw| Manifest::parse(raw, None, limit))
        .transpose()?;
    let changed = with_referrer(old.as_ref(), entry)
        .map_err(|error| not_an_index(name, "oci-layout", &error))?;
    if let Some(changed) = changed {
        layout.write_blob(&changed)?;
        index.set(name, Descriptor::of(media_type::OCI_INDEX, &changed));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RegistryError::Protocol {
            operation: "write",
            host: "oci-layout".to_owned(),
            reason: error.to_string(),
        })
    })
}
