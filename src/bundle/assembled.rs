//! Bundles that are made from the layers of an artifact, with their provenance.

use super::{Bundle, BundleError, Limits};
use crate::oci::{Blob, Digest, Hasher};

/// The bytes of a bundle, with the layers that they were made from. Only
/// [`LayerPlan::assemble`](super::LayerPlan::assemble) makes one.
#[derive(Debug, Clone)]
pub struct Assembled {
    blob: Blob,
    provenance: Option<Provenance>,
}

/// What a bundle was made from, and how: the manifest, some of its layers, and the transform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    manifest: Digest,
    layers: Vec<Digest>,
    transform: Transform,
}

/// A named, versioned way to make a bundle from layers. The version changes with the content of the
/// bundles, so that replicas of one version have one entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    name: &'static str,
    version: u32,
    /// All inputs but the layers that the content depends on.
    parameters: Vec<String>,
}

impl Assembled {
    /// A layer that is the bundle, byte for byte.
    pub(super) fn copy(layer: Blob) -> Self {
        Self {
            blob: layer,
            provenance: None,
        }
    }

    pub(super) fn made(blob: Blob, provenance: Provenance) -> Self {
        Self {
            blob,
            provenance: Some(provenance),
        }
    }

    /// The bytes.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// `None` if the bytes are those of a layer.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// Opens the bundle, as [`Bundle::open`].
    ///
    /// # Errors
    /// When OPA would refuse the bundle, or a limit is exceeded.
    pub fn open(self, limits: &Limits) -> Result<Bundle, BundleError> {
        Ok(Bundle::open(self.blob, limits)?.made_by(self.provenance))
    }
}

impl Provenance {
    pub(super) fn new(manifest: Digest, layers: Vec<Digest>, transform: Transform) -> Self {
        Self {
            manifest,
            layers,
            transform,
        }
    }

    /// The digest of the manifest whose layers these are.
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    /// The digests of the layers, in the order of the manifest.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// The transform.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// A digest of the layers and the transform, from which the entity tag is made. The bytes of
    /// the bundle would not do: another compressor makes other bytes of the same content on another
    /// replica. Each part has its length before it, and each list its number of parts.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::sha256();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        };
        let Transform {
            name,
            version,
            parameters,
        } = &self.transform;
        add(&self.layers.len().to_string());
        self.layers.iter().for_each(|layer| add(layer.as_str()));
        add(name);
        add(&version.to_string());
        add(&parameters.len().to_string());
        parameters.iter().for_each(|parameter| add(parameter));
        hasher.finish()
    }
}

impl Transform {
    pub(super) fn new(name: &'static str, version: u32, parameters: Vec<String>) -> Self {
        Self {
            name,
            version,
            parameters,
        }
    }

    /// A transform of the bundle that `previous` has made, or that is a layer as it is.
    pub(super) fn after(
        previous: Option<&Self>,
        name: &'static str,
        version: u32,
        parameters: Vec<String>,
    ) -> Self {
        let mut all = match previous {
            None => vec!["0".to_owned()],
            Some(previous) => {
                // The number first, so that no two lists of parameters read the same.
                let count = previous.parameters.len() + 2;
                let name_and_version = [previous.name.to_owned(), previous.version.to_string()];
                let before = name_and_version.into_iter();
                [count.to_string()]
                    .into_iter()
                    .chain(before.chain(previous.parameters.iter().cloned()))
                    .collect()
            }
        };
        all.extend(parameters);
        Self::new(name, version, all)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_the_entity_tag_changes_it() {
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::sha256(bytes));
        let digest = |layers: &[&Digest], name, version, parameters: &[&str]| {
            let parameters = parameters.iter().map(|text| (*text).to_owned()).collect();
            let layers = layers.iter().map(|layer| (*layer).clone()).collect();
            let transform = Transform::new(name, version, parameters);
            Provenance::new(Digest::sha256(b"m"), layers, transform)
                .digest()
                .to_string()
        };
        let all = [
            digest(&[&one, &two], "layers", 1, &[]),
            digest(&[&two, &one], "layers", 1, &[]),
            digest(&[&one], "layers", 1, &[]),
            digest(&[&one, &two], "files", 1, &[]),
            digest(&[&one, &two], "layers", 2, &[]),
            digest(&[&one, &two], "layers", 1, &[""]),
            digest(&[&one, &two], "layers", 1, &["a", "b"]),
            digest(&[&one, &two], "layers", 1, &["ab"]),
        ];
        for (at, first) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(first), "{at}");
        }
        // A change of these bytes wakes every client.
        assert_eq!(
            all[0],
            "sha256:f9922976210035849d5a14b2ea3176ef06f6b5ca63ab82dbe102768b22bb0904"
        );
    }
}
