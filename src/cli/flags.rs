//! Flags of the subcommands that access a registry, and the client made from them.

use std::{collections::BTreeMap, env, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;

use super::{path::path_value, read};
use crate::{
    config::CliConfig,
    metrics::Metrics,
    oci::Repository,
    registry::{
        Credentials, DockerConfig, Options, ReadLimits, Registries, RegistryMetrics, Scheme,
        TlsTrust, Unlisted, is_same_registry,
    },
};

/// Read limits. The limit of bundles is `--max-size`.
const LIMITS: ReadLimits = ReadLimits {
    manifest: 4 << 20,
    evidence: 16 << 20,
    bundle: 2 << 30,
};

/// How long a credential helper may take: some ask their user to unlock a key ring.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// Flags for registry access.
#[derive(Debug, Clone, Args)]
pub(super) struct RegistryFlags {
    /// Use plain HTTP for the registry, unencrypted.
    #[arg(long, help_heading = "Registry")]
    pub(super) plain_http: bool,
    /// Trust the certificates in this PEM file in addition.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Registry",
        conflicts_with = "plain_http", value_parser = path_value())]
    ca_file: Option<PathBuf>,
    /// Don't verify the registry's certificate; open to man-in-the-middle attacks.
    #[arg(long, help_heading = "Registry", conflicts_with = "plain_http")]
    insecure_skip_tls_verify: bool,
    /// Use `registries` and `trust` of this configuration file.
    #[arg(long, value_name = "FILE", help_heading = "Registry", value_parser = path_value())]
    pub(super) config: Option<PathBuf>,
}

impl RegistryFlags {
    /// Loads the configuration, if there is one.
    pub(super) fn cli_config(&self) -> anyhow::Result<Option<CliConfig>> {
        Ok(self.config.as_deref().map(CliConfig::load).transpose()?)
    }

    /// The registry clients, and the read limits. The flags apply to the registry of
    /// `repository`.
    pub(super) fn registries(
        &self,
        cli_config: Option<&CliConfig>,
        repository: &Repository,
    ) -> anyhow::Result<(Registries, ReadLimits)> {
        Ok((
            self.registries_as(cli_config, &[(repository.host(), self)], self.login())?,
            LIMITS,
        ))
    }

    /// The registry clients. `hosts` lists the flags per host; `login` is used for hosts without
    /// credentials in the configuration.
    pub(super) fn registries_as(
        &self,
        cli_config: Option<&CliConfig>,
        hosts: &[(&str, &Self)],
        login: Option<Credentials>,
    ) -> anyhow::Result<Registries> {
        let mut options: BTreeMap<_, _> = cli_config
            .map(|cli_config| cli_config.registries.clone())
            .unwrap_or_default();
        for (host, flags) in hosts {
            flags.apply_to(options_of(&mut options, host))?;
        }
        for options in options
            .values_mut()
            .filter(|options| options.credentials.is_none())
        {
            options.credentials.clone_from(&login);
        }
        let others = Options {
            credentials: login,
            ..Options::default()
        };
        let metrics = RegistryMetrics::new(&Metrics::new()).context("metrics")?;
        Ok(Registries::new(options, LIMITS, metrics)
            .with_default(others)
            .one_shot())
    }

    /// The credentials that docker's tools use.
    pub(super) fn login(&self) -> Option<Credentials> {
        Some(Credentials::DockerConfig {
            config: DockerConfig::default_locations(|name| env::var_os(name))
                .with_helper_timeout(HELPER_TIMEOUT),
            unlisted: Unlisted::Anonymous,
        })
    }

    fn apply_to(&self, options: &mut Options) -> anyhow::Result<()> {
        if self.plain_http {
            options.scheme = Scheme::Http;
        }
        if let Some(file) = &self.ca_file {
            let roots = read::bytes("--ca-file", file, read::KEY_LIMIT)?;
            options.extra_roots.extend(roots);
        }
        if self.insecure_skip_tls_verify {
            options.tls = TlsTrust::Unverified;
        }
        Ok(())
    }
}

/// The options of a registry, which may be under another of its names.
fn options_of<'a>(all: &'a mut BTreeMap<String, Options>, host: &str) -> &'a mut Options {
    let mut names = all.keys().filter(|name| is_same_registry(name, host));
    let name = match all.contains_key(host) {
        true => None,
        false => names.next(),
    };
    let name = name.map_or_else(|| host.to_owned(), Clone::clone);
    all.entry(name).or_default()
}

/// Docker's configuration, to which `login` writes: in `DOCKER_CONFIG`, or else in the home folder.
pub(super) fn docker_config() -> Option<DockerConfig> {
    let given = |name: &str| {
        env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let folder = given("DOCKER_CONFIG").or_else(|| Some(given("HOME")?.join(".docker")))?;
    let config = DockerConfig::new(folder.join("config.json"));
    Some(config.with_helper_timeout(HELPER_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_docker_hub_count_for_each_of_its_names() {
        let mirrored = Options {
            mirrors: vec!["mirror.example".to_owned()],
            ..Options::default()
        };
        let mut all = BTreeMap::from([("docker.io".to_owned(), mirrored.clone())]);
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!(options_of(&mut all, name).mirrors, mirrored.mirrors);
        }
        assert!(options_of(&mut all, "ghcr.io").mirrors.is_empty());
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["docker.io", "ghcr.io"]);
    }
}
