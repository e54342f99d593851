//! `/metrics` before those who read it.

use std::{
    fs::{self, File},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Process, Registry, TestGateway, http,
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

    let folder = TempDir::new().unwrap();
    let (prometheus, mut process) = scraping(&gate, &folder).await;
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
            value(&prometheus, query)
                .await
                .filter(|value| value == wanted)
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
    assert!(!process.has_ended());
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

/// A Prometheus that looks at the gate every second, and where it listens.
async fn scraping(gate: &TestGateway, folder: &TempDir) -> (String, Process) {
    let config = json!({
        "global": { "scrape_interval": "1s" },
        "scrape_configs": [{ "job_name": "bundlegate", "static_configs": [{ "targets": [gate.admin] }] }],
    });
    fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
    let mut command = Command::new(program("prometheus"));
    command.current_dir(folder.path()).args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
        "--log.format=json",
    ]);
    let mut process = Process::start("prometheus", &mut command);
    let address = process
        .line(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            // Port 0 stands in an earlier line, the real one in that of the web toolkit.
            line["address"]
                .as_str()
                .filter(|address| !address.ends_with(":0"))
                .map(str::to_owned)
        })
        .await;
    (format!("http://{address}"), process)
}

/// The value of the only sample that a query gives.
async fn value(prometheus: &str, query: &str) -> Option<String> {
    let url =
        reqwest::Url::parse_with_params(&format!("{prometheus}/api/v1/query"), [("query", query)])
            .unwrap();
    let body = http().get(url).send().await.ok()?.bytes().await.ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    match body["data"]["result"].as_array()?.as_slice() {
        [only] => only["value"][1].as_str().map(str::to_owned),
        _ => None,
    }
}
