//! Copies an artifact with its signatures from one repository to another: for `push`, `pull` and
//! `copy`, and across an air gap through a layout folder.
//!
//! Everything is copied byte for byte, so every digest and every signature stays valid. Tags move
//! last: a reader sees the old artifact, or the new one with all its parts and signatures.

use std::collections::HashSet;

use crate::{
    oci::{
        Blob, BlobWriter, Descriptor, Digest, Document, Manifest, PinnedReference, Repository,
        WriteError, cosign,
    },
    registry::{BlobStream, BlobTransfer, Destination, Progress, RegistryError, Source},
};

/// The depth to which indexes within indexes and signatures of signatures are followed.
const MAX_DEPTH: usize = 4;
/// The maximum number of manifests of one artifact, referrers included.
const MAX_MANIFESTS: usize = 1000;
/// The maximum number of referrers of one manifest.
const MAX_REFERRERS: usize = 500;
/// A blob up to this size is spooled in memory, a larger one in an unlinked file.
const MAX_IN_MEMORY_BYTES: u64 = 1 << 20;
/// The tag suffixes of cosign's older format (`sha256-<hex>.sig`).
const COSIGN_SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

/// A copy from one repository to another.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// The repository with the artifact.
    pub from: &'a Source,
    /// The destination.
    pub to: &'a Destination,
    /// Whether referrers are copied.
    pub signatures: Signatures,
    /// Repositories of the destination's registry that may have the same blobs.
    pub mount_from: &'a [Repository],
    /// A blob larger than this is not copied.
    pub max_size: u64,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
}

/// Whether signatures and other referrers are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    /// They are copied.
    Include,
    /// Only the artifact is copied.
    Exclude,
}

/// An error in copying an artifact. The parts that were copied stay, without a tag, and are not
/// sent again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Either registry failed; the message names it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A blob is over the limit.
    #[error(
        "blob {digest} has {size} bytes, over the limit of {limit}; allow more with --max-size"
    )]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Indexes or referrers are nested too deep, or there are too many manifests.
    #[error("{0}: its indexes and signatures are nested too deep or too many to copy")]
    TooDeep(PinnedReference),
    /// A temporary file can't be written.
    #[error("temporary file: {0}; free disk space, or set TMPDIR to another folder")]
    Spool(#[source] std::io::Error),
}

/// The result of a copy.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The number of signatures and other referrers that were copied.
    pub referrers: usize,
    /// One sentence for each listed referrer that can't be fetched, and for a list that can't.
    pub skipped: Vec<String>,
}

