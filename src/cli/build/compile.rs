//! Letting a real opa compile.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{super::opa::OpaChoice, with_way_out};
use crate::bundle::{Folder, PackOptions, Packed, RegoVersion};

/// What is left to a real opa.
#[derive(Debug, Args)]
pub(super) struct Compiler {
    /// Let a real opa compile: the one in PATH, or --opa=PROGRAM. Without this, --opa=auto: an opa
    /// 1.0 or newer in PATH loads the bundle, and what it can't load is not built; --opa=none:
    /// only the built-in checks.
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "opa")]
    opa: Option<OpaChoice>,
    /// opa's level of optimisation.
    #[arg(short = 'O', long, value_name = "LEVEL", requires = "opa", value_parser = clap::value_parser!(u8).range(0..=2))]
    optimize: Option<u8>,
    /// A rule that will be asked for, such as authz/allow; repeatable.
    #[arg(short, long, value_name = "RULE", requires = "opa")]
    entrypoint: Vec<String>,
    /// What opa compiles to.
    #[arg(long, value_name = "TARGET", requires = "opa", value_parser = ["rego", "wasm", "plan"])]
    target: Option<String>,
}

impl Compiler {
    /// Whether opa is to compile, and not only to load what was packed.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.opa, Some(OpaChoice::Program(_))) || self.needs_opa()
    }

    /// The opa that loads what was packed. What opa has compiled need not be loaded by the same
    /// program: it may be an older one, or one without WebAssembly.
    pub(super) fn check(&self) -> OpaChoice {
        if self.is_wanted() { OpaChoice::None } else { self.opa.clone().unwrap_or_default() }
    }

    fn needs_opa(&self) -> bool {
        self.optimize.is_some() || !self.entrypoint.is_empty() || self.target.is_some()
    }

    fn program(&self) -> anyhow::Result<&Path> {
        match &self.opa {
            Some(OpaChoice::Program(program)) => Ok(program),
            Some(OpaChoice::None) => bail!("--opa=none: -O, -e and --target need an opa; leave it out"),
            Some(OpaChoice::Auto) | None => Ok(Path::new("opa")),
        }
    }

    /// Compiles what the folders hold, and packs what comes out as everything else is
    /// packed: opa's own tarballs differ between its versions.
    pub(super) fn compile(&self, sources: &Folder, how: &PackOptions) -> anyhow::Result<Packed> {
        // What opa gets is what would be packed without it: the same files, links followed,
        // nothing ignored among them.
        let given = sources.pack(how).map_err(with_way_out)?;
        let room = tempfile::tempdir().context("temporary folder")?;
        let (before, after) = (room.path().join("before"), room.path().join("after"));
        unpack(given.bundle.blob().reader(), &before)?;
        let tarball = room.path().join("bundle.tar.gz");
        self.call(sources, how, &before, &tarball)?;
        unpack(fs::File::open(&tarball).context("opa build wrote no bundle")?, &after)?;
        let compiled = Folder::read(&after)?.with_revision(sources.revision().as_deref());
        compiled.pack(how).map_err(with_way_out)
    }

    fn call(&self, sources: &Folder, how: &PackOptions, folder: &Path, output: &Path) -> anyhow::Result<()> {
        let program = self.program()?;
        let is_v0 = how.rego_version == Some(RegoVersion::V0) || sources.is_v0();
        let mut command = Command::new(found_from_here(program)?);
        command.args(["build", "--bundle", ".", if is_v0 { "--v0-compatible" } else { "--v1-compatible" }]);
        command.arg("--output").arg(output).args(self.arguments()).current_dir(folder).stdin(Stdio::null());
        let ended = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("{}: no such program; install opa, or name it with --opa=PROGRAM", program.display())
            }
            _ => anyhow::anyhow!("{}: {error}", program.display()),
        })?;
        if !ended.status.success() {
            // Some of its versions complain on the one stream, some on the other.
            let said = [ended.stderr, ended.stdout].concat();
            let said = String::from_utf8_lossy(&said);
            let said: Vec<_> = said.split_whitespace().collect();
            bail!("opa build: {}", said.join(" ").trim_start_matches("error: "));
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut flag = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        if let Some(level) = self.optimize {
            flag("--optimize", &level.to_string());
        }
        if let Some(target) = &self.target {
            flag("--target", target);
        }
        self.entrypoint.iter().for_each(|rule| flag("--entrypoint", rule));
        arguments
    }
}

/// A program by a relative path is not relative to where it is made to work.
fn found_from_here(program: &Path) -> anyhow::Result<PathBuf> {
    if program.components().count() == 1 {
        return Ok(program.to_owned());
    }
    Ok(std::path::absolute(program)?)
}

fn unpack(tarball: impl io::Read, folder: &Path) -> anyhow::Result<()> {
    tar::Archive::new(flate2::read::GzDecoder::new(tarball)).unpack(folder).context("temporary folder")
}
