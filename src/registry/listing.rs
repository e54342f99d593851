//! Descriptors in a document that any client with write access can write: a list of referrers,
//! or the image of signatures at a `.sig` tag. Nothing in it is trusted, and a malformed entry
//! does not affect the others.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::RegistryError;
use crate::oci::{Descriptor, Digest, media_types_agree};

/// The descriptors of a document.
#[derive(Debug, Default)]
pub struct Listing {
    /// The well-formed descriptors, in order.
    pub entries: Vec<Descriptor>,
    /// One sentence for each part that can't be used.
    pub skipped: Vec<String>,
    /// The length of the document in bytes.
    pub size: u64,
    /// Why the list lacks its end: the registry did not deliver a later page.
    pub failure: Option<RegistryError>,
}

/// The list in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// The `layers` of an image manifest.
    Layers,
    /// The `manifests` of an image index.
    Manifests,
}

/// Malformed entries that are reported one by one; further ones are counted.
const MAX_REPORTED: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    media_type: Option<String>,
    #[serde(borrow, default)]
    layers: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    manifests: Option<Vec<&'a RawValue>>,
}

impl Listing {
    /// Reads the descriptors of a document. A `content_type` that contradicts the document's
    /// `mediaType` is reported in `skipped`.
    ///
    /// # Errors
    /// When `body` is not a JSON object, or `member` is not a list.
    pub(super) fn read(
        body: &[u8],
        member: Member,
        content_type: Option<&str>,
    ) -> Result<Self, String> {
        let document: Document<'_> =
            serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let entries = match member {
            Member::Layers => document.layers,
            Member::Manifests => document.manifests,
        };
        let mut listing = Self {
            size: body.len() as u64,
            ..Self::default()
        };
        if let (Some(field), Some(header)) = (&document.media_type, content_type)
            && !media_types_agree(field, header)
        {
            listing.skipped.push(format!(
                "mediaType is {field:?}, but Content-Type is {header:?}"
            ));
        }
        let mut malformed = 0_usize;
        for (index, entry) in entries.unwrap_or_default().into_iter().enumerate() {
            match serde_json::from_str(entry.get()) {
                Ok(descriptor) => listing.entries.push(descriptor),
                Err(error) => {
                    malformed += 1;
                    if malformed <= MAX_REPORTED {
                        listing.skipped.push(format!("entry {index}: {error}"));
                    }
                }
            }
        }
        if malformed > MAX_REPORTED {
            listing.skipped.push(format!(
                "{} more entries are malformed",
                malformed - MAX_REPORTED
            ));
        }
        Ok(listing)
    }

    /// As [`Self::read`], of the document at a tag; one that can't be read is unusable.
    pub(super) fn of_tag(
        tag: &str,
        body: &[u8],
        member: Member,
        content_type: Option<&str>,
    ) -> Self {
        match Self::read(body, member, content_type) {
            Ok(listing) => listing.with_name(tag),
            Err(reason) => Self {
                size: body.len() as u64,
                ..Self::unusable(tag, reason)
            },
        }
    }

    /// Adds a further page.
    pub(super) fn extend(&mut self, page: Self) {
        self.size += page.size;
        self.entries.extend(page.entries);
        self.skipped.extend(page.skipped);
    }

    /// Adds the list of another host, without the entries that are there already.
    pub(super) fn merge(&mut self, other: Self) {
        let mut known: HashSet<_> = self.entries.iter().map(identity).collect();
        let is_new: Vec<_> = other
            .entries
            .iter()
            .map(|entry| known.insert(identity(entry)))
            .collect();
        let new = other.entries.into_iter().zip(is_new);
        self.entries
            .extend(new.filter_map(|(entry, is_new)| is_new.then_some(entry)));
        self.size += other.size;
        self.skipped.extend(other.skipped);
        self.failure = self.failure.take().or(other.failure);
    }

    /// Prefixes each sentence with the name of the document.
    pub(super) fn with_name(mut self, name: &str) -> Self {
        self.skipped
            .iter_mut()
            .for_each(|sentence| *sentence = format!("{name}: {sentence}"));
        self
    }

    /// The listing of a document that can't be used at all.
    pub(super) fn unusable(name: &str, reason: impl std::fmt::Display) -> Self {
        Self {
            skipped: vec![format!("{name}: {reason}")],
            ..Self::default()
        }
    }
}

