//! The root file system of a container image: its layers, each applied over those before it (OCI
//! image-spec, `layer.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    BundleError, LayerError, Limits,
    archive::{Allowance, Entry, FILE, MAX_NAME_BYTES, each_member},
    layer::LayerFormat,
    paths::{is_read_by_opa, relative_path},
    tarball::Output,
};
use crate::oci::{Blob, NewBlob};

/// A file of this name removes `NAME` from the layers below.
const WHITEOUT: &str = ".wh.";
/// A file of this name removes everything from its folder that the layers below have there.
const OPAQUE: &str = ".wh..wh..opq";

/// Applies the layers in their order, and packs the files that are left, sorted by name. Folders
/// are not packed, since OPA does not read them.
///
/// Links and devices are never followed. One that is left in the end is an error: OPA would not see
/// the file that it stands for.
///
/// # Errors
/// When a layer is not a tar stream, a name leads out of the image, all layers together exceed a
/// limit, or no file is left that OPA reads.
pub(super) fn flatten(
    layers: &[Blob],
    limits: &Limits,
    output: &Output,
) -> Result<Blob, LayerError> {
    let allowance = Allowance::new(limits);
    let mut tree = Tree::default();
    let mut store = ContentStore {
        content: output.blob(),
        size: 0,
    };
    let mut members = 0;
    for layer in layers {
        if is_empty_tar(layer)? {
            continue;
        }
        let stream = LayerFormat::of(layer)?.unpack(layer);
        let mut changes = Changes::default();
        each_member(stream, &allowance, |kind, entry| {
            members += 1;
            if members > limits.files {
                let limit = limits.files;
                return Err(BundleError::TooManyFiles { limit }.into());
            }
            changes.add(kind, entry, &mut store)
        })?;
        tree.apply(changes);
    }
    tree.pack(&store.finish()?, output)
}

/// The type flag of a folder.
const FOLDER: u8 = b'5';

/// The content of all files, one after the other.
struct ContentStore {
    content: NewBlob,
    size: u64,
}

/// What a path of an image names; folders exist only as parts of paths.
#[derive(Debug, Clone, Copy)]
enum Node {
    File {
        offset: u64,
        size: u64,
    },
    /// Something without content of its own, by the name of its type.
    Other(&'static str),
}

/// The changes that one layer makes.
#[derive(Debug, Default)]
struct Changes {
    nodes: BTreeMap<String, Node>,
    folders: BTreeSet<String>,
    removed: Vec<String>,
    /// Folders from which everything below is removed.
    opaque: Vec<String>,
}

/// The files of the layers so far.
#[derive(Debug, Default)]
struct Tree(BTreeMap<String, Node>);

impl ContentStore {
    fn add(&mut self, entry: &mut Entry<'_>) -> Result<Node, LayerError> {
        let offset = self.size;
        let content = &mut self.content;
        entry.copy_to(|_, from| io::copy(from, content).map(drop))?;
        let size = entry.size();
        self.size += size;
        Ok(Node::File { offset, size })
    }

    fn finish(self) -> Result<Blob, LayerError> {
        self.content.finish().map_err(LayerError::Temporary)
    }
}

impl Changes {
    fn add(
        &mut self,
        kind: u8,
        entry: &mut Entry<'_>,
        store: &mut ContentStore,
    ) -> Result<(), LayerError> {
        let name = entry.name().to_owned();
        let refused = |reason: &str| {
            let path = name.chars().take(256).collect();
            let reason = reason.to_owned();
            LayerError::from(BundleError::File { path, reason })
        };
        // Global headers have no path.
        if kind == b'g' {
            return Ok(());
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(refused("its name is longer than 4096 bytes"));
        }
        if name.split(['/', '\\']).any(|part| part == "..") {
            return Err(refused("its name leads out of the image"));
        }
        let Some(path) = relative_path(&name) else {
            // The root folder itself.
            return if kind == FOLDER {
                Ok(())
            } else {
                Err(refused("its name is not valid in a bundle"))
            };
        };
        let (folder, base) = path.rsplit_once('/').unwrap_or(("", &path));
        if base == OPAQUE {
            self.opaque.push(folder.to_owned());
        } else if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            match hidden {
                "" | "." => return Err(refused("it is a whiteout without a name")),
                // Metadata of the AUFS driver.
                _ if hidden.starts_with(WHITEOUT) => {}
                _ => self.removed.push(join(folder, hidden)),
            }
        } else if kind == FOLDER {
            self.nodes.remove(&path);
            self.folders.insert(path);
        } else {
            let node = match kind {
                FILE => store.add(entry)?,
                b'1' => Node::Other("hard link"),
                b'2' => Node::Other("symbolic link"),
                _ => Node::Other("device or other special file"),
            };
            self.folders.remove(&path);
            remove_below(&mut self.nodes, &path);
            self.nodes.insert(path, node);
        }
        Ok(())
    }
}

impl Tree {
    /// A whiteout applies to the layers below only, wherever it is in its own layer.
    fn apply(&mut self, changes: Changes) {
        for path in changes.removed {
            self.0.remove(&path);
            remove_below(&mut self.0, &path);
        }
        for folder in changes.opaque {
            if folder.is_empty() {
                self.0.clear();
            } else {
                remove_below(&mut self.0, &folder);
            }
        }
        for folder in changes.folders {
            self.0.remove(&folder);
        }
        for (path, node) in changes.nodes {
            remove_below(&mut self.0, &path);
            self.0.insert(path, node);
        }
    }

    fn pack(&self, content: &Blob, output: &Output) -> Result<Blob, LayerError> {
        if let Some((path, what)) = self.0.iter().find_map(|(path, node)| match node {
            Node::Other(what) => Some((path, what)),
            Node::File { .. } => None,
        }) {
            return Err(BundleError::File {
                path: path.clone(),
                reason: format!(
                    "it is a {what}, which OPA does not read; put the file itself there"
                ),
            }
            .into());
        }
        check_is_policy(self.0.keys())?;
        let mut tarball = output.tarball();
        for (path, node) in &self.0 {
            let Node::File { offset, size } = *node else {
                continue;
            };
            tarball
                .add(path, size, content.range(offset, size))
                .map_err(LayerError::Temporary)?;
        }
        tarball.finish().map_err(LayerError::Temporary)
    }
}

/// Refuses content of which OPA would read nothing: as a bundle it would be valid, and empty.
pub(super) fn check_is_policy<'a>(
    names: impl Iterator<Item = &'a String>,
) -> Result<(), LayerError> {
    let mut count = 0_u64;
    for name in names {
        if is_read_by_opa(name) {
            return Ok(());
        }
        count += 1;
    }
    Err(LayerError::Layers(format!(
        "none of its {count} files is Rego, data.json, data.yaml or a .manifest"
    )))
}

/// Whether a layer is an uncompressed tarball without members, which has no magic number.
fn is_empty_tar(layer: &Blob) -> Result<bool, LayerError> {
    let start = layer.read_at(0, 1024).map_err(LayerError::Temporary)?;
    Ok(start.len() == 1024 && start.iter().all(|byte| *byte == 0))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

/// Removes all paths below a folder.
fn remove_below(nodes: &mut BTreeMap<String, Node>, folder: &str) {
    // `0` follows `/` in ASCII.
    let (start, end) = (format!("{folder}/"), format!("{folder}0"));
    let below: Vec<_> = nodes
        .range(start..end)
        .map(|(path, _)| path.clone())
        .collect();
    for path in below {
        nodes.remove(&path);
    }
}

#[cfg(test)]
mod tests;
