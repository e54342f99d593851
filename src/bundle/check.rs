//! Finds errors that OPA reports when it compiles the Rego of a folder, as far as the built-in
//! parser can: Rego that can't be parsed, and rules that conflict with data.

use std::{collections::HashMap, io::Read};

use globset::{Glob, GlobSet};

use super::{
    BundleError, BundleManifest, Folder, Limits, PackError,
    archive::walk_stream,
    document::{Detail, Document},
    paths::{is_data, mount},
    rego::{Module, RegoVersion, RulePath},
};
use crate::oci::Digest;

/// The parser of Rego files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parse {
    /// The built-in parser; a file that it can't parse is refused.
    Strictly,
    /// No parser: only the package is read.
    No,
}

/// The Rego files of a folder, parsed before the folder is packed.
pub(super) struct RegoFiles {
    /// The digest of each file that was read.
    digests: HashMap<String, Digest>,
    parsed: Result<Vec<Module>, PackError>,
}

impl RegoFiles {
    /// Parses the files in the order of their names, up to the first error. A file that can't be
    /// read is skipped: packing it fails, too.
    pub(super) fn read(folder: &Folder, manifest: &BundleManifest, parse: Parse) -> Self {
        let mut digests = HashMap::new();
        let mut modules = Vec::new();
        let names = folder.files.keys().filter(|name| name.ends_with(".rego"));
        let mut error = None;
        for name in names {
            let Ok(content) = folder.content(name) else {
                continue;
            };
            digests.insert(name.clone(), Digest::sha256(&content));
            if error.is_some() {
                continue;
            }
            match module(name, &folder.place(name), &content, manifest, parse) {
                Ok(module) => modules.push(module),
                Err(first) => error = Some(first),
            }
        }
        Self {
            digests,
            parsed: error.map_or(Ok(modules), Err),
        }
    }

    /// Whether a file that is packed with this digest is the one that was parsed.
    pub(super) fn has(&self, name: &str, digest: &Digest) -> bool {
        self.digests.get(name) == Some(digest)
    }

    /// The rules of all files; none if a file can't be parsed.
    pub(super) fn rules(&self) -> Vec<RulePath> {
        let modules = self.parsed.as_deref().unwrap_or_default();
        let rules = modules.iter().flat_map(|module| &module.rules);
        rules.cloned().collect()
    }

    /// The modules, or the error of the first file that can't be parsed.
    pub(super) fn into_modules(self) -> Result<Vec<Module>, PackError> {
        self.parsed
    }
}

fn module(
    name: &str,
    place: &str,
    content: &[u8],
    manifest: &BundleManifest,
    parse: Parse,
) -> Result<Module, PackError> {
    let text = std::str::from_utf8(content).map_err(|_| PackError::NotText(place.to_owned()))?;
    Ok(match parse {
        Parse::Strictly => Module::parse(name, place, text, version_of(manifest, name))?,
        Parse::No => Module::scan_package(name, text),
    })
}

/// The first rule that conflicts with data in a tar stream, which OPA does not compile
/// (`CheckPathConflicts` in `v1/ast/conflicts.go`).
///
/// # Errors
/// When the stream holds no bundle ([`super::load::load_stream`]), or has too many keys.
pub(super) fn conflicting_rule(
    stream: impl Read,
    limits: &Limits,
    rules: &[RulePath],
) -> Result<Option<RulePath>, BundleError> {
    let mut paths: Vec<_> = rules.iter().map(|rule| rule.path.join("/")).collect();
    paths.sort_unstable();
    // Objects that contain no rule are pruned.
    let prunes = |at: &str| {
        let below = if at.is_empty() {
            String::new()
        } else {
            format!("{at}/")
        };
        let next = paths.partition_point(|path| path.as_str() < below.as_str());
        !paths.get(next).is_some_and(|path| path.starts_with(&below))
    };
    let mut data = Document::empty();
    walk_stream(stream, limits, |entry| {
        if is_data(entry.name()) {
            let mount = mount(entry.name());
            let document = entry
                .document(Detail::Outline {
                    mount: &mount,
                    prunes: &prunes,
                })?
                .mounted(&mount);
            // Of a bundle without collisions, this can't fail.
            let _ = data.merge(document);
        }
        Ok::<(), BundleError>(())
    })?;
    Ok(rules
        .iter()
        .find(|rule| data.conflicts_with_rule(&rule.path))
        .cloned())
}

/// The version of Rego for a file, by its name in the bundle.
pub(super) fn version_of(manifest: &BundleManifest, name: &str) -> RegoVersion {
    // Building a set fails if the glob is too large, where a single matcher panics.
    let matches = |glob: &str| {
        let set = Glob::new(glob).and_then(|glob| GlobSet::builder().add(glob).build());
        set.is_ok_and(|set| set.is_match(name))
    };
    let own = manifest
        .file_rego_versions
        .iter()
        .find(|(glob, _)| matches(glob));
    let number = own.map(|(_, number)| *number).or(manifest.rego_version);
    RegoVersion::from_number(number.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_that_is_nested_too_deeply_matches_no_file() {
        let glob = format!("{}a{}", "{a,".repeat(125), "}".repeat(125));
        let text = serde_json::json!({ "rego_version": 0, "file_rego_versions": { glob: 1, "/b/*.rego": 1 } });
        let manifest = BundleManifest::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(version_of(&manifest, "a"), RegoVersion::V0);
        assert_eq!(version_of(&manifest, "/b/c/d.rego"), RegoVersion::V1);
    }
}
