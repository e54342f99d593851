//! `Prefer` (RFC 7240) as OPA writes it.

use std::time::Duration;

use hyper::header::HeaderMap;

/// How long the client is willing to wait; `None` without a usable `wait`.
///
/// OPA joins preferences with `;` where the RFC has `,`, so `wait` may look like a
/// parameter of `modes`; either separator counts.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    let seconds = lines.flat_map(|line| line.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("wait") {
            return None;
        }
        seconds(value.trim().trim_matches('"'))
    })?;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// A number too long for us is a long wait, not none: OPA would come back at once, again
/// and again.
fn seconds(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// How long a request that may wait for `wished` is held: less than the client's own
/// time-out, but never so little that one second becomes a hot loop.
pub(super) fn hold_for(wished: Duration, max_wait: Duration) -> Duration {
    let wait = wished.min(max_wait);
    let margin = (wait / 10).max(Duration::from_secs(1)).min(wait / 2);
    wait - margin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_separators_and_several_lines_are_understood() {
        for (line, seconds) in [
            ("modes=snapshot,delta;wait=60", Some(60)),
            ("wait=60, modes=snapshot", Some(60)),
            ("Wait = \"5\"", Some(5)),
            ("wait=0", None),
            ("wait=-1", None),
            ("wait=99999999999", Some(u32::MAX.into())),
            ("wait=1e9", None),
            ("wait=+1", None),
            ("modes=snapshot,delta", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.append("prefer", "respond-async".parse().unwrap());
            headers.append("prefer", line.parse().unwrap());
            assert_eq!(wait(&headers), seconds.map(Duration::from_secs), "{line}");
        }
    }

    #[test]
    fn a_hold_ends_before_the_client_gives_up() {
        let held = |seconds| hold_for(Duration::from_secs(seconds), Duration::from_secs(300)).as_millis();
        assert_eq!([held(1), held(2), held(10), held(60), held(9000)], [500, 1000, 9000, 54_000, 270_000]);
    }
}
