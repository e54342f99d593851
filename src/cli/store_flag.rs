//! The `--store` flag, and the arguments that name images, references and annotations.

use std::{env, fmt, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::task::spawn_blocking;

use super::path::path_value;
use crate::{
    bundle::Limits,
    images::Images,
    oci::{Reference, ReferenceError, Repository},
};

/// Limits of bundles on the command line, unless `--max-size` sets another. They catch mistakes
/// and are far above any real policy.
pub(super) const LIMITS: Limits = Limits {
    bundle: 2 << 30,
    unpacked: 16 << 30,
    files: 1_000_000,
    bundle_manifest: 64 << 20,
};

/// The minimum length of a digest prefix, in hexadecimal digits.
const MIN_DIGEST_PREFIX: usize = 4;

/// The image store that a subcommand uses.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreFlag {
    /// Folder of the image store; default: bundlegate/images in the user's data folder.
    #[arg(
        long,
        value_name = "DIR",
        env = "BUNDLEGATE_STORE",
        hide_env_values = true, value_parser = path_value())]
    store: Option<PathBuf>,
}

impl StoreFlag {
    /// Opens the store, and creates it if it does not exist. Blocks.
    pub(super) fn open(&self) -> anyhow::Result<Images> {
        let path = self.store.clone().map_or_else(default_store, Ok)?;
        Ok(Images::open(&path)?)
    }
}

fn default_store() -> anyhow::Result<PathBuf> {
    let given = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = given("XDG_DATA_HOME").or_else(|| Some(given("HOME")?.join(".local/share")));
    let Some(data) = data else {
        bail!("image store: no home folder (HOME is unset); name a folder with --store")
    };
    Ok(data.join("bundlegate/images"))
}

/// Parses a reference. `BUNDLEGATE_REGISTRY`, such as `ghcr.io/acme`, is put in front of one
/// without a host.
pub(super) fn reference(text: &str) -> Result<Reference, String> {
    let registry = registry();
    in_registry(text, &registry).map_err(|error| match error {
        ReferenceError::NoHost(_) => {
            format!("{error}, or set BUNDLEGATE_REGISTRY to its prefix, such as ghcr.io/acme")
        }
        error => error.to_string(),
    })
}

/// The prefix for names without a host; empty if there is none.
pub(super) fn registry() -> String {
    env::var("BUNDLEGATE_REGISTRY").unwrap_or_default()
}

/// Parses `HOST/REPOSITORY`, or a repository below `BUNDLEGATE_REGISTRY`.
pub(super) fn repository(text: &str) -> Result<Repository, String> {
    let registry = registry();
    let parsed = match text.parse() {
        Err(ReferenceError::NoHost(_)) if !registry.is_empty() => {
            format!("{}/{text}", registry.trim_end_matches('/')).parse()
        }
        parsed => parsed,
    };
    parsed.map_err(|error| match error {
        ReferenceError::NoHost(_) => {
            format!("{error}, or set BUNDLEGATE_REGISTRY to its prefix, such as ghcr.io/acme")
        }
        error => error.to_string(),
    })
}

/// An image of the store as named on the command line.
#[derive(Debug, Clone)]
pub(super) enum ImageName {
    Reference(Reference),
    /// The prefix of a digest, as `images` prints it.
    Digest {
        /// Restricts the search to this repository.
        repository: Option<Repository>,
        /// Hexadecimal digits.
        prefix: String,
    },
}

/// Parses a reference or the prefix of a digest: `3f2a9c1b0d4e`, `sha256:3f2a9c`,
/// `HOST/REPOSITORY@sha256:3f2a9c`.
pub(super) fn image_name(text: &str) -> Result<ImageName, String> {
    match reference(text) {
        Ok(reference) => Ok(ImageName::Reference(reference)),
        Err(message) => digest_prefix(text).ok_or(message),
    }
}

fn digest_prefix(text: &str) -> Option<ImageName> {
    let (named, digest) = match text.rsplit_once('@') {
        Some((named, digest)) => (
            Some(repository(named).ok()?),
            digest.strip_prefix("sha256:")?,
        ),
        None => (None, text.strip_prefix("sha256:").unwrap_or(text)),
    };
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let fits = (MIN_DIGEST_PREFIX..=64).contains(&digest.len()) && digest.bytes().all(is_hex);
    fits.then(|| ImageName::Digest {
        repository: named,
        prefix: digest.to_owned(),
    })
}

