//! Tests of checks with a script instead of `opa`, which may misbehave.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::oci::{Blob, Descriptor};

/// Far longer than a script takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const PASSES: &str = r#"echo '{"result":[{}]}'"#;
const REFUSES: &str = r#"echo '{"errors":[{"message":"m","code":"rego_unsafe_var_error","location":{"file":"/p.rego","row":3}}]}'; exit 2"#;

/// A folder with a script that replaces `opa`.
struct FakeOpa(TempDir);

impl FakeOpa {
    /// A script that responds as `opa` 1.22.2 does, except to checks, to which `body` responds. In
    /// `body`, `$F` is this folder.
    fn answering(body: &str) -> Self {
        let version = "echo 'Version: 1.22.2'; echo 'WebAssembly: unavailable'";
        Self::script(&format!(
            "case \"$1\" in\nversion) {version}; exit 0;;\ncapabilities) echo '{{\"builtins\":[]}}'; exit 0;;\nesac\n{body}\n"
        ))
    }

    fn script(body: &str) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.replace(body);
        fake
    }

    fn replace(&self, body: &str) {
        let script = format!("#!/bin/sh\nF={}\n{body}\n", self.0.path().display());
        let next = self.path("next");
        fs::write(&next, script).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(next, self.path("opa")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    }

    async fn wait_for(&self, name: &str) -> String {
        eventually(name, || self.read(name)).await
    }

    fn options(&self) -> Options {
        Options {
            program: self.path("opa"),
            tests: false,
            timeout: TEST_TIMEOUT,
        }
    }

    async fn start(&self, options: Options) -> Result<Checker, StartError> {
        Checkers::default().start(&options).await
    }

    async fn check_with(&self, options: Options) -> Result<Verdict, Unavailable> {
        let checker = self.start(options).await.unwrap();
        checker
            .check(&checker.opa().await.unwrap(), &bundle())
            .await
    }

    async fn check(&self) -> Result<Verdict, Unavailable> {
        self.check_with(self.options()).await
    }
}

fn bundle() -> Blob {
    Blob::check(&Descriptor::of("", b"bundle"), b"bundle".as_slice().into()).unwrap()
}

async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = condition() {
                return seen;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, looking)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

