//! Traces of requests, and of the checks of registries that they cause, exported over OTLP.
//!
//! A trace begins with a request of a client or an operator, or with a check of a bundle that
//! nothing but the schedule has caused. A request records its trace with the check that it asks
//! for, so that the check, its steps and its requests to the registry belong to the same trace. A
//! check that many requests share belongs to the trace of one of them.
//!
//! Whether a trace is recorded is decided once, where it begins ([`Traces`]). What happens within
//! it asks for the current span, which the future carries ([`Span::run`]), and costs nothing where
//! there is none.

mod export;
mod span;

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanLimits,
    },
};
use prometheus::IntCounterVec;
use tokio::{runtime::Handle, task::spawn_blocking};
use url::Url;

use self::export::HttpExport;
pub use self::span::{Kind, Parent, Span, step};
use crate::metrics::Metrics;

/// How long an export may take. What fails is not sent again.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the process waits for the last export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The time after which spans are exported, unless there are enough for an export earlier.
const EXPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Spans that wait for an export; further ones are dropped.
const MAX_QUEUED_SPANS: usize = 4096;
const MAX_EXPORTED_SPANS: usize = 512;

/// Where traces go, and which are recorded.
#[derive(Clone, PartialEq)]
pub struct Options {
    /// The collector's URL for traces (OTLP over HTTP, in protobuf).
    pub endpoint: Url,
    /// The share of requests and checks that begin a recorded trace, 0 to 1.
    pub sample: f64,
    /// The value of the attribute `service.name`.
    pub service_name: String,
    /// Headers of each export, such as `Authorization`. Secret.
    pub headers: Vec<(String, String)>,
    /// PEM certificates of authorities, besides those of the system; may be empty.
    pub extra_roots: Vec<u8>,
}

/// Decides where a trace begins, and has it exported. Off until it gets [`Options`]. Cheap to
/// clone; clones share the options.
#[derive(Clone)]
pub struct Traces(Arc<Shared>);

struct Shared {
    /// Whether `exporter` is there, so that a request that records no trace takes no lock.
    is_on: AtomicBool,
    exporter: RwLock<Option<Exporter>>,
    exports: Option<IntCounterVec>,
}

struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sample: f64,
}

/// Why traces can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// No HTTP client could be made.
    #[error("tracing.ca_file: {0}")]
    Client(String),
    /// The exporter refused its options.
    #[error("tracing: {0}")]
    Exporter(String),
}

impl Traces {
    /// Registers the metric of exports. Traces are off.
    ///
    /// # Errors
    /// When it is registered already.
    pub fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let exports = metrics.counters(
            "bundlegate_trace_exports_total",
            "Exports of spans to `tracing.endpoint`, by outcome.",
            &["outcome"],
        )?;
        Ok(Self(Arc::new(Shared {
            exports: Some(exports),
            ..Shared::default()
        })))
    }

    /// Traces that are never recorded.
    pub fn off() -> Self {
        Self(Arc::default())
    }

    /// Whether any trace may be recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Replaces the options; `None` turns traces off. Spans that have not been exported are exported
    /// in the background as before. Must be called on the runtime that is to send the exports.
    ///
    /// # Errors
    /// When there can be no client for these options. Then nothing has changed.
    pub fn replace(&self, options: Option<&Options>) -> Result<(), TracesError> {
        let exporter = options.map(|options| Exporter::new(options, self.0.exports.clone()));
        let exporter = exporter.transpose()?;
        self.0.is_on.store(exporter.is_some(), Ordering::Relaxed);
        let mut current = self.0.lock();
        let earlier = std::mem::replace(&mut *current, exporter);
        drop(current);
        if let Some(earlier) = earlier {
            spawn_blocking(move || earlier.shut_down());
        }
        Ok(())
    }

    /// Exports what has not been exported yet, for three seconds at most, and turns traces off.
    pub async fn shut_down(&self) {
        self.0.is_on.store(false, Ordering::Relaxed);
        let exporter = self.0.lock().take();
        if let Some(exporter) = exporter {
            let _ = spawn_blocking(move || exporter.shut_down()).await;
        }
    }

    /// The span of a request. `traceparent` is the header of that name (W3C Trace Context §3.2): a
    /// trace that the client records is recorded here as well, one that it does not record is not,
    /// and without the header the configured share is.
    pub fn request(&self, name: &'static str, traceparent: Option<&str>) -> Span {
        if !self.is_on() {
            return Span::default();
        }
        let remote = traceparent.and_then(remote_parent);
        self.begin(Kind::Server, name, remote)
    }

    /// The span of a check, which belongs to the trace of `parent`, or begins one.
    pub fn check(&self, name: &'static str, parent: Option<Parent>) -> Span {
        if !self.is_on() {
            return Span::default();
        }
        self.begin(Kind::Internal, name, parent.map(Parent::context))
    }

    fn begin(&self, kind: Kind, name: &'static str, parent: Option<Context>) -> Span {
        let exporter = self.0.exporter.read();
        let exporter = exporter.unwrap_or_else(PoisonError::into_inner);
        let Some(exporter) = exporter.as_ref() else {
            return Span::default();
        };
        let is_recorded = match &parent {
            Some(parent) => parent.span().span_context().is_sampled(),
            None => fastrand::f64() < exporter.sample,
        };
        if !is_recorded {
            return Span::default();
        }
        Span::begin(&exporter.tracer, kind, name, &parent.unwrap_or_default())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::RwLockWriteGuard<'_, Option<Exporter>> {
        self.exporter
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            is_on: AtomicBool::new(false),
            exporter: RwLock::new(None),
            exports: None,
        }
    }
}

impl Exporter {
    fn new(options: &Options, exports: Option<IntCounterVec>) -> Result<Self, TracesError> {
        let client = HttpExport::new(options, Handle::current(), exports)
            .map_err(|error| TracesError::Client(error.to_string()))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(options.endpoint.as_str())
            .with_headers(options.headers.iter().cloned().collect())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| TracesError::Exporter(error.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .with_max_export_batch_size(MAX_EXPORTED_SPANS)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(exporter)
                    .with_batch_config(batches)
                    .build(),
            )
            // Whether a trace is recorded is decided before its first span is made.
            .with_sampler(Sampler::AlwaysOn)
            .with_span_limits(SpanLimits::default())
            .with_resource(resource(options))
            .build();
        Ok(Self {
            tracer: provider.tracer("bundlegate"),
            provider,
            sample: options.sample,
        })
    }

    /// Blocks until the last spans are exported, for three seconds at most.
    fn shut_down(self) {
        // What could not be exported is lost, and was logged.
        let _ = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT);
    }
}

fn resource(options: &Options) -> Resource {
    Resource::builder()
        .with_service_name(options.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The span of the client, from the header `traceparent`; `None` if it is malformed, and then the
/// trace begins here.
fn remote_parent(traceparent: &str) -> Option<Context> {
    struct Header<'a>(&'a str);
    impl Extractor for Header<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            (key == "traceparent").then_some(self.0)
        }

        fn keys(&self) -> Vec<&str> {
            vec!["traceparent"]
        }
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Header(traceparent));
    let is_valid = context.span().span_context().is_valid();
    is_valid.then_some(context)
}

impl fmt::Debug for Options {
    /// Without the headers, which are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("endpoint", &self.endpoint.as_str())
            .field("sample", &self.sample)
            .field("service_name", &self.service_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces")
            .field("is_on", &self.is_on())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
