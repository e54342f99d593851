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

/// Reads `log`.
pub(super) fn read(raw: &raw::Log) -> Result<Log, Problem> {
    let formats = [
        ("auto", LogFormat::Auto),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    let accesses = [
        ("off", AccessLevel::Off),
        ("errors", AccessLevel::Errors),
        ("all", AccessLevel::All),
    ];
    Ok(Log {
        format: word(raw.format.as_deref(), &formats).map_err(|problem| problem.at("format"))?,
        access: word(raw.access.as_deref(), &accesses).map_err(|problem| problem.at("access"))?,
    })
}

fn word<T: Copy + Default>(written: Option<&str>, words: &[(&str, T)]) -> Result<T, Problem> {
    written.map_or_else(|| Ok(T::default()), |written| values::word(written, words))
}
