//! Which part of an artifact is the bundle.

use crate::oci::{Descriptor, Document, Manifest};

/// The layer that is the bundle: the only one, or the only gzip tarball among several.
///
/// # Errors
/// A sentence, when there is none or more than one.
pub fn layer(manifest: &Manifest) -> Result<&Descriptor, String> {
    if let Document::Index { .. } = manifest.document() {
        return Err("an image index, not an artifact with a bundle layer; name the artifact itself".to_owned());
    }
    if let [only] = manifest.layers() {
        return Ok(only);
    }
    let tarballs: Vec<_> = manifest
        .layers()
        .iter()
        .filter(|layer| layer.media_type.ends_with("tar+gzip") || layer.media_type.ends_with("tar.gzip"))
        .collect();
    match tarballs.as_slice() {
        [only] => Ok(only),
        none_or_many => Err(format!("{} gzip tarball layers instead of one", none_or_many.len())),
    }
}
