//! Every registry that the configuration allows, and one repository of one of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    blob_stream::BlobStream,
    client::{BadOptions, MAX_WAIT, MAX_WAIT_BETWEEN_CHECKS, Wire},
    destination::Destination,
    discovery,
    error::RegistryError,
    layout::{LayoutReader, SharedLayout},
    listing::{Listing, Member},
    options::{Options, ReadLimits},
    remote::Remote,
};
use crate::{
    metrics::Metrics,
    oci::{Descriptor, Manifest, PinnedReference, Reference, Repository, Selector},
};

/// The registries by host, each with its one connection pool and its one credential.
#[derive(Debug)]
pub struct Registries {
    options: BTreeMap<String, Options>,
    fallback: Options,
    limits: ReadLimits,
    metrics: Metrics,
    /// The longest `Retry-After` that is waited for within an operation.
    max_wait: Duration,
    reading: Mutex<HashMap<String, Arc<Wire>>>,
    writing: Mutex<HashMap<String, Arc<Wire>>>,
    layouts: Mutex<HashMap<PathBuf, Arc<SharedLayout>>>,
}

/// One repository, as everything above the network sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Source {
    repository: Repository,
    identity: String,
    backend: Backend,
}

/// Held while an artifact is fetched ([`Source::transfer_turn`]).
#[derive(Debug)]
pub struct TransferTurn {
    /// `None` once the semaphore is closed, which nobody does.
    _permit: Option<OwnedSemaphorePermit>,
}

/// What refers to an artifact.
#[derive(Debug, Default)]
pub struct Referrers {
    /// Descriptors of manifests.
    pub entries: Vec<Descriptor>,
    /// Lists that can't be used, in words.
    pub skipped: Vec<String>,
}

#[derive(Debug, Clone)]
enum Backend {
    Remote(Remote),
    Layout(LayoutReader),
}

impl Registries {
    /// Registries that are not in `options` are spoken to over HTTPS, anonymously.
    pub fn new(options: BTreeMap<String, Options>, limits: ReadLimits, metrics: Metrics) -> Self {
        Self {
            options,
            fallback: Options::default(),
            limits,
            metrics,
            max_wait: MAX_WAIT_BETWEEN_CHECKS,
            reading: Mutex::default(),
            writing: Mutex::default(),
            layouts: Mutex::default(),
        }
    }

    /// For somebody who does not ask again later: a registry that asks for up to ten seconds of
    /// patience is given them within an operation. Otherwise that is up to the caller, but for a
    /// second.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { max_wait: MAX_WAIT, ..self }
    }

    /// How to speak to registries that have no options of their own, instead.
    #[must_use]
    pub fn otherwise(self, fallback: Options) -> Self {
        Self { fallback, ..self }
    }

    /// The source for a repository.
    ///
    /// # Errors
    /// When the options of its host make no client.
    pub fn source(&self, repository: &Repository) -> Result<Source, BadOptions> {
        let (backend, identity) = match repository {
            Repository::Registry { host, path } => {
                let user = self.options(host).credentials.as_ref().map(ToString::to_string);
                let identity = format!("{repository} as {}", user.as_deref().unwrap_or("anonymous"));
                (Backend::Remote(Remote::reading(self.wire(host)?, path.clone(), self.limits)), identity)
            }
            Repository::Layout { path } => (Backend::Layout(self.layout(path)), repository.to_string()),
        };
        Ok(Source { repository: repository.clone(), identity, backend })
    }

    /// The source for a repository that is to be read in the course of other work.
    ///
    /// # Errors
    /// When the options of its host make no client; as a trouble of that registry.
    pub fn reachable(&self, repository: &Repository) -> Result<Source, RegistryError> {
        self.source(repository).map_err(|BadOptions { host, reason }| RegistryError::Protocol {
            operation: "connect",
            host,
            reason,
        })
    }

    /// Where to write to a repository.
    ///
    /// # Errors
    /// When the options of its host make no client.
    pub fn destination(&self, repository: &Repository) -> Result<Destination, BadOptions> {
        Ok(match repository {
            Repository::Registry { host, path } => {
                let wire =
                    cached(&self.writing, host, || Wire::writing(host, self.options(host), self.metrics.clone()))?;
                Destination::remote(repository.clone(), Remote::writing(wire, path.clone(), self.limits))
            }
            Repository::Layout { path } => Destination::layout(repository.clone(), path.clone(), self.limits),
        })
    }

    /// Every tag of a repository, sorted.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or has no such repository.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        match repository {
            Repository::Registry { host, path } => discovery::tags(&*self.listing_wire(host)?, path).await,
            Repository::Layout { path } => self.layout(path).tags().await,
        }
    }

    /// Every repository of a registry, sorted; `None` where it keeps no catalog for us.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn repositories(&self, host: &str) -> Result<Option<Vec<String>>, RegistryError> {
        discovery::repositories(&*self.listing_wire(host)?).await
    }

    /// Whether a registry takes the credentials that the options name.
    ///
    /// # Errors
    /// When it does not, or does not answer.
    pub async fn check_credentials(&self, host: &str) -> Result<(), RegistryError> {
        discovery::greet(&*self.listing_wire(host)?).await
    }

    fn options(&self, host: &str) -> &Options {
        self.options.get(host).unwrap_or(&self.fallback)
    }

    fn layout(&self, path: &Path) -> LayoutReader {
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = Arc::clone(layouts.entry(path.to_owned()).or_default());
        LayoutReader::new(path.to_owned(), self.limits, shared)
    }

    fn wire(&self, host: &str) -> Result<Arc<Wire>, BadOptions> {
        let read = || Wire::reading(host, self.options(host), self.metrics.clone(), self.max_wait);
        cached(&self.reading, host, read)
    }

    fn listing_wire(&self, host: &str) -> Result<Arc<Wire>, RegistryError> {
        self.wire(host).map_err(|BadOptions { host, reason }| RegistryError::Protocol {
            operation: "connect",
            host,
            reason,
        })
    }
}

