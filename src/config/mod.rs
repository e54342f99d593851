//! The configuration file: `raw` is what was typed, [`Config`] what it means. There is no
//! other way from one to the other, so whatever holds a [`Config`] needs no check.
//!
//! Every error is one sentence that names the key, what is wrong with it and the way out.

mod bundles;
mod clients;
mod difference;
mod expect;
mod files;
mod keys;
mod mistakes;
mod opa_check;
mod problem;
mod raw;
mod reader;
mod registries;
mod server;
mod tree;
mod trust;
mod values;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    oci::{Reference, Repository, read_regular_or_pipe},
    registry,
    verify::{RootSource, TrustPolicy},
};

use files::{Base, Files};

pub use bundles::BundleConfig;
pub use clients::{ClientConfig, Credential, Secret};
pub use problem::ConfigError;
pub use server::{Drain, LongPoll, Server};
pub use trust::{CurrentRoot, Policies};
pub use values::Size;

/// A configuration whose every value is checked and whose every file was there.
#[derive(Debug, Clone)]
pub struct Config {
    /// The hosts with settings of their own.
    pub registries: BTreeMap<String, registry::Options>,
    /// How much of what is read.
    pub limits: Limits,
    /// Where bytes are kept.
    pub cache: Cache,
    /// What is served, by name.
    pub bundles: Vec<BundleConfig>,
    /// How long requests are held.
    pub long_poll: LongPoll,
    /// The listeners.
    pub server: Server,
    /// Who may read what; never empty.
    pub clients: Vec<ClientConfig>,
    /// Where the trust roots come from that the bundles' policies rely on, by name.
    pub roots: BTreeMap<String, RootSource>,
    /// The trust policies.
    pub trust: Policies,
    trust_files: Vec<PathBuf>,
    /// As it was typed.
    text: String,
}

/// What the command line takes from a configuration: how registries are reached, and whose
/// signatures count. What else is in the file must make sense, but may be missing.
#[derive(Debug)]
pub struct Access {
    /// The hosts with settings of their own.
    pub registries: BTreeMap<String, registry::Options>,
    /// The trust policies.
    pub trust: Policies,
    /// What is served by this configuration, by name.
    bundles: Vec<WatchedReference>,
}

/// A bundle as far as the command line needs it.
#[derive(Debug)]
struct WatchedReference {
    name: String,
    reference: Reference,
    /// The policy that it names.
    trust: Option<String>,
}

/// `limits`, in bytes except for the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A bundle as it is served.
    pub bundle: u64,
    /// A bundle's tar stream.
    pub unpacked: u64,
    /// Files in a bundle.
    pub files: u64,
    /// OPA's `.manifest` in a bundle.
    pub bundle_manifest: u64,
    /// A manifest or index.
    pub manifest: u64,
    /// All signature material of one artifact together.
    pub evidence: u64,
}

/// `cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder; `None` keeps everything in memory.
    pub directory: Option<PathBuf>,
    /// Bytes on disk.
    pub disk: u64,
    /// Bytes in memory.
    pub memory: u64,
}

impl Access {
    /// Reads a configuration file; relative paths in it start from its folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &|name, source| source.initial(name))
    }

    /// The same, with trust roots as they are at the moment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(file: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        read(file, |text, folder| {
            parse(text, folder, |raw, files| {
                let bundles = raw.bundles.into_iter().filter_map(|(name, raw)| {
                    let reference = raw.reference.parse::<Reference>().ok()?.relative_to(folder);
                    Some(WatchedReference { name, reference, trust: raw.trust })
                });
                let bundles = bundles.collect();
                let (registries, trust) = access(raw.registries, raw.trust, roots, files)?;
                Ok(Self { registries, trust, bundles })
            })
        })
    }

    /// The policy by which the gateway judges `reference`: that of the bundles that have it, or
    /// else the one with the longest `match`; `name` chooses one by its name.
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub fn policy_for(&self, name: Option<&str>, reference: &Reference) -> Result<TrustPolicy, String> {
        if name.is_some() {
            return self.trust.choose(name, reference.repository());
        }
        let wanted = (place(reference), reference.selector());
        let mut found: Vec<(&str, TrustPolicy)> = Vec::new();
        for bundle in &self.bundles {
            if (place(&bundle.reference), bundle.reference.selector()) == wanted {
                let policy = self.trust.choose(bundle.trust.as_deref(), reference.repository())?;
                if !found.iter().any(|(_, known)| known.name() == policy.name()) {
                    found.push((&bundle.name, policy));
                }
            }
        }
        match found.as_slice() {
            [] => self.trust.choose(None, reference.repository()),
            [(_, policy)] => Ok(policy.clone()),
            [(one, first), (other, second), ..] => Err(format!(
                "the bundles {one} and {other} have it under two policies, {} and {}; name one here",
                first.name(),
                second.name()
            )),
        }
    }
}

