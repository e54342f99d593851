//! The expiry of a trust root.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;

const NEVER: i64 = i64::MAX;

/// The reason for which a root must not be used for a new artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnusableRoot {
    /// Its repository has not delivered it yet.
    Pending {
        /// The root's name in the configuration.
        root: String,
    },
    /// Its TUF metadata has expired.
    Expired {
        /// The root's name in the configuration.
        root: String,
        /// The end of its validity.
        at: Timestamp,
    },
}

/// The time at which a root expires. All holders of the same root share it, so that a refresh
/// which finds the root unchanged extends it without rebuilding any policy.
#[derive(Debug, Clone)]
pub(super) struct Freshness(Arc<AtomicI64>);

impl Freshness {
    pub(super) fn unlimited() -> Self {
        Self(Arc::new(AtomicI64::new(NEVER)))
    }

    pub(super) fn until(expires: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(expires.as_second())))
    }

    pub(super) fn extend(&self, expires: Timestamp) {
        self.0.store(expires.as_second(), Ordering::Release);
    }

    /// The time of expiry; `None` = never.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        let seconds = self.0.load(Ordering::Acquire);
        // A time beyond the calendar counts as never, too.
        (seconds != NEVER)
            .then(|| Timestamp::from_second(seconds).ok())
            .flatten()
    }
}

impl fmt::Display for UnusableRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending { root } => write!(f, "trust root {root} has not been fetched yet"),
            Self::Expired { root, at } => write!(f, "trust root {root} expired at {at}"),
        }
    }
}
