//! `/metrics`, read by promtool and Prometheus.

use std::{
    fs::{self, File},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Prometheus, Registry, TestGateway,
    poll_until, program,
};

/// The metrics that dashboards use.
const PROMISED: [(&str, &str); 20] = [
    ("build_info", "gauge"),
    ("http_requests_total", "counter"),
    ("sent_bytes_total", "counter"),
    ("waiters", "gauge"),
    ("connections", "gauge"),
    ("registry_requests_total", "counter"),
    ("refreshes_total", "counter"),
    ("verifications_total", "counter"),
    ("bundle_state", "gauge"),
    ("bundle_info", "gauge"),
    ("bundle_last_check_timestamp_seconds", "gauge"),
    ("cache_hits_total", "counter"),
    ("cache_misses_total", "counter"),
    ("cache_bytes", "gauge"),
    ("bundle_refused", "gauge"),
    ("http_request_duration_seconds", "histogram"),
    ("hold_duration_seconds", "histogram"),
    ("registry_request_duration_seconds", "histogram"),
    ("verification_duration_seconds", "histogram"),
    ("publication_duration_seconds", "histogram"),
];

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_and_prometheus_answers_what_is_served() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    registry.push("acme/unsigned:live", &artifact.file()).await;
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .cached();
    let gate = TestGateway::start(config.bundle("refused", &registry, "acme/unsigned:live")).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers("first").await;
    gate.status_when("refused", "refused", |status| {
        status["state"] == "withdrawn"
    })
    .await;
    gate.status_when("authz", "OPA waits", |status| status["waiters"] == 1)
        .await;
    linted(&gate).await;

    let mut prometheus = Prometheus::scraping(&[gate.admin], &[]).await;
    for (query, wanted) in [
        (
            r#"bundlegate_bundle_state{bundle="authz",state="serving"}"#,
            "1",
        ),
        (
            r#"bundlegate_bundle_state{bundle="authz",state="withdrawn"}"#,
            "0",
        ),
        (
            r#"bundlegate_bundle_state{bundle="refused",state="withdrawn"}"#,
            "1",
        ),
        (r#"bundlegate_waiters{bundle="authz"}"#, "1"),
        (r#"bundlegate_bundle_refused{bundle="authz"}"#, "0"),
        (r#"bundlegate_bundle_refused{bundle="refused"}"#, "1"),
        (
            r#"histogram_quantile(0.99, sum by (le) (bundlegate_http_request_duration_seconds_bucket{code="200"})) < bool 1"#,
            "1",
        ),
        (
            r#"sum(bundlegate_publication_duration_seconds_count{trigger="start"})"#,
            "1",
        ),
        ("process_open_fds > bool 5", "1"),
        (
            &format!(
                r#"bundlegate_bundle_info{{bundle="authz",manifest="{digest}",revision="first"}}"#
            ),
            "1",
        ),
        (
            "time() - bundlegate_bundle_last_check_timestamp_seconds{bundle=\"authz\"} < bool 60",
            "1",
        ),
    ] {
        let asked = async || {
            let samples = prometheus.samples(query).await.ok()?;
            (samples == [wanted]).then_some(())
        };
        let (_, took) = poll_until(
            &format!("Prometheus to answer {query} with {wanted}"),
            asked,
        )
        .await;
        println!(
            "prometheus | {query} = {wanted} | after {:.1} s",
            took.as_secs_f64()
        );
    }
    assert!(!prometheus.has_ended());
}

/// `promtool check metrics` takes the page on its standard input, and complains in words.
async fn linted(gate: &TestGateway) {
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("metrics");
    fs::write(&page, gate.admin_text("/metrics").await).unwrap();
    let mut promtool = Command::new(program("promtool"));
    let checked = promtool
        .args(["check", "metrics"])
        .stdin(File::open(&page).unwrap())
        .output()
        .unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    assert!(
        checked.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let page = fs::read_to_string(&page).unwrap();
    for (name, kind) in PROMISED {
        assert!(
            page.contains(&format!("# TYPE bundlegate_{name} {kind}\n")),
            "{name} is not there"
        );
    }
    println!(
        "prometheus | promtool accepts all {} metrics",
        PROMISED.len()
    );
}
