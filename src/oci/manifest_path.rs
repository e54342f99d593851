//! The way from the manifest that a reference names to the manifest of an image.

use super::{Descriptor, Digest, Document, Manifest};

/// Manifests, each of them listed by the one before it: image indexes, and at last an image. Most
/// references name an image, and their path is that alone.
#[derive(Debug, Clone)]
pub struct ManifestPath {
    /// The indexes, with the digests by which they were found.
    indexes: Vec<(Digest, Manifest)>,
    last: (Digest, Manifest),
}

/// A manifest that the index before it does not list with this digest and size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("index {index} does not list manifest {manifest} with its digest and size")]
pub struct NotListed {
    /// The index.
    pub index: Digest,
    /// The other manifest.
    pub manifest: Digest,
}

impl ManifestPath {
    /// The path that begins with the manifest of this digest.
    pub fn new(digest: Digest, manifest: Manifest) -> Self {
        Self {
            indexes: Vec::new(),
            last: (digest, manifest),
        }
    }

    /// Continues the path with a manifest that its last one lists.
    ///
    /// # Errors
    /// When the last manifest is not an index, or does not list it with its digest and size.
    pub fn descend(self, manifest: Manifest) -> Result<Self, NotListed> {
        let (index, last) = self.last;
        let Some(digest) = last.listed_digest(&manifest) else {
            return Err(NotListed {
                index,
                manifest: manifest.digest().clone(),
            });
        };
        let mut indexes = self.indexes;
        indexes.push((index, last));
        Ok(Self {
            indexes,
            last: (digest, manifest),
        })
    }

    /// The digest that the reference names.
    pub fn digest(&self) -> &Digest {
        &self.indexes.first().unwrap_or(&self.last).0
    }

    /// The last manifest.
    pub fn last(&self) -> &Manifest {
        &self.last.1
    }

    /// The digest of the last manifest; `None` if it is the first one, too.
    pub fn image_digest(&self) -> Option<&Digest> {
        (!self.indexes.is_empty()).then_some(&self.last.0)
    }

    /// The number of manifests; at least one.
    pub fn length(&self) -> usize {
        self.indexes.len() + 1
    }

    /// The manifests with their digests, from the first to the last.
    pub fn manifests(&self) -> impl Iterator<Item = (&Digest, &Manifest)> {
        let all = self.indexes.iter().chain([&self.last]);
        all.map(|(digest, manifest)| (digest, manifest))
    }
}

impl Manifest {
    /// The digest by which this index lists a manifest; `None` if it does not list it with its
    /// digest and size.
    pub fn listed_digest(&self, manifest: &Self) -> Option<Digest> {
        let Document::Index { manifests } = self.document() else {
            return None;
        };
        let (raw, digest) = (manifest.raw(), manifest.digest());
        // Computed at most once: an index may have tens of thousands of entries of one size.
        let mut other: Option<Digest> = None;
        let mut is_same = |entry: &&Descriptor| {
            entry.size == raw.len() as u64
                && if entry.digest.algorithm() == digest.algorithm() {
                    entry.digest == *digest
                } else {
                    *other.get_or_insert_with(|| entry.digest.recompute(raw)) == entry.digest
                }
        };
        let listed = manifests.iter().find(|entry| is_same(entry));
        listed.map(|entry| entry.digest.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::media_type;

    fn manifest(document: &Value) -> Manifest {
        Manifest::parse(document.to_string().into(), None, 1 << 20).unwrap()
    }

    fn image(name: &str) -> Manifest {
        manifest(&json!({
            "schemaVersion": 2, "config": Descriptor::of(media_type::EMPTY, b"{}"),
            "layers": [], "annotations": { "name": name },
        }))
    }

    fn index(entries: &[Descriptor]) -> Manifest {
        manifest(&json!({ "schemaVersion": 2, "manifests": entries }))
    }

    #[test]
    fn a_manifest_is_listed_by_either_algorithm_among_many_of_its_size() {
        let one = image("one");
        let zeros = |algorithm: &str, count: usize| -> Digest {
            format!("{algorithm}:{}", "0".repeat(count))
                .parse()
                .unwrap()
        };
        let (sha256, sha512) = (zeros("sha256", 64), zeros("sha512", 128));
        let named = |digest: &Digest| Descriptor {
            digest: digest.clone(),
            ..one.descriptor()
        };
        let own = sha512.recompute(one.raw());
        let others = vec![[named(&sha256), named(&sha512)]; 1000].concat();
        let listing = |last: &[&Digest]| {
            let last = last.iter().map(|digest| named(digest));
            index(&others.iter().cloned().chain(last).collect::<Vec<_>>()).listed_digest(&one)
        };
        assert_eq!(listing(&[]), None);
        assert_eq!(listing(&[one.digest()]), Some(one.digest().clone()));
        assert_eq!(listing(&[&own]), Some(own.clone()));
        assert_eq!(
            listing(&[&own, one.digest()]),
            Some(own.clone()),
            "the first"
        );
    }

    #[test]
    fn a_path_leads_only_to_manifests_that_are_listed() {
        let (one, other) = (image("one"), image("other"));
        let inner = index(&[one.descriptor()]);
        let outer = index(&[other.descriptor(), inner.descriptor()]);
        let start = || ManifestPath::new(outer.digest().clone(), outer.clone());
        assert_eq!((start().length(), start().image_digest()), (1, None));
        let path = start()
            .descend(inner.clone())
            .unwrap()
            .descend(one.clone())
            .unwrap();
        assert_eq!(path.digest(), outer.digest());
        assert_eq!(path.image_digest(), Some(one.digest()));
        assert_eq!(path.length(), 3);
        let digests: Vec<_> = path.manifests().map(|(digest, _)| digest).collect();
        assert_eq!(digests, [outer.digest(), inner.digest(), one.digest()]);
        assert!(
            start().descend(one.clone()).is_err(),
            "only the inner one lists it"
        );
        let at_image = ManifestPath::new(one.digest().clone(), one.clone());
        assert!(
            at_image.descend(one.clone()).is_err(),
            "an image lists nothing"
        );
        let mut lying = one.descriptor();
        lying.size += 1;
        let lying = index(&[lying]);
        let path = ManifestPath::new(lying.digest().clone(), lying);
        let error = path.descend(one.clone()).unwrap_err().to_string();
        assert!(error.contains(one.digest().as_str()), "{error}");
    }
}
