//! A configuration that changes while it is served: whom to trust and who may read is taken at
//! once and as a whole, or refused as a whole; everything else waits for the next start. Only a
//! token that is taken out of its file counts no more even if the rest is refused.

mod files;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::sleep,
};

use self::files::{Contents, WatchedFiles};
use crate::{
    config::{BundleConfig, ClientConfig, Config},
    metrics::Metrics,
    server::LiveClients,
    verify::{LiveRoots, TrustPolicy},
    watch::Handle,
};

/// How often a configuration that was refused is tried again: what it lacks may appear where
/// nobody looks.
const AGAIN: Duration = Duration::from_secs(3);
/// Files that change while they are read are read so often.
const READINGS: usize = 5;

/// Takes over what a changed configuration says about trust.
#[derive(Debug)]
pub(super) struct Reload {
    reader: Reader,
    metrics: Metrics,
    hangup: Signal,
    files: WatchedFiles,
    /// Why the configuration is refused at the moment.
    complaint: Option<String>,
    /// What waits for the next start, as it was told last.
    untaken: Vec<String>,
}

/// The part that blocks, and so travels between threads.
#[derive(Debug)]
struct Reader {
    file: PathBuf,
    /// As it was at the start.
    running: Config,
    /// Of the bundles of `running`, in their order.
    handles: Vec<Handle>,
    /// The last policy that a configuration has given to each of them.
    policies: Vec<TrustPolicy>,
    /// What decides now who may read, and what it was made from.
    clients: (LiveClients, Vec<ClientConfig>),
    roots: LiveRoots,
}

/// Why the configuration is read. Whatever else should lead to that gets a variant here, and an
/// arm in [`Reload::next_cause`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Start,
    /// SIGHUP.
    Signal,
    /// A file that decides whom to trust or who may read is another one.
    Files,
    /// A trust root was refreshed.
    Roots,
    /// It was refused before.
    Again,
}

/// What was taken.
struct Taken {
    /// The bundles that have another policy now.
    bundles: usize,
    /// Whether others may read now.
    clients: bool,
    /// The keys that wait for the next start.
    untaken: Vec<String>,
}

impl Reload {
    /// Watches the file, and the files that its trust and its clients name, from now on. `handles`
    /// are those of the bundles of `running`, in their order.
    pub(super) fn new(
        file: PathBuf,
        running: Config,
        handles: Vec<Handle>,
        clients: LiveClients,
        roots: LiveRoots,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let policies = running.bundles.iter().map(|bundle| bundle.trust.clone()).collect();
        let clients = (clients, running.clients.clone());
        let reader = Reader { file, running, handles, policies, clients, roots };
        Ok(Self { reader, metrics, hangup, files: WatchedFiles::new(), complaint: None, untaken: Vec::new() })
    }

    /// Reads the configuration again with the trust roots as they are, before anything is judged
    /// by those that the program was built with.
    pub(super) async fn begin(self) -> anyhow::Result<Self> {
        self.take(Cause::Start).await
    }

    /// For ever.
    pub(super) async fn follow(mut self) -> anyhow::Result<()> {
        loop {
            let cause = self.next_cause().await;
            self = self.take(cause).await?;
        }
    }

    async fn next_cause(&mut self) -> Cause {
        tokio::select! {
            _ = self.hangup.recv() => Cause::Signal,
            () = self.files.changed() => Cause::Files,
            () = self.reader.roots.changed() => Cause::Roots,
            () = sleep(AGAIN), if self.complaint.is_some() => Cause::Again,
        }
    }

    /// Off the async threads: five hundred bundles are told in one go, and files may lie on a
    /// network.
    async fn take(mut self, cause: Cause) -> anyhow::Result<Self> {
        let mut reader = self.reader;
        let known = self.files.contents().clone();
        let (reader, outcome, contents) = spawn_blocking(move || {
            let taken = catch_unwind(AssertUnwindSafe(|| reader.take(known.clone())));
            let (outcome, contents) =
                taken.unwrap_or_else(|_| (Err("reading it broke off; please report this".to_owned()), known.again()));
            (reader, outcome, contents)
        })
        .await?;
        self.reader = reader;
        self.files.watch(contents);
        match outcome {
            Ok(taken) => self.applied(cause, taken),
            Err(complaint) => self.refused(cause, complaint),
        }
        Ok(self)
    }

