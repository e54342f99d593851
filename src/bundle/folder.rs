//! Finds the files in folders that OPA would load.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde_json::value::RawValue;

use super::{
    BundleManifest, Limits, PackError,
    document::{Collision, Detail, Document},
    paths::{base, data_path, is_data, mount},
};
use crate::oci::read_regular;

/// The members of a `.manifest`, as JSON. Unchanged members keep their text.
pub(super) type Members = BTreeMap<String, Box<RawValue>>;

/// The files of one or more folders that OPA loads, by their names in the bundle.
#[derive(Debug, Clone)]
pub struct Folder {
    pub(super) files: BTreeMap<String, Origin>,
    pub(super) tests: BTreeMap<String, PathBuf>,
    /// The merged `.manifest` files.
    pub(super) manifest: Members,
    ignored_signatures: Option<PathBuf>,
    /// The limits of the files that are read as a whole.
    limits: Limits,
}

/// The source of a file's content.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Disk(PathBuf),
    /// Several merged data files.
    Merged {
        from: Vec<PathBuf>,
        document: Document,
    },
}

/// Patterns of files to ignore: names, and paths below the folder.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    names: GlobSet,
    paths: GlobSet,
}

impl Ignore {
    /// Parses patterns as in `opa build --ignore`: `*_test.rego` matches names of files and
    /// folders, `lib/*.rego` matches paths.
    ///
    /// # Errors
    /// A sentence about the first malformed pattern.
    pub fn new(patterns: &[String]) -> Result<Self, String> {
        let mut names = GlobSetBuilder::new();
        let mut paths = GlobSetBuilder::new();
        for pattern in patterns {
            let failed = |error: globset::Error| format!("{pattern:?}: {}", error.kind());
            if pattern.trim_matches('/').contains('/') {
                let glob = GlobBuilder::new(pattern.trim_matches('/'))
                    .literal_separator(true)
                    .build();
                paths.add(glob.map_err(failed)?);
            } else {
                names.add(Glob::new(pattern.trim_matches('/')).map_err(failed)?);
            }
        }
        let failed = |error: globset::Error| error.to_string();
        Ok(Self {
            names: names.build().map_err(failed)?,
            paths: paths.build().map_err(failed)?,
        })
    }

    fn matches(&self, name: &str, path: &Path) -> bool {
        self.names.is_match(name) || self.paths.is_match(path)
    }
}

