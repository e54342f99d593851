//! Traces, as the collector of OpenTelemetry gets them.

use std::{fs, process::Command};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Process, Registry, TestGateway, free_address, http,
    poll_until, program,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A collector that prints what it gets, and its URL.
async fn collector(folder: &TempDir) -> (Process, String) {
    let address = free_address();
    let config = json!({
        "receivers": { "otlp": { "protocols": { "http": { "endpoint": address } } } },
        "exporters": { "debug": { "verbosity": "detailed" } },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": { "traces": { "receivers": ["otlp"], "exporters": ["debug"] } },
        },
    });
    let file = folder.path().join("collector.yaml");
    fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(program("otel-collector"));
    command.arg("--config").arg(&file);
    let mut process = Process::start("otel-collector", &mut command);
    let is_ready = |line: &str| line.contains("Everything is ready").then_some(());
    process.line(is_ready).await;
    (process, format!("http://{address}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_trace_of_a_request_and_follows_the_configuration() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    // Polled so seldom that each check has another cause.
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .with("/bundles/authz/poll", json!("1h"));
    let gateway = TestGateway::start(config.clone()).await;
    let is_serving = |status: &serde_json::Value| status["state"] == "serving";
    gateway.status_when("authz", "serving", is_serving).await;

    let folder = TempDir::new().unwrap();
    let (collector, endpoint) = collector(&folder).await;
    let tracing = json!({ "endpoint": endpoint, "sample": 0, "service_name": "gate-1" });
    gateway.reconfigure(&config.with("/tracing", tracing));
    // Requests until the configuration is in force, each of a client that records its trace and
    // runs another version, so that the registry is checked for it.
    let received = async || {
        let request = http()
            .get(format!("{}/bundles/authz", gateway.url))
            .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
            .header("if-none-match", "\"another\"");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let log = collector.log();
        (log.contains("Name           : check") && log.contains("GET /bundles/{name}"))
            .then_some(log)
    };
    let (log, took) = poll_until("the trace", received).await;
    for part in [
        TRACE,
        "service.name: Str(gate-1)",
        "Name           : resolve",
        "Name           : HEAD resolve",
        "bundlegate.bundle: Str(authz)",
        "Kind           : Client",
    ] {
        assert!(log.contains(part), "no {part} in {log}");
    }
    println!(
        "traces | the collector has the trace after {:.1} s",
        took.as_secs_f64()
    );
}
