//! `index.json` of an OCI image layout (image-spec, `image-index.md`): its entries and their names.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Descriptor, media_type};

/// `index.json`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LayoutIndex {
    schema_version: u32,
    #[serde(default = "index_type")]
    media_type: String,
    /// The entries: manifests, named by an annotation.
    pub manifests: Vec<Descriptor>,
}

impl LayoutIndex {
    /// The annotation that names an entry.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

    /// The entry that `tag` names, as a bare tag or as the end of a full reference.
    pub fn find(&self, tag: &str) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| {
            entry.annotation(Self::REF_NAME).is_some_and(|name| {
                name == tag
                    || name
                        .strip_suffix(tag)
                        .is_some_and(|front| front.ends_with(':') && front.contains('/'))
            })
        })
    }

    /// The bytes of `index.json`, or of another image index.
    ///
    /// # Errors
    /// Never in practice: every part is a string or a number.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// The entry with exactly this name.
    pub fn named(&self, name: &str) -> Option<&Descriptor> {
        self.manifests
            .iter()
            .find(|entry| entry.annotation(Self::REF_NAME) == Some(name))
    }

    /// Every entry with a name, and its name.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Descriptor)> {
        self.manifests
            .iter()
            .filter_map(|entry| Some((entry.annotation(Self::REF_NAME)?, entry)))
    }

    /// Removes the entry with this name.
    pub fn unset(&mut self, name: &str) {
        self.manifests
            .retain(|entry| entry.annotation(Self::REF_NAME) != Some(name));
    }

    /// Sets the entry with this name.
    pub fn set(&mut self, name: &str, mut entry: Descriptor) {
        self.unset(name);
        entry
            .annotations
            .get_or_insert_default()
            .insert(Self::REF_NAME.to_owned(), name.to_owned());
        self.manifests.push(entry);
    }
}

impl Default for LayoutIndex {
    fn default() -> Self {
        Self {
            schema_version: 2,
            media_type: index_type(),
            manifests: Vec::new(),
        }
    }
}

fn index_type() -> String {
    media_type::OCI_INDEX.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_by_tag_or_by_full_reference() {
        let mut index = LayoutIndex::default();
        index.set(
            "ghcr.io/acme/authz:v1",
            Descriptor::of(media_type::OCI_MANIFEST, b""),
        );
        assert!(index.find("v1").is_some());
        assert!(index.find("ghcr.io/acme/authz:v1").is_some());
        assert!(index.find("1").is_none());
        assert!(index.find("authz:v1").is_none());
    }
}
