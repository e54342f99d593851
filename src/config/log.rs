//! `log`.

use serde_json::Value;

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
    let format = raw
        .format
        .as_deref()
        .map(|word| values::word(word, &FORMATS));
    let access = raw.access.as_ref().map(access);
    Ok(Log {
        format: format
            .transpose()
            .map_err(|problem| problem.at("format"))?
            .unwrap_or_default(),
        access: access
            .transpose()
            .map_err(|problem| problem.at("access"))?
            .unwrap_or_default(),
    })
}

/// Reads the level of the access log. In YAML 1.1, which Helm and others write, `off` is the boolean
/// `false`.
fn access(raw::Scalar(written): &raw::Scalar) -> Result<AccessLevel, Problem> {
    match written {
        Value::Bool(false) => Ok(AccessLevel::Off),
        Value::String(word) => values::word(word, &ACCESS_LEVELS),
        other => values::word(&other.to_string(), &ACCESS_LEVELS),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn off_may_be_a_boolean_and_nothing_else_may() {
        let read = |value: Value| access(&raw::Scalar(value)).ok();
        assert_eq!(read(json!("off")), Some(AccessLevel::Off));
        assert_eq!(read(json!(false)), Some(AccessLevel::Off));
        assert_eq!(read(json!("all")), Some(AccessLevel::All));
        for refused in [json!(true), json!(0), json!("on"), json!("")] {
            assert_eq!(read(refused.clone()), None, "{refused}");
        }
    }
}
