//! What a bundle has to be beside signed. A signature says who, not which or when, and in
//! Sigstore's bundle format not for which repository: whoever can move tags could else put an
//! old version back, or another repository's, with the signatures that it really has.
//!
//! Only signed or content-addressed data are read: the verified manifest, the bundle that it
//! names, and times that a log or a timestamp authority vouches for.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::version::Version;

/// What is expected of everything that a bundle's reference ever means. The default expects
/// nothing, and raises an alarm when a digest comes back that newer ones had replaced.
#[derive(Debug, Clone, Default)]
pub struct Expect {
    /// Annotations of the manifest, each with exactly this value; it may have others. They say
    /// where a bundle belongs that was copied here with all its signatures.
    pub annotations: BTreeMap<String, String>,
    /// Where the roots in the bundle's `.manifest` have to lie, in whole segments: `authz`
    /// allows `authz` and `authz/users`, not `authzx`. A bundle without `.manifest`, or
    /// without roots in it, claims everything, and that only `""` allows. Without slashes at
    /// either end. Empty = anywhere, so a list that somebody wrote must not be empty.
    pub roots: Vec<String>,
    /// In which order versions follow each other.
    pub order: Option<Order>,
    /// What to do about one that is older than what was served.
    pub on_older: OnOlder,
}

/// What puts versions in order. The highest that was served is the floor, for this bundle and
/// reference; it is kept with the cache on disk. `minimum` is a floor from the start, the only
/// one that a machine without a cache has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// The semantic version that the manifest states in `org.opencontainers.image.version`, or
    /// else the bundle as its revision. One that states none is refused, and so is one whose
    /// tag is a version, if it is another: `1.4.0` has to be that, `1.4` and `v1` some release
    /// of it.
    Version {
        /// The lowest.
        minimum: Option<Version>,
    },
    /// The manifest's `org.opencontainers.image.created`. One without is refused. Reproducible
    /// builds all state the epoch, unless they are told the time.
    Created {
        /// The earliest.
        minimum: Option<Timestamp>,
    },
    /// When it was signed, as a log or a timestamp authority vouches ([`Verified::signed_at`]);
    /// with several signers that is the last signature. One without a time is refused, until it
    /// is signed again: so the policy has to be one under which there are such times. Signing an
    /// old version again makes it a new one.
    ///
    /// [`Verified::signed_at`]: crate::verify::Verified::signed_at
    SignedTime {
        /// The earliest.
        minimum: Option<Timestamp>,
    },
}

/// What to do about a version below the floor; and, where nothing else decides, about a digest
/// that was served before a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOlder {
    /// Serve it, and take it for the newest: the floor goes down with it. This is how somebody
    /// goes back on purpose. Makes no sense with a `minimum`.
    Serve,
    /// Serve it, and say so in the log, in `/status` and to Prometheus. The floor stays.
    #[default]
    Alarm,
    /// Keep serving what is served, with an alarm.
    Refuse,
}
