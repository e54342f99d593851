//! What a delta depends on in a bundle: its data, and everything else that OPA reads.

use super::{
    NoDelta,
    canonical::{canonical, merged, mounted},
    diff::push_segment,
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
        let (mut yaml, mut texts) = (Vec::new(), Vec::new());
        bundle.walk(|entry| {
            let name = entry.name().to_owned();
            if base(&name) == ".signatures.json" {
                return Err(NoDelta::Signed);
            }
            if is_data(&name) {
                let (place, text) = (mount(&name), text_of(entry, work)?);
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
