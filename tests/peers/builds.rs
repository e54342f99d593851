//! What an author builds, before the real OPA; and what other tools push, as a bundle.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Kind, Opa, OpaVersion, Registry, program, run};

/// A folder of policies, an image store, and both programs.
struct Bench(TempDir);

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let bench = Self(TempDir::new().unwrap());
        for (name, content) in files {
            let file = bench.path(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn call(&self, program: &Path, line: &str) -> Output {
        let mut command = Command::new(program);
        command.args(line.split(' ')).current_dir(self.0.path()).env("HOME", self.0.path());
        command.env("BUNDLEGATE_STORE", "store").env_remove("BUNDLEGATE_REGISTRY").output().unwrap()
    }

    /// bundlegate does it, and says this.
    #[track_caller]
    fn ours(&self, line: &str) -> String {
        let ran = self.call(Path::new(env!("CARGO_BIN_EXE_bundlegate")), line);
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ours(&format!("{line} --json"))).unwrap()
    }

    /// What `opa eval` makes of the saved bundle.
    fn decides(&self, version: OpaVersion, query: &str, input: &str) -> Value {
        fs::write(self.path("input.json"), input).unwrap();
        let line = format!("eval --bundle bundle.tar.gz --input input.json --format json {query}");
        let ran = self.call(&program(version.program()), &line);
        assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
        let answer: Value = serde_json::from_slice(&ran.stdout).unwrap();
        answer["result"][0]["expressions"][0]["value"].clone()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const POLICY: &[(&str, &str)] = &[
    ("policy/.manifest", r#"{ "roots": ["authz", "users"] }"#),
    ("policy/authz.rego", "package authz\n\n# METADATA\n# entrypoint: true\nallow if data.users[input.user].admin\n"),
    ("policy/authz_test.rego", "package authz_test\n\ntest_x if true\n"),
    ("policy/users/data.yaml", "ann: { admin: true }\n"),
];
const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];

#[tokio::test]
async fn opa_old_and_new_loads_what_is_built_and_decides() {
    let bench = Bench::new(POLICY);
    let built = bench.json("build policy -t r.example/acme/authz:v1 --test");
    bench.ours("save r.example/acme/authz:v1");
    for version in BOTH {
        // Rego v1 without an import: the manifest tells OPA 0.70 how to read it.
        assert_eq!(bench.decides(version, "data.authz.allow", r#"{"user": "ann"}"#), true, "{version:?}");
        assert_eq!(bench.decides(version, "data.authz", r#"{"user": "bob"}"#), json!({}), "{version:?}");
        let command = format!("opa run --server --bundle {}", bench.path("bundle.tar.gz").display());
        let opa = Opa::by_command(version, &command).await;
        opa.decides("users/ann/admin", &json!(true)).await;
        assert_eq!(opa.decision("authz_test").await, None, "tests are no policy");
    }
    let seen = bench.call(&program("opa"), "inspect bundle.tar.gz --format json");
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!((&seen["manifest"]["revision"], &seen["manifest"]["rego_version"]), (&built["revision"], &json!(1)));
}

#[tokio::test]
async fn old_rego_is_built_on_request_for_new_opas() {
    let bench = Bench::new(&[("policy/p.rego", "package p\n\nallow { input.x == 1 }\n")]);
    bench.ours("build policy -t r.example/p:v1 --v0-compatible");
    bench.ours("save r.example/p:v1");
    for version in BOTH {
        assert_eq!(bench.decides(version, "data.p.allow", r#"{"x": 1}"#), true, "{version:?}");
    }
}

/// What only OPA's compiler finds, such as a variable that nothing gives a value to, is not
/// among these: it is for `--opa`.
#[test]
fn what_opa_refuses_at_load_is_refused_and_what_it_takes_is_taken() {
    let mut disagreements = Vec::new();
    for (case, files) in CASES {
        let files: Vec<_> = files.iter().map(|(name, content)| (format!("policy/{name}"), *content)).collect();
        let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), *content)).collect();
        let bench = Bench::new(&files);
        // OPA reads the same folder, and must read what comes out of it.
        let theirs = bench.call(&program("opa"), "build --bundle policy --output opa.tar.gz");
        let ours = bench.call(Path::new(env!("CARGO_BIN_EXE_bundlegate")), "build policy -t r.example/a:v1");
        if theirs.status.success() != ours.status.success() {
            let (theirs, ours) = (text(&theirs.stdout) + &text(&theirs.stderr), text(&ours.stderr));
            disagreements.push(format!("{case}:\n  opa: {theirs}\n  bundlegate: {ours}"));
        }
        if ours.status.success() {
            bench.ours("save r.example/a:v1");
            let loaded = bench.call(&program("opa"), "eval --bundle bundle.tar.gz data");
            assert!(loaded.status.success(), "{case}: {}", text(&loaded.stdout));
        }
    }
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    println!("{} folders: the same verdict by opa build and by bundlegate build", CASES.len());
}

const CASES: &[(&str, &[(&str, &str)])] = &[
    ("plain", &[("p.rego", "package p\n\nx := 1\n"), ("data.json", r#"{"a": 1}"#)]),
    ("syntax error", &[("p.rego", "package p\n\nx if {\n")]),
    (
        "a function of another file",
        &[("p.rego", "package p\n\nx := data.q.f(1)\n"), ("q.rego", "package q\n\nf(x) := x\n")],
    ),
    ("cryptography", &[("p.rego", "package p\n\nx := crypto.sha256(input.y)\n")]),
    (
        "a rule over a loop",
        &[(
            "p.rego",
            "package p\n\nx contains y if some y, _ in data.z\n\nw[k] := v if {\n\tsome k, v in input\n\tevery i in v { i > 0 }\n}\n",
        )],
    ),
    ("old syntax", &[("p.rego", "package p\n\nx { true }\n")]),
    ("old syntax, so stated", &[("p.rego", "package p\n\nx { true }\n"), (".manifest", r#"{"rego_version": 0}"#)]),
    (
        "old syntax in one file",
        &[
            ("old/p.rego", "package p\n\nx { true }\n"),
            ("q.rego", "package q\n\ny if true\n"),
            (".manifest", r#"{"rego_version": 1, "file_rego_versions": {"/old/*.rego": 0}}"#),
        ],
    ),
    ("overlapping roots", &[("p.rego", "package a\n"), (".manifest", r#"{"roots": ["a", "a/b"]}"#)]),
    ("equal roots", &[("p.rego", "package a\n"), (".manifest", r#"{"roots": ["a", "a"]}"#)]),
    ("roots with slashes", &[("p.rego", "package a.b\n"), (".manifest", r#"{"roots": ["/a/b/"]}"#)]),
    ("no roots", &[("p.rego", "package a\n"), (".manifest", r#"{"roots": []}"#)]),
    ("similar roots", &[("p.rego", "package ab\n"), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("package outside", &[("p.rego", "package b\n"), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("package above the root", &[("p.rego", "package a\n"), (".manifest", r#"{"roots": ["a/b"]}"#)]),
    ("package below the root", &[("p.rego", "package a.b.c\n"), (".manifest", r#"{"roots": ["a/b"]}"#)]),
    ("data outside", &[("b/data.json", r#"{"x": 1}"#), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("YAML outside", &[("b/data.yaml", "x: 1\n"), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("data inside by its keys", &[("data.json", r#"{"a": {"b": 1}}"#), (".manifest", r#"{"roots": ["a/b"]}"#)]),
    ("data beside the root", &[("data.json", r#"{"a": {"b": 1, "c": 2}}"#), (".manifest", r#"{"roots": ["a/b"]}"#)]),
    ("an empty object outside", &[("data.json", r#"{"x": {}}"#), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("an empty object above", &[("data.json", r#"{"a": {}}"#), (".manifest", r#"{"roots": ["a/b"]}"#)]),
    ("nothing outside", &[("data.json", "{}"), ("p.rego", "package a\n"), (".manifest", r#"{"roots": ["a"]}"#)]),
    ("a list at the root", &[("data.json", "[1]")]),
    ("a list below the root", &[("a/data.json", "[1]")]),
    ("data that collides", &[("data.json", r#"{"a": {"b": 1}}"#), ("a/data.json", r#"{"b": 1}"#)]),
    ("data that melts", &[("data.json", r#"{"a": {"b": 1}}"#), ("a/data.json", r#"{"c": 1}"#)]),
    ("JSON and YAML that collide", &[("a/data.json", r#"{"b": 1}"#), ("a/data.yaml", "b: 2\n")]),
    ("JSON and YAML that melt", &[("a/data.json", r#"{"b": 1}"#), ("a/data.yaml", "c: 2\n")]),
    ("a value above data", &[("data.json", r#"{"a": 1}"#), ("a/b/data.json", r#"{"c": 1}"#)]),
    ("broken JSON", &[("data.json", r#"{"a": "#)]),
    ("JSON with a tail", &[("data.json", "{} {}")]),
    ("broken YAML", &[("data.yaml", "a: [\n")]),
    ("broken manifest", &[("p.rego", "package a\n"), (".manifest", "{")]),
    ("a list for a manifest", &[("p.rego", "package a\n"), (".manifest", "[]")]),
    ("an unknown member", &[("p.rego", "package a\n"), (".manifest", r#"{"x": 1}"#)]),
    ("metadata", &[("p.rego", "package a\n"), (".manifest", r#"{"metadata": {"team": "red"}}"#)]),
    (
        "no such module",
        &[("p.rego", "package a\n"), (".manifest", r#"{"wasm": [{"entrypoint": "a/x", "module": "/policy.wasm"}]}"#)],
    ),
    ("deep packages", &[("p.rego", "package a[\"b.c\"]\n"), (".manifest", r#"{"roots": ["a/b.c"]}"#)]),
];

#[test]
fn a_real_opa_compiles_where_it_is_asked_to() {
    let bench = Bench::new(POLICY);
    let opa = program("opa").display().to_string();
    for (target, file) in [("wasm", "policy.wasm"), ("plan", "plan.json")] {
        let line = format!("build policy -t r.example/a:{target} --opa={opa} -e authz/allow --target {target}");
        let built = bench.json(&line);
        assert_eq!(bench.json(&line)["digest"], built["digest"], "{target}: compiled twice, it is the same");
        let seen = bench.json(&format!("inspect r.example/a:{target}"));
        assert!(seen["files"].as_array().unwrap().iter().any(|held| held["path"] == *file), "{seen}");
        assert_eq!(seen["manifest"]["roots"], json!(["authz", "users"]));
        assert!(!built["revision"].as_str().unwrap().is_empty());
    }
    let seen = bench.json("inspect r.example/a:wasm");
    assert_eq!(seen["entrypoints"], json!(["authz/allow"]));
    bench.ours(&format!("build policy -t r.example/a:o -r r7 --opa={opa} -O 1 -e authz/allow"));
    bench.ours("save r.example/a:o");
    assert_eq!(bench.decides(OpaVersion::Newest, "data.authz.allow", r#"{"user": "ann"}"#), true);
    // What the built-in parser does not know yet, and what nobody knows.
    let newer = Bench::new(&[("policy/p.rego", "package p\n\nimport rego.v2\n\nallow if input.x or input.y\n")]);
    newer.ours(&format!("build policy -t r.example/a:v1 --opa={opa}"));
    fs::write(newer.path("policy/p.rego"), "package p\n\nallow if {\n").unwrap();
    let refused =
        newer.call(Path::new(env!("CARGO_BIN_EXE_bundlegate")), &format!("build policy -t r.example/a:v1 --opa={opa}"));
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.lines().count() == 1 && said.contains("p.rego:"), "{said}");
}

#[tokio::test]
async fn what_oras_and_conftest_push_is_pulled_and_saved_as_a_bundle() {
    let registry = Registry::start(Kind::Debian).await;
    let bench = Bench::new(POLICY);
    bench.ours("build policy -t r.example/acme/authz:v1");
    bench.ours("save r.example/acme/authz:v1");
    let original = fs::read(bench.path("bundle.tar.gz")).unwrap();
    let host = &registry.host;
    let folder = bench.0.path();
    fs::write(bench.path("config.json"), "{}").unwrap();
    let (typed, untyped) = (format!("{host}/acme/typed:v1"), format!("{host}/acme/untyped:v1"));
    let (packed, single) = (format!("{host}/acme/folder:v1"), format!("{host}/acme/conftest:v1"));
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let config = "config.json:application/vnd.oci.image.config.v1+json";
    let typed_bundle = format!("bundle.tar.gz:{gzip}");
    run("oras", folder, &["push", "--plain-http", &typed, "--config", config, &typed_bundle]).await;
    run("oras", folder, &["push", "--plain-http", &untyped, "bundle.tar.gz"]).await;
    run("oras", folder, &["push", "--plain-http", &packed, &format!("policy/:{gzip}")]).await;
    run("conftest", folder, &["push", &single, "--policy", "policy", "--data", "policy/users"]).await;
    for reference in [&typed, &untyped] {
        bench.ours(&format!("pull --plain-http {reference}"));
        bench.ours(&format!("save {reference} -f out.tar.gz"));
        assert_eq!(fs::read(bench.path("out.tar.gz")).unwrap(), original, "{reference}");
    }
    bench.ours(&format!("pull --plain-http {packed}"));
    bench.ours(&format!("save {packed}"));
    assert_eq!(bench.decides(OpaVersion::Newest, "data.authz.allow", r#"{"user": "ann"}"#), true);
    let files = bench.json(&format!("inspect {packed}"))["files"].clone();
    assert!(files.as_array().unwrap().iter().any(|file| file["path"] == "authz.rego"), "{files}");

    // conftest's data.yaml lies below users, and its policies below policy.
    bench.ours(&format!("pull --plain-http {single}"));
    bench.ours(&format!("save {single} --data-root policy"));
    let once = fs::read(bench.path("bundle.tar.gz")).unwrap();
    assert_eq!(bench.decides(OpaVersion::Newest, "data.authz.allow", r#"{"user": "ann"}"#), true);
    bench.ours(&format!("save {single} --data-root policy"));
    assert_eq!(fs::read(bench.path("bundle.tar.gz")).unwrap(), once);
    println!("conftest's {} bytes, oras's folder and both bundles of {} bytes: saved", once.len(), original.len());
}
