//! The policy author's verbs on this machine, as a person runs them.

mod faults;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use bundlegate::oci::media_type;
use serde_json::{Value, json};

use crate::{
    command::{Author, Ran, fixture, skipped, write},
    faulty::FaultyRegistry,
    gateway::eventually,
};

const POLICY: &[(&str, &str)] = &[
    ("policy/.manifest", r#"{ "roots": ["authz", "users"] }"#),
    (
        "policy/authz/authz.rego",
        "package authz\n\nallow if data.users[input.user].admin\n",
    ),
    (
        "policy/authz/authz_test.rego",
        "package authz_test\n\nimport data.authz\n\ntest_admin if authz.allow with input.user as \"ann\"\n",
    ),
    ("policy/users/data.json", r#"{ "ann": { "admin": true } }"#),
    ("policy/users/more/data.yaml", "x: 1\n"),
];

/// How many blobs lie in the store, half-written ones included.
fn stored(author: &Author) -> usize {
    let count = |folder: PathBuf| fs::read_dir(folder).map_or(0, Iterator::count);
    let fragments = fs::read_dir(author.path("store")).map_or(0, |entries| {
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".tmp-")
            })
            .count()
    });
    count(author.path("store/blobs/sha256")) + fragments
}

#[test]
fn a_policy_is_built_tagged_listed_inspected_saved_and_removed() {
    let author = Author::with(POLICY);
    let built = author.json("build policy -t r.example/acme/authz:v1 --test -a team=red");
    assert_eq!(built["reference"], "r.example/acme/authz:v1");
    assert_eq!(built["roots"], json!(["authz", "users"]));
    let digest = built["digest"].as_str().unwrap();
    assert_eq!(
        author.digest("tag r.example/acme/authz:v1 r.example/acme/authz:live"),
        digest
    );
    let images = author.json("images");
    let row = &images[0];
    assert_eq!(images.as_array().unwrap().len(), 2);
    assert_eq!(
        (&row["repository"], &row["digest"]),
        (&json!("r.example/acme/authz"), &built["digest"])
    );
    assert_eq!(
        (&row["revision"], &row["size"], &row["signed"]),
        (&built["revision"], &built["size"], &json!(false))
    );
    assert!(row["created"].as_str().unwrap() > "2026", "{row}");
    let seen = author.json("inspect r.example/acme/authz:live");
    assert_eq!(
        (&seen["layer"], &seen["annotations"]["team"]),
        (&built["layer"], &json!("red"))
    );
    assert_eq!(
        (&seen["packages"], &seen["manifest"]["rego_version"]),
        (&json!(["authz"]), &json!(1))
    );
    assert_eq!(
        seen["files"][1],
        json!({ "path": "users/data.json", "size": 28 })
    );
    let saved = author.json("save r.example/acme/authz:v1 -f out.tar.gz");
    assert_eq!(saved["layer"], built["layer"]);
    let file = fs::read(author.path("out.tar.gz")).unwrap();
    assert_eq!(
        bundlegate::oci::Digest::sha256(&file).as_str(),
        built["layer"]
    );
    assert_eq!(
        author
            .command(&["save", "r.example/acme/authz:v1", "-f", "-"])
            .output()
            .unwrap()
            .stdout,
        file
    );
    // Like any file that is made, by the user's mask.
    assert_eq!(
        fs::metadata(author.path("out.tar.gz"))
            .unwrap()
            .permissions()
            .mode()
            & 0o600,
        0o600
    );
    author
        .line("rm r.example/acme/authz:v1 r.example/acme/authz:live")
        .ok();
    assert_eq!((author.json("images"), stored(&author)), (json!([]), 0));
}

