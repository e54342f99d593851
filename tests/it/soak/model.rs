//! What may be served: the versions that were pushed, and where each tag has pointed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bundlegate::oci::Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The names and tags of the bundles. A fault of the requests for the first tag is one of all.
pub(super) const BUNDLES: [(&str, &str); 3] = [
    ("authz/main", "live"),
    ("authz/second", "live-second"),
    ("authz/third", "live-third"),
];

/// A version of a bundle.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) body: Bytes,
    pub(super) etag: String,
    pub(super) manifest: Digest,
    /// Whether it is a bundle that OPA can load.
    pub(super) opens: bool,
    /// Whether the trusted key has signed it.
    pub(super) signed: bool,
}

/// The versions of one bundle.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    pub(super) versions: Vec<Version>,
    /// The versions that the tag has pointed at, oldest first.
    pub(super) moves: Vec<usize>,
    /// The version that the tag points at; `None` without the tag.
    pub(super) tag: Option<usize>,
    /// When a client first got a version.
    pub(super) served_at: Option<Instant>,
}

impl Version {
    pub(super) fn new(body: impl Into<Bytes>, manifest: Digest, opens: bool) -> Self {
        let body = body.into();
        Self {
            etag: etag(&body),
            body,
            manifest,
            opens,
            signed: false,
        }
    }

    pub(super) fn may_be_served(&self) -> bool {
        self.opens && self.signed
    }
}

impl Pushed {
    /// The version at the tag, if it may be served.
    pub(super) fn due(&self) -> Option<&Version> {
        let version = &self.versions[self.tag?];
        version.may_be_served().then_some(version)
    }

    pub(super) fn move_tag(&mut self, version: usize) {
        self.moves.push(version);
        self.tag = Some(version);
    }

    /// What a client got, as the earliest move of the tag that explains it: not one before
    /// `earliest`, which explains what the client got before.
    pub(super) fn explain(
        &self,
        etag: &str,
        manifest: &str,
        earliest: usize,
    ) -> Result<usize, String> {
        let matches = |version: &Version| {
            version.may_be_served()
                && version.etag == etag
                && version.manifest.to_string() == manifest
        };
        let explains = |index: &usize| matches(&self.versions[self.moves[*index]]);
        let all = 0..self.moves.len();
        all.clone()
            .filter(explains)
            .find(|index| *index >= earliest)
            .ok_or_else(|| match all.clone().find(explains) {
                Some(index) => format!(
                    "{etag} is back, which the tag has named at move {index} only, after that of \
                     move {earliest}"
                ),
                None => format!("{etag} of {manifest} is no version that may be served"),
            })
    }
}

/// The entity tag of these bytes.
pub(super) fn etag(body: &[u8]) -> String {
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One version for each text, of which the last one is not signed, and a tag that has moved
    /// through `moves`.
    fn pushed(texts: &[&str], moves: &[usize]) -> Pushed {
        let version = |text: &&str| Version {
            signed: true,
            ..Version::new(
                text.as_bytes().to_vec(),
                Digest::sha256(text.as_bytes()),
                true,
            )
        };
        let mut pushed = Pushed {
            versions: texts.iter().map(version).collect(),
            ..Pushed::default()
        };
        pushed.versions.last_mut().unwrap().signed = false;
        moves.iter().for_each(|version| pushed.move_tag(*version));
        pushed
    }

    #[test]
    fn what_was_never_signed_or_goes_back_without_the_tag_is_not_explained() {
        let texts = ["one", "two", "unsigned"];
        let explain = |moves: &[usize], text: &str, earliest| {
            let digest = Digest::sha256(text.as_bytes()).to_string();
            pushed(&texts, moves).explain(&etag(text.as_bytes()), &digest, earliest)
        };
        assert_eq!(explain(&[0, 1], "one", 0), Ok(0));
        assert_eq!(explain(&[0, 1], "two", 0), Ok(1));
        assert_eq!(explain(&[0, 1, 0], "one", 1), Ok(2));
        assert!(explain(&[0, 1], "one", 1).unwrap_err().contains("is back"));
        for (moves, text) in [(&[0, 2][..], "unsigned"), (&[0], "two"), (&[0], "none")] {
            let error = explain(moves, text, 0).unwrap_err();
            assert!(error.contains("no version that may be served"), "{error}");
        }
        let other = Digest::sha256(b"two").to_string();
        let error = pushed(&texts, &[0, 1]).explain(&etag(b"one"), &other, 0);
        assert!(
            error.is_err(),
            "the bytes of one version under the manifest of another one"
        );
    }
}
