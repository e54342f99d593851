//! The real `opa` before publication: what it alone can refuse never reaches the OPAs that
//! enforce, whatever becomes of it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{
    Artifact, Author, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Process, Registry,
    TestGateway, poll_until, program, search_path,
};

const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];

/// A description, the files, and the message of OPA.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

const REFUSED: &[Case<'_>] = &[
    (
        "an unsafe variable",
        &[("p.rego", "package authz\n\nanswer := x if y == z\n")],
        "p.rego:3: rego_unsafe_var_error",
    ),
    (
        "a type error",
        &[("p.rego", "package authz\n\nanswer := count(1)\n")],
        "p.rego:3: rego_type_error",
    ),
    (
        "a rule in the place of data",
        &[
            ("p.rego", "package authz\n\nanswer := 1\n"),
            ("authz/data.json", r#"{"answer": {"x": 2}}"#),
        ],
        "p.rego:3: rego_compile_error: conflicting rule for data path authz/answer",
    ),
    (
        "recursion",
        &[(
            "p.rego",
            "package authz\n\nanswer := other\n\nother := answer\n",
        )],
        "rego_recursion_error",
    ),
    (
        "a function that there is not",
        &[("p.rego", "package authz\n\nanswer := no.such(1)\n")],
        "rego_type_error: undefined function no.such",
    ),
    (
        "two defaults",
        &[(
            "p.rego",
            "package authz\n\ndefault answer := 1\n\ndefault answer := 2\n",
        )],
        "rego_type_error: multiple default rules",
    ),
    (
        "a failing test",
        &[
            ("p.rego", "package authz\n\nanswer := 1\n"),
            (
                "p_test.rego",
                "package authz_test\n\ntest_answer if data.authz.answer == 2\n",
            ),
        ],
        "p_test.rego:3: test data.authz_test.test_answer failed",
    ),
    (
        "a test that breaks off",
        &[
            (
                "p.rego",
                "package authz\n\nanswer := 1 if input.x\n\nanswer := 2 if input.y\n",
            ),
            (
                "p_test.rego",
                "package authz_test\n\ntest_answer if data.authz.answer with input as {\"x\": 1, \"y\": 2}\n",
            ),
        ],
        "test data.authz_test.test_answer failed",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_only_opa_can_refuse_never_replaces_the_last_good_version() {
    let fixture = Fixture::start(&program("opa"), json!({ "tests": true })).await;
    let opas = [fixture.opa(BOTH[0]).await, fixture.opa(BOTH[1]).await];
    for opa in &opas {
        opa.answers("first").await;
    }
    for (case, files, says) in REFUSED {
        let digest = fixture.publish(&tarball(files)).await;
        let is_it = |status: &Value| status["last_failure"]["digest"] == digest.as_str();
        let status = fixture.gate.status_when("authz", case, is_it).await;
        let failure = &status["last_failure"];
        assert_eq!(
            (&failure["class"], &failure["step"]),
            (&json!("defect"), &json!("open")),
            "{case}: {failure}"
        );
        let message = failure["message"].as_str().unwrap();
        assert!(
            message.starts_with("opa: ") && message.contains(says),
            "{case}: {message}"
        );
        println!("opa_check | {case} | {message}");
        let looks = fixture.refreshes("opa_check").await;
        poll_until("another look", async || {
            (fixture.refreshes("opa_check").await > looks).then_some(())
        })
        .await;
        assert_eq!(
            fixture.gate.bundle_status("authz").await["state"],
            "serving"
        );
        for opa in &opas {
            assert_eq!(
                opa.decision("authz/answer").await,
                Some(json!("first")),
                "{case}: {:?}",
                opa.version
            );
        }
    }
    fixture.publish(&answering("second")).await;
    for opa in &opas {
        opa.answers("second").await;
    }
}

/// Nothing else refuses them, so the test above says something.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_check_what_opa_refuses_is_published() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let (_, files, _) = REFUSED[0];
    let digest = registry
        .push("acme/authz:live", &Artifact::raw(&tarball(files)).file())
        .await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let gate = TestGateway::start(GatewayConfig::trusting(&key).bundle(
        "authz",
        &registry,
        "acme/authz:live",
    ))
    .await;
    gate.status_when("authz", "serving", |status| {
        status["manifest"] == digest.as_str()
    })
    .await;
}

/// Bundles that OPA loads although one of its commands rejects them.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_opa_takes_is_published() {
    let fixture = Fixture::start(&program("opa"), json!({})).await;
    let opa = fixture.opa(OpaVersion::Newest).await;
    let schema = |schema: &str| {
        format!(
            "package authz\n\n# METADATA\n# schemas:\n# - input: {schema}\nanswer := \"{{}}\" if input.b == 1\n\nanswer := \"A\" if not input.b\n"
        )
    };
    let closed = schema(
        r#"{"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}"#,
    );
    let remote = schema(r#"{"$ref": "http://127.0.0.1:9/schema.json"}"#);
    let old = r#"{"rego_version": 0, "roots": [""]}"#;
    let cases: [(&str, Vec<(&str, String)>); 4] = [
        (
            "a schema that contradicts the rule",
            vec![("p.rego", closed.replace("\"A\"", "\"closed\""))],
        ),
        (
            "a schema on another host",
            vec![("p.rego", remote.replace("\"A\"", "\"remote\""))],
        ),
        (
            "old Rego",
            vec![
                (
                    "p.rego",
                    "package authz\n\nanswer = \"old\" { true }\n".into(),
                ),
                (".manifest", old.into()),
            ],
        ),
        (
            "many data",
            vec![
                ("p.rego", "package authz\n\nanswer := \"data\"\n".into()),
                ("x/data.json", numbers(200_000)),
            ],
        ),
    ];
    for ((case, files), answer) in cases.iter().zip(["closed", "remote", "old", "data"]) {
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (*name, content.as_str()))
            .collect();
        fixture.publish(&tarball(&files)).await;
        println!("opa_check | {case} | {:?}", opa.answers(answer).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_in_a_bundle_does_not_reach_the_network() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            // A client takes an answer that precedes its request for an error.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
        }
    });
    let test = format!(
        "package authz_test\n\ntest_network if {{\n\thttp.send({{\"method\": \"get\", \"url\": \"http://{address}/\"}}).status_code == 200\n}}\n"
    );
    let bundle = tarball(&[
        ("p.rego", "package authz\n\nanswer := 1\n"),
        ("p_test.rego", &test),
    ]);
    // Without the gateway's limits, it does.
    let author = Author::new();
    fs::write(author.path("bundle.tar.gz"), &bundle).unwrap();
    let alone = author
        .peer("opa", &["test", "--bundle", "bundle.tar.gz"])
        .await;
    assert_eq!(
        (alone.code, seen.load(Ordering::SeqCst)),
        (Some(0), 1),
        "{alone:?}"
    );

    let fixture = Fixture::start(&program("opa"), json!({ "tests": true })).await;
    let digest = fixture.publish(&bundle).await;
    let is_it = |status: &Value| status["last_failure"]["digest"] == digest.as_str();
    let status = fixture.gate.status_when("authz", "refused", is_it).await;
    assert_eq!(status["last_failure"]["class"], "defect", "{status}");
    assert_eq!(
        seen.load(Ordering::SeqCst),
        1,
        "the test reached the network"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opa_that_is_killed_hangs_or_is_missing_delays_a_version_and_takes_nothing_away() {
    let wrapper = Wrapper::new();
    let fixture = Fixture::start(&wrapper.program(), json!({ "timeout": "10s" })).await;
    let opa = fixture.opa(OpaVersion::Newest).await;
    opa.answers("first").await;
    let transient = async |says: &str| {
        let is_it = |status: &Value| {
            let failure = &status["last_failure"];
            failure["class"] == "transient"
                && failure["message"]
                    .as_str()
                    .is_some_and(|text| text.contains(says))
        };
        let status = fixture.gate.status_when("authz", says, is_it).await;
        println!(
            "opa_check | {} | {}",
            status["state"], status["last_failure"]["message"]
        );
        assert_eq!(opa.decision("authz/answer").await, Some(json!("first")));
    };
    wrapper.behave("exec sleep 1000");
    fixture.publish(&answering("second")).await;
    let (process, _) = poll_until("a check", async || wrapper.running()).await;
    assert!(
        Command::new("kill")
            .args(["-9", &process])
            .status()
            .unwrap()
            .success()
    );
    transient("opa was ended by signal 9").await;
    transient("opa did not end within 10s; raise opa_check.timeout").await;
    wrapper.behave("exit 2");
    transient("no readable answer").await;
    fs::rename(wrapper.program(), wrapper.path("away")).unwrap();
    transient("can't be started").await;
    fs::rename(wrapper.path("away"), wrapper.program()).unwrap();
    wrapper.behave("");
    opa.answers("second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_no_check() {
    let wrapper = Wrapper::new();
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .cached();
    let config = config.with(
        "/bundles/authz/opa_check",
        json!({ "opa": wrapper.program(), "tests": true }),
    );
    let mut fixture = Fixture::before(registry, key, config).await;
    let (_, files, says) = REFUSED[0];
    fixture.publish(&tarball(files)).await;
    let refused = |status: &Value| {
        status["last_failure"]["message"]
            .as_str()
            .is_some_and(|text| text.contains(says))
    };
    fixture.gate.status_when("authz", "refused", refused).await;
    // Two loads and one test.
    assert_eq!(wrapper.runs(), ["eval", "test", "eval"]);
    fixture.gate.restart().await;
    let status = fixture
        .gate
        .status_when("authz", "refused again", refused)
        .await;
    assert_eq!(
        (&status["state"], wrapper.runs().len()),
        (&json!("serving"), 3)
    );
    fixture.opa(OpaVersion::Newest).await.answers("first").await;
}

#[tokio::test]
async fn an_opa_that_is_missing_or_too_old_stops_the_start() {
    for (opa, says) in [
        (PathBuf::from("/nowhere/opa"), "no program /nowhere/opa"),
        (program("opa-0.70"), "is OPA 0.70"),
    ] {
        let folder = TempDir::new().unwrap();
        let mut config = GatewayConfig::with_trust(json!({ "policies": { "dev": "unsigned" } })).0;
        config["bundles"]["authz"] =
            json!({ "reference": "oci-layout:x:v1", "trust": "dev", "opa_check": { "opa": opa } });
        let file = folder.path().join("bundlegate.yaml");
        fs::write(&file, config.to_string()).unwrap();
        for verb in [&["serve", "--config"][..], &["config", "check"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
            let mut process = Process::start("bundlegate", command.args(verb).arg(&file));
            let error = process
                .line(|line| line.starts_with("bundlegate: ").then(|| line.to_owned()))
                .await;
            assert!(
                error.contains("bundles.authz.opa_check.opa: ") && error.contains(says),
                "{error}"
            );
            assert!(!process.ended().await.success());
        }
    }
}

/// How long OPA takes for a bundle, and how long a version then takes from the push to a
/// decision.
#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_a_check_is_told() {
    let wrapper = Wrapper::new();
    let fixture = Fixture::start(&wrapper.program(), json!({ "tests": true })).await;
    let opa = fixture.opa(OpaVersion::Newest).await;
    opa.answers("first").await;
    for (answer, count) in [
        ("none", 0),
        ("ten-thousand", 10_000),
        ("a-million", 1_000_000),
    ] {
        let rego = format!("package authz\n\nanswer := \"{answer}\"\n");
        let bundle = tarball(&[("p.rego", &rego), ("x/data.json", &numbers(count))]);
        let began = Instant::now();
        fixture.publish(&bundle).await;
        opa.answers(answer).await;
        let times = wrapper.times();
        let [load, test] = &times[times.len() - 2..] else {
            panic!("{times:?}")
        };
        println!(
            "opa_check | {count} numbers, {} bytes | load {load} ms, tests {test} ms | push and decision {:?}",
            bundle.len(),
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn build_lets_the_real_opa_load_what_it_packed() {
    let author = Author::with(&[("policy/lib/p.rego", "package p\n\nx if y == z\n")]);
    let refused = author
        .shell("bundlegate build policy -t r.example/a:v1")
        .await;
    let told = refused
        .refused("build: opa can't load the bundle: policy/lib/p.rego:3: rego_unsafe_var_error: var y is unsafe");
    println!("opa_check | {}", told.trim());
    author
        .line("bundlegate build policy -t r.example/a:v1 --opa=none")
        .await;
    author.write("policy/lib/p.rego", "package p\n\nx if input.y\n");
    author
        .line("bundlegate build policy -t r.example/a:v1")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_loads_builds_and_runs_tests_with_the_real_opa() {
    let author = Author::with(&[
        ("policy/.manifest", r#"{"roots": ["authz"]}"#),
        ("policy/authz.rego", "package authz\n\nanswer := 1\n"),
        (
            "policy/authz_test.rego",
            "package authz_test\n\ntest_answer if {\n\tx := data.authz.answer\n\tx == 1\n}\n\ntest_sha if crypto.sha256(\"\") != \"\"\n",
        ),
    ]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .args(["dev", "policy", "--listen", "127.0.0.1:0"])
        .current_dir(author.home())
        .env("PATH", search_path());
    let mut dev = Process::start("bundlegate dev", &mut command);
    let line = async |dev: &mut Process, says: &str| {
        let line = dev
            .line(|line| line.contains(says).then(|| line.to_owned()))
            .await;
        println!("opa_check | {line}");
        line
    };
    line(&mut dev, "2 tests passed").await;
    line(&mut dev, "watching ").await;
    author.write("policy/authz.rego", "package authz\n\nanswer := 2\n");
    let failed = line(&mut dev, "FAIL ").await;
    assert!(
        failed.contains("policy/authz_test.rego:3: test data.authz_test.test_answer failed"),
        "{failed}"
    );
    assert!(
        failed.ends_with("policy/authz_test.rego:5: x == 1"),
        "{failed}"
    );
    line(&mut dev, "1 of 2 tests failed; this build is served anyway").await;
    author.write(
        "policy/authz.rego",
        "package authz\n\nanswer := 2 if y == z\n",
    );
    let kept = line(&mut dev, "the last good build is still served").await;
    assert!(
        kept.contains("policy/authz.rego:3: rego_unsafe_var_error"),
        "{kept}"
    );
    author.write("policy/authz.rego", "package authz\n\nanswer := 1\n");
    author.write(
        "policy/authz_test.rego",
        "package authz_test\n\ntest_answer if y == z\n",
    );
    let unloadable = line(&mut dev, "the tests don't load").await;
    assert!(
        unloadable.contains("policy/authz_test.rego:3: rego_unsafe_var_error"),
        "{unloadable}"
    );
}

/// A gateway that checks, in front of a registry.
struct Fixture {
    registry: Registry,
    key: KeyPair,
    gate: TestGateway,
}

impl Fixture {
    async fn start(opa: &Path, mut check: Value) -> Self {
        let (registry, key) = (
            Registry::start(Kind::Distribution).await,
            KeyPair::generate().await,
        );
        check["opa"] = json!(opa);
        let config = GatewayConfig::trusting(&key).bundle("authz", &registry, "acme/authz:live");
        Self::before(
            registry,
            key,
            config.with("/bundles/authz/opa_check", check),
        )
        .await
    }

    /// With the first version served.
    async fn before(registry: Registry, key: KeyPair, config: GatewayConfig) -> Self {
        let first = registry
            .push(
                "acme/authz:live",
                &Artifact::raw(&answering("first")).file(),
            )
            .await;
        key.sign(&registry, &format!("acme/authz@{first}")).await;
        let gate = TestGateway::start(config).await;
        gate.status_when("authz", "serving", |status| {
            status["manifest"] == first.as_str()
        })
        .await;
        Self {
            registry,
            key,
            gate,
        }
    }

    async fn opa(&self, version: OpaVersion) -> Opa {
        Opa::polling(version, &self.gate.url, "authz").await
    }

    /// Pushes, signs and tags a version.
    async fn publish(&self, bundle: &[u8]) -> String {
        let digest = self
            .registry
            .push("acme/authz:next", &Artifact::raw(bundle).file())
            .await;
        self.key
            .sign(&self.registry, &format!("acme/authz@{digest}"))
            .await;
        self.registry
            .tag(&format!("acme/authz@{digest}"), "live")
            .await;
        digest
    }

    async fn refreshes(&self, outcome: &str) -> f64 {
        self.gate
            .metric(&format!(
                r#"bundlegate_refreshes_total{{bundle="authz",outcome="{outcome}"}}"#
            ))
            .await
    }
}

/// A script in front of the real `opa` that notes every check, and may do something instead. It
/// stays the same file, byte for byte.
struct Wrapper(TempDir);

impl Wrapper {
    fn new() -> Self {
        let wrapper = Self(TempDir::new().unwrap());
        let script = "#!/bin/sh\ncase $1 in version|capabilities) exec OPA \"$@\";; esac\n\
                      echo $1 >> FOLDER/runs\necho $$ > FOLDER/running\n. FOLDER/behaviour\n\
                      began=$(date +%s%N)\nOPA \"$@\"\ncode=$?\necho $(( ($(date +%s%N) - began) / 1000000 )) >> FOLDER/times\n\
                      exit $code\n";
        let script = script.replace("OPA", &program("opa").display().to_string());
        wrapper.behave("");
        fs::write(
            wrapper.program(),
            script.replace("FOLDER", &wrapper.0.path().display().to_string()),
        )
        .unwrap();
        fs::set_permissions(wrapper.program(), fs::Permissions::from_mode(0o755)).unwrap();
        wrapper
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("opa")
    }

    /// Replaces the commands that the wrapper runs before `opa`.
    fn behave(&self, behaviour: &str) {
        fs::write(self.path("next"), behaviour).unwrap();
        fs::rename(self.path("next"), self.path("behaviour")).unwrap();
        let _ = fs::remove_file(self.path("running"));
    }

    fn lines(&self, file: &str) -> Vec<String> {
        fs::read_to_string(self.path(file))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The commands, in order.
    fn runs(&self) -> Vec<String> {
        self.lines("runs")
    }

    /// Milliseconds, in order.
    fn times(&self) -> Vec<String> {
        self.lines("times")
    }

    /// The process of the last check.
    fn running(&self) -> Option<String> {
        self.lines("running").pop()
    }
}

fn answering(answer: &str) -> Vec<u8> {
    tarball(&[(
        "authz.rego",
        &format!("package authz\n\nanswer := \"{answer}\"\n"),
    )])
}

/// `{"n": [0, 1, …]}`.
fn numbers(count: usize) -> String {
    json!({ "n": (0..count).collect::<Vec<_>>() }).to_string()
}

/// A bundle that no tool of OPA's has looked at.
pub(crate) fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}