impl Folder {
    /// Reads one folder; see [`Self::gather`].
    ///
    /// # Errors
    /// The first file that can't be packed, by name.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self, PackError> {
        Self::gather(&[path.to_owned()], &Ignore::default(), limits)
    }

    /// Finds the files that OPA loads in folders, or takes single files, except ignored files and
    /// hidden folders. Tests are kept apart. Data files of two folders with the same name are
    /// merged. No file may be larger than the bundle may be unpacked, and no `.manifest` larger
    /// than its own limit. Blocks.
    ///
    /// # Errors
    /// The first file that can't be packed, by name.
    pub fn gather(paths: &[PathBuf], ignore: &Ignore, limits: &Limits) -> Result<Self, PackError> {
        let mut folder = Self {
            files: BTreeMap::new(),
            tests: BTreeMap::new(),
            manifest: Members::new(),
            ignored_signatures: None,
            limits: *limits,
        };
        for path in paths {
            let real = fs::canonicalize(path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => PackError::Missing(path.clone()),
                _ => PackError::io(path, source),
            })?;
            let mut walk = FolderWalk {
                folder: &mut folder,
                root: path,
                real: &real,
                ignore,
            };
            if real.is_dir() {
                walk.descend(path)?;
            } else {
                walk.single(path)?;
            }
        }
        if folder.files.is_empty() {
            let names: Vec<_> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(PackError::Empty(names.join(", ")));
        }
        Ok(folder)
    }

    /// The `.signatures.json` that is left out, because packing would invalidate it.
    pub fn ignored_signatures(&self) -> Option<&Path> {
        self.ignored_signatures.as_deref()
    }

    /// The revision that `.manifest` states.
    pub fn revision(&self) -> Option<String> {
        serde_json::from_str(self.manifest.get("revision")?.get()).ok()
    }

    /// Sets or removes the revision in `.manifest`.
    #[must_use]
    pub fn with_revision(mut self, revision: Option<&str>) -> Self {
        match revision.and_then(|revision| raw(&revision)) {
            Some(revision) => drop(self.manifest.insert("revision".to_owned(), revision)),
            None => drop(self.manifest.remove("revision")),
        }
        self
    }

    /// Whether `.manifest` states version 0 of Rego, the default before OPA 1.0.
    pub fn is_v0(&self) -> bool {
        self.manifest
            .get("rego_version")
            .is_some_and(|version| version.get() == "0")
    }

    /// The content of a file of the bundle.
    pub(super) fn content(&self, name: &str) -> Result<Vec<u8>, PackError> {
        match self.files.get(name) {
            Some(Origin::Disk(path)) => read(path, self.limits.unpacked),
            Some(Origin::Merged { document, .. }) => Ok(document.to_bytes()),
            None => Err(PackError::io(
                Path::new(name),
                io::ErrorKind::NotFound.into(),
            )),
        }
    }

    /// The name of a file of the bundle in messages.
    pub(super) fn place(&self, name: &str) -> String {
        match self.files.get(name) {
            Some(Origin::Disk(path)) => path.display().to_string(),
            Some(Origin::Merged { from, .. }) => {
                let names: Vec<_> = from.iter().map(|path| path.display().to_string()).collect();
                names.join(" and ")
            }
            None => name.to_owned(),
        }
    }

    fn add(&mut self, name: String, path: PathBuf) -> Result<(), PackError> {
        let base = base(&name);
        if base == ".manifest" {
            return self.add_manifest(&name, &path);
        }
        if base == ".signatures.json" {
            self.ignored_signatures = Some(path);
            return Ok(());
        }
        if is_test(base) {
            self.tests.insert(name, path);
            return Ok(());
        }
        let Some(before) = self.files.remove(&name) else {
            self.files.insert(name, Origin::Disk(path));
            return Ok(());
        };
        let origin = before.merged(&name, path, self.limits.unpacked)?;
        self.files.insert(name, origin);
        Ok(())
    }

    fn add_manifest(&mut self, name: &str, path: &Path) -> Result<(), PackError> {
        let refused = |reason: String| PackError::File {
            place: path.display().to_string(),
            reason,
        };
        if name != ".manifest" {
            return Err(refused(
                "OPA reads one .manifest, at the root of the bundle; move or remove it".to_owned(),
            ));
        }
        let content = read(path, self.limits.bundle_manifest)?;
        BundleManifest::parse(&content).map_err(refused)?;
        let document =
            Document::of_first_value(&content).map_err(|error| refused(error.to_string()))?;
        for (key, text) in document.members().unwrap_or_default() {
            // OPA ignores the case of keys. If the output had one key in two spellings, OPA would
            // use either of them.
            let key = BundleManifest::member(key);
            let theirs = RawValue::from_string(text).map_err(|error| refused(error.to_string()))?;
            let merged = match self.manifest.get(&key) {
                None => theirs,
                Some(ours) => match (items(ours), items(&theirs)) {
                    (Some(ours), Some(theirs)) => raw(&[ours, theirs].concat())
                        .ok_or_else(|| refused(format!("{key} is not JSON")))?,
                    _ if ours.get() == theirs.get() => theirs,
                    _ => {
                        return Err(refused(format!(
                            "{key} is {theirs}, and {ours} in another folder's .manifest"
                        )));
                    }
                },
            };
            self.manifest.insert(key, merged);
        }
        Ok(())
    }
}

/// The items of a list, each as JSON.
fn items(value: &RawValue) -> Option<Vec<Box<RawValue>>> {
    serde_json::from_str(value.get()).ok()
}

/// A value as JSON.
pub(super) fn raw(value: &impl serde::Serialize) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

impl Origin {
    /// Joins two files of the same name: data is merged, anything else is an error.
    fn merged(self, name: &str, path: PathBuf, limit: u64) -> Result<Self, PackError> {
        let same_name = |first: PathBuf, second: &Path| PackError::SameName {
            first,
            second: second.to_owned(),
            name: name.to_owned(),
        };
        let (mut from, mut document) = match self {
            Self::Disk(first) if !is_data(name) => return Err(same_name(first, &path)),
            Self::Disk(first) => {
                let document = read_data(&first, limit)?.numbered(0);
                (vec![first], document)
            }
            Self::Merged { from, document } => (from, document),
        };
        let number = u32::try_from(from.len()).unwrap_or(u32::MAX);
        document
            .merge(read_data(&path, limit)?.numbered(number))
            .map_err(|Collision { path: at, first }| {
                let first = usize::try_from(first)
                    .ok()
                    .and_then(|first| from.get(first))
                    .unwrap_or(&path);
                let at = data_path(&[mount(name), at].concat());
                PackError::Conflict {
                    first: first.display().to_string(),
                    second: path.display().to_string(),
                    at,
                }
            })?;
        from.push(path);
        // JSON is also YAML, and OPA keeps the number texts of YAML that is JSON.
        Ok(Self::Merged { from, document })
    }
}

/// Reads a data file that is merged with another. In a folder, OPA skips a byte order mark.
fn read_data(path: &Path, limit: u64) -> Result<Document, PackError> {
    let content = read(path, limit)?;
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    let name = path.to_string_lossy();
    Document::of_file(&name, content, Detail::Values)
        .map_err(|error| PackError::at(path, &error.to_string()))
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, PackError> {
    read_regular(path, limit).map_err(|source| PackError::io(path, source))
}

struct FolderWalk<'a> {
    folder: &'a mut Folder,
    root: &'a Path,
    /// `root` without symbolic links.
    real: &'a Path,
    ignore: &'a Ignore,
}

