//! The hosts that have one repository: its mirrors and the registry itself, the origin
//! (distribution-spec, "Registry Proxying").
//!
//! One rule holds for every read: the mirrors are asked in order, then the origin. A mirror that
//! lacks the content, does not answer, refuses or sends something else leads to the next host, and
//! only the origin's answer is one about what is missing. A host that does not answer is not asked
//! again for some seconds, unless no other host does. What a host delivers is verified as
//! everything from a registry is, so a mirror can withhold and delay, but not forge.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::Semaphore,
    time::{Duration, timeout},
};

use super::{
    blob_hosts::BlobHosts,
    blob_stream::BlobStream,
    discovery,
    error::{Class, RegistryError},
    health::Change,
    listing::{Listing, Member},
    remote::Remote,
    source::Lookup,
    tags::MAX_HELD_BYTES,
};
use crate::{
    oci::{Descriptor, Digest, Manifest},
    telemetry::{SENTENCE_BYTES, cut},
};

/// How long a mirror may take for anything but the bytes of a blob, before the next host is asked.
const MAX_MIRROR_WAIT: Duration = Duration::from_secs(30);

/// The hosts of one repository. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    mirrors: Arc<[Remote]>,
    origin: Remote,
    lists: Lists,
    /// The last digest to which a tag was resolved by a mirror that has the manifest as well.
    delivered: Arc<Mutex<Option<Digest>>>,
}

/// A request to one host: `None` if it lacks what is asked for. Boxed, because the compiler bounds
/// the depth of types.
type Asked<'a, T> = BoxFuture<'a, Result<Option<T>, RegistryError>>;

/// Which lists of signatures are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// Those of the first host that lists something.
    First,
    /// Those of every host, together.
    All,
}

impl Hosts {
    pub(super) fn new(mirrors: Vec<Remote>, origin: Remote) -> Self {
        Self {
            mirrors: mirrors.into(),
            origin,
            lists: Lists::First,
            delivered: Arc::default(),
        }
    }

    /// The registry itself.
    pub(super) fn origin(&self) -> &Remote {
        &self.origin
    }

    pub(super) fn has_mirrors(&self) -> bool {
        !self.mirrors.is_empty()
    }

    /// The same repository without its mirrors.
    pub(super) fn at_origin(self) -> Self {
        Self {
            mirrors: [].into(),
            ..self
        }
    }

    /// The same hosts; the lists of all of them are read, and not of the first one only.
    pub(super) fn with_all_lists(self) -> Self {
        Self {
            lists: Lists::All,
            ..self
        }
    }

    /// The permits for fetching artifacts.
    pub(super) fn transfers(&self) -> &Arc<Semaphore> {
        self.origin.client.transfers()
    }

