//! Assembles a bundle from the layers of an artifact. Most artifacts have the bundle as one layer;
//! some have a packed folder, or single files. Media types are hints only: the bytes decide.

use std::{collections::BTreeMap, io};

use serde_json::json;

use super::{
    BundleError, LayerError, Limits,
    archive::repack,
    diagnostic::with_position,
    document::{Detail, Document},
    paths::{data_path, mount},
    tarball::{TarballWriter, compress},
};
use crate::oci::{Blob, Descriptor, Document as ManifestKind, Manifest, media_type};

/// The way to assemble a bundle from the layers of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    strategy: Strategy,
    layers: Vec<Descriptor>,
    /// The digest of the manifest.
    digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Strategy {
    /// One layer is the bundle, byte for byte.
    Copy,
    /// One layer is a folder that oras packed; its files lose the name of the folder.
    StripFolder { folder: String },
    /// Each layer is a file of conftest. `root` is the folder below which data is mounted, which
    /// the artifact does not record.
    Assemble { root: String, guessed: bool },
}

const TITLE_ANNOTATION: &str = "org.opencontainers.image.title";
/// Set by oras on a layer that is a packed folder.
const UNPACK_ANNOTATION: &str = "io.deis.oras.content.unpack";
/// The media types of conftest, the second from its early versions.
const REGO_TYPES: [&str; 2] = [
    "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego",
    "application/vnd.cncf.openpolicyagent.rego.layer.v1+rego",
];
const DATA_TYPE: &str = "application/vnd.cncf.openpolicyagent.data.layer.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.cncf.openpolicyagent.manifest.layer.v1+json";

impl LayerPlan {
    /// Chooses the plan from the manifest alone. `data_root` is the folder below which conftest's
    /// data is mounted; the default is the first folder that all its policies share.
    ///
    /// # Errors
    /// When no layer can be the bundle, or more than one can.
    pub fn of(manifest: &Manifest, data_root: Option<&str>) -> Result<Self, LayerError> {
        let ManifestKind::Image { layers, .. } = manifest.document() else {
            return Err(LayerError::Layers(
                "an image index, not an artifact; name the artifact itself".to_owned(),
            ));
        };
        let digest = manifest.digest().to_string();
        if !layers.is_empty() && layers.iter().all(is_single_file) {
            let root = data_root.map_or_else(
                || common_folder(layers),
                |root| root.trim_matches('/').to_owned(),
            );
            let guessed =
                data_root.is_none() && layers.iter().any(|layer| layer.media_type == DATA_TYPE);
            return Ok(Self {
                strategy: Strategy::Assemble { root, guessed },
                layers: layers.clone(),
                digest,
            });
        }
        let layer = tarball_layer(layers)?.clone();
        let strategy = match (
            layer.annotation(UNPACK_ANNOTATION),
            layer.annotation(TITLE_ANNOTATION),
        ) {
            (Some("true"), Some(folder)) => Strategy::StripFolder {
                folder: folder.trim_matches('/').to_owned(),
            },
            _ => Strategy::Copy,
        };
        Ok(Self {
            strategy,
            layers: vec![layer],
            digest,
        })
    }

    /// The layers to fetch.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Whether one layer is the bundle, byte for byte.
    pub fn is_copy(&self) -> bool {
        self.strategy == Strategy::Copy
    }

    /// The folder below which data is mounted, if it was guessed.
    pub fn guessed_root(&self) -> Option<&str> {
        match &self.strategy {
            Strategy::Assemble {
                root,
                guessed: true,
            } => Some(root),
            _ => None,
        }
    }

    /// Assembles the bundle from [`Self::layers`], in their order. The same layers give the same
    /// bytes. Blocks.
    ///
    /// # Errors
    /// When the layers do not form a tarball.
    pub fn assemble(&self, blobs: &[Blob], limits: &Limits) -> Result<Blob, LayerError> {
        match (&self.strategy, blobs) {
            (Strategy::Assemble { root, .. }, blobs) => self.assemble_files(root, blobs),
            (Strategy::Copy, [layer]) => gzipped(layer),
            (Strategy::StripFolder { folder }, [layer]) => strip(&gzipped(layer)?, folder, limits),
            (_, blobs) => Err(LayerError::Layers(format!(
                "{} layers instead of one",
                blobs.len()
            ))),
        }
    }

