//! What OPA would refuse when it compiles a folder's Rego, as far as the built-in parser can
//! tell: Rego that can't be parsed, and rules in the place of data.

use globset::{Glob, GlobSet};

use super::{
    Bundle, BundleError, BundleManifest, Folder, PackError,
    document::{Detail, Document},
    paths::{data_path, is_data, mount},
    rego::{Module, RegoVersion, RulePath},
};

/// Whether Rego must be readable by the built-in parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parse {
    /// Yes, and a file that is not is refused.
    Strictly,
    /// No: packages are looked for, and nothing else.
    No,
}

/// Reads the Rego of a bundle that was just packed from `folder`, and gives its modules in the
/// order of the files' names.
pub(super) fn check(bundle: &Bundle, folder: &Folder, parse: Parse) -> Result<Vec<Module>, PackError> {
    let mut modules = Vec::new();
    bundle.walk(|entry| -> Result<(), PackError> {
        let name = entry.name().to_owned();
        if name.ends_with(".rego") {
            let place = folder.place(&name);
            let content = entry.content()?;
            let text = std::str::from_utf8(&content).map_err(|_| PackError::NotText(place.clone()))?;
            modules.push(match parse {
                Parse::Strictly => Module::parse(&name, &place, text, version_of(bundle.manifest(), &name))?,
                Parse::No => Module::scan_package(&name, text),
            });
        }
        Ok(())
    })?;
    let rules: Vec<_> = modules.iter().flat_map(|module| &module.rules).cloned().collect();
    match rule_in_place_of_data(bundle, &rules)? {
        Some(RulePath { path, place }) => Err(PackError::RuleOverData { place, at: data_path(&path) }),
        None => Ok(modules),
    }
}

/// The first rule that stands where the bundle has data: OPA compiles no such rule
/// (`CheckPathConflicts` in `v1/ast/conflicts.go`).
pub(super) fn rule_in_place_of_data(bundle: &Bundle, rules: &[RulePath]) -> Result<Option<RulePath>, BundleError> {
    if rules.is_empty() {
        return Ok(None);
    }
    let mut paths: Vec<_> = rules.iter().map(|rule| rule.path.join("/")).collect();
    paths.sort_unstable();
    // Objects that no rule leads into.
    let prunes = |at: &str| {
        let below = if at.is_empty() { String::new() } else { format!("{at}/") };
        let next = paths.partition_point(|path| path.as_str() < below.as_str());
        !paths.get(next).is_some_and(|path| path.starts_with(&below))
    };
    let mut data = Document::empty();
    bundle.walk(|entry| {
        if is_data(entry.name()) {
            let mount = mount(entry.name());
            let document = entry.document(Detail::Outline { mount: &mount, prunes: &prunes })?.mounted(&mount);
            // Opening the bundle has found no collision.
            let _ = data.merge(document);
        }
        Ok::<(), BundleError>(())
    })?;
    Ok(rules.iter().find(|rule| data.conflicts_with_rule(&rule.path)).cloned())
}

/// Which Rego a file of a bundle is written in, by the name that the bundle has for it.
pub(super) fn version_of(manifest: &BundleManifest, name: &str) -> RegoVersion {
    // A set can be too large to be built, where a single matcher panics.
    let matches = |glob: &str| {
        let set = Glob::new(glob).and_then(|glob| GlobSet::builder().add(glob).build());
        set.is_ok_and(|set| set.is_match(name))
    };
    let own = manifest.file_rego_versions.iter().find(|(glob, _)| matches(glob));
    let number = own.map(|(_, number)| *number).or(manifest.rego_version);
    RegoVersion::from_number(number.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_that_nests_without_end_names_no_file() {
        let glob = format!("{}a{}", "{a,".repeat(125), "}".repeat(125));
        let text = serde_json::json!({ "rego_version": 0, "file_rego_versions": { glob: 1, "/b/*.rego": 1 } });
        let manifest = BundleManifest::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(version_of(&manifest, "a"), RegoVersion::V0);
        assert_eq!(version_of(&manifest, "/b/c/d.rego"), RegoVersion::V1);
    }
}
