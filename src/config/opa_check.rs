//! `opa_check` and `bundles.NAME.opa_check`: the real `opa` on a bundle before it is published.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{files::Base, problem::Problem, raw};
use crate::opa_check::Options;

/// What is written at one place. Each key that a bundle leaves out has the value at the top
/// level.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    program: Option<PathBuf>,
    tests: Option<bool>,
    timeout: Option<Duration>,
}

/// Reads the top level; `None` without a check.
pub(super) fn read(raw: Option<raw::OpaCheck>, base: Base<'_>) -> Result<Option<Written>, Problem> {
    raw.map_or(Ok(None), |raw| written(raw, base))
}

/// How one bundle is checked; `None` where it is not.
pub(super) fn of_bundle(
    raw: Option<raw::OpaCheck>,
    default: Option<&Written>,
    base: Base<'_>,
) -> Result<Option<Options>, Problem> {
    let Some(raw) = raw else { return Ok(default.cloned().map(|default| default.or(None))) };
    Ok(written(raw, base)?.map(|own| own.or(default)))
}

impl Written {
    fn or(self, other: Option<&Self>) -> Options {
        let default = Options::default();
        Options {
            program: self.program.or_else(|| other?.program.clone()).unwrap_or(default.program),
            tests: self.tests.or_else(|| other?.tests).unwrap_or(default.tests),
            timeout: self.timeout.or_else(|| other?.timeout).unwrap_or(default.timeout),
        }
    }
}

fn written(raw: raw::OpaCheck, base: Base<'_>) -> Result<Option<Written>, Problem> {
    let raw = match raw {
        raw::OpaCheck::Word(word) if word == "none" => return Ok(None),
        raw::OpaCheck::Word(word) => {
            return Err(Problem::new(format!("{word:?} is not `none`; write that, or keys such as {{ opa: opa }}")));
        }
        raw::OpaCheck::Keys(raw) => raw,
    };
    let timeout = raw.timeout.map(|time| time.at_least(LEAST, "30s").and_then(|_| time.at_most(MOST, WHY)));
    Ok(Some(Written {
        program: raw.opa.map(|opa| program(&opa, base)).transpose().map_err(|problem| problem.at("opa"))?,
        tests: raw.tests,
        timeout: timeout.transpose().map_err(|problem| problem.at("timeout"))?,
    }))
}

/// A name is looked for in `PATH` at the start; a path begins at the configuration.
fn program(opa: &Path, base: Base<'_>) -> Result<PathBuf, Problem> {
    let path = base.path(opa)?;
    let is_name = opa.as_os_str().as_encoded_bytes().iter().all(|byte| *byte != b'/');
    Ok(if is_name { opa.to_owned() } else { path })
}

const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(600);
const WHY: &str = "no new version is published while one is checked";
