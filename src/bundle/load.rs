//! Checks whether OPA loads a bundle: everything that its bundle reader and its store refuse before
//! Rego is compiled (`Reader.Read` and `Manifest.validateAndInjectDefaults` in
//! `v1/bundle/bundle.go`, `writeData` in `v1/bundle/store.go`, of OPA 1.22).
//!
//! These checks are stricter than OPA's on purpose:
//! - Links, devices, names that lead out of the bundle or are longer than 4096 bytes, and sizes
//!   that are stated twice or by a folder are refused, because other programs that unpack the same
//!   bytes may find other files.
//! - Delta bundles are refused, because they bypass OPA's signatures before 1.21.3.
//! - Manifests in protobuf are refused, because OPA before 1.22 ignores them, so OPAs of different
//!   versions would see different roots.
//!
//! These checks are more lenient than OPA's: of Rego only the package is read, so syntax errors and
//! rules that conflict with data are not found here; `opa_check` leaves them to a real OPA. OPA's
//! own signatures and WebAssembly are left to the OPA that has the keys and the engine.

use std::{collections::HashSet, io::Read};

use super::{
    BundleError, BundleManifest, Limits,
    archive::{Entry, walk, walk_stream},
    document::{Collision, Detail, Document},
    manifest::SignatureFile,
    package::{Declaration, declaration},
    paths::{base, data_path, is_data, is_manifest, mount},
};
use crate::oci::Blob;

/// The maximum size of `.signatures.json`, which has a digest of each file, in base64.
const MAX_SIGNATURES_BYTES: u64 = 16 << 20;
/// The number of bytes of a Rego file in which its package is searched, after comments.
const DECLARATION_BYTES: u64 = 1 << 20;

/// Reads a tarball to its end, and a second time if it has data: data can be checked only once the
/// manifest and all names are known.
///
/// # Errors
/// When OPA would refuse the bundle, or a limit is exceeded.
pub(super) fn load(blob: &Blob, limits: &Limits) -> Result<BundleManifest, BundleError> {
    let mut listing = Listing::new(limits);
    walk(blob, limits, |entry| listing.add(entry))?;
    let (manifest, data) = listing.finish()?;
    if !data.is_empty() {
        let mut check = DataCheck::new(&manifest, &data);
        walk(blob, limits, |entry| check.add_data(entry))?;
    }
    Ok(manifest)
}

/// What is known of a bundle before its tar stream is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    /// Its manifest; the revision does not matter.
    pub(super) manifest: &'a BundleManifest,
    /// The names of its data files.
    pub(super) data: &'a [String],
}

/// As [`load`], in one pass over a tar stream that is being written.
///
/// # Errors
/// The same as [`load`] of the tarball.
pub(super) fn load_stream(
    stream: impl Read,
    limits: &Limits,
    expected: Expected<'_>,
) -> Result<BundleManifest, BundleError> {
    let mut listing = Listing::new(limits);
    let mut check = DataCheck::new(expected.manifest, expected.data);
    // Reported last, as by a second pass.
    let mut refused = None;
    walk_stream(stream, limits, |entry| {
        listing.add(entry)?;
        if refused.is_some() {
            return Ok(());
        }
        match check.add_data(entry) {
            // The first pass would have found it.
            Err(error) if error.is_in_archive() => Err(error),
            checked => {
                refused = checked.err();
                Ok(())
            }
        }
    })?;
    let (manifest, _) = listing.finish()?;
    refused.map_or(Ok(manifest), Err)
}

/// The files of a tarball.
struct Listing<'a> {
    limits: &'a Limits,
    /// The manifest, with the name of its file.
    manifest: Option<(String, BundleManifest)>,
    data: Vec<String>,
    /// The Rego files, with the segments of their packages.
    packages: Vec<(String, Vec<String>)>,
    wasm: HashSet<String>,
    /// The name of the signature file.
    signatures: Option<String>,
}

