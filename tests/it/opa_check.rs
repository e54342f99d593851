//! Programs in the place of `opa` that refuse, crash, hang or are replaced, behind a gateway, in
//! `build` and in `config check`. The real one has its say in `tests/peers`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bundlegate::opa_check::Options;
use tempfile::TempDir;

use crate::{
    cache::on_disk,
    command::Author,
    faulty::FaultyRegistry,
    gateway::{InProcess, PATIENCE, Setup, TestGateway, bundle, eventually, tag},
    shared::{Process, poll_until},
};

/// A script in the place of `opa`, and how often it was asked to load something.
pub(crate) struct FakeOpa(TempDir);

impl FakeOpa {
    /// One that refuses bundles with this word in them.
    pub(crate) fn refusing(word: &str) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.become_refusing(word);
        fake
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.0.path().join("opa")
    }

    /// Another program from now on, which refuses bundles with this word in them.
    fn become_refusing(&self, word: &str) {
        self.answer_by(&format!(
            "if gzip -dc bundle.tar.gz | grep -q {word}; then\n\
             echo '{{\"errors\":[{{\"message\":\"m\",\"code\":\"rego_unsafe_var_error\",\"location\":{{\"file\":\"/p.rego\",\"row\":3}}}}]}}'\n\
             exit 2\nfi\necho '{{\"result\":[{{}}]}}'"
        ));
    }

    fn answer_by(&self, body: &str) {
        let version = "echo 'Version: 1.22.2'";
        self.replace(&format!(
            "case \"$1\" in\nversion) {version}; exit;;\ncapabilities) echo '{{\"builtins\":[]}}'; exit;;\n\
             test) echo '[]'; exit;;\nesac\necho load >> {}/runs\n{body}",
            self.0.path().display()
        ));
    }

    fn replace(&self, body: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(next, self.program()).unwrap();
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.0.path().join("runs"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    fn options(&self, timeout: Duration) -> Options {
        Options {
            program: self.program(),
            tests: false,
            timeout,
        }
    }

    fn setup(&self) -> Setup {
        Setup {
            opa_check: Some(self.options(PATIENCE)),
            ..Setup::default()
        }
    }

    fn setup_with(&self, cache: &TempDir) -> Setup {
        Setup {
            cache: on_disk(cache),
            ..self.setup()
        }
    }
}

fn failed(gate: &TestGateway<InProcess>, class: &str) -> bool {
    gate.last_failure()
        .is_some_and(|failure| failure.class == class)
}

async fn serves(gate: &TestGateway<InProcess>, bytes: &[u8]) {
    let served = async || gate.get("", 0).await.bytes().await.unwrap() == bytes;
    poll_until("the version is served", async || {
        served().await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_version_that_opa_refuses_never_replaces_the_last_good_one_and_is_checked_once() {
    let (registry, opa) = (FaultyRegistry::start().await, FakeOpa::refusing("bad"));
    registry.put_artifact("live", &bundle("good"));
    let gate = TestGateway::with(&registry, opa.setup()).await;
    let good = tag(&gate.get("", 60).await);
    let (digest, _) = registry.put_artifact("live", &bundle("bad"));
    eventually("a defect", || failed(&gate, "defect")).await;
    let failure = gate.last_failure().unwrap();
    assert_eq!(
        (failure.step.as_str(), failure.digest),
        ("open", Some(digest.to_string()))
    );
    assert_eq!(failure.message, "opa: p.rego:3: rego_unsafe_var_error: m");
    let looks = gate.refreshes("opa_check");
    eventually("three more looks", || {
        gate.refreshes("opa_check") >= looks + 3
    })
    .await;
    assert_eq!((opa.runs(), tag(&gate.get("", 0).await)), (2, good));
    registry.put_artifact("live", &bundle("better"));
    serves(&gate, &bundle("better")).await;
}

#[tokio::test]
async fn a_bundle_that_was_never_good_is_withdrawn_with_the_reason() {
    let (registry, opa) = (FaultyRegistry::start().await, FakeOpa::refusing("bad"));
    registry.put_artifact("live", &bundle("bad"));
    let gate = TestGateway::with(&registry, opa.setup()).await;
    eventually("withdrawn", || gate.state() == "withdrawn").await;
    let error = gate.refusal().await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("opa: p.rego:3: "),
        "{error}"
    );
}

#[tokio::test]
async fn another_opa_is_asked_again_about_what_one_refused() {
    let (registry, opa) = (FaultyRegistry::start().await, FakeOpa::refusing("bad"));
    registry.put_artifact("live", &bundle("bad"));
    let gate = TestGateway::with(&registry, opa.setup()).await;
    eventually("a defect", || failed(&gate, "defect")).await;
    opa.become_refusing("worse");
    serves(&gate, &bundle("bad")).await;
}

#[tokio::test]
async fn an_opa_that_crashes_hangs_or_is_gone_is_asked_again_and_the_last_good_version_stays() {
    let (registry, opa) = (FaultyRegistry::start().await, FakeOpa::refusing("bad"));
    registry.put_artifact("live", &bundle("0"));
    let options = opa.options(Duration::from_secs(5));
    let gate = TestGateway::with(
        &registry,
        Setup {
            opa_check: Some(options),
            ..Setup::default()
        },
    )
    .await;
    serves(&gate, &bundle("0")).await;
    let breaks: [(&str, &dyn Fn()); 4] = [
        ("opa was ended by signal 9", &|| opa.answer_by("kill -9 $$")),
        ("panic: x", &|| opa.answer_by("echo 'panic: x' >&2; exit 2")),
        ("raise opa_check.timeout", &|| {
            opa.answer_by("exec sleep 1000")
        }),
        ("can't be started", &|| {
            fs::remove_file(opa.program()).unwrap()
        }),
    ];
    for (number, (says, break_it)) in breaks.into_iter().enumerate() {
        break_it();
        let (before, after) = (
            bundle(&number.to_string()),
            bundle(&(number + 1).to_string()),
        );
        registry.put_artifact("live", &after);
        let told = || {
            gate.last_failure()
                .is_some_and(|failure| failure.message.contains(says))
        };
        eventually(says, told).await;
        assert!(
            failed(&gate, "transient") && gate.refreshes("opa_unavailable") > 0,
            "{:?}",
            gate.last_failure()
        );
        assert_eq!(
            gate.get("", 0).await.bytes().await.unwrap(),
            before,
            "{says}"
        );
        opa.become_refusing("bad");
        serves(&gate, &after).await;
    }
}

#[tokio::test]
async fn a_restart_repeats_no_check_and_needs_no_opa_for_it() {
    let (registry, opa, cache) = (
        FaultyRegistry::start().await,
        FakeOpa::refusing("bad"),
        tempfile::tempdir().unwrap(),
    );
    registry.put_artifact("live", &bundle("good"));
    let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
    let good = tag(&gate.get("", 60).await);
    registry.put_artifact("live", &bundle("bad"));
    eventually("a defect", || failed(&gate, "defect")).await;
    gate.end(cache.path()).await;
    assert_eq!(opa.runs(), 2);
    let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
    eventually("a defect", || failed(&gate, "defect")).await;
    assert_eq!((tag(&gate.get("", 60).await), opa.runs()), (good, 2));
    gate.end(cache.path()).await;
    // Damaged results cost a check, and nothing else.
    for file in fs::read_dir(cache.path().join("opa-check")).unwrap() {
        fs::write(file.unwrap().path(), "{").unwrap();
    }
    let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
    eventually("a defect", || failed(&gate, "defect")).await;
    assert_eq!((gate.state(), opa.runs()), ("serving", 4));
}

#[tokio::test]
async fn what_one_opa_accepted_outlives_a_restart_with_one_that_refuses_it_or_gives_no_answer() {
    let (registry, opa, cache) = (
        FaultyRegistry::start().await,
        FakeOpa::refusing("bad"),
        tempfile::tempdir().unwrap(),
    );
    registry.put_artifact("live", &bundle("good"));
    let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
    serves(&gate, &bundle("good")).await;
    gate.end(cache.path()).await;
    for (runs, body) in [
        (2, "kill -9 $$"),
        (3, "echo '{\"errors\":[{\"message\":\"no\"}]}'; exit 2"),
    ] {
        opa.answer_by(body);
        let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
        serves(&gate, &bundle("good")).await;
        assert_eq!(opa.runs(), runs, "{body}");
        gate.end(cache.path()).await;
    }
}

#[tokio::test]
async fn what_no_opa_ever_accepted_is_not_served_again_once_it_is_refused() {
    let (registry, opa, cache) = (
        FaultyRegistry::start().await,
        FakeOpa::refusing("bad"),
        tempfile::tempdir().unwrap(),
    );
    registry.put_artifact("live", &bundle("bad"));
    let gate = TestGateway::with(
        &registry,
        Setup {
            cache: on_disk(&cache),
            ..Setup::default()
        },
    )
    .await;
    serves(&gate, &bundle("bad")).await;
    gate.end(cache.path()).await;
    let gate = TestGateway::with(&registry, opa.setup_with(&cache)).await;
    eventually("a defect", || failed(&gate, "defect")).await;
    assert_eq!(gate.state(), "withdrawn");
}

/// SIGTERM in the middle of a check, whose tasks nobody drops in a process that ends.
#[tokio::test]
async fn a_gateway_that_ends_leaves_neither_opa_nor_its_folder() {
    let (author, opa) = (Author::new(), FakeOpa::refusing("bad"));
    let note = opa.0.path().join("running");
    opa.answer_by(&format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
        note.display()
    ));
    configure(&author, &opa.program());
    fs::create_dir(author.path("tmp")).unwrap();
    let folders = || fs::read_dir(author.path("tmp")).unwrap().count();
    let mut serve = author.command(&["serve", "--config", "gate.yaml"]);
    serve.env("TMPDIR", author.path("tmp"));
    let mut serve = Process::start("bundlegate", &mut serve);
    eventually("a check", || note.exists()).await;
    assert_eq!(folders(), 1);
    let process = fs::read_to_string(note).unwrap();
    serve.signal("TERM");
    serve.ended().await;
    let command = PathBuf::from(format!("/proc/{}/cmdline", process.trim()));
    eventually("the end of opa", || {
        fs::read_to_string(&command).is_ok_and(|line| line.is_empty()) || !command.exists()
    })
    .await;
    assert_eq!(folders(), 0);
}

const POLICY: &[(&str, &str)] = &[("policy/p.rego", "package p\n\nx := \"unsafe\"\n")];

/// A search path with the fake in front.
fn path(opa: &FakeOpa) -> String {
    let folder = opa.program().parent().unwrap().display().to_string();
    format!("{folder}:{}", std::env::var("PATH").unwrap_or_default())
}

fn build(author: &Author, opa: &FakeOpa, flags: &[&str]) -> crate::command::Ran {
    let arguments = [&["build", "policy", "-t", "r.example/a:v1"], flags].concat();
    author.run_with(&arguments, "", &[("PATH", &path(opa))])
}

#[test]
fn build_lets_the_opa_in_path_load_what_it_packed() {
    let (author, opa) = (Author::with(POLICY), FakeOpa::refusing("unsafe"));
    let expected = "build: opa can't load the bundle: policy/p.rego:3: rego_unsafe_var_error: m; fix it, or build with --opa=none";
    for flags in [&[][..], &["--opa=auto"]] {
        let refused = build(&author, &opa, flags);
        assert_eq!(refused.error(), expected);
        assert_eq!(author.json("images"), serde_json::json!([]));
    }
    let runs = opa.runs();
    assert_eq!(build(&author, &opa, &["--opa=none"]).stderr, "");
    assert_eq!(opa.runs(), runs);
    opa.become_refusing("other");
    let built = build(&author, &opa, &[]);
    assert_eq!(
        (built.code, built.stderr.as_str(), opa.runs()),
        (0, "", runs + 1)
    );
    let refused = build(&author, &opa, &["--opa=none", "-e", "p/x"]);
    assert_eq!(
        refused.error(),
        "--opa=none: -O, -e and --target need an opa; omit --opa=none"
    );
}

#[test]
fn an_opa_in_path_that_is_of_no_use_is_told_in_a_line_and_builds_nothing_less() {
    let (author, opa) = (Author::with(POLICY), FakeOpa::refusing("unsafe"));
    let breaks: [(&str, &dyn Fn()); 3] = [
        ("is OPA 0.70.0, and 1.0 or newer is needed", &|| {
            opa.replace("echo 'Version: 0.70.0'")
        }),
        ("does not work as opa", &|| opa.replace("exit 3")),
        ("opa was ended by signal 9", &|| opa.answer_by("kill -9 $$")),
    ];
    for (says, break_it) in breaks {
        break_it();
        let built = build(&author, &opa, &[]);
        assert_eq!(
            (built.code, built.stderr.lines().count()),
            (0, 1),
            "{built:?}"
        );
        assert!(
            built.stderr.contains(says) && built.stderr.ends_with("; continuing without it\n"),
            "{built:?}"
        );
    }
}

fn configure(author: &Author, program: &Path) {
    author.artifact(&[("data.json", "{}")]);
    let program = program.display();
    author.write(
        "gate.yaml",
        &format!(
            "version: 1\nclients: [{{ name: a, anonymous: true, bundles: ['**'] }}]\n\
             server: {{ listen: '127.0.0.1:0', admin: '127.0.0.1:0' }}\n\
             trust: {{ policies: {{ dev: unsigned }} }}\nopa_check: {{ opa: '{program}' }}\n\
             bundles: {{ a: {{ reference: 'oci-layout:layout:v1', trust: dev }} }}\n"
        ),
    );
}

#[test]
fn an_opa_that_can_not_check_the_bundles_of_a_pattern_is_an_error_of_the_pattern() {
    let author = Author::new();
    let configure = |more: &str| {
        let text = format!(
            "version: 1\nclients: [{{ name: a, anonymous: true, bundles: ['**'] }}]\n\
             server: {{ listen: '127.0.0.1:0', admin: '127.0.0.1:0' }}\n\
             trust: {{ policies: {{ dev: unsigned }} }}\n\
             patterns: [{{ resource: 'a/{{tag}}', reference: 'oci-layout:layout:{{tag}}', \
             trust: dev{more} }}]\n"
        );
        author.write("gate.yaml", &text);
    };
    configure("");
    assert_eq!(
        author.line("config check gate.yaml").ok(),
        "gate.yaml: ok, 0 bundles, 1 pattern\n"
    );
    configure(", opa_check: { opa: ./no-such-program }");
    for line in ["config check gate.yaml", "serve --config gate.yaml"] {
        let ran = author.line(line);
        assert!(
            ran.code == 1
                && ran
                    .stderr
                    .contains("patterns[a/{tag}].opa_check.opa: no program /"),
            "{line}: {ran:?}"
        );
    }
}

#[test]
fn an_opa_that_can_not_check_stops_the_start_and_config_check_tells_so() {
    let (author, opa) = (Author::new(), FakeOpa::refusing("bad"));
    configure(&author, &opa.program());
    assert_eq!(
        author.line("config check gate.yaml").ok(),
        "gate.yaml: ok, 1 bundle\n"
    );
    let way_out = "; name an OPA 1.0 or newer, or write `opa_check: none`";
    let breaks: [(&str, &dyn Fn()); 3] = [
        ("bundles.a.opa_check.opa: ", &|| opa.replace("exit 3")),
        ("/opa is OPA 0.70.0, and 1.0 or newer is needed", &|| {
            opa.replace("echo 'Version: 0.70.0'")
        }),
        ("bundles.a.opa_check.opa: no program /", &|| {
            fs::remove_file(opa.program()).unwrap()
        }),
    ];
    for (says, break_it) in breaks {
        break_it();
        for line in ["config check gate.yaml", "serve --config gate.yaml"] {
            let ran = author.line(line);
            let told = ran
                .stderr
                .lines()
                .find(|line| line.starts_with("bundlegate: "))
                .unwrap_or_default();
            assert!(
                ran.code == 1 && told.contains(says) && told.ends_with(way_out),
                "{line}: {ran:?}"
            );
        }
    }
}
