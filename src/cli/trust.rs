//! Whom a verb trusts: keys from flags, or a policy of the configuration.

use std::{ffi::OsStr, fs, path::PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::{
    config::Access,
    oci::Repository,
    verify::{Authority, PublicKey, Requirements, TrustPolicy},
};

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
            return policy_of(&self.keys).map(Some);
        }
        let Some(access) = access.filter(|access| self.policy.is_some() || !access.trust.is_empty()) else {
            return Ok(None);
        };
        let chosen = access.trust.choose(self.policy.as_deref(), repository);
        chosen.map(Some).map_err(|sentence| anyhow!("{repository}: {sentence}"))
    }
}

/// Any of the keys, each an authority of its own with the file's name.
fn policy_of(files: &[PathBuf]) -> anyhow::Result<TrustPolicy> {
    let mut authorities: Vec<Authority> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("--key {}", file.display()))?;
        let key = PublicKey::from_pem(&text).map_err(|error| anyhow!("--key {}: {error}", file.display()))?;
        let known = |authority: &Authority| authority.keys().iter().any(|known| known.key.identity() == key.identity());
        // One key is one voter, however often it is named.
        if !authorities.iter().any(known) {
            let name = file.file_name().unwrap_or_else(|| OsStr::new("key")).to_string_lossy().into_owned();
            authorities.push(Authority::with_keys(name, [key]));
        }
    }
    TrustPolicy::signed("--key".to_owned(), Requirements::any_of(authorities)).context("--key")
}
