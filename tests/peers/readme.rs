//! The README's set-up, done as it is written there.

use std::{fs, path::Path};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Gate, GateConfig, Kind, Opa, OpaVersion, Registry, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_commands_lead_from_a_registry_to_a_decision() {
    let registry = Registry::start(Kind::Debian).await;
    let (commands, yaml) = written(&registry.host);
    let [publish, serve, opa] = commands.try_into().unwrap();
    let folder = TempDir::new().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example");
    run("cp", folder.path(), &["-R", example.to_str().unwrap(), "policy"]).await;
    run("sh", folder.path(), &["-ec", &publish]).await;
    fs::write(folder.path().join("bundlegate.yaml"), &yaml).unwrap();
    let check = serve.lines().find(|line| line.contains(" config check ")).unwrap();
    let check = check.replace("target/release/bundlegate", env!("CARGO_BIN_EXE_bundlegate"));
    println!("readme | {}", run("sh", folder.path(), &["-ec", &check]).await);
    // As written, but for the ports, which may be taken, and the folder.
    let config = GateConfig(serde_saphyr::from_str(&yaml).unwrap())
        .with("/server", json!({ "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" }))
        .with("/trust/authorities/release-key/keys", json!([folder.path().join("cosign.pub")]));
    let gate = Gate::start(config).await;
    let opa = Opa::by_command(OpaVersion::Newest, &opa.replace("http://127.0.0.1:8080", &gate.url)).await;
    opa.decides("authz/allow", &json!(false)).await;
}

/// The blocks of commands and the configuration of the section, for a registry at `host`.
fn written(host: &str) -> (Vec<String>, String) {
    let readme = include_str!("../../README.md").replace("127.0.0.1:5000", host);
    let (_, section) = readme.split_once("\n## From a registry to a decision\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let (_, yaml) = section.split_once("\n```yaml\n").unwrap();
    let (yaml, _) = yaml.split_once("\n```\n").unwrap();
    let blocks = section.split("\n\n").filter(|block| block.starts_with("    "));
    (blocks.map(|block| block.trim().to_owned()).collect(), yaml.to_owned())
}