    /// The digest that `tag` names now, as [`Remote::look_up`]. The digest that a mirror names
    /// counts once the mirror has delivered its manifest.
    pub(super) async fn look_up<'a>(
        &'a self,
        tag: &'a str,
        lookup: Lookup,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        self.first("resolve", |host| self.look_up_at(host, tag, lookup).boxed())
            .await
    }

    async fn look_up_at(
        &self,
        host: &Remote,
        tag: &str,
        lookup: Lookup,
    ) -> Result<Option<(Digest, Option<Manifest>)>, RegistryError> {
        let Some((digest, mut manifest)) = host.look_up(tag, lookup).await? else {
            return Ok(None);
        };
        if host.is_mirror() && manifest.is_none() && !self.is_delivered(&digest) {
            manifest = match host.manifest(&digest).await {
                Ok(Some(found)) => Some(found),
                Ok(None) => {
                    let reason = format!("{tag} names {digest}, which the mirror does not have");
                    return Err(host.client.transport.protocol("resolve", reason));
                }
                // Those bytes are not read again for every check of the tag.
                Err(RegistryError::TooLarge { proven: true, .. }) => None,
                Err(error) => return Err(error),
            };
            let is_short = |found: &Manifest| found.raw().len() as u64 <= MAX_HELD_BYTES;
            manifest = manifest.filter(is_short);
        }
        if host.is_mirror() {
            *self.lock_delivered() = Some(digest.clone());
        }
        Ok(Some((digest, manifest)))
    }

    fn is_delivered(&self, digest: &Digest) -> bool {
        self.lock_delivered().as_ref() == Some(digest)
    }

    fn lock_delivered(&self) -> MutexGuard<'_, Option<Digest>> {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn manifest<'a>(
        &'a self,
        digest: &'a Digest,
    ) -> Result<Option<Manifest>, RegistryError> {
        let found = self.first("manifest", |host| {
            host.manifest(digest).map(decided).boxed()
        });
        found.await?.transpose()
    }

    pub(super) async fn described_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> Result<Option<Manifest>, RegistryError> {
        let found = self.first("manifest", |host| {
            host.described_manifest(descriptor).map(decided).boxed()
        });
        found.await?.transpose()
    }

    /// The manifest that `tag` names at the origin, or if that fails at the first mirror that has
    /// the tag: a copy needs all signatures, of which a mirror may have some.
    pub(super) async fn tagged_manifest<'a>(
        &'a self,
        tag: &'a str,
    ) -> Result<Option<Manifest>, RegistryError> {
        self.origin_first("manifest", |host| host.tagged_manifest(tag).boxed())
            .await
    }

    /// Every tag, from the origin, or if that fails from the first mirror that lists some: a mirror
    /// may list those that it has fetched.
    pub(super) async fn tags(&self) -> Result<Option<Vec<String>>, RegistryError> {
        self.origin_first("tags", |host| discovery::tags(host).boxed())
            .await
    }

    /// The descriptors at a tag; `None` without such a tag.
    pub(super) async fn tagged_listing<'a>(
        &'a self,
        tag: &'a str,
        member: Member,
    ) -> Result<Option<Listing>, RegistryError> {
        self.list("manifest", |host| host.tagged_listing(tag, member).boxed())
            .await
    }

    /// The list of the referrers API; `None` where no host has it.
    pub(super) async fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        limit: usize,
    ) -> Result<Option<Listing>, RegistryError> {
        self.list("referrers", |host| {
            host.listed_referrers(subject, limit).boxed()
        })
        .await
    }

    /// Starts the transfer of a blob; `None` when the repository has none.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let hosts = BlobHosts::new(&self.mirrors, &self.origin);
        BlobStream::open(descriptor.clone(), hosts).await
    }

    /// Whether earlier answers say that no host has the referrers API.
    pub(super) fn lacks_referrers_api(&self) -> bool {
        self.all()
            .all(|host| host.client.capabilities.lacks_referrers_api(&host.key()))
    }

    pub(super) fn record_no_referrers_api(&self) {
        for host in self.all() {
            let capabilities = &host.client.capabilities;
            capabilities.record_no_referrers_api(&host.key());
        }
    }

    fn all(&self) -> impl Iterator<Item = &Remote> {
        self.mirrors.iter().chain([&self.origin])
    }

    /// The first thing that a host delivers.
    async fn first<'a, T>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, T>,
    ) -> Result<Option<T>, RegistryError> {
        let mut suspended = Vec::new();
        let mut is_answered = false;
        for mirror in self.mirrors.iter() {
            if !mirror.client.health.admits_mirror() {
                suspended.push(mirror);
                continue;
            }
            match observed(mirror, ask(mirror)).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => is_answered = true,
                Err(_) => {}
            }
        }
        let failure = match self.ask_origin(operation, &ask).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !is_answered {
            for mirror in suspended {
                if let Ok(Some(found)) = observed(mirror, ask(mirror)).await {
                    return Ok(Some(found));
                }
            }
        }
        Err(failure)
    }

    /// What the origin answers; if it fails, the first thing that a mirror delivers.
    async fn origin_first<'a, T>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, T>,
    ) -> Result<Option<T>, RegistryError> {
        let failure = match self.ask_origin(operation, &ask).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        for mirror in self.mirrors.iter() {
            if let Ok(Some(found)) = observed(mirror, ask(mirror)).await {
                return Ok(Some(found));
            }
        }
        Err(failure)
    }

    async fn list<'a>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, Listing>,
    ) -> Result<Option<Listing>, RegistryError> {
        match self.lists {
            Lists::First => {
                let ask = |host| {
                    let asked = ask(host);
                    async move { usable(host, asked.await) }.boxed()
                };
                self.first(operation, ask).await
            }
            Lists::All => self.merged(operation, ask).await,
        }
    }

    /// The lists of all hosts. If the origin fails, its failure is that of the list, or the result
    /// where no mirror lists anything.
    async fn merged<'a>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, Listing>,
    ) -> Result<Option<Listing>, RegistryError> {
        let mut merged: Option<Listing> = None;
        for mirror in self.mirrors.iter() {
            if !mirror.client.health.admits_mirror() {
                continue;
            }
            let listed = observed(mirror, ask(mirror)).await;
            if let Ok(Some(listed)) = usable(mirror, listed) {
                merged.get_or_insert_default().merge(listed);
            }
        }
        match (self.ask_origin(operation, &ask).await, merged) {
            (Ok(Some(listed)), Some(mut merged)) => {
                merged.merge(listed);
                Ok(Some(merged))
            }
            (Ok(listed), merged) => Ok(listed.or(merged)),
            (Err(failure), Some(mut merged)) => {
                merged.failure = Some(failure);
                Ok(Some(merged))
            }
            (Err(failure), None) => Err(failure),
        }
    }

    /// Asks the origin, unless there are mirrors and it has failed a moment ago.
    async fn ask_origin<'a, T>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, T>,
    ) -> Result<Option<T>, RegistryError> {
        if self.is_origin_suspended() {
            let client = &self.origin.client;
            return Err(client.health.error(operation, client.transport.host()));
        }
        observed(&self.origin, ask(&self.origin)).await
    }

    fn is_origin_suspended(&self) -> bool {
        self.has_mirrors() && !self.origin.client.health.admits()
    }
}