    fn assemble_files(&self, root: &str, blobs: &[Blob]) -> Result<Blob, LayerError> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut data: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
        for (layer, blob) in self.layers.iter().zip(blobs) {
            let title = layer.annotation(TITLE_ANNOTATION).unwrap_or_default();
            let refused = |reason: &str| LayerError::File {
                title: title.to_owned(),
                reason: reason.to_owned(),
            };
            let name = relative_path(title)
                .ok_or_else(|| refused("the title is not a valid file name in a bundle"))?;
            let content = content(blob).map_err(|error| refused(&error.to_string()))?;
            if layer.media_type == MANIFEST_TYPE {
                files.insert(".manifest".to_owned(), content);
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
                files.insert(name, content);
            }
        }
        for (folder, group) in data {
            let (name, content) = merge_data_files(group, &folder)?;
            files.insert(
                if folder.is_empty() {
                    name.to_owned()
                } else {
                    format!("{folder}/{name}")
                },
                content,
            );
        }
        files.entry(".manifest".to_owned()).or_insert_with(|| {
            // conftest has no revisions; the digest identifies the artifact.
            json!({ "revision": self.digest, "roots": [""] })
                .to_string()
                .into_bytes()
        });
        let mut tarball = TarballWriter::create();
        for (name, content) in &files {
            tarball
                .add(name, content.len() as u64, content.as_slice())
                .map_err(LayerError::Temporary)?;
        }
        tarball.finish().map_err(LayerError::Temporary)
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
    Document::of_file(&file.name, &file.content, Detail::Values).map_err(|error| {
        let (title, reason) = with_position(&file.name, &error.to_string());
        LayerError::File { title, reason }
    })
}

fn is_single_file(layer: &Descriptor) -> bool {
    let kind = layer.media_type.as_str();
    REGO_TYPES.contains(&kind) || kind == DATA_TYPE || kind == MANIFEST_TYPE
}

/// Chooses the layer that is a tarball: by OPA's own media type, by another tarball type, or
/// because it is the only layer.
fn tarball_layer(layers: &[Descriptor]) -> Result<&Descriptor, LayerError> {
    let is_opa_layer = |layer: &&Descriptor| layer.media_type == media_type::LAYER_TAR_GZIP;
    let is_tarball_type = |layer: &&Descriptor| {
        let kind = layer.media_type.as_str();
        kind.ends_with("tar+gzip")
            || kind.ends_with("tar.gzip")
            || kind.starts_with("application/vnd.opa.bundle")
    };
    for choice in [
        layers.iter().filter(is_opa_layer).collect(),
        layers.iter().filter(is_tarball_type).collect::<Vec<_>>(),
    ] {
        match choice.as_slice() {
            [only] => return Ok(only),
            [] => {}
            several => {
                return Err(LayerError::Layers(format!(
                    "{} layers are gzip tarballs instead of one",
                    several.len()
                )));
            }
        }
    }
    match layers {
        [only] => Ok(only),
        layers => Err(LayerError::Layers(format!(
            "none of {} layers is known to be a bundle",
            layers.len()
        ))),
    }
}

/// Returns a gzip stream as it is, and compresses a bare tar stream, which OPA does not read.
fn gzipped(layer: &Blob) -> Result<Blob, LayerError> {
    let start = layer.read_at(0, 512).map_err(LayerError::Temporary)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(layer.clone());
    }
    if start.get(257..262) == Some(b"ustar") {
        return compress(layer).map_err(LayerError::Temporary);
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(LayerError::Layers(
            "the layer is compressed with zstd, which OPA does not read".to_owned(),
        ));
    }
    Err(BundleError::NotGzip {
        start: start.slice(..start.len().min(4)).to_vec(),
    }
    .into())
}

