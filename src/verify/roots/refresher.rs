//! Keeps one root fresh.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    BadRoot, RefreshFault, RootSource, TrustRoot, TufOptions,
    freshness::Freshness,
    http_repository::Mirror,
    tuf::{self, Delivery},
    tuf_store::Shelf,
};
use crate::{metrics::Metrics, telemetry};

/// No more may stand in a file's name. A dot might be all of it.
const UNSAFE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
const FIRST: Duration = Duration::from_secs(1);
/// However long the repository has been away.
const LONGEST: Duration = Duration::from_secs(3600);
/// Metadata that is good for seconds only must not make us ask without a pause.
const LEAST: Duration = Duration::from_secs(60);
/// A disk that hangs must not stop refreshes.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// Refreshes one root from its TUF repository, and keeps the last good one in memory and,
/// where there is a folder, on disk.
#[derive(Debug)]
pub struct RootKeeper {
    options: TufOptions,
    file: Option<PathBuf>,
    last: Shelf,
    root: TrustRoot,
    metrics: Metrics,
    alarms: Alarms,
}

/// What a refresh found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The root that is known, for longer now.
    Unchanged,
    /// Another root.
    Changed,
}

/// What has been said already.
#[derive(Debug, Default)]
struct Alarms {
    fault: Option<&'static str>,
    expired: bool,
    disk: bool,
    failures: u32,
}

impl RootKeeper {
    /// Begins with the last good root on disk, if there is one, or else as `source` does.
    /// `None` if `source` is never refreshed. Reads a small file, and blocks for it.
    ///
    /// # Errors
    /// When `source` is no root.
    pub fn open(
        name: &str,
        source: &RootSource,
        folder: Option<&Path>,
        metrics: Metrics,
    ) -> Result<Option<Self>, BadRoot> {
        Self::succeed(&Shelf::default(), name, source, folder, metrics)
    }

    /// The same, but first tries what another keeper held last for a source under this name.
    pub(super) fn succeed(
        held: &Shelf,
        name: &str,
        source: &RootSource,
        folder: Option<&Path>,
        metrics: Metrics,
    ) -> Result<Option<Self>, BadRoot> {
        let Some(options) = source.tuf().cloned() else { return Ok(None) };
        let file = folder.map(|folder| folder.join(format!("{}.json", utf8_percent_encode(name, UNSAFE))));
        let held = (!held.is_empty()).then(|| held.copy());
        let kept = held.and_then(|held| verify(name, &options, held).ok());
        let kept = kept.or_else(|| file.as_deref().and_then(|file| reopen(name, &options, file)));
        let (last, root) = match kept {
            Some(kept) => kept,
            None => (Shelf::default(), source.initial(name)?),
        };
        Ok(Some(Self { options, file, last, root, metrics, alarms: Alarms::default() }))
    }

    /// The last good root.
    pub fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// What proves the last good root, as it changes.
    pub(super) fn held(&self) -> Shelf {
        self.last.clone()
    }

    /// Where another keeper has the same root already, their end is the same from now on.
    pub(super) fn share(&mut self, freshness: &Freshness) {
        self.root = self.root.clone().with_freshness(freshness.clone());
    }

    /// Asks the repository once. Whatever it answers, [`Self::root`] is good afterwards, or
    /// as good as it was before. Cancel-safe.
    ///
    /// # Errors
    /// Why the last good root stays.
    pub async fn refresh(&mut self) -> Result<Refreshed, RefreshFault> {
        let refreshed = self.attempt().await;
        let outcome = match &refreshed {
            Ok(Refreshed::Unchanged) => "unchanged",
            Ok(Refreshed::Changed) => "changed",
            Err(fault) => fault.label(),
        };
        self.metrics.trust_root_refreshes.with_label_values(&[self.root.name(), outcome]).inc();
        self.note_expiry();
        refreshed
    }

    async fn attempt(&mut self) -> Result<Refreshed, RefreshFault> {
        let mirror = Mirror::new(self.options.url.clone());
        let mirror = mirror.map_err(|error| RefreshFault::Unreachable(error.to_string()))?;
        let delivery = tuf::fetch(&self.options, mirror, &self.last, telemetry::now()).await?;
        let root = TrustRoot::read(self.root.name(), &delivery.text, Freshness::until(delivery.expires))?;
        let changed = root.is_pending() != self.root.is_pending() || root.revision() != self.root.revision();
        if changed {
            // Whoever goes on with the one before must not for longer than was promised.
            self.root = root;
        } else {
            self.root.freshness().prolong(delivery.expires);
        }
        self.last.become_like(&delivery.shelf);
        Ok(if changed { Refreshed::Changed } else { Refreshed::Unchanged })
    }

