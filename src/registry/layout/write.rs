//! Writes to an OCI image layout folder as to a registry.

use std::path::PathBuf;

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
}

impl LayoutWriter {
    pub(in crate::registry) fn new(root: PathBuf, limits: ReadLimits) -> Self {
        Self {
            root,
            limits,
            repository: None,
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
        let (root, digest) = (self.root.clone(), descriptor.digest.clone());
        blocking(move || {
            Ok(Layout::open(root).is_ok_and(|layout| layout.blob_path(&digest).exists()))
        })
        .await
    }

    pub(in crate::registry) async fn store(&self, blob: &Blob) -> Result<(), RegistryError> {
        let (root, blob) = (self.root.clone(), blob.clone());
        blocking(move || Ok(Layout::create(root)?.store_blob(&blob)?)).await
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
                Ok(()) => return Ok(()),
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
        let (root, raw, entry) = (
            self.root.clone(),
            raw.clone(),
            Descriptor::of(media_type, raw),
        );
        let name = tag.map(|tag| self.name(tag));
        blocking(move || {
            let layout = Layout::create(root)?;
            layout.write_blob(&raw)?;
            if let Some(name) = name {
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
        let (root, manifest) = (self.root.clone(), manifest.clone());
        blocking(move || {
            Ok(Layout::create(root)?.update_index(|index| {
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
        let (root, limit, raw, entry) = (
            self.root.clone(),
            self.limits.manifest,
            referrer.raw().clone(),
            entry.clone(),
        );
        blocking(move || {
            let layout = Layout::create(root)?;
            layout.write_blob(&raw)?;
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
