//! The registries that the configuration allows.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{
    client::{MAX_RETRY_WAIT, MAX_RETRY_WAIT_POLLING, RegistryClient},
    destination::Destination,
    discovery,
    docker_hub::{is_same_registry, namespace},
    error::RegistryError,
    hosts::Hosts,
    layout::{LayoutReader, SharedLayout, WatchedFolders},
    limiter::Limiter,
    metrics::RegistryMetrics,
    options::{InvalidOptions, Options, ReadLimits},
    remote::Remote,
    source::Source,
    tag_list::SharedTagList,
};
use crate::oci::Repository;

/// The registries by host, each with one connection pool for reading, one for writing, and one
/// credential. Their options never change; [`super::LiveRegistries`] has those that do.
#[derive(Debug)]
pub struct Registries {
    options: BTreeMap<String, Options>,
    default: Options,
    limits: ReadLimits,
    metrics: RegistryMetrics,
    /// The longest `Retry-After` that is waited for within an operation.
    max_retry_wait: Duration,
    /// By registry: reading and writing share the limits of requests, and so do the names of Docker
    /// Hub.
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    readers: Mutex<HashMap<String, Arc<RegistryClient>>>,
    writers: Mutex<HashMap<String, Arc<RegistryClient>>>,
    /// The state of layout folders, for as long as a source of one exists.
    layouts: Arc<Mutex<HashMap<PathBuf, Weak<SharedLayout>>>>,
    /// The lists of tags, for as long as a source of their repository exists.
    tags: Arc<Mutex<HashMap<Repository, Weak<SharedTagList>>>>,
    /// The folders of layouts that are watched; `None` for callers that don't wait for changes.
    folders: Option<Arc<WatchedFolders>>,
}

impl Registries {
    /// A registry that is not in `options` is accessed over HTTPS, anonymously.
    pub fn new(
        options: BTreeMap<String, Options>,
        limits: ReadLimits,
        metrics: RegistryMetrics,
    ) -> Self {
        Self {
            options,
            default: Options::default(),
            limits,
            metrics,
            max_retry_wait: MAX_RETRY_WAIT_POLLING,
            limiters: Mutex::default(),
            readers: Mutex::default(),
            writers: Mutex::default(),
            layouts: Arc::default(),
            tags: Arc::default(),
            folders: None,
        }
    }

    /// For a caller that does not poll: an operation waits for a `Retry-After` of up to 10
    /// seconds. Otherwise an operation waits for up to one second, and a longer delay is left to
    /// the caller's schedule.
    #[must_use]
    pub fn one_shot(self) -> Self {
        Self {
            max_retry_wait: MAX_RETRY_WAIT,
            ..self
        }
    }

    /// Has [`Source::watch`] report changes of layout folders.
    #[must_use]
    pub fn watching(self) -> Self {
        Self {
            folders: Some(Arc::default()),
            ..self
        }
    }

    /// The options of registries that have none of their own.
    #[must_use]
    pub fn with_default(self, default: Options) -> Self {
        Self { default, ..self }
    }

    /// The registries with other options and limits. A host whose options stay the same keeps its
    /// clients, with their connections and tokens. Blocks while it reads the files of the others.
    ///
    /// # Errors
    /// When options that have changed make no client.
    pub fn with_options(
        &self,
        options: BTreeMap<String, Options>,
        limits: ReadLimits,
    ) -> Result<Self, InvalidOptions> {
        let next = Self {
            options,
            default: self.default.clone(),
            limits,
            metrics: self.metrics.clone(),
            max_retry_wait: self.max_retry_wait,
            limiters: Mutex::default(),
            readers: Mutex::default(),
            writers: Mutex::default(),
            layouts: Arc::clone(&self.layouts),
            tags: Arc::clone(&self.tags),
            folders: self.folders.clone(),
        };
        let same = |host: &str| self.options(host) == next.options(host);
        keep(&self.readers, &next.readers, same);
        keep(&self.writers, &next.writers, same);
        // The requests that wait for a limit go on waiting for it.
        keep(&self.limiters, &next.limiters, |host| {
            let (old, new) = (self.options(host), next.options(host));
            old.max_concurrent == new.max_concurrent && old.request_interval == new.request_interval
        });
        let used: Vec<_> = lock(&self.readers).keys().cloned().collect();
        for host in used.iter().chain(next.options.keys()) {
            if !same(host) {
                next.reader(host)?;
            }
        }
        Ok(next)
    }

    /// The source for a repository.
    ///
    /// # Errors
    /// When the options of its host are invalid.
    pub fn source(&self, repository: &Repository) -> Result<Source, InvalidOptions> {
        Ok(match repository {
            Repository::Registry { host, path } => {
                let user = self
                    .options(host)
                    .credentials
                    .as_ref()
                    .map(ToString::to_string);
                let identity =
                    format!("{repository} as {}", user.as_deref().unwrap_or("anonymous"));
                Source::remote(
                    repository.clone(),
                    identity,
                    self.hosts(host, path)?,
                    self.tag_list(repository),
                )
            }
            Repository::Layout { path } => {
                let watch = self
                    .folders
                    .as_ref()
                    .map(|folders| (Arc::clone(folders), self.metrics.unwatched_layouts.clone()));
                let tags = self.tag_list(repository);
                Source::layout(repository.clone(), self.layout(path), tags, watch)
            }
        })
    }

