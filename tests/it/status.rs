//! `bundlegate status`.

use std::process::Command;

use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::{
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, TestGateway, bundle},
    shared::Process,
};

type Gate = TestGateway<InProcess>;

async fn run(gate: &Gate, arguments: &[&str]) -> Ran {
    let admin = format!("http://{}", gate.admin);
    let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
    let running = spawn_blocking(move || {
        let mut all = vec!["status", "--admin", &admin];
        all.extend(arguments.iter().map(String::as_str));
        Author::new().run(&all)
    });
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_prints_what_is_served_and_why_the_last_check_failed() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await.error_for_status().unwrap();
    let name = gate.name();
    let document: Value = serde_json::from_str(&run(&gate, &[name, "--json"]).await.ok()).unwrap();
    let digest = document["manifest"].as_str().unwrap();
    let short = &digest["sha256:".len()..][..12];
    let table = run(&gate, &[]).await.ok();
    let line = table.lines().nth(1).unwrap();
    assert!(table.starts_with("BUNDLE "), "{table}");
    for cell in [name, "serving", "live", short] {
        assert!(line.contains(cell), "{table}");
    }
    registry.fail("", usize::MAX, Fault::Status(500, Vec::new()));
    gate.refresh().await;
    let facts = run(&gate, &[name]).await.ok();
    assert!(
        facts.contains(digest) && facts.contains("transient, "),
        "{facts}"
    );
    let all: Value = serde_json::from_str(&run(&gate, &["--json"]).await.ok()).unwrap();
    assert_eq!(all["bundles"][name]["manifest"], digest);
    let unknown = run(&gate, &["nobody"]).await;
    let message = format!("status: no bundle nobody; there are: {name}");
    assert!(unknown.error().contains(&message), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_is_printed_again_when_another_version_is_served() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await.error_for_status().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    let admin = format!("http://{}", gate.admin);
    command.args(["status", "--watch", "--admin", &admin]);
    let mut watching = Process::start("status", &mut command);
    let digest = |name: &str, log: &str| {
        let mut lines = log.lines().filter(|line| line.starts_with(name));
        let last = lines.next_back()?.split_whitespace().nth(3)?;
        Some(last.to_owned())
    };
    let first = watching.line(|line| digest(gate.name(), line)).await;
    registry.put_artifact("live", &bundle("two"));
    gate.refresh().await;
    let second = watching
        .line(|line| digest(gate.name(), line).filter(|digest| *digest != first))
        .await;
    // Once for each version, though the ages differ each time.
    let log = watching.log();
    let printed: Vec<_> = log
        .lines()
        .filter_map(|line| digest(gate.name(), line))
        .collect();
    assert_eq!(printed, [first, second]);
}