/// Where an artifact lives, the same for every way to write a folder.
fn place(reference: &Reference) -> Repository {
    match reference.repository() {
        Repository::Layout { path } => Repository::Layout {
            path: path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone()),
        },
        repository @ Repository::Registry { .. } => repository.clone(),
    }
}

impl Config {
    /// Reads a configuration file; relative paths in it start from its folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &|name, source| source.initial(name))
    }

    /// The same, with trust roots as they are at the moment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(file: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        let mut config = read(file, |text, folder| Self::read(text, folder, roots))?;
        config.trust_files.insert(0, file.to_owned());
        Ok(config)
    }

    /// Reads a configuration; relative paths in it start from `base_dir`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, ConfigError> {
        Self::read(text, base_dir, &|name, source| source.initial(name))
    }

    /// Reads a configuration file, or gives every mistake in it in the order of its lines. What
    /// follows from another mistake alone is not told, and of very many the first few dozen are.
    ///
    /// # Errors
    /// The mistakes; never none.
    pub fn load_or_mistakes(file: &Path) -> Result<Self, Vec<ConfigError>> {
        let config = read(file, |text, folder| {
            let first = match Self::parse(text, folder) {
                Ok(config) => return Ok(Ok(config)),
                Err(first) => first,
            };
            let mistakes = mistakes::all(text, folder);
            Ok(Err(if mistakes.is_empty() { vec![first] } else { mistakes }))
        });
        match config {
            Ok(Ok(config)) => Ok(config),
            Ok(Err(mistakes)) => Err(mistakes.into_iter().map(|error| error.in_file(file)).collect()),
            Err(error) => Err(vec![error]),
        }
    }

    /// The files that decide whom to trust and who may read: the configuration, the keys,
    /// certificates, roots and rules that its `trust` names, and the tokens of its `clients`. A
    /// change of any of them changes what may be served, or to whom.
    pub fn trust_files(&self) -> &[PathBuf] {
        &self.trust_files
    }

    /// The keys in which `newer` differs from this, as people write them, but for those that are
    /// applied while the gateway runs ([`Self::adopt_live`]).
    pub fn differences(&self, newer: &Self) -> Vec<String> {
        difference::keys(&self.text, &newer.text)
    }

    /// Takes over what is applied while the gateway runs: bundles, trust and clients. The rest stays
    /// as it is.
    pub fn adopt_live(&mut self, newer: Self) {
        self.bundles = newer.bundles;
        self.clients = newer.clients;
        self.roots = newer.roots;
        self.trust = newer.trust;
        self.trust_files = newer.trust_files;
    }

    fn read(text: &str, base_dir: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        let config = parse(text, base_dir, |raw, files| Self::check(raw, roots, files))?;
        Ok(Self { text: text.to_owned(), ..config })
    }

    fn check(raw: raw::Root, roots: CurrentRoot<'_>, files: &Files<'_>) -> Result<Self, problem::Problem> {
        let (registries, policies) = access(raw.registries, raw.trust, roots, files)?;
        let base = files.base();
        let opa_check = opa_check::read(raw.opa_check, base).map_err(|problem| problem.at("opa_check"))?;
        let bundles = bundles::read(raw.bundles, &policies, opa_check.as_ref(), base);
        let bundles = bundles.map_err(|problem| problem.at("bundles"))?;
        Ok(Self {
            registries,
            limits: limits(&raw.limits).map_err(|problem| problem.at("limits"))?,
            cache: cache(raw.cache, base).map_err(|problem| problem.at("cache"))?,
            roots: policies.roots_of(bundles.iter().map(|bundle| &bundle.trust)),
            trust: policies,
            bundles,
            long_poll: server::long_poll(&raw.long_poll).map_err(|problem| problem.at("long_poll"))?,
            server: server::read(&raw.server, base).map_err(|problem| problem.at("server"))?,
            clients: clients::read(raw.clients, files.live()).map_err(|problem| problem.at("clients"))?,
            trust_files: files.all_live(),
            text: String::new(),
        })
    }
}

