//! Compiles policy with `opa build`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{super::opa::OpaChoice, with_hint};
use crate::bundle::{Folder, PackOptions, Packed, RegoVersion};

/// Arguments for opa.
#[derive(Debug, Args)]
pub(super) struct Compiler {
    /// Compile with opa: the one in PATH, or --opa=PROGRAM. Default, --opa=auto: an opa 1.0 or
    /// newer in PATH loads the bundle, and a bundle that it can't load is not built. --opa=none:
    /// only the built-in checks.
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "opa")]
    opa: Option<OpaChoice>,
    /// Optimisation level of opa.
    #[arg(short = 'O', long, value_name = "LEVEL", requires = "opa", value_parser = clap::value_parser!(u8).range(0..=2))]
    optimize: Option<u8>,
    /// Rule that will be queried, such as authz/allow; repeatable.
    #[arg(short, long, value_name = "RULE", requires = "opa")]
    entrypoint: Vec<String>,
    /// Compilation target of opa.
    #[arg(long, value_name = "TARGET", requires = "opa", value_parser = ["rego", "wasm", "plan"])]
    target: Option<String>,
}

impl Compiler {
    /// Whether opa compiles the policy, instead of only loading the packed bundle.
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.opa, Some(OpaChoice::Program(_))) || self.needs_opa()
    }

    /// The opa that loads the packed bundle. Compiled bundles are not loaded: the compiling opa may
    /// be an old one, or one without WebAssembly.
    pub(super) fn check(&self) -> OpaChoice {
        if self.is_requested() {
            OpaChoice::None
        } else {
            self.opa.clone().unwrap_or_default()
        }
    }

    fn needs_opa(&self) -> bool {
        self.optimize.is_some() || !self.entrypoint.is_empty() || self.target.is_some()
    }

    fn program(&self) -> anyhow::Result<&Path> {
        match &self.opa {
            Some(OpaChoice::Program(program)) => Ok(program),
            Some(OpaChoice::None) => {
                bail!("--opa=none: -O, -e and --target need an opa; omit --opa=none")
            }
            Some(OpaChoice::Auto) | None => Ok(Path::new("opa")),
        }
    }

    /// Compiles the folders, and repacks the result: the tarballs of `opa build` differ between opa
    /// versions.
    pub(super) fn compile(&self, sources: &Folder, how: &PackOptions) -> anyhow::Result<Packed> {
        // opa gets exactly the files that would be packed without it: links resolved, ignored
        // files left out.
        let given = sources.pack(how).map_err(with_hint)?;
        let temporary = tempfile::tempdir().context("temporary folder")?;
        let (before, after) = (
            temporary.path().join("before"),
            temporary.path().join("after"),
        );
        unpack(given.bundle.blob().reader(), &before)?;
        let tarball = temporary.path().join("bundle.tar.gz");
        self.run_opa(sources, how, &before, &tarball)?;
        unpack(
            fs::File::open(&tarball).context("opa build wrote no bundle")?,
            &after,
        )?;
        let compiled =
            Folder::read(&after, &how.limits)?.with_revision(sources.revision().as_deref());
        compiled.pack(how).map_err(with_hint)
    }

    fn run_opa(
        &self,
        sources: &Folder,
        how: &PackOptions,
        folder: &Path,
        output: &Path,
    ) -> anyhow::Result<()> {
        let program = self.program()?;
        let is_v0 = how.rego_version == Some(RegoVersion::V0) || sources.is_v0();
        let mut command = Command::new(absolute_program(program)?);
        command.args([
            "build",
            "--bundle",
            ".",
            if is_v0 {
                "--v0-compatible"
            } else {
                "--v1-compatible"
            },
        ]);
        command
            .arg("--output")
            .arg(output)
            .args(self.arguments())
            .current_dir(folder)
            .stdin(Stdio::null());
        let ended = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!(
                    "{}: no such program; install opa, or name it with --opa=PROGRAM",
                    program.display()
                )
            }
            _ => anyhow::anyhow!("{}: {error}", program.display()),
        })?;
        if !ended.status.success() {
            // Some versions of opa print errors on stderr, some on stdout.
            let output = [ended.stderr, ended.stdout].concat();
            let output = String::from_utf8_lossy(&output);
            let output: Vec<_> = output.split_whitespace().collect();
            bail!(
                "opa build: {}",
                output.join(" ").trim_start_matches("error: ")
            );
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut flag =
            |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        if let Some(level) = self.optimize {
            flag("--optimize", &level.to_string());
        }
        if let Some(target) = &self.target {
            flag("--target", target);
        }
        self.entrypoint
            .iter()
            .for_each(|rule| flag("--entrypoint", rule));
        arguments
    }
}

/// Makes a relative path absolute: opa runs in another working directory.
fn absolute_program(program: &Path) -> anyhow::Result<PathBuf> {
    if program.components().count() == 1 {
        return Ok(program.to_owned());
    }
    Ok(std::path::absolute(program)?)
}

fn unpack(tarball: impl io::Read, folder: &Path) -> anyhow::Result<()> {
    tar::Archive::new(flate2::read::GzDecoder::new(tarball))
        .unpack(folder)
        .context("temporary folder")
}
