//! `semver`, `filter_tags` and `suspend` in the configuration of the program, and their changes.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{command::Author, gateway::wishing};

pub(super) fn config(registry: &FaultyRegistry) -> Value {
    json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": { "authz": {
            "reference": format!("{}/acme/authz", registry.address), "trust": "dev",
            "semver": "^1", "poll": "100ms",
        } },
    })
}

pub(super) async fn start(config: &Value) -> TestGateway {
    start_in(TempDir::new().unwrap(), config).await
}

async fn start_in(folder: TempDir, config: &Value) -> TestGateway {
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    TestGateway::run(folder).await
}

async fn until_serving(gate: &TestGateway, digest: &Digest) -> Value {
    gate.status_when("authz", &format!("serves {digest}"), |status| {
        status["manifest"] == digest.to_string()
    })
    .await
}

/// Writes the configuration, which the gateway reads again by itself.
fn write(gate: &TestGateway, config: &Value) {
    fs::write(
        gate.runner.folder.path().join("bundlegate.yaml"),
        config.to_string(),
    )
    .unwrap();
}

#[tokio::test]
async fn a_range_or_filter_that_changes_chooses_anew_and_the_served_version_stays_until_then() {
    let registry = FaultyRegistry::start().await;
    let tags = ["1.0.0", "2.0.0", "main-7", "main-10"];
    let [one, two, _, ten] = tags.map(|tag| push(&registry, tag));
    registry.list_tags(&tags);
    let mut config = config(&registry);
    let gate = start(&config).await;
    until_serving(&gate, &one).await;
    config["bundles"]["authz"]["semver"] = json!("^2");
    write(&gate, &config);
    let status = until_serving(&gate, &two).await;
    assert_eq!(status["chosen"]["rule"], "semver ^2");
    // A range that nothing matches takes nothing away.
    config["bundles"]["authz"]["semver"] = json!("^3");
    write(&gate, &config);
    let status = gate
        .status_when("authz", "nothing matches", |status| {
            status["last_failure"]["class"] == "not_found"
        })
        .await;
    assert_eq!(status["manifest"], two.to_string());
    config["bundles"]["authz"] = json!({
        "reference": format!("{}/acme/authz", registry.address), "trust": "dev", "poll": "100ms",
        "filter_tags": { "pattern": "^main-([0-9]+)$", "extract": "$1", "order": "numerical" },
    });
    write(&gate, &config);
    let status = until_serving(&gate, &ten).await;
    assert_eq!(status["chosen"]["tag"], "main-10");
    config["bundles"]["authz"] = json!({
        "reference": registry.reference("1.0.0").to_string(), "trust": "dev", "poll": "100ms",
    });
    write(&gate, &config);
    let status = until_serving(&gate, &one).await;
    assert_eq!(status["chosen"], Value::Null);
}

#[tokio::test]
async fn a_chosen_version_is_served_from_disk_while_the_registry_is_down() {
    let registry = FaultyRegistry::start().await;
    let [_, served] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
    registry.list_tags(&["1.0.0", "1.1.0"]);
    let mut config = config(&registry);
    config["cache"] = json!({ "directory": "cache" });
    let gate = start(&config).await;
    until_serving(&gate, &served).await;
    let crate::shared::gateway::Program { process, folder } = gate.runner;
    drop(process);
    registry.fail("", usize::MAX, Fault::Status(503, Vec::new()));
    let gate = start_in(folder, &config).await;
    let status = until_serving(&gate, &served).await;
    assert_eq!(status["chosen"], Value::Null);
    registry.heal();
    let status = gate
        .status_when("authz", "a tag is chosen", |status| {
            status["chosen"] != Value::Null
        })
        .await;
    assert_eq!(status["chosen"]["tag"], "1.1.0");
}

