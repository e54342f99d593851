//! A summary of a bundle, for display.

use super::{
    Bundle, BundleError, BundleManifest, Module, check::version_of, document::Document,
    paths::is_manifest,
};

/// The files of a bundle and a summary of their content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Names and sizes, in the order of the tarball.
    pub files: Vec<(String, u64)>,
    /// The Rego files.
    pub modules: Vec<Module>,
    /// The metadata of `.manifest`, as JSON; empty if there is none.
    pub metadata: String,
    /// The entrypoints: annotated rules, and rules compiled to WebAssembly.
    pub entrypoints: Vec<String>,
}

impl Contents {
    /// Summarises a bundle. Of Rego that the built-in parser can't parse, only the package and the
    /// annotations are read. Blocks.
    ///
    /// # Errors
    /// Never in practice: opening the bundle read every file.
    pub fn of(bundle: &Bundle) -> Result<Self, BundleError> {
        let mut contents = Self::default();
        bundle.walk(|entry| -> Result<(), BundleError> {
            let name = entry.name().to_owned();
            contents.files.push((name.clone(), entry.size()));
            if is_manifest(&name) {
                let manifest = Document::of_first_value(&entry.content()?).ok();
                let members = manifest
                    .and_then(|manifest| manifest.members())
                    .unwrap_or_default();
                let metadata = members
                    .into_iter()
                    .find(|(key, _)| BundleManifest::member(key.clone()) == "metadata");
                contents.metadata = metadata
                    .map(|(_, text)| text)
                    .filter(|text| text.starts_with('{'))
                    .unwrap_or_default();
            }
            if name.ends_with(".rego") {
                let content = entry.content()?;
                let text = String::from_utf8_lossy(&content);
                let version = version_of(bundle.manifest(), &name);
                let module = Module::parse(&name, &name, &text, version);
                contents
                    .modules
                    .push(module.unwrap_or_else(|_| Module::scan_package(&name, &text)));
            }
            Ok(())
        })?;
        let compiled = bundle
            .manifest()
            .wasm
            .iter()
            .map(|wasm| wasm.entrypoint.clone());
        let annotated = contents
            .modules
            .iter()
            .flat_map(|module| module.entrypoints.clone());
        contents.entrypoints = annotated.chain(compiled).collect();
        contents.entrypoints.sort();
        contents.entrypoints.dedup();
        Ok(contents)
    }

    /// The distinct packages, sorted by name.
    pub fn packages(&self) -> Vec<String> {
        let mut packages: Vec<_> = self
            .modules
            .iter()
            .filter_map(|module| module.package.clone())
            .collect();
        packages.sort();
        packages.dedup();
        packages
    }
}
