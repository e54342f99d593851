//! The `Date` header (RFC 9110 §6.6.1), formatted once a second.

use std::sync::{Mutex, PoisonError};

use hyper::header::HeaderValue;
use jiff::Timestamp;

static LAST: Mutex<Option<(i64, HeaderValue)>> = Mutex::new(None);

/// The current time.
pub(super) fn now() -> HeaderValue {
    at(crate::telemetry::now())
}

fn at(time: Timestamp) -> HeaderValue {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some((second, value)) if *second == time.as_second() => value.clone(),
        _ => {
            let text = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            // The format produces only ASCII.
            let value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
            last.insert((time.as_second(), value)).1.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_an_imf_fixdate() {
        let time = "1994-11-06T08:49:37.9Z".parse().unwrap();
        assert_eq!(at(time), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
