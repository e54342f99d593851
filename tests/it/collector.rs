//! A collector of traces that keeps what it gets (OTLP over HTTP, in protobuf).

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};

use crate::shared::{Stream, accept, poll_until};

/// Serves until this is dropped.
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    /// Everything that was sent, headers included.
    text: String,
    exports: usize,
    fails: bool,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let tasks = accept(listener, None, move |stream| {
            serve(stream, Arc::clone(&shared))
        });
        Self {
            endpoint,
            state,
            _tasks: tasks,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether it answers with 503 from now on.
    pub(crate) fn fail(&self, fails: bool) {
        self.state().fails = fails;
    }

    pub(crate) fn exports(&self) -> usize {
        self.state().exports
    }

    /// Everything that was sent to it, as far as it is text.
    pub(crate) fn text(&self) -> String {
        self.state().text.clone()
    }

    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        attribute(&self.state().resource, key)
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.state().spans.clone()
    }

    /// Waits for a span.
    pub(crate) async fn span(&self, what: &str, is: impl Fn(&Span) -> bool) -> Span {
        let (span, _) = poll_until(what, async || {
            let spans = self.spans();
            spans.into_iter().find(|span| is(span))
        })
        .await;
        span
    }
}

/// The value of an attribute, as text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

async fn serve(stream: Box<dyn Stream>, state: Arc<Mutex<State>>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let mut state = state.lock().unwrap();
            state.exports += 1;
            assert_eq!(head.headers["content-type"], "application/x-protobuf");
            let text = String::from_utf8_lossy(&body);
            state.text += &format!("{} {:?} {text}", head.uri, head.headers);
            let status = if state.fails { 503 } else { 200 };
            if !state.fails {
                let export = ExportTraceServiceRequest::decode(body).unwrap();
                for resource in export.resource_spans {
                    state.resource = resource.resource.unwrap().attributes;
                    let scopes = resource.scope_spans.into_iter();
                    state.spans.extend(scopes.flat_map(|scope| scope.spans));
                }
            }
            let response = Response::builder().status(status);
            Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
