//! What a delta depends on in a bundle: its data, and everything else that OPA reads.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    NoDelta,
    canonical::{canonical, merged, mounted},
    diff::push_segment,
    scan::{decoded, members},
    work::Work,
};
use crate::{
    bundle::{
        Bundle, BundleError,
        archive::Entry,
        document::Detail,
        paths::{base, is_data, is_manifest, is_read_by_opa, mount},
    },
    oci::Digest,
};

/// Names at the top of a file that are compared with the folders below it. A file with more has no others below it.
const MAX_NAMES: usize = 1 << 16;

/// The parts of a bundle.
pub(super) struct Parts {
    /// The name of `.manifest` and its bytes.
    pub(super) manifest: Option<(String, Vec<u8>)>,
    /// The names and digests of policies and of YAML data, sorted.
    pub(super) unchangeable: Vec<(String, Digest)>,
    /// The mount points of YAML data, as in the paths of `patch.json`.
    yaml: Vec<String>,
    /// The canonical text of all data.
    pub(super) data: Vec<u8>,
}

impl From<BundleError> for NoDelta {
    /// Opening has proved that the bundle is sound, so its file was lost with the disk.
    fn from(_: BundleError) -> Self {
        Self::Data
    }
}

impl Parts {
    /// Reads a bundle. Blocks.
    ///
    /// # Errors
    /// When OPA signatures in the bundle or WebAssembly exclude deltas, or a limit is exceeded.
    pub(super) fn of(bundle: &Bundle, work: &Work) -> Result<Self, NoDelta> {
        // OPA requires the modules that a manifest names, and refuses a delta with modules.
        if !bundle.manifest().wasm.is_empty() {
            return Err(NoDelta::Wasm);
        }
        let (mut manifest, mut unchangeable) = (None, Vec::new());
        let (mut yaml, mut texts, mut mounts) = (Vec::new(), Vec::new(), Mounts::default());
        bundle.walk(|entry| {
            let name = entry.name().to_owned();
            if base(&name) == ".signatures.json" {
                return Err(NoDelta::Signed);
            }
            if is_data(&name) {
                let (place, text) = (mount(&name), text_of(entry, work)?);
                mounts.add(&place, &text)?;
                texts.push(mounted(text, &place));
                if !name.ends_with(".json") {
                    yaml.push(path_of(&place));
                    unchangeable
                        .push((name, Digest::sha256(texts.last().map_or(b"", |text| text))));
                }
            } else if is_manifest(&name) {
                manifest = Some((name, entry.content()?));
            } else if is_read_by_opa(&name) {
                let content = entry.content()?;
                work.process(content.len())?;
                unchangeable.push((name, Digest::sha256(&content)));
            }
            Ok(())
        })?;
        mounts.check()?;
        unchangeable.sort_unstable();
        Ok(Self {
            manifest,
            unchangeable,
            yaml,
            data: merged(texts, work)?,
        })
    }

    /// Whether an operation at this path of `patch.json` could change YAML data. Versions of OPA read YAML
    /// differently, so only a snapshot can.
    pub(super) fn has_yaml_at(&self, path: &str) -> bool {
        let is_below = |path: &str, above: &str| {
            let rest = path.strip_prefix(above);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let mut mounts = self.yaml.iter();
        mounts.any(|mount| is_below(path, mount) || is_below(mount, path))
    }
}

/// Where data files are mounted, as far as versions and stores of OPA differ in it.
#[derive(Default)]
struct Mounts {
    /// Sorted by mount point: the names at the top of a file's object.
    files: BTreeMap<Vec<String>, BTreeSet<String>>,
}

impl Mounts {
    /// Adds a file with this canonical text.
    fn add(&mut self, mount: &[String], text: &[u8]) -> Result<(), NoDelta> {
        // Of a folder with an escape or with other characters, OPA 0.70 makes another name in memory than on disk.
        // A file with null is skipped by the store in memory, and kept by the one on disk.
        let is_read_alike = mount.iter().all(|segment| segment.bytes().all(is_plain));
        if !is_read_alike || text == b"null" {
            return Err(NoDelta::Files);
        }
        // They matter only if others are mounted below the file, which is known at the end.
        let object = if text.starts_with(b"{") { text } else { b"{}" };
        let names = members(object).map(|(name, _)| decoded(name).into_owned());
        let names = names.take(MAX_NAMES + 1).collect();
        match self.files.insert(mount.to_vec(), names) {
            None => Ok(()),
            Some(_) => Err(NoDelta::Files),
        }
    }

    /// Checks that no file sets what another one sets as well: the store in memory merges them, the one on disk does
    /// not.
    fn check(&self) -> Result<(), NoDelta> {
        for mount in self.files.keys() {
            for length in 0..mount.len() {
                let overlaps = self
                    .files
                    .get(&mount[..length])
                    .is_some_and(|names| names.len() > MAX_NAMES || names.contains(&mount[length]));
                if overlaps {
                    return Err(NoDelta::Files);
                }
            }
        }
        Ok(())
    }
}

/// Whether a byte of a folder's name is the same in a path of a URL (`url.PathEscape` in Go).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+:=@".contains(&byte)
}

/// A mount point as in the paths of `patch.json`.
fn path_of(mount: &[String]) -> String {
    let mut path = String::new();
    for segment in mount {
        push_segment(&mut path, segment);
    }
    path
}

/// The canonical text of a data file.
fn text_of(entry: &mut Entry<'_>, work: &Work) -> Result<Vec<u8>, NoDelta> {
    if entry.name().ends_with(".json") {
        canonical(entry.buffered(), work)
    } else {
        let json = entry.document(Detail::Values)?.to_bytes();
        canonical(json.as_slice(), work)
    }
}
