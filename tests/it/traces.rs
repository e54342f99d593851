//! `tracing`: traces of requests and checks, exported to a collector.

use bundlegate::traces::Options;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use reqwest::Method;

use crate::{
    collector::{Collector, attribute},
    faulty::FaultyRegistry,
    gateway::{HOUR, InProcess, Setup, TestGateway, bundle},
    shared::poll_until,
};

type Gateway = TestGateway<InProcess>;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn options(endpoint: &str, sample: f64) -> Options {
    Options {
        endpoint: endpoint.parse().unwrap(),
        sample,
        service_name: "gate-1".to_owned(),
        headers: vec![("x-tenant".to_owned(), "acme".to_owned())],
        extra_roots: Vec::new(),
    }
}

/// A gateway with the bundle `authz/main`, which is polled once an hour, and a pattern.
async fn gateway(registry: &FaultyRegistry, tracing: Options) -> Gateway {
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup {
        pattern: Some(("teams/{tag}", "1h", 10)),
        tracing: Some(tracing),
        ..Setup::default()
    };
    setup.rules.poll = HOUR;
    let gateway = Gateway::with(registry, setup).await;
    assert_eq!(gateway.get("", 0).await.status(), 200);
    gateway
}

/// A request of a client that records its trace, or does not.
async fn get(gateway: &Gateway, path: &str, is_sampled: bool) -> u16 {
    let traceparent = format!("00-{TRACE}-{CALLER}-0{}", u8::from(is_sampled));
    let request = gateway.request(Method::GET, path);
    let response = request.header("traceparent", traceparent).send().await;
    response.unwrap().status().as_u16()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_in_trace(span: &Span) -> bool {
    hex(&span.trace_id) == TRACE
}

fn is_server(span: &Span) -> bool {
    span.kind == SpanKind::Server as i32
}

fn is_root_check(span: &Span) -> bool {
    span.name == "check" && span.parent_span_id.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_request_leads_to_the_requests_to_the_registry() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    let gateway = gateway(&registry, options(&collector.endpoint, 0.0)).await;
    registry.put_artifact("red", &bundle("red"));
    assert_eq!(get(&gateway, "/bundles/teams/red", true).await, 200);

    let request = collector.span("request", is_server).await;
    assert_eq!(
        (
            &*request.name,
            hex(&request.trace_id),
            hex(&request.parent_span_id)
        ),
        ("GET /bundles/{name}", TRACE.to_owned(), CALLER.to_owned())
    );
    for (key, value) in [
        ("bundlegate.bundle", "teams/red"),
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "/bundles/{name}"),
        ("url.path", "/bundles/teams/red"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(
            attribute(&request.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    let check = collector.span("check", |span| span.name == "check").await;
    assert_eq!(check.parent_span_id, request.span_id);
    assert_eq!(
        attribute(&check.attributes, "bundlegate.outcome").unwrap(),
        "accepted"
    );
    for (step, child) in [
        ("resolve", Some("GET resolve")),
        ("layers", Some("GET blob")),
        ("open", None),
        ("persist", None),
    ] {
        let is_step = |span: &Span| span.name == step && span.parent_span_id == check.span_id;
        let step = collector.span(step, is_step).await;
        let Some(child) = child else { continue };
        let is_child = |span: &Span| span.parent_span_id == step.span_id;
        let request = collector.span(child, is_child).await;
        assert_eq!(
            (&*request.name, request.kind),
            (child, SpanKind::Client as i32)
        );
        assert_eq!(
            attribute(&request.attributes, "server.address").unwrap(),
            "127.0.0.1"
        );
        assert_eq!(
            attribute(&request.attributes, "http.response.status_code").unwrap(),
            "200"
        );
    }
    assert!(
        collector.spans().iter().all(is_in_trace),
        "no other is recorded"
    );
    assert_eq!(collector.resource("service.name").unwrap(), "gate-1");
    assert!(collector.text().contains("acme"), "the header was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_records_no_trace_causes_none_and_others_cause_the_configured_share() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    let gateway = gateway(&registry, options(&collector.endpoint, 1.0)).await;
    assert_eq!(get(&gateway, "/bundles/authz/main", false).await, 200);
    assert_eq!(
        gateway
            .request(Method::GET, "/bundles/none")
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    let is_404 = |span: &Span| {
        attribute(&span.attributes, "http.response.status_code").as_deref() == Some("404")
    };
    collector.span("request for no bundle", is_404).await;
    collector.span("check at the start", is_root_check).await;
    assert!(!collector.spans().iter().any(is_in_trace));
}

/// It takes the path of a request that is held for a check, as a client sends it that runs another
/// version.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_a_check_has_it_in_its_trace() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    let gateway = gateway(&registry, options(&collector.endpoint, 0.0)).await;
    registry.put_artifact("live", &bundle("two"));
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let request = gateway.asking("\"another\"", 30);
    let response = request
        .header("traceparent", traceparent)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let request = collector.span("request", is_server).await;
    let check = collector.span("check", |span| span.name == "check").await;
    assert_eq!(check.parent_span_id, request.span_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_fails_has_the_reason_in_its_trace_and_no_secret() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    let gateway = gateway(&registry, options(&collector.endpoint, 1.0)).await;
    registry.refuse("", 500, "broken");
    let answer = gateway.refresh().await;
    assert_eq!(answer["outcome"], "failed", "{answer}");
    let is_refresh = |span: &Span| span.name == "POST /refresh/{name}";
    let refresh = collector.span("refresh", is_refresh).await;
    let is_its_check = |span: &Span| span.name == "check" && span.parent_span_id == refresh.span_id;
    let check = collector.span("check", is_its_check).await;
    let status = check.status.unwrap();
    assert_eq!(status.code, StatusCode::Error as i32);
    assert!(status.message.contains("500"), "{status:?}");
    assert_eq!(
        attribute(&check.attributes, "bundlegate.outcome").unwrap(),
        "failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_affects_no_request_and_is_used_again() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    collector.fail(true);
    let gateway = gateway(&registry, options(&collector.endpoint, 1.0)).await;
    let exports = |outcome: &str| {
        gateway.count(&format!(
            r#"bundlegate_trace_exports_total{{outcome="{outcome}"}}"#
        ))
    };
    let until = async |outcome: &str| {
        poll_until(outcome, async || {
            let status = get(&gateway, "/bundles/authz/main", true).await;
            assert_eq!(status, 200);
            (exports(outcome) > 0).then_some(())
        })
        .await;
    };
    until("failed").await;
    collector.fail(false);
    until("exported").await;
    collector.span("request", is_in_trace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_exported_at_the_end() {
    let (registry, collector) = (FaultyRegistry::start().await, Collector::start().await);
    let mut gateway = gateway(&registry, options(&collector.endpoint, 0.0)).await;
    assert_eq!(get(&gateway, "/bundles/authz/main", true).await, 200);
    gateway.begin_to_drain();
    gateway.until_drained().await;
    assert!(collector.spans().iter().any(is_in_trace));
    assert!(collector.exports() > 0);
}