fn cached(
    wires: &Mutex<HashMap<String, Arc<Wire>>>,
    host: &str,
    make: impl FnOnce() -> Result<Wire, BadOptions>,
) -> Result<Arc<Wire>, BadOptions> {
    let mut wires = wires.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(wire) = wires.get(host) {
        return Ok(Arc::clone(wire));
    }
    let wire = Arc::new(make()?);
    wires.insert(host.to_owned(), Arc::clone(&wire));
    Ok(wire)
}

impl Referrers {
    /// Adds what is not there yet.
    fn add(&mut self, listing: Listing) {
        self.skipped.extend(listing.skipped);
        let mut known: HashSet<_> = self.entries.iter().map(|entry| entry.digest.clone()).collect();
        self.entries.extend(listing.entries.into_iter().filter(|entry| known.insert(entry.digest.clone())));
    }
}

impl Source {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// In a layout, reads the tags of `repository` among those of others; the counterpart of
    /// [`Destination::naming`].
    #[must_use]
    pub fn naming(self, repository: &Repository) -> Self {
        match self.backend {
            Backend::Layout(layout) => Self { backend: Backend::Layout(layout.naming(repository)), ..self },
            Backend::Remote(_) => self,
        }
    }

    /// Repository and credential in words: who has been shown a blob here may have it from
    /// a cache, others may not.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits for a turn to fetch an artifact, manifest to bundle. So many may be on their way
    /// from one host or folder at a time, whatever the number of bundles: each takes memory
    /// and connections.
    pub async fn transfer_turn(&self) -> TransferTurn {
        let turns = match &self.backend {
            Backend::Remote(remote) => remote.wire.transfers(),
            Backend::Layout(layout) => layout.transfers(),
        };
        TransferTurn { _permit: Arc::clone(turns).acquire_owned().await.ok() }
    }

