//! Files that are no files, or too large ones: nothing hangs on them, and none takes memory
//! without end.

use std::{fs, path::Path, process::Command};

use crate::command::{Author, PASSWORD};

const POLICY: &[(&str, &str)] = &[("policy/p.rego", "package p\n\nx := 1\n")];
const REF: &str = "r.example/a:v1";

fn author() -> Author {
    let author = Author::with(POLICY);
    author.run(&["build", "policy", "-t", REF]).ok();
    author.run(&["generate-key-pair"]).ok();
    author
}

fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Every flag that names a file.
const FLAGS: &[&[&str]] = &[
    &["verify", REF, "--local", "--key", "FILE"],
    &[
        "verify",
        REF,
        "--local",
        "--key",
        "cosign.pub",
        "--tlog",
        "require",
        "--trusted-root",
        "FILE",
    ],
    &["verify", REF, "--local", "--config", "FILE"],
    &["sign", REF, "--local", "--key", "FILE"],
    &["pull", "127.0.0.1:1/a:v1", "--ca-file", "FILE"],
    &["pull", "127.0.0.1:1/a:v1", "--plain-http", "--key", "FILE"],
    &["eval", REF, "data.p.x", "--input", "FILE"],
    &["repl", REF, "--input", "FILE"],
    &["refresh", "a", "--admin-token-file", "FILE"],
    &["reload", "--ca-file", "FILE"],
    &["config", "check", "FILE"],
    &["serve", "--config", "FILE"],
    &[
        "verify-bundle",
        "--bundle",
        "FILE",
        "--key",
        "cosign.pub",
        "policy/p.rego",
    ],
    &[
        "verify-bundle",
        "--bundle",
        "policy/p.rego",
        "--key",
        "FILE",
        "policy/p.rego",
    ],
    &["eval", "./FILE", "1"],
    &["inspect", "./FILE"],
];

fn with(flags: &[&str], file: &str) -> Vec<String> {
    flags
        .iter()
        .map(|flag| {
            if flag.ends_with("FILE") {
                file.to_owned()
            } else {
                (*flag).to_owned()
            }
        })
        .collect()
}

#[test]
fn a_device_a_folder_and_a_file_without_end_are_refused_wherever_a_file_is_named() {
    let author = author();
    fs::create_dir(author.path("folder")).unwrap();
    // Sparse: a terabyte that takes no room.
    fs::File::create(author.path("endless"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for flags in FLAGS {
        for file in ["/dev/zero", "endless", "folder"] {
            let is_policy = matches!(flags, ["eval", "./FILE", ..] | ["inspect", "./FILE"]);
            if is_policy && file != "/dev/zero" {
                // A folder is a policy, and a file has its own limit, --max-size.
                continue;
            }
            let arguments = with(flags, file);
            let ran = author.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
            assert!(
                ran.stderr.contains(file),
                "{arguments:?} does not name it: {ran:?}"
            );
        }
    }
}

/// A pipe as `--key <(command)` makes it.
#[test]
fn a_key_comes_through_a_pipe() {
    let author = author();
    author
        .run(&["sign", REF, "--local", "--key", "cosign.key"])
        .ok();
    for (file, arguments) in [
        (
            "cosign.pub",
            &["verify", REF, "--local", "--key", "pipe"][..],
        ),
        ("cosign.key", &["sign", REF, "--local", "--key", "pipe"]),
    ] {
        pipe(&author.path("pipe"));
        let (from, to) = (author.path(file), author.path("pipe"));
        let writing = std::thread::spawn(move || fs::write(to, fs::read(from).unwrap()));
        author
            .run_with(arguments, "", &[("COSIGN_PASSWORD", PASSWORD)])
            .ok();
        writing.join().unwrap().unwrap();
    }
}

#[test]
fn a_pipe_in_the_image_store_hangs_nothing() {
    for name in [".index.lock", ".sweep.lock", "index.json", "oci-layout"] {
        let author = author();
        pipe(&author.path("store").join(name));
        for line in [
            "images",
            "inspect r.example/a:v1",
            "build policy -t r.example/b:v1",
            "tag r.example/a:v1 r.example/b:v1",
        ] {
            let ran = author.line(line);
            // A command that only reads needs no lock, and a second name adds no blob.
            let reads =
                name.ends_with(".lock") && (line == "images" || line.starts_with("inspect"));
            let fine = reads || (name == ".sweep.lock" && line.starts_with("tag"));
            assert_eq!(ran.code, i32::from(!fine), "{name}, {line}: {ran:?}");
            assert!(
                ran.code == 0 || ran.stderr.contains(&format!("store/{name}")),
                "{name}, {line}: {ran:?}"
            );
        }
    }
    let author = author();
    for entry in fs::read_dir(author.path("store/blobs/sha256")).unwrap() {
        pipe(&entry.unwrap().path());
    }
    assert!(
        author
            .line("save r.example/a:v1")
            .error()
            .contains("it is a pipe, not a regular file")
    );
    author.line("images").ok();
}

#[test]
fn a_pipe_in_the_state_folder_of_dev_hangs_nothing() {
    let author = Author::with(POLICY);
    fs::create_dir(author.path("state")).unwrap();
    pipe(&author.path("state/.lock"));
    let ran = author.run(&[
        "dev",
        "policy",
        "--listen",
        "127.0.0.1:0",
        "--state",
        "state",
    ]);
    assert!(
        ran.error().contains("it is a pipe, not a regular file"),
        "{ran:?}"
    );
}

#[test]
fn a_layout_folder_with_a_pipe_is_refused() {
    for name in ["index.json", "oci-layout"] {
        let author = Author::new();
        author.artifact(&[("p.rego", "package p\n")]);
        pipe(&author.path("layout").join(name));
        for line in [
            "inspect oci-layout:layout:v1",
            "eval oci-layout:layout:v1 1",
            "copy oci-layout:layout:v1 oci-layout:out",
        ] {
            assert!(
                author
                    .line(line)
                    .error()
                    .contains("it is a pipe, not a regular file"),
                "{name}: {line}"
            );
        }
    }
}
