//! `bundlegate save`.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    artifact, eprint, interruptible,
    path::path_value,
    print, print_json,
    store_flag::{ImageName, LIMITS, StoreFlag, image_name},
    table,
};
use crate::{
    bundle::{Bundle, Limits},
    config::Size,
};

/// Arguments of `save`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An image in the store, or oci-layout:FOLDER:TAG.
    #[arg(value_name = "REF", value_parser = image_name)]
    reference: ImageName,
    /// Output file; - is standard output.
    #[arg(
        short,
        long,
        visible_short_alias = 'o',
        visible_alias = "output",
        value_name = "FILE",
        default_value = "bundle.tar.gz", value_parser = path_value())]
    file: PathBuf,
    /// For artifacts pushed by conftest: the folder in which `data` begins; default: the common
    /// folder of the policies.
    #[arg(long, value_name = "DIR")]
    data_root: Option<String>,
    /// Maximum size of the bundle.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate save ghcr.io/acme/authz:v1 -f bundle.tar.gz
  bundlegate save ghcr.io/acme/authz:v1 -f - | tar tz

The bundle is written as it was pushed, byte for byte. A folder pushed with oras, the single files
pushed with conftest and the layers of a container image are packed into a bundle first,
reproducibly.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let to_stdout = options.file == Path::new("-");
    if to_stdout && options.json {
        bail!("--json: with -f - standard output is used for the bundle; name a file");
    }
    let store = options.store.clone();
    let name = options.reference.clone();
    let (images, reference) = spawn_blocking(move || -> anyhow::Result<_> {
        let images = store.open()?;
        let reference = name.find(&images)?;
        Ok((images, reference))
    })
    .await??;
    let limits = Limits {
        bundle: options.max_size.bytes(),
        ..LIMITS
    };
    let (found, bundle) = interruptible(async {
        let found = artifact::find_in_store(&images, &reference).await?;
        let plan = found.layer_plan(options.data_root.as_deref())?;
        if let Some(root) = plan.guessed_root() {
            eprint(&format!(
                "assuming that data begins in {root:?}; set it with --data-root"
            ));
        }
        let assembled = found.bytes(&plan, limits).await?;
        anyhow::Ok((found, assembled.blob().clone()))
    })
    .await??;
    let (file, blob) = (options.file.clone(), bundle.clone());
    // Writing to a pipe may block indefinitely and can be interrupted; writing to a file can't.
    let may_wait = to_stdout || options.file.metadata().is_ok_and(|kind| !kind.is_file());
    let writing = spawn_blocking(move || {
        // The bytes are written even if OPA would reject them, with a warning.
        if let Err(error) = Bundle::open(blob.clone(), &limits) {
            eprint(&format!("OPA would not load this: {error}"));
        }
        if to_stdout {
            write_to(&mut io::stdout().lock(), blob.reader()).context("standard output")
        } else {
            replace(&file, blob.reader())
        }
    });
    if may_wait {
        interruptible(writing).await???
    } else {
        writing.await??
    }
    if to_stdout {
        return Ok(());
    }
    let (layer, size, file) = (bundle.digest(), bundle.size(), options.file.display());
    if options.json {
        let reference = found.reference.to_string();
        let report = json!({ "reference": reference, "digest": found.pinned.digest(), "layer": layer,
            "size": size, "file": file.to_string() });
        return print_json(&report);
    }
    print(&format!("{file}: {}, {layer}", table::size(size)))
}

/// Replaces the file atomically. A file that is not regular, such as a pipe, is written in
/// place.
pub(super) fn replace(path: &Path, content: impl Read) -> anyhow::Result<()> {
    let what = || format!("write {}", path.display());
    if path.metadata().is_ok_and(|kind| !kind.is_file()) {
        let mut file = fs::File::options()
            .write(true)
            .open(path)
            .with_context(what)?;
        return write_to(&mut file, content).with_context(what);
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    // Subject to the umask, as for any new file.
    let mode = fs::Permissions::from_mode(0o666);
    let new = tempfile::Builder::new()
        .prefix(".bundlegate-")
        .permissions(mode)
        .tempfile_in(folder);
    let mut new = new.with_context(what)?;
    write_to(new.as_file_mut(), content)
        .and_then(|()| new.as_file().sync_all())
        .with_context(what)?;
    new.persist(path)
        .map(drop)
        .map_err(|error| error.error)
        .with_context(what)
}

fn write_to(out: &mut impl io::Write, mut content: impl Read) -> io::Result<()> {
    io::copy(&mut content, out)?;
    out.flush()
}
