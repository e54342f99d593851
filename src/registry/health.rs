//! Whether a host has failed lately, so that a dead host does not cost every request its timeouts.
//! It matters only where other hosts have the same content (mirrors).

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

use super::error::{Class, RegistryError};

/// How long a host is not asked after its first failure. It doubles with each further one.
const FIRST_SUSPENSION: Duration = Duration::from_secs(5);
/// The longest suspension, unless a mirror asks for a longer one.
pub(super) const MAX_SUSPENSION: Duration = Duration::from_secs(30);

/// The failures of one host since its last answer.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    suspension: Option<Suspension>,
    /// The number of suspensions so far.
    suspensions: u64,
}

#[derive(Debug)]
struct Suspension {
    since: Instant,
    until: Instant,
    /// Whether a request has been let through to find out whether the host answers again.
    is_probed: bool,
    /// The last failure in words.
    reason: String,
    is_limited: bool,
}

/// What a request has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The host is not asked for this time.
    Suspended(Duration),
    /// It answers again.
    Recovered,
}

impl Health {
    /// Whether the host may be asked, at the latest after [`MAX_SUSPENSION`]: its caller decides how
    /// long a registry's `Retry-After` is honoured. At the end of a suspension one request is
    /// admitted, and the others once it has succeeded, or after as long again.
    pub(super) fn admits(&self) -> bool {
        self.admits_after(MAX_SUSPENSION)
    }

    /// As [`Self::admits`], for a mirror, which may ask for a longer pause: there are other hosts.
    pub(super) fn admits_mirror(&self) -> bool {
        self.admits_after(Duration::MAX)
    }

    fn admits_after(&self, longest: Duration) -> bool {
        let mut state = self.lock();
        let delay = suspension(state.failures);
        let Some(suspension) = &mut state.suspension else {
            return true;
        };
        let now = Instant::now();
        if now < suspension.until && now.duration_since(suspension.since) < longest {
            return false;
        }
        (suspension.since, suspension.until) = (now, now + delay);
        suspension.is_probed = true;
        true
    }

    /// Records the result of a request. A host that does not answer, or asks for fewer requests,
    /// is suspended; every answer ends the suspension.
    pub(super) fn record(&self, error: Option<&RegistryError>) -> Option<Change> {
        let mut state = self.lock();
        let now = Instant::now();
        let Some((error, asked)) = error.and_then(|error| Some((error, failure(error)?))) else {
            state.failures = 0;
            return state.suspension.take().map(|_| Change::Recovered);
        };
        // Requests that were under way when the host was suspended.
        let is_late = |one: &Suspension| now < one.until && !one.is_probed;
        if state.suspension.as_ref().is_some_and(is_late) {
            return None;
        }
        let is_first = state.failures == 0;
        let delay = asked.unwrap_or_else(|| suspension(state.failures));
        state.failures = state.failures.saturating_add(1);
        state.suspensions += 1;
        state.suspension = Some(Suspension {
            since: now,
            until: now + delay,
            is_probed: false,
            reason: error.to_string(),
            is_limited: matches!(error.class(), Class::RateLimited { .. }),
        });
        is_first.then_some(Change::Suspended(delay))
    }

    /// The number of suspensions so far, for [`Self::is_suspended_since`].
    pub(super) fn suspensions(&self) -> u64 {
        self.lock().suspensions
    }

    /// Whether the host was suspended after it admitted a request, which saw this number of
    /// suspensions, and still is.
    pub(super) fn is_suspended_since(&self, suspensions: u64) -> bool {
        let state = self.lock();
        let is_on = |one: &Suspension| Instant::now() < one.until && !one.is_probed;
        state.suspensions != suspensions && state.suspension.as_ref().is_some_and(is_on)
    }

