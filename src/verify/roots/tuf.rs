//! Fetches a trust root from a TUF repository, or reads it from stored metadata.

use futures_util::FutureExt as _;
use jiff::Timestamp;
use sigstore_tuf::{Error, TrustedMetadataSet, Updater, UpdaterConfig};

use super::{BadRoot, TufOptions, http_repository::HttpRepository, root, tuf_store::TufStore};
use crate::verify::sanitize::sanitize;

const TARGET: &str = "trusted_root.json";

/// A `trusted_root.json` that the keys of a repository have signed.
#[derive(Debug)]
pub(super) struct TufTarget {
    pub(super) text: String,
    /// The earliest expiry of the metadata behind it.
    pub(super) expires: Timestamp,
    /// The metadata that proves it.
    pub(super) store: TufStore,
}

/// Why a refresh failed. The last valid root stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// The repository did not answer in time, or answered with an error.
    #[error("{0}")]
    Unreachable(String),
    /// The repository offers expired metadata.
    #[error("{0}")]
    Outdated(String),
    /// The metadata or the target does not verify.
    #[error("{0}")]
    Refused(String),
    /// The verified target is not a trusted root.
    #[error(transparent)]
    Unusable(#[from] BadRoot),
}

/// Fetches what is newer than `last`.
pub(super) async fn fetch(
    options: &TufOptions,
    repository: HttpRepository,
    last: &TufStore,
    now: Timestamp,
) -> Result<TufTarget, RefreshError> {
    let store = last.copy();
    let updater = updater(options, repository, &store);
    let target = async { load_target(updater?, store, now).await };
    tokio::time::timeout(options.timeout, target)
        .await
        .unwrap_or_else(|_| {
            let timeout = humantime::format_duration(options.timeout);
            Err(RefreshError::Unreachable(format!(
                "not finished within {timeout}"
            )))
        })
}

/// Verifies stored metadata. Expired metadata is accepted here: it is still the last valid root,
/// and the result has its expiry.
pub(super) fn reopen(options: &TufOptions, store: TufStore) -> Result<TufTarget, RefreshError> {
    let before_anything_expires = Timestamp::UNIX_EPOCH;
    let updater = updater(options, store.clone(), &store)?;
    // Reading from memory never waits.
    let target = load_target(updater, store, before_anything_expires).now_or_never();
    target.unwrap_or_else(|| {
        Err(RefreshError::Unreachable(
            "reading the cached metadata did not finish".to_owned(),
        ))
    })
}

fn updater(
    options: &TufOptions,
    repository: impl sigstore_tuf::Repository + 'static,
    store: &TufStore,
) -> Result<Updater, Error> {
    let mut limits = UpdaterConfig::default();
    limits.target_max_length = root::MAX_LENGTH as u64;
    // Attaching the store verifies its chain of roots from the pinned one.
    Ok(Updater::new(repository, &options.root)?
        .with_config(limits)
        .with_store(store.clone()))
}

async fn load_target(
    mut updater: Updater,
    store: TufStore,
    now: Timestamp,
) -> Result<TufTarget, RefreshError> {
    updater.refresh(now).await?;
    let target = updater.get_target(TARGET, now).await?;
    let text = String::from_utf8(target)
        .map_err(|_| RefreshError::Refused(format!("{TARGET} is not text")))?;
    let Some(expires) = expires(updater.trusted()) else {
        return Err(RefreshError::Refused("metadata is missing".to_owned()));
    };
    Ok(TufTarget {
        text,
        expires,
        store,
    })
}

/// The earliest expiry of all loaded metadata, delegated roles included.
fn expires(trusted: &TrustedMetadataSet) -> Option<Timestamp> {
    let mut earliest = trusted
        .root()
        .expires
        .min(trusted.timestamp()?.expires)
        .min(trusted.snapshot()?.expires);
    let mut roles = vec!["targets".to_owned()];
    let mut next = 0;
    while let Some(role) = roles.get(next).cloned() {
        next += 1;
        let Some(targets) = trusted.targets_role(&role) else {
            continue;
        };
        earliest = earliest.min(targets.expires);
        for delegated in targets
            .delegations
            .iter()
            .flat_map(|delegations| &delegations.roles)
        {
            if !roles.contains(&delegated.name) {
                roles.push(delegated.name.clone());
            }
        }
    }
    Some(earliest)
}

impl RefreshError {
    /// The value of the metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Outdated(_) => "outdated",
            Self::Refused(_) => "refused",
            Self::Unusable(_) => "unusable",
        }
    }
}

impl From<Error> for RefreshError {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        let text = sanitize(&text);
        match error {
            Error::Transport { .. } | Error::Io { .. } => Self::Unreachable(text),
            Error::Expired { .. } => Self::Outdated(text),
            _ => Self::Refused(text),
        }
    }
}
