//! Applies changes of the configuration, and of the files that it names, while bundles are served: all
//! of them, or none. Only addresses and the place of the cache wait for the next start. A token or a
//! user that is removed from its file is refused even if the rest of the configuration is invalid.

mod files;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::spawn_blocking,
    time::sleep,
};

use self::files::{Contents, WatchedFiles};
use super::{
    bundles::{Applied, Bundles},
    metrics::ReloadMetrics,
    options,
    plan::{self, Change},
};
use crate::{
    config::Config,
    publish::TrustRootStatus,
    server::{
        self, AdminTokens, Clients, ConfigReloads, LiveCertificates, LiveClients, LiveSettings,
        LiveWebhooks, ReloadOutcome, ReloadRequests,
    },
    service_manager::ServiceManager,
    telemetry,
    traces::Traces,
    verify::TrustRoots,
};

/// The interval at which a refused configuration is read again: a file that it lacks may appear
/// where nothing is watched.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// The maximum number of times that files are read that change while they are read.
const MAX_READS: usize = 5;

/// Reads the configuration again whenever there is a cause, and applies it to the bundles.
#[derive(Debug)]
pub(super) struct Reload {
    reader: Reader,
    live: LiveOptions,
    metrics: ReloadMetrics,
    hangup: Signal,
    requests: ReloadRequests,
    files: WatchedFiles,
    /// The reason for which the configuration is refused; `None` while it is in force.
    refusal: Option<String>,
    /// The keys that wait for the next start, as last logged.
    restart_keys: Vec<String>,
    manager: ServiceManager,
}

/// The options of the server that are replaced while it runs.
#[derive(Debug, Clone)]
pub(super) struct LiveOptions {
    clients: LiveClients,
    webhooks: LiveWebhooks,
    admin_tokens: AdminTokens,
    reloads: ConfigReloads,
    certificates: LiveCertificates,
    settings: LiveSettings,
    traces: Traces,
}

/// The part that blocks. It is moved to a blocking thread and back.
#[derive(Debug)]
struct Reader {
    file: PathBuf,
    /// The configuration in force.
    running: Config,
    roots: TrustRoots,
}

/// Why the configuration is read. Another cause gets a variant here, and an arm in
/// [`Reload::next_cause`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Start,
    /// SIGHUP.
    Signal,
    /// `POST /reload`.
    Request,
    /// The configuration, or a file that it names, has another content.
    Files,
    /// A trust root was refreshed.
    Roots,
    /// The configuration was refused before.
    Again,
}

/// Changes of what is not a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct OtherChanges {
    clients: bool,
    webhooks: bool,
    admin_tokens: bool,
    registries: bool,
    limits: bool,
    cache: bool,
    tls: bool,
    server: bool,
    tracing: bool,
}

impl LiveOptions {
    pub(super) fn of(options: &server::Options) -> Self {
        Self {
            clients: options.clients.clone(),
            webhooks: options.webhooks.clone(),
            admin_tokens: options.admin.tokens.clone(),
            reloads: options.admin.reloads.clone(),
            certificates: options.admin.certificates.clone(),
            settings: options.settings.clone(),
            traces: options.traces.clone(),
        }
    }
}

impl OtherChanges {
    fn of(changes: &[Change]) -> Self {
        let mut others = Self::default();
        for change in changes {
            match change {
                Change::SetClients(_) => others.clients = true,
                Change::SetWebhooks => others.webhooks = true,
                Change::SetAdminTokens => others.admin_tokens = true,
                Change::SetRegistries => others.registries = true,
                Change::SetLimits => others.limits = true,
                Change::SetCache => others.cache = true,
                Change::SetTls => others.tls = true,
                Change::SetServer => others.server = true,
                Change::SetTracing => others.tracing = true,
                _ => {}
            }
        }
        others
    }
}

