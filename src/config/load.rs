//! Loads and checks a whole configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    bundles::{self, BundleConfig, Defaults},
    certificates::CertificateFiles,
    clients::{self, ClientConfig},
    difference,
    files::{self, Files},
    fleet,
    limits::{self, Cache, Limits},
    log::{self, Log},
    opa_check,
    opa_signature::{self, ConfigWarning},
    patterns::{self, PatternConfig},
    problem::{ConfigError, Problem},
    prometheus, raw, reader, registries, rollouts,
    server::{self, LongPoll, Server},
    shared::{self as shared_key, SharedConfig},
    tracing, tree,
    trust::{CurrentRoot, Policies},
    webhooks,
};
use crate::{
    oci::read_regular_or_pipe, promql, registry, server::CertificateInUse, traces,
    verify::RootSource, webhooks::Webhook,
};

/// A configuration with checked values, all of whose files could be read.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings by registry host.
    pub registries: BTreeMap<String, registry::Options>,
    /// Size limits.
    pub limits: Limits,
    /// The cache.
    pub cache: Cache,
    /// The bundles, ordered by name.
    pub bundles: Vec<BundleConfig>,
    /// The bundles that are added when a client asks for them.
    pub patterns: Vec<PatternConfig>,
    /// The log.
    pub log: Log,
    /// Limits of long polling.
    pub long_poll: LongPoll,
    /// The listeners.
    pub server: Server,
    /// The clients and what each may read; never empty.
    pub clients: Vec<ClientConfig>,
    /// The notifications of registries that are received.
    pub webhooks: Vec<Webhook>,
    /// Options of the fleet view.
    pub fleet: crate::fleet::Options,
    /// Where traces go; `None` if there are none.
    pub tracing: Option<traces::Options>,
    /// The state that replicas share; `None` if each replica stands alone, without roll-outs. Not live.
    pub shared: Option<SharedConfig>,
    /// Where the checks of roll-outs are evaluated; `None` if there are none. Not live.
    pub prometheus: Option<promql::Options>,
    /// Sources of the trust roots that the policies of bundles and patterns use, by name.
    pub roots: BTreeMap<String, RootSource>,
    /// The trust policies.
    pub trust: Policies,
    /// The certificates in use, by key, with their expiry.
    pub certificates: Vec<CertificateInUse>,
    files: Vec<PathBuf>,
    /// The text of the file.
    text: String,
}

impl Config {
    /// Loads a configuration file. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &|name, source| source.initial(name))
    }

    /// Loads a configuration file with the current trust roots.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(file: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        let mut config = read(file, |text, folder| Self::read(text, folder, roots))?;
        config.files.insert(0, file.to_owned());
        Ok(config)
    }

    /// Parses a configuration. Relative paths in it are relative to `base_dir`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, ConfigError> {
        Self::read(text, base_dir, &|name, source| source.initial(name))
    }

    /// The configuration file, and the files that it names. A file may be missing where it is one of
    /// several places that are searched.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What should be changed, although it can be served.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let bundles = self.bundles.iter().flat_map(|bundle| {
            opa_signature::warnings(&format!("bundles.{}", bundle.name), &bundle.artifact)
        });
        let patterns = self
            .patterns
            .iter()
            .enumerate()
            .flat_map(|(index, pattern)| {
                opa_signature::warnings(&format!("patterns[{index}]"), &pattern.sample().artifact)
            });
        bundles.chain(patterns).collect()
    }

    /// The paths of the keys that differ in `newer`, without those that are applied while serving
    /// ([`Self::adopt_live`]).
    pub fn differences(&self, newer: &Self) -> Vec<String> {
        difference::keys(&self.text, &newer.text)
    }

    /// Replaces the settings that are applied while serving, and keeps the others.
    pub fn adopt_live(&mut self, newer: Self) {
        let Self {
            cache,
            server,
            shared,
            prometheus,
            text,
            ..
        } = self;
        *self = Self {
            cache: Cache {
                directory: cache.directory.take(),
                ..newer.cache
            },
            server: newer.server.with_addresses_of(server),
            shared: shared.take(),
            prometheus: prometheus.take(),
            text: std::mem::take(text),
            ..newer
        };
    }

    fn read(text: &str, base_dir: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        let config = parse(text, base_dir, |raw, files| Self::check(raw, roots, files))?;
        Ok(Self {
            text: text.to_owned(),
            ..config
        })
    }

    pub(super) fn check(
        raw: raw::Root,
        roots: CurrentRoot<'_>,
        files: &Files<'_>,
    ) -> Result<Self, Problem> {
        let certificates = CertificateFiles::named_in(&raw.server, &raw.trust);
        let (registries, policies) =
            registries_and_policies(raw.registries, raw.trust, roots, files)?;
        let base = files.base();
        let tls = raw.server.tls.as_ref();
        let has_client_ca = tls.is_some_and(|tls| tls.client_ca.is_some());
        let prometheus = prometheus::read(raw.prometheus, base);
        let prometheus = prometheus.map_err(|problem| problem.at("prometheus"))?;
        let cache = limits::cache(raw.cache, base).map_err(|problem| problem.at("cache"))?;
        let shared = shared_key::read(raw.shared, &cache, base);
        let shared = shared.map_err(|problem| problem.at("shared"))?;
        let defaults = Defaults {
            opa_check: opa_check::read(raw.opa_check, base)
                .map_err(|problem| problem.at("opa_check"))?,
            limits: limits::read(&raw.limits).map_err(|problem| problem.at("limits"))?,
            rollouts: rollouts::read(raw.rollouts, prometheus.is_some())
                .map_err(|problem| problem.at("rollouts"))?,
        };
        let bundles = bundles::read(raw.bundles, &policies, &defaults, base);
        let bundles = bundles.map_err(|problem| problem.at("bundles"))?;
        let patterns = patterns::read(raw.patterns, &policies, &defaults, base);
        let patterns = patterns.map_err(|problem| problem.at("patterns"))?;
        let fleet = fleet::read(raw.fleet).map_err(|problem| problem.at("fleet"))?;
        rollouts::check_bundles(&bundles, shared.as_ref(), &fleet)
            .map_err(|problem| problem.at("bundles"))?;
        let webhooks = webhooks::read(raw.webhooks, base).and_then(|webhooks| {
            fleet::check_webhooks(&fleet, &webhooks)?;
            Ok(webhooks)
        });
        let of_bundles = bundles.iter().map(|bundle| &bundle.trust);
        let of_patterns = patterns.iter().map(PatternConfig::trust);
        Ok(Self {
            certificates: certificates.read(&registries, base),
            registries,
            limits: defaults.limits,
            cache,
            roots: policies.roots_of(of_bundles.chain(of_patterns)),
            trust: policies,
            bundles,
            patterns,
            log: log::read(&raw.log).map_err(|problem| problem.at("log"))?,
            long_poll: server::long_poll(&raw.long_poll)
                .map_err(|problem| problem.at("long_poll"))?,
            server: server::read(&raw.server, base).map_err(|problem| problem.at("server"))?,
            webhooks: webhooks.map_err(|problem| problem.at("webhooks"))?,
            fleet,
            tracing: tracing::read(raw.tracing, base).map_err(|problem| problem.at("tracing"))?,
            shared,
            prometheus,
            // Last: without one of them nothing else would be checked.
            clients: clients::read(raw.clients, has_client_ca, base)
                .map_err(|problem| problem.at("clients"))?,
            files: files.paths(),
            text: String::new(),
        })
    }
}

