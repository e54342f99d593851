//! From the layers of an artifact to a bundle: most have it ready as one layer, some have
//! it packed as a folder or in single files. Sniffs; what types say of bytes is a hint.

use std::{collections::BTreeMap, io};

use serde_json::json;

use super::{
    Limits, NotABundle,
    archive::repack,
    document::{Detail, Document},
    pack::with_position,
    paths::{data_path, mount},
    tarball::Tarball,
};
use crate::oci::{Blob, Descriptor, Document as Kind, Manifest, media_type};

/// How the layers of an artifact become a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    steps: Steps,
    layers: Vec<Descriptor>,
    /// `sha256:…` of the manifest.
    digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Steps {
    /// One layer, byte for byte.
    Copy,
    /// A folder that oras packed, everything below its name.
    Strip { folder: String },
    /// conftest's files, one a layer; `root` is the folder whose name is not part of where
    /// data is mounted, which the artifact does not record.
    Assemble { root: String, guessed: bool },
}

/// Why an artifact holds no bundle.
#[derive(Debug, thiserror::Error)]
pub enum NoBundle {
    /// Its layers are not what any known tool writes for OPA.
    #[error("no OPA bundle: {0}")]
    Layers(String),
    /// Its single files don't make one.
    #[error("layer {title:?}: {reason}")]
    File {
        /// The file, as the artifact calls it.
        title: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The layer is no tarball, or too large.
    #[error(transparent)]
    Refused(#[from] NotABundle),
    /// There was no room for what is assembled.
    #[error("write the bundle to a temporary file: {0}; make room, or name another folder with TMPDIR")]
    Temporary(io::Error),
}

const TITLE: &str = "org.opencontainers.image.title";
/// oras's mark on a layer that was a folder.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// conftest's media types, and those that registries know from its early days.
const REGO: [&str; 2] = [
    "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego",
    "application/vnd.cncf.openpolicyagent.rego.layer.v1+rego",
];
const DATA: &str = "application/vnd.cncf.openpolicyagent.data.layer.v1+json";
const MANIFEST: &str = "application/vnd.cncf.openpolicyagent.manifest.layer.v1+json";

impl Recipe {
    /// Chooses by the manifest alone. `data_root` is the folder below which conftest's data
    /// begins; without it, the one that its policies have in common.
    ///
    /// # Errors
    /// When there is none, or more than one way to choose.
    pub fn of(manifest: &Manifest, data_root: Option<&str>) -> Result<Self, NoBundle> {
        let Kind::Image { layers, .. } = manifest.document() else {
            return Err(NoBundle::Layers("an image index, not an artifact; name the artifact itself".to_owned()));
        };
        let digest = manifest.digest().to_string();
        if !layers.is_empty() && layers.iter().all(is_single_file) {
            let root = data_root.map_or_else(|| common_folder(layers), |root| root.trim_matches('/').to_owned());
            let guessed = data_root.is_none() && layers.iter().any(|layer| layer.media_type == DATA);
            return Ok(Self { steps: Steps::Assemble { root, guessed }, layers: layers.clone(), digest });
        }
        let layer = the_tarball(layers)?.clone();
        let steps = match (layer.annotation(UNPACK), layer.annotation(TITLE)) {
            (Some("true"), Some(folder)) => Steps::Strip { folder: folder.trim_matches('/').to_owned() },
            _ => Steps::Copy,
        };
        Ok(Self { steps, layers: vec![layer], digest })
    }

    /// The layers that it takes.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Whether a layer is the bundle as it is.
    pub fn copies(&self) -> bool {
        self.steps == Steps::Copy
    }

    /// What was taken for the folder below which data begins, without any record of it.
    pub fn guessed_root(&self) -> Option<&str> {
        match &self.steps {
            Steps::Assemble { root, guessed: true } => Some(root),
            _ => None,
        }
    }

    /// The bundle; `blobs` are the layers, in their order. The same layers give the same
    /// bytes. Blocks.
    ///
    /// # Errors
    /// When what they hold makes no tarball.
    pub fn follow(&self, blobs: &[Blob], limits: &Limits) -> Result<Blob, NoBundle> {
        match (&self.steps, blobs) {
            (Steps::Assemble { root, .. }, blobs) => self.assemble(root, blobs),
            (Steps::Copy, [layer]) => gzipped(layer),
            (Steps::Strip { folder }, [layer]) => strip(&gzipped(layer)?, folder, limits),
            (_, blobs) => Err(NoBundle::Layers(format!("{} layers instead of one", blobs.len()))),
        }
    }

    fn assemble(&self, root: &str, blobs: &[Blob]) -> Result<Blob, NoBundle> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut data: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
        for (layer, blob) in self.layers.iter().zip(blobs) {
            let title = layer.annotation(TITLE).unwrap_or_default();
            let refused = |reason: &str| NoBundle::File { title: title.to_owned(), reason: reason.to_owned() };
            let name = clean(title).ok_or_else(|| refused("no name for a file in a bundle"))?;
            let content = content(blob).map_err(|error| refused(&error.to_string()))?;
            if layer.media_type == MANIFEST {
                files.insert(".manifest".to_owned(), content);
            } else if layer.media_type == DATA {
                let mounted = below(&name, root);
                let folder = mounted.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
                data.entry(folder).or_default().push(DataFile { name, content });
            } else if !name.ends_with("_test.rego") {
                files.insert(name, content);
            }
        }
        for (folder, group) in data {
            let (name, content) = one_file(group, &folder)?;
            files.insert(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }, content);
        }
        files.entry(".manifest".to_owned()).or_insert_with(|| {
            // conftest has no revisions; the digest says which artifact this was.
            json!({ "revision": self.digest, "roots": [""] }).to_string().into_bytes()
        });
        let mut tarball = Tarball::create();
        for (name, content) in &files {
            tarball.add(name, content.len() as u64, content.as_slice()).map_err(NoBundle::Temporary)?;
        }
        tarball.finish().map_err(NoBundle::Temporary)
    }
}

