//! Assembles a bundle from the layers of an artifact. Most artifacts have the bundle as one layer;
//! some have a packed folder, single files, or the layers of a container image. Media types are
//! hints only: the bytes decide.

use std::{io, sync::Arc};

use super::{
    BundleError, LayerError, Limits,
    archive::{Allowance, ErrorKeeper, walk_stream},
    assembled::{Assembled, Provenance, Transform},
    conftest,
    flatten::{check_is_policy, flatten},
    layer::LayerFormat,
    opa_signature::{SIGNATURE_FILE, Signer, Verifier},
    paths::relative_path,
    tarball::Output,
};
use crate::oci::{
    Blob, BlobSpace, Descriptor, Digest, Document as ManifestKind, Manifest, NewManifest,
    media_type,
};

/// The way to assemble a bundle from the layers of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    strategy: Strategy,
    layers: Vec<Descriptor>,
    /// The digest of the manifest.
    manifest: Digest,
    /// Verifies OPA's own signature of the bundle.
    verifier: Option<Arc<Verifier>>,
    /// Signs the bundle for OPA.
    signer: Option<Arc<Signer>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Strategy {
    /// One layer is the bundle, byte for byte if it is a gzip tarball.
    Copy,
    /// One layer is a folder that oras packed; its files lose the name of the folder.
    StripFolder { folder: String },
    /// Each layer is a file of conftest. `root` is the folder below which data is mounted, which
    /// the artifact does not record.
    Assemble { root: String, guessed: bool },
    /// The layers are the file system of a container image.
    Flatten,
}

pub(super) const TITLE_ANNOTATION: &str = "org.opencontainers.image.title";
/// Set by oras on a layer that is a packed folder.
const UNPACK_ANNOTATION: &str = "io.deis.oras.content.unpack";
/// The config of docker's images.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const HELM_CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
/// The most layers that make a bundle: each is a request, and is named in the cache's index.
const MAX_LAYERS: usize = 1024;

/// The versions of the transforms; each is raised when the transform makes other content.
mod version {
    pub(super) const GZIP: u32 = 1;
    pub(super) const STRIP: u32 = 1;
    pub(super) const FILES: u32 = 1;
    pub(super) const LAYERS: u32 = 1;
    pub(super) const RESIGN: u32 = 1;
}

impl LayerPlan {
    /// Chooses the plan from the manifest alone. `data_root` is the folder below which conftest's
    /// data is mounted; the default is the first folder that all its policies share.
    ///
    /// # Errors
    /// When no layer can be the bundle, or more than one can, or there are too many.
    pub fn of(manifest: &Manifest, data_root: Option<&str>) -> Result<Self, LayerError> {
        let ManifestKind::Image { config, layers, .. } = manifest.document() else {
            return Err(LayerError::Layers(
                "an image index, not an artifact; name the artifact itself".to_owned(),
            ));
        };
        if config.media_type == HELM_CONFIG {
            return Err(LayerError::Layers("a Helm chart".to_owned()));
        }
        let (strategy, layers) =
            if !layers.is_empty() && layers.iter().all(conftest::is_single_file) {
                let root = data_root.map_or_else(
                    || conftest::common_folder(layers),
                    |root| root.trim_matches('/').to_owned(),
                );
                let guessed = data_root.is_none() && layers.iter().any(conftest::is_data);
                (Strategy::Assemble { root, guessed }, layers.clone())
            } else if layers.len() > 1 && is_image(config) && layers.iter().all(is_changeset) {
                (Strategy::Flatten, layers.clone())
            } else {
                let layer = tarball_layer(layers)?.clone();
                (strategy_of(&layer), vec![layer])
            };
        if layers.len() > MAX_LAYERS {
            let message = format!("{} layers; at most {MAX_LAYERS} are read", layers.len());
            return Err(LayerError::Layers(message));
        }
        Ok(Self {
            strategy,
            layers,
            manifest: manifest.digest().clone(),
            verifier: None,
            signer: None,
        })
    }

    /// Refuses a bundle that is not signed for OPA by one of these keys. The bundle is verified as
    /// the artifact has it, before it is signed again.
    #[must_use]
    pub fn verified_by(self, verifier: Option<Arc<Verifier>>) -> Self {
        Self { verifier, ..self }
    }

    /// Signs the bundle for OPA, in place of the signature that it may have.
    #[must_use]
    pub fn signed_by(self, signer: Option<Arc<Signer>>) -> Self {
        Self { signer, ..self }
    }

    /// The layers to fetch.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Whether one layer is the bundle, byte for byte if it is a gzip tarball.
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

