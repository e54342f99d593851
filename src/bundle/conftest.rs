//! The single files that conftest pushes, each as a layer of its own, as a bundle.

use std::collections::{BTreeMap, btree_map::Entry};

use serde_json::json;

use super::{
    BundleError, LayerError, Limits,
    archive::MAX_YAML_BYTES,
    diagnostic::with_position,
    document::{Detail, Document},
    layer::content,
    layer_plan::TITLE_ANNOTATION,
    paths::{data_path, mount, relative_path},
    tarball::Output,
};
use crate::oci::{Blob, Descriptor};

/// The media types of policies, the second from conftest's early versions.
const REGO_TYPES: [&str; 2] = [
    "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego",
    "application/vnd.cncf.openpolicyagent.rego.layer.v1+rego",
];
const DATA_TYPE: &str = "application/vnd.cncf.openpolicyagent.data.layer.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.cncf.openpolicyagent.manifest.layer.v1+json";

/// Whether a layer is a single file.
pub(super) fn is_single_file(layer: &Descriptor) -> bool {
    let kind = layer.media_type.as_str();
    REGO_TYPES.contains(&kind) || is_data(layer) || kind == MANIFEST_TYPE
}

/// Whether a layer is a file of data.
pub(super) fn is_data(layer: &Descriptor) -> bool {
    layer.media_type == DATA_TYPE
}

/// Packs the files, sorted by name, with data merged as OPA merges it. `root` is the folder below
/// which data is mounted; `revision` counts if there is no `.manifest`.
pub(super) fn pack(
    layers: &[Descriptor],
    blobs: &[Blob],
    root: &str,
    revision: &str,
    limits: &Limits,
    output: &Output,
) -> Result<Blob, LayerError> {
    if layers.len() as u64 > limits.files {
        let limit = limits.files;
        return Err(BundleError::TooManyFiles { limit }.into());
    }
    if Descriptor::total(layers) > limits.unpacked {
        let limit = limits.unpacked;
        return Err(BundleError::UnpacksTooLarge { limit }.into());
    }
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut data: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
    for (layer, blob) in layers.iter().zip(blobs) {
        let title = layer.annotation(TITLE_ANNOTATION).unwrap_or_default();
        let refused = |reason: &str| LayerError::File {
            title: title.to_owned(),
            reason: reason.to_owned(),
        };
        let name = relative_path(title)
            .ok_or_else(|| refused("the title is not a valid file name in a bundle"))?;
        let content = content(blob).map_err(LayerError::Temporary)?;
        if layer.media_type == MANIFEST_TYPE {
            insert(&mut files, ".manifest".to_owned(), content, title)?;
        } else if layer.media_type == DATA_TYPE {
            let mounted = without_root(&name, root);
            let folder = mounted
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder)
                .to_owned();
            data.entry(folder)
                .or_default()
                .push(DataFile { name, content });
        } else if !name.ends_with("_test.rego") {
            insert(&mut files, name, content, title)?;
        }
    }
    for (folder, group) in data {
        let (name, content) = merge_data_files(group, &folder)?;
        let name = if folder.is_empty() {
            name.to_owned()
        } else {
            format!("{folder}/{name}")
        };
        let title = name.clone();
        insert(&mut files, name, content, &title)?;
    }
    files.entry(".manifest".to_owned()).or_insert_with(|| {
        // conftest has no revisions; the digest identifies the artifact.
        json!({ "revision": revision, "roots": [""] })
            .to_string()
            .into_bytes()
    });
    let mut tarball = output.tarball();
    for (name, content) in &files {
        tarball
            .add(name, content.len() as u64, content.as_slice())
            .map_err(LayerError::Temporary)?;
    }
    tarball.finish().map_err(LayerError::Temporary)
}

/// Adds a file, which the layer `title` is; the same file may come again.
fn insert(
    files: &mut BTreeMap<String, Vec<u8>>,
    name: String,
    content: Vec<u8>,
    title: &str,
) -> Result<(), LayerError> {
    match files.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(content);
            Ok(())
        }
        Entry::Occupied(entry) if *entry.get() == content => Ok(()),
        Entry::Occupied(entry) => Err(LayerError::File {
            title: title.to_owned(),
            reason: format!("another layer is also {} in the bundle", entry.key()),
        }),
    }
}

/// A data file of conftest.
struct DataFile {
    name: String,
    content: Vec<u8>,
}

/// Turns the data files of one folder into the one that OPA mounts there, and returns its name and
/// content. A single file stays as it is, byte for byte; several are merged as OPA merges them.
fn merge_data_files(
    mut group: Vec<DataFile>,
    folder: &str,
) -> Result<(&'static str, Vec<u8>), LayerError> {
    if group.len() == 1
        && let Some(only) = group.pop()
    {
        // Parsed here so that an error names the file as the artifact does.
        document(&only)?;
        let name = if only.name.ends_with(".json") {
            "data.json"
        } else {
            "data.yaml"
        };
        return Ok((name, only.content));
    }
    let mut merged = Document::empty();
    for file in &group {
        merged.merge(document(file)?).map_err(|collision| {
            let path = [mount(&format!("{folder}/data.json")), collision.path].concat();
            let reason = format!("another data file also sets {}", data_path(&path));
            LayerError::File {
                title: file.name.clone(),
                reason,
            }
        })?;
    }
    Ok(("data.json", merged.to_bytes()))
}

fn document(file: &DataFile) -> Result<Document, LayerError> {
    if !file.name.ends_with(".json") && file.content.len() as u64 > MAX_YAML_BYTES {
        return Err(LayerError::File {
            title: file.name.clone(),
            reason: format!("YAML of more than {MAX_YAML_BYTES} bytes; write it as JSON"),
        });
    }
    Document::of_file(&file.name, &file.content, Detail::Values).map_err(|error| {
        let (title, reason) = with_position(&file.name, &error.to_string());
        LayerError::File { title, reason }
    })
}

/// The first folder of the path that all policies share.
pub(super) fn common_folder(layers: &[Descriptor]) -> String {
    let rego = layers
        .iter()
        .filter(|layer| REGO_TYPES.contains(&layer.media_type.as_str()));
    let mut firsts = rego.filter_map(|layer| {
        let title = relative_path(layer.annotation(TITLE_ANNOTATION)?)?;
        Some(
            title
                .split_once('/')
                .map_or(String::new(), |(first, _)| first.to_owned()),
        )
    });
    let Some(first) = firsts.next() else {
        return String::new();
    };
    if firsts.all(|other| other == first) {
        first
    } else {
        String::new()
    }
}

fn without_root<'a>(name: &'a str, root: &str) -> &'a str {
    name.strip_prefix(root)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|_| !root.is_empty())
        .unwrap_or(name)
}