    /// Turns a reference into a pin: one HEAD for a tag, nothing for a digest.
    ///
    /// # Errors
    /// `NoSuchReference` when the registry has no such tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<PinnedReference, RegistryError> {
        if let Some(pinned) = reference.pinned() {
            return Ok(pinned);
        }
        let digest = match (&self.backend, reference.selector()) {
            (Backend::Remote(remote), Selector::Tag(tag)) => remote.resolve(tag).await?,
            (Backend::Remote(_), _) => None,
            (Backend::Layout(layout), selector) => layout.resolve(selector.clone()).await?,
        };
        match digest {
            Some(digest) => Ok(self.repository.pin(digest)),
            None => Err(RegistryError::NoSuchReference { reference: reference.clone() }),
        }
    }

    /// The manifest under a pin, its bytes checked against the digest.
    ///
    /// # Errors
    /// `Missing` when the repository does not have it.
    pub async fn manifest(&self, pinned: &PinnedReference) -> Result<Manifest, RegistryError> {
        let digest = pinned.digest();
        let found = match &self.backend {
            Backend::Remote(remote) => remote.manifest(digest).await?,
            Backend::Layout(layout) => layout.manifest(digest.clone()).await?,
        };
        found.ok_or_else(|| self.missing("manifest", digest))
    }

    /// The manifest that a tag names now, or `None`: for signatures, whose absence is an
    /// answer and not an error.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or sends nonsense.
    pub async fn tagged_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        match &self.backend {
            Backend::Remote(remote) => remote.tagged_manifest(tag).await,
            Backend::Layout(layout) => match layout.resolve(Selector::Tag(tag.to_owned())).await? {
                Some(digest) => layout.manifest(digest).await,
                None => Ok(None),
            },
        }
    }

    /// The manifest that a descriptor names, in a list that nobody vouches for: at most as many
    /// bytes are read as it says.
    ///
    /// # Errors
    /// As [`Self::manifest`]; `TooLarge` when it is longer than the descriptor says.
    pub async fn described_manifest(&self, descriptor: &Descriptor) -> Result<Manifest, RegistryError> {
        let found = match &self.backend {
            Backend::Remote(remote) => remote.described_manifest(descriptor).await?,
            Backend::Layout(layout) => layout.manifest(descriptor.digest.clone()).await?,
        };
        found.ok_or_else(|| self.missing("manifest", &descriptor.digest))
    }

    /// The descriptors in the document that a tag names now, empty without such a tag. A document
    /// or entry that can't be used is told in words: whoever may push can write one.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn tagged_listing(&self, tag: &str, member: Member) -> Result<Listing, RegistryError> {
        let read = match &self.backend {
            Backend::Remote(remote) => remote.tagged(tag).await,
            Backend::Layout(_) => {
                self.tagged_manifest(tag).await.map(|found| found.map(|found| (found.raw().clone(), None)))
            }
        };
        match read {
            Ok(None) => Ok(Listing::default()),
            Ok(Some((raw, content_type))) => Ok(match Listing::read(&raw, member, content_type.as_deref()) {
                Ok(listing) => listing.named(tag),
                Err(reason) => Listing { size: raw.len() as u64, ..Listing::unusable(tag, reason) },
            }),
            Err(error) if error.is_unusable_content() => Ok(Listing::unusable(tag, error)),
            Err(error) => Err(error),
        }
    }

    /// Starts the transfer of a blob.
    ///
    /// # Errors
    /// `Missing` when the repository does not have it.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, RegistryError> {
        let found = match &self.backend {
            Backend::Remote(remote) => remote.blob(descriptor).await?,
            Backend::Layout(layout) => layout.blob(descriptor).await?,
        };
        found.ok_or_else(|| self.missing("blob", &descriptor.digest))
    }

    /// What refers to `subject`: the referrers API together with its fallback tag, because
    /// a registry that gained the API later keeps older entries under the tag only. At most
    /// `limit` descriptors, unfiltered; none of them proves anything by being listed. A list
    /// that can't be used (too long, nonsense) is told in words beside those that can:
    /// whoever may push can write one, and it must not take the other's entries away.
    ///
    /// # Errors
    /// When either of the two can't be asked; a registry without the API is no error.
    pub async fn referrers(&self, subject: &PinnedReference, limit: usize) -> Result<Referrers, RegistryError> {
        let digest = subject.digest();
        let mut found = Referrers::default();
        if let Backend::Remote(remote) = &self.backend {
            match remote.referrers(digest, limit).await {
                Ok(listing) => found.add(listing.unwrap_or_default().named("referrers")),
                Err(error) if error.is_unusable_content() => found.add(Listing::unusable("referrers", error)),
                Err(error) => return Err(error),
            }
        }
        let tag = format!("{}-{}", digest.algorithm(), digest.hex());
        found.add(self.tagged_listing(&tag, Member::Manifests).await?);
        found.entries.truncate(limit);
        Ok(found)
    }

    fn missing(&self, what: &'static str, digest: &crate::oci::Digest) -> RegistryError {
        RegistryError::Missing { what, digest: digest.clone(), repository: self.repository.to_string() }
    }
}