impl ImageName {
    /// The reference of the image; if the image is in several repositories, any of them. Blocks.
    pub(super) fn find(&self, images: &Images) -> anyhow::Result<Reference> {
        match self {
            Self::Reference(reference) => Ok(reference.clone()),
            Self::Digest { repository, prefix } => {
                let mut found = images.with_prefix(repository.as_ref(), prefix)?;
                Ok(found.swap_remove(0))
            }
        }
    }

    /// The reference of the image, which must be in exactly one repository. Blocks.
    pub(super) fn find_unique(&self, images: &Images) -> anyhow::Result<Reference> {
        let Self::Digest { repository, prefix } = self else {
            return self.find(images);
        };
        let found = images.with_prefix(repository.as_ref(), prefix)?;
        match found.as_slice() {
            [only] => Ok(only.clone()),
            several => {
                let names: Vec<_> = several
                    .iter()
                    .map(|one| one.repository().to_string())
                    .collect();
                bail!(
                    "{prefix}: the image is in several repositories; write one of {}, with its tag",
                    names.join(", ")
                )
            }
        }
    }

    /// The reference that the name stands for. A digest prefix is looked up in the store, and only
    /// if `local` is set.
    pub(super) async fn resolve_name(
        &self,
        store: &StoreFlag,
        local: bool,
    ) -> anyhow::Result<Reference> {
        match self {
            Self::Digest { .. } if local => {
                let (name, store) = (self.clone(), store.clone());
                spawn_blocking(move || name.find(&store.open()?)).await?
            }
            _ => self.reference().cloned(),
        }
    }

    /// The reference, or an error for a digest prefix.
    pub(super) fn reference(&self) -> anyhow::Result<&Reference> {
        match self {
            Self::Reference(reference) => Ok(reference),
            Self::Digest { prefix, .. } => {
                bail!(
                    "{prefix}: a digest prefix works for the image store only; write HOST/REPOSITORY:TAG"
                )
            }
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => reference.fmt(f),
            Self::Digest {
                repository: Some(repository),
                prefix,
            } => write!(f, "{repository}@sha256:{prefix}"),
            Self::Digest {
                repository: None,
                prefix,
            } => f.write_str(prefix),
        }
    }
}

fn in_registry(text: &str, registry: &str) -> Result<Reference, ReferenceError> {
    match text.parse() {
        Err(ReferenceError::NoHost(_)) if !registry.is_empty() => {
            format!("{}/{text}", registry.trim_end_matches('/')).parse()
        }
        parsed => parsed,
    }
}

/// Parses `KEY=VALUE`.
pub(super) fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err(format!("{text:?} is not an annotation; write KEY=VALUE")),
    }
}

/// The time in `SOURCE_DATE_EPOCH`, the convention for reproducible builds
/// (reproducible-builds.org), or else the Unix epoch.
pub(super) fn source_date() -> anyhow::Result<jiff::Timestamp> {
    let Some(text) = env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(jiff::Timestamp::UNIX_EPOCH);
    };
    let seconds = text.to_str().and_then(|text| text.trim().parse().ok());
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.with_context(|| {
        format!("SOURCE_DATE_EPOCH: {text:?} is not a time; write seconds since 1970, or unset it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_registry_helps_only_where_the_host_is_missing() {
        let parsed =
            |text, registry| in_registry(text, registry).map(|reference| reference.to_string());
        assert_eq!(
            parsed("authz:v1", "ghcr.io/acme/").unwrap(),
            "ghcr.io/acme/authz:v1"
        );
        assert_eq!(
            parsed("r.example/authz:v1", "ghcr.io/acme").unwrap(),
            "r.example/authz:v1"
        );
        assert_eq!(
            parsed("oci-layout:x:v1", "ghcr.io/acme").unwrap(),
            "oci-layout:x:v1"
        );
        assert!(matches!(
            parsed("authz:v1", ""),
            Err(ReferenceError::NoHost(_))
        ));
        assert!(matches!(
            parsed("authz", "ghcr.io"),
            Err(ReferenceError::NoVersion(_))
        ));
    }

    #[test]
    fn an_annotation_has_a_key_and_may_have_more_than_one_equals_sign() {
        assert_eq!(
            annotation("a=b=c").unwrap(),
            ("a".to_owned(), "b=c".to_owned())
        );
        assert_eq!(annotation("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(annotation("=b").is_err());
        assert!(annotation("ab").is_err());
    }
}
