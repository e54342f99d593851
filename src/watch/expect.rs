//! The expectations of a bundle beside its signatures (`expect`). A signature says who signed, not
//! which version or when, and in Sigstore's bundle format not for which repository: otherwise,
//! anyone who can move tags could put back an old version, or another repository's, with its
//! genuine signatures.
//!
//! Only signed or content-addressed data are read: the verified manifest, the bundle that it names,
//! and times that a transparency log or a timestamp authority proves.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

use super::history::{History, Position};
use crate::{
    bundle::BundleManifest,
    oci::{Digest, Manifest, TagVersion, Version},
    publish::Snapshot,
    telemetry,
    verify::Verified,
};

/// The expectations of every version that a bundle's reference names. The default expects nothing,
/// and raises an alarm when a digest comes back that newer ones had replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    /// Annotations of the manifest, each with exactly this value; it may have others. They say
    /// where a bundle belongs that was copied with all its signatures.
    pub annotations: BTreeMap<String, String>,
    /// The paths that contain the roots of the bundle's `.manifest`, in whole segments: `authz`
    /// allows `authz` and `authz/users`, not `authzx`. A bundle without `.manifest`, or without
    /// roots in it, claims everything, which only `""` allows. Without slashes at either end. An
    /// empty list allows every root, so a list in the configuration must not be empty.
    pub roots: Vec<String>,
    /// The order of versions.
    pub order: Option<Order>,
    /// What to do about a version that is older than one that was served.
    pub on_older: OnOlder,
}

/// The order of versions. The highest that was served is the floor for this bundle and reference;
/// it is kept with the cache on disk. `minimum` is a floor from the start, and the only one of a
/// machine without a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// The order of the semantic versions that manifests state in
    /// `org.opencontainers.image.version`, or else bundles as their revision. A version that states
    /// none is refused, and so is one whose tag is another version: the tag `1.4.0` requires
    /// exactly that, `1.4` and `v1` some release of it.
    Version {
        /// The lowest version that is accepted.
        minimum: Option<Version>,
    },
    /// The order of the manifests' `org.opencontainers.image.created`. A version without it is
    /// refused. All reproducible builds state the epoch, unless they are given a time.
    Created {
        /// The earliest time that is accepted.
        minimum: Option<Timestamp>,
    },
    /// The order of the signing times that a transparency log or a timestamp authority proves
    /// ([`Verified::signed_at`]); with several signers, by the last signature. A version without a
    /// time is refused until it is signed again, so the policy must be one under which such times
    /// exist. Signing an old version again makes it a new one.
    ///
    /// [`Verified::signed_at`]: crate::verify::Verified::signed_at
    SignedTime {
        /// The earliest time that is accepted.
        minimum: Option<Timestamp>,
    },
}

/// What to do about a version below the floor, and, without an order, about a digest that was
/// served before a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOlder {
    /// The version is served as the newest, and the floor goes down with it. This allows deliberate
    /// rollbacks. It contradicts a `minimum`.
    Serve,
    /// The version is served, with an alarm in the log, in `/status` and in the metrics. The floor
    /// stays.
    #[default]
    Alarm,
    /// The version is refused with an alarm, and the one being served stays.
    Refuse,
}

/// The facts about a version. Without `bundle` it has not been fetched yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// The digest of the image's own manifest: anyone can put a new index in front of an old image.
    pub(super) digest: &'a Digest,
    pub(super) annotations: &'a BTreeMap<String, String>,
    pub(super) signed_at: Option<Timestamp>,
    pub(super) tag: Option<&'a str>,
    pub(super) bundle: Option<&'a BundleManifest>,
}

/// An expectation that a version does not meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unmet {
    #[error("annotation {key} is {found}, not {expected:?} as expected")]
    Annotation {
        key: String,
        expected: String,
        found: Quoted,
    },
    #[error("root {root:?} is outside expect.roots, {expected}")]
    Roots { root: String, expected: String },
    #[error("{0}")]
    Version(String),
    #[error("it states no time of creation in org.opencontainers.image.created ({0})")]
    Created(Quoted),
    #[error("no log or timestamp proves when it was signed, which `order: signed_time` needs")]
    SignedTime,
    #[error("{0}")]
    Older(Older),
}