/// The way in which a manifest is put into the destination.
#[derive(Clone, Copy)]
enum PutMode<'a> {
    ByDigest,
    UnderTag(&'a str),
    /// As a referrer of this digest.
    Attached(&'a Digest),
}

/// The manifests that were visited, and the result so far.
#[derive(Default)]
struct CopyState {
    seen: HashSet<Digest>,
    copied: Copied,
}

impl Transfer<'_> {
    /// Copies `artifact`, then puts it under `tags`; without tags it is found by its digest.
    ///
    /// # Errors
    /// See [`TransferError`]. The failing tag and those after it are then unchanged.
    pub async fn run(
        &self,
        artifact: &PinnedReference,
        tags: &[String],
    ) -> Result<Copied, TransferError> {
        let (manifest, copied) = self.copy_tree(artifact).await?;
        for tag in tags {
            self.to
                .put_manifest(manifest.raw(), manifest.media_type(), Some(tag))
                .await?;
        }
        if tags.is_empty() {
            self.to.list(&manifest.descriptor()).await?;
        }
        Ok(copied)
    }

    /// Copies `artifact` without a tag.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn copy_tree(
        &self,
        artifact: &PinnedReference,
    ) -> Result<(Manifest, Copied), TransferError> {
        let manifest = self.from.manifest(artifact).await?;
        let mut state = CopyState::default();
        self.copy_manifest(&manifest, PutMode::ByDigest, &mut state, 0)
            .await?;
        self.to.sync().await?;
        Ok((manifest, state.copied))
    }

    /// Copies a manifest with its blobs, its children and its referrers.
    async fn copy_manifest(
        &self,
        manifest: &Manifest,
        mode: PutMode<'_>,
        state: &mut CopyState,
        depth: usize,
    ) -> Result<(), TransferError> {
        if !state.seen.insert(manifest.digest().clone()) {
            return Ok(());
        }
        if depth > MAX_DEPTH || state.seen.len() > MAX_MANIFESTS {
            return Err(TransferError::TooDeep(
                self.from.repository().pin(manifest.digest().clone()),
            ));
        }
        match manifest.document() {
            Document::Image { config, layers, .. } => {
                for blob in layers.iter().chain([&**config]) {
                    self.copy_blob(blob).await?;
                }
            }
            Document::Index { manifests } => {
                for child in manifests {
                    let child = self
                        .from
                        .manifest(&self.from.repository().pin(child.digest.clone()))
                        .await?;
                    Box::pin(self.copy_manifest(&child, PutMode::ByDigest, state, depth + 1))
                        .await?;
                }
            }
        }
        match mode {
            PutMode::ByDigest => {
                self.to
                    .put_manifest(manifest.raw(), manifest.media_type(), None)
                    .await?
            }
            PutMode::UnderTag(tag) => {
                self.to
                    .put_manifest(manifest.raw(), manifest.media_type(), Some(tag))
                    .await?
            }
            PutMode::Attached(to) => {
                self.to
                    .attach(manifest.raw(), &self.to.repository().pin(to.clone()))
                    .await?
            }
        }
        match self.signatures {
            Signatures::Include => self.copy_referrers(manifest.digest(), state, depth).await,
            Signatures::Exclude => Ok(()),
        }
    }

    async fn copy_referrers(
        &self,
        subject: &Digest,
        state: &mut CopyState,
        depth: usize,
    ) -> Result<(), TransferError> {
        let pinned = self.from.repository().pin(subject.clone());
        let listed = self.from.available_referrers(&pinned, MAX_REFERRERS).await;
        let before = state.copied.referrers;
        state.copied.skipped.extend(listed.skipped);
        let incomplete = |failure: &RegistryError| {
            format!("the registry does not answer, and its mirrors may lack some: {failure}")
        };
        for entry in listed.entries {
            let referrer = match self
                .from
                .manifest(&self.from.repository().pin(entry.digest.clone()))
                .await
            {
                // Any client that may push can list a manifest that is missing.
                Err(error @ (RegistryError::Missing { .. } | RegistryError::Manifest(_))) => {
                    state.copied.skipped.push(error.to_string());
                    continue;
                }
                found => found?,
            };
            Box::pin(self.copy_manifest(&referrer, PutMode::Attached(subject), state, depth + 1))
                .await?;
            state.copied.referrers += 1;
        }
        for kind in COSIGN_SUFFIXES {
            let Some(tag) = cosign::attached_tag(subject, kind) else {
                continue;
            };
            let manifest = match self.from.attached_manifest(&tag).await {
                Err(failure) if self.from.is_out_of_service(&failure) => {
                    state.copied.skipped.push(incomplete(&failure));
                    continue;
                }
                Err(error) => return Err(error.into()),
                Ok(None) => continue,
                Ok(Some(manifest)) => manifest,
            };
            Box::pin(self.copy_manifest(&manifest, PutMode::UnderTag(&tag), state, depth + 1))
                .await?;
            state.copied.referrers += 1;
        }
        let Some(failure) = listed.failure else {
            return Ok(());
        };
        // All signatures may be in the list that the registry does not deliver.
        let is_all_missing = depth == 0 && state.copied.referrers == before;
        if is_all_missing && !self.from.is_out_of_service(&failure) {
            return Err(failure.into());
        }
        let failure = match self.from.is_out_of_service(&failure) {
            true => incomplete(&failure),
            false => failure.to_string(),
        };
        if !state.copied.skipped.contains(&failure) {
            state.copied.skipped.push(failure);
        }
        Ok(())
    }

    async fn copy_blob(&self, descriptor: &Descriptor) -> Result<(), TransferError> {
        if descriptor.size > self.max_size {
            let (digest, size, limit) = (descriptor.digest.clone(), descriptor.size, self.max_size);
            return Err(TransferError::TooLarge {
                digest,
                size,
                limit,
            });
        }
        if self.to.has_blob(descriptor).await? {
            self.progress.finished(descriptor, BlobTransfer::Present);
            return Ok(());
        }
        for repository in [self.from.repository()].into_iter().chain(self.mount_from) {
            if repository != self.to.repository() && self.to.mount(descriptor, repository).await? {
                self.progress.finished(descriptor, BlobTransfer::Mounted);
                return Ok(());
            }
        }
        let stream = self.from.blob(descriptor).await?;
        let Some(stream) = self.to.put_stream(stream, self.progress).await? else {
            return Ok(());
        };
        let blob = self.spool(stream).await?;
        Ok(self.to.send_blob(descriptor, &blob, self.progress).await?)
    }

    /// Fetches a whole blob and verifies it before its first byte is sent.
    async fn spool(&self, mut stream: BlobStream) -> Result<Blob, TransferError> {
        loop {
            let descriptor = stream.descriptor().clone();
            let writer = match descriptor.size {
                0..=MAX_IN_MEMORY_BYTES => BlobWriter::in_memory(descriptor),
                _ => BlobWriter::in_file(
                    descriptor,
                    tempfile::tempfile().map_err(TransferError::Spool)?,
                ),
            };
            let written = stream
                .copy_to(writer, BlobWriter::write, self.progress)
                .await?;
            let finished = written.and_then(|writer| Ok(writer.finish(Into::into)?));
            match finished {
                Ok(blob) => return Ok(blob),
                Err(WriteError::Io(error)) => return Err(TransferError::Spool(error)),
                Err(WriteError::Mismatch(mismatch)) => stream.restart(&mismatch).await?,
            }
        }
    }
}

impl std::fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer")
            .field("from", self.from)
            .field("to", self.to)
            .finish_non_exhaustive()
    }
}