#[test]
fn the_manifest_has_the_shape_of_the_policy_cli() {
    let author = Author::with(POLICY);
    let digest = author.digest("build policy -t r.example/a:v1");
    let bytes = fs::read(author.path("store/blobs/sha256").join(&digest[7..])).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.oci.image.config.v1+json"
    );
    assert_eq!(manifest["config"]["size"], 2);
    let layer = &manifest["layers"][0];
    assert_eq!(
        layer["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    assert_eq!(layer["annotations"], manifest["annotations"]);
    let said = &manifest["annotations"];
    assert_eq!(
        said["org.opencontainers.image.created"],
        "1970-01-01T00:00:00Z"
    );
    assert_eq!(said["org.opencontainers.image.title"], "bundle.tar.gz");
    assert_eq!(
        (&said["org.openpolicyregistry.type"], &said["rego.version"]),
        (&json!("policy"), &json!("rego.v1"))
    );
    assert!(
        manifest.get("artifactType").is_none() && !text.contains("r.example"),
        "{text}"
    );
}

#[test]
fn the_same_files_are_one_digest_for_everybody_everywhere_and_always() {
    let author = Author::with(POLICY);
    let digest = author.digest("build policy -t r.example/acme/authz:v1");

    // Another folder, filled in another order, years ago, with other permissions.
    let other = Author::new();
    for (name, content) in POLICY.iter().rev() {
        let path = other
            .path(name)
            .to_string_lossy()
            .replace("/policy/", "/elsewhere/deep/");
        write(Path::new(&path), content);
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    }
    assert_eq!(
        other.digest("build elsewhere/deep -t other.example/x:y"),
        digest
    );
    assert_eq!(
        other.digest("build elsewhere/deep/ -t other.example/x:z"),
        digest
    );

    // Another user, with another time zone and mask, where this one may become one.
    if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
        assert_eq!(run_unprivileged(&other), digest);
    } else {
        unavailable("the build by another user, which takes root");
    }

    // The files that were extracted from the bundle are built again.
    author
        .line("save r.example/acme/authz:v1 -f out.tar.gz")
        .ok();
    let tarball = fs::File::open(author.path("out.tar.gz")).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(tarball))
        .unpack(author.path("unpacked"))
        .unwrap();
    assert_eq!(
        author.digest("build unpacked -t r.example/acme/authz:v2"),
        digest
    );

    // Only whoever asks for a date gets one.
    let mut dated = author.command(&["build", "policy", "-t", "r.example/acme/authz:v3", "--json"]);
    let dated = Ran::of(
        dated
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap(),
    );
    assert!(
        dated.code == 0 && !dated.stdout.contains(&digest),
        "{}",
        dated.stderr
    );
    let seen = author.json("inspect r.example/acme/authz:v3");
    assert_eq!(
        seen["annotations"]["org.opencontainers.image.created"],
        "2023-11-14T22:13:20Z"
    );
}

/// Builds `elsewhere/deep` by `nobody`, who may read it and write to a store of his own.
fn run_unprivileged(author: &Author) -> String {
    let program = author.path("bundlegate");
    fs::copy(env!("CARGO_BIN_EXE_bundlegate"), &program).unwrap();
    fs::set_permissions(author.home(), fs::Permissions::from_mode(0o777)).unwrap();
    let line = "umask 077; exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                ./bundlegate build elsewhere/deep -t r.example/n:v1 --json --store nobodys";
    let mut shell = Command::new("sh");
    let ran = Ran::of(
        author
            .settle(shell.args(["-c", line]))
            .env("TZ", "Asia/Tokyo")
            .output()
            .unwrap(),
    );
    ran.json()["digest"].as_str().unwrap().to_owned()
}

