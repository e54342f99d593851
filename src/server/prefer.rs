//! `Prefer: wait` (RFC 7240) as OPA sends it.

use std::time::Duration;

use super::request_head::HeaderLines;

/// How long the client is willing to wait; `None` without a valid `wait` above 0.
///
/// OPA joins preferences with `;` where RFC 7240 §2 uses `,`, so that `wait` arrives as a
/// parameter of `modes`. Both separators are accepted.
pub(super) fn wait(lines: HeaderLines<'_>) -> Option<Duration> {
    let seconds = lines
        .iter()
        .flat_map(|line| line.split([',', ';']))
        .find_map(|preference| {
            let (name, value) = preference.split_once('=')?;
            if !name.trim().eq_ignore_ascii_case("wait") {
                return None;
            }
            seconds(value.trim().trim_matches('"'))
        })?;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Whether the client says that it takes delta bundles: `modes` in OPA's `Prefer`, which lists them with commas.
pub(super) fn accepts_delta(lines: HeaderLines<'_>) -> bool {
    // Each mode is a preference of its own for one that splits at commas.
    let mut is_in_modes = false;
    lines
        .iter()
        .flat_map(|line| line.split(';'))
        .flat_map(|preference| preference.split(','))
        .any(|part| {
            let mode = match part.split_once('=') {
                Some((name, value)) => {
                    is_in_modes = name.trim().eq_ignore_ascii_case("modes");
                    value
                }
                None => part,
            };
            is_in_modes && mode.trim().trim_matches('"').trim() == "delta"
        })
}

/// A number beyond `u32` counts as a long wait, not as none, because OPA would otherwise poll
/// without pause.
fn seconds(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// How long a request with `Prefer: wait` is held: less than `requested`, which is the client's own
/// timeout, but never so little that a wait of one second becomes a busy loop.
pub(super) fn hold_for(requested: Duration, max_wait: Duration) -> Duration {
    let wait = requested.min(max_wait);
    let margin = (wait / 10).max(Duration::from_secs(1)).min(wait / 2);
    wait - margin
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;
    use crate::server::request_head::PREFER;

    #[test]
    fn wait_is_read_with_both_separators_and_from_several_lines() {
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
            let lines = HeaderLines::of(&headers, &PREFER);
            assert_eq!(wait(lines), seconds.map(Duration::from_secs), "{line}");
        }
    }

    #[test]
    fn a_delta_is_accepted_where_modes_has_it() {
        for (line, accepts) in [
            ("modes=snapshot,delta;wait=60", true),
            ("modes=snapshot,delta", true),
            ("wait=60;Modes = delta , snapshot", true),
            ("wait=60, modes=\"snapshot,delta\"", true),
            ("modes=snapshot;wait=60", false),
            ("modes=snapshot;wait=delta", false),
            ("modes=snapshot;other=x,delta", false),
            ("delta", false),
            ("modes=deltas", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append("prefer", line.parse().unwrap());
            let lines = HeaderLines::of(&headers, &PREFER);
            assert_eq!(accepts_delta(lines), accepts, "{line}");
        }
    }

    #[test]
    fn a_hold_ends_before_the_clients_timeout() {
        let held =
            |seconds| hold_for(Duration::from_secs(seconds), Duration::from_secs(300)).as_millis();
        assert_eq!(
            [held(1), held(2), held(10), held(60), held(9000)],
            [500, 1000, 9000, 54_000, 270_000]
        );
    }
}
