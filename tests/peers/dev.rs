//! The author's loop: `bundlegate dev`, the commands that it prints, and an editor.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{Opa, OpaVersion, Process, poll_until, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_readme_answers_and_follows_its_files() {
    let policy = TempDir::new().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example/.");
    run("cp", policy.path(), &["-R", example.to_str().unwrap(), "."]).await;
    answers_and_follows(Dev::start(&[policy.path()]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_path_the_built_in_example_answers_and_follows_its_files() {
    answers_and_follows(Dev::start(&[]).await).await;
}

async fn answers_and_follows(mut dev: Dev) {
    let opas = [
        dev.opa(OpaVersion::V0_70).await,
        dev.opa(OpaVersion::Newest).await,
    ];
    for opa in &opas {
        dev.answer(opa, |answer| {
            answer["rights"] == json!(["read"]) && answer["allow"] == false
        })
        .await;
    }
    let folder = dev.watched().await;
    edit(
        &folder.join("authz.rego"),
        "default allow := false",
        "default allow := true",
    );
    let began = Instant::now();
    for opa in &opas {
        dev.answer(opa, |answer| answer["allow"] == true).await;
        println!(
            "dev | OPA {:?} | {:.2} s from the edit to the decision",
            opa.version,
            began.elapsed().as_secs_f64()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_keeps_the_last_good_build_and_says_why() {
    let policy = TempDir::new().unwrap();
    write_policy(policy.path(), "first");
    let mut dev = Dev::start(&[policy.path()]).await;
    let opa = dev.opa(OpaVersion::Newest).await;
    opa.answers("first").await;
    fs::write(
        policy.path().join("authz.rego"),
        "package authz\n\nanswer := {",
    )
    .unwrap();
    let complaint = dev
        .process
        .line(|line| line.contains("last good build").then(|| line.to_owned()))
        .await;
    assert!(complaint.contains("authz.rego"), "{complaint}");
    println!("dev | {complaint}");
    assert_eq!(opa.decision("authz/answer").await, Some(json!("first")));
    write_policy(policy.path(), "second");
    println!(
        "dev | {:.2} s from the mended file to the decision",
        opa.answers("second").await.as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_and_leaves_nothing_behind() {
    let mut dev = Dev::start(&[]).await;
    // A client that waits must not hold it up.
    let opa = dev.opa(OpaVersion::Newest).await;
    dev.answer(&opa, |answer| answer["allow"] == false).await;
    assert_eq!(fs::read_dir(dev.temporary.path()).unwrap().count(), 1);
    let began = Instant::now();
    dev.process.signal("INT");
    let status = dev.process.ended().await;
    println!(
        "dev | ends {:.2} s after Ctrl-C",
        began.elapsed().as_secs_f64()
    );
    assert!(status.success(), "{status}");
    assert_eq!(fs::read_dir(dev.temporary.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_examples_own_tests_pass_in_both_opas() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example");
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        let told = run(version.program(), &example, &["test", "."]).await;
        println!("dev | OPA {version:?} | {told}");
        assert!(told.starts_with("PASS: "), "{told}");
    }
}

/// `bundlegate dev` and what it printed.
struct Dev {
    process: Process,
    /// The `opa run` line.
    opa: String,
    /// The `curl` line that asks OPA.
    query: String,
    /// Its folder for temporary files.
    temporary: TempDir,
}

impl Dev {
    async fn start(arguments: &[&Path]) -> Self {
        let temporary = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command
            .arg("dev")
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .env("TMPDIR", temporary.path());
        let mut process = Process::start("bundlegate dev", &mut command);
        let opa = process
            .line(|line| line.starts_with("opa run ").then(|| line.to_owned()))
            .await;
        let query = process
            .line(|line| line.contains(":8181/v1/data/").then(|| line.to_owned()))
            .await;
        Self {
            process,
            opa,
            query,
            temporary,
        }
    }

    /// An OPA started by the printed line.
    async fn opa(&self, version: OpaVersion) -> Opa {
        Opa::by_command(version, &self.opa).await
    }

    /// Runs the printed query until its result satisfies `wanted`.
    async fn answer(&self, opa: &Opa, wanted: impl Fn(&Value) -> bool) {
        let query = self.query.replace("127.0.0.1:8181", &opa.address);
        let ask = async || {
            let reply: Value =
                serde_json::from_str(&run("sh", self.temporary.path(), &["-c", &query]).await)
                    .ok()?;
            wanted(&reply["result"]).then_some(())
        };
        poll_until(&query, ask).await;
    }

    /// The folder that is watched, as printed.
    async fn watched(&mut self) -> PathBuf {
        let find = |line: &str| {
            let rest = line.split_once("watching ")?.1;
            Some(PathBuf::from(rest.split([' ', ';']).next()?))
        };
        self.process.line(find).await
    }
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

fn write_policy(folder: &Path, answer: &str) {
    fs::write(
        folder.join("authz.rego"),
        format!("package authz\n\nanswer := \"{answer}\"\n"),
    )
    .unwrap();
}
