//! What the service manager is told while the gateway runs.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    server::{Catalog, ConfigReloads, Drain, Liveness, Readiness},
    service_manager::ServiceManager,
};

/// How often the status is composed; it is sent when it has changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Keep-alive pings within the time of the watchdog.
const PINGS_PER_LIMIT: u32 = 2;
/// Time for everything after the drain: unsent responses, watchers, the cache.
const CLOSE_TIME: Duration = Duration::from_secs(15);
/// Bundles that a status names.
const MAX_NAMES: usize = 3;

/// Reports to the service manager. It is polled by the task that owns the bundles.
#[derive(Debug)]
pub(super) struct Supervision {
    pub(super) catalog: Catalog,
    pub(super) readiness: Readiness,
    pub(super) liveness: Liveness,
    pub(super) reloads: ConfigReloads,
    pub(super) manager: ServiceManager,
}

/// The time within which the process ends once it drains.
pub(super) fn shutdown_limit(drain: Drain) -> Duration {
    drain
        .notice
        .saturating_add(drain.over)
        .saturating_add(CLOSE_TIME)
}

impl Supervision {
    /// Reports until the future is dropped.
    pub(super) async fn report(&self) -> Infallible {
        if !self.manager.is_present() {
            return pending().await;
        }
        // Both listeners are bound, so clients are served or held from now on. A manager that waited
        // for the bundles would end a replica whose registry is down, which may have a
        // version on disk; which replica gets clients is up to `/readyz`.
        self.manager.send_ready().await;
        let (never, ()) = tokio::join!(self.send_statuses(), self.send_keep_alives());
        never
    }

    async fn send_statuses(&self) -> Infallible {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            ticks.tick().await;
            // The message with which the drain began has the last status.
            if self.readiness.is_draining() {
                continue;
            }
            let status = Some(self.status());
            if status != last {
                self.manager
                    .send_status(status.as_deref().unwrap_or_default())
                    .await;
                last = status;
            }
        }
    }

    /// A keep-alive ping says that the task of the server has run, on its runtime, and this one on the
    /// other.
    async fn send_keep_alives(&self) {
        let Some(limit) = self.manager.watchdog() else {
            return;
        };
        loop {
            self.liveness.check().await;
            self.manager.send_watchdog().await;
            sleep(limit / PINGS_PER_LIMIT).await;
        }
    }

    fn status(&self) -> String {
        let waiting_for = self.readiness.waiting_for();
        let mut status = match waiting_for.as_slice() {
            [] => self.served(),
            waiting_for => format!("not ready: waiting for {}", names(waiting_for)),
        };
        let refusal = self.reloads.last().and_then(|last| last.refusal.clone());
        if let Some(refusal) = refusal {
            status += &format!("; the configuration on disk is refused: {refusal}");
        }
        status
    }

    fn served(&self) -> String {
        let mut all = 0;
        let missing = self.catalog.filter_map(|entry| {
            all += 1;
            let state = entry.handle().subscribe();
            let is_served = state.borrow().snapshot().is_some();
            (!is_served).then(|| entry.name().to_owned())
        });
        served_status(all, &missing.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// How many of all bundles are served, and which are not.
fn served_status(all: usize, missing: &[&str]) -> String {
    let served = all.saturating_sub(missing.len());
    match missing {
        [] => format!("ready: serving all {all} bundles"),
        missing => format!(
            "ready: serving {served} of {all} bundles, without {}",
            names(missing)
        ),
    }
}

fn names(all: &[&str]) -> String {
    let named = all.iter().take(MAX_NAMES).copied();
    let named = named.collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMES) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_three_bundles_that_are_not_served_and_counts_the_others() {
        for (all, missing, status) in [
            (0, &[][..], "ready: serving all 0 bundles"),
            (
                3,
                &["b", "c"],
                "ready: serving 1 of 3 bundles, without b, c",
            ),
            (
                6,
                &["b", "c", "d", "e", "f"],
                "ready: serving 1 of 6 bundles, without b, c, d and 2 more",
            ),
        ] {
            assert_eq!(served_status(all, missing), status);
        }
    }

    #[test]
    fn the_time_to_stop_is_longer_than_the_drain() {
        let drain = |notice, over| Drain { notice, over };
        let (notice, over) = (Duration::from_secs(5), Duration::from_secs(10));
        assert_eq!(
            shutdown_limit(drain(notice, over)),
            notice + over + CLOSE_TIME
        );
        assert_eq!(shutdown_limit(drain(Duration::MAX, over)), Duration::MAX);
    }
}
