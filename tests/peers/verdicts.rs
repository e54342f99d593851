//! Bundlegate's verdict about a bundle is OPA's: on bundles with oddities that were seen in the
//! field, and on generated ones. Where it differs, the reason is on a list.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use bundlegate::{
    bundle::{Bundle, Limits},
    oci::{Blob, Descriptor},
};
use fastrand::Rng;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{fixture, program};

const LIMITS: Limits = Limits {
    bundle: 64 << 20,
    unpacked: 512 << 20,
    files: 20_000,
    bundle_manifest: 1 << 20,
};

/// Why a bundle that OPA loads is refused, in the words of the refusal.
const STRICTER: [&str; 6] = [
    "it is a link",
    "it is a device",
    "its name leads out of the bundle",
    "disagree about its size",
    "makes this a delta bundle",
    "a manifest in protobuf",
];

/// Why OPA refuses a bundle that is taken: what takes a Rego compiler is left to `opa_check`,
/// and this build of OPA has no engine for WebAssembly.
const LEFT_TO_OPA: [&str; 2] = ["rego_compile_error", "engine not found"];

pub(crate) fn ours(tarball: &[u8]) -> Result<(), String> {
    let blob = Blob::check(&Descriptor::of("", tarball), tarball.to_vec().into()).unwrap();
    Bundle::open(blob, &LIMITS)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The verdicts of OPA 1.22.2 on the files, in their order.
pub(crate) async fn theirs(files: &[impl AsRef<Path>]) -> Vec<Result<(), String>> {
    let mut opa = Command::new(program("opa-verdicts"));
    let mut opa = opa
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let names: String = files
        .iter()
        .map(|file| format!("{}\n", file.as_ref().display()))
        .collect();
    let mut input = opa.stdin.take().unwrap();
    let writing = tokio::spawn(async move {
        tokio::io::AsyncWriteExt::write_all(&mut input, names.as_bytes()).await
    });
    let output = opa.wait_with_output().await.unwrap();
    writing.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let verdicts = said.lines().map(|line| match line.split_once(' ') {
        None => Ok(()),
        Some((_, reason)) => Err(reason.to_owned()),
    });
    let verdicts: Vec<_> = verdicts.collect();
    assert_eq!(verdicts.len(), files.len(), "OPA ended early");
    verdicts
}

/// Whether the difference is one that is meant.
pub(crate) fn is_meant(ours: &Result<(), String>, theirs: &Result<(), String>) -> bool {
    match (ours, theirs) {
        (Err(reason), Ok(())) => STRICTER.iter().any(|meant| reason.contains(meant)),
        (Ok(()), Err(reason)) => LEFT_TO_OPA.iter().any(|meant| reason.contains(meant)),
        _ => false,
    }
}

#[tokio::test]
async fn odd_bundles_of_the_field_get_the_verdict_of_opa() {
    let Some(folder) = fixture("odd-bundles") else {
        return;
    };
    let verdicts = fs::read_to_string(folder.join("verdicts.tsv")).unwrap();
    let rows: Vec<_> = verdicts
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .collect();
    let files: Vec<_> = rows.iter().map(|row| folder.join(row[0])).collect();
    let said = theirs(&files).await;
    let (mut meant, mut wrong) = (Vec::new(), Vec::new());
    for ((row, file), theirs) in rows.iter().zip(&files).zip(&said) {
        assert_eq!(
            theirs.is_ok(),
            row[1] == "loads",
            "{}: OPA's verdict is another one now",
            row[0]
        );
        let ours = ours(&fs::read(file).unwrap());
        match ours.is_ok() == theirs.is_ok() {
            true => {}
            false if is_meant(&ours, theirs) => meant.push(row[0]),
            false => wrong.push(format!("{}: OPA {theirs:?}, ours {ours:?}", row[0])),
        }
    }
    println!(
        "odd bundles: {} verdicts, other on purpose: {meant:?}",
        rows.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows.len() >= 53, "only {} bundles were found", rows.len());
}

#[tokio::test]
async fn generated_bundles_get_the_verdict_of_opa() {
    const BUNDLES: usize = 2_500;
    let folder = TempDir::new().unwrap();
    let mut random = Rng::with_seed(22);
    let bundles: Vec<_> = (0..BUNDLES).map(|_| generated(&mut random)).collect();
    let files: Vec<_> = (0..BUNDLES)
        .map(|number| folder.path().join(format!("{number}.tar.gz")))
        .collect();
    files
        .iter()
        .zip(&bundles)
        .for_each(|(file, (tarball, _))| fs::write(file, tarball).unwrap());
    let said = theirs(&files).await;
    let (mut loads, mut meant, mut wrong) = (0, 0, Vec::new());
    for ((tarball, listing), theirs) in bundles.iter().zip(&said) {
        let ours = ours(tarball);
        loads += usize::from(theirs.is_ok());
        match ours.is_ok() == theirs.is_ok() {
            true => {}
            false if is_meant(&ours, theirs) => meant += 1,
            false => wrong.push(format!("OPA {theirs:?}, ours {ours:?}: {listing:?}")),
        }
    }
    println!("generated bundles: {BUNDLES} verdicts, OPA loads {loads}, other on purpose: {meant}");
    assert!(
        wrong.is_empty(),
        "{} differ: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
    assert!(
        (BUNDLES / 5..BUNDLES * 4 / 5).contains(&loads),
        "{loads} load: too few of a kind to tell"
    );
}

const MANIFESTS: &[&str] = &[
    "{}",
    "null",
    "{} trailing",
    "",
    "[]",
    "{",
    r#"{"revision":"r1"}"#,
    r#"{"revision":null,"roots":null,"metadata":null}"#,
    r#"{"revision":1}"#,
    r#"{"revision":"\ud800\n"}"#,
    r#"{"rego_version":0}"#,
    r#"{"rego_version":2}"#,
    r#"{"rego_version":3}"#,
    r#"{"rego_version":1.0}"#,
    r#"{"rego_version":1e0}"#,
    r#"{"rego_version":-0}"#,
    r#"{"file_rego_versions":{"*.rego":0}}"#,
    r#"{"file_rego_versions":{"/a/*.rego":null}}"#,
    r#"{"file_rego_versions":{"a":7}}"#,
    r#"{"metadata":{"n":1e400,"s":"\udc00","deep":[[[[{}]]]]}}"#,
    r#"{"metadata":[]}"#,
    r#"{"Roots":["a"],"METADATA":{}}"#,
    r#"{"unknown":{"roots":[]},"x":1e999}"#,
    r#"{"wasm":[]}"#,
    r#"{"wasm":[{"entrypoint":"a/allow","module":"/policy.wasm"}]}"#,
    r#"{"wasm":[{"entrypoint":"a/allow","module":"policy.wasm"}]}"#,
    r#"{"wasm":[{"entrypoint":"/a/allow","module":"policy.wasm"}]}"#,
    r#"{"roots":[]}"#,
    r#"{"roots":"a"}"#,
    r#"{"roots":[null]}"#,
    r#"{"roots":["a",1]}"#,
];

const ROOTS: &[&str] = &[
    "", "a", "b", "a/b", "a/b/c", "/a", "a/", "/a/b/", " a", "a ", "a b", "a//b", "a%20b", "a%zz",
    "A", "c", "a-b", "ab",
];

const MANIFEST_NAMES: &[&str] = &[
    ".manifest",
    "/.manifest",
    "./.manifest",
    ".manifest",
    "a/.manifest",
    "x.manifest",
    "manifest",
    ".manifest.json",
];

const DATA_NAMES: &[&str] = &[
    "data.json",
    "/data.json",
    "./data.json",
    "a/data.json",
    "/a/data.json",
    "a/b/data.json",
    "a/b/c/data.json",
    "a//b/data.json",
    "a/./data.json",
    "b/data.json",
    "a b/data.json",
    ".a/data.json",
    "..a/data.json",
    "A/data.json",
    "data.yaml",
    "a/data.yaml",
    "a/data.yml",
    "a/b/data.yaml",
    "b/data.yml",
    "a/Data.json",
    "a/data.json.bak",
    "a/other.yaml",
    "a/._data.json",
    "a/data.JSON",
    "a%20b/data.json",
];

const DATA: &[&str] = &[
    "{}",
    "{}",
    "null",
    "1",
    "\"x\"",
    "[]",
    "[1,{\"a\":1}]",
    r#"{"a":1}"#,
    r#"{"a":{}}"#,
    r#"{"a":{"b":1}}"#,
    r#"{"a":{"b":{}}}"#,
    r#"{"a":{"b":{"c":true}}}"#,
    r#"{"a":{"c":{"d":{}}}}"#,
    r#"{"b":{"c":[]}}"#,
    r#"{"a/b":1}"#,
    r#"{"":{"a":1}}"#,
    r#"{"a":{"":1}}"#,
    r#"{"a":1,"a":{"b":2}}"#,
    r#"{"a":{"x":1},"a":{"b":1}}"#,
    r#"{"c":"\ud83d"}"#,
    r#"{"\ud800":1}"#,
    r#"{"n":1e400}"#,
    r#"{"n":12345678901234567890123}"#,
    "{} {}",
    "{} null",
    "{} nullx",
    "{},",
    "",
    " ",
    "{",
    "{\"a\":01}",
    "{\"a\":.5}",
    "{'a':1}",
    "{\"a\":1,}",
    "[1 2]",
    "tru",
    "NaN",
    "\u{feff}{}",
    "{\"a\":\"\t\"}",
    "{\"a\":\"\u{7f}\"}",
    "\u{b}{}",
    "{\"a\":1}\n\n",
    "a: 1",
    "a: {b: 1}",
    "a: &x [1]\nb: *x",
    "- 1",
    "a: 1\na: 2",
    "? a\n: b",
    "a: [",
    "a:\n\t- b",
    "%YAML 1.2\n---\na: 1",
    "a: 1\n---\nb: 2",
    "b: !!binary aGk=",
    "a: !!int x",
    "<<: {a: 1}",
    "1: x\n\"1\": y",
    "a: .nan",
    "a: 0o17",
    "a: 2020-01-01",
    "~",
    "# nothing",
    "--- \n...\n",
    "\"a\": \"\\ud800\"",
    "a: \u{85}b",
];

const MODULES: &[&str] = &[
    "package a\n",
    "package a\n\nallow := true\n",
    "package a.b\n",
    "package b\n",
    "package a[\"b/c\"]\n",
    "package a[\"b\"].c\n",
    "package x\n",
    "\u{feff}package a\n",
    "# comment\npackage a # behind\n",
    "package\ta\n",
    "package a.b.c\n\nx := 1\n",
    "",
    "\n",
    "# only a comment\n",
    "x := 1\n",
    "import data.a\n",
    "\u{0}\u{5}\u{16}\u{7}",
    "package a;x := 1\n",
    "package A\n",
    "package a # {\"roots\": []}\r\n",
    "package system.x\n",
];

const MODULE_NAMES: &[&str] = &[
    "a/p.rego",
    "/a/p.rego",
    "p.rego",
    "a/q.rego",
    "./b/p.rego",
    "a/p_test.rego",
    "a/._p.rego",
    "a/p.rego.txt",
    ".rego",
];

const OTHER_NAMES: &[&str] = &[
    "policy.wasm",
    "/policy.wasm",
    "a/policy.wasm",
    "plan.json",
    "README.md",
    ".signatures.json",
    "a/patch.json.x",
];

/// A bundle, and what is in it.
fn generated(random: &mut Rng) -> (Vec<u8>, Vec<(String, String)>) {
    let mut files: Vec<(String, String)> = Vec::new();
    for _ in 0..*pick(random, &[0, 1, 1, 2, 3]) {
        files.push((
            pick(random, DATA_NAMES).to_string(),
            pick(random, DATA).to_string(),
        ));
    }
    for _ in 0..*pick(random, &[0, 1, 1, 2]) {
        files.push((
            pick(random, MODULE_NAMES).to_string(),
            pick(random, MODULES).to_string(),
        ));
    }
    for _ in 0..*pick(random, &[0, 1, 1, 1, 1, 2]) {
        let manifest = if random.u8(..3) == 0 {
            pick(random, MANIFESTS).to_string()
        } else {
            let roots: Vec<_> = (0..*pick(random, &[1, 1, 2, 3]))
                .map(|_| *pick(random, ROOTS))
                .collect();
            json!({ "roots": roots, "rego_version": 1 }).to_string()
        };
        files.push((pick(random, MANIFEST_NAMES).to_string(), manifest));
    }
    if random.u8(..4) == 0 {
        files.push((pick(random, OTHER_NAMES).to_string(), "x".to_owned()));
    }
    random.shuffle(&mut files);
    let mut tarball = packed(&files, random);
    if random.u8(..8) == 0 {
        tarball.extend(*pick(random, &[&b"\n"[..], &[0; 40], b"garbage"]));
    }
    (tarball, files)
}

pub(crate) fn pick<'a, T>(random: &mut Rng, from: &'a [T]) -> &'a T {
    &from[random.usize(..from.len())]
}

/// Packed in one of the ways that tools pack in.
fn packed(files: &[(String, String)], random: &mut Rng) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = if random.bool() {
            tar::Header::new_gnu()
        } else {
            tar::Header::new_ustar()
        };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::new(*pick(random, b"0000000\x007")));
        header.set_cksum();
        archive.extend(header.as_bytes());
        archive.extend(content.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(
        archive.len() + *pick(random, &[1024, 1024, 1024, 512, 0, 10_240]),
        0,
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    gzip.finish().unwrap()
}
