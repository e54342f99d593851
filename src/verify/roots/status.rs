//! What operators see of a trust root.

use jiff::Timestamp;

use super::{RefreshError, Refreshed, RootSource, TrustRoot};
use crate::{oci::Digest, telemetry};

/// A trust root in use, where it comes from, and how its refreshes have ended.
#[derive(Debug, Clone)]
pub struct TrustRootStatus {
    source: &'static str,
    url: Option<String>,
    root: TrustRoot,
    last_refresh: Option<Timestamp>,
    last_failure: Option<RootFailure>,
}

/// A refresh that has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFailure {
    /// The time of the failure.
    pub at: Timestamp,
    /// Its kind, as in the metric.
    pub reason: &'static str,
    /// The failure in a sentence.
    pub message: String,
}

impl TrustRootStatus {
    pub(super) fn new(source: &RootSource, root: TrustRoot) -> Self {
        let url = source.tuf().map(|options| options.url().to_string());
        Self {
            source: source.kind(),
            url,
            root,
            last_refresh: None,
            last_failure: None,
        }
    }

    /// Records a refresh, after which `root` is in use.
    pub(super) fn record(
        &mut self,
        root: &TrustRoot,
        refreshed: &Result<Refreshed, RefreshError>,
        at: Timestamp,
    ) {
        self.root = root.clone();
        match refreshed {
            Ok(_) => (self.last_refresh, self.last_failure) = (Some(at), None),
            Err(error) => {
                let message = error.to_string();
                self.last_failure = Some(RootFailure {
                    at,
                    reason: error.label(),
                    message: telemetry::cut(&message, telemetry::SENTENCE_BYTES).into_owned(),
                });
            }
        }
    }

    /// The kind of its source, as the key in the configuration: `builtin`, `trusted_root` or `tuf`.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The TUF repository that refreshes it, if there is one.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// The digest of its content; `None` if it has not been fetched yet.
    pub fn revision(&self) -> Option<&Digest> {
        (!self.is_pending()).then(|| self.root.revision())
    }

    /// Whether it has not been fetched yet, and trusts nothing.
    pub fn is_pending(&self) -> bool {
        self.root.is_pending()
    }

    /// The time after which it accepts no new artifact; `None` = never.
    pub fn expires(&self) -> Option<Timestamp> {
        self.root.expires()
    }

    /// The end of the last refresh that succeeded, since the start or the last change of the source.
    pub fn last_refresh(&self) -> Option<Timestamp> {
        self.last_refresh
    }

    /// The last failure; cleared by the next success.
    pub fn last_failure(&self) -> Option<&RootFailure> {
        self.last_failure.as_ref()
    }
}
