//! Sends queries.

use reqwest::{
    Client, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use tokio::{task::spawn_blocking, time::timeout};
use url::{Url, form_urlencoded};

use super::{InvalidOptions, Options, QueryError, QueryFailure, answer};
use crate::{
    rollout::Sample,
    telemetry::{self, SENTENCE_BYTES, cut, with_causes},
};

/// The maximum size of an answer, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A client of Prometheus' HTTP API, or of one that answers like it.
#[derive(Debug)]
pub struct PromqlClient {
    options: Options,
    endpoint: Url,
    http: Client,
}

impl PromqlClient {
    /// Contacts nothing and reads no credential.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn new(options: Options) -> Result<Self, InvalidOptions> {
        let endpoint = options.endpoint()?;
        let http = http_client(&options).map_err(InvalidOptions::Client)?;
        Ok(Self {
            options,
            endpoint,
            http,
        })
    }

    /// The result of a query now, within [`Options::timeout`]. Cancel-safe.
    ///
    /// # Errors
    /// See [`QueryFailure`]. An answer without one finite number is not an error.
    pub async fn query(&self, query: &str) -> Result<Sample, QueryError> {
        let limit = self.options.timeout;
        let result = timeout(limit, self.evaluate(query)).await;
        result
            .unwrap_or(Err(QueryFailure::TimedOut(limit)))
            .map_err(|failure| QueryError {
                url: self.endpoint.to_string(),
                failure,
            })
    }

    async fn evaluate(&self, query: &str) -> Result<Sample, QueryFailure> {
        // rustls panics outside of this range.
        if !telemetry::is_clock_usable() {
            return Err(QueryFailure::Clock);
        }
        let mut request = self
            .http
            .post(self.endpoint.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(self.form(query));
        if let Some(authorization) = self.authorization().await? {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let body = read(&mut response).await;
        match status {
            StatusCode::OK => answer::sample(&body?),
            _ => Err(answer::failure(status, body.ok().as_deref())),
        }
    }

    /// Prometheus ends the evaluation after the time that this side waits.
    fn form(&self, query: &str) -> String {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("query", query)
            .append_pair(
                "timeout",
                &format!("{}ms", self.options.timeout.as_millis()),
            )
            .finish()
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, QueryFailure> {
        let Some(credential) = self.options.credential.clone() else {
            return Ok(None);
        };
        let header = spawn_blocking(move || credential.header()).await;
        let header = header.map_err(|error| QueryFailure::Credential(error.to_string()))?;
        header.map(Some).map_err(QueryFailure::Credential)
    }
}

async fn read(response: &mut Response) -> Result<Vec<u8>, QueryFailure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            let limit = MAX_ANSWER_BYTES;
            return Err(QueryFailure::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn failed(error: reqwest::Error) -> QueryFailure {
    let text = with_causes(&error.without_url());
    QueryFailure::Request(cut(&text, SENTENCE_BYTES).into_owned())
}

fn http_client(options: &Options) -> reqwest::Result<Client> {
    let is_tls = options.url.scheme() == "https";
    let mut builder = Client::builder()
        .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
        // The configuration alone decides which hosts are contacted.
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        // An idle connection could be closed by the server while a query is sent on it.
        .pool_max_idle_per_host(0)
        .https_only(is_tls);
    // A proxy would read the credential.
    if !is_tls {
        builder = builder.no_proxy();
    }
    if !options.extra_roots.is_empty() {
        let roots = options.extra_roots.iter();
        let roots: reqwest::Result<Vec<_>> = roots
            .map(|root| reqwest::Certificate::from_der(root))
            .collect();
        builder = builder.tls_certs_merge(roots?);
    }
    builder.build()
}
