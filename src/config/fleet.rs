//! `fleet`.

use std::{ops::RangeInclusive, time::Duration};

use hyper::header::HeaderName;

use super::{
    problem::Problem,
    raw,
    schema::period,
    values::{Period, Size},
};
use crate::{
    fleet::Options,
    webhooks::{Listener, Webhook},
};

/// Reads all of `fleet`.
pub(super) fn read(raw: raw::Fleet) -> Result<Options, Problem> {
    let default = Options::default();
    let is_enabled = raw.enabled.unwrap_or(default.is_enabled);
    let identity = raw
        .identity
        .map_or(Ok(default.identity), |text| identity(&text));
    let status_limit = raw
        .status
        .limit
        .map_or(Ok(default.status_limit), status_limit);
    let status_rate = number(raw.status.rate, &RATES, default.status_rate);
    let retention = raw.retention.map_or(Ok(default.retention), retention);
    let max_entries = number(raw.max_entries, &ENTRIES, default.max_entries);
    let in_status = |problem: Problem| problem.at("status");
    Ok(Options {
        is_enabled,
        identity: identity.map_err(|problem| problem.at("identity"))?,
        accept_status: is_enabled && raw.status.accept.unwrap_or(default.accept_status),
        status_limit: status_limit.map_err(|problem| in_status(problem.at("limit")))?,
        status_rate: status_rate.map_err(|problem| in_status(problem.at("rate")))?,
        retention: retention.map_err(|problem| problem.at("retention"))?,
        max_entries: max_entries.map_err(|problem| problem.at("max_entries"))?,
    })
}

/// Refuses a webhook that has the path of OPA's status reports. The problem begins below `webhooks`.
pub(super) fn check_webhooks(fleet: &Options, webhooks: &[Webhook]) -> Result<(), Problem> {
    let is_taken = |webhook: &Webhook| {
        let below = webhook.path.strip_prefix(STATUS_PATH);
        webhook.listener == Listener::Data
            && below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    match webhooks.iter().position(is_taken) {
        Some(index) if fleet.accept_status => {
            let message = format!(
                "{STATUS_PATH} and what is below it receive the status reports of OPA; write another \
                 path, or `fleet: {{ status: {{ accept: false }} }}`"
            );
            Err(Problem::new(message).at("path").at_index(index))
        }
        _ => Ok(()),
    }
}

fn identity(text: &str) -> Result<HeaderName, Problem> {
    let name = HeaderName::try_from(text).ok();
    let Some(name) = name.filter(|name| name.as_str().len() <= MAX_NAME_BYTES) else {
        return Err(Problem::new(format!(
            "{text:?} is not the name of a header, of at most {MAX_NAME_BYTES} characters; write one \
             such as {EXAMPLE}"
        )));
    };
    let way = format!(
        "write a header of its own, such as {EXAMPLE}, which OPA sends by `services.NAME.headers`"
    );
    if SECRETS.contains(&name.as_str()) {
        return Err(Problem::new(format!(
            "{text:?} has a secret of the client, and an identity is shown to operators; {way}"
        )));
    }
    if TAKEN.contains(&name.as_str()) {
        return Err(Problem::new(format!(
            "{text:?} names no client: it has another meaning in requests; {way}"
        )));
    }
    Ok(name)
}

fn status_limit(size: Size) -> Result<u64, Problem> {
    let bytes = size.bytes();
    if STATUS_LIMITS.contains(&bytes) {
        return Ok(bytes);
    }
    Err(Problem::new(format!(
        "{bytes} bytes are not between 64KiB and 16MiB; a report of OPA has some 60KiB, so write a size \
         such as 1MiB"
    )))
}

fn retention(time: Period) -> Result<Duration, Problem> {
    let time = time.at_least(MIN_RETENTION, "24h")?;
    if time <= MAX_RETENTION {
        return Ok(time);
    }
    let (this, most) = (period(time), period(MAX_RETENTION));
    Err(Problem::new(format!(
        "{this} is above the maximum of {most} (a client that is gone stays in every count); write {most} or less"
    )))
}

/// A number within its range, or the default.
pub(super) fn number<T>(
    written: Option<u64>,
    range: &RangeInclusive<u64>,
    default: T,
) -> Result<T, Problem>
where
    T: TryFrom<u64>,
{
    let Some(number) = written else {
        return Ok(default);
    };
    let within = range.contains(&number).then(|| T::try_from(number).ok());
    within.flatten().ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        Problem::new(format!(
            "{number} is not between {least} and {most}; write a number in this range"
        ))
    })
}

/// The least and the largest size of a status report, in bytes.
pub(super) const STATUS_LIMITS: RangeInclusive<u64> = 64 << 10..=16 << 20;
/// Status reports a second.
pub(super) const RATES: RangeInclusive<u64> = 1..=100_000;
pub(super) const MIN_RETENTION: Duration = Duration::from_secs(10 * 60);
pub(super) const MAX_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clients, counted once for each of their bundles.
pub(super) const ENTRIES: RangeInclusive<u64> = 1000..=100_000_000;
/// The longest name of a header.
pub(super) const MAX_NAME_BYTES: usize = 64;
/// The default of `fleet.identity`, as it is written. Names of headers are compared without case.
pub(super) const EXAMPLE: &str = "Bundlegate-Client";
/// Headers that have secrets.
pub(super) const SECRETS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];
/// Headers that have a meaning in HTTP, for bundlegate or for proxies.
pub(super) const TAKEN: [&str; 9] = [
    "host",
    "if-none-match",
    "prefer",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "x-forwarded-for",
    "traceparent",
];
/// The path of OPA's Status API on the data listener.
const STATUS_PATH: &str = "/status";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_header() {
        assert_eq!(identity(EXAMPLE).unwrap(), Options::default().identity);
        for text in ["user-agent", "X-Pod", &"a".repeat(MAX_NAME_BYTES)] {
            assert_eq!(identity(text).unwrap().as_str(), text.to_lowercase());
        }
    }

    #[test]
    fn every_limit_belongs_to_its_range() {
        for size in [*STATUS_LIMITS.start(), *STATUS_LIMITS.end()] {
            assert_eq!(status_limit(Size(size)).unwrap(), size);
        }
        for size in [(64 << 10) - 1, (16 << 20) + 1] {
            assert!(status_limit(Size(size)).is_err(), "{size}");
        }
        for time in [MIN_RETENTION, MAX_RETENTION] {
            assert_eq!(retention(Period(time)).unwrap(), time);
        }
        let second = Duration::from_secs(1);
        for time in [MIN_RETENTION - second, MAX_RETENTION + second] {
            assert!(retention(Period(time)).is_err(), "{time:?}");
        }
        for (written, read) in [
            (None, Some(7)),
            (Some(1), Some(1)),
            (Some(100_000), Some(100_000)),
        ] {
            assert_eq!(number::<u32>(written, &RATES, 7).ok(), read);
        }
        for written in [0, 100_001, u64::MAX] {
            assert!(
                number::<u32>(Some(written), &RATES, 7).is_err(),
                "{written}"
            );
        }
    }
}
