//! The `opa` that `build` and `dev` run.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::bail;

use super::eprint;
use crate::{
    oci::{Tilde, check_tilde},
    opa_check::{Checker, Checkers, Opa, Options, Problem, Problems, StartError, find},
};

/// The value of `--opa`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum OpaChoice {
    /// The opa in PATH, if there is one that works.
    #[default]
    Auto,
    /// Only the built-in checks.
    None,
    /// A program, by its name in PATH or by its path.
    Program(PathBuf),
}

impl FromStr for OpaChoice {
    type Err = Tilde;

    fn from_str(text: &str) -> Result<Self, Tilde> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            program => {
                check_tilde(Path::new(program))?;
                Self::Program(program.into())
            }
        })
    }
}

impl OpaChoice {
    /// Starts a checker with the chosen program. `None` without one; if the opa in PATH cannot be
    /// used, prints the reason.
    pub(super) async fn checker(&self) -> anyhow::Result<Option<Checker>> {
        match self {
            Self::None => Ok(None),
            Self::Auto if find(Path::new("opa")).is_none() => Ok(None),
            Self::Auto => match start(Path::new("opa")).await {
                Ok(checker) => Ok(Some(checker)),
                Err(error) => {
                    eprint(&format!("--opa=auto: {error}; continuing without it"));
                    Ok(None)
                }
            },
            Self::Program(program) => match start(program).await {
                Ok(checker) => Ok(Some(checker)),
                Err(error @ StartError::TooOld { .. }) => {
                    bail!("--opa: {error}; name another one, or use --opa=none")
                }
                Err(error) => bail!(
                    "--opa: {error}; install opa, name it with --opa=PROGRAM, or use --opa=none"
                ),
            },
        }
    }
}

async fn start(program: &Path) -> Result<Checker, StartError> {
    Checkers::default()
        .start(&Options {
            program: program.to_owned(),
            ..Options::default()
        })
        .await
}

/// Whether the bundle has WebAssembly and this `opa` was built without support for it.
pub(super) fn lacks_wasm(opa: &Opa, bundle: &crate::bundle::Bundle) -> bool {
    !opa.has_wasm() && !bundle.manifest().wasm.is_empty()
}

/// The problems as text, with paths of the source files: `policy/a.rego:3: …`.
pub(super) fn describe_problems(problems: &Problems, sources: &[PathBuf]) -> String {
    let mut texts: Vec<_> = problems
        .first
        .iter()
        .map(|problem| describe_problem(problem, sources))
        .collect();
    if problems.more > 0 {
        texts.push(format!("and {} more", problems.more));
    }
    texts.join("; ")
}

/// One problem as text, with the path of the source file.
pub(super) fn describe_problem(problem: &Problem, sources: &[PathBuf]) -> String {
    match &problem.place {
        Some(place) => {
            let file = source_file(&place.file, sources)
                .map_or_else(|| place.file.clone(), |file| file.display().to_string());
            format!("{file}:{}: {}", place.row, problem.message)
        }
        None => problem.message.clone(),
    }
}

/// The source of a file in the bundle. Single source files are at the root of the bundle.
pub(super) fn source_file(name: &str, sources: &[PathBuf]) -> Option<PathBuf> {
    sources.iter().find_map(|source| {
        let is_it = source.is_file() && source.file_name().is_some_and(|own| own == name);
        let file = if is_it {
            source.clone()
        } else {
            source.join(name)
        };
        file.is_file().then_some(file)
    })
}