    /// The digest from which the entity tag of the bundle is made, without fetching a layer; for
    /// one that is compressed in another way than its media type says, it is another one.
    pub fn expected_digest(&self) -> Option<Digest> {
        let is_zstd = |layer: &Descriptor| layer.media_type.ends_with("+zstd");
        let transform = match (&self.strategy, self.layers.as_slice()) {
            (Strategy::Copy, [layer]) if !is_zstd(layer) => {
                let Some(signer) = &self.signer else {
                    return Some(layer.digest.clone());
                };
                signed(None, signer)
            }
            (Strategy::Copy, _) => self.with_signature(gzip()),
            _ => self.with_signature(self.transform()),
        };
        Some(self.provenance(transform).digest())
    }

    /// Assembles the bundle from [`Self::layers`], in their order. The same layers give the same
    /// content; the same compressor gives the same bytes. Blocks. Whatever is made is kept in
    /// `space`.
    ///
    /// # Errors
    /// When the layers do not form a tarball, or are not those of the plan; with a verifier or a
    /// signer also when OPA would refuse the bundle, or it is not signed or can't be.
    pub fn assemble(
        &self,
        blobs: &[Blob],
        limits: &Limits,
        space: Arc<dyn BlobSpace>,
    ) -> Result<Assembled, LayerError> {
        self.assemble_to(blobs, limits, &Output::to(space))
    }

    fn assemble_to(
        &self,
        blobs: &[Blob],
        limits: &Limits,
        output: &Output,
    ) -> Result<Assembled, LayerError> {
        let assembled = self.assemble_layers(blobs, limits, output)?;
        if self.verifier.is_none() && self.signer.is_none() {
            return Ok(assembled);
        }
        let bundle = assembled.clone().open(limits)?;
        if let Some(verifier) = &self.verifier {
            verifier.verify(&bundle)?;
        }
        let Some(signer) = &self.signer else {
            return Ok(assembled);
        };
        let previous = assembled.provenance().map(Provenance::transform);
        let provenance = self.provenance(signed(previous, signer));
        Ok(Assembled::made(signer.sign(&bundle, output)?, provenance))
    }

    fn assemble_layers(
        &self,
        blobs: &[Blob],
        limits: &Limits,
        output: &Output,
    ) -> Result<Assembled, LayerError> {
        self.check_layers(blobs)?;
        let blob = match (&self.strategy, blobs) {
            (Strategy::Copy, [layer]) => {
                let format = LayerFormat::of(layer)?;
                if format == LayerFormat::Gzip {
                    return Ok(Assembled::copy(layer.clone()));
                }
                let made = recompress(layer, format, limits, output)?;
                return Ok(Assembled::made(made, self.provenance(gzip())));
            }
            (Strategy::StripFolder { folder }, [layer]) => strip(layer, folder, limits, output)?,
            (Strategy::Assemble { root, .. }, blobs) => {
                let revision = self.manifest.as_str();
                conftest::pack(&self.layers, blobs, root, revision, limits, output)?
            }
            (Strategy::Flatten, blobs) => flatten(blobs, limits, output)?,
            (_, blobs) => {
                let count = blobs.len();
                let message = format!("{count} layers instead of one");
                return Err(LayerError::Layers(message));
            }
        };
        Ok(Assembled::made(blob, self.provenance(self.transform())))
    }

    /// Checks that the blobs are the layers that the manifest names, so that nothing else gets into
    /// a bundle.
    fn check_layers(&self, blobs: &[Blob]) -> Result<(), LayerError> {
        let is_same = |(layer, blob): (&Descriptor, &Blob)| {
            layer.digest == *blob.digest() && layer.size == blob.size()
        };
        if blobs.len() == self.layers.len() && self.layers.iter().zip(blobs).all(is_same) {
            return Ok(());
        }
        Err(LayerError::Layers(
            "the layers are not those of the manifest".to_owned(),
        ))
    }

    fn provenance(&self, transform: Transform) -> Provenance {
        let layers = self.layers.iter().map(|layer| layer.digest.clone());
        Provenance::new(self.manifest.clone(), layers.collect(), transform)
    }

    /// A transform, with the signature that follows it if there is a signer.
    fn with_signature(&self, transform: Transform) -> Transform {
        match &self.signer {
            Some(signer) => signed(Some(&transform), signer),
            None => transform,
        }
    }