#[test]
fn bad_input_is_refused_in_one_line_and_nothing_is_stored() {
    let author = Author::with(&[
        (
            "syntax/p.rego",
            "package p\n\nallow if {\n\tinput.x ==\n}\n",
        ),
        (
            "newer/p.rego",
            "package p\n\nimport rego.v2\n\nallow if input.x or input.y\n",
        ),
        ("roots/.manifest", r#"{"roots":["a","a/b"]}"#),
        ("roots/p.rego", "package a\n"),
        ("outside/.manifest", r#"{"roots":["a"]}"#),
        ("outside/b/data.json", r#"{"x":1}"#),
        ("package/.manifest", r#"{"roots":["a"]}"#),
        ("package/p.rego", "package b\n"),
        ("conflict/data.json", r#"{"a":{"b":1}}"#),
        ("conflict/a/data.json", r#"{"b":2}"#),
        ("list/data.json", "[]"),
        ("empty/README.md", ""),
        ("linked/p.rego", "package p\n"),
        ("one/p.rego", "package p\n"),
        ("two/p.rego", "package q\n"),
        ("secret.json", "{}"),
        ("good/p.rego", "package p\n"),
    ]);
    symlink("../secret.json", author.path("linked/data.json")).unwrap();
    for (arguments, expected) in [
        ("roots", r#"roots "a" and "a/b" overlap"#),
        (
            "outside",
            r#"outside/b/data.json: data at "b" is outside the roots ["a"]"#,
        ),
        (
            "package",
            r#"package/p.rego: package b is outside the roots ["a"]"#,
        ),
        (
            "conflict",
            "conflict/a/data.json and conflict/data.json both set data.a.b",
        ),
        ("list", "list/data.json: the root of data is not an object"),
        ("empty", "holds no .rego"),
        (
            "linked",
            "linked/data.json is a symbolic link that leads out of linked",
        ),
        ("one two", "one/p.rego and two/p.rego would both be p.rego"),
        ("nowhere", "nowhere: no such file or folder"),
        ("secret.json", "secret.json: OPA loads"),
        ("good --root x", r#"package p is outside the roots ["x"]"#),
        ("good --max-size 10B", "exceeds the limit of 10 bytes"),
        ("good --opa=nowhere/opa", "nowhere/opa: no such program"),
        ("good --test", "no test_… rule"),
        ("good --ignore [", "--ignore "),
    ] {
        author
            .line(&format!("build {arguments} -t r.example/a:v1"))
            .refused(expected);
    }
    for (arguments, expected) in [
        ("syntax", "syntax/p.rego:5:1: "),
        ("newer", "or --no-parse to skip parsing"),
    ] {
        let ran = author.line(&format!("build {arguments} -t r.example/a:v1"));
        assert!(ran.code == 1 && ran.stdout.is_empty(), "{ran:?}");
        assert!(
            ran.stderr.lines().next().unwrap().contains(expected),
            "{ran:?}"
        );
    }
    author
        .line("build good -t oci-layout:x:v1")
        .refused("write HOST/REPOSITORY:TAG");
    assert_eq!(stored(&author), 0);
    assert!(!author.path("bundle.tar.gz").exists());
}

#[test]
fn a_wrong_command_line_is_a_usage_error_and_an_unknown_name_is_refused() {
    let author = Author::with(&[("good/p.rego", "package p\n")]);
    for line in [
        "build good",
        "build -t r.example/a:v1",
        "build good -t a:v1",
        "build good -t r.example/a:v1 -e x",
        "tag x",
    ] {
        let ran = author.line(line);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{line}: {}",
            ran.stderr
        );
        assert!(
            ran.stderr.lines().count() == 1 && ran.stderr.ends_with("; see --help\n"),
            "{line}: {}",
            ran.stderr
        );
    }
    for line in ["tag r.example/a:v1 r.example/a:v2", "save r.example/a:v1"] {
        author
            .line(line)
            .refused("r.example/a:v1: not in the image store");
    }
    assert!(!author.path("bundle.tar.gz").exists());
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    let author = Author::with(&[("policy/p.rego", "package p\n")]);
    fs::set_permissions(
        author.path("policy/p.rego"),
        fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    if fs::read(author.path("policy/p.rego")).is_err() {
        return author
            .line("build policy -t r.example/a:v1")
            .refused("read policy/p.rego: Permission denied");
    }
    // Root may read everything, and so has somebody else build.
    fs::copy(env!("CARGO_BIN_EXE_bundlegate"), author.path("bundlegate")).unwrap();
    fs::set_permissions(author.home(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut other = Command::new("setpriv");
    other.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "./bundlegate",
        "build",
        "policy",
    ]);
    let ran = Ran::of(
        author
            .settle(other.args(["-t", "r.example/a:v1"]))
            .output()
            .unwrap(),
    );
    ran.refused("read policy/p.rego: Permission denied");
}

#[test]
fn tests_that_fail_are_named_and_nothing_is_built() {
    let author = Author::with(POLICY);
    author.write("policy/users/data.json", "{}");
    let ran = author.line("build policy -t r.example/a:v1 --test");
    assert_eq!((ran.code, stored(&author)), (1, 0), "{}", ran.stderr);
    let lines: Vec<_> = ran.stderr.lines().collect();
    let expected = "FAIL data.authz_test.test_admin (policy/authz/authz_test.rego:5): undefined or false: \
                    authz.allow with input.user as \"ann\"";
    assert!(lines[0].contains(expected), "{}", ran.stderr);
    assert_eq!(
        lines[1],
        "bundlegate: --test: 1 of 1 tests failed; nothing was built"
    );
    // A broken test is in nobody's way who does not run it.
    author.write("policy/authz/authz_test.rego", "???");
    let ran = author.line("build policy -t r.example/a:v1 --test");
    assert!(
        ran.code == 1
            && ran
                .stderr
                .starts_with("bundlegate: policy/authz/authz_test.rego:1:"),
        "{}",
        ran.stderr
    );
    author.line("build policy -t r.example/a:v1").ok();
}

#[test]
fn a_new_project_can_be_built_and_tested_and_is_not_overwritten() {
    let author = Author::new();
    let made = author.json("init project");
    assert_eq!(made["files"].as_array().unwrap().len(), 6);
    author.digest("build project/policy -t r.example/a:v1 --test");
    author.write("project/README.md", "mine");
    author
        .line("init project")
        .refused("already exists; overwrite with --force");
    author.line("init project/policy/..").refused("--force");
    assert_eq!(fs::read(author.path("project/README.md")).unwrap(), b"mine");
    author.write("second/README.md", "mine");
    author
        .line("init second")
        .refused("second/README.md: already exists");
    assert_eq!(
        fs::read_dir(author.path("second")).unwrap().count(),
        1,
        "all or nothing"
    );
    author.line("init project --force").ok();
}

#[test]
fn signatures_in_the_store_are_seen_follow_a_tag_and_go_with_the_image() {
    let author = Author::with(POLICY);
    let digest = author.digest("build policy -t r.example/acme/authz:v1");
    for line in [
        "generate-key-pair",
        "sign r.example/acme/authz:v1 --local --key cosign.key",
        "sign r.example/acme/authz:v1 --local --key cosign.key --legacy",
    ] {
        author.line(line).ok();
    }
    let formats = |reference: &str| {
        let seen = author.json(&format!("inspect {reference}"));
        let list = seen["signatures"].as_array().unwrap().iter();
        list.map(|signature| signature["format"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(formats("r.example/acme/authz:v1"), ["bundle", "legacy"]);
    assert_eq!(
        author.digest("tag r.example/acme/authz:v1 r.example/other/authz:v1"),
        digest
    );
    assert_eq!(formats("r.example/other/authz:v1"), ["bundle", "legacy"]);
    let images = author.json("images");
    assert_eq!(
        images.as_array().unwrap().len(),
        2,
        "signatures are no images: {images}"
    );
    assert!(
        images
            .as_array()
            .unwrap()
            .iter()
            .all(|image| image["signed"] == true),
        "{images}"
    );
    author.digest("build policy -t r.example/third/authz:v1");
    assert_eq!(
        formats("r.example/third/authz:v1"),
        [""; 0],
        "another repository's are not this one's"
    );
    let everything = "rm r.example/acme/authz:v1 r.example/other/authz:v1 r.example/third/authz:v1";
    assert_eq!((author.line(everything).code, stored(&author)), (0, 0));
}

/// An artifact that the real policy CLI 0.4 wrote, as a layout without a tag.
fn old_artifact() -> Option<PathBuf> {
    fixture("policy-cli-0.4", "the policy CLI's artifact")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_policy_clis_artifact_is_pulled_inspected_and_saved_byte_for_byte() {
    let Some(layout) = old_artifact() else { return };
    let registry = FaultyRegistry::start().await;
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let blobs: Vec<_> = blobs
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    let is_manifest = |bytes: &&Vec<u8>| bytes.starts_with(b"{\"schemaVersion\"");
    let manifest = blobs.iter().find(is_manifest).unwrap();
    let digest = bundlegate::oci::Digest::sha256(manifest);
    for name in ["v1", digest.as_str()] {
        registry.put(
            &format!("manifests/{name}"),
            media_type::OCI_MANIFEST,
            manifest.clone(),
        );
    }
    blobs
        .iter()
        .for_each(|bytes| drop(registry.put_blob(bytes)));
    let reference = registry.reference("v1").to_string();
    tokio::task::spawn_blocking(move || {
        let author = Author::new();
        let there = author.json(&format!("inspect --remote --plain-http {reference}"));
        assert_eq!((&there["digest"], stored(&author)), (&json!(digest), 0));
        assert_eq!(
            author.json(&format!("pull --plain-http {reference}"))[0]["digest"],
            json!(digest)
        );
        // From now on without the registry.
        let here = author.json(&format!("inspect {reference}"));
        assert_eq!(here, there);
        let saved = author.json(&format!("save {reference} -f out.tar.gz"));
        let theirs = layout
            .join("blobs/sha256")
            .join(&saved["layer"].as_str().unwrap()[7..]);
        assert_eq!(
            fs::read(author.path("out.tar.gz")).unwrap(),
            fs::read(theirs).unwrap()
        );
        let row = &author.json("images")[0];
        assert_eq!((&row["size"], &row["tag"]), (&saved["size"], &json!("v1")));
    })
    .await
    .unwrap();
}

#[test]
fn the_old_policy_clis_artifact_is_saved_from_a_folder() {
    let Some(layout) = old_artifact() else { return };
    let author = Author::new();
    let reference = format!("oci-layout:{}", layout.display());
    let seen = author.json(&format!("inspect {reference}"));
    assert_eq!(
        (&seen["packages"], &seen["manifest"]["roots"]),
        (&json!(["authz"]), &json!(["authz"]))
    );
    let saved = author.json(&format!("save {reference} -f out.tar.gz"));
    assert_eq!(
        (&saved["digest"], &saved["layer"]),
        (&seen["digest"], &seen["layer"])
    );
    let layer = saved["layer"].as_str().unwrap();
    let theirs = fs::read(layout.join("blobs/sha256").join(&layer[7..])).unwrap();
    assert_eq!(fs::read(author.path("out.tar.gz")).unwrap(), theirs);
}

/// Skips a test for want of `what`, which CI must have.
fn unavailable(what: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "in CI nothing is skipped: {what}"
    );
    skipped(what);
}