/// Waits for the answer of a host, for a mirror not too long, and records whether there was one.
pub(super) async fn observed<T>(
    host: &Remote,
    request: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let result = if host.is_mirror() {
        let limit = humantime::format_duration(MAX_MIRROR_WAIT);
        let late = || {
            Err(host
                .client
                .transport
                .unreachable("mirror", format!("no answer within {limit}")))
        };
        timeout(MAX_MIRROR_WAIT, request)
            .await
            .unwrap_or_else(|_| late())
    } else {
        request.await
    };
    record(host, result.as_ref().err());
    result
}

/// Records whether a host has answered.
pub(super) fn record(host: &Remote, error: Option<&RegistryError>) {
    let change = host.client.health.record(error);
    let Some(registry) = host.mirror_of() else {
        return;
    };
    let mirror = host.client.transport.host();
    if let Some(error) = error {
        let error = error.to_string();
        let error = &*cut(&error, SENTENCE_BYTES);
        match change {
            Some(Change::Suspended(time)) => {
                tracing::warn!(
                    mirror,
                    registry,
                    ?time,
                    error,
                    "a mirror fails, and is not asked for some time"
                )
            }
            _ => tracing::debug!(
                mirror,
                registry,
                error,
                "a mirror did not deliver; the next host is asked"
            ),
        }
    } else if change == Some(Change::Recovered) {
        tracing::info!(mirror, registry, "a mirror answers again");
    }
}

/// A defect of bytes with the requested digest is the same at every host.
fn decided(
    found: Result<Option<Manifest>, RegistryError>,
) -> Result<Option<Result<Manifest, RegistryError>>, RegistryError> {
    match found {
        Err(error) if error.class() == Class::Defect => Ok(Some(Err(error))),
        found => Ok(found?.map(Ok)),
    }
}

/// The list of a mirror counts if something is in it; that its end is missing is no failure, as
/// other hosts have it.
fn usable(
    host: &Remote,
    listed: Result<Option<Listing>, RegistryError>,
) -> Result<Option<Listing>, RegistryError> {
    if !host.is_mirror() {
        return listed;
    }
    let filled = listed?.filter(|listed| !listed.entries.is_empty());
    Ok(filled.map(|mut listed| {
        let cut_short = listed.failure.take();
        listed
            .skipped
            .extend(cut_short.map(|failure| failure.to_string()));
        listed
    }))
}
