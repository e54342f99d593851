//! Requests in spans of their own (OpenTelemetry, HTTP client spans).

use reqwest::{Request, RequestBuilder, Response};

use super::transport::innermost;
use crate::{
    telemetry::{NAME_BYTES, cut},
    traces::{Kind, Span},
};

/// Sends a request, in a span if the trace is recorded. The span ends with the head of the answer.
/// Neither the query of the URL nor a header becomes part of it, because they may grant access.
pub(super) async fn send(
    operation: &'static str,
    request: RequestBuilder,
) -> reqwest::Result<Response> {
    if Span::current().is_none() {
        return request.send().await;
    }
    let (client, request) = request.build_split();
    let request = request?;
    let span = span(operation, &request);
    let answer = span.run(client.execute(request)).await;
    match &answer {
        Ok(answer) => {
            let status = answer.status();
            span.set("http.response.status_code", i64::from(status.as_u16()));
            if status.is_client_error() || status.is_server_error() {
                span.fail(status.as_str());
            }
        }
        Err(error) => span.fail(&innermost(error)),
    }
    answer
}

fn span(operation: &'static str, request: &Request) -> Span {
    let (method, url) = (request.method(), request.url());
    let span = Span::child(Kind::Client, || format!("{method} {operation}"));
    let shown = |text: &str| cut(text, NAME_BYTES).into_owned();
    span.set("http.request.method", method.to_string());
    span.set("server.address", shown(url.host_str().unwrap_or_default()));
    if let Some(port) = url.port_or_known_default() {
        span.set("server.port", i64::from(port));
    }
    span.set("url.scheme", shown(url.scheme()));
    span.set("url.path", shown(url.path()));
    span
}
