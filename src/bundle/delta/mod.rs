//! Delta bundles: what changes the data of one bundle into that of another (`activateDeltaBundles` in OPA's
//! `v1/bundle/store.go`).
//!
//! A delta changes data only. The two bundles are read as canonical text, compared, and the operations are written
//! as OPA reads them. Then the written bytes are read again and applied to the base: only a delta whose result is
//! the target, byte for byte, is used ([`apply`]).

mod apply;
mod canonical;
mod diff;
mod parts;
mod scan;
mod work;

use std::{io, sync::Arc};

use tokio::time::Instant;

use self::{
    apply::apply,
    canonical::{canonical, write_string},
    diff::{Action, Operation, operations},
    parts::Parts,
    work::Work,
};
use super::{Bundle, BundleManifest, paths::base, tarball::Output};
use crate::oci::{Blob, BlobSpace};

/// The limits of a delta.
#[derive(Debug, Clone, Copy)]
pub struct DeltaLimits {
    /// Bytes of memory that computing may take.
    pub memory: u64,
    /// When computing is given up.
    pub deadline: Instant,
    /// The largest size of a delta, as a part of that of the bundle.
    pub ratio: f64,
}

/// How a bundle differs from an earlier one, for an OPA.
#[derive(Debug, Clone)]
pub enum Difference {
    /// Not at all.
    None,
    /// In its data: this delta bundle changes the earlier one into it, which was proved.
    Delta(Blob),
}

/// Why there is no delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoDelta {
    /// Policies, YAML data, or the Rego versions of the manifest have changed.
    #[error("more than JSON data has changed")]
    Policy,
    /// Versions or stores of OPA read a data file differently: one in a folder whose name a URL would escape, one that
    /// is `null`, or files that overlap.
    #[error("OPAs read a data file differently")]
    Files,
    /// The roots of the manifest have changed.
    #[error("the roots have changed")]
    Roots,
    /// OPA refuses a delta of a bundle whose manifest names WebAssembly modules.
    #[error("a bundle with WebAssembly can't be changed by a delta")]
    Wasm,
    /// The bundle has signatures of OPA's own format, which a delta can't have.
    #[error("a bundle with OPA signatures can't be changed by a delta")]
    Signed,
    /// The revision or the metadata has changed, and no data: OPA takes a delta without operations for an empty
    /// bundle.
    #[error("only the manifest has changed")]
    ManifestOnly,
    /// It has more operations than OPA can be expected to apply quickly.
    #[error("too many changes")]
    TooManyChanges,
    /// No operation can express a change at its place, or only one that OPA takes long to apply.
    #[error("a change that a patch can't express")]
    Inexpressible,
    /// It is larger than the configured part of the bundle.
    #[error("larger than delta.ratio of the bundle")]
    TooLarge,
    /// Computing takes more memory than configured.
    #[error("computing takes more than delta.memory")]
    Memory,
    /// Computing takes too long.
    #[error("computing takes too long")]
    Time,
    /// The data can't be read again.
    #[error("the data can't be compared")]
    Data,
    /// Its application to the earlier bundle has another result. This would be a bug.
    #[error("the delta does not lead to the new version; please report this")]
    NotProved,
    /// It can't be written.
    #[error("the delta can't be written to memory or disk")]
    Disk,
}

impl NoDelta {
    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Files => "files",
            Self::Roots => "roots",
            Self::Wasm => "wasm",
            Self::Signed => "signed",
            Self::ManifestOnly => "manifest",
            Self::TooManyChanges => "changes",
            Self::Inexpressible => "inexpressible",
            Self::TooLarge => "size",
            Self::Memory => "memory",
            Self::Time => "time",
            Self::Data => "data",
            Self::NotProved => "not_proved",
            Self::Disk => "disk",
        }
    }
}