impl<'a> Listing<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            manifest: None,
            data: Vec::new(),
            packages: Vec::new(),
            wasm: HashSet::new(),
            signatures: None,
        }
    }

    /// Checks what takes the whole list. Returns the manifest and the names of the data files.
    fn finish(self) -> Result<(BundleManifest, Vec<String>), BundleError> {
        let (path, manifest) = self.manifest.unwrap_or_default();
        for (file, package) in self.packages {
            if !manifest.owns_segments(&package) {
                let (package, roots) = (package.join("."), manifest.roots);
                return Err(BundleError::PackageOutside {
                    path: file,
                    package,
                    roots,
                });
            }
        }
        check_wasm(&manifest, &self.wasm).map_err(|reason| BundleError::File { path, reason })?;
        Ok((manifest, self.data))
    }

    fn add(&mut self, entry: &mut Entry<'_>) -> Result<(), BundleError> {
        let name = entry.name().to_owned();
        let refused = |reason: String| BundleError::File {
            path: name.clone(),
            reason,
        };
        match base(&name) {
            // OPA takes an empty list of patches for a snapshot that erases everything.
            "patch.json" => return Err(BundleError::Delta { path: name }),
            _ if name.ends_with(".rego") => {
                let start = entry.start(DECLARATION_BYTES)?;
                match declaration(&String::from_utf8_lossy(&start)) {
                    Declaration::Package(path) => self.packages.push((name, path)),
                    Declaration::Invalid(reason) if entry.size() <= DECLARATION_BYTES => {
                        return Err(refused(reason.to_owned()));
                    }
                    Declaration::Invalid(_) | Declaration::NeedsParser => {}
                }
            }
            ".signatures.json" => {
                if entry.size() > MAX_SIGNATURES_BYTES {
                    return Err(refused(format!(
                        "signatures of more than {MAX_SIGNATURES_BYTES} bytes"
                    )));
                }
                if let Some(first) = &self.signatures {
                    return Err(refused(format!(
                        "a second signature file; the first is {first}"
                    )));
                }
                SignatureFile::parse(&entry.content()?).map_err(refused)?;
                self.signatures = Some(name);
            }
            "policy.wasm" => drop(self.wasm.insert(name)),
            _ if is_data(&name) => self.data.push(name),
            _ if name.ends_with(".manifest.pb") => {
                return Err(refused(
                    "a manifest in protobuf, which OPA before 1.22 ignores; write .manifest".into(),
                ));
            }
            _ if is_manifest(&name) => {
                if let Some((first, _)) = &self.manifest {
                    return Err(refused(format!(
                        "a second manifest; OPA allows one, and the first is {first}"
                    )));
                }
                if entry.size() > self.limits.bundle_manifest {
                    return Err(BundleError::ManifestTooLarge {
                        path: name,
                        limit: self.limits.bundle_manifest,
                    });
                }
                let manifest = BundleManifest::parse(&entry.content()?).map_err(refused)?;
                self.manifest = Some((name, manifest));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks the resolvers of the manifest; `wasm` are the modules in the bundle. OPA compares names
/// exactly.
fn check_wasm(manifest: &BundleManifest, wasm: &HashSet<String>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for resolver in &manifest.wasm {
        let (entrypoint, module) = (resolver.entrypoint.as_str(), resolver.module.as_str());
        if !wasm.contains(module) {
            return Err(format!(
                "wasm names module {module:?}, which is not in the bundle"
            ));
        }
        if !manifest.owns(entrypoint) {
            let roots = &manifest.roots;
            return Err(format!(
                "wasm entrypoint {entrypoint:?} is outside the roots {roots:?}"
            ));
        }
        if !seen.insert(entrypoint) {
            return Err(format!("wasm entrypoint {entrypoint:?} is named twice"));
        }
    }
    Ok(())
}

/// The check of all data files.
struct DataCheck<'a> {
    manifest: &'a BundleManifest,
    /// The files whose mount point is that of another file, or above or below it.
    overlapping: HashSet<&'a str>,
    merged: Document,
    /// The files that were read; a file's number is its index here.
    files: Vec<String>,
}

impl<'a> DataCheck<'a> {
    fn new(manifest: &'a BundleManifest, names: &'a [String]) -> Self {
        Self {
            manifest,
            overlapping: overlapping(names),
            merged: Document::empty(),
            files: Vec::new(),
        }
    }

    /// Checks a file if it is data.
    fn add_data(&mut self, entry: &mut Entry<'_>) -> Result<(), BundleError> {
        if is_data(entry.name()) {
            self.add(entry)
        } else {
            Ok(())
        }
    }

    fn add(&mut self, entry: &mut Entry<'_>) -> Result<(), BundleError> {
        let name = entry.name().to_owned();
        let mount = mount(&name);
        let overlaps = self.overlapping.contains(name.as_str());
        let owned = |path: &str| self.manifest.owns(path);
        let outline = Detail::Outline {
            mount: &mount,
            prunes: &owned,
        };
        let document = entry.document(if overlaps { Detail::Objects } else { outline })?;
        if mount.is_empty() && !document.is_object() {
            return Err(BundleError::File {
                path: name,
                reason: "the root of data is not an object".to_owned(),
            });
        }
        let number = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let document = document.numbered(number).mounted(&mount);
        if let Some(at) = document.first_outside(self.manifest) {
            return Err(BundleError::DataOutside {
                path: name,
                at,
                roots: self.manifest.roots.clone(),
            });
        }
        if overlaps {
            self.merged
                .merge(document)
                .map_err(|Collision { path, first }| {
                    let first = usize::try_from(first)
                        .ok()
                        .and_then(|first| self.files.get(first));
                    let first = first.cloned().unwrap_or_default();
                    BundleError::Collision {
                        first,
                        second: name.clone(),
                        at: data_path(&path),
                    }
                })?;
        }
        self.files.push(name);
        Ok(())
    }
}

/// The data files whose mount point is that of another file, or above or below it.
fn overlapping(names: &[String]) -> HashSet<&str> {
    let mut mounts: Vec<_> = names
        .iter()
        .map(|name| (mount(name), name.as_str()))
        .collect();
    // Sorted, so that a mount point is followed by those below it.
    mounts.sort_unstable();
    let mut overlapping = HashSet::new();
    let mut above: Vec<&(Vec<String>, &str)> = Vec::new();
    for one in &mounts {
        while above
            .last()
            .is_some_and(|(place, _)| !one.0.starts_with(place))
        {
            above.pop();
        }
        if let Some((_, name)) = above.last() {
            overlapping.extend([*name, one.1]);
        }
        above.push(one);
    }
    overlapping
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_overlap_along_one_branch_only() {
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut found: Vec<_> = overlapping(&names).into_iter().map(str::to_owned).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(
            of(&[
                "a/data.json",
                "ab/data.json",
                "a-b/data.json",
                "b/c/data.json"
            ]),
            [""; 0]
        );
        assert_eq!(
            of(&["a/data.json", "a/data.yaml", "b/data.json"]),
            ["a/data.json", "a/data.yaml"]
        );
        let deep = [
            "a/b/c/data.json",
            "a/data.json",
            "a/x/data.json",
            "b/data.json",
        ];
        assert_eq!(
            of(&[
                "b/data.json",
                "a/x/data.json",
                "a/data.json",
                "a/b/c/data.json"
            ]),
            deep[..3]
        );
        assert_eq!(
            of(&["data.json", "b/data.json", "a/b/data.json"]),
            ["a/b/data.json", "b/data.json", "data.json"]
        );
        assert_eq!(
            of(&["a/data.json", "./a/data.json"]),
            ["./a/data.json", "a/data.json"]
        );
    }
}