    fn applied(&mut self, cause: Cause, Taken { bundles, clients, untaken }: Taken) {
        self.complaint = None;
        self.metrics.config_last_reload_successful.set(1);
        if cause != Cause::Start {
            let outcome = if bundles > 0 || clients { "applied" } else { "unchanged" };
            self.metrics.config_reloads.with_label_values(&[outcome]).inc();
            tracing::info!(cause = cause.label(), bundles, clients, outcome, "configuration read again");
        }
        if !untaken.is_empty() && untaken != self.untaken {
            let keys = untaken.join(", ");
            tracing::warn!(keys, "these changes of the configuration take effect at the next start");
        }
        self.untaken = untaken;
    }

    fn refused(&mut self, cause: Cause, complaint: String) {
        if cause == Cause::Again && self.complaint.as_ref() == Some(&complaint) {
            return;
        }
        self.metrics.config_last_reload_successful.set(0);
        self.metrics.config_reloads.with_label_values(&["refused"]).inc();
        tracing::warn!(cause = cause.label(), error = complaint, "configuration refused: the old trust stays");
        self.complaint = Some(complaint);
    }
}

impl Reader {
    /// Reads everything until it holds still, and takes over its trust. Also tells what the files
    /// were like. Blocks.
    fn take(&mut self, known: Contents) -> (Result<Taken, String>, Contents) {
        let mut contents = known.again();
        let mut loaded = None;
        for _ in 0..READINGS {
            let config = Config::load_with(&self.file, &|name, source| self.roots.current(name, source));
            let now = match &config {
                Ok(config) => Contents::of(config.trust_files()),
                Err(_) => contents.again(),
            };
            loaded = Some(config);
            // What was read half before a change and half after it would be nobody's wish.
            if now == contents {
                break;
            }
            contents = now;
        }
        let outcome = match loaded {
            Some(Ok(config)) => self.apply(&config),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it was not read".to_owned()),
        };
        if outcome.is_err() {
            self.revoke();
        }
        (outcome, contents)
    }

    /// Takes away the tokens that are not in their file any more.
    fn revoke(&mut self) {
        let (live, config) = &mut self.clients;
        for client in config.iter_mut() {
            if client.revoke() {
                let client = &client.name;
                tracing::warn!(client, "tokens that are not in its bearer_token_file any more are refused from now on");
            }
        }
        if let Ok(clients) = super::gateway::clients(config) {
            live.replace(clients);
        }
    }

    /// Takes over who may read, and tells whether these are others.
    fn admit(&mut self, config: &[ClientConfig]) -> Result<bool, String> {
        let (live, old) = &mut self.clients;
        if old == config {
            return Ok(false);
        }
        live.replace(super::gateway::clients(config).map_err(|error| error.to_string())?);
        *old = config.to_vec();
        Ok(true)
    }

    fn apply(&mut self, config: &Config) -> Result<Taken, String> {
        self.roots.adopt(&config.roots).map_err(|error| error.to_string())?;
        let clients = self.admit(&config.clients)?;
        let new: BTreeMap<_, _> = config.bundles.iter().map(|bundle| (bundle.name.as_str(), bundle)).collect();
        // Bundles with one policy share it.
        let mut shared: BTreeMap<(String, String), Arc<TrustPolicy>> = BTreeMap::new();
        let mut bundles = 0;
        let running = self.running.bundles.iter().zip(&self.handles).zip(&mut self.policies);
        for ((old, handle), last) in running {
            let policy = match new.get(old.name.as_str()).filter(|new| new.reference == old.reference) {
                Some(new) => {
                    *last = new.trust.clone();
                    new.trust.clone()
                }
                None => orphaned(old, last, config),
            };
            let key = (policy.name().to_owned(), policy.revision().to_string());
            let policy = shared.entry(key).or_insert_with(|| Arc::new(policy));
            bundles += usize::from(handle.trust(Arc::clone(policy)));
        }
        Ok(Taken { bundles, clients, untaken: self.running.differences(config) })
    }
}

/// The policy of a bundle that runs until the next start though the file has it no more, or under
/// another reference: the file's policy of that name, or else the last one that it had. What the
/// file revokes or removes counts in either case, whatever else it calls by another name. No
/// policy of the same name turns a signed bundle into an unsigned one.
fn orphaned(old: &BundleConfig, last: &TrustPolicy, config: &Config) -> TrustPolicy {
    let named = config.trust.choose(Some(last.name()), old.reference.repository()).ok();
    let named = named.filter(|named| named.requirements().is_some() || last.requirements().is_none());
    named.as_ref().unwrap_or(last).restricted(config.trust.base())
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Signal => "SIGHUP",
            Self::Files => "files",
            Self::Roots => "roots",
            Self::Again => "again",
        }
    }
}
