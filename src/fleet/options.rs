//! Options of the fleet view.

use std::time::Duration;

use hyper::header::HeaderName;

/// Options of the fleet view (`fleet`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether clients are recorded at all.
    pub is_enabled: bool,
    /// The request header that names a client.
    pub identity: HeaderName,
    /// Whether OPA's status reports are accepted.
    pub accept_status: bool,
    /// The size of a report in bytes.
    pub status_limit: u64,
    /// Reports a second that are read; others are answered unread.
    pub status_rate: u32,
    /// How long a client is remembered after it was last seen.
    pub retention: Duration,
    /// Clients × bundles that are remembered.
    pub max_entries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            is_enabled: true,
            identity: HeaderName::from_static("bundlegate-client"),
            accept_status: true,
            status_limit: 1 << 20,
            status_rate: 2000,
            retention: Duration::from_secs(24 * 60 * 60),
            max_entries: 1_000_000,
        }
    }
}
