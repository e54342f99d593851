//! Whom a verb trusts: keys from flags, or a policy of the configuration.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::verify;
use crate::{config::Access, oci::Repository, verify::TrustPolicy};

/// Whose signatures count.
#[derive(Debug, Clone, Args)]
pub(super) struct TrustFlags {
    /// Trust this public key (PEM, such as cosign.pub); several: any of them.
    #[arg(long = "key", value_name = "FILE", help_heading = "Trust")]
    keys: Vec<PathBuf>,
    /// Judge by this policy of the configuration; default: the one whose `match` fits.
    #[arg(long, value_name = "NAME", requires = "config", conflicts_with = "keys", help_heading = "Trust")]
    policy: Option<String>,
}

impl TrustFlags {
    /// The policy for a repository; `None` where nothing says whom to trust.
    pub(super) fn policy(
        &self,
        access: Option<&Access>,
        repository: &Repository,
    ) -> anyhow::Result<Option<TrustPolicy>> {
        if !self.keys.is_empty() {
            return verify::policy_of(&self.keys).map(Some);
        }
        let Some(access) = access.filter(|access| self.policy.is_some() || !access.trust.is_empty()) else {
            return Ok(None);
        };
        let chosen = access.trust.choose(self.policy.as_deref(), repository);
        chosen.map(Some).map_err(|sentence| anyhow!("{repository}: {sentence}"))
    }
}