fn strip(layer: &Blob, folder: &str, limits: &Limits) -> Result<Blob, LayerError> {
    let prefix = format!("{folder}/");
    repack(layer, limits, |name| {
        // Tests are not policy, and may lie outside the roots of `.manifest`.
        let name = relative_path(name).filter(|name| !name.ends_with("_test.rego"))?;
        Some(
            name.strip_prefix(&prefix)
                .map_or_else(|| name.clone(), str::to_owned),
        )
    })
}

fn content(blob: &Blob) -> io::Result<Vec<u8>> {
    blob.read_at(0, usize::try_from(blob.size()).unwrap_or(usize::MAX))
        .map(|bytes| bytes.to_vec())
}

/// Normalises a relative path; `None` for an invalid one, or one that leads out of the folder.
fn relative_path(title: &str) -> Option<String> {
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

/// The first folder of the path that all policies share.
fn common_folder(layers: &[Descriptor]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Bundle, archive::walk};

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };

    struct Artifact {
        layers: Vec<serde_json::Value>,
        blobs: Vec<Blob>,
    }

    impl Artifact {
        fn new() -> Self {
            Self {
                layers: Vec::new(),
                blobs: Vec::new(),
            }
        }

        fn with(mut self, kind: &str, title: &str, content: &[u8]) -> Self {
            let descriptor = Descriptor::of(kind, content);
            self.blobs
                .push(Blob::check(&descriptor, content.to_vec().into()).unwrap());
            let mut layer = json!(descriptor);
            layer["annotations"] = json!({ TITLE_ANNOTATION: title });
            self.layers.push(layer);
            self
        }

        fn manifest(&self) -> Manifest {
            let text = json!({"schemaVersion": 2, "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": self.layers});
            Manifest::parse(text.to_string().into(), None, 1 << 20).unwrap()
        }

        fn bundle(&self, data_root: Option<&str>) -> Result<Blob, LayerError> {
            LayerPlan::of(&self.manifest(), data_root)?.assemble(&self.blobs, &LIMITS)
        }
    }

    fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tarball = TarballWriter::create();
        files.iter().for_each(|(name, content)| {
            tarball
                .add(name, content.len() as u64, content.as_bytes())
                .unwrap()
        });
        content(&tarball.finish().unwrap()).unwrap()
    }

    fn files(blob: &Blob) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let walked = walk(blob, &LIMITS, |entry| -> Result<(), BundleError> {
            let content = String::from_utf8(entry.content()?).unwrap();
            found.push((entry.name().to_owned(), content));
            Ok(())
        });
        walked.unwrap();
        found
    }

    #[test]
    fn a_tarball_is_copied_whatever_its_media_type() {
        let bytes = tarball(&[("p.rego", "package a\n")]);
        for kind in [
            media_type::LAYER_TAR_GZIP,
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.opa.bundle.layer.v1+gzip",
        ] {
            let bundle = Artifact::new()
                .with(kind, "bundle.tar.gz", &bytes)
                .bundle(None)
                .unwrap();
            assert_eq!(content(&bundle).unwrap(), bytes, "{kind}");
        }
        let among_others = Artifact::new().with("text/plain", "README", b"x").with(
            media_type::LAYER_TAR_GZIP,
            "b",
            &bytes,
        );
        assert_eq!(
            content(&among_others.bundle_of_needed_layers()).unwrap(),
            bytes
        );
    }

    impl Artifact {
        /// The bundle, assembled from [`LayerPlan::layers`] only.
        fn bundle_of_needed_layers(&self) -> Blob {
            let plan = LayerPlan::of(&self.manifest(), None).unwrap();
            let wanted = |blob: &&Blob| {
                plan.layers()
                    .iter()
                    .any(|layer| layer.digest == *blob.digest())
            };
            let blobs: Vec<_> = self.blobs.iter().filter(wanted).cloned().collect();
            plan.assemble(&blobs, &LIMITS).unwrap()
        }
    }

    #[test]
    fn a_bare_tar_stream_is_compressed_the_same_way_every_time() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(10);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "p.rego", &b"package a\n"[..])
            .unwrap();
        let bare = builder.into_inner().unwrap();
        let artifact = Artifact::new().with("application/vnd.opa.bundle.layer.v1+tar", "b", &bare);
        let (one, two) = (
            artifact.bundle(None).unwrap(),
            artifact.bundle(None).unwrap(),
        );
        assert_eq!(one.digest(), two.digest());
        assert_eq!(
            files(&one),
            [("p.rego".to_owned(), "package a\n".to_owned())]
        );
    }

    #[test]
    fn a_folder_that_oras_packed_loses_its_own_name() {
        let bytes = tarball(&[
            ("policies/a/p.rego", "package a\n"),
            ("policies/data.json", "{}"),
        ]);
        let mut artifact = Artifact::new().with(media_type::LAYER_TAR_GZIP, "policies", &bytes);
        artifact.layers[0]["annotations"][UNPACK_ANNOTATION] = "true".into();
        let names: Vec<_> = files(&artifact.bundle(None).unwrap())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a/p.rego", "data.json"]);
    }

    fn conftest() -> Artifact {
        Artifact::new()
            .with(REGO_TYPES[0], "policy/deny.rego", b"package main\n")
            .with(REGO_TYPES[0], "policy/deny_test.rego", b"package main\n")
            .with(
                DATA_TYPE,
                "policy/exclusions/services.yaml",
                b"services: [a]\n",
            )
            .with(
                DATA_TYPE,
                "policy/exclusions/users.json",
                b"{\"users\":{\"n\":1.10}}",
            )
    }

    #[test]
    fn conftests_files_become_a_bundle_in_any_order() {
        let artifact = conftest();
        let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
        assert_eq!(
            (plan.is_copy(), plan.guessed_root()),
            (false, Some("policy"))
        );
        let bundle = artifact.bundle(None).unwrap();
        let found = files(&bundle);
        assert_eq!(
            found[1],
            (
                "exclusions/data.json".into(),
                r#"{"services":["a"],"users":{"n":1.10}}"#.into()
            )
        );
        assert_eq!(found[2].0, "policy/deny.rego");
        assert!(
            found[0].1.contains(artifact.manifest().digest().as_str()),
            "{found:?}"
        );
        Bundle::open(bundle, &LIMITS).unwrap();
        let mut shuffled = conftest();
        shuffled.layers.reverse();
        shuffled.blobs.reverse();
        // The manifest differs, and with it the revision; everything else is the same.
        assert_eq!(files(&shuffled.bundle(None).unwrap())[1..], found[1..]);
        let rooted = files(&artifact.bundle(Some("policy/exclusions/")).unwrap());
        assert!(
            rooted.iter().any(|(name, _)| name == "data.json"),
            "{rooted:?}"
        );
    }

    #[test]
    fn an_artifact_without_a_bundle_is_refused_in_one_line() {
        let bytes = tarball(&[]);
        for (artifact, expected) in [
            (Artifact::new(), "none of 0 layers"),
            (
                Artifact::new()
                    .with("text/plain", "a", b"x")
                    .with("text/plain", "b", b"x"),
                "none of 2 layers",
            ),
            (
                Artifact::new().with("text/plain", "README", b"hello"),
                "not a gzip tarball",
            ),
            (
                Artifact::new().with("x", "z", &[0x28, 0xb5, 0x2f, 0xfd, 0]),
                "zstd",
            ),
            (
                Artifact::new()
                    .with(media_type::LAYER_TAR_GZIP, "a", &bytes)
                    .with(media_type::LAYER_TAR_GZIP, "b", &bytes),
                "2 layers are gzip tarballs",
            ),
            (
                Artifact::new().with(REGO_TYPES[0], "../../etc/passwd", b"package a"),
                "not a valid file name",
            ),
            (
                Artifact::new()
                    .with(DATA_TYPE, "p/a.json", b"{\"x\":1}")
                    .with(DATA_TYPE, "p/b.json", b"{\"x\":2}"),
                "another data file also sets data.p.x",
            ),
            (
                Artifact::new().with(DATA_TYPE, "p/a.json", b"{"),
                "p/a.json:1:2\": unexpected end of input",
            ),
        ] {
            let error = artifact.bundle(None).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
