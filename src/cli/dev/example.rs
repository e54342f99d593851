//! The built-in example policy.

use std::{fs, io, path::Path};

/// Name and content of each file; the names are those of `config/example`.
const FILES: [(&str, &str); 5] = [
    (
        ".manifest",
        include_str!("../../../config/example/.manifest"),
    ),
    (
        "authz.rego",
        include_str!("../../../config/example/authz.rego"),
    ),
    (
        "authz_test.rego",
        include_str!("../../../config/example/authz_test.rego"),
    ),
    (
        "directory/data.json",
        include_str!("../../../config/example/directory/data.json"),
    ),
    (
        "input.json",
        include_str!("../../../config/example/input.json"),
    ),
];

/// Writes the example to `folder`. Existing files stay: they may have been edited.
pub(super) fn write(folder: &Path) -> io::Result<()> {
    for (name, content) in FILES {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if !path.exists() {
            fs::write(path, content)?;
        }
    }
    Ok(())
}