/// A data file of conftest's.
struct DataFile {
    name: String,
    content: Vec<u8>,
}

/// The data files of one folder as the one that OPA mounts there, and its name. A single file
/// stays as it is, byte for byte; several are merged as OPA would merge them.
fn one_file(mut group: Vec<DataFile>, folder: &str) -> Result<(&'static str, Vec<u8>), NoBundle> {
    if group.len() == 1
        && let Some(only) = group.pop()
    {
        // What OPA can't read is told by the artifact's name for it, before any other.
        document(&only)?;
        let name = if only.name.ends_with(".json") { "data.json" } else { "data.yaml" };
        return Ok((name, only.content));
    }
    let mut merged = Document::empty();
    for file in &group {
        merged.merge(document(file)?).map_err(|collision| {
            let path = [mount(&format!("{folder}/data.json")), collision.path].concat();
            let reason = format!("another data file sets {}, too", data_path(&path));
            NoBundle::File { title: file.name.clone(), reason }
        })?;
    }
    Ok(("data.json", merged.to_bytes()))
}

fn document(file: &DataFile) -> Result<Document, NoBundle> {
    Document::of_file(&file.name, &file.content, Detail::Values).map_err(|error| {
        let (title, reason) = with_position(&file.name, &error.to_string());
        NoBundle::File { title, reason }
    })
}

fn is_single_file(layer: &Descriptor) -> bool {
    let kind = layer.media_type.as_str();
    REGO.contains(&kind) || kind == DATA || kind == MANIFEST
}

/// The layer that is a tarball: by OPA's own type, or by a telling one, or because there is
/// no other.
fn the_tarball(layers: &[Descriptor]) -> Result<&Descriptor, NoBundle> {
    let is_opas = |layer: &&Descriptor| layer.media_type == media_type::LAYER_TAR_GZIP;
    let is_telling = |layer: &&Descriptor| {
        let kind = layer.media_type.as_str();
        kind.ends_with("tar+gzip") || kind.ends_with("tar.gzip") || kind.starts_with("application/vnd.opa.bundle")
    };
    for choice in [layers.iter().filter(is_opas).collect(), layers.iter().filter(is_telling).collect::<Vec<_>>()] {
        match choice.as_slice() {
            [only] => return Ok(only),
            [] => {}
            many => return Err(NoBundle::Layers(format!("{} layers are gzip tarballs instead of one", many.len()))),
        }
    }
    match layers {
        [only] => Ok(only),
        layers => Err(NoBundle::Layers(format!("none of {} layers is known to be a bundle", layers.len()))),
    }
}

