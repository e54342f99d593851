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
    let crowded = crowded(folder.files.keys().map(String::as_str).filter(|name| is_data(name)));
    let mut check = Check { folder, manifest, parse, modules: Vec::new(), apart: Vec::new(), merged: Shape::nothing() };
    bundle.walk(|entry| {
        let name = entry.name().to_owned();
        if name.ends_with(".rego") {
            return check.module(&name, &entry.content()?);
        }
        if is_data(&name) {
            return check.data(entry, &mount(&name), crowded.contains(name.as_str()));
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
    /// Data files that share a part of the tree, each with its name …
    apart: Vec<(String, Shape)>,
    /// … and all of them together, so that each is looked at once.
    merged: Shape,
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
        if self.merged.merge(shape.clone()).is_err() {
            // With one of them at least, and that is the one to name.
            for (other, before) in &mut self.apart {
                before.merge(shape.clone()).map_err(|at| PackError::Conflict {
                    first: self.folder.place(other),
                    second: self.folder.place(name),
                    at: data_path(&[], &at),
                })?;
            }
        }
        self.apart.push((name.to_owned(), shape));
        Ok(())
    }
}

/// Data files whose place in the tree is that of another, or above it, or below it.
fn crowded<'a>(names: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
    let mut mounts: Vec<_> = names.map(|name| (mount(name), name)).collect();
    // What lies below a place follows it at once.
    mounts.sort_unstable();
    let mut crowded = HashSet::new();
    let mut above: Vec<&(Vec<String>, &str)> = Vec::new();
    for one in &mounts {
        while above.last().is_some_and(|(place, _)| !one.0.starts_with(place)) {
            above.pop();
        }
        if let Some((_, name)) = above.last() {
            crowded.extend([*name, one.1]);
        }
        above.push(one);
    }
    crowded
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_crowd_each_other_only_along_one_branch() {
        let of = |names: &'static [&'static str]| {
            let mut crowded: Vec<_> = crowded(names.iter().copied()).into_iter().collect();
            crowded.sort_unstable();
            crowded
        };
        assert_eq!(of(&["a/data.json", "ab/data.json", "a-b/data.json", "b/c/data.json"]), [""; 0]);
        assert_eq!(of(&["a/data.json", "a/data.yaml", "b/data.json"]), ["a/data.json", "a/data.yaml"]);
        let deep = ["a/b/c/data.json", "a/data.json", "a/x/data.json", "b/data.json"];
        assert_eq!(of(&["b/data.json", "a/x/data.json", "a/data.json", "a/b/c/data.json"]), deep[..3]);
        assert_eq!(of(&["data.json", "b/data.json", "a/b/data.json"]), ["a/b/data.json", "b/data.json", "data.json"]);
    }
}
