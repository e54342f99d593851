//! `log`.

use super::{problem::Problem, raw, values};
use crate::{server::AccessLevel, telemetry::LogFormat};

/// `log`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Log {
    /// The format of log lines.
    pub format: LogFormat,
    /// The requests that have a line in the access log.
    pub access: AccessLevel,
}

/// The values of `log.format`.
pub(super) const FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("text", LogFormat::Text),
    ("json", LogFormat::Json),
];
/// The values of `log.access`.
pub(super) const ACCESS_LEVELS: [(&str, AccessLevel); 3] = [
    ("off", AccessLevel::Off),
    ("errors", AccessLevel::Errors),
    ("all", AccessLevel::All),
];

/// Reads `log`.
pub(super) fn read(raw: &raw::Log) -> Result<Log, Problem> {
    let (format, access) = (raw.format.as_deref(), raw.access.as_deref());
    Ok(Log {
        format: word(format, &FORMATS).map_err(|problem| problem.at("format"))?,
        access: word(access, &ACCESS_LEVELS).map_err(|problem| problem.at("access"))?,
    })
}

fn word<T: Copy + Default>(written: Option<&str>, words: &[(&str, T)]) -> Result<T, Problem> {
    written.map_or_else(|| Ok(T::default()), |written| values::word(written, words))
}
