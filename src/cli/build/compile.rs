//! Letting a real opa compile.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Options, with_way_out};
use crate::bundle::{Folder, Ignore, PackOptions, Packed};

/// What is left to a real opa.
#[derive(Debug, Args)]
pub(super) struct Compiler {
    /// Let a real opa check and compile: the one on PATH, or --opa=PROGRAM.
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "opa")]
    opa: Option<PathBuf>,
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
    pub(super) fn is_wanted(&self) -> bool {
        self.opa.is_some()
    }

    /// Compiles what the folders hold, and packs what comes out as everything else is
    /// packed: opa's own tarballs differ between its versions.
    pub(super) fn compile(&self, options: &Options, sources: &Folder, how: &PackOptions) -> anyhow::Result<Packed> {
        let program = self.opa.as_deref().unwrap_or_else(|| Path::new("opa"));
        let room = tempfile::tempdir().context("temporary folder")?;
        let output = room.path().join("bundle.tar.gz");
        let mut command = Command::new(program);
        command.args(self.arguments(options, sources)).arg("--output").arg(&output).args(&options.paths);
        let ended = command.stdin(Stdio::null()).output();
        let ended = ended.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("{}: no such program; install opa, or name it with --opa=PROGRAM", program.display())
            }
            _ => anyhow::anyhow!("{}: {error}", program.display()),
        })?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            let said: Vec<_> = said.split_whitespace().collect();
            bail!("opa build: {}", said.join(" ").trim_start_matches("error: "));
        }
        let unpacked = room.path().join("bundle");
        let file = fs::File::open(&output).context("opa build wrote no bundle")?;
        tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(&unpacked).context("opa build")?;
        Folder::gather(&[unpacked], &Ignore::default())?.pack(how).map_err(with_way_out)
    }

    fn arguments(&self, options: &Options, sources: &Folder) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["build".into(), "--bundle".into()];
        let version = if options.v0_compatible || sources.is_v0() { "--v0-compatible" } else { "--v1-compatible" };
        arguments.push(version.into());
        let mut flag = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
        flag("--ignore", "*_test.rego");
        options.ignore.iter().for_each(|pattern| flag("--ignore", pattern));
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
