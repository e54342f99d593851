//! The manifest of an image index that stands for it (OCI image-spec 1.1, `image-index.md`).

use std::{collections::HashSet, fmt, str::FromStr};

use serde_json::Value;

use super::{Descriptor, media_type};

/// A platform, written `os/architecture` or `os/architecture/variant`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Any variant, if there is none.
    variant: Option<String>,
}

/// A text that is no platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a platform; write one such as linux/amd64 or linux/arm/v7")]
pub struct NotAPlatform;

/// An index in which no manifest, or more than one, can be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Nothing but attestations and other content.
    #[error("the image index has no manifest of an image")]
    Empty,
    /// Several, and none of the wanted platform.
    #[error(
        "the image index has {count} manifests ({platforms}); set `platform` of the bundle to the one to serve, or name its digest"
    )]
    Several {
        /// Their number.
        count: usize,
        /// Their platforms.
        platforms: String,
    },
    /// Several of the wanted platform.
    #[error(
        "the image index has {count} manifests for {platform}; name the digest of the one to serve"
    )]
    SeveralOf {
        /// Their number.
        count: usize,
        /// The platform.
        platform: String,
    },
}

/// The types of manifests and indexes.
const MANIFESTS: [&str; 4] = [
    media_type::OCI_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
];
/// Set by buildkit on the attestations of another manifest of the index.
const ATTESTATION_ANNOTATION: &str = "vnd.docker.reference.type";
/// The number of platforms that an error names.
const MAX_NAMED: usize = 8;

/// The manifest that stands for an index: the only one; of several the one of the wanted platform,
/// or else the only one without a platform. Attestations count as no manifests.
///
/// # Errors
/// When there is none, or several can be meant.
pub fn choose_manifest<'a>(
    manifests: &'a [Descriptor],
    wanted: Option<&Platform>,
) -> Result<&'a Descriptor, IndexError> {
    let mut seen = HashSet::new();
    let usable: Vec<_> = manifests
        .iter()
        .filter(|entry| is_usable(entry) && seen.insert(&entry.digest))
        .collect();
    match usable.as_slice() {
        [] => return Err(IndexError::Empty),
        [only] => return Ok(only),
        _ => {}
    }
    if let Some(wanted) = wanted {
        let mut matching = usable.iter().filter(|entry| wanted.matches(entry));
        match (matching.next(), matching.count()) {
            (Some(first), 0) => return Ok(first),
            (Some(_), more) => {
                return Err(IndexError::SeveralOf {
                    count: more + 1,
                    platform: wanted.to_string(),
                });
            }
            (None, _) => {}
        }
    }
    let mut without = usable.iter().filter(|entry| platform_of(entry).is_none());
    match (without.next(), without.next()) {
        (Some(only), None) => Ok(only),
        _ => {
            let platforms: Vec<_> = usable
                .iter()
                .take(MAX_NAMED)
                .map(|entry| platform_of(entry).unwrap_or_else(|| "no platform".to_owned()))
                .collect();
            Err(IndexError::Several {
                count: usable.len(),
                platforms: platforms.join(", "),
            })
        }
    }
}

fn is_usable(entry: &Descriptor) -> bool {
    MANIFESTS.contains(&entry.media_type.as_str())
        && entry.annotation(ATTESTATION_ANNOTATION).is_none()
        && platform_of(entry).as_deref() != Some("unknown/unknown")
}

fn field<'a>(entry: &'a Descriptor, key: &str) -> &'a str {
    let platform = entry.platform.as_ref();
    platform
        .and_then(|platform| platform.get(key))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The platform of an entry as text; `None` if it states none.
fn platform_of(entry: &Descriptor) -> Option<String> {
    let parts = ["os", "architecture", "variant"].map(|key| field(entry, key));
    let stated: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let text: String = stated.join("/").chars().take(64).collect();
    (!text.is_empty()).then_some(text)
}

impl Platform {
    fn matches(&self, entry: &Descriptor) -> bool {
        field(entry, "os") == self.os
            && field(entry, "architecture") == self.architecture
            && self
                .variant
                .as_ref()
                .is_none_or(|variant| field(entry, "variant") == variant)
    }
}

impl FromStr for Platform {
    type Err = NotAPlatform;

