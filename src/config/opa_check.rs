//! `opa_check` and `bundles.NAME.opa_check`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{files::Base, problem::Problem, raw};
use crate::opa_check::Options;

/// The keys of one `opa_check`. A key that is absent in a bundle has the value of the top level.
#[derive(Debug, Clone, Default)]
pub(super) struct PartialOptions {
    program: Option<PathBuf>,
    tests: Option<bool>,
    timeout: Option<Duration>,
}

/// Reads the top-level key; `None` disables the check.
pub(super) fn read(
    raw: Option<raw::OpaCheck>,
    base: Base<'_>,
) -> Result<Option<PartialOptions>, Problem> {
    raw.map_or(Ok(None), |raw| read_options(raw, base))
}

/// The options for one bundle; `None` disables the check.
pub(super) fn of_bundle(
    raw: Option<raw::OpaCheck>,
    default: Option<&PartialOptions>,
    base: Base<'_>,
) -> Result<Option<Options>, Problem> {
    let Some(raw) = raw else {
        return Ok(default.cloned().map(|default| default.or(None)));
    };
    Ok(read_options(raw, base)?.map(|own| own.or(default)))
}

impl PartialOptions {
    fn or(self, other: Option<&Self>) -> Options {
        let default = Options::default();
        Options {
            program: self
                .program
                .or_else(|| other?.program.clone())
                .unwrap_or(default.program),
            tests: self.tests.or_else(|| other?.tests).unwrap_or(default.tests),
            timeout: self
                .timeout
                .or_else(|| other?.timeout)
                .unwrap_or(default.timeout),
        }
    }
}

fn read_options(raw: raw::OpaCheck, base: Base<'_>) -> Result<Option<PartialOptions>, Problem> {
    let raw = match raw {
        raw::OpaCheck::Keyword(word) if word == raw::NONE => return Ok(None),
        raw::OpaCheck::Keyword(word) => {
            return Err(Problem::new(format!(
                "{word:?} is not `none`; write that, or keys such as {{ opa: opa }}"
            )));
        }
        raw::OpaCheck::Keys(raw) => raw,
    };
    let timeout = raw.timeout.map(|time| {
        time.at_least(MIN_TIMEOUT, "30s")
            .and_then(|_| time.at_most(MAX_TIMEOUT, MAX_TIMEOUT_REASON))
    });
    Ok(Some(PartialOptions {
        program: raw
            .opa
            .map(|opa| program(&opa, base))
            .transpose()
            .map_err(|problem| problem.at("opa"))?,
        tests: raw.tests,
        timeout: timeout
            .transpose()
            .map_err(|problem| problem.at("timeout"))?,
    }))
}

/// A name is searched in `PATH` at start-up; a path is relative to the configuration.
fn program(opa: &Path, base: Base<'_>) -> Result<PathBuf, Problem> {
    let path = base.path(opa)?;
    let is_name = opa
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .all(|byte| *byte != b'/');
    Ok(if is_name { opa.to_owned() } else { path })
}

pub(super) const MIN_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_TIMEOUT_REASON: &str = "no new version is published while one is checked";