impl Reload {
    /// Watches the file, and the files that it names, from the first [`Self::read`] on. `running` was
    /// read from it.
    pub(super) fn new(
        file: PathBuf,
        running: Config,
        live: LiveOptions,
        roots: TrustRoots,
        metrics: ReloadMetrics,
    ) -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let requests = live.reloads.requests();
        let reader = Reader {
            file,
            running,
            roots,
        };
        let (files, restart_keys) = (WatchedFiles::new(), Vec::new());
        Ok(Self {
            reader,
            live,
            metrics,
            hangup,
            requests,
            files,
            refusal: None,
            restart_keys,
            manager: ServiceManager::default(),
        })
    }

    /// What operators see of the trust roots.
    pub(super) fn trust_roots(&self) -> watch::Receiver<BTreeMap<String, TrustRootStatus>> {
        self.reader.roots.statuses()
    }

    /// Tells a service manager of reloads.
    pub(super) fn report_to(&mut self, manager: ServiceManager) {
        self.manager = manager;
    }

    /// Waits until there is a cause to read the configuration again.
    pub(super) async fn next_cause(&mut self) -> Cause {
        tokio::select! {
            _ = self.hangup.recv() => Cause::Signal,
            () = self.requests.requested() => Cause::Request,
            () = self.files.changed() => Cause::Files,
            () = self.reader.roots.changed() => Cause::Roots,
            () = sleep(RETRY_INTERVAL), if self.refusal.is_some() => Cause::Again,
        }
    }

    /// Reads the configuration, with the trust roots as they are, and applies it or refuses it.
    ///
    /// # Errors
    /// When a task panicked, which is a bug.
    pub(super) async fn read(
        mut self,
        cause: Cause,
        bundles: &mut Bundles,
    ) -> anyhow::Result<Self> {
        let began = self.requests.begin();
        if cause.is_change() {
            self.manager.send_reloading().await;
        }
        let known = self.files.contents().clone();
        let reader = self.reader;
        // Read on a blocking thread, because files may be on a network file system.
        let (reader, outcome, contents) = spawn_blocking(move || {
            let read = catch_unwind(AssertUnwindSafe(|| reader.read(&known)));
            let (outcome, contents) = read.unwrap_or_else(|_| {
                (
                    Err("reading it panicked; please report this".to_owned()),
                    known.again(),
                )
            });
            (reader, outcome, contents)
        })
        .await?;
        self.reader = reader;
        self.files.watch(contents);
        let applied = match outcome {
            Ok((wanted, changes)) => self.apply(wanted, changes, bundles).await?,
            Err(refusal) => Err(refusal),
        };
        match applied {
            Ok((applied, others)) => self.log_applied(cause, applied, others),
            Err(refusal) => {
                self.revoke_credentials();
                self.log_refused(cause, refusal);
            }
        }
        let outcome = ReloadOutcome {
            at: telemetry::now(),
            refusal: self.refusal.clone(),
            restart_keys: self.restart_keys.clone(),
        };
        self.requests.conclude(began, outcome);
        if cause.is_change() {
            // Also after a refusal: the gateway is ready with the configuration in force.
            self.manager.send_ready().await;
        }
        Ok(self)
    }

    /// Applies the changes. Everything that may fail comes before everything that has an effect.
    /// Returns what was applied, or the reason for which the configuration is refused.
    async fn apply(
        &mut self,
        wanted: Config,
        changes: Vec<Change>,
        bundles: &mut Bundles,
    ) -> anyhow::Result<Result<(Applied, OtherChanges), String>> {
        let clients = changes.iter().find_map(|change| match change {
            Change::SetClients(clients) => Some(options::clients(
                clients,
                &wanted.server,
                self.live.clients.key_sets(),
            )),
            _ => None,
        });
        let clients = match clients.transpose() {
            Ok(clients) => clients,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let prepared = match bundles.prepare(&changes, &wanted).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if let Err(error) = self.reader.roots.set_sources(&wanted.roots) {
            return Ok(Err(error.to_string()));
        }
        let others = OtherChanges::of(&changes);
        if others.tracing
            && let Err(error) = self.live.traces.replace(wanted.tracing.as_ref())
        {
            return Ok(Err(error.to_string()));
        }
        self.replace_options(&wanted, others, clients);
        let applied = bundles.apply(&changes, prepared, &wanted).await?;
        let keys = changes.into_iter().filter_map(|change| match change {
            Change::NeedsRestart(key) => Some(key),
            _ => None,
        });
        self.log_restart_keys(keys.collect());
        self.reader.running.adopt_live(wanted);
        Ok(Ok((applied, others)))
    }

    /// Puts the options of the server that have changed in force.
    fn replace_options(&self, wanted: &Config, others: OtherChanges, clients: Option<Clients>) {
        let LiveOptions {
            clients: live_clients,
            webhooks,
            admin_tokens,
            certificates,
            settings,
            ..
        } = &self.live;
        if *certificates.current() != wanted.certificates {
            options::warn_of_expired(&wanted.certificates);
            certificates.replace(wanted.certificates.clone());
        }
        if self.reader.running.warnings() != wanted.warnings() {
            options::warn(wanted);
        }
        if let Some(clients) = clients {
            live_clients.replace(clients);
        }
        if others.webhooks {
            webhooks.replace(wanted.webhooks.iter().cloned());
        }
        if others.admin_tokens {
            options::set_admin_tokens(admin_tokens, wanted.server.admin_tokens.as_ref());
        }
        if others.tls || others.server {
            telemetry::set_format(wanted.log.format);
            options::apply_settings(settings, options::settings(wanted));
        }
    }

    /// Refuses the credentials that are no longer in their file.
    fn revoke_credentials(&mut self) {
        let running = &mut self.reader.running;
        for client in &mut running.clients {
            if client.revoke() {
                let (client, key) = (&client.name, client.credential.key());
                tracing::warn!(
                    client,
                    key,
                    "what was removed from the file of this client is refused from now on"
                );
            }
        }
        let key_sets = self.live.clients.key_sets();
        if let Ok(clients) = options::clients(&running.clients, &running.server, key_sets) {
            self.live.clients.replace(clients);
        }
        if let Some(file) = &mut running.server.admin_tokens
            && file.revoke()
        {
            tracing::warn!(
                "tokens that are not in server.admin_token_file any more are refused from now on"
            );
            options::set_admin_tokens(&self.live.admin_tokens, Some(file));
        }
    }

    fn log_applied(&mut self, cause: Cause, applied: Applied, others: OtherChanges) {
        self.refusal = None;
        self.metrics.set_last_successful(true);
        if cause != Cause::Start {
            let is_unchanged = others == OtherChanges::default() && applied == Applied::default();
            let outcome = if is_unchanged { "unchanged" } else { "applied" };
            self.metrics.count(outcome);
            let Applied {
                policies: bundles,
                added,
                replaced,
                removed,
                patterns,
                suspensions,
                fallbacks,
                rollouts,
            } = applied;
            let OtherChanges {
                clients,
                webhooks,
                admin_tokens,
                registries,
                limits,
                cache,
                tls,
                server,
                tracing,
            } = others;
            let cause = cause.label();
            tracing::info!(
                cause,
                bundles,
                added,
                replaced,
                removed,
                patterns,
                suspensions,
                fallbacks,
                rollouts,
                clients,
                webhooks,
                admin_tokens,
                registries,
                limits,
                cache,
                tls,
                server,
                tracing,
                outcome,
                "configuration read again"
            );
        }
    }

    fn log_restart_keys(&mut self, keys: Vec<String>) {
        if !keys.is_empty() && keys != self.restart_keys {
            let keys = keys.join(", ");
            tracing::warn!(
                keys,
                "these changes of the configuration take effect at the next start"
            );
        }
        self.restart_keys = keys;
    }

    fn log_refused(&mut self, cause: Cause, refusal: String) {
        if cause == Cause::Again && self.refusal.as_ref() == Some(&refusal) {
            return;
        }
        self.metrics.set_last_successful(false);
        self.metrics.count("refused");
        tracing::warn!(
            cause = cause.label(),
            error = refusal,
            "configuration refused: the one in force stays"
        );
        self.refusal = Some(refusal);
    }
}

