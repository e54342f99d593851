//! Reads an OCI image layout folder as a registry is read.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    super::{
        blob_stream::BlobStream, deadline::Deadline, error::RegistryError, options::ReadLimits,
    },
    folders::WatchedFolders,
    index::{Names, SharedLayout, tag_of},
    watch::{SourceWatch, Watching},
};
use crate::oci::{Descriptor, Digest, Layout, LayoutError, Manifest, Repository, Selector};

/// For the transfer of a blob.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);
/// For every other read, including the wait for a permit: an index has a few MiB.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// A layout folder to read from. It is opened at every use: it may be replaced, or appear later.
#[derive(Debug, Clone)]
pub(in crate::registry) struct LayoutReader {
    root: PathBuf,
    limits: ReadLimits,
    shared: Arc<SharedLayout>,
    /// The prefix of every tag, where one folder holds many repositories.
    repository: Option<String>,
}

impl LayoutReader {
    /// `shared` is the same for all readers of this folder.
    pub(in crate::registry) fn new(
        root: PathBuf,
        limits: ReadLimits,
        shared: Arc<SharedLayout>,
    ) -> Self {
        Self {
            root,
            limits,
            shared,
            repository: None,
        }
    }

    pub(in crate::registry) fn with_tag_prefix(self, repository: &Repository) -> Self {
        Self {
            repository: Some(repository.to_string()),
            ..self
        }
    }

    pub(in crate::registry) fn limits(&self) -> ReadLimits {
        self.limits
    }

    /// The permits for fetching artifacts from this folder.
    pub(in crate::registry) fn transfers(&self) -> &Arc<Semaphore> {
        &self.shared.transfers
    }

    /// The digest that `selector` names now; `None` when no entry matches, or several do.
    pub(in crate::registry) async fn resolve(
        &self,
        selector: Selector,
    ) -> Result<Option<Digest>, RegistryError> {
        Ok(match selector {
            Selector::Digest(digest) => Some(digest),
            Selector::Tag(tag) => self.names().await?.find(&self.name_of(&tag)).cloned(),
            Selector::Only => self.names().await?.only().cloned(),
            // The caller chooses the tag, from `tags`.
            Selector::Rule(_) => None,
        })
    }

    /// Watches the folder for changes that concern `selector`.
    pub(in crate::registry) fn watch(
        &self,
        selector: &Selector,
        folders: Arc<WatchedFolders>,
        unwatched: IntGauge,
    ) -> Option<SourceWatch> {
        let watching = Watching {
            root: self.root.clone(),
            shared: Arc::clone(&self.shared),
            folders,
            unwatched,
        };
        SourceWatch::new(watching, selector, |tag| self.name_of(tag))
    }

    /// The name of a tag in the index.
    fn name_of(&self, tag: &str) -> String {
        match &self.repository {
            Some(repository) => format!("{repository}:{tag}"),
            None => tag.to_owned(),
        }
    }

    async fn names(&self) -> Result<Arc<Names>, RegistryError> {
        let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
        self.blocking(move || Ok(shared.names(&root)?)).await
    }

    pub(in crate::registry) async fn manifest(
        &self,
        digest: Digest,
    ) -> Result<Option<Manifest>, RegistryError> {
        let limits = self.limits;
        self.with_layout(move |layout| {
            let Some(raw) = read_manifest(&layout, &digest, limits.manifest)? else {
                return Ok(None);
            };
            let actual = digest.recompute(&raw);
            if actual != digest {
                let (expected, actual) = (digest.to_string(), actual.to_string());
                return Err(RegistryError::Mismatch {
                    what: "manifest",
                    expected,
                    actual,
                });
            }
            Ok(Some(Manifest::parse(raw, None, limits.manifest)?))
        })
        .await
    }