impl Limits {
    /// Those that the registry room keeps.
    pub fn read_limits(&self) -> registry::ReadLimits {
        registry::ReadLimits { manifest: self.manifest, evidence: self.evidence, bundle: self.bundle }
    }

    /// Those that opening a bundle keeps.
    pub fn bundle_limits(&self) -> crate::bundle::Limits {
        crate::bundle::Limits {
            bundle: self.bundle,
            unpacked: self.unpacked,
            files: self.files,
            bundle_manifest: self.bundle_manifest,
        }
    }
}

fn read<T>(file: &Path, parse: impl FnOnce(&str, &Path) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
    let refused = |sentence: String| ConfigError::unreadable(None, sentence).in_file(file);
    let bytes = read_regular_or_pipe(file, files::LARGEST).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => refused(format!("{error}; name the right file")),
        _ => refused(format!("it can't be read: {error}; name the right file")),
    })?;
    let text =
        String::from_utf8(bytes).map_err(|_| refused("it is no text in UTF-8; name the right file".to_owned()))?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder).map_err(|error| error.in_file(file))
}

fn parse<T>(
    text: &str,
    folder: &Path,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, problem::Problem>,
) -> Result<T, ConfigError> {
    let root = tree::Node::parse(text)?;
    let files = Files::new(folder);
    parse_tree(&root, &files, check).map_err(|problem| problem.into_error(&root))
}

fn parse_tree<T>(
    root: &tree::Node,
    files: &Files<'_>,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, problem::Problem>,
) -> Result<T, problem::Problem> {
    root.unique_keys()?;
    check_tree(root, files, check)
}

/// What is left to check once no key is written twice.
fn check_tree<T>(
    root: &tree::Node,
    files: &Files<'_>,
    check: impl FnOnce(raw::Root, &Files<'_>) -> Result<T, problem::Problem>,
) -> Result<T, problem::Problem> {
    check_version(root)?;
    check(reader::read(root)?, files)
}

fn access(
    registries: BTreeMap<String, raw::Registry>,
    trust: raw::Trust,
    roots: CurrentRoot<'_>,
    files: &Files<'_>,
) -> Result<(BTreeMap<String, registry::Options>, Policies), problem::Problem> {
    let registries = registries::read(registries, files.base()).map_err(|problem| problem.at("registries"))?;
    let policies = Policies::read(trust, roots, files.live()).map_err(|problem| problem.at("trust"))?;
    Ok((registries, policies))
}

/// Comes first: a file of another version has other keys, and those errors would mislead.
fn check_version(root: &tree::Node) -> Result<(), problem::Problem> {
    let refused = |sentence: &str| Err(problem::Problem::new(sentence).at("version"));
    match (&root.value, root.get("version").map(|node| &node.value)) {
        (tree::Value::Mapping(_), Some(tree::Value::Integer(1))) => Ok(()),
        (tree::Value::Mapping(_), None) => refused("is missing; write `version: 1`"),
        (tree::Value::Mapping(_), Some(_)) => refused("this bundlegate reads version 1; write `version: 1`"),
        _ => Err(problem::Problem::new("the configuration is a mapping of keys; begin with `version: 1`")),
    }
}

fn limits(raw: &raw::Limits) -> Result<Limits, problem::Problem> {
    let bytes = |size: Option<Size>, mebibytes: u64| size.map_or(mebibytes << 20, |size| size.0);
    let files = raw.files.unwrap_or(20_000);
    if files == 0 {
        return Err(problem::Problem::new("no bundle could pass; write a number from 1 up").at("files"));
    }
    Ok(Limits {
        bundle: bytes(raw.bundle, 64),
        unpacked: bytes(raw.unpacked, 512),
        files,
        bundle_manifest: bytes(raw.bundle_manifest, 1),
        manifest: bytes(raw.manifest, 4),
        evidence: bytes(raw.evidence, 16),
    })
}

fn cache(raw: raw::Cache, base: Base<'_>) -> Result<Cache, problem::Problem> {
    let directory = raw.directory.map(|path| base.path(&path)).transpose();
    Ok(Cache {
        directory: directory.map_err(|problem| problem.at("directory"))?,
        disk: raw.disk.map_or(10 << 30, |size| size.0),
        memory: raw.memory.map_or(512 << 20, |size| size.0),
    })
}
