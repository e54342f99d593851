//! Finds errors that OPA reports when it compiles the Rego of a folder, as far as the built-in
//! parser can: Rego that can't be parsed, and rules that conflict with data.

use globset::{Glob, GlobSet};

use super::{
    Bundle, BundleError, BundleManifest, Folder, PackError,
    document::{Detail, Document},
    paths::{data_path, is_data, mount},
    rego::{Module, RegoVersion, RulePath},
};

/// The parser of Rego files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parse {
    /// The built-in parser; a file that it can't parse is refused.
    Strictly,
    /// No parser: only the package is read.
    No,
}

/// Parses the Rego of a bundle that was just packed from `folder`. Returns its modules in the order
/// of the files' names.
pub(super) fn check(
    bundle: &Bundle,
    folder: &Folder,
    parse: Parse,
) -> Result<Vec<Module>, PackError> {
    let mut modules = Vec::new();
    bundle.walk(|entry| -> Result<(), PackError> {
        let name = entry.name().to_owned();
        if name.ends_with(".rego") {
            let place = folder.place(&name);
            let content = entry.content()?;
            let text =
                std::str::from_utf8(&content).map_err(|_| PackError::NotText(place.clone()))?;
            modules.push(match parse {
                Parse::Strictly => {
                    Module::parse(&name, &place, text, version_of(bundle.manifest(), &name))?
                }
                Parse::No => Module::scan_package(&name, text),
            });
        }
        Ok(())
    })?;
    let rules: Vec<_> = modules
        .iter()
        .flat_map(|module| &module.rules)
        .cloned()
        .collect();
    match conflicting_rule(bundle, &rules)? {
        Some(RulePath { path, place }) => Err(PackError::RuleOverData {
            place,
            at: data_path(&path),
        }),
        None => Ok(modules),
    }
}

/// The first rule that conflicts with data of the bundle, which OPA does not compile
/// (`CheckPathConflicts` in `v1/ast/conflicts.go`).
pub(super) fn conflicting_rule(
    bundle: &Bundle,
    rules: &[RulePath],
) -> Result<Option<RulePath>, BundleError> {
    if rules.is_empty() {
        return Ok(None);
    }
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
    bundle.walk(|entry| {
        if is_data(entry.name()) {
            let mount = mount(entry.name());
            let document = entry
                .document(Detail::Outline {
                    mount: &mount,
                    prunes: &prunes,
                })?
                .mounted(&mount);
            // Can't fail: opening the bundle found no collision.
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
