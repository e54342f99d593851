//! A request that is answered later: how long that takes, and for how long it is held.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hyper::StatusCode;
use tokio::time::Instant;

use super::{
    bundle_api::{BundleApi, Decision},
    long_poll::{BundleRequest, Woken},
    metrics::HoldOutcome,
    reply::Reply,
};
use crate::telemetry;

/// A request that is not answered yet. If it is dropped, its client has left.
pub(super) struct PendingRequest {
    pub(super) api: Arc<BundleApi>,
    pub(super) request: BundleRequest,
}

/// When a request began to be held, in microseconds after it began; it is 4 bytes because each OPA
/// of a fleet has one. Later than 71 minutes is as late as that.
#[derive(Debug, Default)]
pub(super) struct HoldStart(AtomicU32);

impl HoldStart {
    pub(super) fn set(&self, delay: Duration) {
        let micros = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        // Zero is a request that is not held.
        self.0.store(micros.max(1), Ordering::Relaxed);
    }

    /// When it began to be held, if it did.
    pub(super) fn since(&self, began: Instant) -> Option<Instant> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(began + Duration::from_micros(micros.into())),
        }
    }

    fn take(&mut self, began: Instant) -> Option<Instant> {
        let since = self.since(began);
        *self = Self::default();
        since
    }
}

impl PendingRequest {
    /// Concludes the request.
    pub(super) fn finish(mut self, woken: impl Into<Woken>) -> Decision {
        let (Self { api, request }, Woken { reply, at }) = (&mut self, woken.into());
        let (status, began) = (reply.status(), request.began);
        let held = request.hold_start.take(began);
        let held = held.map(|since| at.saturating_duration_since(since));
        if let Some(held) = held {
            api.metrics.observe_hold(outcome_of(&reply), held);
        }
        let duration = began.elapsed().saturating_sub(held.unwrap_or_default());
        api.metrics.observe_request(status, duration);
        let access = request.access.take();
        if let Some(record) = &access {
            record.set_reply(status, held);
        }
        let waiting = request.waiting.take();
        let offer = api.fleet.as_ref().zip(waiting.as_ref());
        let offer = offer.and_then(|(fleet, waiting)| {
            let candidate = match &reply {
                Reply::Bundle {
                    variant: Some(_), ..
                } => api.live_candidate(waiting.client_bundle().bundle().name()),
                _ => None,
            };
            fleet.offer(waiting, request.method, &reply, candidate)
        });
        Decision {
            reply,
            access,
            offer,
        }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let Some(waiting) = &self.request.waiting {
            waiting.record_seen(telemetry::now_millis());
        }
        if let Some(since) = self.request.hold_start.take(self.request.began) {
            let outcome = HoldOutcome::Disconnected;
            self.api.metrics.observe_hold(outcome, since.elapsed());
        }
    }
}

fn outcome_of(reply: &Reply) -> HoldOutcome {
    match reply {
        Reply::Bundle { .. } => HoldOutcome::Changed,
        Reply::NotModified { .. } => HoldOutcome::Unchanged,
        Reply::Other(response) if response.status() == StatusCode::NOT_MODIFIED => {
            HoldOutcome::Unchanged
        }
        Reply::Other(_) => HoldOutcome::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hold_starts_some_microseconds_after_its_request_or_never() {
        let (mut start, began) = (HoldStart::default(), Instant::now());
        assert_eq!(start.since(began), None);
        let late = Duration::from_secs(1_000_000);
        for (delay, expected) in [
            // Zero is a request that is not held.
            (Duration::ZERO, Duration::from_micros(1)),
            (Duration::from_millis(7), Duration::from_millis(7)),
            (late, Duration::from_micros(u32::MAX.into())),
        ] {
            start.set(delay);
            assert_eq!(start.take(began), Some(began + expected));
            assert_eq!(start.since(began), None);
        }
    }
}