impl FolderWalk<'_> {
    fn single(&mut self, path: &Path) -> Result<(), PackError> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| PackError::Name(path.to_owned()))?;
        if !is_loaded(name) {
            return Err(PackError::NotLoaded(path.to_owned()));
        }
        self.folder.add(name.to_owned(), path.to_owned())
    }

    fn descend(&mut self, folder: &Path) -> Result<(), PackError> {
        let failed = |source| PackError::io(folder, source);
        // Sorted by name, so that of several errors the same one is always reported.
        let entries: Result<Vec<_>, io::Error> = fs::read_dir(folder).map_err(failed)?.collect();
        let mut paths: Vec<_> = entries
            .map_err(failed)?
            .into_iter()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths.into_iter().try_for_each(|path| self.visit(path))
    }

    fn visit(&mut self, path: PathBuf) -> Result<(), PackError> {
        let relative = path.strip_prefix(self.root).unwrap_or(&path);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| PackError::Name(path.clone()))?;
        if self.ignore.matches(name, relative) {
            return Ok(());
        }
        let relative = relative
            .to_str()
            .ok_or_else(|| PackError::Name(path.clone()))?
            .to_owned();
        let kind = fs::symlink_metadata(&path)
            .map_err(|source| PackError::io(&path, source))?
            .file_type();
        if kind.is_dir() {
            // Hidden folders, such as `.git` and `.vscode`, hold no policy and are often large.
            return if name.starts_with('.') {
                Ok(())
            } else {
                self.descend(&path)
            };
        }
        if kind.is_symlink() && (is_loaded(name) || !name.starts_with('.')) {
            self.check_link(&path, is_loaded(name))?;
        }
        if !is_loaded(name) {
            return Ok(());
        }
        if !fs::metadata(&path)
            .map_err(|source| PackError::io(&path, source))?
            .is_file()
        {
            return Err(PackError::NotAFile(path));
        }
        self.folder.add(relative, path)
    }

    /// Checks that a link leads to a file of the folder. Any other link would add a file that the
    /// folder does not show, or leave out one that it shows.
    fn check_link(&self, path: &Path, loaded: bool) -> Result<(), PackError> {
        let target = match fs::canonicalize(path) {
            Ok(target) => target,
            // OPA would not load it either.
            Err(_) if !loaded => return Ok(()),
            Err(source) => return Err(PackError::io(path, source)),
        };
        if target.is_dir() {
            return Err(PackError::LinkedFolder(path.to_owned()));
        }
        if loaded && !target.starts_with(self.real) {
            return Err(PackError::LeadsOut {
                link: path.to_owned(),
                folder: self.root.to_owned(),
            });
        }
        Ok(())
    }
}

fn is_loaded(name: &str) -> bool {
    name.ends_with(".rego")
        || matches!(
            name,
            ".manifest"
                | ".signatures.json"
                | "data.json"
                | "data.yaml"
                | "data.yml"
                | "policy.wasm"
                | "plan.json"
        )
}

/// Whether a file holds tests. Tests stay out of bundles: they are not policy, and OPA would
/// compile them at every activation.
fn is_test(name: &str) -> bool {
    name.ends_with("_test.rego")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::PackOptions;

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 10,
        files: 9,
        bundle_manifest: 1 << 6,
    };

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refusal = |paths: &[PathBuf]| {
            let gathered = Folder::gather(paths, &Ignore::default(), &LIMITS);
            let packed = gathered.and_then(|folder| folder.pack(&PackOptions::new(LIMITS)));
            packed
                .unwrap_err()
                .to_string()
                .replace(&format!("{}/", folder.path().display()), "")
        };
        // A pipe without a writer would block forever.
        for name in ["data.json", ".manifest"] {
            rustix::fs::mkfifoat(rustix::fs::CWD, at(name), rustix::fs::Mode::RWXU).unwrap();
            assert_eq!(
                refusal(&[at(name)]),
                format!("read {name}: it is a pipe, not a regular file")
            );
            assert!(refusal(&[folder.path().to_owned()]).contains("is not a regular file"));
            fs::remove_file(at(name)).unwrap();
        }
        let sparse = |name: &str| {
            fs::File::create(at(name))
                .unwrap()
                .set_len(1 << 40)
                .unwrap()
        };
        sparse(".manifest");
        assert_eq!(
            refusal(&[folder.path().to_owned()]),
            "read .manifest: it is larger than 64 bytes"
        );
        fs::remove_file(at(".manifest")).unwrap();
        sparse("data.json");
        assert_eq!(
            refusal(&[folder.path().to_owned()]),
            "read data.json: it is larger than 1024 bytes"
        );
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("data.json"), "{}").unwrap();
        let both = [other.path().to_owned(), folder.path().to_owned()];
        assert_eq!(
            refusal(&both),
            "read data.json: it is larger than 1024 bytes"
        );
    }
}
