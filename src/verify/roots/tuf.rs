//! From a TUF repository, or what was kept of it, to the text of a root.

use futures_util::FutureExt as _;
use jiff::Timestamp;
use sigstore_tuf::{Error, TrustedMetadataSet, Updater, UpdaterConfig};

use super::{BadRoot, TufOptions, http_repository::Mirror, root, tuf_store::Shelf};

const TARGET: &str = "trusted_root.json";

/// A `trusted_root.json` that the keys of a repository vouch for.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) text: String,
    /// When the first of the metadata that vouch for it does.
    pub(super) expires: Timestamp,
    /// All that proves it.
    pub(super) shelf: Shelf,
}

/// Why a refresh brought nothing. What was there before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFault {
    /// Nobody answered, or not in time, or with an error.
    #[error("{0}")]
    Unreachable(String),
    /// The repository offers metadata that nobody vouches for any more.
    #[error("{0}")]
    Outdated(String),
    /// What the repository offers is not what its keys vouch for.
    #[error("{0}")]
    Refused(String),
    /// Its keys vouch for something that is no root.
    #[error(transparent)]
    Unusable(#[from] BadRoot),
}

/// Asks the repository for what is newer than `last`.
pub(super) async fn fetch(
    options: &TufOptions,
    mirror: Mirror,
    last: &Shelf,
    now: Timestamp,
) -> Result<Delivery, RefreshFault> {
    let shelf = last.copy();
    let updater = updater(options, mirror, &shelf);
    let delivery = async { deliver(updater?, shelf, now).await };
    tokio::time::timeout(options.patience, delivery).await.unwrap_or_else(|_| {
        let patience = humantime::format_duration(options.patience);
        Err(RefreshFault::Unreachable(format!("not done within {patience}")))
    })
}

/// Verifies what was kept. That it has expired since is not for this to refuse: it still is
/// the last root that was good, and says itself until when it was.
pub(super) fn reopen(options: &TufOptions, shelf: Shelf) -> Result<Delivery, RefreshFault> {
    let before_anything_expires = Timestamp::UNIX_EPOCH;
    let updater = updater(options, shelf.clone(), &shelf)?;
    // Reading from memory never waits.
    let delivery = deliver(updater, shelf, before_anything_expires).now_or_never();
    delivery.unwrap_or_else(|| Err(RefreshFault::Unreachable("the cache does not answer".to_owned())))
}

fn updater(
    options: &TufOptions,
    repository: impl sigstore_tuf::Repository + 'static,
    shelf: &Shelf,
) -> Result<Updater, Error> {
    let mut limits = UpdaterConfig::default();
    limits.target_max_length = root::MAX_LENGTH as u64;
    // Attaching the shelf walks the roots on it, from the pinned one.
    Ok(Updater::new(repository, &options.root)?.with_config(limits).with_store(shelf.clone()))
}

async fn deliver(mut updater: Updater, shelf: Shelf, now: Timestamp) -> Result<Delivery, RefreshFault> {
    updater.refresh(now).await?;
    let target = updater.get_target(TARGET, now).await?;
    let text = String::from_utf8(target).map_err(|_| RefreshFault::Refused(format!("{TARGET} is not text")))?;
    let Some(expires) = expires(updater.trusted()) else {
        return Err(RefreshFault::Refused("metadata is missing".to_owned()));
    };
    Ok(Delivery { text, expires, shelf })
}

/// The earliest end of all that is loaded, delegated roles included.
fn expires(trusted: &TrustedMetadataSet) -> Option<Timestamp> {
    let mut earliest = trusted.root().expires.min(trusted.timestamp()?.expires).min(trusted.snapshot()?.expires);
    let mut roles = vec!["targets".to_owned()];
    let mut next = 0;
    while let Some(role) = roles.get(next).cloned() {
        next += 1;
        let Some(targets) = trusted.targets_role(&role) else { continue };
        earliest = earliest.min(targets.expires);
        for delegated in targets.delegations.iter().flat_map(|delegations| &delegations.roles) {
            if !roles.contains(&delegated.name) {
                roles.push(delegated.name.clone());
            }
        }
    }
    Some(earliest)
}

impl RefreshFault {
    /// As a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Outdated(_) => "outdated",
            Self::Refused(_) => "refused",
            Self::Unusable(_) => "unusable",
        }
    }
}

impl From<Error> for RefreshFault {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        let text = crate::verify::report::clean(&text);
        match error {
            Error::Transport { .. } | Error::Io { .. } => Self::Unreachable(text),
            Error::Expired { .. } => Self::Outdated(text),
            _ => Self::Refused(text),
        }
    }
}