    /// The transform of a strategy that does not depend on the bytes.
    fn transform(&self) -> Transform {
        match &self.strategy {
            Strategy::Copy => gzip(),
            Strategy::StripFolder { folder } => {
                Transform::new("strip", version::STRIP, vec![folder.clone()])
            }
            Strategy::Assemble { root, .. } => {
                // The manifest is the revision; it has the titles, too.
                let parameters = vec![self.manifest.to_string(), root.clone()];
                Transform::new("files", version::FILES, parameters)
            }
            Strategy::Flatten => Transform::new("layers", version::LAYERS, Vec::new()),
        }
    }
}

/// The transform of a tarball that OPA can't read as it is compressed.
fn gzip() -> Transform {
    Transform::new("gzip", version::GZIP, Vec::new())
}

/// The transform of a bundle that is signed for OPA after it was made.
fn signed(previous: Option<&Transform>, signer: &Signer) -> Transform {
    Transform::after(previous, "resign", version::RESIGN, signer.parameters())
}

fn strategy_of(layer: &Descriptor) -> Strategy {
    match (
        layer.annotation(UNPACK_ANNOTATION),
        layer.annotation(TITLE_ANNOTATION),
    ) {
        (Some("true"), Some(folder)) => Strategy::StripFolder {
            folder: folder.trim_matches('/').to_owned(),
        },
        _ => Strategy::Copy,
    }
}

/// Whether a config is that of a container image; artifacts have an empty one of the same type.
fn is_image(config: &Descriptor) -> bool {
    let is_empty = config.digest == Digest::sha256(NewManifest::CONFIG) || config.size <= 2;
    [DOCKER_CONFIG, media_type::IMAGE_CONFIG].contains(&config.media_type.as_str()) && !is_empty
}

/// Whether a layer is part of the file system of an image.
fn is_changeset(layer: &Descriptor) -> bool {
    [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ]
    .iter()
    .any(|start| layer.media_type.starts_with(start))
}

/// Chooses the layer that is a tarball: by OPA's own media type, by another tarball type, or
/// because it is the only layer.
fn tarball_layer(layers: &[Descriptor]) -> Result<&Descriptor, LayerError> {
    let is_opa_layer = |layer: &&Descriptor| layer.media_type == media_type::LAYER_TAR_GZIP;
    let is_tarball_type = |layer: &&Descriptor| {
        let kind = layer.media_type.as_str();
        ["tar+gzip", "tar.gzip", "tar+zstd", "tar.zstd"]
            .iter()
            .any(|end| kind.ends_with(end))
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
                    "{} layers are tarballs instead of one",
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

/// Compresses a tar stream with gzip, and leaves the stream as it is.
fn recompress(
    layer: &Blob,
    format: LayerFormat,
    limits: &Limits,
    output: &Output,
) -> Result<Blob, LayerError> {
    let allowance = Allowance::new(limits);
    let mut stream = ErrorKeeper {
        inner: allowance.bound(format.unpack(layer)),
        error: None,
    };
    let mut encoder = output.compress();
    let copied = io::copy(&mut stream, &mut encoder);
    if let Some(error) = stream.error {
        return Err(allowance.error(&error).into());
    }
    copied
        .and_then(|_| encoder.finish()?.finish())
        .map_err(LayerError::Temporary)
}

/// Packs the files of a folder anew, without its name, in the same order. Tests are left out: they
/// are not policy, and may lie outside the roots of `.manifest`. Where OPA's own signatures are
/// among the files, all of them are kept, since a signature covers every file.
fn strip(layer: &Blob, folder: &str, limits: &Limits, output: &Output) -> Result<Blob, LayerError> {
    let prefix = format!("{folder}/");
    let name_of = |name: &str| {
        let Some(name) = relative_path(name) else {
            let path = name.chars().take(256).collect();
            let reason = "its name is not valid in a bundle".to_owned();
            return Err(LayerError::from(BundleError::File { path, reason }));
        };
        let stripped = name.strip_prefix(&prefix).map(str::to_owned);
        Ok(stripped.unwrap_or(name))
    };
    let unpack = || Ok::<_, LayerError>(LayerFormat::of(layer)?.unpack(layer));
    let mut names = Vec::new();
    walk_stream(unpack()?, limits, |entry| {
        names.push(name_of(entry.name())?);
        Ok::<_, LayerError>(())
    })?;
    check_is_policy(names.iter())?;
    let is_signed = names.iter().any(|name| name == SIGNATURE_FILE);
    let mut tarball = output.tarball();
    walk_stream(unpack()?, limits, |entry| {
        let name = name_of(entry.name())?;
        if name.ends_with("_test.rego") && !is_signed {
            return Ok(());
        }
        entry.copy_to(|size, content| tarball.add(&name, size, content))
    })?;
    tarball.finish().map_err(LayerError::Temporary)
}

#[cfg(test)]
mod tests;