/// A zombie has ended; its new parent may be slow to reap it.
fn is_running(process: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat"));
    state.is_ok_and(|state| {
        !state
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}

fn refusal(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refused(problems) => problems.to_string(),
        Verdict::Passed { .. } => panic!("it passed"),
    }
}

#[tokio::test]
async fn the_json_output_of_opa_is_the_verdict() {
    assert_eq!(
        FakeOpa::answering(PASSES).check().await.unwrap(),
        Verdict::Passed { tests: 0 }
    );
    let refused = FakeOpa::answering(REFUSES).check().await.unwrap();
    assert_eq!(refusal(refused), "p.rego:3: rego_unsafe_var_error: m");
}

#[tokio::test]
async fn the_bundle_is_in_a_folder_of_its_own_that_is_removed() {
    let fake = FakeOpa::answering(&format!(
        "pwd > $F/folder; stat -c %a . > $F/mode; cp bundle.tar.gz capabilities.json $F; echo \"$@\" > $F/arguments\n{PASSES}"
    ));
    fake.check().await.unwrap();
    assert_eq!(
        (
            fake.read("bundle.tar.gz").as_deref(),
            fake.read("mode").as_deref()
        ),
        (Some("bundle"), Some("700"))
    );
    let arguments =
        "eval --bundle bundle.tar.gz --capabilities capabilities.json --format json true";
    assert_eq!(fake.read("arguments").unwrap(), arguments);
    let capabilities: Value =
        serde_json::from_str(&fake.read("capabilities.json").unwrap()).unwrap();
    assert_eq!(
        capabilities,
        serde_json::json!({ "builtins": [], "allow_net": [] })
    );
    let folder = fake.read("folder").unwrap();
    eventually("the folder is gone", || {
        (!Path::new(&folder).exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn neither_environment_nor_input_reaches_the_program() {
    // Cargo sets many variables for tests.
    assert!(std::env::vars().any(|(name, _)| name.starts_with("CARGO")));
    let fake = FakeOpa::answering(&format!("env > $F/env; cat\n{PASSES}"));
    fake.check().await.unwrap();
    let seen = fake.read("env").unwrap();
    let mut names: Vec<_> = seen
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    // The shell's own variables.
    names.retain(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"));
    names.sort_unstable();
    assert_eq!(
        names,
        ["GOMEMLIMIT", "GOTRACEBACK", "HOME", "PATH", "TMPDIR"]
    );
}

#[tokio::test]
async fn a_crash_or_malformed_output_is_not_a_verdict() {
    for (body, expected) in [
        ("kill -9 $$", "opa was ended by signal 9"),
        ("kill -SEGV $$", "opa was ended by signal 11"),
        (
            "echo 'panic: index out of range' >&2; exit 2",
            "(exit status: 2): panic: index out of range",
        ),
        (
            "echo 'fatal error: runtime: out of memory' >&2; exit 2",
            "opa needs more than 2048 MiB of memory",
        ),
        (
            "echo 'fatal error: runtime: cannot allocate memory' >&2; exit 2",
            "opa needs more than 2048 MiB of memory",
        ),
        ("exit 0", "no readable answer (exit status: 0)"),
        ("exit 137", "exit status: 137"),
        ("echo '{\"result\":[{}'", "no readable answer"),
        ("echo '{\"errors\":[]}'; exit 2", "no readable answer"),
        // The output contradicts the exit status.
        ("echo '{\"result\":[{}]}'; exit 2", "no readable answer"),
        (
            "echo '{\"errors\":[{\"message\":\"m\"}]}'",
            "no readable answer",
        ),
    ] {
        let error = FakeOpa::answering(body)
            .check()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected) && !error.contains('\n'),
            "{body}: {error}"
        );
    }
}

#[tokio::test]
async fn endless_output_is_limited() {
    for body in ["exec cat /dev/zero", "exec cat /dev/zero >&2"] {
        let error = FakeOpa::answering(body).check().await.unwrap_err();
        assert!(matches!(error, Unavailable::TooMuchOutput), "{error}");
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_after_the_timeout() {
    let fake = FakeOpa::answering("sleep 1000");
    let options = Options {
        timeout: Duration::from_millis(500),
        ..fake.options()
    };
    // The start has the timeout that a busy machine needs.
    let mut checker = fake.start(fake.options()).await.unwrap();
    checker = checker.with_timeout(options.timeout);
    let error = checker
        .check(&checker.opa().await.unwrap(), &bundle())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Unavailable::TimedOut { limit } if limit == options.timeout),
        "{error}"
    );
}

#[tokio::test]
async fn all_processes_end_when_a_check_is_cancelled() {
    let fake = FakeOpa::answering("sleep 1000 & echo $! > $F/child; echo $$ > $F/parent; wait");
    let checker = fake.start(fake.options()).await.unwrap();
    let (opa, bundle) = (checker.opa().await.unwrap(), bundle());
    let processes = tokio::select! {
        verdict = checker.check(&opa, &bundle) => panic!("{verdict:?}"),
        processes = async { [fake.wait_for("child").await, fake.wait_for("parent").await] } => processes,
    };
    for process in processes {
        eventually("its end", || (!is_running(&process)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_process_left_behind_neither_delays_the_verdict_nor_survives() {
    let fake = FakeOpa::answering(&format!("sleep 1000 & echo $! > $F/child\n{PASSES}"));
    assert_eq!(fake.check().await.unwrap(), Verdict::Passed { tests: 0 });
    let child = fake.read("child").unwrap();
    eventually("its end", || (!is_running(&child)).then_some(())).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_file_size_and_cpu_time_are_limited() {
    // The limits are set from outside, some microseconds after the start.
    let fake = FakeOpa::answering(&format!(
        "while [ \"$(ulimit -c)\" != 0 ]; do :; done; (ulimit -d; ulimit -f; ulimit -t) > $F/limits\n{PASSES}"
    ));
    fake.check().await.unwrap();
    // The units are KiB, blocks of 512 bytes (dash) or 1024 (bash), and seconds.
    let limits = fake.read("limits").unwrap();
    let limits: Vec<_> = limits.lines().collect();
    assert!(
        matches!(limits.as_slice(), ["2097152", "2048" | "1024", "600"]),
        "{limits:?}"
    );
}

#[tokio::test]
async fn a_program_that_cannot_check_is_refused_at_the_start() {
    let start = async |fake: &FakeOpa| {
        fake.start(fake.options())
            .await
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let old = FakeOpa::script("echo 'Version: 0.70.0'");
    assert!(
        start(&old)
            .await
            .ends_with("/opa is OPA 0.70.0, and 1.0 or newer is needed")
    );
    for (body, expected) in [
        (
            "exit 0",
            "does not work as opa: opa gave no readable answer (exit status: 0)",
        ),
        ("echo 'Version: 1.2.3'", "does not work as opa"),
        ("echo 'Version: 1.2.3'; exit 3", "(exit status: 3)"),
        ("kill -9 $$", "ended by signal 9"),
    ] {
        let error = start(&FakeOpa::script(body)).await;
        assert!(error.contains(expected), "{body}: {error}");
    }
    let missing = FakeOpa::script("");
    fs::remove_file(missing.path("opa")).unwrap();
    let error = start(&missing).await;
    assert_eq!(
        error,
        format!("no program {}", missing.path("opa").display())
    );
    fs::create_dir(missing.path("opa")).unwrap();
    assert!(start(&missing).await.contains("it is not a file"));
    let unnamed = Options {
        program: "no-such-opa-anywhere".into(),
        ..Options::default()
    };
    let error = Checkers::default().start(&unnamed).await.unwrap_err();
    assert!(matches!(error, StartError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn a_replaced_program_is_identified_again() {
    let fake = FakeOpa::answering(PASSES);
    let checker = fake.start(fake.options()).await.unwrap();
    let first = checker.opa().await.unwrap();
    assert!(first.is_current().await);
    assert_eq!(checker.opa().await.unwrap().digest(), first.digest());
    fake.replace("echo 'Version: 0.70.0'");
    assert!(!first.is_current().await);
    let error = checker.opa().await.unwrap_err();
    assert!(matches!(error, Unavailable::TooOld { .. }), "{error}");
    fake.replace("case \"$1\" in version) echo 'Version: 1.30.0';; capabilities) echo '{\"builtins\":[]}';; esac");
    let second = checker.opa().await.unwrap();
    assert_eq!(second.version(), "1.30.0");
    assert_ne!(first.digest(), second.digest());
}

#[tokio::test]
async fn a_verdict_of_a_program_replaced_meanwhile_does_not_count() {
    let fake = FakeOpa::answering(&format!("cp $F/opa $F/copy; mv $F/copy $F/opa\n{PASSES}"));
    let error = fake.check().await.unwrap_err();
    assert!(matches!(error, Unavailable::Replaced { .. }), "{error}");
}

#[tokio::test]
async fn at_most_two_checks_run_concurrently() {
    let fake = FakeOpa::answering(&format!(
        "mkdir $F/run.$$; ls -d $F/run.* | wc -l >> $F/counts; rmdir $F/run.$$\n{PASSES}"
    ));
    let checker = fake.start(fake.options()).await.unwrap();
    let opa = checker.opa().await.unwrap();
    let bundle = bundle();
    futures_util::future::join_all((0..12).map(|_| checker.check(&opa, &bundle)))
        .await
        .into_iter()
        .for_each(|ended| {
            ended.unwrap();
        });
    let counts = fake.read("counts").unwrap();
    assert_eq!(counts.lines().count(), 12);
    assert!(
        counts
            .lines()
            .all(|count| matches!(count.trim(), "1" | "2")),
        "{counts}"
    );
}

/// Responds to `opa eval` with one script and to `opa test` with another.
fn testing(eval: &str, test: &str) -> FakeOpa {
    FakeOpa::answering(&format!(
        "if [ \"$1\" = test ]; then {test}; else {eval}; fi"
    ))
}

#[tokio::test]
async fn tests_run_if_configured_and_must_pass() {
    let check = async |test: &str, tests| {
        let fake = testing(PASSES, test);
        fake.check_with(Options {
            tests,
            ..fake.options()
        })
        .await
    };
    let passing =
        r#"echo '[{"package":"data.t","name":"test_a"},{"package":"data.t","name":"test_b"}]'"#;
    let failing = r#"echo '[{"package":"data.t","name":"test_a","fail":true,"location":{"file":"t.rego","row":7}}]'; exit 2"#;
    assert_eq!(
        check(passing, true).await.unwrap(),
        Verdict::Passed { tests: 2 }
    );
    assert_eq!(
        check("echo '[]'", true).await.unwrap(),
        Verdict::Passed { tests: 0 }
    );
    assert_eq!(
        refusal(check(failing, true).await.unwrap()),
        "t.rego:7: test data.t.test_a failed"
    );
    assert_eq!(
        check(failing, false).await.unwrap(),
        Verdict::Passed { tests: 0 }
    );
    let not_compiled = "echo '1 error occurred: t.rego:2: rego_compile_error: x' >&2; exit 1";
    assert_eq!(
        refusal(check(not_compiled, true).await.unwrap()),
        "t.rego:2: rego_compile_error: x"
    );
    for crash in [
        "echo 'panic: x' >&2; exit 2",
        "exit 1",
        "kill -9 $$",
        "echo '[{}'; exit 2",
    ] {
        assert!(check(crash, true).await.is_err(), "{crash}");
    }
}

#[tokio::test]
async fn type_errors_by_annotation_schemas_do_not_refuse_a_bundle() {
    let types = r#"echo '{"errors":[{"message":"m","code":"rego_type_error","location":{"file":"p.rego","row":1}}]}'; exit 2"#;
    let answering = |run: &str, eval: &str| {
        FakeOpa::answering(&format!("if [ \"$1\" = run ]; then {run}; else {eval}; fi"))
    };
    let loads = answering("exit 0", types);
    assert_eq!(loads.check().await.unwrap(), Verdict::Passed { tests: 0 });
    let fails = answering("echo 'error: initialization error' >&2; exit 1", types);
    assert_eq!(
        refusal(fails.check().await.unwrap()),
        "p.rego:1: rego_type_error: m"
    );
    // Other errors are not checked again.
    assert_eq!(
        refusal(answering("exit 0", REFUSES).check().await.unwrap()),
        "p.rego:3: rego_unsafe_var_error: m"
    );
    assert!(answering("kill -9 $$", types).check().await.is_err());
}
