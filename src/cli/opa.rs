//! The real `opa` for `build` and `dev`.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::bail;

use super::tell;
use crate::opa_check::{Checker, Checkers, Opa, Options, Problem, Problems, StartError, find};

/// What `--opa` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum OpaChoice {
    /// The one in PATH, if there is one that works.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// This one, by its name in PATH or by its path.
    Program(PathBuf),
}

impl FromStr for OpaChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            program => Self::Program(program.into()),
        })
    }
}

impl OpaChoice {
    /// What checks with the chosen program. `None` without one; why the one in PATH is of no
    /// use is told.
    pub(super) async fn checker(&self) -> anyhow::Result<Option<Checker>> {
        match self {
            Self::None => Ok(None),
            Self::Auto if find(Path::new("opa")).is_none() => Ok(None),
            Self::Auto => match start(Path::new("opa")).await {
                Ok(checker) => Ok(Some(checker)),
                Err(error) => {
                    tell(&format!("--opa=auto: {error}; going on without it"));
                    Ok(None)
                }
            },
            Self::Program(program) => match start(program).await {
                Ok(checker) => Ok(Some(checker)),
                Err(error @ StartError::TooOld { .. }) => bail!("--opa: {error}; name another, or --opa=none"),
                Err(error) => bail!("--opa: {error}; install opa, name it with --opa=PROGRAM, or --opa=none"),
            },
        }
    }
}

async fn start(program: &Path) -> Result<Checker, StartError> {
    Checkers::default().start(&Options { program: program.to_owned(), ..Options::default() }).await
}

/// Whether a bundle needs what this `opa` was built without.
pub(super) fn lacks_wasm(opa: &Opa, bundle: &crate::bundle::Bundle) -> bool {
    !opa.has_wasm() && !bundle.manifest().wasm.is_empty()
}

/// Problems with the files as their author names them: `policy/a.rego:3: …`.
pub(super) fn located(problems: &Problems, sources: &[PathBuf]) -> String {
    let mut told: Vec<_> = problems.first.iter().map(|problem| located_one(problem, sources)).collect();
    if problems.more > 0 {
        told.push(format!("and {} more", problems.more));
    }
    told.join("; ")
}

/// The same for one.
pub(super) fn located_one(problem: &Problem, sources: &[PathBuf]) -> String {
    match &problem.place {
        Some(place) => {
            let file =
                on_disk(&place.file, sources).map_or_else(|| place.file.clone(), |file| file.display().to_string());
            format!("{file}:{}: {}", place.row, problem.message)
        }
        None => problem.message.clone(),
    }
}

/// The file that became this file of the bundle. Single files lie at its root.
pub(super) fn on_disk(name: &str, sources: &[PathBuf]) -> Option<PathBuf> {
    sources.iter().find_map(|source| {
        let is_it = source.is_file() && source.file_name().is_some_and(|own| own == name);
        let file = if is_it { source.clone() } else { source.join(name) };
        file.is_file().then_some(file)
    })
}
