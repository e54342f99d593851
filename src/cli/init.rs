//! `bundlegate init`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{say, say_json};

/// How to run `init`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The project's folder.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Replace files that are there already.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate init authz && bundlegate build authz/policy -t ghcr.io/acme/authz:v1 --test

Writes a policy with a test, and CI files for GitHub and GitLab that test, build, push, and
sign keyless with cosign whenever a version tag such as v1.0.0 is pushed.";

/// Name and content of each file.
const FILES: [(&str, &str); 6] = [
    ("policy/.manifest", include_str!("init/manifest.json")),
    ("policy/authz.rego", include_str!("init/authz.rego")),
    ("policy/authz_test.rego", include_str!("init/authz_test.rego")),
    (".github/workflows/policy.yaml", include_str!("init/github.yaml")),
    (".gitlab-ci.yml", include_str!("init/gitlab.yaml")),
    ("README.md", include_str!("init/readme.md")),
];

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let files: Vec<_> = FILES.iter().map(|(name, content)| (options.path.join(name), *content)).collect();
    if !options.force {
        // All or nothing: a project half of which is somebody else's helps nobody.
        let there: Vec<_> = files.iter().filter(|(path, _)| path.symlink_metadata().is_ok()).collect();
        if let [(first, _), rest @ ..] = there.as_slice() {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            bail!("{}{more}: there already; --force replaces, another PATH leaves it alone", first.display());
        }
    }
    for (path, content) in &files {
        write(path, content, options.force).with_context(|| format!("write {}", path.display()))?;
    }
    if options.json {
        let names: Vec<_> = files.iter().map(|(path, _)| path.display().to_string()).collect();
        return say_json(&json!({ "files": names }));
    }
    files.iter().try_for_each(|(path, _)| say(&path.display().to_string()))
}

fn write(path: &Path, content: &str, force: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if force {
        return fs::write(path, content);
    }
    // Not even one that came into being a moment ago.
    fs::File::create_new(path)?.write_all(content.as_bytes())
}