impl Difference {
    /// Compares two bundles. Blocks: about a second for 20 MiB of data in each of them, until the deadline.
    ///
    /// # Errors
    /// Why only the whole of `target` will do.
    pub fn between(
        base: &Bundle,
        target: &Bundle,
        limits: &DeltaLimits,
        space: Arc<dyn BlobSpace>,
    ) -> Result<Self, NoDelta> {
        check_manifests(base.manifest(), target.manifest())?;
        // OPA compares roots with paths as they are written.
        let has_escape = |root: &String| root.contains(['~', '%']);
        if target.manifest().roots.iter().any(has_escape) {
            return Err(NoDelta::Inexpressible);
        }
        let work = Work::new(limits.memory, limits.deadline);
        let [base_parts, parts] = [base, target].map(|bundle| Parts::of(bundle, &work));
        let (base, parts) = (base_parts?, parts?);
        if base.unchangeable != parts.unchangeable {
            return Err(NoDelta::Policy);
        }
        let operations = operations(&base.data, &parts.data, &work)?;
        if operations.is_empty() {
            return match has_same_manifest(&base, &parts, &work) {
                true => Ok(Self::None),
                false => Err(NoDelta::ManifestOnly),
            };
        }
        for operation in &operations {
            if !target.manifest().owns(operation.path.trim_matches('/')) {
                return Err(NoDelta::Inexpressible);
            }
            if parts.has_yaml_at(&operation.path) {
                return Err(NoDelta::Policy);
            }
        }
        let patch = patch_of(&operations);
        work.keep(patch.len())?;
        prove(&patch, &base.data, &parts.data, &work)?;
        let blob = write(parts.manifest.as_ref(), &patch, space).map_err(|_| NoDelta::Disk)?;
        let allowed = target.blob().size() as f64 * limits.ratio;
        if blob.size() as f64 > allowed {
            return Err(NoDelta::TooLarge);
        }
        Ok(Self::Delta(blob))
    }
}

fn check_manifests(base: &BundleManifest, target: &BundleManifest) -> Result<(), NoDelta> {
    let sorted = |manifest: &BundleManifest| {
        let mut roots = manifest.roots.clone();
        roots.sort_unstable();
        roots
    };
    if sorted(base) != sorted(target) {
        return Err(NoDelta::Roots);
    }
    let has_same_versions = base.rego_version == target.rego_version
        && base.file_rego_versions == target.file_rego_versions;
    has_same_versions.then_some(()).ok_or(NoDelta::Policy)
}

/// Whether OPA would store the same manifest.
fn has_same_manifest(base: &Parts, target: &Parts, work: &Work) -> bool {
    let text = |parts: &Parts| {
        let (_, bytes) = parts.manifest.as_ref()?;
        canonical(bytes.as_slice(), work).ok()
    };
    match (&base.manifest, &target.manifest) {
        (None, None) => true,
        (Some(_), Some(_)) => text(base).is_some_and(|one| Some(one) == text(target)),
        _ => false,
    }
}

/// A `patch.json` (`Patch` in `v1/bundle/bundle.go`).
fn patch_of(operations: &[Operation<'_>]) -> Vec<u8> {
    let mut text = b"{\"data\":[".to_vec();
    for (at, operation) in operations.iter().enumerate() {
        let action = match operation.action {
            Action::Upsert => "upsert",
            Action::Replace => "replace",
            Action::Remove => "remove",
        };
        if at > 0 {
            text.push(b',');
        }
        text.extend_from_slice(format!("{{\"op\":\"{action}\",\"path\":").as_bytes());
        write_string(&mut text, &operation.path);
        if operation.action != Action::Remove {
            text.extend_from_slice(b",\"value\":");
            text.extend_from_slice(operation.value);
        }
        text.push(b'}');
    }
    text.extend_from_slice(b"]}");
    text
}

/// Applies the patch, as it is written, to the base.
fn prove(patch: &[u8], base: &[u8], target: &[u8], work: &Work) -> Result<(), NoDelta> {
    let patch = canonical(patch, work)?;
    work.keep(target.len())?;
    let applied = apply(&patch, base, work)?;
    work.release(target.len());
    (applied == target).then_some(()).ok_or(NoDelta::NotProved)
}

/// Writes the tarball: the manifest of the target, since OPA stores that of a delta, and the patch.
fn write(
    manifest: Option<&(String, Vec<u8>)>,
    patch: &[u8],
    space: Arc<dyn BlobSpace>,
) -> io::Result<Blob> {
    let mut tarball = Output::to(space).tarball();
    if let Some((name, bytes)) = manifest {
        tarball.add(base(name), bytes.len() as u64, bytes.as_slice())?;
    }
    tarball.add("patch.json", patch.len() as u64, patch)?;
    tarball.finish()
}

/// The patch between two documents, which was proved.
#[cfg(fuzzing)]
pub(super) fn proved_patch(base: &[u8], target: &[u8]) -> Result<Vec<u8>, NoDelta> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    let work = Work::new(64 << 20, deadline);
    let text = |document| {
        let text = canonical(document, &work);
        text.map(|text| canonical::mounted(text, &["root".to_owned()]))
    };
    let (base, target) = (text(base)?, text(target)?);
    let patch = patch_of(&operations(&base, &target, &work)?);
    prove(&patch, &base, &target, &work)?;
    Ok(patch)
}

#[cfg(test)]
mod tests;
