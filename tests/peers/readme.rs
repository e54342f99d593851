//! The README's set-up, done as it is written there.

use std::{fs, path::Path};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{GatewayConfig, Kind, Opa, OpaVersion, Registry, TestGateway, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_commands_lead_from_a_registry_to_a_decision() {
    let registry = Registry::start(Kind::Debian).await;
    let (section, yaml) = written("Serve bundles from a registry", &registry.host);
    let [publish, serve, opa] = blocks(&section).try_into().unwrap();
    let yaml = yaml.unwrap();
    let folder = policy_folder().await;
    run("sh", folder.path(), &["-ec", &publish]).await;
    fs::write(folder.path().join("bundlegate.yaml"), &yaml).unwrap();
    let check = serve
        .lines()
        .find(|line| line.contains(" config check "))
        .unwrap();
    let check = check.replace(
        "target/release/bundlegate",
        env!("CARGO_BIN_EXE_bundlegate"),
    );
    println!(
        "readme | {}",
        run("sh", folder.path(), &["-ec", &check]).await
    );
    // The commands run as written, except for the ports, which may be taken, and the folder.
    let config = GatewayConfig(serde_saphyr::from_str(&yaml).unwrap())
        .with(
            "/server",
            json!({ "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" }),
        )
        .with(
            "/trust/authorities/release-key/keys",
            json!([folder.path().join("cosign.pub")]),
        );
    let gate = TestGateway::start(config).await;
    let opa = Opa::by_command(
        OpaVersion::Newest,
        &opa.replace("http://127.0.0.1:8080", &gate.url),
    )
    .await;
    opa.decides("authz/allow", &json!(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authors_commands_lead_from_a_folder_to_a_signed_artifact() {
    let registry = Registry::start(Kind::Distribution).await;
    let (section, _) = written("Build, sign and push policies", &registry.host);
    let [commands] = blocks(&section).try_into().unwrap();
    let folder = policy_folder().await;
    run("cosign", folder.path(), &["generate-key-pair"]).await;
    for line in commands.lines() {
        println!(
            "readme | {}",
            run("sh", folder.path(), &["-ec", line.trim()]).await
        );
    }
    assert!(folder.path().join("carry/index.json").exists());
    let decision = run(
        "opa",
        folder.path(),
        &[
            "eval",
            "-b",
            "bundle.tar.gz",
            "-i",
            "policy/input.json",
            "-f",
            "raw",
            "data.authz.allow",
        ],
    );
    assert_eq!(decision.await, "false");
}

/// A folder that holds the example as `policy`.
async fn policy_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example");
    run(
        "cp",
        folder.path(),
        &["-R", example.to_str().unwrap(), "policy"],
    )
    .await;
    folder
}

/// A section, and the configuration in it, for a registry at `host`.
fn written(title: &str, host: &str) -> (String, Option<String>) {
    let readme = include_str!("../../README.md").replace("127.0.0.1:5000", host);
    let (_, section) = readme.split_once(&format!("\n## {title}\n")).unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let yaml = section
        .split_once("\n```yaml\n")
        .and_then(|(_, yaml)| yaml.split_once("\n```\n"));
    (section.to_owned(), yaml.map(|(yaml, _)| yaml.to_owned()))
}

/// The blocks of commands of a section.
fn blocks(section: &str) -> Vec<String> {
    section
        .split("\n\n")
        .filter(|block| block.starts_with("    "))
        .map(|block| block.trim().to_owned())
        .collect()
}
