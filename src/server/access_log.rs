//! The access log: one line for each request to the data listener, once its response is sent or its
//! connection has ended.
//!
//! A request that is logged has an [`AccessRecord`] that goes with it, from its head to the last byte
//! of the response, which a [`Delivery`](super::delivery::Delivery) counts. The line is written when the record is dropped, so there is one however the
//! request ends. Without an access log there is no record, and nothing but one load of an integer for
//! each request.

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use hyper::{StatusCode, Version};
use tokio::time::{Duration, Instant};
use tracing::{Level, enabled};

use super::request_head::RequestHead;
use crate::telemetry::{ACCESS, NAME_BYTES, cut};

/// The requests that have a line in the access log (`log.access`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLevel {
    /// None.
    #[default]
    Off,
    /// Those that are answered with a status of 400 or above.
    Errors,
    /// All.
    All,
}

/// The access log of a listener.
#[derive(Debug)]
pub(super) struct AccessLog {
    /// An [`AccessLevel`].
    configured: AtomicU8,
    /// The same, or `All` where `BUNDLEGATE_LOG` shows the requests in any case.
    recorded: AtomicU8,
}

/// What the log has of a request. Its line is written when it is dropped.
#[derive(Debug)]
pub(super) struct AccessRecord {
    configured: AccessLevel,
    began: Instant,
    address: IpAddr,
    method: Box<str>,
    path: Box<str>,
    protocol: &'static str,
    user_agent: Option<Box<str>>,
    client: OnceLock<Box<str>>,
    bundle: OnceLock<Box<str>>,
    held_since: OnceLock<Instant>,
    /// How long the request was held; absent while it is.
    held: OnceLock<Duration>,
    status: OnceLock<StatusCode>,
    /// Bytes of the body that the socket has taken, and the size of the body; absent if the response has
    /// not begun.
    sent: OnceLock<(u64, u64)>,
}

impl AccessLevel {
    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Errors,
            2 => Self::All,
            _ => Self::Off,
        }
    }

    /// Whether a response with this status is logged.
    fn has(self, status: Option<StatusCode>) -> bool {
        let is_error = |status: StatusCode| status.as_u16() >= 400;
        match self {
            Self::Off => false,
            Self::Errors => status.is_some_and(is_error),
            Self::All => true,
        }
    }
}

impl AccessLog {
    pub(super) fn new(level: AccessLevel) -> Self {
        let log = Self {
            configured: AtomicU8::default(),
            recorded: AtomicU8::default(),
        };
        log.set(level);
        log
    }

    /// Sets what is logged of the requests that arrive from now on.
    pub(super) fn set(&self, level: AccessLevel) {
        self.configured.store(level as u8, Ordering::Relaxed);
        let recorded = match enabled!(target: ACCESS, Level::DEBUG) {
            true => AccessLevel::All,
            false => level,
        };
        self.recorded.store(recorded as u8, Ordering::Relaxed);
    }

    /// Whether a request may have to be recorded, with its status if that is known.
    pub(super) fn records(&self, status: Option<StatusCode>) -> bool {
        match AccessLevel::from_number(self.recorded.load(Ordering::Relaxed)) {
            AccessLevel::Off => false,
            AccessLevel::All => true,
            AccessLevel::Errors => status.is_none_or(|_| AccessLevel::Errors.has(status)),
        }
    }

    /// Records a request that began at this time.
    pub(super) fn record(
        &self,
        head: &RequestHead<'_>,
        method: &str,
        address: IpAddr,
        began: Instant,
    ) -> Arc<AccessRecord> {
        let configured = self.configured.load(Ordering::Relaxed);
        let user_agent = head.user_agent.map(|agent| {
            let agent = String::from_utf8_lossy(agent);
            cut(&agent, NAME_BYTES).into()
        });
        Arc::new(AccessRecord {
            configured: AccessLevel::from_number(configured),
            began,
            address,
            method: cut(method, NAME_BYTES).into(),
            path: cut(head.path, NAME_BYTES).into(),
            protocol: protocol(head.version),
            user_agent,
            client: OnceLock::new(),
            bundle: OnceLock::new(),
            held_since: OnceLock::new(),
            held: OnceLock::new(),
            status: OnceLock::new(),
            sent: OnceLock::new(),
        })
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

// Each of these is set once; what follows is ignored.
impl AccessRecord {
    /// Records the client that the credential belongs to.
    pub(super) fn set_client(&self, name: &str) {
        let _ = self.client.set(name.into());
    }

    /// Records the bundle that the client may read.
    pub(super) fn set_bundle(&self, name: &str) {
        let _ = self.bundle.set(cut(name, NAME_BYTES).into());
    }

    /// Records that the request is held from this time on.
    pub(super) fn begin_hold(&self, since: Instant) {
        let _ = self.held_since.set(since);
    }

    /// Records how the request is answered, and how long it was held, if it was.
    pub(super) fn set_reply(&self, status: StatusCode, held: Option<Duration>) {
        let _ = self.status.set(status);
        if let Some(held) = held {
            let _ = self.held.set(held);
        }
    }

    /// Records how many bytes of a response's body were sent, and its size.
    pub(super) fn set_sent(&self, sent: u64, size: u64) {
        let _ = self.sent.set((sent, size));
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let status = self.status.get().copied();
        let (sent, aborted) = match self.sent.get() {
            Some((sent, size)) => (*sent, sent < size),
            None => (0, true),
        };
        let since = self.held_since.get();
        let held = self.held.get().copied();
        let held = held.or_else(|| since.map(Instant::elapsed));
        macro_rules! log_line {
            ($level:expr) => {
                tracing::event!(
                    target: ACCESS,
                    $level,
                    client = self.client.get().map(|name| &**name),
                    address = %self.address,
                    method = &*self.method,
                    path = &*self.path,
                    bundle = self.bundle.get().map(|name| &**name),
                    protocol = self.protocol,
                    status = status.map(|status| status.as_u16()),
                    bytes = sent,
                    aborted = aborted.then_some(true),
                    duration_ms = millis(self.began.elapsed()),
                    hold_ms = held.map(millis),
                    user_agent = self.user_agent.as_deref(),
                    "request"
                )
            };
        }
        if self.configured.has(status) {
            log_line!(Level::INFO);
        } else {
            log_line!(Level::DEBUG);
        }
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_recorded_once_their_status_is_known_and_nothing_is_if_it_is_off() {
        let log = AccessLog::new(AccessLevel::Off);
        let (ok, missing) = (Some(StatusCode::OK), Some(StatusCode::NOT_FOUND));
        for (level, expected) in [
            (AccessLevel::Off, [false, false, false]),
            // A request that is held may still be answered with an error.
            (AccessLevel::Errors, [true, false, true]),
            (AccessLevel::All, [true, true, true]),
        ] {
            log.set(level);
            let recorded = [None, ok, missing].map(|status| log.records(status));
            assert_eq!(recorded, expected, "{level:?}");
        }
        assert!(!AccessLevel::Errors.has(None) && !AccessLevel::Errors.has(ok));
    }
}
