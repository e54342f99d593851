//! Which requests are repeated, and after which delay.

use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap};

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
/// A number from here on is not a delay but a time since 1970, in seconds: as a delay it would be
/// thirty years.
const EPOCH_SECONDS: u64 = 1_000_000_000;
/// A number from here on is a time since 1970 in milliseconds.
const EPOCH_MILLIS: u64 = 1_000_000_000_000;
/// The headers with the number of requests that are left: of the IETF's drafts and Docker Hub, of
/// GitHub and GitLab, and of others.
const REMAINING: [&str; 3] = [
    "ratelimit-remaining",
    "x-ratelimit-remaining",
    "x-rate-limit-remaining",
];
/// The headers with the time at which that number is reset: a delay or an epoch.
const RESET: [&str; 3] = ["ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"];

/// Whether the same request may succeed a moment later.
pub(super) fn is_retryable(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => is_retryable_status(*status),
        RegistryError::Redirected { .. } => false,
        _ => matches!(error.class(), Class::Transient | Class::RateLimited { .. }),
    }
}

/// 501 means that the registry lacks the method, which does not change in a moment.
fn is_retryable_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=599)
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

/// The delay that an answer asks for, at most [`MAX_RETRY_AFTER`]: `Retry-After` as seconds, an
/// HTTP date (RFC 9110 §10.2.3) or an epoch; without it, the end of the window of a rate limit. A
/// time in the past is zero, any other text [`UNREADABLE_RETRY_AFTER`]. `None` without any such
/// header.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let wait = match headers.get(header::RETRY_AFTER) {
        Some(value) => {
            let text = value.to_str().unwrap_or_default().trim();
            Some(parse(text, now).unwrap_or(UNREADABLE_RETRY_AFTER))
        }
        None => window_end(headers, now),
    };
    wait.map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Whether a refusal is that of a rate limit: it asks for a delay, or says that no request is
/// left. GitHub answers 403 and not 429.
pub(super) fn is_rate_limited(headers: &HeaderMap) -> bool {
    headers.contains_key(header::RETRY_AFTER) || is_used_up(headers)
}

fn is_used_up(headers: &HeaderMap) -> bool {
    let mut left = REMAINING.iter().filter_map(|name| text(headers, name));
    left.any(|text| text.split([';', ',']).next().map(str::trim) == Some("0"))
}

/// The end of the window of a rate limit: when it is reset, or else its length, as Docker Hub
/// sends it (`ratelimit-remaining: 0;w=21600`).
fn window_end(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let mut resets = RESET.iter().filter_map(|name| text(headers, name));
    if let Some(reset) = resets.next() {
        return Some(parse(reset, now).unwrap_or(UNREADABLE_RETRY_AFTER));
    }
    let limit = text(headers, "ratelimit")
        .and_then(|text| parameter(text, "t").or_else(|| parameter(text, "reset")));
    let window = || {
        let mut left = REMAINING.iter().filter_map(|name| text(headers, name));
        left.find_map(|text| parameter(text, "w"))
    };
    limit.or_else(window).and_then(|text| parse(text, now))
}

/// The value of a parameter: `w` in `0;w=21600`.
fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut parameters = text.split([';', ',']).filter_map(|one| one.split_once('='));
    parameters.find_map(|(key, value)| {
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().trim_matches('"'))
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn parse(text: &str, now: SystemTime) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is a long time, too.
        let number: u64 = text.parse().unwrap_or(u64::MAX);
        let epoch = match number {
            EPOCH_MILLIS.. => Duration::from_millis(number),
            EPOCH_SECONDS.. => Duration::from_secs(number),
            _ => return Some(Duration::from_secs(number)),
        };
        return Some(epoch.saturating_sub(since_epoch(now)));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, now: SystemTime) -> Option<Duration> {
        let mut headers = HeaderMap::new();
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
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn retry_after_may_be_a_time_since_1970() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (text, seconds) in [
            ("1700000030", 30),
            ("1700000030000", 30),
            ("1699999999", 0),
            ("1699999999000", 0),
            ("1000000000", 0),
            ("1700009999", 900),
            // Below a thirty years' delay it is a delay.
            ("999999999", 900),
        ] {
            assert_eq!(
                read(text, now),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn without_retry_after_the_window_of_a_rate_limit_counts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (limits, seconds, is_limited) in [
            // Docker Hub.
            (
                &[
                    ("ratelimit-limit", "100;w=21600"),
                    ("ratelimit-remaining", "0;w=21600"),
                ][..],
                Some(900),
                true,
            ),
            (&[("ratelimit-remaining", "0;w=120")], Some(120), true),
            // draft-ietf-httpapi-ratelimit-headers, 03 to 07 and 08.
            (
                &[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")],
                Some(30),
                true,
            ),
            (
                &[("ratelimit", "limit=100, remaining=0, reset=40")],
                Some(40),
                false,
            ),
            (&[("ratelimit", "\"default\";r=0;t=50")], Some(50), false),
            // GitHub, GitLab.
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1700000060"),
                ],
                Some(60),
                true,
            ),
            (
                &[
                    ("x-ratelimit-remaining", "57"),
                    ("x-ratelimit-reset", "1700000060"),
                ],
                Some(60),
                false,
            ),
            (&[("ratelimit-reset", "soon")], Some(60), false),
            (
                &[("retry-after", "7"), ("ratelimit-reset", "30")],
                Some(7),
                true,
            ),
            (&[("ratelimit-remaining", "0")], None, true),
            (&[("ratelimit-limit", "100;w=21600")], None, false),
            (&[], None, false),
        ] {
            let headers: HeaderMap = limits
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<Vec<(header::HeaderName, header::HeaderValue)>>()
                .into_iter()
                .collect();
            assert_eq!(
                retry_after(&headers, now),
                seconds.map(Duration::from_secs),
                "{limits:?}"
            );
            assert_eq!(is_rate_limited(&headers), is_limited, "{limits:?}");
        }
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
        let mut headers = HeaderMap::new();
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