/// Reads the file, and passes its text and folder to `parse`.
pub(super) fn read<T>(
    file: &Path,
    parse: impl FnOnce(&str, &Path) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let refused = |message: String| ConfigError::whole(None, message).in_file(file);
    let bytes =
        read_regular_or_pipe(file, files::MAX_FILE_BYTES).map_err(|error| match error.kind() {
            std::io::ErrorKind::FileTooLarge => refused(format!("{error}; name the right file")),
            _ => refused(format!("can't read the file: {error}; name the right file")),
        })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| refused("not UTF-8 text; name the right file".to_owned()))?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder).map_err(|error| error.in_file(file))
}

pub(super) fn parse<T>(
    text: &str,
    folder: &Path,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, Problem>,
) -> Result<T, ConfigError> {
    let root = tree::Node::parse(text)?;
    let files = Files::new(folder);
    parse_tree(&root, &files, check).map_err(|problem| root.locate(problem))
}

fn parse_tree<T>(
    root: &tree::Node,
    files: &Files<'_>,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    root.unique_keys()?;
    check_tree(root, files, check)
}

/// Checks a tree without duplicate keys.
pub(super) fn check_tree<T>(
    root: &tree::Node,
    files: &Files<'_>,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    check_version(root)?;
    check(reader::read(root)?, files)
}

pub(super) fn registries_and_policies(
    registries: BTreeMap<String, raw::Registry>,
    trust: raw::Trust,
    roots: CurrentRoot<'_>,
    files: &Files<'_>,
) -> Result<(BTreeMap<String, registry::Options>, Policies), Problem> {
    let registries =
        registries::read(registries, files.base()).map_err(|problem| problem.at("registries"))?;
    let policies =
        Policies::read(trust, roots, files.base()).map_err(|problem| problem.at("trust"))?;
    Ok((registries, policies))
}

/// Checks `version` before all other keys: errors about the keys of another version would
/// mislead.
fn check_version(root: &tree::Node) -> Result<(), Problem> {
    let refused = |message: &str| Err(Problem::new(message).at("version"));
    match (&root.value, root.get("version").map(|node| &node.value)) {
        (tree::Value::Mapping(_), Some(tree::Value::Integer(1))) => Ok(()),
        (tree::Value::Mapping(_), None) => refused("missing; write `version: 1`"),
        (tree::Value::Mapping(_), Some(_)) => {
            refused("this bundlegate reads version 1; write `version: 1`")
        }
        _ => Err(Problem::new(
            "the configuration must be a mapping; begin with `version: 1`",
        )),
    }
}
