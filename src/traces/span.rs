//! Spans, and the futures that run in them.

use std::{borrow::Cow, fmt};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        FutureExt as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::SdkTracer;

use crate::telemetry::{SENTENCE_BYTES, cut};

/// A span of a trace, which ends when it is dropped; or nothing, if the trace is not recorded.
#[derive(Default)]
pub struct Span(Option<Context>);

/// The part of a span in the communication with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that is answered here.
    Server,
    /// A request that is sent from here.
    Client,
    /// A step in this process.
    Internal,
}

/// The position of a recorded span, under which a span of another task is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
}

/// The tracer of a trace, which its spans carry, so that a span within it needs no other.
struct CurrentTracer(SdkTracer);

impl Span {
    pub(super) fn begin(
        tracer: &SdkTracer,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        parent: &Context,
    ) -> Self {
        let builder = SpanBuilder::from_name(name).with_kind(kind.into());
        let span = tracer.build_with_context(builder, parent);
        let context = Context::new().with_value(CurrentTracer(tracer.clone()));
        Self(Some(context.with_span(span)))
    }

    /// A span under the current one. `name` is called if the trace is recorded.
    pub fn child<N: Into<Cow<'static, str>>>(kind: Kind, name: impl FnOnce() -> N) -> Self {
        Context::map_current(|context| match context.get() {
            Some(CurrentTracer(tracer)) => Self::begin(tracer, kind, name(), context),
            None => Self::default(),
        })
    }

    /// Whether the trace is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Sets an attribute.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Sets an attribute of the current span, if there is one.
    pub fn set_current(key: &'static str, value: impl FnOnce() -> Value) {
        Context::map_current(|context| {
            if context.has_active_span() {
                context.span().set_attribute(KeyValue::new(key, value()));
            }
        });
    }

    /// Marks the span as failed, with the reason.
    pub fn fail(&self, reason: &str) {
        if let Some(context) = &self.0 {
            let reason = cut(reason, SENTENCE_BYTES).into_owned();
            context.span().set_status(Status::error(reason));
        }
    }

    /// The position of the current span; `None` if the trace is not recorded.
    pub fn current() -> Option<Parent> {
        Context::map_current(|context| {
            let span = context.span();
            let span = span.span_context();
            span.is_sampled().then(|| Parent {
                trace: span.trace_id(),
                span: span.span_id(),
            })
        })
    }

    /// Runs a function in which this span is the current one.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        let _guard = self.0.clone().map(Context::attach);
        work()
    }

    /// A function that runs elsewhere in the current span.
    pub fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let context = Context::current();
        move || {
            let _guard = context.attach();
            work()
        }
    }

    /// Runs a future in which this span is the current one. As cancel-safe as the future.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// Runs a step in a span of its own, which is marked as failed if the step fails.
pub async fn step<T, E: fmt::Display>(
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let span = Span::child(Kind::Internal, || name);
    let result = span.run(work).await;
    if let (Err(error), true) = (&result, span.is_recorded()) {
        span.fail(&error.to_string());
    }
    result
}

impl Parent {
    /// A context in which this span, of another task, is the current one.
    pub(super) fn context(self) -> Context {
        let Self { trace, span } = self;
        let is_remote = false;
        let state = TraceState::default();
        let parent = SpanContext::new(trace, span, TraceFlags::SAMPLED, is_remote, state);
        Context::new().with_remote_span_context(parent)
    }
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Server => Self::Server,
            Kind::Client => Self::Client,
            Kind::Internal => Self::Internal,
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = self.0.as_ref();
        let span = context.map(|context| context.span().span_context().clone());
        f.debug_tuple("Span").field(&span).finish()
    }
}