    /// The destination for a repository.
    ///
    /// # Errors
    /// When the options of its host are invalid.
    pub fn destination(&self, repository: &Repository) -> Result<Destination, InvalidOptions> {
        Ok(match repository {
            Repository::Registry { host, path } => {
                let writer = || {
                    let limiter = self.limiter(host);
                    RegistryClient::writing(host, self.options(host), limiter, self.metrics.clone())
                };
                let client = cached(&self.writers, host, writer)?;
                Destination::remote(
                    repository.clone(),
                    Remote::writing(client, path.clone(), self.limits),
                )
            }
            Repository::Layout { path } => {
                Destination::layout(repository.clone(), path.clone(), self.limits)
            }
        })
    }

    /// Every tag of a repository, sorted. Mirrors are asked only if the registry itself fails: they
    /// may lack tags.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or has no such repository.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        match repository {
            Repository::Registry { host, path } => {
                let listed = self.hosts(host, path)?.tags().await?;
                listed.ok_or_else(|| RegistryError::NoSuchRepository {
                    repository: repository.to_string(),
                })
            }
            Repository::Layout { path } => self.layout(path).tags().await,
        }
    }

    /// Every repository of a registry, sorted; `None` where it has no catalog.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn repositories(&self, host: &str) -> Result<Option<Vec<String>>, RegistryError> {
        discovery::repositories(&*self.reader(host)?).await
    }

    /// Checks that a registry accepts the credentials in the options.
    ///
    /// # Errors
    /// When it does not, or does not answer.
    pub async fn check_credentials(&self, host: &str) -> Result<(), RegistryError> {
        discovery::ping(&*self.reader(host)?).await
    }

    /// The options of a host; those of Docker Hub may be under another of its names.
    fn options(&self, host: &str) -> &Options {
        let same = || {
            let mut all = self.options.iter();
            all.find(|(name, _)| is_same_registry(name, host))
                .map(|(_, options)| options)
        };
        let exact = self.options.get(host);
        exact.or_else(same).unwrap_or(&self.default)
    }

    /// The hosts of a repository.
    fn hosts(&self, host: &str, path: &str) -> Result<Hosts, InvalidOptions> {
        let remote = |host| {
            let client = self.reader(host)?;
            Ok::<_, InvalidOptions>(Remote::reading(client, path.to_owned(), self.limits))
        };
        let mirrors = self.options(host).mirrors.iter();
        let mirrors = mirrors.map(|mirror| Ok(remote(mirror)?.mirroring(namespace(host))));
        Ok(Hosts::new(
            mirrors.collect::<Result<_, InvalidOptions>>()?,
            remote(host)?,
        ))
    }

    fn limiter(&self, host: &str) -> Arc<Limiter> {
        let mut limiters = lock(&self.limiters);
        let name = namespace(host).to_ascii_lowercase();
        let limiter = limiters.entry(name).or_insert_with(|| {
            let options = self.options(host);
            Arc::new(Limiter::new(
                options.max_concurrent,
                options.request_interval,
            ))
        });
        Arc::clone(limiter)
    }

    fn tag_list(&self, repository: &Repository) -> Arc<SharedTagList> {
        shared(&self.tags, repository)
    }

    fn layout(&self, path: &Path) -> LayoutReader {
        let shared = shared(&self.layouts, path);
        LayoutReader::new(path.to_owned(), self.limits, shared)
    }

    fn reader(&self, host: &str) -> Result<Arc<RegistryClient>, InvalidOptions> {
        let reader = || {
            RegistryClient::reading(
                host,
                self.options(host),
                self.limiter(host),
                self.metrics.clone(),
                self.max_retry_wait,
            )
        };
        cached(&self.readers, host, reader)
    }
}

/// The value that all present holders of `key` share.
fn shared<K, Q, V>(values: &Mutex<HashMap<K, Weak<V>>>, key: &Q) -> Arc<V>
where
    K: Borrow<Q> + Eq + Hash,
    Q: ToOwned<Owned = K> + Eq + Hash + ?Sized,
    V: Default,
{
    let mut values = lock(values);
    if let Some(value) = values.get(key).and_then(Weak::upgrade) {
        return value;
    }
    // Seldom, so that thousands of values cost little.
    if values.len().is_power_of_two() {
        values.retain(|_, value| value.strong_count() > 0);
    }
    let value = Arc::default();
    values.insert(key.to_owned(), Arc::downgrade(&value));
    value
}