    /// Refreshes for ever, and tells `publish` of every root that is another one than before.
    pub(super) async fn run(mut self, publish: impl Fn(&TrustRoot) + Send) {
        loop {
            let refreshed = self.refresh().await;
            if let Ok(Refreshed::Changed) = refreshed {
                publish(&self.root);
            }
            if refreshed.is_ok() {
                self.save().await;
            }
            self.tell(&refreshed);
            let pause = pause(self.options.refresh, self.alarms.failures, self.left(telemetry::now()));
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes what proves the last good root to disk. Without it a restart begins with the
    /// one before.
    pub async fn save(&mut self) {
        let Some(file) = self.file.clone() else { return };
        let shelf = self.last.clone();
        let written = tokio::task::spawn_blocking(move || shelf.write(&file));
        let problem = match tokio::time::timeout(DISK_PATIENCE, written).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        let root = self.root.name();
        match problem {
            Some(error) if !self.alarms.disk => {
                tracing::error!(root, error, "a trust root can't be kept on disk; it lives in memory");
                self.alarms.disk = true;
            }
            Some(_) => {}
            None => self.alarms.disk = false,
        }
    }

    fn tell(&mut self, refreshed: &Result<Refreshed, RefreshFault>) {
        let root = self.root.name();
        let expires = self.root.expires().map(|at| at.to_string());
        match refreshed {
            Ok(_) => {
                if self.alarms.fault.is_some() {
                    tracing::info!(root, expires, "the trust root is refreshed again");
                }
                if *refreshed == Ok(Refreshed::Changed) {
                    tracing::info!(root, revision = %self.root.revision(), expires, "a new trust root");
                }
                (self.alarms.fault, self.alarms.failures) = (None, 0);
            }
            Err(fault) => {
                let told = fault.to_string();
                let told = &*telemetry::cut(&told, telemetry::SENTENCE_BYTES);
                self.alarms.failures = self.alarms.failures.saturating_add(1);
                if self.alarms.fault == Some(fault.label()) {
                    tracing::debug!(root, fault = told, "the trust root was not refreshed");
                } else {
                    tracing::error!(
                        root,
                        reason = fault.label(),
                        fault = told,
                        expires,
                        "a trust root can't be refreshed; the last good one stays until it expires"
                    );
                }
                self.alarms.fault = Some(fault.label());
            }
        }
        let trouble = self.root.trouble(telemetry::now());
        match &trouble {
            Some(trouble) if !self.alarms.expired => {
                tracing::error!(root, "{trouble}; nothing new is accepted by it until it is refreshed");
            }
            _ => {}
        }
        self.alarms.expired = trouble.is_some();
    }

    fn left(&self, now: Timestamp) -> Duration {
        let left = self.root.expires().map(|at| at.duration_since(now));
        left.map_or(Duration::MAX, |left| Duration::try_from(left).unwrap_or_default())
    }

    /// Says in the metrics until when the root is good.
    pub(super) fn note_expiry(&self) {
        let Some(expires) = self.root.expires() else { return };
        self.metrics.trust_root_expires.with_label_values(&[self.root.name()]).set(expires.as_second());
    }
}

/// The last good root on disk.
fn reopen(name: &str, options: &TufOptions, file: &Path) -> Option<(Shelf, TrustRoot)> {
    let read = match Shelf::read(file) {
        Ok(None) => return None,
        Ok(Some(shelf)) => verify(name, options, shelf).map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    // It may be of another repository: the configuration has changed since.
    read.inspect_err(|problem| {
        tracing::warn!(root = name, file = %file.display(), problem, "the trust root on disk is of no use");
    })
    .ok()
}

fn verify(name: &str, options: &TufOptions, shelf: Shelf) -> Result<(Shelf, TrustRoot), RefreshFault> {
    let Delivery { text, expires, shelf } = tuf::reopen(options, shelf)?;
    Ok((shelf, TrustRoot::read(name, &text, Freshness::until(expires))?))
}

/// How long until the next refresh, after `failures` in a row, of a root that is good for
/// another `left`.
fn pause(interval: Duration, failures: u32, left: Duration) -> Duration {
    if failures == 0 {
        // Not all replicas at once, and in time for a second attempt.
        return interval.min((left / 2).max(LEAST)).mul_f64(0.9 + fastrand::f64() / 10.0);
    }
    let ceiling = FIRST.saturating_mul(1 << (failures - 1).min(20)).min(LONGEST).min(interval.max(FIRST));
    let pause = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
    // Its end is worth an alarm when it comes, and not an hour later.
    if left.is_zero() { pause } else { pause.min(left.saturating_add(FIRST)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn within(pause: Duration, range: std::ops::RangeInclusive<u64>) {
        assert!(range.contains(&pause.as_secs()), "{pause:?} is not within {range:?}");
    }

    #[test]
    fn a_good_root_is_refreshed_by_the_interval_and_in_time_before_its_end() {
        within(pause(DAY, 0, DAY * 7), 77_759..=86_400);
        within(pause(DAY, 0, DAY), 38_879..=43_200);
        within(pause(DAY, 0, Duration::ZERO), 53..=60);
        within(pause(Duration::from_secs(2), 0, Duration::MAX), 1..=2);
    }

    #[test]
    fn trouble_backs_off_to_an_hour_and_looks_again_right_after_the_end() {
        for (failures, ceiling) in [(1, 1), (2, 2), (3, 4), (12, 2048), (13, 3600), (u32::MAX, 3600)] {
            within(pause(DAY, failures, Duration::MAX), ceiling / 2..=ceiling);
            within(pause(DAY, failures, Duration::ZERO), ceiling / 2..=ceiling);
        }
        assert!(pause(DAY, 99, Duration::from_secs(5)) <= Duration::from_secs(6));
        assert!(pause(Duration::from_secs(5), 99, Duration::MAX) <= Duration::from_secs(5));
    }
}