    pub(in crate::registry) async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let digest = descriptor.digest.clone();
        let opened = self.with_layout(move |layout| match layout.open_blob(&digest) {
            Ok(file) => Ok(Some(file)),
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        });
        let file = opened.await?;
        let deadline = Deadline::after(TRANSFER_TIMEOUT);
        Ok(file.map(|file| {
            BlobStream::file(descriptor.clone(), "oci-layout".to_owned(), deadline, file)
        }))
    }

    /// Every tag, sorted; of a full reference the part after the repository.
    pub(in crate::registry) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
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

    /// Runs `work` off the async threads, a few at a time, within [`READ_TIMEOUT`].
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let reads = Arc::clone(&self.shared.reads);
        let reading = async move {
            let permit = reads.acquire_owned().await;
            spawn_blocking(move || {
                // Released at the end of the work, which continues after the timeout.
                let _permit = permit;
                work()
            })
            .await
        };
        let host = || format!("oci-layout:{}", self.root.display());
        match timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Err(RegistryError::Protocol {
                operation: "read",
                host: host(),
                reason: error.to_string(),
            }),
            Err(_) => Err(RegistryError::Unreachable {
                operation: "read",
                host: host(),
                reason: format!(
                    "the disk did not answer within {}",
                    humantime::format_duration(READ_TIMEOUT)
                ),
            }),
        }
    }
}

pub(in crate::registry) fn read_manifest(
    layout: &Layout,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Bytes>, RegistryError> {
    match layout.read_blob(digest, limit) {
        Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
            let (what, key) = ("manifest".to_owned(), "limits.manifest");
            Err(RegistryError::TooLarge {
                what,
                limit,
                key,
                proven: false,
            })
        }
        read => Ok(read?),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use super::*;
    use crate::oci::media_type;

    const LIMITS: ReadLimits = ReadLimits {
        manifest: 1 << 20,
        evidence: 1 << 20,
        bundle: 1 << 20,
    };

    /// A folder with one artifact, and its manifest.
    fn layout() -> (tempfile::TempDir, Descriptor) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [],
        });
        let manifest = manifest.to_string();
        layout.write_blob(manifest.as_bytes()).unwrap();
        let entry = Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes());
        layout
            .update_index(|index| index.set("v1", entry.clone()))
            .unwrap();
        (folder, entry)
    }

    async fn read_all(source: &LayoutReader, entry: &Descriptor) -> Result<(), RegistryError> {
        let digest = source
            .resolve(Selector::Tag("v1".to_owned()))
            .await?
            .unwrap();
        assert_eq!(
            source.manifest(digest).await?.unwrap().digest(),
            &entry.digest
        );
        let mut stream = source.blob(entry).await?.unwrap();
        while stream.next().await?.is_some() {}
        Ok(())
    }

    fn fifo(path: &Path) {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    /// A pipe in the place of `index.json` once blocked its thread, and the bundle, until a
    /// restart.
    #[tokio::test]
    async fn an_irregular_file_in_a_layout_fails_reads_until_it_is_replaced() {
        let (folder, entry) = layout();
        let source = LayoutReader::new(folder.path().to_owned(), LIMITS, Arc::default());
        read_all(&source, &entry).await.unwrap();
        let blob = format!("blobs/sha256/{}", entry.digest.hex());
        for file in ["index.json", "oci-layout", &blob] {
            let (path, aside) = (folder.path().join(file), folder.path().join("aside"));
            fs::rename(&path, &aside).unwrap();
            for place in [fifo as fn(&Path), |path| {
                std::os::unix::fs::symlink("/dev/zero", path).unwrap()
            }] {
                place(&path);
                let refused = read_all(&source, &entry).await.unwrap_err();
                assert!(matches!(refused, RegistryError::Layout(_)), "{refused}");
                assert!(
                    refused.to_string().contains("not a regular file"),
                    "{refused}"
                );
                fs::remove_file(&path).unwrap();
            }
            fs::rename(&aside, &path).unwrap();
            read_all(&source, &entry).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_from_a_hanging_disk_times_out_and_blocks_a_few_threads_only() {
        let (folder, entry) = layout();
        let source = LayoutReader::new(folder.path().to_owned(), LIMITS, Arc::default());
        let reads = Arc::clone(&source.shared.reads);
        let hanging = reads
            .try_acquire_many(u32::try_from(reads.available_permits()).unwrap())
            .unwrap();
        let timed_out = source
            .resolve(Selector::Tag("v1".to_owned()))
            .await
            .unwrap_err();
        assert!(
            timed_out.to_string().contains("did not answer within 15s"),
            "{timed_out}"
        );
        drop(hanging);
        read_all(&source, &entry).await.unwrap();
    }
}
