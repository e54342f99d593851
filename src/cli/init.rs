//! `bundlegate init`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{path::path_value, print, print_json};

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Folder of the project.
    #[arg(default_value = ".", value_parser = path_value())]
    path: PathBuf,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate init authz && bundlegate build authz/policy -t ghcr.io/acme/authz:v1 --test

Writes a policy with a test, and CI files for GitHub and GitLab that test every push. For a
version tag such as v1.0.0 they also build, push, and sign keyless with cosign.";

/// Name and content of each file.
const FILES: [(&str, &str); 6] = [
    ("policy/.manifest", include_str!("init/manifest.json")),
    ("policy/authz.rego", include_str!("init/authz.rego")),
    (
        "policy/authz_test.rego",
        include_str!("init/authz_test.rego"),
    ),
    (
        ".github/workflows/policy.yaml",
        include_str!("init/github.yaml"),
    ),
    (".gitlab-ci.yml", include_str!("init/gitlab.yaml")),
    ("README.md", include_str!("init/readme.md")),
];

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let files: Vec<_> = FILES
        .iter()
        .map(|(name, content)| (options.path.join(name), *content))
        .collect();
    if !options.force {
        // All or nothing: a mix of old and new files would not work.
        let existing: Vec<_> = files
            .iter()
            .filter(|(path, _)| path.symlink_metadata().is_ok())
            .collect();
        if let [(first, _), rest @ ..] = existing.as_slice() {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" and {} more", rest.len())
            };
            bail!(
                "{}{more}: already exists; overwrite with --force, or choose another PATH",
                first.display()
            );
        }
    }
    for (path, content) in &files {
        write(path, content, options.force).with_context(|| format!("write {}", path.display()))?;
    }
    if options.json {
        let names: Vec<_> = files
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        return print_json(&json!({ "files": names }));
    }
    files
        .iter()
        .try_for_each(|(path, _)| print(&path.display().to_string()))
}

fn write(path: &Path, content: &str, force: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if force {
        return fs::write(path, content);
    }
    // Fails if the file was created since the check.
    fs::File::create_new(path)?.write_all(content.as_bytes())
}
