//! A layout folder of unsigned bundles, which is changed in one step.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The files of a bundle.
#[derive(Debug, Default, Clone)]
pub(super) struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    pub(super) fn with(mut self, name: &str, content: &str) -> Self {
        self.0.push((name.to_owned(), content.as_bytes().to_vec()));
        self
    }

    /// A gzip tarball.
    pub(super) fn tarball(&self) -> Vec<u8> {
        let encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut builder = tar::Builder::new(encoder);
        for (name, content) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, content.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }
}

/// A layout folder.
#[derive(Debug)]
pub(super) struct Layout {
    folder: TempDir,
    /// By tag.
    manifests: Mutex<Vec<(String, Value)>>,
}

impl Layout {
    pub(super) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        let version = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
        fs::write(folder.path().join("oci-layout"), version).unwrap();
        Self {
            folder,
            manifests: Mutex::default(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("")
    }

    /// Moves tags to new bundles, all at once.
    pub(super) fn publish(&self, bundles: impl IntoIterator<Item = (String, Files)>) {
        for (tag, files) in bundles {
            self.move_tag(&tag, &files.tarball());
        }
        let manifests = self.manifests.lock().unwrap();
        let manifests: Vec<_> = manifests.iter().map(|(_, manifest)| manifest).collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
        let next = self.folder.path().join("index.json.new");
        fs::write(&next, index).unwrap();
        fs::rename(next, self.folder.path().join("index.json")).unwrap();
    }

    fn move_tag(&self, tag: &str, tarball: &[u8]) {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", tarball);
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer],
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = self.blob(kind, manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let mut manifests = self.manifests.lock().unwrap();
        manifests.retain(|(other, _)| other != tag);
        manifests.push((tag.to_owned(), manifest));
    }

    fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let hex: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let path: &Path = &self.folder.path().join("blobs/sha256").join(&hex);
        fs::File::create(path).unwrap().write_all(content).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": content.len() })
    }
}
