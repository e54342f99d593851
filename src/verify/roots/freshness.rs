//! Until when a root may be believed.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;

const NEVER: i64 = i64::MAX;

/// Why a root must not vouch for anything new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnusableRoot {
    /// Its repository has not delivered it yet.
    Pending {
        /// The root's name in the configuration.
        root: String,
    },
    /// Nobody has vouched for its being current for too long.
    Expired {
        /// The root's name in the configuration.
        root: String,
        /// Since when.
        at: Timestamp,
    },
}

/// The moment at which a root expires. Shared by all that refer to the same root, so that a
/// refresh which finds it unchanged prolongs it without anything being rebuilt.
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

    /// `None` = never.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        let seconds = self.0.load(Ordering::Acquire);
        // What no calendar has room for is never, as well.
        (seconds != NEVER).then(|| Timestamp::from_second(seconds).ok()).flatten()
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
