//! When to ask again, and how much later.

use std::time::{Duration, SystemTime};

use reqwest::header;

/// Attempts at one request, the first included.
pub(super) const ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Whether a status says "not now" rather than "no".
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

/// How long to wait before attempt `next` (2 for the first repetition): what the server
/// asked for, else exponential with full jitter, so that replicas don't move in step.
pub(super) fn delay(next: u32, retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_else(|| {
        let ceiling = FIRST_DELAY.saturating_mul(1 << next.saturating_sub(2).min(16)).min(MAX_DELAY);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    })
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3).
pub(super) fn retry_after(headers: &header::HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, now: SystemTime) -> Option<Duration> {
        let mut headers = header::HeaderMap::new();
        headers.insert(header::RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers, now)
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(parse("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:30 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse("soon", now), None);
        assert_eq!(parse("-1", now), None);
    }

    #[test]
    fn delays_grow_to_a_ceiling_and_obey_the_server() {
        assert!(delay(2, None) <= FIRST_DELAY);
        assert!(delay(60, None) <= MAX_DELAY);
        assert_eq!(delay(2, Some(Duration::from_secs(40))), Duration::from_secs(40));
    }
}
