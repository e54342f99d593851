//! Arguments that name an artifact, or a policy folder or bundle file on this machine.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};

use super::{
    diagnostics::SourceErrors,
    store_flag::{ImageName, image_name},
    table,
};
use crate::{
    bundle::{Bundle, Folder, Ignore, Limits, PackOptions, Parse},
    oci::{NewBlob, check_tilde, open_regular},
};

/// An artifact in the store or in a registry, or a path on disk.
#[derive(Debug, Clone)]
pub(super) enum ArtifactOrPath {
    Artifact(ImageName),
    Path(PathBuf),
}

impl FromStr for ArtifactOrPath {
    type Err = String;

    /// Parses a path if the text begins with `/` or `.`, or if it is no reference and the path
    /// exists.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = Path::new(text);
        check_tilde(path).map_err(|error| error.to_string())?;
        if text.starts_with(['/', '.']) {
            return Ok(Self::Path(path.to_owned()));
        }
        match image_name(text) {
            Err(_) if path.exists() => Ok(Self::Path(path.to_owned())),
            // The name of a folder may look like a digest prefix.
            Ok(ImageName::Digest { .. }) if path.exists() => Ok(Self::Path(path.to_owned())),
            Ok(image_name) => Ok(Self::Artifact(image_name)),
            Err(message) => Err(format!("{message}; and no file or folder has this name")),
        }
    }
}

impl fmt::Display for ArtifactOrPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(image_name) => image_name.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// The bundle in a tarball, or built from a folder or a single Rego or data file. Blocks.
pub(super) fn bundle(path: &Path, limits: Limits, parse: Parse) -> anyhow::Result<Bundle> {
    let name = path.display();
    if path.join("oci-layout").exists() {
        bail!("{name}: this is an OCI image layout; write oci-layout:{name}");
    }
    let is_source = path
        .extension()
        .is_some_and(|end| end == "rego" || end == "json" || end == "yaml");
    if path.is_dir() || is_source {
        let packed =
            Folder::gather(&[path.to_owned()], &Ignore::default(), &limits).and_then(|folder| {
                folder.pack(&PackOptions {
                    parse,
                    ..PackOptions::new(limits)
                })
            });
        let packed = packed.map_err(|error| {
            SourceErrors::of(
                error,
                "if only the built-in parser can't read it, use opa (opa eval -d)",
            )
        })?;
        return Ok(packed.bundle);
    }
    let mut file = open_regular(path).with_context(|| name.to_string())?;
    let size = file.metadata().with_context(|| name.to_string())?.len();
    if size > limits.bundle {
        bail!(
            "{name}: {} exceeds --max-size ({})",
            table::size(size),
            table::size(limits.bundle)
        );
    }
    let mut blob = NewBlob::create();
    io::copy(&mut file, &mut blob).with_context(|| name.to_string())?;
    let blob = blob.finish().with_context(|| name.to_string())?;
    Bundle::open(blob, &limits).with_context(|| name.to_string())
}