/// What makes two entries the same. The size counts, because nothing in a list is verified: an entry
/// with the right digest and a wrong size can't be fetched, and must not hide the right one.
fn identity(entry: &Descriptor) -> (&Digest, u64, Option<&BTreeMap<String, String>>) {
    (&entry.digest, entry.size, entry.annotations.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::media_type;

    fn read(document: &serde_json::Value, content_type: Option<&str>) -> Listing {
        Listing::read(
            document.to_string().as_bytes(),
            Member::Layers,
            content_type,
        )
        .unwrap()
    }

    #[test]
    fn a_malformed_entry_does_not_affect_the_others() {
        let good = Descriptor::of("a/b", b"x");
        for bad in [
            json!(null),
            json!("text"),
            json!({}),
            json!({"mediaType": "a/b", "digest": "md5:00", "size": 1}),
            json!({"mediaType": "a/b", "digest": good.digest, "size": -1}),
            json!({"mediaType": "a/b", "digest": good.digest, "size": 1.5}),
            json!({"mediaType": "a/b", "digest": good.digest, "size": "1"}),
            json!({"mediaType": 7, "digest": good.digest, "size": 1}),
            json!({"mediaType": "a/b", "digest": good.digest, "size": 1, "annotations": {"a": 1}}),
            json!({"mediaType": "a/b", "digest": good.digest, "size": 1, "artifactType": []}),
        ] {
            let listing = read(&json!({"layers": [bad, good, bad]}), None);
            assert_eq!(
                (listing.entries.as_slice(), listing.skipped.len()),
                ([good.clone()].as_slice(), 2),
                "{bad}"
            );
        }
        let many = read(&json!({"layers": vec![json!({}); 10_000]}), None);
        assert_eq!(
            (many.entries.len(), many.skipped.len()),
            (0, MAX_REPORTED + 1)
        );
        assert_eq!(
            many.skipped.last().unwrap(),
            "9992 more entries are malformed"
        );
    }

    #[test]
    fn merged_lists_have_each_entry_once_and_those_of_another_size_beside_it() {
        let one = Descriptor::of("a/b", b"x");
        let longer = Descriptor {
            size: one.size + 1,
            ..one.clone()
        };
        let annotated = Descriptor {
            annotations: Some([("a".to_owned(), "1".to_owned())].into()),
            ..one.clone()
        };
        let mut merged = read(&json!({"layers": [one]}), None);
        let size = merged.size;
        let other = read(&json!({"layers": [longer, one, annotated, longer]}), None);
        let sum = size + other.size;
        merged.merge(other);
        assert_eq!(merged.entries, [one, longer, annotated]);
        assert_eq!(merged.size, sum);
    }

    /// Signatures by several keys share a payload, so one digest may be in a list thousands of times.
    #[test]
    fn long_lists_of_entries_with_one_digest_are_merged_in_linear_time() {
        const COUNT: usize = 60_000;
        let list = |kind: char| Listing {
            entries: (0..COUNT)
                .map(|number| Descriptor {
                    annotations: Some([("a".to_owned(), format!("{kind}{number}"))].into()),
                    ..Descriptor::of("a/b", b"x")
                })
                .collect(),
            ..Listing::default()
        };
        let mut merged = list('a');
        merged.merge(list('b'));
        merged.merge(list('a'));
        assert_eq!(merged.entries.len(), 2 * COUNT);
    }

    #[test]
    fn a_contradicting_content_type_is_reported_and_the_entries_stay() {
        let good = Descriptor::of("a/b", b"x");
        let document = json!({"mediaType": media_type::OCI_MANIFEST, "layers": [good]});
        for (header, reported) in [
            (Some(media_type::OCI_MANIFEST), 0),
            (Some("application/json; charset=utf-8"), 0),
            (None, 0),
            (Some(media_type::OCI_INDEX), 1),
            (Some("text/html"), 1),
        ] {
            let listing = read(&document, header);
            assert_eq!(
                (listing.entries.len(), listing.skipped.len()),
                (1, reported),
                "{header:?}"
            );
        }
    }

    #[test]
    fn a_body_without_such_a_list_is_an_error() {
        for body in [
            "",
            "<html>",
            "[]",
            "7",
            r#"{"layers": {}}"#,
            r#"{"layers": [], "layers": []}"#,
        ] {
            assert!(
                Listing::read(body.as_bytes(), Member::Layers, None).is_err(),
                "{body}"
            );
        }
        assert!(
            Listing::read(b"{}", Member::Manifests, None)
                .unwrap()
                .entries
                .is_empty()
        );
    }
}
