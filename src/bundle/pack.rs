//! Packing a folder into a bundle, the same bytes for the same content everywhere.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flate2::{Compression, GzBuilder};

use super::{
    Bundle, BundleManifest, Limits, NotABundle,
    rego::{self, RegoVersion},
};
use crate::oci::{Blob, Descriptor, Digest, media_type};

/// The files of a folder that OPA loads, by their names below it.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
}

/// A folder as bundle bytes that were opened again before anyone sees them.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The bundle.
    pub bundle: Bundle,
    /// How many files it holds.
    pub files: usize,
}

/// Why a folder can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The operating system said no.
    #[error("read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A symbolic link, which could lead anywhere.
    #[error("{0} is a symbolic link; put the file itself there")]
    Symlink(PathBuf),
    /// A name that is not UTF-8.
    #[error("{0} has a name that is not UTF-8; rename it")]
    Name(PathBuf),
    /// Nothing in it that OPA would load.
    #[error("{0} holds no .rego, data.json or data.yaml file")]
    Empty(PathBuf),
    /// A Rego file that can't be parsed.
    #[error("{place}: {reason}")]
    Rego {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// A Rego file that is no text.
    #[error("{0} is not UTF-8; save it as UTF-8")]
    NotText(PathBuf),
    /// OPA would refuse the result.
    #[error(transparent)]
    Refused(#[from] NotABundle),
}

impl Folder {
    /// Reads the files below `path` that OPA loads, except tests and what lies in hidden
    /// folders. Blocks.
    ///
    /// # Errors
    /// The first file that is in the way, by name.
    pub fn read(path: &Path) -> Result<Self, PackError> {
        let mut files = BTreeMap::new();
        collect(path, path, &mut files)?;
        if !files.keys().any(|name| !name.ends_with(".manifest")) {
            return Err(PackError::Empty(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), files })
    }

    /// Parses every Rego file and gives their packages, such as `authz.api`, in the order
    /// of the files' names.
    ///
    /// # Errors
    /// The first file that can't be parsed, with line and reason.
    pub fn packages(&self) -> Result<Vec<String>, PackError> {
        let version = self.manifest()?.rego_version;
        let version = if version == Some(0) { RegoVersion::V0 } else { RegoVersion::V1 };
        let rego = self.files.iter().filter(|(name, _)| name.ends_with(".rego"));
        let packages = rego.map(|(name, content)| {
            let text = std::str::from_utf8(content).map_err(|_| PackError::NotText(self.path.join(name)))?;
            rego::package(&self.path.join(name).to_string_lossy(), text, version)
        });
        packages.collect()
    }

    /// Packs the files. Where `.manifest` states no revision, it is derived from the
    /// content, so that it is never empty.
    ///
    /// # Errors
    /// What OPA, or a limit, would refuse.
    pub fn pack(&self, limits: &Limits) -> Result<Packed, PackError> {
        let mut files = self.files.clone();
        files.insert(".manifest".to_owned(), self.manifest_with_revision()?);
        let bytes = tar_gzip(&files).map_err(|source| PackError::Io { path: self.path.clone(), source })?;
        let blob = Blob::check(&Descriptor::of(media_type::LAYER_TAR_GZIP, &bytes), bytes)
            .map_err(|error| NotABundle::Archive { reason: error.to_string() })?;
        let bundle = Bundle::open(blob, limits)?;
        Ok(Packed { bundle, files: files.len() })
    }

    fn raw_manifest(&self) -> &[u8] {
        self.files.get(".manifest").map_or(&b"{}"[..], Vec::as_slice)
    }

    fn manifest(&self) -> Result<BundleManifest, NotABundle> {
        BundleManifest::parse(self.raw_manifest()).map_err(manifest_refused)
    }

    fn manifest_with_revision(&self) -> Result<Vec<u8>, NotABundle> {
        let refused = |error: serde_json::Error| manifest_refused(error.to_string());
        let stated = self.manifest()?.revision;
        let mut manifest: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(self.raw_manifest()).map_err(refused)?;
        if stated.as_str().is_empty() {
            manifest.insert("revision".to_owned(), content_revision(&self.files).into());
        }
        serde_json::to_vec(&manifest).map_err(refused)
    }
}

/// Reads and packs a folder, without looking into its Rego; see [`Folder`].
///
/// # Errors
/// The first file that is in the way, by name; see [`PackError`].
pub fn pack(folder: &Path, limits: &Limits) -> Result<Packed, PackError> {
    Folder::read(folder)?.pack(limits)
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), PackError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PackError::Io { path, source }
    };
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        let kind = fs::symlink_metadata(&path).map_err(failed(&path))?.file_type();
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| PackError::Name(path.clone()))?;
        if kind.is_dir() {
            // `.git`, `.vscode`: never policy, often large.
            if !name.starts_with('.') {
                collect(root, &path, files)?;
            }
        } else if is_loaded(name) {
            if kind.is_symlink() {
                return Err(PackError::Symlink(path));
            }
            let relative =
                path.strip_prefix(root).ok().and_then(Path::to_str).ok_or_else(|| PackError::Name(path.clone()))?;
            let content = fs::read(&path).map_err(failed(&path))?;
            files.insert(relative.to_owned(), content);
        }
    }
    Ok(())
}

