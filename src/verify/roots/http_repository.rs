//! A TUF repository over HTTP. Nothing that it delivers is trusted here; this module only limits
//! its cost.

use reqwest::StatusCode;
use sigstore_tuf::{Error, Repository, transport::FetchFuture};
use url::Url;

use crate::telemetry;

/// The base URL and the HTTP client of a repository.
#[derive(Debug, Clone)]
pub(super) struct HttpRepository {
    base: Url,
    client: reqwest::Client,
}

impl HttpRepository {
    /// A repository at `base`, which ends in a slash.
    pub(super) fn new(base: Url) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
            // The answers are signed, but the configuration alone decides which hosts are
            // contacted.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .https_only(base.scheme() == "https")
            .build()?;
        Ok(Self { base, client })
    }

    /// Fetches at most `limit` bytes; `None` if there is no such file.
    async fn fetch(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let url = self.url(path)?;
        // rustls panics before 1970.
        if !telemetry::is_clock_usable() {
            return Err(Error::transport(
                "the system's clock is before 1970 or after 9999; set it".to_owned(),
            ));
        }
        let broken = |error: reqwest::Error| {
            Error::transport_with_source(format!("fetch {path}"), error.without_url())
        };
        let mut response = self.client.get(url).send().await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => {}
            // Object stores answer 403 for a missing file to clients that may not list files.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(None),
            status => {
                return Err(Error::transport(format!(
                    "fetch {path}: HTTP {}",
                    status.as_u16()
                )));
            }
        }
        let too_long = || Error::IntegrityMismatch(format!("{path}: longer than {limit} bytes"));
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    /// The URL of `path`, parts of which come from metadata and must not lead to another host or
    /// folder.
    fn url(&self, path: &str) -> Result<Url, Error> {
        let url = self.base.join(path).ok().filter(|url| {
            url.origin() == self.base.origin()
                && url.path().starts_with(self.base.path())
                && url.query().is_none()
        });
        url.ok_or_else(|| Error::Malformed(format!("{path:?} points outside the repository")))
    }
}

impl Repository for HttpRepository {
    fn fetch_metadata<'a>(&'a self, name: &'a str, limit: u64) -> FetchFuture<'a> {
        Box::pin(self.fetch(name, limit))
    }

    fn fetch_target<'a>(&'a self, path: &'a str, limit: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.fetch(&format!("targets/{path}"), limit).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_points_outside_the_repository() {
        let repository =
            HttpRepository::new(Url::parse("https://tuf.example.com/corp/").unwrap()).unwrap();
        for (path, inside) in [
            ("timestamp.json", true),
            ("targets/abc.trusted_root.json", true),
            ("targets/../../other/trusted_root.json", false),
            ("targets/%2e%2e/%2E%2e/other.json", false),
            ("/timestamp.json", false),
            ("//evil.example/corp/timestamp.json", false),
            ("https://evil.example/corp/timestamp.json", false),
            ("\\\\evil.example\\corp\\timestamp.json", false),
            ("timestamp.json?as=admin", false),
        ] {
            assert_eq!(repository.url(path).is_ok(), inside, "{path}");
        }
    }
}