/// Gzip stays as it is; a bare tar stream, which OPA does not read, is compressed.
fn gzipped(layer: &Blob) -> Result<Blob, NoBundle> {
    let start = layer.read_at(0, 512).map_err(NoBundle::Temporary)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(layer.clone());
    }
    if start.get(257..262) == Some(b"ustar") {
        return super::tarball::compress(layer).map_err(NoBundle::Temporary);
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(NoBundle::Layers("the layer is compressed with zstd, which OPA does not read".to_owned()));
    }
    Err(NotABundle::NotGzip { start: start.slice(..start.len().min(4)).to_vec() }.into())
}

fn strip(layer: &Blob, folder: &str, limits: &Limits) -> Result<Blob, NoBundle> {
    let prefix = format!("{folder}/");
    repack(layer, limits, |name| {
        // Tests are no policy, and may lie outside of what `.manifest` owns.
        let name = clean(name).filter(|name| !name.ends_with("_test.rego"))?;
        Some(name.strip_prefix(&prefix).map_or_else(|| name.clone(), str::to_owned))
    })
}

fn content(blob: &Blob) -> io::Result<Vec<u8>> {
    blob.read_at(0, usize::try_from(blob.size()).unwrap_or(usize::MAX)).map(|bytes| bytes.to_vec())
}