/// Tests stay out: they are not policy, and OPA would compile them at every activation.
fn is_loaded(name: &str) -> bool {
    matches!(name, ".manifest" | "data.json" | "data.yaml" | "data.yml" | "policy.wasm" | "plan.json")
        || (name.ends_with(".rego") && !name.ends_with("_test.rego"))
}

fn manifest_refused(reason: String) -> NotABundle {
    NotABundle::File { path: ".manifest".to_owned(), reason }
}

/// The first 12 hex digits of a hash over names and contents.
fn content_revision(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut list = String::new();
    for (name, content) in files {
        list.push_str(&format!("{} {name}\n", Digest::sha256(content)));
    }
    Digest::sha256(list.as_bytes()).hex()[..12].to_owned()
}

fn tar_gzip(files: &BTreeMap<String, Vec<u8>>) -> io::Result<Bytes> {
    // No time, no name, a fixed level: nothing but the content decides the bytes.
    let encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::new(6));
    let mut builder = tar::Builder::new(encoder);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        builder.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(builder.into_inner()?.finish()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 100 };

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_wherever_it_lies() {
        let files = [("a/p.rego", "package a\n"), ("data.json", "{}"), ("b/data.yaml", "x: 1\n")];
        let mut reversed = files;
        reversed.reverse();
        let one = pack(folder(&files).path(), &LIMITS).unwrap();
        let two = pack(folder(&reversed).path(), &LIMITS).unwrap();
        assert_eq!(one.bundle.blob().in_memory(), two.bundle.blob().in_memory());
        assert_eq!(one.bundle.revision().as_str().len(), 12);
    }

    #[test]
    fn a_change_of_content_changes_the_revision_and_a_stated_one_stays() {
        let one = pack(folder(&[("p.rego", "package a\n")]).path(), &LIMITS).unwrap();
        let two = pack(folder(&[("p.rego", "package b\n")]).path(), &LIMITS).unwrap();
        assert_ne!(one.bundle.revision(), two.bundle.revision());
        let stated = folder(&[("p.rego", "package a\n"), (".manifest", r#"{"revision":"v1","roots":["a"]}"#)]);
        let packed = pack(stated.path(), &LIMITS).unwrap();
        assert_eq!((packed.bundle.revision().as_str(), packed.bundle.manifest().roots.len()), ("v1", 1));
    }

    #[test]
    fn tests_hidden_folders_and_other_files_stay_out() {
        let files =
            [("p.rego", "package a\n"), ("p_test.rego", "package a\n"), (".git/x.rego", "x"), ("README.md", "")];
        assert_eq!(pack(folder(&files).path(), &LIMITS).unwrap().files, 2);
    }

    #[test]
    fn bad_folders_are_refused_by_name() {
        assert!(matches!(pack(folder(&[]).path(), &LIMITS), Err(PackError::Empty(_))));
        assert!(matches!(pack(Path::new("/nonexistent"), &LIMITS), Err(PackError::Io { .. })));
        assert!(matches!(pack(folder(&[("data.json", "{")]).path(), &LIMITS), Err(PackError::Refused(_))));
        let linked = folder(&[("p.rego", "package a\n")]);
        std::os::unix::fs::symlink("/etc/passwd", linked.path().join("data.json")).unwrap();
        assert!(matches!(pack(linked.path(), &LIMITS), Err(PackError::Symlink(_))));
    }
}
