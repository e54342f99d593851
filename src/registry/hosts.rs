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
use tokio::{sync::Semaphore, time::Duration};

use super::{
    blob_hosts::BlobHosts,
    blob_stream::BlobStream,
    deadline::Deadline,
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
pub(super) const MAX_MIRROR_WAIT: Duration = Duration::from_secs(30);

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
    /// Those of the origin. Where it does not deliver one, those of the mirrors.
    OfOrigin,
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

    /// Whether the same clients ask the same hosts within the same limits.
    pub(super) fn is_interchangeable(&self, other: &Self) -> bool {
        self.all().count() == other.all().count()
            && self
                .all()
                .zip(other.all())
                .all(|(one, other)| one.is_interchangeable(other))
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

    /// The same hosts; the lists of the mirrors are read only where the origin does not deliver its
    /// own.
    pub(super) fn with_lists_of_origin(self) -> Self {
        Self {
            lists: Lists::OfOrigin,
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
        self.first("resolve", |host| {
            noted(host, "resolve", self.look_up_at(host, tag, lookup)).boxed()
        })
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
            noted(host, "manifest", host.manifest(digest).map(decided)).boxed()
        });
        found.await?.transpose()
    }

    pub(super) async fn described_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> Result<Option<Manifest>, RegistryError> {
        let found = self.first("manifest", |host| {
            let found = host.described_manifest(descriptor).map(decided);
            noted(host, "manifest", found).boxed()
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
            Lists::All | Lists::OfOrigin => self.merged(operation, ask).await,
        }
    }

    /// The list of the origin, and those of the mirrors after it: all of them, or only if that of
    /// the origin is missing or lacks its end. If the origin fails, its failure is that of the list,
    /// or the result where no mirror lists anything.
    async fn merged<'a>(
        &'a self,
        operation: &'static str,
        ask: impl Fn(&'a Remote) -> Asked<'a, Listing>,
    ) -> Result<Option<Listing>, RegistryError> {
        let (mut merged, failure) = match self.ask_origin(operation, &ask).await {
            Ok(listed) => (listed, None),
            Err(failure) => (None, Some(failure)),
        };
        let is_cut_short = |listed: &Listing| listed.failure.is_some();
        let are_mirrors_asked = self.lists == Lists::All
            || failure.is_some()
            || merged.as_ref().is_some_and(is_cut_short);
        for mirror in self.mirrors.iter().filter(|_| are_mirrors_asked) {
            if !mirror.client.health.admits_mirror() {
                continue;
            }
            let listed = observed(mirror, ask(mirror)).await;
            if let Ok(Some(listed)) = usable(mirror, listed) {
                merged.get_or_insert_default().merge(listed);
            }
        }
        match (merged, failure) {
            (None, Some(failure)) => Err(failure),
            (Some(mut merged), Some(failure)) => {
                merged.failure = Some(failure);
                Ok(Some(merged))
            }
            (merged, None) => Ok(merged),
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
/// What a request waits for the limits of the host is no time in which the host does not answer.
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
        let deadline = Deadline::after(MAX_MIRROR_WAIT);
        deadline.limit(request).await.unwrap_or_else(late)
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

/// Waits for content of a host, and logs when a mirror begins to refuse it, and when it delivers it
/// again. Not for lists: some registries answer 401 or 403 for those that are missing.
pub(super) async fn noted<T>(
    host: &Remote,
    operation: &'static str,
    request: impl Future<Output = Result<Option<T>, RegistryError>>,
) -> Result<Option<T>, RegistryError> {
    let result = request.await;
    let Some(registry) = host.mirror_of() else {
        return result;
    };
    let (mirror, repository) = (host.client.transport.host(), &*host.path);
    match &result {
        Ok(Some(_)) if host.record_delivery(operation) => {
            tracing::info!(
                mirror,
                registry,
                repository,
                operation,
                "a mirror delivers again"
            );
        }
        Err(error) if is_refusal(error) && host.record_refusal(operation) => {
            let error = error.to_string();
            let error = &*cut(&error, SENTENCE_BYTES);
            tracing::warn!(
                mirror,
                registry,
                repository,
                operation,
                error,
                "a mirror refuses requests; the next host is asked instead"
            );
        }
        _ => {}
    }
    result
}

/// Whether a host has answered that it won't deliver, or has failed to. One that does not answer is
/// suspended, which is logged as well.
fn is_refusal(error: &RegistryError) -> bool {
    let is_failing = matches!(
        error,
        RegistryError::Status {
            status: 500..,
            retry_after: None,
            ..
        }
    );
    error.class() == Class::Denied || is_failing
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

#[cfg(test)]
pub(super) mod tests {
    use tokio::time::sleep;

    use super::{
        super::{
            client::{MAX_RETRY_WAIT, RegistryClient},
            deadline::Pause,
            error::CredentialSource,
            limiter::Limiter,
            metrics::RegistryMetrics,
            options::{Options, ReadLimits, Scheme},
        },
        *,
    };
    use crate::metrics::Metrics;

    /// A repository at a host without TLS.
    pub(in super::super) fn remote(host: &str) -> Remote {
        let options = Options {
            scheme: Scheme::Http,
            ..Options::default()
        };
        let limiter = Arc::new(Limiter::new(1, None));
        let metrics = RegistryMetrics::new(&Metrics::new()).unwrap();
        let client = RegistryClient::reading(host, &options, limiter, metrics, MAX_RETRY_WAIT);
        let limits = ReadLimits {
            manifest: 1 << 20,
            evidence: 1 << 20,
            bundle: 1 << 20,
        };
        Remote::reading(Arc::new(client.unwrap()), "acme/authz".to_owned(), limits)
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_is_not_late_while_requests_wait_for_its_limits() {
        let mirror = remote("m.example").mirroring("r.example");
        let asked = async {
            let pause = Pause::start();
            sleep(Duration::from_secs(3600)).await;
            drop(pause);
            sleep(MAX_MIRROR_WAIT - Duration::from_secs(1)).await;
            Ok(())
        };
        observed(&mirror, asked).await.unwrap();
        assert!(mirror.client.health.admits_mirror());
        let asked = async {
            sleep(MAX_MIRROR_WAIT + Duration::from_secs(1)).await;
            Ok(())
        };
        observed(&mirror, asked).await.unwrap_err();
        assert!(!mirror.client.health.admits_mirror());
    }

    /// The lines of log that `noted` writes for these answers of a mirror.
    fn logged(answers: Vec<(&'static str, Result<Option<()>, RegistryError>)>) -> Vec<String> {
        let mirror = remote("m.example").mirroring("r.example");
        let log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Mutex::new(log.reopen().unwrap()))
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for (operation, answer) in answers {
                let noted = noted(&mirror, operation, std::future::ready(answer));
                drop(noted.now_or_never().unwrap());
            }
        });
        let log = std::fs::read_to_string(log.path()).unwrap();
        let words = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
        log.lines().map(words).collect()
    }

    #[test]
    fn a_mirror_that_begins_to_refuse_is_logged_once_and_so_is_that_it_delivers_again() {
        let status = |status, retry_after| {
            Err(RegistryError::Status {
                operation: "test",
                host: "m.example".into(),
                status,
                retry_after,
                detail: String::new(),
            })
        };
        let denied = || {
            Err(RegistryError::Denied {
                operation: "test",
                host: "m.example".into(),
                status: 401,
                credentials: CredentialSource::Anonymous,
            })
        };
        let delivered = || Ok(Some(()));
        let changes = vec![
            ("blob", delivered()),
            ("blob", denied()),
            ("blob", status(500, None)),
            ("blob", Ok(None)),
            // Another operation says nothing about this one.
            ("manifest", delivered()),
            ("blob", denied()),
            ("blob", delivered()),
            ("blob", delivered()),
            ("blob", status(500, None)),
        ];
        assert_eq!(logged(changes), ["WARN", "INFO", "WARN"]);
        let wait = Some(Duration::from_secs(9));
        let suspended = vec![
            ("blob", status(429, wait)),
            ("blob", status(503, wait)),
            ("blob", delivered()),
        ];
        assert_eq!(logged(suspended), [""; 0]);
    }
}
