//! Interrupted commands, a full disk, a store without write access, and many processes at once.

use super::*;

#[test]
fn many_processes_tag_at_once_and_no_tag_is_lost() {
    let author = Author::with(POLICY);
    author.digest("build policy -t r.example/a:v0");
    let names: Vec<_> = (1..=16)
        .map(|number| format!("r.example/a:v{number}"))
        .collect();
    let tag = |name: &String| {
        author
            .command(&["tag", "r.example/a:v0", name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut running: Vec<Child> = names.iter().map(tag).collect();
    for child in &mut running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(author.json("images").as_array().unwrap().len(), 17);
}

/// Bytes that no compressor makes smaller, as JSON.
fn noise(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let text: String = std::iter::repeat_with(|| random.alphanumeric())
        .take(length)
        .collect();
    json!({ "noise": text }).to_string()
}

#[test]
fn ctrl_c_ends_a_build_and_leaves_nothing() {
    let author = Author::with(&[("policy/data.json", &noise(64 << 20))]);
    fs::create_dir(author.path("tmp")).unwrap();
    let mut build = author.command(&["build", "policy", "-t", "r.example/a:v1"]);
    let build = build
        .env("TMPDIR", author.path("tmp"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let listens = || {
        let status = fs::read_to_string(format!("/proc/{}/status", build.id())).unwrap_or_default();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .map(str::trim);
        caught
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask & 0b10 != 0)
    };
    while !listens() {
        std::thread::yield_now();
    }
    assert!(
        Command::new("kill")
            .args(["-INT", &build.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    Ran::of(build.wait_with_output().unwrap()).refused("interrupted");
    assert_eq!(
        (
            stored(&author),
            fs::read_dir(author.path("tmp")).unwrap().count()
        ),
        (0, 0)
    );
    assert_eq!(author.json("images"), json!([]));
}

#[tokio::test]
async fn save_can_be_interrupted_at_a_pipe_without_a_reader() {
    let author = Author::with(&[("policy/data.json", &noise(1 << 20))]);
    author.digest("build policy -t r.example/a:v1");
    let mut save = author.command(&["save", "r.example/a:v1", "-f", "-"]);
    let mut save = save
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first bytes are there, and the pipe takes no more than the first few of them.
    std::io::Read::read_exact(save.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    assert!(
        Command::new("kill")
            .args(["-TERM", &save.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    eventually("the end of save", || save.try_wait().unwrap().is_some()).await;
    let mut err = String::new();
    std::io::Read::read_to_string(&mut save.stderr.take().unwrap(), &mut err).unwrap();
    assert!(err.contains("interrupted"), "{err}");
}

#[test]
fn a_store_that_may_only_be_read_is_read() {
    let author = Author::with(POLICY);
    author.digest("build policy -t r.example/a:v1");
    // A folder can't be opened as a lock, not even by root.
    fs::remove_file(author.path("store/.sweep.lock")).unwrap();
    fs::create_dir(author.path("store/.sweep.lock")).unwrap();
    for line in [
        "images",
        "inspect r.example/a:v1",
        "save r.example/a:v1",
        "eval r.example/a:v1 data.users",
    ] {
        author.line(line).ok();
    }
    author
        .line("build policy -t r.example/b:v1")
        .refused("lock store/.sweep.lock");
}

#[test]
fn a_full_disk_is_told_and_what_was_there_stays() {
    let author = Author::with(&[
        ("small/p.rego", "package p\n"),
        ("large/data.json", &noise(6 << 20)),
    ]);
    fs::create_dir(author.path("disk")).unwrap();
    // A disk of two mebibytes, which goes with the shell.
    let script = r#"
        set -e
        mount -t tmpfs -o size=2m none disk
        export BUNDLEGATE_STORE=disk/store
        "$1" build small -t r.example/a:v1 > /dev/null
        "$1" build large -t r.example/b:v1 --store other > /dev/null
        before=$(ls -aR disk; cat disk/store/index.json)
        ! "$1" build large -t r.example/a:v1 || exit 3
        ! TMPDIR=disk "$1" build large -t r.example/a:v1 || exit 4
        ! "$1" save r.example/b:v1 --store other -f disk/out.tar.gz || exit 5
        test "$before" = "$(ls -aR disk; cat disk/store/index.json)" || exit 6
        "$1" save r.example/a:v1 -f disk/out.tar.gz > /dev/null
    "#;
    let mut shell = Command::new("unshare");
    shell.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_bundlegate"),
    ]);
    if !Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .output()
        .is_ok_and(|ran| ran.status.success())
    {
        unavailable("a full disk, which takes user namespaces");
        return;
    }
    let ran = Ran::of(author.settle(&mut shell).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.stderr);
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("bundlegate: ") && line.contains("No space left")),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_pipe_that_does_not_listen_any_more_is_an_error_not_a_panic() {
    let author = Author::with(POLICY);
    author.digest("build policy -t r.example/a:v1");
    author
        .line("save r.example/a:v1 -f /dev/full")
        .refused("write /dev/full: No space left on device");
    author
        .line("save r.example/a:v1 -f nowhere/out.tar.gz")
        .refused("write nowhere/out.tar.gz: No such file");
}
