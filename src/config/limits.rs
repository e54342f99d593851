//! `limits` and `cache`.

use std::path::PathBuf;

use super::{files::Base, problem::Problem, raw, values::Size};
use crate::{bundle, registry};

/// `limits`. In bytes, except `files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The tarball of a bundle.
    pub bundle: u64,
    /// The uncompressed tar stream of a bundle.
    pub unpacked: u64,
    /// Files in a bundle.
    pub files: u64,
    /// The `.manifest` of a bundle.
    pub bundle_manifest: u64,
    /// An image manifest or index.
    pub manifest: u64,
    /// All signature material of one artifact together.
    pub evidence: u64,
}

/// `cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The cache folder; `None` is memory only.
    pub directory: Option<PathBuf>,
    /// Whether a cache folder that can't be used stops the start. One that is locked by another
    /// process, or on a full disk, never does.
    pub required: bool,
    /// Maximum size on disk, in bytes.
    pub disk: u64,
    /// Maximum size in memory, in bytes.
    pub memory: u64,
}

impl Limits {
    /// The limits of the registry client.
    pub fn read_limits(&self) -> registry::ReadLimits {
        registry::ReadLimits {
            manifest: self.manifest,
            evidence: self.evidence,
            bundle: self.bundle,
        }
    }

    /// The limits for opening a bundle.
    pub fn bundle_limits(&self) -> bundle::Limits {
        bundle::Limits {
            bundle: self.bundle,
            unpacked: self.unpacked,
            files: self.files,
            bundle_manifest: self.bundle_manifest,
        }
    }
}

/// Reads `limits`.
pub(super) fn read(raw: &raw::Limits) -> Result<Limits, Problem> {
    let bytes = |size: Option<Size>, default: u64| size.map_or(default, |size| size.0);
    let files = raw.files.unwrap_or(DEFAULT.files);
    if files == 0 {
        return Err(Problem::new("no bundle would pass; write a number of at least 1").at("files"));
    }
    Ok(Limits {
        bundle: bytes(raw.bundle, DEFAULT.bundle),
        unpacked: bytes(raw.unpacked, DEFAULT.unpacked),
        files,
        bundle_manifest: bytes(raw.bundle_manifest, DEFAULT.bundle_manifest),
        manifest: bytes(raw.manifest, DEFAULT.manifest),
        evidence: bytes(raw.evidence, DEFAULT.evidence),
    })
}

/// Reads `cache`.
pub(super) fn cache(raw: raw::Cache, base: Base<'_>) -> Result<Cache, Problem> {
    if raw.required == Some(true) && raw.directory.is_none() {
        let message = "no folder is required; add `directory`, or remove it";
        return Err(Problem::new(message).at("required"));
    }
    let directory = raw.directory.map(|path| base.path(&path)).transpose();
    Ok(Cache {
        required: raw.required.unwrap_or(REQUIRED),
        directory: directory.map_err(|problem| problem.at("directory"))?,
        disk: raw.disk.map_or(DISK, |size| size.0),
        memory: raw.memory.map_or(MEMORY, |size| size.0),
    })
}

/// The limits that apply where the configuration has none.
pub(super) const DEFAULT: Limits = Limits {
    bundle: 64 << 20,
    unpacked: 512 << 20,
    files: 20_000,
    bundle_manifest: 1 << 20,
    manifest: 4 << 20,
    evidence: 16 << 20,
};
pub(super) const REQUIRED: bool = true;
/// The default of `cache.disk`, in bytes.
pub(super) const DISK: u64 = 10 << 30;
/// The default of `cache.memory`, in bytes.
pub(super) const MEMORY: u64 = 512 << 20;
