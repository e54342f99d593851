//! Flags that several verbs have.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use crate::{
    config::Access,
    metrics::Metrics,
    oci::Repository,
    registry::{Options, ReadLimits, Registries, Scheme},
};

/// What the command line reads at most; the bundle's own limit comes on top.
const LIMITS: ReadLimits = ReadLimits { manifest: 4 << 20, evidence: 16 << 20, bundle: 2 << 30 };

/// How registries are reached.
#[derive(Debug, Args)]
pub(super) struct RegistryFlags {
    /// Speak plain HTTP to the registry, in the clear.
    #[arg(long, help_heading = "Registry")]
    plain_http: bool,
    /// Trust the certificates in this PEM file as well.
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    ca_file: Option<PathBuf>,
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
        let mut options: BTreeMap<String, Options> = access.map(|access| access.registries.clone()).unwrap_or_default();
        let own = options.entry(repository.host().to_owned()).or_default();
        if self.plain_http {
            own.scheme = Scheme::Http;
        }
        if let Some(file) = &self.ca_file {
            own.extra_roots = std::fs::read(file).with_context(|| format!("--ca-file {}", file.display()))?;
        }
        Ok((Registries::new(options, LIMITS, Metrics::new().context("metrics")?), LIMITS))
    }
}
