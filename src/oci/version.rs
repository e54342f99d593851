//! Semantic versions in tags and annotations.

use std::{cmp::Ordering, fmt, str::FromStr};

use crate::telemetry::cut;

/// The longest tag that registries allow; longer text is not a version.
const MAX_VERSION_BYTES: usize = 128;

/// A semantic version. Versions are compared by precedence, which ignores build metadata.
///
/// The order is that of Masterminds/semver, so that a range chooses the tag that Flux and Helm
/// choose: a numeric identifier of a prerelease that exceeds 64 bits is compared as text.
#[derive(Debug, Clone)]
pub struct Version(semver::Version);

/// The text is not a semantic version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a semantic version; write it such as 1.4.0")]
pub struct NotAVersion(String);

/// The version that a tag states, in whole or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TagVersion {
    /// The tag names one version: `1.4.0`, `v1.4.0`, `1.4.0-rc.1`.
    Exactly(Version),
    /// The tag names the releases of a major or minor version: `1`, `v1.4`.
    Within { major: u64, minor: Option<u64> },
}

impl TagVersion {
    /// `None` for tags that are no versions, such as `live`.
    pub(crate) fn of(tag: &str) -> Option<Self> {
        if let Ok(version) = tag.parse() {
            return Some(Self::Exactly(version));
        }
        let numbers = tag.strip_prefix('v').unwrap_or(tag);
        match numbers.split_once('.') {
            None => Some(Self::Within {
                major: number(numbers)?,
                minor: None,
            }),
            Some((major, minor)) => Some(Self::Within {
                major: number(major)?,
                minor: Some(number(minor)?),
            }),
        }
    }

    pub(crate) fn holds_for(&self, version: &Version) -> bool {
        match self {
            Self::Exactly(stated) => stated == version,
            Self::Within { major, minor } => {
                version.0.major == *major && minor.is_none_or(|minor| version.0.minor == minor)
            }
        }
    }
}

impl Version {
    /// A version without build metadata; `None` if `prerelease` is malformed. An empty prerelease
    /// is none.
    pub(super) fn new(major: u64, minor: u64, patch: u64, prerelease: &str) -> Option<Self> {
        Some(Self(semver::Version {
            pre: semver::Prerelease::new(prerelease).ok()?,
            ..semver::Version::new(major, minor, patch)
        }))
    }

    pub(super) fn major(&self) -> u64 {
        self.0.major
    }

    pub(super) fn minor(&self) -> u64 {
        self.0.minor
    }

    pub(super) fn patch(&self) -> u64 {
        self.0.patch
    }

    /// The prerelease without its hyphen; empty for a release.
    pub(super) fn prerelease(&self) -> &str {
        self.0.pre.as_str()
    }

    /// Compares by precedence, and then by build metadata.
    pub(super) fn cmp_with_build(&self, other: &Self) -> Ordering {
        self.cmp(other)
            .then_with(|| self.0.build.cmp(&other.0.build))
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    /// Accepts a leading `v`, as in tags, and `_` for `+`, which tags can't contain.
    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let refused = || NotAVersion(cut(text, MAX_VERSION_BYTES).into_owned());
        if text.len() > MAX_VERSION_BYTES {
            return Err(refused());
        }
        let version = text.strip_prefix('v').unwrap_or(text).replacen('_', "+", 1);
        version.parse().map(Self).map_err(|_| refused())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |version: &Self| (version.major(), version.minor(), version.patch());
        numbers(self)
            .cmp(&numbers(other))
            .then_with(|| compare_prereleases(self.prerelease(), other.prerelease()))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

/// Compares by identifiers; a release, which has none, is the highest.
fn compare_prereleases(one: &str, other: &str) -> Ordering {
    match (one.is_empty(), other.is_empty()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        let compared = match (one.next(), other.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(one), Some(other)) => compare_identifiers(one, other),
        };
        if compared.is_ne() {
            return compared;
        }
    }
}

/// Numbers are compared as such, and are lower than all other identifiers.
fn compare_identifiers(one: &str, other: &str) -> Ordering {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one.cmp(&other),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => one.cmp(other),
    }
}

/// A number as semantic versions write it, without leading zeros: `007` may be a date.
fn number(text: &str) -> Option<u64> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_as_tags_and_annotations_have_them() {
        for text in [
            "1.4.0",
            "v1.4.0",
            "1.4.0-rc.1",
            "1.4.0+build.7",
            "1.4.0_build.7",
        ] {
            version(text);
        }
        let long = format!("1.4.0-{}", "a".repeat(MAX_VERSION_BYTES));
        for text in [
            "", "v", "1", "1.4", "live", "vv1.4.0", "1.4.0 ", "01.4.0", "V1.4.0", "1.4.0.0", &long,
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn versions_are_ordered_by_precedence() {
        let rising = [
            "0.9.9",
            "1.0.0-alpha",
            "1.0.0-alpha.2",
            "1.0.0-alpha.10",
            "1.0.0-alpha.99999999999999999999",
            "1.0.0-alpha.b",
            "1.0.0-beta",
            "1.0.0",
            "1.0.1",
            "1.10.0",
            "2.0.0",
        ];
        for pair in rising.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        assert_eq!(version("1.0.0+a"), version("1.0.0+b"));
        let by_build = |one, other| version(one).cmp_with_build(&version(other));
        assert_eq!(by_build("1.0.0_9", "1.0.0_10"), Ordering::Less);
        assert_eq!(by_build("1.0.1_9", "1.0.0_10"), Ordering::Greater);
    }

    #[test]
    fn a_tag_claims_a_version_or_some_release_of_one_or_nothing() {
        for (tag, holds, fails) in [
            (
                "1.4.0",
                &["1.4.0", "v1.4.0+x"][..],
                &["1.4.1", "1.4.0-rc.1", "2.4.0"][..],
            ),
            ("v1.4.0-rc.1", &["1.4.0-rc.1"], &["1.4.0", "1.4.0-rc.2"]),
            ("1.4.0_x", &["1.4.0"], &["1.4.1"]),
            ("1.4", &["1.4.0", "1.4.9"], &["1.5.0", "2.4.0"]),
            ("v1", &["1.0.0", "1.99.1"], &["0.1.0", "2.0.0"]),
            ("0", &["0.3.1"], &["1.0.0"]),
        ] {
            let tag_version = TagVersion::of(tag).unwrap();
            assert!(
                holds
                    .iter()
                    .all(|text| tag_version.holds_for(&version(text))),
                "{tag} holds"
            );
            assert!(
                !fails
                    .iter()
                    .any(|text| tag_version.holds_for(&version(text))),
                "{tag} fails"
            );
        }
        for tag in [
            "live",
            "",
            "v",
            "1.",
            ".1",
            "1.x",
            "007",
            "1.04",
            "sha256-1",
            "99999999999999999999",
        ] {
            assert_eq!(TagVersion::of(tag), None, "{tag:?}");
        }
    }
}
