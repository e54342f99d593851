//! The sources of trust roots, as in `trust.roots`.

use std::time::Duration;

use bytes::Bytes;
use sigstore_tuf::TrustedMetadataSet;
use url::Url;

use super::{BadRoot, TrustRoot, freshness::Freshness};

/// The TUF repository of the public-good instance.
const SIGSTORE_REPOSITORY: &str = "https://tuf-repo-cdn.sigstore.dev/";
/// The `root.json` that the sigstore crates have built in. Every later one is reached from it, so
/// it need not be the newest. Its signatures are over the canonical form, so slashes may be
/// escaped: a secret scanner takes the name of a key in it for a path.
const SIGSTORE_ROOT: &[u8] = include_bytes!("sigstore_tuf_root.json");
/// Daily, as other clients of public repositories do.
const REFRESH_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// The timeout of one whole refresh, which fetches a handful of small files.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);

/// The source of one of `trust.roots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// `builtin: sigstore`: the public-good root that this program was built with. Without `tuf`
    /// (`tuf: none`) it never changes, and nothing is ever fetched.
    Builtin {
        /// The repository that replaces it with newer roots.
        tuf: Option<TufOptions>,
    },
    /// `trusted_root: FILE`: the text of the file. It stays until the file changes.
    File(String),
    /// `tuf: { url, root, refresh }`: a private repository. Nothing is trusted before it has
    /// delivered a root.
    Tuf(TufOptions),
}

/// A TUF repository with a `trusted_root.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TufOptions {
    pub(super) url: Url,
    pub(super) root: Bytes,
    pub(super) refresh: Duration,
    pub(super) timeout: Duration,
}

/// An error in the source of a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSource {
    /// The URL has another scheme than HTTP, or can't be a base.
    #[error("{0} is not a repository URL; write https://HOST/PATH")]
    Url(Url),
    /// The pinned `root.json` is not a TUF root.
    #[error("not a TUF root: {0}")]
    Root(String),
}

impl RootSource {
    /// The source of the root that exists without being configured.
    pub fn sigstore() -> Self {
        Self::Builtin {
            tuf: Some(TufOptions::sigstore(REFRESH_INTERVAL)),
        }
    }

    /// The repository that refreshes the root, if there is one.
    pub fn tuf(&self) -> Option<&TufOptions> {
        match self {
            Self::Builtin { tuf } => tuf.as_ref(),
            Self::Tuf(options) => Some(options),
            Self::File(_) => None,
        }
    }

    /// The kind of the source, as its key in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Builtin { .. } => "builtin",
            Self::File(_) => "trusted_root",
            Self::Tuf(_) => "tuf",
        }
    }

    /// The root before anything is fetched or read from the cache.
    ///
    /// # Errors
    /// When the file is not a root.
    pub fn initial(&self, name: &str) -> Result<TrustRoot, BadRoot> {
        match self {
            Self::Builtin { tuf: None } => TrustRoot::named_sigstore(name, Freshness::unlimited()),
            // An old program that never reaches the repository must not trust this root forever,
            // unless the configuration has `tuf: none`.
            Self::Builtin { tuf: Some(options) } => {
                TrustRoot::named_sigstore(name, options.freshness())
            }
            Self::File(text) => TrustRoot::from_json(name, text),
            Self::Tuf(_) => TrustRoot::pending(name),
        }
    }
}

impl TufOptions {
    /// The repository of the public-good instance, with this interval.
    pub fn sigstore(refresh: Duration) -> Self {
        #[expect(clippy::expect_used, reason = "a constant, which a test reads")]
        let url = Url::parse(SIGSTORE_REPOSITORY).expect("a URL");
        Self {
            url,
            root: Bytes::from_static(SIGSTORE_ROOT),
            refresh,
            timeout: REFRESH_TIMEOUT,
        }
    }

    /// A repository at `url`, whose first trusted `root.json` is `root`. Its metadata is signed,
    /// so plain HTTP can delay but not forge it.
    ///
    /// # Errors
    /// See [`BadSource`].
    pub fn new(mut url: Url, root: Bytes, refresh: Option<Duration>) -> Result<Self, BadSource> {
        if !matches!(url.scheme(), "http" | "https")
            || url.cannot_be_a_base()
            || url.query().is_some()
        {
            return Err(BadSource::Url(url));
        }
        // Without the slash, a relative path would replace the last segment.
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        TrustedMetadataSet::from_root(&root).map_err(|error| BadSource::Root(error.to_string()))?;
        Ok(Self {
            url,
            root,
            refresh: refresh.unwrap_or(REFRESH_INTERVAL),
            timeout: REFRESH_TIMEOUT,
        })
    }

    /// The time between two refreshes.
    pub fn refresh(&self) -> Duration {
        self.refresh
    }

    /// The same repository with another timeout for one whole refresh.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The address of the repository, which contains no secret.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The expiry of the pinned `root.json`.
    fn freshness(&self) -> Freshness {
        TrustedMetadataSet::from_root(&self.root).map_or_else(
            |_| Freshness::until(jiff::Timestamp::UNIX_EPOCH),
            |set| Freshness::until(set.root().expires),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_built_in_root_expires_only_where_it_is_meant_to_be_refreshed() {
        let refreshed = RootSource::sigstore().initial("sigstore").unwrap();
        let expires = refreshed.expires().unwrap();
        assert!(
            expires > "2027-01-01T00:00:00Z".parse().unwrap(),
            "{expires}"
        );
        assert_eq!(refreshed.unusable_reason(expires), None);
        let later = expires + jiff::SignedDuration::from_secs(1);
        let reason = refreshed.unusable_reason(later).unwrap().to_string();
        assert_eq!(reason, format!("trust root sigstore expired at {expires}"));

        let forever = RootSource::Builtin { tuf: None }
            .initial("sigstore")
            .unwrap();
        assert_eq!(
            (
                forever.expires(),
                forever.unusable_reason(jiff::Timestamp::MAX)
            ),
            (None, None)
        );
        assert_eq!(forever.revision(), refreshed.revision());
    }

    #[test]
    fn a_tuf_root_is_unusable_before_its_first_fetch() {
        let options = TufOptions::new(
            url("https://tuf.example.com/corp"),
            SIGSTORE_ROOT.into(),
            None,
        )
        .unwrap();
        assert_eq!(options.url.as_str(), "https://tuf.example.com/corp/");
        let root = RootSource::Tuf(options).initial("corp").unwrap();
        assert!(root.is_pending());
        let reason = root
            .unusable_reason(jiff::Timestamp::UNIX_EPOCH)
            .unwrap()
            .to_string();
        assert_eq!(reason, "trust root corp has not been fetched yet");
        assert!(
            root.has_certificate_authorities() && root.has_logs(),
            "a policy that needs them may be met later"
        );
    }

    #[test]
    fn an_invalid_repository_is_rejected() {
        let new = |address: &str, root: &'static [u8]| {
            TufOptions::new(url(address), Bytes::from_static(root), None)
                .unwrap_err()
                .to_string()
        };
        for address in [
            "ftp://example.com/",
            "data:text/plain,x",
            "https://example.com/?path=",
        ] {
            assert!(
                new(address, SIGSTORE_ROOT).contains("is not a repository URL"),
                "{address}"
            );
        }
        assert!(new("https://example.com/", b"{}").starts_with("not a TUF root: "));
    }
}
