//! Flags of every verb that speaks to a registry, and what becomes of them.

use std::{collections::BTreeMap, env, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::read;
use crate::{
    config::Access,
    metrics::Metrics,
    oci::Repository,
    registry::{Credentials, DockerConfig, Options, ReadLimits, Registries, Scheme, TlsTrust},
};

/// What the command line reads at most; the bundle's own limit comes on top.
const LIMITS: ReadLimits = ReadLimits { manifest: 4 << 20, evidence: 16 << 20, bundle: 2 << 30 };

/// How registries are reached.
#[derive(Debug, Clone, Args)]
pub(super) struct RegistryFlags {
    /// Speak plain HTTP to the registry, in the clear.
    #[arg(long, help_heading = "Registry")]
    pub(super) plain_http: bool,
    /// Trust the certificates in this PEM file, too.
    #[arg(long, value_name = "FILE", help_heading = "Registry", conflicts_with = "plain_http")]
    ca_file: Option<PathBuf>,
    /// Don't check the registry's certificate: anybody on the way can answer in its place.
    #[arg(long, help_heading = "Registry", conflicts_with = "plain_http")]
    insecure_skip_tls_verify: bool,
    /// Take `registries` and `trust` from this configuration.
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    pub(super) config: Option<PathBuf>,
}

impl RegistryFlags {
    /// What the configuration says, if one is named.
    pub(super) fn access(&self) -> anyhow::Result<Option<Access>> {
        Ok(self.config.as_deref().map(Access::load).transpose()?)
    }

    /// The registries, of which the flags describe the one that `repository` is in.
    pub(super) fn registries(
        &self,
        access: Option<&Access>,
        repository: &Repository,
    ) -> anyhow::Result<(Registries, ReadLimits)> {
        Ok((self.registries_as(access, &[(repository.host(), self)], self.login())?, LIMITS))
    }

    /// The registries, of which some are described by flags, under one way to log in for
    /// those that the configuration gives none.
    pub(super) fn registries_as(
        &self,
        access: Option<&Access>,
        described: &[(&str, &Self)],
        login: Option<Credentials>,
    ) -> anyhow::Result<Registries> {
        let mut options: BTreeMap<_, _> = access.map(|access| access.registries.clone()).unwrap_or_default();
        for (host, flags) in described {
            flags.describe(options.entry((*host).to_owned()).or_default())?;
        }
        for options in options.values_mut().filter(|options| options.credentials.is_none()) {
            options.credentials.clone_from(&login);
        }
        let others = Options { credentials: login, ..Options::default() };
        Ok(Registries::new(options, LIMITS, Metrics::new().context("metrics")?).with_default(others).one_shot())
    }

    /// As docker logs in.
    pub(super) fn login(&self) -> Option<Credentials> {
        docker_config().map(|config| Credentials::DockerConfig { file: config.file().to_owned() })
    }

    fn describe(&self, options: &mut Options) -> anyhow::Result<()> {
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

/// Docker's own configuration: in `DOCKER_CONFIG`, or in the home folder.
pub(super) fn docker_config() -> Option<DockerConfig> {
    let given = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let folder = given("DOCKER_CONFIG").or_else(|| Some(given("HOME")?.join(".docker")))?;
    Some(DockerConfig::new(folder.join("config.json")))
}