/// How a version is older.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Older {
    #[error("{position} is older than the minimum, {minimum}")]
    Minimum {
        position: Position,
        minimum: Position,
    },
    #[error("{position} is older than a version served before, {floor}")]
    Floor { position: Position, floor: Position },
    #[error("{digest} was served earlier and has been replaced, last by {newest}")]
    Digest { digest: Digest, newest: Digest },
}

/// Foreign text as a message quotes it; `none` if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quoted(Option<String>);

impl<'a> Facts<'a> {
    /// The facts before the download.
    pub(super) fn of(manifest: &'a Verified<Manifest>, tag: Option<&'a str>) -> Self {
        Self {
            digest: manifest.value().digest(),
            annotations: manifest.value().annotations(),
            signed_at: manifest.signed_at(),
            tag,
            bundle: None,
        }
    }

    /// The facts about a version that can be served.
    pub(super) fn of_snapshot(snapshot: &'a Snapshot, tag: Option<&'a str>) -> Self {
        Self {
            bundle: Some(snapshot.bundle().manifest()),
            ..Self::of(snapshot.manifest(), tag)
        }
    }
}

impl Expect {
    /// Whether a version may be served, as far as its facts are known.
    ///
    /// # Errors
    /// The first expectation that is not met; the age counts only where older versions are refused.
    pub(super) fn check(&self, facts: &Facts<'_>, past: &History) -> Result<(), Unmet> {
        self.check_annotations(facts)?;
        self.check_roots(facts)?;
        self.check_tag(facts)?;
        match self.older(facts, past)? {
            Some(older) if self.on_older == OnOlder::Refuse => Err(Unmet::Older(older)),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a version is older than one that was served, or than the minimum.
    ///
    /// # Errors
    /// When it has no position in the order.
    pub(super) fn older(&self, facts: &Facts<'_>, past: &History) -> Result<Option<Older>, Unmet> {
        let position = self.position(facts)?;
        if self.order.is_some() && position.is_none() {
            // The position is not known before the download.
            return Ok(None);
        }
        if let (Some(position), Some(minimum)) = (&position, self.minimum())
            && *position < minimum
        {
            return Ok(Some(Older::Minimum {
                position: position.clone(),
                minimum,
            }));
        }
        if past.compare(facts.digest, position.as_ref()).is_ge() {
            return Ok(None);
        }
        Ok(match (position, past.floor(), past.newest()) {
            (Some(position), Some(floor), _) if position < *floor => Some(Older::Floor {
                position,
                floor: floor.clone(),
            }),
            (_, _, Some(newest)) => Some(Older::Digest {
                digest: facts.digest.clone(),
                newest: newest.clone(),
            }),
            (_, _, None) => None,
        })
    }

    /// The position of a version in the order; `None` without an order, or before the download of a
    /// bundle that states it.
    ///
    /// # Errors
    /// When it states no position.
    pub(super) fn position(&self, facts: &Facts<'_>) -> Result<Option<Position>, Unmet> {
        match &self.order {
            None => Ok(None),
            Some(Order::Version { .. }) => Ok(stated_version(facts)?.map(Position::Version)),
            Some(Order::Created { .. }) => {
                let created = facts.annotations.get(CREATED);
                let parsed = created
                    .and_then(|created| created.parse().ok())
                    .map(Position::Created);
                parsed
                    .map(Some)
                    .ok_or_else(|| Unmet::Created(Quoted::new(created)))
            }
            Some(Order::SignedTime { .. }) => facts
                .signed_at
                .map(Position::Signed)
                .map(Some)
                .ok_or(Unmet::SignedTime),
        }
    }

    fn minimum(&self) -> Option<Position> {
        match self.order.as_ref()? {
            Order::Version { minimum } => minimum.clone().map(Position::Version),
            Order::Created { minimum } => minimum.map(Position::Created),
            Order::SignedTime { minimum } => minimum.map(Position::Signed),
        }
    }

    fn check_annotations(&self, facts: &Facts<'_>) -> Result<(), Unmet> {
        let unmet = self
            .annotations
            .iter()
            .find(|(key, value)| facts.annotations.get(*key) != Some(*value));
        unmet.map_or(Ok(()), |(key, expected)| {
            let found = Quoted::new(facts.annotations.get(key));
            Err(Unmet::Annotation {
                key: key.clone(),
                expected: expected.clone(),
                found,
            })
        })
    }

    fn check_roots(&self, facts: &Facts<'_>) -> Result<(), Unmet> {
        let Some(bundle) = facts.bundle.filter(|_| !self.roots.is_empty()) else {
            return Ok(());
        };
        let outside = bundle
            .roots
            .iter()
            .find(|root| !self.roots.iter().any(|within| lies_within(root, within)));
        outside.map_or(Ok(()), |root| {
            Err(Unmet::Roots {
                root: cut(root),
                expected: self.roots.join(", "),
            })
        })
    }

    /// Whether the tag, if it states a version, states that of the manifest.
    pub(super) fn check_tag(&self, facts: &Facts<'_>) -> Result<(), Unmet> {
        let (Some(Order::Version { .. }), Some(tag)) = (&self.order, facts.tag) else {
            return Ok(());
        };
        match (TagVersion::of(tag), stated_version(facts)?) {
            (Some(tag_version), Some(version)) if !tag_version.holds_for(&version) => Err(
                Unmet::Version(format!("the tag {tag} is on version {version}")),
            ),
            _ => Ok(()),
        }
    }
}

impl Unmet {
    /// Whether a new signature of the same bytes could meet the expectation.
    pub(super) fn changes_by_signing(&self) -> bool {
        match self {
            Self::SignedTime => true,
            Self::Older(Older::Minimum { position, .. } | Older::Floor { position, .. }) => {
                matches!(position, Position::Signed(_))
            }
            Self::Annotation { .. } | Self::Roots { .. } | Self::Version(_) | Self::Created(_) => {
                false
            }
            Self::Older(Older::Digest { .. }) => false,
        }
    }

    /// The reason as a metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Annotation { .. } => "expect_annotations",
            Self::Roots { .. } => "expect_roots",
            Self::Version(_) => UNEXPECTED_VERSION,
            Self::Created(_) => "expect_created",
            Self::SignedTime => "expect_signed_time",
            Self::Older(_) => "older",
        }
    }
}

