//! The `Date` header (RFC 9110 §6.6.1), formatted once a second.

use std::cell::Cell;

use hyper::header::HeaderValue;
use jiff::Timestamp;

/// The length of an IMF-fixdate.
const DATE_BYTES: usize = 29;

thread_local! {
    /// The last date, and its second.
    static LAST: Cell<(i64, [u8; DATE_BYTES])> = const { Cell::new((i64::MIN, [b' '; DATE_BYTES])) };
}

/// The current time.
pub(super) fn now() -> HeaderValue {
    // The format produces only ASCII.
    HeaderValue::from_bytes(&at(crate::telemetry::now())).unwrap_or(HeaderValue::from_static(""))
}

/// Appends the current time.
pub(super) fn write_now(head: &mut Vec<u8>) {
    head.extend_from_slice(&at(crate::telemetry::now()));
}

fn at(time: Timestamp) -> [u8; DATE_BYTES] {
    let (second, mut date) = LAST.get();
    if second != time.as_second() {
        let text = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        // A year beyond 9999, which the clock is not read as, would not fit.
        if text.len() == DATE_BYTES {
            date.copy_from_slice(text.as_bytes());
        }
        LAST.set((time.as_second(), date));
    }
    date
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_an_imf_fixdate() {
        let time = "1994-11-06T08:49:37.9Z".parse().unwrap();
        assert_eq!(&at(time), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&at(time), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
