//! The refresh of one trust root.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    BadRoot, RefreshError, RootSource, TrustRoot, TufOptions,
    freshness::Freshness,
    http_repository::HttpRepository,
    metrics::TrustRootMetrics,
    tuf::{self, TufTarget},
    tuf_store::TufStore,
};
use crate::telemetry;

/// The only characters in a file name besides letters and digits: a name of dots alone would be a
/// folder.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(3600);
/// The shortest pause after a success, for metadata that is valid for seconds only.
const MIN_INTERVAL: Duration = Duration::from_secs(60);
/// After this long a write continues in the background, so that a hanging disk does not stop
/// refreshes.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Refreshes one root from its TUF repository, and keeps the last valid one in memory and, if
/// there is a folder, on disk.
#[derive(Debug)]
pub struct TrustRootRefresher {
    options: TufOptions,
    file: Option<PathBuf>,
    store: TufStore,
    root: TrustRoot,
    metrics: TrustRootMetrics,
    reported: Reported,
}

/// The result of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The same root, valid for longer.
    Unchanged,
    /// Another root.
    Changed,
}

/// The state that has been logged, so that each change is logged once.
#[derive(Debug, Default)]
struct Reported {
    failure: Option<&'static str>,
    expired: bool,
    disk: bool,
    failures: u32,
}

impl TrustRootRefresher {
    /// Opens the last valid root on disk if there is one, otherwise the initial root of `source`.
    /// `None` if `source` is never refreshed. Blocks to read a small file.
    ///
    /// # Errors
    /// When `source` is not a root.
    pub fn open(
        name: &str,
        source: &RootSource,
        folder: Option<&Path>,
        metrics: TrustRootMetrics,
    ) -> Result<Option<Self>, BadRoot> {
        Self::resume(&TufStore::default(), name, source, folder, metrics)
    }

    /// The same, but tries first the store of an earlier refresher with this name.
    pub(super) fn resume(
        held: &TufStore,
        name: &str,
        source: &RootSource,
        folder: Option<&Path>,
        metrics: TrustRootMetrics,
    ) -> Result<Option<Self>, BadRoot> {
        let Some(options) = source.tuf().cloned() else {
            return Ok(None);
        };
        let file = folder
            .map(|folder| folder.join(format!("{}.json", utf8_percent_encode(name, ESCAPED))));
        let held = (!held.is_empty()).then(|| held.copy());
        let kept = held.and_then(|held| verify(name, &options, held).ok());
        let kept = kept.or_else(|| {
            file.as_deref()
                .and_then(|file| reopen(name, &options, file))
        });
        let (store, root) = match kept {
            Some(kept) => kept,
            None => (TufStore::default(), source.initial(name)?),
        };
        Ok(Some(Self {
            options,
            file,
            store,
            root,
            metrics,
            reported: Reported::default(),
        }))
    }

    /// The last valid root.
    pub fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// The TUF metadata of the last valid root, which changes with it.
    pub(super) fn store(&self) -> TufStore {
        self.store.clone()
    }

    /// Shares the expiry of another refresher that has the same root.
    pub(super) fn share_freshness(&mut self, freshness: &Freshness) {
        self.root = self.root.clone().with_freshness(freshness.clone());
    }

    /// Contacts the repository once. [`Self::root`] is valid afterwards, or as valid as it was
    /// before. Cancel-safe.
    ///
    /// # Errors
    /// The error because of which the last valid root stays.
    pub async fn refresh(&mut self) -> Result<Refreshed, RefreshError> {
        let refreshed = self.try_refresh().await;
        let outcome = match &refreshed {
            Ok(Refreshed::Unchanged) => "unchanged",
            Ok(Refreshed::Changed) => "changed",
            Err(error) => error.label(),
        };
        self.metrics.count_refresh(self.root.name(), outcome);
        self.record_expiry();
        refreshed
    }

    async fn try_refresh(&mut self) -> Result<Refreshed, RefreshError> {
        let repository = HttpRepository::new(self.options.url.clone());
        let repository =
            repository.map_err(|error| RefreshError::Unreachable(error.to_string()))?;
        let target = tuf::fetch(&self.options, repository, &self.store, telemetry::now()).await?;
        let root = TrustRoot::read(
            self.root.name(),
            &target.text,
            Freshness::until(target.expires),
        )?;
        let changed =
            root.is_pending() != self.root.is_pending() || root.revision() != self.root.revision();
        if changed {
            // Holders of the previous root must not use it beyond its own expiry.
            self.root = root;
        } else {
            self.root.freshness().extend(target.expires);
        }
        self.store.replace_with(&target.store);
        Ok(if changed {
            Refreshed::Changed
        } else {
            Refreshed::Unchanged
        })
    }

