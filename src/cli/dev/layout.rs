//! The OCI image layout between builder and gateway: `dev` writes signed artifacts to it, and a
//! watcher reads them as from any registry.

use std::{collections::HashSet, path::Path};

use crate::{
    bundle::{Annotations, Artifact, Packed},
    oci::{Descriptor, Digest, Layout, LayoutError, LayoutIndex, NewManifest, media_type},
    sign::{Attachment, KeyPair, SignError, SigningRequest},
};

/// The tag of the newest artifact.
pub(super) const TAG: &str = "dev";

/// A layout with the newest artifact and the one before it, which a watcher may still be
/// reading.
#[derive(Debug)]
pub(super) struct DevLayout {
    layout: Layout,
    newest: Option<Version>,
}

/// A signed artifact.
#[derive(Debug)]
struct Version {
    artifact: Descriptor,
    blobs: HashSet<Digest>,
    signatures: (String, Descriptor),
}

/// An error while publishing an artifact.
#[derive(Debug, thiserror::Error)]
pub(super) enum DevLayoutError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("manifest: {0}")]
    Manifest(#[from] serde_json::Error),
}

impl DevLayout {
    /// Opens or creates the layout. The first [`Self::publish`] removes artifacts of earlier
    /// processes: their keys are gone, so they could not be verified.
    pub(super) fn open(path: &Path) -> Result<Self, DevLayoutError> {
        let layout = Layout::create(path)?;
        layout.remove_leftovers()?;
        Ok(Self {
            layout,
            newest: None,
        })
    }

    /// Signs a bundle and publishes it as the newest. Returns `false` if it already is the newest.
    /// Blocks.
    pub(super) fn publish(
        &mut self,
        packed: &Packed,
        key: &KeyPair,
    ) -> Result<bool, DevLayoutError> {
        let artifact = Artifact::new(packed, &Annotations::default())?;
        if self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.artifact.digest == artifact.descriptor.digest)
        {
            return Ok(false);
        }
        let version = self.store(&artifact, key)?;
        let mut index = LayoutIndex::default();
        let mut named = version.blobs.clone();
        for version in self.newest.iter().chain([&version]) {
            index.set(&version.signatures.0, version.signatures.1.clone());
            // The newest is set last, so the tag refers to it.
            index.set(TAG, version.artifact.clone());
            named.extend(version.blobs.iter().cloned());
        }
        self.layout.write_index(&index)?;
        self.newest = Some(version);
        for (digest, _) in self.layout.blobs()? {
            if !named.contains(&digest) {
                self.layout.remove_blob(&digest)?;
            }
        }
        Ok(true)
    }

    fn store(&self, artifact: &Artifact, key: &KeyPair) -> Result<Version, DevLayoutError> {
        let signature = Attachment::sign(key, &SigningRequest::of(artifact.descriptor.clone()))?;
        self.layout.store_blob(&artifact.layer)?;
        let mut blobs = HashSet::from([artifact.layer.digest().clone()]);
        let parts = [
            &artifact.manifest,
            &signature.bundle,
            &signature.referrer,
            &signature.index,
        ];
        for bytes in parts
            .into_iter()
            .map(|part| &part[..])
            .chain([NewManifest::CONFIG])
        {
            blobs.insert(self.layout.write_blob(bytes)?);
        }
        let signatures = (
            signature.index_tag,
            Descriptor::of(media_type::OCI_INDEX, &signature.index),
        );
        Ok(Version {
            artifact: artifact.descriptor.clone(),
            blobs,
            signatures,
        })
    }
}
