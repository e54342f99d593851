//! `bundlegate generate-key-pair`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::{password, path::path_value, print, print_json};
use crate::sign::KeyPair;

/// Arguments of `generate-key-pair`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Write PREFIX.key and PREFIX.pub; may include a folder.
    #[arg(long, value_name = "PREFIX", default_value = "cosign", value_parser = path_value())]
    output_key_prefix: PathBuf,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct KeyPairReport<'a> {
    private_key: &'a Path,
    public_key: &'a Path,
    identity: String,
}

pub(super) const EXAMPLES: &str = "Example:
  bundlegate generate-key-pair --output-key-prefix release   writes release.key and release.pub";

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (private, public) = (options.file("key"), options.file("pub"));
    if !options.force {
        for file in [&private, &public] {
            // Checked before the password prompt.
            if fs::symlink_metadata(file).is_ok() {
                bail!(
                    "{}: already exists; choose another name with --output-key-prefix",
                    file.display()
                );
            }
        }
    }
    let password = password::for_new_key_file(&private)?;
    let pair = KeyPair::generate()?;
    options.write(&private, &pair.to_key_file(password.as_bytes())?, 0o600)?;
    options
        .write(&public, pair.public_pem(), 0o644)
        .inspect_err(|_| {
            // A leftover private key would block the next attempt. With --force the old key is gone
            // already.
            if !options.force {
                let _ = fs::remove_file(&private);
            }
        })?;
    if options.json {
        return print_json(&KeyPairReport {
            private_key: &private,
            public_key: &public,
            identity: pair.identity(),
        });
    }
    print(&format!(
        "private key: {}\npublic key: {} ({})",
        private.display(),
        public.display(),
        pair.identity()
    ))
}

impl Options {
    fn file(&self, ending: &str) -> PathBuf {
        let mut name = self.output_key_prefix.clone().into_os_string();
        name.push(format!(".{ending}"));
        name.into()
    }

    /// Writes the file atomically. Overwrites only with `--force`.
    fn write(&self, file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
        let failed = || format!("write {}", file.display());
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let mut temporary = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        temporary.write_all(text.as_bytes()).with_context(failed)?;
        temporary
            .as_file()
            .set_permissions(fs::Permissions::from_mode(mode))
            .with_context(failed)?;
        temporary.as_file().sync_all().with_context(failed)?;
        let persisted = if self.force {
            temporary.persist(file)
        } else {
            temporary.persist_noclobber(file)
        };
        persisted
            .map_err(|error| error.error)
            .with_context(failed)?;
        Ok(())
    }
}
