//! The unit, as systemd reads it, and the program within its limits.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use tempfile::TempDir;

use super::{deploy, ran};
use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Process, Registry, poll_until, program,
};

/// The unit with the program of this build, and its drop-in.
fn unit(folder: &Path) -> String {
    let source = deploy().join("systemd");
    let text = fs::read_to_string(source.join("bundlegate.service")).unwrap();
    let installed = "/usr/local/bin/bundlegate ";
    assert_eq!(text.matches(installed).count(), 2, "{text}");
    let built = format!("{} ", env!("CARGO_BIN_EXE_bundlegate"));
    let unit = folder.join("bundlegate.service");
    fs::write(&unit, text.replace(installed, &built)).unwrap();
    let dropins = folder.join("bundlegate.service.d");
    fs::create_dir(&dropins).unwrap();
    fs::copy(
        source.join("credentials.conf"),
        dropins.join("credentials.conf"),
    )
    .unwrap();
    unit.to_str().unwrap().to_owned()
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit_and_rates_its_exposure_as_low() {
    let folder = TempDir::new().unwrap();
    let unit = unit(folder.path());
    let verified = ran("systemd-analyze", &["verify", "--man=no", &unit]);
    assert!(
        verified.success && verified.stderr.is_empty() && verified.stdout.is_empty(),
        "{verified:?}"
    );
    // A drop-in that systemd does not know is reported, so the silence above is worth something.
    fs::write(
        folder.path().join("bundlegate.service.d/typo.conf"),
        "[Service]\nProtectSytem=strict\n",
    )
    .unwrap();
    let verified = ran("systemd-analyze", &["verify", "--man=no", &unit]);
    assert!(verified.stderr.contains("ProtectSytem"), "{verified:?}");
    let rated = ran(
        "systemd-analyze",
        &[
            "security",
            "--offline=yes",
            "--no-pager",
            "--threshold=15",
            &unit,
        ],
    );
    let summary = rated.stdout.lines().last().unwrap_or_default().to_owned();
    println!("deploy | systemd-analyze security: {summary}");
    rated.ok();
}

#[test]
fn the_user_of_the_unit_is_made_by_its_sysusers_file() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let file = deploy().join("systemd/bundlegate.sysusers");
    let root_flag = format!("--root={}", root.path().display());
    ran("systemd-sysusers", &[&root_flag, file.to_str().unwrap()]).ok();
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(users.starts_with("bundlegate:x:"), "{users}");
    let unit = fs::read_to_string(deploy().join("systemd/bundlegate.service")).unwrap();
    assert!(unit.contains("\nUser=bundlegate\n") && unit.contains("\nGroup=bundlegate\n"));
}

/// The system calls of a run with a registry, a cache, an OPA, a reload and a drain.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_makes_no_system_call_that_the_unit_forbids() {
    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .cached();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bundlegate.yaml");
    fs::write(&file, config.0.to_string()).unwrap();
    // In a folder of its own: the program watches that of its configuration, and would see each line.
    let traced = TempDir::new().unwrap();
    let trace = traced.path().join("trace");
    let mut command = Command::new(program("strace"));
    command
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_bundlegate"))
        .args(["serve", "--config"])
        .arg(&file);
    let mut process = Process::start("strace", &mut command);
    let data = crate::shared::gateway::listener(&mut process, "data").await;
    let opa = Opa::polling(OpaVersion::Newest, &format!("http://{data}"), "authz").await;
    opa.answers("first").await;
    let pid = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    let trace_text = || fs::read_to_string(&trace).unwrap();
    let main = pid(trace_text().lines().next().unwrap());
    let signal = |name: &str| ran("sh", &["-c", &format!("kill -{name} {main}")]).ok();
    signal("HUP");
    process
        .line(|line| line.contains("configuration read again").then_some(()))
        .await;
    signal("TERM");
    poll_until("the end", async || process.has_ended().then_some(())).await;

    let unit = fs::read_to_string(deploy().join("systemd/bundlegate.service")).unwrap();
    assert!(
        unit.contains("\nSystemCallFilter=@system-service\nSystemCallFilter=~@privileged\n"),
        "{unit}"
    );
    let mut allowed = calls("@system-service");
    for forbidden in calls("@privileged") {
        allowed.remove(&forbidden);
    }
    // `PID NAME(…` or `PID <... NAME resumed>…`; other lines are of signals and ends.
    let text = trace_text();
    let made: BTreeSet<_> = text
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.trim().split_once(' ')?;
            let (name, _) = rest.trim_start().split_once('(')?;
            let is_name =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            name.bytes().all(is_name).then(|| name.to_owned())
        })
        .collect();
    println!("deploy | {} system calls: {made:?}", made.len());
    assert!(made.len() > 40, "{made:?}");
    let beyond: Vec<_> = made.difference(&allowed).collect();
    assert!(beyond.is_empty(), "{beyond:?}");
}

/// The system calls of a set, with those of the sets in it.
fn calls(set: &str) -> BTreeSet<String> {
    let listed = ran("systemd-analyze", &["syscall-filter", "--no-pager", set]).ok();
    let mut all = BTreeSet::new();
    for name in listed.lines().skip(1).map(str::trim) {
        match name {
            name if name.starts_with('@') => all.extend(calls(name)),
            name if name.starts_with('#') || name.is_empty() => {}
            name => {
                all.insert(name.to_owned());
            }
        }
    }
    all
}