#[tokio::test]
async fn after_a_restart_a_list_that_lacks_the_served_tag_leads_to_no_older_version() {
    let registry = FaultyRegistry::start().await;
    let [first, served] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
    registry.list_tags(&["1.0.0", "1.1.0"]);
    let mut config = config(&registry);
    config["cache"] = json!({ "directory": "cache" });
    let gate = start(&config).await;
    until_serving(&gate, &served).await;
    let crate::shared::gateway::Program { process, folder } = gate.runner;
    drop(process);
    registry.list_tags(&["1.0.0"]);
    let gate = start_in(folder, &config).await;
    let status = gate
        .status_when("authz", "the list fails", |status| {
            status["last_failure"]["class"] == "transient"
        })
        .await;
    let expected = "lacks 1.1.0, which is still there";
    assert!(message(&status).contains(expected), "{status}");
    assert_eq!(status["manifest"], served.to_string());
    registry.remove("manifests/1.1.0");
    let status = until_serving(&gate, &first).await;
    assert_eq!(
        status["chosen"]["reason"],
        "the only version in ^1; 1.1.0 is gone"
    );
}

#[tokio::test]
async fn suspend_is_live_and_the_reload_says_so() {
    let registry = FaultyRegistry::start().await;
    let one = push(&registry, "1.0.0");
    registry.list_tags(&["1.0.0"]);
    let mut config = config(&registry);
    let gate = start(&config).await;
    until_serving(&gate, &one).await;
    config["bundles"]["authz"]["suspend"] = json!(true);
    write(&gate, &config);
    let is_suspended = |status: &Value| status["suspended"] == true;
    gate.status_when("authz", "suspended", is_suspended).await;
    let two = push(&registry, "1.1.0");
    registry.list_tags(&["1.0.0", "1.1.0"]);
    // Another range in the meantime changes nothing either.
    config["bundles"]["authz"]["semver"] = json!(">=1");
    write(&gate, &config);
    gate.status_when("authz", "another range", |status| {
        status["chosen"] == Value::Null && is_suspended(status)
    })
    .await;
    let request = gate.http.get(format!("{}/bundles/authz", gate.url));
    let answer = wishing(request, "", 0).send().await.unwrap();
    assert_eq!(answer.headers()["bundlegate-manifest"], one.to_string());
    config["bundles"]["authz"]["suspend"] = json!(false);
    write(&gate, &config);
    let status = gate
        .status_when("authz", "resumed", |status| {
            status["manifest"] == two.to_string() && status["chosen"]["rule"] == "semver >=1"
        })
        .await;
    assert_eq!(status["suspended"], false);
    let read = gate.log();
    let read = read
        .iter()
        .filter(|line| line["message"] == "configuration read again" && line["suspensions"] == 1);
    assert_eq!(read.count(), 2);
}

#[tokio::test]
async fn a_layout_folder_has_tags_to_choose_from() {
    let registry = FaultyRegistry::start().await;
    let [one, two] = ["1.0.0", "1.1.0"].map(|version| push(&registry, version));
    // The config of the artifacts.
    registry.put_blob(b"{}");
    let author = Author::new();
    let layout = format!("oci-layout:{}", author.path("layout").display());
    let copy = async |version: &str| {
        let (from, to) = (
            registry.reference(version).to_string(),
            format!("{layout}:{version}"),
        );
        let mut command = author.command(&["copy", "--plain-http", &from, &to]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    copy("1.0.0").await;
    let mut config = config(&registry);
    config["bundles"]["authz"]["reference"] = json!(layout);
    let gate = start(&config).await;
    until_serving(&gate, &one).await;
    copy("1.1.0").await;
    let status = until_serving(&gate, &two).await;
    assert_eq!(status["chosen"]["tag"], "1.1.0");
}

#[tokio::test]
async fn tags_lists_the_versions_in_a_range_the_highest_first() {
    let registry = FaultyRegistry::start().await;
    for version in ["1.2.0", "1.10.0", "2.0.0"] {
        push(&registry, version);
    }
    registry.list_tags(&["1.2.0", "1.10.0", "2.0.0", "latest"]);
    let repository = format!("{}/acme/authz", registry.address);
    let author = Author::new();
    let tags = async |range: &str| {
        let mut command =
            author.command(&["tags", "--plain-http", "-q", "--semver", range, &repository]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        output.await.unwrap()
    };
    let output = tags("^1").await;
    let expected = format!("{repository}:1.10.0\n{repository}:1.2.0\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let output = tags("^one").await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("is not a version range"), "{stderr}");
}