/// A relative path without detours; `None` for one that leads out.
fn clean(title: &str) -> Option<String> {
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

/// The first folder that all policies share.
fn common_folder(layers: &[Descriptor]) -> String {
    let rego = layers.iter().filter(|layer| REGO.contains(&layer.media_type.as_str()));
    let mut firsts = rego.filter_map(|layer| {
        let title = clean(layer.annotation(TITLE)?)?;
        Some(title.split_once('/').map_or(String::new(), |(first, _)| first.to_owned()))
    });
    let Some(first) = firsts.next() else { return String::new() };
    if firsts.all(|other| other == first) { first } else { String::new() }
}

fn below<'a>(name: &'a str, root: &str) -> &'a str {
    name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')).filter(|_| !root.is_empty()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Bundle, archive::walk};

    const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 100, bundle_manifest: 1 << 20 };

    struct Artifact {
        layers: Vec<serde_json::Value>,
        blobs: Vec<Blob>,
    }

    impl Artifact {
        fn new() -> Self {
            Self { layers: Vec::new(), blobs: Vec::new() }
        }

        fn with(mut self, kind: &str, title: &str, content: &[u8]) -> Self {
            let descriptor = Descriptor::of(kind, content);
            self.blobs.push(Blob::check(&descriptor, content.to_vec().into()).unwrap());
            let mut layer = json!(descriptor);
            layer["annotations"] = json!({ TITLE: title });
            self.layers.push(layer);
            self
        }

        fn manifest(&self) -> Manifest {
            let text =
                json!({"schemaVersion": 2, "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": self.layers});
            Manifest::parse(text.to_string().into(), None, 1 << 20).unwrap()
        }

        fn bundle(&self, data_root: Option<&str>) -> Result<Blob, NoBundle> {
            Recipe::of(&self.manifest(), data_root)?.follow(&self.blobs, &LIMITS)
        }
    }

    fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tarball = Tarball::create();
        files.iter().for_each(|(name, content)| tarball.add(name, content.len() as u64, content.as_bytes()).unwrap());
        content(&tarball.finish().unwrap()).unwrap()
    }

    fn files(blob: &Blob) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let walked = walk(blob, &LIMITS, |entry| -> Result<(), NotABundle> {
            let content = String::from_utf8(entry.content()?).unwrap();
            found.push((entry.name().to_owned(), content));
            Ok(())
        });
        walked.unwrap();
        found
    }

    #[test]
    fn a_tarball_is_copied_whatever_its_type_says() {
        let bytes = tarball(&[("p.rego", "package a\n")]);
        for kind in [
            media_type::LAYER_TAR_GZIP,
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.opa.bundle.layer.v1+gzip",
        ] {
            let bundle = Artifact::new().with(kind, "bundle.tar.gz", &bytes).bundle(None).unwrap();
            assert_eq!(content(&bundle).unwrap(), bytes, "{kind}");
        }
        let among_others =
            Artifact::new().with("text/plain", "README", b"x").with(media_type::LAYER_TAR_GZIP, "b", &bytes);
        assert_eq!(content(&among_others.manifest_bundle()).unwrap(), bytes);
    }

    impl Artifact {
        /// As who fetches only what is asked for.
        fn manifest_bundle(&self) -> Blob {
            let recipe = Recipe::of(&self.manifest(), None).unwrap();
            let wanted = |blob: &&Blob| recipe.layers().iter().any(|layer| layer.digest == *blob.digest());
            let blobs: Vec<_> = self.blobs.iter().filter(wanted).cloned().collect();
            recipe.follow(&blobs, &LIMITS).unwrap()
        }
    }

    #[test]
    fn a_bare_tar_stream_is_compressed_the_same_way_every_time() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(10);
        header.set_mode(0o644);
        builder.append_data(&mut header, "p.rego", &b"package a\n"[..]).unwrap();
        let bare = builder.into_inner().unwrap();
        let artifact = Artifact::new().with("application/vnd.opa.bundle.layer.v1+tar", "b", &bare);
        let (one, two) = (artifact.bundle(None).unwrap(), artifact.bundle(None).unwrap());
        assert_eq!(one.digest(), two.digest());
        assert_eq!(files(&one), [("p.rego".to_owned(), "package a\n".to_owned())]);
    }

    #[test]
    fn a_folder_that_oras_packed_loses_its_own_name() {
        let bytes = tarball(&[("policies/a/p.rego", "package a\n"), ("policies/data.json", "{}")]);
        let mut artifact = Artifact::new().with(media_type::LAYER_TAR_GZIP, "policies", &bytes);
        artifact.layers[0]["annotations"][UNPACK] = "true".into();
        let names: Vec<_> = files(&artifact.bundle(None).unwrap()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a/p.rego", "data.json"]);
    }

    fn conftest() -> Artifact {
        Artifact::new()
            .with(REGO[0], "policy/deny.rego", b"package main\n")
            .with(REGO[0], "policy/deny_test.rego", b"package main\n")
            .with(DATA, "policy/exclusions/services.yaml", b"services: [a]\n")
            .with(DATA, "policy/exclusions/users.json", b"{\"users\":{\"n\":1.10}}")
    }

    #[test]
    fn conftests_files_become_a_bundle_in_whatever_order_they_lie() {
        let artifact = conftest();
        let recipe = Recipe::of(&artifact.manifest(), None).unwrap();
        assert_eq!((recipe.copies(), recipe.guessed_root()), (false, Some("policy")));
        let bundle = artifact.bundle(None).unwrap();
        let found = files(&bundle);
        assert_eq!(found[1], ("exclusions/data.json".into(), r#"{"services":["a"],"users":{"n":1.10}}"#.into()));
        assert_eq!(found[2].0, "policy/deny.rego");
        assert!(found[0].1.contains(artifact.manifest().digest().as_str()), "{found:?}");
        Bundle::open(bundle, &LIMITS).unwrap();
        let mut shuffled = conftest();
        shuffled.layers.reverse();
        shuffled.blobs.reverse();
        // Another manifest, so another revision; everything else is the same.
        assert_eq!(files(&shuffled.bundle(None).unwrap())[1..], found[1..]);
        let rooted = files(&artifact.bundle(Some("policy/exclusions/")).unwrap());
        assert!(rooted.iter().any(|(name, _)| name == "data.json"), "{rooted:?}");
    }

    #[test]
    fn what_can_not_be_a_bundle_is_refused_in_a_line() {
        let bytes = tarball(&[]);
        for (artifact, expected) in [
            (Artifact::new(), "none of 0 layers"),
            (Artifact::new().with("text/plain", "a", b"x").with("text/plain", "b", b"x"), "none of 2 layers"),
            (Artifact::new().with("text/plain", "README", b"hello"), "not a gzip tarball"),
            (Artifact::new().with("x", "z", &[0x28, 0xb5, 0x2f, 0xfd, 0]), "zstd"),
            (
                Artifact::new().with(media_type::LAYER_TAR_GZIP, "a", &bytes).with(
                    media_type::LAYER_TAR_GZIP,
                    "b",
                    &bytes,
                ),
                "2 layers are gzip tarballs",
            ),
            (Artifact::new().with(REGO[0], "../../etc/passwd", b"package a"), "no name for a file"),
            (
                Artifact::new().with(DATA, "p/a.json", b"{\"x\":1}").with(DATA, "p/b.json", b"{\"x\":2}"),
                "another data file sets data.p.x",
            ),
            (Artifact::new().with(DATA, "p/a.json", b"{"), "p/a.json:1:2\": unexpected end of input"),
        ] {
            let error = artifact.bundle(None).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
