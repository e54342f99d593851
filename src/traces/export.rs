//! Sends exports to the collector.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use hyper::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError, ResponseBodyTooLarge};
use prometheus::IntCounterVec;
use tokio::{runtime::Handle, time::timeout};

use super::{EXPORT_TIMEOUT, Options};
use crate::telemetry::{self, SENTENCE_BYTES, cut, with_causes};

/// The maximum size of the collector's answer, which says what it did not accept.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The HTTP client of the exporter, whose requests run on tokio: the exporter waits for them on a
/// thread of its own. Logs the first failure, and the first success after failures.
#[derive(Debug)]
pub(super) struct HttpExport {
    client: reqwest::Client,
    endpoint: String,
    runtime: Handle,
    exports: Option<IntCounterVec>,
    has_failed: AtomicBool,
}

impl HttpExport {
    pub(super) fn new(
        options: &Options,
        runtime: Handle,
        exports: Option<IntCounterVec>,
    ) -> reqwest::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("bundlegate/", env!("CARGO_PKG_VERSION")))
            // The configuration alone decides which hosts are contacted.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(EXPORT_TIMEOUT);
        if !options.extra_roots.is_empty() {
            let roots = reqwest::Certificate::from_pem_bundle(&options.extra_roots)?;
            builder = builder.tls_certs_merge(roots);
        }
        Ok(Self {
            client: builder.build()?,
            endpoint: options.endpoint.to_string(),
            runtime,
            exports,
            has_failed: AtomicBool::new(false),
        })
    }

    fn record(&self, result: Result<(), &dyn std::error::Error>) {
        let outcome = if result.is_ok() { "exported" } else { "failed" };
        if let Some(exports) = &self.exports {
            exports.with_label_values(&[outcome]).inc();
        }
        let had_failed = self.has_failed.swap(result.is_err(), Ordering::Relaxed);
        let endpoint = &*self.endpoint;
        match result {
            Err(error) if !had_failed => tracing::warn!(
                endpoint,
                error = %cut(&with_causes(error), SENTENCE_BYTES),
                "exporting traces failed: the spans of this export are lost"
            ),
            Ok(()) if had_failed => tracing::info!(endpoint, "traces are exported again"),
            _ => {}
        }
    }
}

impl HttpClient for HttpExport {
    // The signature that the macro of the trait makes.
    fn send_bytes<'client, 'send>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'send>>
    where
        'client: 'send,
        Self: 'send,
    {
        let client = self.client.clone();
        Box::pin(async move {
            // A task, because the caller runs on no runtime.
            let sent = async move { timeout(EXPORT_TIMEOUT, send(client, request)).await };
            let sent = self.runtime.spawn(sent);
            let result = match sent.await {
                Ok(Ok(result)) => result,
                Ok(Err(elapsed)) => Err(elapsed.into()),
                Err(aborted) => Err(aborted.into()),
            };
            match &result {
                Ok(response) if response.status().is_success() => self.record(Ok(())),
                Ok(response) => {
                    let status = format!("the collector answers with {}", response.status());
                    self.record(Err(&*HttpError::from(status)));
                }
                Err(error) => self.record(Err(&**error)),
            }
            result
        })
    }
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    // rustls panics outside of this range.
    if !telemetry::is_clock_usable() {
        return Err("the system's clock is before 1970 or after 9999; set it".into());
    }
    let request = reqwest::Request::try_from(request)?;
    let mut response = client
        .execute(request)
        .await
        .map_err(reqwest::Error::without_url)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ResponseBodyTooLarge::new().into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(body.into());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}