    fn from_str(text: &str) -> Result<Self, NotAPlatform> {
        let is_word = |part: &&str| {
            let is_plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            !part.is_empty() && part.len() <= 32 && part.bytes().all(is_plain)
        };
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(NotAPlatform),
        };
        if !parts.iter().all(is_word) {
            return Err(NotAPlatform);
        }
        Ok(Self {
            os: (*os).to_owned(),
            architecture: (*architecture).to_owned(),
            variant: variant.map(|variant| (*variant).to_owned()),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An entry by its name, which its digest depends on, and its platform.
    fn entry(name: &str, platform: &str) -> Descriptor {
        let mut entry = Descriptor::of(media_type::OCI_MANIFEST, name.as_bytes());
        let mut parts = platform.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        if !platform.is_empty() {
            let (os, architecture) = (next(), next());
            entry.platform =
                Some(json!({"os": os, "architecture": architecture, "variant": next()}));
        }
        entry
    }

    fn attestation(name: &str, platform: &str) -> Descriptor {
        let mut entry = entry(name, platform);
        let annotation = (
            ATTESTATION_ANNOTATION.to_owned(),
            "attestation-manifest".to_owned(),
        );
        entry.annotations = Some([annotation].into());
        entry
    }

    fn chosen(entries: &[Descriptor], wanted: &str) -> Result<Descriptor, String> {
        let wanted = (!wanted.is_empty()).then(|| wanted.parse::<Platform>().unwrap());
        choose_manifest(entries, wanted.as_ref())
            .cloned()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn one_manifest_stands_for_an_index() {
        let (amd, arm) = (entry("amd", "linux/amd64"), entry("arm", "linux/arm64"));
        let plain = entry("plain", "");
        let [v6, v7] = ["v6", "v7"].map(|variant| entry(variant, &format!("linux/arm/{variant}")));
        let mut unstated = entry("empty", "");
        unstated.platform = Some(json!({"os": "", "architecture": ""}));
        let mut chart = entry("chart", "");
        chart.media_type = "application/vnd.cncf.helm.config.v1+json".to_owned();
        let table: &[(&[&Descriptor], &str, &Descriptor)] = &[
            (&[&amd], "", &amd),
            (&[&amd], "linux/arm64", &amd),
            (
                &[
                    &amd,
                    &attestation("a", "linux/arm64"),
                    &entry("b", "unknown/unknown"),
                ],
                "",
                &amd,
            ),
            (&[&amd, &amd], "", &amd),
            (&[&amd, &chart], "", &amd),
            (&[&amd, &plain], "", &plain),
            (&[&amd, &unstated], "", &unstated),
            (&[&amd, &arm], "linux/arm64", &arm),
            (&[&amd, &arm, &plain], "linux/arm64", &arm),
            (&[&amd, &arm, &plain], "windows/amd64", &plain),
            (&[&v6, &v7], "linux/arm/v7", &v7),
        ];
        for (entries, wanted, expected) in table {
            let entries: Vec<_> = entries.iter().map(|entry| (*entry).clone()).collect();
            assert_eq!(
                chosen(&entries, wanted).as_ref(),
                Ok(*expected),
                "{wanted} {entries:?}"
            );
        }
    }

    #[test]
    fn an_index_that_can_mean_several_manifests_or_none_is_an_error() {
        let (amd, arm) = (entry("amd", "linux/amd64"), entry("arm", "linux/arm/v7"));
        let variants = [entry("v6", "linux/arm/v6"), arm.clone()];
        let plain = [entry("one", ""), entry("two", "")];
        for (entries, wanted, words) in [
            (&[][..], "", "has no manifest"),
            (
                &[attestation("a", "unknown/unknown")],
                "",
                "has no manifest",
            ),
            (
                &[amd.clone(), arm.clone()],
                "",
                "2 manifests (linux/amd64, linux/arm/v7); set `platform`",
            ),
            (&[amd, arm], "linux/s390x", "set `platform`"),
            (
                &variants,
                "linux/arm",
                "2 manifests for linux/arm; name the digest",
            ),
            (&plain, "linux/arm", "no platform, no platform"),
        ] {
            let error = chosen(entries, wanted).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_platform_is_two_words_or_three() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "/", "linux/", "a/b/c/d", "linux /x", "linux/ä"] {
            assert_eq!(text.parse::<Platform>(), Err(NotAPlatform), "{text}");
        }
    }
}