impl Quoted {
    fn new(text: Option<&String>) -> Self {
        Self(text.map(|text| cut(text)))
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, "{text:?}"),
            None => f.write_str("missing"),
        }
    }
}

/// The version that the annotation states, or else the revision of the bundle.
fn stated_version(facts: &Facts<'_>) -> Result<Option<Version>, Unmet> {
    let (stated, place) = match (facts.annotations.get(VERSION), facts.bundle) {
        (Some(stated), _) => (stated.as_str(), VERSION),
        (None, Some(bundle)) => (bundle.revision.as_str(), "the bundle's revision"),
        (None, None) => return Ok(None),
    };
    let version = stated.parse().map(Some);
    version.map_err(|error| Unmet::Version(format!("it states no version: {place}: {error}")))
}

/// Compares roots as OPA does: in whole segments, and the empty one is everything.
fn lies_within(root: &str, within: &str) -> bool {
    within.is_empty()
        || root
            .strip_prefix(within)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Cuts foreign text: a hostile author must not be able to fill the log.
fn cut(text: &str) -> String {
    telemetry::cut(text, 128).into_owned()
}

/// The metric label of a version that is missing, or is not that of the tag.
pub(super) const UNEXPECTED_VERSION: &str = "expect_version";
const VERSION: &str = "org.opencontainers.image.version";
const CREATED: &str = "org.opencontainers.image.created";

#[cfg(test)]
mod tests;
