//! Where the image store is, and how references are written on the command line.

use std::{env, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    bundle::Limits,
    images::Images,
    oci::{Reference, ReferenceError},
};

/// What a bundle may hold on the command line, unless `--max-size` says otherwise: mistakes
/// are to be noticed, not large policies refused.
pub(super) const LIMITS: Limits =
    Limits { bundle: 2 << 30, unpacked: 16 << 30, files: 1_000_000, bundle_manifest: 64 << 20 };

/// Which image store.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreFlag {
    /// The image store's folder; default: bundlegate/images in the user's data folder.
    #[arg(long, value_name = "DIR", env = "BUNDLEGATE_STORE", hide_env_values = true)]
    store: Option<PathBuf>,
}

impl StoreFlag {
    /// Opens the store, making it first where there is none. Blocks.
    pub(super) fn open(&self) -> anyhow::Result<Images> {
        let path = self.store.clone().map_or_else(default_store, Ok)?;
        Ok(Images::open(&path)?)
    }
}

fn default_store() -> anyhow::Result<PathBuf> {
    let given = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = given("XDG_DATA_HOME").or_else(|| Some(given("HOME")?.join(".local/share")));
    let Some(data) = data else { bail!("image store: there is no home folder; name a folder with --store") };
    Ok(data.join("bundlegate/images"))
}

/// Reads a reference; one without a host is taken from `BUNDLEGATE_REGISTRY` where that is
/// set, such as `ghcr.io/acme`.
pub(super) fn reference(text: &str) -> Result<Reference, ReferenceError> {
    let registry = env::var("BUNDLEGATE_REGISTRY").unwrap_or_default();
    in_registry(text, &registry)
}

fn in_registry(text: &str, registry: &str) -> Result<Reference, ReferenceError> {
    match text.parse() {
        Err(ReferenceError::NoHost(_)) if !registry.is_empty() => {
            format!("{}/{text}", registry.trim_end_matches('/')).parse()
        }
        parsed => parsed,
    }
}

/// `KEY=VALUE`.
pub(super) fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no annotation; write KEY=VALUE")),
    }
}

/// `SOURCE_DATE_EPOCH`, the agreed way to date a build that must be the same again, or the
/// epoch itself.
pub(super) fn source_date() -> anyhow::Result<jiff::Timestamp> {
    let Some(text) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(jiff::Timestamp::UNIX_EPOCH) };
    let seconds = text.to_str().and_then(|text| text.trim().parse().ok());
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.with_context(|| format!("SOURCE_DATE_EPOCH: {text:?} is no time; write seconds since 1970, or unset it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_registry_helps_only_where_the_host_is_missing() {
        let parsed = |text, registry| in_registry(text, registry).map(|reference| reference.to_string());
        assert_eq!(parsed("authz:v1", "ghcr.io/acme/").unwrap(), "ghcr.io/acme/authz:v1");
        assert_eq!(parsed("r.example/authz:v1", "ghcr.io/acme").unwrap(), "r.example/authz:v1");
        assert_eq!(parsed("oci-layout:x:v1", "ghcr.io/acme").unwrap(), "oci-layout:x:v1");
        assert!(matches!(parsed("authz:v1", ""), Err(ReferenceError::NoHost(_))));
        assert!(matches!(parsed("authz", "ghcr.io"), Err(ReferenceError::NoVersion(_))));
    }

    #[test]
    fn an_annotation_has_a_key_and_may_have_more_than_one_equals_sign() {
        assert_eq!(annotation("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(annotation("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(annotation("=b").is_err());
        assert!(annotation("ab").is_err());
    }
}