    /// Refreshes forever, and calls `report` with the root after each refresh, and with the outcome.
    pub(super) async fn run(
        mut self,
        report: impl Fn(&TrustRoot, &Result<Refreshed, RefreshError>) + Send,
    ) {
        loop {
            let refreshed = self.refresh().await;
            report(&self.root, &refreshed);
            if refreshed.is_ok() {
                self.save().await;
            }
            self.log_outcome(&refreshed);
            let pause = pause(
                self.options.refresh,
                self.reported.failures,
                self.remaining(telemetry::now()),
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes the TUF metadata of the last valid root to disk. Without it, a restart begins with
    /// an older root.
    pub async fn save(&mut self) {
        let Some(file) = self.file.clone() else {
            return;
        };
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write(&file));
        let problem = match tokio::time::timeout(DISK_TIMEOUT, written).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("timed out".to_owned()),
        };
        let root = self.root.name();
        match problem {
            Some(error) if !self.reported.disk => {
                tracing::error!(
                    root,
                    error,
                    "can't write the trust root to disk; keeping it in memory only"
                );
                self.reported.disk = true;
            }
            Some(_) => {}
            None => self.reported.disk = false,
        }
    }

    fn log_outcome(&mut self, refreshed: &Result<Refreshed, RefreshError>) {
        let root = self.root.name();
        let expires = self.root.expires().map(|at| at.to_string());
        match refreshed {
            Ok(_) => {
                if self.reported.failure.is_some() {
                    tracing::info!(root, expires, "trust root refreshed again");
                }
                if *refreshed == Ok(Refreshed::Changed) {
                    tracing::info!(root, revision = %self.root.revision(), expires, "trust root changed");
                }
                (self.reported.failure, self.reported.failures) = (None, 0);
            }
            Err(error) => {
                let text = error.to_string();
                let text = &*telemetry::cut(&text, telemetry::SENTENCE_BYTES);
                self.reported.failures = self.reported.failures.saturating_add(1);
                if self.reported.failure == Some(error.label()) {
                    tracing::debug!(root, fault = text, "trust root not refreshed");
                } else {
                    tracing::error!(
                        root,
                        reason = error.label(),
                        fault = text,
                        expires,
                        "can't refresh the trust root; the last good one stays in use until it expires"
                    );
                }
                self.reported.failure = Some(error.label());
            }
        }
        let unusable = self.root.unusable_reason(telemetry::now());
        match &unusable {
            Some(reason) if !self.reported.expired => {
                tracing::error!(
                    root,
                    "{reason}; it accepts no new artifact until it is refreshed"
                );
            }
            _ => {}
        }
        self.reported.expired = unusable.is_some();
    }

    fn remaining(&self, now: Timestamp) -> Duration {
        let left = self.root.expires().map(|at| at.duration_since(now));
        left.map_or(Duration::MAX, |left| {
            Duration::try_from(left).unwrap_or_default()
        })
    }

    /// Exports the expiry as a metric.
    pub(super) fn record_expiry(&self) {
        let Some(expires) = self.root.expires() else {
            return;
        };
        self.metrics
            .set_expiry(self.root.name(), expires.as_second());
    }
}

/// The last valid root on disk.
fn reopen(name: &str, options: &TufOptions, file: &Path) -> Option<(TufStore, TrustRoot)> {
    let read = match TufStore::read(file) {
        Ok(None) => return None,
        Ok(Some(store)) => verify(name, options, store).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    // It may be of another repository, if the configuration has changed since.
    read.inspect_err(|problem| {
        tracing::warn!(root = name, file = %file.display(), problem, "ignoring the trust root on disk");
    })
    .ok()
}

fn verify(
    name: &str,
    options: &TufOptions,
    store: TufStore,
) -> Result<(TufStore, TrustRoot), RefreshError> {
    let TufTarget {
        text,
        expires,
        store,
    } = tuf::reopen(options, store)?;
    Ok((
        store,
        TrustRoot::read(name, &text, Freshness::until(expires))?,
    ))
}

/// The pause before the next refresh, after `failures` in a row, of a root that is valid for
/// another `left`.
fn pause(interval: Duration, failures: u32, left: Duration) -> Duration {
    if failures == 0 {
        // Replicas spread their refreshes, and there is time for a second attempt before the
        // expiry.
        return interval
            .min((left / 2).max(MIN_INTERVAL))
            .mul_f64(0.9 + fastrand::f64() / 10.0);
    }
    let ceiling = MIN_BACKOFF
        .saturating_mul(1 << (failures - 1).min(20))
        .min(MAX_BACKOFF)
        .min(interval.max(MIN_BACKOFF));
    let pause = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
    // The expiry is logged when it happens, and not an hour later.
    if left.is_zero() {
        pause
    } else {
        pause.min(left.saturating_add(MIN_BACKOFF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn within(pause: Duration, range: std::ops::RangeInclusive<u64>) {
        assert!(
            range.contains(&pause.as_secs()),
            "{pause:?} is not within {range:?}"
        );
    }

    #[test]
    fn a_root_is_refreshed_at_the_interval_and_in_time_before_it_expires() {
        within(pause(DAY, 0, DAY * 7), 77_759..=86_400);
        within(pause(DAY, 0, DAY), 38_879..=43_200);
        within(pause(DAY, 0, Duration::ZERO), 53..=60);
        within(pause(Duration::from_secs(2), 0, Duration::MAX), 1..=2);
    }

    #[test]
    fn failures_back_off_to_an_hour_and_a_refresh_follows_the_expiry() {
        for (failures, ceiling) in [
            (1, 1),
            (2, 2),
            (3, 4),
            (12, 2048),
            (13, 3600),
            (u32::MAX, 3600),
        ] {
            within(pause(DAY, failures, Duration::MAX), ceiling / 2..=ceiling);
            within(pause(DAY, failures, Duration::ZERO), ceiling / 2..=ceiling);
        }
        assert!(pause(DAY, 99, Duration::from_secs(5)) <= Duration::from_secs(6));
        assert!(pause(Duration::from_secs(5), 99, Duration::MAX) <= Duration::from_secs(5));
    }
}