/// Copies the values of the hosts that `is_kept`.
fn keep<V>(
    from: &Mutex<HashMap<String, Arc<V>>>,
    to: &Mutex<HashMap<String, Arc<V>>>,
    is_kept: impl Fn(&str) -> bool,
) {
    let from = lock(from);
    let kept = from.iter().filter(|(host, _)| is_kept(host));
    lock(to).extend(kept.map(|(host, value)| (host.clone(), Arc::clone(value))));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cached(
    clients: &Mutex<HashMap<String, Arc<RegistryClient>>>,
    host: &str,
    make: impl FnOnce() -> Result<RegistryClient, InvalidOptions>,
) -> Result<Arc<RegistryClient>, InvalidOptions> {
    let mut clients = lock(clients);
    if let Some(client) = clients.get(host) {
        return Ok(Arc::clone(client));
    }
    let client = Arc::new(make()?);
    clients.insert(host.to_owned(), Arc::clone(&client));
    Ok(client)
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::{
        super::{
            file_state::FileState,
            live::{LiveRegistries, LiveSource},
            options::Credentials,
        },
        *,
    };
    use crate::{metrics::Metrics, oci::Reference};

    fn registries() -> Registries {
        let limits = ReadLimits {
            manifest: 1,
            evidence: 1,
            bundle: 1,
        };
        let metrics = RegistryMetrics::new(&Metrics::new()).unwrap();
        Registries::new(BTreeMap::new(), limits, metrics)
    }

    #[test]
    fn the_names_of_docker_hub_share_the_limits_of_requests() {
        let registries = registries();
        let limiter = registries.limiter("docker.io");
        for same in ["index.docker.io", "registry-1.docker.io"] {
            assert!(Arc::ptr_eq(&limiter, &registries.limiter(same)), "{same}");
        }
        assert!(!Arc::ptr_eq(&limiter, &registries.limiter("ghcr.io")));
    }

    #[test]
    fn a_host_keeps_its_client_until_its_own_options_change() {
        let user = |name: &str, state: &str| Options {
            credentials: Some(Credentials::PasswordFile {
                username: name.to_owned(),
                password_file: "/nowhere".into(),
            }),
            file_state: FileState::of(&[Some(state)]),
            ..Options::default()
        };
        let options = |user: Options| {
            let mirrored = Options {
                mirrors: vec!["a.example".to_owned()],
                ..Options::default()
            };
            [("a.example", user), ("b.example", mirrored)]
                .map(|(host, options)| (host.to_owned(), options))
                .into()
        };
        let limits = registries().limits;
        let live = LiveRegistries::from(registries());
        let set = |user: Options, limits: ReadLimits| {
            let next = live.current().with_options(options(user), limits).unwrap();
            live.replace(Arc::new(next));
        };
        set(user("one", "1"), limits);
        let sources = ["a.example/x", "b.example/x", "c.example/x"].map(|repository| {
            let reference: Reference = format!("{repository}:v1").parse().unwrap();
            live.source(reference.repository()).unwrap()
        });
        let current = || sources.each_ref().map(LiveSource::current);
        let changed_by = |user: Options, limits: ReadLimits| {
            let before = current();
            set(user, limits);
            let after = current();
            let pairs = before.iter().zip(&after);
            pairs
                .map(|(before, after)| !before.is_interchangeable(after))
                .collect::<Vec<_>>()
        };
        assert_eq!(changed_by(user("one", "1"), limits), [false; 3]);
        // The password, then the user. `b.example` has this host as its mirror.
        assert_eq!(changed_by(user("one", "2"), limits), [true, true, false]);
        assert_eq!(changed_by(user("two", "2"), limits), [true, true, false]);
        assert!(sources[0].current().identity().ends_with("as two"));
        let other = ReadLimits {
            manifest: limits.manifest + 1,
            ..limits
        };
        assert_eq!(changed_by(user("two", "2"), other), [true; 3]);
    }

    #[test]
    fn options_that_make_no_client_leave_the_registries_as_they_are() {
        let registries = registries();
        let broken = Options {
            extra_roots: b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".into(),
            ..Options::default()
        };
        let options = [("a.example".to_owned(), broken)].into();
        let error = registries.with_options(options, registries.limits);
        assert_eq!(error.unwrap_err().host, "a.example");
    }

    #[tokio::test]
    async fn a_layout_folder_is_followed_until_its_last_source_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let reference = format!("oci-layout:{}:live", folder.path().display());
        let reference: Reference = reference.parse().unwrap();
        let registries = registries().watching();
        let source = || registries.source(reference.repository()).unwrap();
        let state = || {
            let layouts = registries.layouts.lock().unwrap();
            layouts.get(folder.path()).cloned().unwrap()
        };
        let (one, other) = (source(), source());
        let mut watch = one.watch(&reference).unwrap();
        drop(one);
        let first = state();
        // The first read of the folder.
        watch.changed(None).await;
        drop(other);
        assert!(first.ptr_eq(&state()) && first.strong_count() > 0);
        drop(watch);
        // A read that is under way holds the state.
        let gone = async {
            while first.strong_count() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), gone).await.unwrap();
        let again = source();
        assert!(!state().ptr_eq(&first));
        drop(again);
    }
}
