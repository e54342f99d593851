//! Which requests are repeated, and after which delay.

use std::time::{Duration, SystemTime};

use reqwest::header;

use super::error::{Class, RegistryError};

/// Attempts at one request, the first included.
pub(super) const ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// A longer `Retry-After` counts as this: it may be in the wrong unit, or compared with a wrong
/// clock, and must not stop updates for days.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// A `Retry-After` that can't be parsed counts as this: the registry does ask for a delay.
const UNREADABLE_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Whether the same request may succeed a moment later.
pub(super) fn is_retryable(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => is_retryable_status(*status),
        _ => matches!(error.class(), Class::Transient | Class::RateLimited { .. }),
    }
}

fn is_retryable_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

/// The delay before attempt `next` (2 for the first retry): the server's `Retry-After`, else
/// exponential with jitter, so that replicas don't retry in step.
pub(super) fn delay(next: u32, retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_else(|| {
        let ceiling = FIRST_DELAY
            .saturating_mul(1 << next.saturating_sub(2).min(16))
            .min(MAX_DELAY);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    })
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3), at most [`MAX_RETRY_AFTER`]. A
/// date in the past is zero, any other text [`UNREADABLE_RETRY_AFTER`]. `None` without the header.
pub(super) fn retry_after(headers: &header::HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    let wait = value
        .to_str()
        .ok()
        .and_then(|text| parse(text.trim(), now))
        .unwrap_or(UNREADABLE_RETRY_AFTER);
    Some(wait.min(MAX_RETRY_AFTER))
}

fn parse(text: &str, now: SystemTime) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is a long time, too.
        return Some(text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, now: SystemTime) -> Option<Duration> {
        let mut headers = header::HeaderMap::new();
        headers.insert(header::RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers, now)
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(read("120", now), Some(Duration::from_secs(120)));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:47 GMT", now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:30 GMT", now),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after(&header::HeaderMap::new(), now), None);
    }

    #[test]
    fn a_retry_after_that_can_not_be_parsed_counts_as_a_minute() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for text in [
            "soon",
            "",
            " ",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "0x10",
            "10s",
            "1, 2",
            "Sun, 99 Nov 1994 08:49:47 GMT",
        ] {
            assert_eq!(read(text, now), Some(Duration::from_secs(60)), "{text:?}");
        }
        let mut headers = header::HeaderMap::new();
        headers.insert(
            header::RETRY_AFTER,
            header::HeaderValue::from_bytes(b"\xff\xfe").unwrap(),
        );
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_retry_after_is_at_most_a_quarter_of_an_hour_whatever_the_clock_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let year_10200 = SystemTime::UNIX_EPOCH + Duration::from_secs(259_700_000_000);
        for text in [
            "901",
            "3600",
            "4294967296",
            "18446744073709551616",
            &"9".repeat(4000),
        ] {
            assert_eq!(read(text, now), Some(Duration::from_secs(900)), "{text}");
        }
        let far = "31 Dec 9998 23:59:59 GMT";
        for (text, now, seconds) in [
            (far, now, 900),
            (far, SystemTime::UNIX_EPOCH, 900),
            (far, year_10200, 0),
            ("Sun, 06 Nov 1994 09:49:37 GMT", now, 900),
            ("Sun, 06 Nov 1994 08:50:37 GMT", now, 60),
            ("Sun, 06 Nov 1994 08:49:37 GMT", SystemTime::UNIX_EPOCH, 900),
        ] {
            assert_eq!(
                read(text, now),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn delays_grow_to_a_ceiling_and_follow_retry_after() {
        assert!(delay(2, None) <= FIRST_DELAY);
        assert!(delay(60, None) <= MAX_DELAY);
        assert_eq!(
            delay(2, Some(Duration::from_secs(40))),
            Duration::from_secs(40)
        );
    }
}
