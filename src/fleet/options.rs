//! [`Options`].

use std::time::Duration;

use hyper::header::HeaderName;

/// Options of the fleet view (`fleet`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether clients are remembered.
    pub is_enabled: bool,
    /// The request header that names a client.
    pub identity: HeaderName,
    /// Whether status reports of OPA are received; false if the fleet view is disabled.
    pub accept_status: bool,
    /// The most bytes of a status report.
    pub status_limit: u64,
    /// The most status reports that are read in a second.
    pub status_rate: u32,
    /// A client that was not seen for this time is removed.
    pub retention: Duration,
    /// The most clients that are remembered, counted once for each of their bundles.
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
            retention: Duration::from_secs(24 * 3600),
            max_entries: 1_000_000,
        }
    }
}