    /// The error for a request that is not sent because the host is suspended.
    pub(super) fn error(&self, operation: &'static str, host: &str) -> RegistryError {
        let state = self.lock();
        let (mut reason, mut limited) = ("it failed a moment ago".to_owned(), None);
        if let Some(suspension) = &state.suspension {
            reason = format!("not asked again after {}", suspension.reason);
            limited = suspension
                .is_limited
                .then(|| suspension.until.saturating_duration_since(Instant::now()));
        }
        let host = host.to_owned();
        match limited {
            Some(wait) => RegistryError::Status {
                operation,
                host,
                status: 429,
                retry_after: Some(wait),
                detail: format!(" ({reason})"),
            },
            None => RegistryError::Unreachable {
                operation,
                host,
                reason,
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that the host should not be asked for a while, and for how long if the
/// host names a time.
fn failure(error: &RegistryError) -> Option<Option<Duration>> {
    match error {
        RegistryError::Unreachable { .. }
        | RegistryError::CredentialsUnavailable {
            transient: true, ..
        } => Some(None),
        RegistryError::Status {
            retry_after: Some(wait),
            ..
        } => Some(Some(*wait)),
        RegistryError::Token { denied: false, .. } => match error.class() {
            Class::RateLimited { retry_after } => Some(retry_after),
            _ => Some(None),
        },
        _ => matches!(error.class(), Class::RateLimited { .. }).then_some(None),
    }
}

fn suspension(failures: u32) -> Duration {
    FIRST_SUSPENSION
        .saturating_mul(1 << failures.min(8))
        .min(MAX_SUSPENSION)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn dead() -> RegistryError {
        RegistryError::Unreachable {
            operation: "test",
            host: "r.example".into(),
            reason: "connection refused".into(),
        }
    }

    fn status(status: u16, retry_after: Option<Duration>) -> RegistryError {
        RegistryError::Status {
            operation: "test",
            host: "r.example".into(),
            status,
            retry_after,
            detail: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_host_is_asked_by_one_request_at_a_time_at_growing_intervals() {
        let health = Health::default();
        assert!(health.admits() && health.admits());
        let first = health.record(Some(&dead()));
        assert_eq!(first, Some(Change::Suspended(FIRST_SUSPENSION)));
        // Those that were under way change nothing.
        assert_eq!(health.record(Some(&dead())), None);
        for expected in [5, 10, 20, 30, 30, 30] {
            assert!(!health.admits());
            advance(Duration::from_secs(expected) - Duration::from_millis(1)).await;
            assert!(!health.admits(), "{expected}");
            advance(Duration::from_millis(1)).await;
            assert!(health.admits(), "{expected}");
            assert!(!health.admits(), "a second request beside the first");
            assert_eq!(health.record(Some(&dead())), None);
        }
        advance(MAX_SUSPENSION).await;
        assert!(health.admits());
        assert_eq!(health.record(None), Some(Change::Recovered));
        assert!(health.admits() && health.admits());
        assert_eq!(health.record(None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waited_while_its_host_was_suspended_is_not_sent() {
        let health = Health::default();
        let waiting = health.suspensions();
        assert!(!health.is_suspended_since(waiting));
        health.record(Some(&dead()));
        assert!(health.is_suspended_since(waiting));
        // One that is sent although the host is suspended, because no other host answers.
        assert!(!health.is_suspended_since(health.suspensions()));
        advance(FIRST_SUSPENSION).await;
        assert!(!health.is_suspended_since(waiting));
        health.record(Some(&dead()));
        assert!(health.is_suspended_since(waiting));
        health.record(None);
        assert!(!health.is_suspended_since(waiting));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_does_not_suspend_the_host_for_ever() {
        let health = Health::default();
        health.record(Some(&dead()));
        advance(FIRST_SUSPENSION).await;
        assert!(health.admits() && !health.admits());
        advance(MAX_SUSPENSION).await;
        assert!(health.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_asks_for_a_pause_gets_it_and_every_other_answer_counts_as_one() {
        let health = Health::default();
        let wait = Duration::from_secs(60);
        let limited = health.record(Some(&status(429, Some(wait))));
        assert_eq!(limited, Some(Change::Suspended(wait)));
        let error = health.error("test", "r.example");
        let retry_after = Some(wait);
        assert_eq!(error.class(), Class::RateLimited { retry_after });
        advance(MAX_SUSPENSION - Duration::from_millis(1)).await;
        assert!(!health.admits() && !health.admits_mirror());
        advance(Duration::from_millis(1)).await;
        assert!(!health.admits_mirror() && health.admits());
        health.record(Some(&status(429, Some(wait))));
        advance(wait).await;
        assert!(health.admits_mirror());
        for answer in [status(500, None), status(404, None)] {
            health.record(Some(&dead()));
            assert_eq!(health.record(Some(&answer)), Some(Change::Recovered));
        }
        health.record(Some(&dead()));
        let error = health.error("test", "r.example");
        assert_eq!(error.class(), Class::Transient);
        assert!(error.to_string().contains("connection refused"), "{error}");
    }
}
