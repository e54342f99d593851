//! What OPA would refuse at load and a tarball alone does not show (`v1/bundle/bundle.go`,
//! `Read`): packages, data and WebAssembly outside the roots, data that collides.

use std::collections::HashSet;

use globset::Glob;

use super::{
    Bundle, BundleManifest, Folder, NotABundle, PackError,
    open::Entry,
    rego::{Module, RegoVersion},
    shape::Shape,
};

/// Whether Rego must be readable by the built-in parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parse {
    /// Yes, and a file that is not is refused.
    Strictly,
    /// No: packages are looked for, and nothing else.
    No,
}

/// Reads a bundle that was just packed from `folder`, and gives its modules in the order of
/// the files' names.
pub(super) fn check(bundle: &Bundle, folder: &Folder, parse: Parse) -> Result<Vec<Module>, PackError> {
    let manifest = bundle.manifest();
    check_wasm(manifest, folder)?;
    let data: Vec<_> = folder.files.keys().filter(|name| is_data(name)).collect();
    let mut check = Check { folder, manifest, parse, modules: Vec::new(), merged: Vec::new() };
    bundle.walk(|entry| {
        let name = entry.name().to_owned();
        if name.ends_with(".rego") {
            return check.module(&name, &entry.content()?);
        }
        if is_data(&name) {
            let here = mount(&name);
            let neighbours = data.iter().any(|other| **other != name && (overlap(&mount(other), &here)));
            return check.data(entry, &here, neighbours);
        }
        Ok(())
    })?;
    Ok(check.modules)
}

struct Check<'a> {
    folder: &'a Folder,
    manifest: &'a BundleManifest,
    parse: Parse,
    modules: Vec<Module>,
    /// Data files that share a part of the tree, each with its name.
    merged: Vec<(String, Shape)>,
}

impl Check<'_> {
    fn module(&mut self, name: &str, content: &[u8]) -> Result<(), PackError> {
        let place = self.folder.place(name);
        let text = std::str::from_utf8(content).map_err(|_| PackError::NotText(place.clone()))?;
        let module = match self.parse {
            Parse::Strictly => Module::parse(name, &place, text, version_of(self.manifest, name))?,
            Parse::No => Module::glance(name, text),
        };
        if let Some(package) = &module.package
            && !self.manifest.owns(&module.path.join("/"))
        {
            return Err(PackError::PackageOutside {
                place,
                package: package.clone(),
                roots: self.manifest.roots.clone(),
            });
        }
        self.modules.push(module);
        Ok(())
    }

    fn data(&mut self, entry: &mut Entry<'_>, mount: &[String], neighbours: bool) -> Result<(), PackError> {
        let name = entry.name().to_owned();
        let place = self.folder.place(&name);
        let refused = |reason: String| PackError::File { place: place.clone(), reason };
        let owned = self.manifest.owns(&mount.join("/"));
        let depth = if neighbours { usize::MAX } else { self.manifest.depth() };
        let shape = if name.ends_with(".json") {
            if owned && !neighbours {
                // Opening the bundle has parsed it.
                return Ok(());
            }
            entry.shape(depth)?
        } else {
            Shape::of_yaml(&entry.content()?).map_err(refused)?
        };
        if mount.is_empty() && shape == Shape::Value {
            return Err(refused("the root of data is not an object".to_owned()));
        }
        let shape = shape.mounted(mount);
        if let Some(at) = shape.first_outside("", self.manifest) {
            return Err(PackError::DataOutside { place, at, roots: self.manifest.roots.clone() });
        }
        if neighbours {
            self.collide(&name, shape)?;
        }
        Ok(())
    }

    fn collide(&mut self, name: &str, shape: Shape) -> Result<(), PackError> {
        for (other, before) in &self.merged {
            before.clone().merge(shape.clone()).map_err(|at| PackError::Conflict {
                first: self.folder.place(other),
                second: self.folder.place(name),
                at: data_path(&[], &at),
            })?;
        }
        self.merged.push((name.to_owned(), shape));
        Ok(())
    }
}

fn check_wasm(manifest: &BundleManifest, folder: &Folder) -> Result<(), PackError> {
    let refused = |reason: String| NotABundle::File { path: ".manifest".to_owned(), reason };
    let mut seen = HashSet::new();
    for wasm in &manifest.wasm {
        let (entrypoint, module) = (wasm.entrypoint.trim_matches('/'), wasm.module.trim_start_matches('/'));
        if !folder.files.contains_key(module) {
            return Err(refused(format!("wasm names module {module:?}, which is not in the bundle")).into());
        }
        if !manifest.owns(entrypoint) {
            return Err(
                refused(format!("wasm entrypoint {entrypoint:?} is outside the roots {:?}", manifest.roots)).into()
            );
        }
        if !seen.insert(entrypoint) {
            return Err(refused(format!("wasm entrypoint {entrypoint:?} is named twice")).into());
        }
    }
    Ok(())
}

/// Which Rego a file is written in.
pub(super) fn version_of(manifest: &BundleManifest, name: &str) -> RegoVersion {
    let path = format!("/{}", name.trim_start_matches('/'));
    let own = manifest.file_rego_versions.iter().find(|(glob, _)| {
        let glob = format!("/{}", glob.trim_start_matches('/'));
        // In OPA, too, a star stands for slashes.
        Glob::new(&glob).is_ok_and(|glob| glob.compile_matcher().is_match(&path))
    });
    let number = own.map(|(_, number)| *number).or(manifest.rego_version);
    RegoVersion::from_number(number.unwrap_or(1))
}

pub(super) fn is_data(name: &str) -> bool {
    matches!(name.rsplit('/').next(), Some("data.json" | "data.yaml" | "data.yml"))
}

/// Where OPA mounts a data file.
pub(super) fn mount(name: &str) -> Vec<String> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let folder = folder.trim_start_matches(['/', '.']);
    folder.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// `data.a.b`, as people write it.
pub(super) fn data_path(mount: &[String], below: &[String]) -> String {
    let path = ["data"].into_iter().chain(mount.iter().chain(below).map(String::as_str));
    path.collect::<Vec<_>>().join(".")
}

fn overlap(a: &[String], b: &[String]) -> bool {
    a.starts_with(b) || b.starts_with(a)
}
