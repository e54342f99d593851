//! A policy folder or a bundle file on this machine in the place of an artifact.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};

use super::{
    diagnostics::SourceErrors,
    store_flag::{Stored, stored},
    table,
};
use crate::{
    bundle::{Bundle, Folder, Ignore, Limits, PackOptions, Parse},
    oci::{NewBlob, open_regular},
};

/// What a verb looks into: an artifact of the store or of a registry, or something on disk.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    Artifact(Stored),
    Path(PathBuf),
}

impl FromStr for Subject {
    type Err = String;

    /// A path begins with `/`, `./` or `../`, or is there and no reference.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = Path::new(text);
        if text.starts_with(['/', '.']) {
            return Ok(Self::Path(path.to_owned()));
        }
        match stored(text) {
            Err(_) if path.exists() => Ok(Self::Path(path.to_owned())),
            // A folder may be called like the beginning of a digest.
            Ok(Stored::Digest { .. }) if path.exists() => Ok(Self::Path(path.to_owned())),
            Ok(stored) => Ok(Self::Artifact(stored)),
            Err(sentence) => Err(format!("{sentence}; nor is there a file or folder of this name")),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(stored) => stored.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// The bundle that a folder, a single Rego or data file, or a tarball makes. Blocks.
pub(super) fn bundle(path: &Path, limits: Limits, parse: Parse) -> anyhow::Result<Bundle> {
    let name = path.display();
    if path.join("oci-layout").exists() {
        bail!("{name}: it is an OCI image layout; write oci-layout:{name}");
    }
    let is_source = path.extension().is_some_and(|end| end == "rego" || end == "json" || end == "yaml");
    if path.is_dir() || is_source {
        let packed = Folder::gather(&[path.to_owned()], &Ignore::default())
            .and_then(|folder| folder.pack(&PackOptions { parse, ..PackOptions::new(limits) }));
        let packed = packed.map_err(|error| {
            SourceErrors::of(error, "if only the built-in parser can't read it, ask the real opa (opa eval -d)")
        })?;
        return Ok(packed.bundle);
    }
    let mut file = open_regular(path).with_context(|| name.to_string())?;
    let size = file.metadata().with_context(|| name.to_string())?.len();
    if size > limits.bundle {
        bail!("{name}: {} are more than --max-size allows ({})", table::size(size), table::size(limits.bundle));
    }
    let mut blob = NewBlob::create();
    io::copy(&mut file, &mut blob).with_context(|| name.to_string())?;
    Bundle::open(blob.finish(), &limits).with_context(|| name.to_string())
}
