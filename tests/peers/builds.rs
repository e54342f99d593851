//! Bundles that an author builds, loaded by the real OPA; and artifacts of other tools, as bundles.

use serde_json::json;

use crate::support::{Author, Kind, Opa, OpaVersion, Registry, program, run};

const POLICY: &[(&str, &str)] = &[
    ("policy/.manifest", r#"{ "roots": ["authz", "users"] }"#),
    (
        "policy/authz.rego",
        "package authz\n\n# METADATA\n# entrypoint: true\nallow if data.users[input.user].admin\n",
    ),
    (
        "policy/authz_test.rego",
        "package authz_test\n\ntest_x if true\n",
    ),
    ("policy/users/data.yaml", "ann: { admin: true }\n"),
];
const BOTH: [OpaVersion; 2] = [OpaVersion::Newest, OpaVersion::V0_70];

#[tokio::test]
async fn opa_old_and_new_loads_what_is_built_and_decides() {
    let author = Author::with(POLICY);
    let built = author
        .json("bundlegate build policy -t r.example/acme/authz:v1 --test")
        .await;
    author.line("bundlegate save r.example/acme/authz:v1").await;
    for version in BOTH {
        let opa = version.program();
        // Rego v1 without an import: the manifest tells OPA 0.70 how to read it.
        assert_eq!(
            author
                .decides(opa, "data.authz.allow", r#"{"user": "ann"}"#)
                .await,
            true,
            "{opa}"
        );
        assert_eq!(
            author
                .decides(opa, "data.authz", r#"{"user": "bob"}"#)
                .await,
            json!({}),
            "{opa}"
        );
        let command = format!(
            "opa run --server --bundle {}",
            author.path("bundle.tar.gz").display()
        );
        let opa = Opa::by_command(version, &command).await;
        opa.decides("users/ann/admin", &json!(true)).await;
        assert_eq!(
            opa.decision("authz_test").await,
            None,
            "tests are no policy"
        );
    }
    let seen = author
        .peer("opa", &["inspect", "bundle.tar.gz", "--format", "json"])
        .await
        .json();
    assert_eq!(
        (
            &seen["manifest"]["revision"],
            &seen["manifest"]["rego_version"]
        ),
        (&built["revision"], &json!(1))
    );
}

#[tokio::test]
async fn old_rego_is_built_on_request_for_new_opas() {
    let author = Author::with(&[("policy/p.rego", "package p\n\nallow { input.x == 1 }\n")]);
    author
        .line("bundlegate build policy -t r.example/p:v1 --v0-compatible")
        .await;
    author.line("bundlegate save r.example/p:v1").await;
    for version in BOTH {
        assert_eq!(
            author
                .decides(version.program(), "data.p.allow", r#"{"x": 1}"#)
                .await,
            true,
            "{version:?}"
        );
    }
}

/// What only OPA's compiler finds, such as a variable that nothing gives a value to, is not
/// among these: it is for `--opa`.
#[tokio::test]
async fn what_opa_refuses_at_load_is_refused_and_what_it_takes_is_taken() {
    let mut disagreements = Vec::new();
    for (case, files) in CASES {
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (format!("policy/{name}"), *content))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (name.as_str(), *content))
            .collect();
        let author = Author::with(&files);
        // OPA reads the same folder, and must read what comes out of it.
        let theirs = author
            .peer(
                "opa",
                &["build", "--bundle", "policy", "--output", "opa.tar.gz"],
            )
            .await;
        let ours = author
            .run(&["build", "policy", "-t", "r.example/a:v1"])
            .await;
        if (theirs.code == Some(0)) != (ours.code == Some(0)) {
            let (theirs, ours) = (theirs.stdout + &theirs.stderr, &ours.stderr);
            disagreements.push(format!("{case}:\n  opa: {theirs}\n  bundlegate: {ours}"));
        }
        if ours.code == Some(0) {
            author.line("bundlegate save r.example/a:v1").await;
            let loaded = author
                .peer("opa", &["eval", "--bundle", "bundle.tar.gz", "data"])
                .await;
            assert_eq!(loaded.code, Some(0), "{case}: {loaded:?}");
        }
    }
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    println!(
        "{} folders: the same verdict by opa build and by bundlegate build",
        CASES.len()
    );
}

const CASES: &[(&str, &[(&str, &str)])] = &[
    (
        "plain",
        &[
            ("p.rego", "package p\n\nx := 1\n"),
            ("data.json", r#"{"a": 1}"#),
        ],
    ),
    ("syntax error", &[("p.rego", "package p\n\nx if {\n")]),
    (
        "a function of another file",
        &[
            ("p.rego", "package p\n\nx := data.q.f(1)\n"),
            ("q.rego", "package q\n\nf(x) := x\n"),
        ],
    ),
    (
        "cryptography",
        &[("p.rego", "package p\n\nx := crypto.sha256(input.y)\n")],
    ),
    (
        "a rule over a loop",
        &[(
            "p.rego",
            "package p\n\nx contains y if some y, _ in data.z\n\nw[k] := v if {\n\tsome k, v in input\n\tevery i in v { i > 0 }\n}\n",
        )],
    ),
    ("old syntax", &[("p.rego", "package p\n\nx { true }\n")]),
    (
        "old syntax, so stated",
        &[
            ("p.rego", "package p\n\nx { true }\n"),
            (".manifest", r#"{"rego_version": 0}"#),
        ],
    ),
    (
        "old syntax in one file",
        &[
            ("old/p.rego", "package p\n\nx { true }\n"),
            ("q.rego", "package q\n\ny if true\n"),
            (
                ".manifest",
                r#"{"rego_version": 1, "file_rego_versions": {"/old/*.rego": 0}}"#,
            ),
        ],
    ),
    (
        "overlapping roots",
        &[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"roots": ["a", "a/b"]}"#),
        ],
    ),
    (
        "equal roots",
        &[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"roots": ["a", "a"]}"#),
        ],
    ),
    (
        "roots with slashes",
        &[
            ("p.rego", "package a.b\n"),
            (".manifest", r#"{"roots": ["/a/b/"]}"#),
        ],
    ),
    (
        "no roots",
        &[("p.rego", "package a\n"), (".manifest", r#"{"roots": []}"#)],
    ),
    (
        "similar roots",
        &[
            ("p.rego", "package ab\n"),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    (
        "package outside",
        &[
            ("p.rego", "package b\n"),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    (
        "package above the root",
        &[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"roots": ["a/b"]}"#),
        ],
    ),
    (
        "package below the root",
        &[
            ("p.rego", "package a.b.c\n"),
            (".manifest", r#"{"roots": ["a/b"]}"#),
        ],
    ),
    (
        "data outside",
        &[
            ("b/data.json", r#"{"x": 1}"#),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    (
        "YAML outside",
        &[
            ("b/data.yaml", "x: 1\n"),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    (
        "data inside by its keys",
        &[
            ("data.json", r#"{"a": {"b": 1}}"#),
            (".manifest", r#"{"roots": ["a/b"]}"#),
        ],
    ),
    (
        "data beside the root",
        &[
            ("data.json", r#"{"a": {"b": 1, "c": 2}}"#),
            (".manifest", r#"{"roots": ["a/b"]}"#),
        ],
    ),
    (
        "an empty object outside",
        &[
            ("data.json", r#"{"x": {}}"#),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    (
        "an empty object above",
        &[
            ("data.json", r#"{"a": {}}"#),
            (".manifest", r#"{"roots": ["a/b"]}"#),
        ],
    ),
    (
        "nothing outside",
        &[
            ("data.json", "{}"),
            ("p.rego", "package a\n"),
            (".manifest", r#"{"roots": ["a"]}"#),
        ],
    ),
    ("a list at the root", &[("data.json", "[1]")]),
    ("a list below the root", &[("a/data.json", "[1]")]),
    (
        "data that collides",
        &[
            ("data.json", r#"{"a": {"b": 1}}"#),
            ("a/data.json", r#"{"b": 1}"#),
        ],
    ),
    (
        "data that melts",
        &[
            ("data.json", r#"{"a": {"b": 1}}"#),
            ("a/data.json", r#"{"c": 1}"#),
        ],
    ),
    (
        "JSON and YAML that collide",
        &[("a/data.json", r#"{"b": 1}"#), ("a/data.yaml", "b: 2\n")],
    ),
    (
        "JSON and YAML that melt",
        &[("a/data.json", r#"{"b": 1}"#), ("a/data.yaml", "c: 2\n")],
    ),
    (
        "a value above data",
        &[
            ("data.json", r#"{"a": 1}"#),
            ("a/b/data.json", r#"{"c": 1}"#),
        ],
    ),
    ("broken JSON", &[("data.json", r#"{"a": "#)]),
    ("JSON with a tail", &[("data.json", "{} {}")]),
    ("broken YAML", &[("data.yaml", "a: [\n")]),
    (
        "broken manifest",
        &[("p.rego", "package a\n"), (".manifest", "{")],
    ),
    (
        "a list for a manifest",
        &[("p.rego", "package a\n"), (".manifest", "[]")],
    ),
    (
        "an unknown member",
        &[("p.rego", "package a\n"), (".manifest", r#"{"x": 1}"#)],
    ),
    (
        "metadata",
        &[
            ("p.rego", "package a\n"),
            (".manifest", r#"{"metadata": {"team": "red"}}"#),
        ],
    ),
    (
        "no such module",
        &[
            ("p.rego", "package a\n"),
            (
                ".manifest",
                r#"{"wasm": [{"entrypoint": "a/x", "module": "/policy.wasm"}]}"#,
            ),
        ],
    ),
    (
        "deep packages",
        &[
            ("p.rego", "package a[\"b.c\"]\n"),
            (".manifest", r#"{"roots": ["a/b.c"]}"#),
        ],
    ),
];

#[tokio::test]
async fn a_real_opa_compiles_where_it_is_asked_to() {
    let author = Author::with(POLICY);
    let opa = program("opa").display().to_string();
    for (target, file) in [("wasm", "policy.wasm"), ("plan", "plan.json")] {
        let line = format!(
            "bundlegate build policy -t r.example/a:{target} --opa={opa} -e authz/allow --target {target}"
        );
        let built = author.json(&line).await;
        assert_eq!(
            author.json(&line).await["digest"],
            built["digest"],
            "{target}: compiled twice, it is the same"
        );
        let seen = author
            .json(&format!("bundlegate inspect r.example/a:{target}"))
            .await;
        assert!(
            seen["files"]
                .as_array()
                .unwrap()
                .iter()
                .any(|held| held["path"] == *file),
            "{seen}"
        );
        assert_eq!(seen["manifest"]["roots"], json!(["authz", "users"]));
        assert!(!built["revision"].as_str().unwrap().is_empty());
    }
    // OPA looks for the module by its name in the tarball, to the letter, before it asks for
    // an engine, which not every opa has.
    author.line("bundlegate save r.example/a:wasm").await;
    let loaded = author
        .shell("opa eval --bundle bundle.tar.gz data.authz.allow")
        .await;
    let said = loaded.stdout + &loaded.stderr;
    assert!(!said.contains("loading error"), "{said}");
    let seen = author.json("bundlegate inspect r.example/a:wasm").await;
    assert_eq!(seen["entrypoints"], json!(["authz/allow"]));
    author
        .line(&format!(
            "bundlegate build policy -t r.example/a:o -r r7 --opa={opa} -O 1 -e authz/allow"
        ))
        .await;
    author.line("bundlegate save r.example/a:o").await;
    assert_eq!(
        author
            .decides("opa", "data.authz.allow", r#"{"user": "ann"}"#)
            .await,
        true
    );
    // A policy whose language the built-in parser does not know yet is built, and one that no parser
    // accepts is not.
    let newer = Author::with(&[(
        "policy/p.rego",
        "package p\n\nimport rego.v2\n\nallow if input.x or input.y\n",
    )]);
    newer
        .line(&format!(
            "bundlegate build policy -t r.example/a:v1 --opa={opa}"
        ))
        .await;
    newer.write("policy/p.rego", "package p\n\nallow if {\n");
    newer
        .shell(&format!(
            "bundlegate build policy -t r.example/a:v1 --opa={opa}"
        ))
        .await
        .refused("p.rego:");
}

/// A registry, and an author with a packed bundle of the policy.
async fn packed_policy() -> (Registry, Author, Vec<u8>) {
    let registry = Registry::start(Kind::Debian).await;
    let author = Author::with(POLICY);
    author
        .line("bundlegate build policy -t r.example/acme/authz:v1")
        .await;
    author.line("bundlegate save r.example/acme/authz:v1").await;
    let original = author.bytes("bundle.tar.gz");
    (registry, author, original)
}

async fn allows_ann(author: &Author) {
    let decided = author.decides("opa", "data.authz.allow", r#"{"user": "ann"}"#);
    assert_eq!(decided.await, true);
}

#[tokio::test]
async fn what_oras_pushes_is_pulled_and_saved_as_a_bundle() {
    let (registry, author, original) = packed_policy().await;
    let reference = |name: &str| registry.reference(&format!("acme/{name}:v1"));
    let (typed, untyped, packed) = (
        reference("typed"),
        reference("untyped"),
        reference("folder"),
    );
    author.write("config.json", "{}");
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let config = "config.json:application/vnd.oci.image.config.v1+json";
    let (typed_bundle, folder) = (format!("bundle.tar.gz:{gzip}"), format!("policy/:{gzip}"));
    for pushed in [
        &[&typed, "--config", config, &typed_bundle][..],
        &[&untyped, "bundle.tar.gz"],
        &[&packed, &folder],
    ] {
        let arguments = [&["push", "--plain-http"], pushed].concat();
        run("oras", author.home(), &arguments).await;
    }
    for reference in [&typed, &untyped] {
        author
            .line(&format!("bundlegate pull --plain-http {reference}"))
            .await;
        author
            .line(&format!("bundlegate save {reference} -f out.tar.gz"))
            .await;
        assert_eq!(author.bytes("out.tar.gz"), original, "{reference}");
    }
    author
        .line(&format!("bundlegate pull --plain-http {packed}"))
        .await;
    author.line(&format!("bundlegate save {packed}")).await;
    allows_ann(&author).await;
    let files = author.json(&format!("bundlegate inspect {packed}")).await["files"].clone();
    let mut files_of_bundle = files.as_array().unwrap().iter();
    assert!(
        files_of_bundle.any(|file| file["path"] == "authz.rego"),
        "{files}"
    );
}

#[tokio::test]
async fn what_conftest_pushes_is_pulled_and_saved_as_a_bundle() {
    let (registry, author, original) = packed_policy().await;
    let single = registry.reference("acme/conftest:v1");
    let pushed = ["--policy", "policy", "--data", "policy/users"];
    let arguments = [&["push", &single], &pushed[..]].concat();
    run("conftest", author.home(), &arguments).await;
    // conftest's data.yaml is below users, and its policies are below policy.
    author
        .line(&format!("bundlegate pull --plain-http {single}"))
        .await;
    let save = format!("bundlegate save {single} --data-root policy");
    author.line(&save).await;
    let once = author.bytes("bundle.tar.gz");
    allows_ann(&author).await;
    author.line(&save).await;
    assert_eq!(author.bytes("bundle.tar.gz"), once);
    println!(
        "conftest's {} bytes, oras's folder and both bundles of {} bytes: saved",
        once.len(),
        original.len()
    );
}