impl Reader {
    /// Reads the configuration until no file changes meanwhile, and plans the changes. Also returns
    /// the contents of the files. Blocks.
    fn read(&self, known: &Contents) -> (Result<(Config, Vec<Change>), String>, Contents) {
        let mut contents = known.again();
        let mut loaded = None;
        for _ in 0..MAX_READS {
            let config =
                Config::load_with(&self.file, &|name, source| self.roots.current(name, source));
            let now = match &config {
                Ok(config) => Contents::of(config.files()),
                Err(_) => contents.again(),
            };
            loaded = Some(config);
            // A configuration that was read partly before a change and partly after it was never
            // written as a whole.
            if now == contents {
                break;
            }
            contents = now;
        }
        let outcome = match loaded {
            Some(Ok(mut wanted)) => {
                wanted.server.keep_equal_tls(&self.running.server);
                let changes = plan::changes(&self.running, &wanted);
                Ok((wanted, changes))
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it was not read".to_owned()),
        };
        (outcome, contents)
    }
}

impl Cause {
    /// Whether the user has changed something, or asks for a reload.
    fn is_change(self) -> bool {
        matches!(self, Self::Signal | Self::Request | Self::Files)
    }

    fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Signal => "SIGHUP",
            Self::Request => "request",
            Self::Files => "files",
            Self::Roots => "roots",
            Self::Again => "again",
        }
    }
}
