//! The names of files in a bundle, and the paths at which OPA mounts their data.

/// The last segment of a name. Trailing slashes are ignored, as in Go's `filepath.Base`.
pub(super) fn base(name: &str) -> &str {
    name.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(name)
}

/// Whether OPA loads a file as data.
pub(super) fn is_data(name: &str) -> bool {
    matches!(base(name), "data.json" | "data.yaml" | "data.yml")
}

/// Whether OPA reads a file as the bundle's manifest, which depends on the end of its name.
pub(super) fn is_manifest(name: &str) -> bool {
    name.ends_with(".manifest")
}

/// Whether a file makes a difference to OPA, or is refused by it as part of a delta.
pub(super) fn is_read_by_opa(name: &str) -> bool {
    is_data(name)
        || is_manifest(name)
        || [".rego", ".wasm"].iter().any(|end| name.ends_with(end))
        || matches!(base(name), "plan.json" | "patch.json")
}

/// Normalises a relative path; `None` for an invalid one, or one that leads out of the folder.
pub(super) fn relative_path(title: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in title.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty() && !title.contains(['\0', '\\'])).then(|| parts.join("/"))
}

/// The path at which OPA mounts a data file: the segments of its folder, without leading dots and
/// slashes (`getNormalizedPath` in `v1/bundle/bundle.go`).
pub(super) fn mount(name: &str) -> Vec<String> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let parts: Vec<_> = folder
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    let folder = parts.join("/");
    let folder = folder.trim_start_matches(['/', '.']);
    if folder.is_empty() {
        Vec::new()
    } else {
        folder.split('/').map(str::to_owned).collect()
    }
}

/// A path in the notation `data.a.b`.
pub(super) fn data_path(path: &[String]) -> String {
    let path = ["data"].into_iter().chain(path.iter().map(String::as_str));
    path.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_mounted_where_opa_mounts_it() {
        for (name, path) in [
            ("data.json", ""),
            ("/data.json", ""),
            ("./data.json", ""),
            ("a/b/data.json", "a.b"),
            ("/a//b/./data.yaml", "a.b"),
            (".hidden/data.json", "hidden"),
            ("..data/x/data.json", "data.x"),
            ("a/.b/data.json", "a..b"),
            ("a/data.json/", "a.data.json"),
        ] {
            assert_eq!(mount(name).join("."), path, "{name}");
            assert!(is_data(name), "{name}");
        }
    }
}
