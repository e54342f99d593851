//! `bundlegate dev` as a person runs it, but for OPA.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::Response;
use serde_json::Value;

use crate::{
    command::{Author, write},
    shared::poll_until,
};

struct Dev {
    child: Child,
    /// The address of `/status`.
    status: String,
    /// The address of the bundle.
    url: String,
    complaints: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
}

impl Dev {
    fn start(policy: &[(&str, &str)], flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in policy {
            write(&folder.path().join("policy").join(name), content);
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_bundlegate"))
            .args(["dev", "policy", "--listen", "127.0.0.1:0"])
            .args(flags)
            .current_dir(folder.path())
            // The temporary state is under observation, too.
            .env("TMPDIR", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (heard, stderr) = (Arc::clone(&complaints), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        // The commands that show the status and fetch the bundle are printed last. From then on the
        // bundle is served.
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut url_of = |is_command: &dyn Fn(&str) -> bool| {
            let line = lines.find(|line| is_command(line));
            let url = line.and_then(|line| line.rsplit(' ').next().map(str::to_owned));
            url.unwrap_or_default()
        };
        let status = url_of(&|line| line.starts_with("curl ") && line.ends_with("/status"));
        let url = url_of(&|line| line.starts_with("curl -s -D"));
        Self {
            child,
            status,
            url,
            complaints,
            folder,
        }
    }

    fn policy(&self) -> PathBuf {
        self.folder.path().join("policy")
    }

    fn states(&self) -> usize {
        let entries = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        entries
            .filter(|name| name.to_string_lossy().starts_with(".bundlegate-dev-"))
            .count()
    }

    fn count(&self, of: &str) -> usize {
        self.complaints
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(of))
            .count()
    }

    async fn hears(&self, of: &str) {
        crate::gateway::eventually(of, || self.complained(of)).await;
    }

    /// Waits until a request for the bundle is held.
    async fn until_held(&self, name: &str) {
        poll_until("a held request", async || {
            let status = get(&self.status, None).await.bytes().await.unwrap();
            let status: Value = serde_json::from_slice(&status).unwrap();
            (status["bundles"][name]["waiters"] == 1).then_some(())
        })
        .await;
    }

    fn complained(&self, of: &str) -> bool {
        self.complaints
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.starts_with("bundlegate: ") && line.contains(of))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn get(url: &str, if_none_match: Option<&str>) -> Response {
    let mut request = reqwest::Client::new()
        .get(url)
        .timeout(Duration::from_secs(60));
    if let Some(tag) = if_none_match {
        request = request
            .header("if-none-match", tag)
            .header("prefer", "modes=snapshot,delta;wait=50");
    }
    request.send().await.unwrap()
}

fn header(response: &Response, name: &str) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_edit_is_built_signed_verified_and_wakes_a_long_poll() {
    let dev = Dev::start(
        &[("p.rego", "package p\n\nx := 1\n")],
        &["--name", "a/b.tar.gz"],
    );
    assert!(
        dev.url.ends_with("/bundles/a/b.tar.gz"),
        "{:?}",
        dev.complaints
    );
    let first = get(&dev.url, None).await;
    assert_eq!(header(&first, "bundlegate-signer"), "dev");
    let tag = header(&first, "etag");
    let (second, ()) = tokio::join!(get(&dev.url, Some(&tag)), async {
        dev.until_held("a/b.tar.gz").await;
        write(&dev.policy().join("p.rego"), "package p\n\nx := 2\n");
    });
    assert_eq!(second.status(), 200);
    assert_ne!(header(&second, "etag"), tag);
}

/// It brings an earlier digest back, which nobody else should do.
#[tokio::test]
async fn an_edit_that_is_undone_is_no_alarm() {
    let dev = Dev::start(&[("main.rego", "package main\n\nx := 1\n")], &[]);
    let first = header(&get(&dev.url, None).await, "etag");
    let mut etag = first.clone();
    for text in ["x := 2", "x := 1"] {
        write(
            &dev.policy().join("main.rego"),
            &format!("package main\n\n{text}\n"),
        );
        etag = header(&get(&dev.url, Some(&etag)).await, "etag");
    }
    assert_eq!(etag, first);
    assert!(!dev.complained("older"));
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_build_and_says_why() {
    let dev = Dev::start(&[("p.rego", "package p\n\nx := 1\n")], &[]);
    let tag = header(&get(&dev.url, None).await, "etag");
    write(&dev.policy().join("p.rego"), "package p\n\nx := \n");
    dev.hears("p.rego:4:1: ").await;
    assert!(
        dev.complained("the last good build is still served"),
        "{:?}",
        dev.complaints
    );
    assert_eq!(header(&get(&dev.url, None).await, "etag"), tag);
    // A folder that replaces the other as a whole is noticed, too.
    write(
        &dev.folder.path().join("next/p.rego"),
        "package p\n\nx := 3\n",
    );
    fs::rename(dev.policy(), dev.folder.path().join("old")).unwrap();
    fs::rename(dev.folder.path().join("next"), dev.policy()).unwrap();
    assert_eq!(get(&dev.url, Some(&tag)).await.status(), 200);
}

/// By the built-in evaluator: `--opa none`, wherever these tests run.
#[tokio::test]
async fn the_tests_of_the_folder_are_run_and_a_failing_one_is_reported_and_delays_nothing() {
    let test = "package p_test\n\ntest_x if data.p.x == 1\n\ntest_true if true\n";
    let mut dev = Dev::start(
        &[("p.rego", "package p\n\nx := 1\n"), ("p_test.rego", test)],
        &["--opa", "none"],
    );
    dev.hears("2 tests passed").await;
    let tag = header(&get(&dev.url, None).await, "etag");
    write(&dev.policy().join("p.rego"), "package p\n\nx := 2\n");
    dev.hears("FAIL data.p_test.test_x").await;
    dev.hears("1 of 2 tests failed; this build is served anyway")
        .await;
    assert_eq!(get(&dev.url, Some(&tag)).await.status(), 200);
    // A change of the test alone is no new build, but its result is told.
    let built = dev.count("built and signed");
    write(
        &dev.policy().join("p_test.rego"),
        "package p_test\n\ntest_x if data.p.x == 2\n",
    );
    dev.hears("1 test passed").await;
    assert_eq!(dev.count("built and signed"), built);
    assert!(dev.child.try_wait().unwrap().is_none());
}

/// A program in the place of opa that can't load a policy with the word `unsafe`.
#[tokio::test]
async fn what_opa_can_not_load_is_no_build() {
    let fake = crate::opa_check::FakeOpa::refusing("unsafe");
    let flag = format!("--opa={}", fake.program().display());
    let dev = Dev::start(&[("p.rego", "package p\n\nx := 1\n")], &[&flag]);
    let tag = header(&get(&dev.url, None).await, "etag");
    write(
        &dev.policy().join("p.rego"),
        "package p\n\nx := \"unsafe\"\n",
    );
    dev.hears("p.rego:3: rego_unsafe_var_error: m; the last good build is still served")
        .await;
    assert_eq!(header(&get(&dev.url, None).await, "etag"), tag);
}

#[tokio::test]
async fn ctrl_c_ends_it_and_takes_the_temporary_state_along() {
    let mut dev = Dev::start(&[("p.rego", "package p\n\nx := 1\n")], &[]);
    assert_eq!(dev.states(), 1);
    assert!(
        Command::new("kill")
            .args(["-INT", &dev.child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert!(dev.child.wait().unwrap().success());
    assert_eq!(dev.states(), 0);
}

#[test]
fn what_can_not_be_served_is_told_in_one_line() {
    let author = Author::with(&[
        ("empty/README.md", ""),
        ("broken/p.rego", "package p\nallow if {\n"),
        ("good/p.rego", "package p\n"),
    ]);
    for (arguments, expected) in [
        (&["nowhere"][..], "nowhere: no such policy folder"),
        (&["empty"], "holds no .rego"),
        (&["good", "--state", "good/state"], "--state "),
        (&["good", "--name", "a//b"], "empty segment"),
    ] {
        let ran = author.run(&[&["dev", "--listen", "127.0.0.1:0"], arguments].concat());
        assert!(ran.error().contains(expected), "{ran:?}");
    }
    let broken = author.run(&["dev", "--listen", "127.0.0.1:0", "broken"]);
    assert!(
        broken.code == 1 && broken.stderr.contains("broken/p.rego:3:1: "),
        "{broken:?}"
    );
}

#[test]
fn an_address_that_is_taken_is_told_with_the_flag_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let author = Author::with(&[("good/p.rego", "package p\n")]);
    let ran = author.run(&["dev", "good", "--listen", &address]);
    assert!(
        ran.stderr.contains(&format!("--listen {address}: ")) && !ran.stderr.contains("server."),
        "{ran:?}"
    );
    author.write(
        "bundlegate.yaml",
        &format!(
            "version: 1\nserver: {{ listen: '{address}', admin: '127.0.0.1:0' }}\n\
             clients: [{{ name: x, anonymous: true, bundles: ['**'] }}]\n"
        ),
    );
    let ran = author.run(&["serve", "--config", "bundlegate.yaml"]);
    assert!(
        ran.stderr.contains(&format!("server.listen {address}: ")),
        "{ran:?}"
    );
}

/// Whatever the machine's limits are: they are nobody's trouble here.
#[tokio::test]
async fn nothing_but_what_the_author_needs_is_told() {
    let dev = Dev::start(
        &[("p.rego", "package p\n\nx := 1\n"), ("data.json", "{}")],
        &[],
    );
    get(&dev.url, None).await;
    let told = dev.complaints.lock().unwrap().clone();
    assert!(
        told.iter().all(|line| line.starts_with("bundlegate: ")),
        "{told:?}"
    );
    // The last policy is gone, and the data is still there.
    fs::remove_file(dev.policy().join("p.rego")).unwrap();
    dev.hears("no .rego file left").await;
}
