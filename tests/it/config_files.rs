//! The configurations in `config/`, and the commands for configurations: `config check` with its
//! sources and outputs, `config schema`, and `serve` without `--config`.

use std::{fs, path::Path};

use bundlegate::config;
use serde_json::{Value, json};

use crate::command::Author;

const SAMPLES: [&str; 3] = ["minimal.yaml", "production.yaml", "bundlegate.yaml"];
const LEAST: &str = "version: 1\nclients: [{ name: anyone, anonymous: true, bundles: ['**'] }]\n";

fn config(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    folder.join(name).to_str().unwrap().to_owned()
}

/// Their secrets are not published, so a check without them lists those, and nothing else.
#[test]
fn the_samples_are_accepted_as_they_stand() {
    let author = Author::new();
    author
        .run(&["config", "check", &config("minimal.yaml")])
        .ok();
    for (sample, secrets) in SAMPLES.into_iter().zip([0, 6, 8]) {
        let file = config(sample);
        let ran = author.run(&["config", "check", "--no-environment", &file]);
        assert_eq!(ran.code, 0, "{sample}: {ran:?}");
        let missing: Vec<_> = ran.stderr.lines().collect();
        assert_eq!(missing.len(), secrets, "{sample}: {missing:#?}");
        let start = format!("bundlegate: {file}: {}", config("secrets/"));
        for line in missing {
            assert!(
                line.starts_with(&start) && line.ends_with("does not exist here"),
                "{line}"
            );
        }
        let expected = match secrets {
            0 => format!("{file}: ok\n"),
            count => format!(
                "{file}: ok, but for {count} files that it names and that can't be checked here\n"
            ),
        };
        assert_eq!(ran.stdout, expected);
    }
}

/// With secrets, as an operator creates them, nothing is left out.
#[test]
fn the_samples_are_accepted_where_their_secrets_are() {
    let author = Author::new();
    for sample in SAMPLES {
        author.write(sample, &fs::read_to_string(config(sample)).unwrap());
    }
    for file in fs::read_dir(config("trust")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        author.write(
            &format!("trust/{name}"),
            &fs::read_to_string(&path).unwrap(),
        );
    }
    let pair = rcgen::generate_simple_self_signed(["gate.example".into()]).unwrap();
    let hash = bcrypt::hash_with_salt("a password", 4, [7; 16]).unwrap();
    for (name, content) in [
        ("tls.crt", pair.cert.pem()),
        ("tls.key", pair.signing_key.serialize_pem()),
        ("admin.tokens", "a-token-of-operators\n".to_owned()),
        ("edge.tokens", "a-token-of-edge\n".to_owned()),
        ("branch.tokens", "a-token-of-branch\n".to_owned()),
        ("branch.users", format!("branch:{hash}\n")),
        ("ghcr.password", "a password\n".to_owned()),
        ("robot.basic", "robot:a password\n".to_owned()),
        ("github.secret", "a secret\n".to_owned()),
    ] {
        author.write(&format!("secrets/{name}"), &content);
    }
    for (sample, summary) in
        SAMPLES
            .into_iter()
            .zip(["ok, 1 bundle", "ok, 2 bundles", "ok, 4 bundles, 1 pattern"])
    {
        let ran = author.run(&["config", "check", sample]);
        assert_eq!(ran.stderr, "");
        assert_eq!(ran.ok(), format!("{sample}: {summary}\n"));
    }
}

#[test]
fn the_first_line_of_a_sample_names_the_schema_for_editors() {
    for sample in SAMPLES {
        let text = fs::read_to_string(config(sample)).unwrap();
        let mut lines = text.lines();
        let hint = "# yaml-language-server: $schema=bundlegate.schema.json";
        assert_eq!(lines.next(), Some(hint), "{sample}");
        let command = "`bundlegate config schema > bundlegate.schema.json`";
        assert!(
            lines.next().is_some_and(|line| line.contains(command)),
            "{sample}"
        );
    }
}

#[test]
fn the_schema_is_one_json_document_that_the_samples_satisfy() {
    let printed = Author::new().run(&["config", "schema"]).json();
    assert_eq!(printed, config::schema());
    assert_eq!(
        printed["$schema"],
        "http://json-schema.org/draft-07/schema#"
    );
    let (mut compiler, mut schemas) = (boon::Compiler::new(), boon::Schemas::new());
    compiler.add_resource("urn:schema", printed).unwrap();
    let index = compiler.compile("urn:schema", &mut schemas).unwrap();
    for sample in SAMPLES {
        let value: Value =
            serde_saphyr::from_str(&fs::read_to_string(config(sample)).unwrap()).unwrap();
        let valid = schemas
            .validate(&value, index)
            .map_err(|error| format!("{error:#}"));
        assert_eq!(valid, Ok(()), "{sample}");
    }
}

#[test]
fn a_configuration_from_standard_input_is_relative_to_the_current_folder() {
    let author = Author::with(&[("tokens", "a-token\n")]);
    let check = |text: &str| author.run_with(&["config", "check", "-"], text, &[]);
    let text = "version: 1\nclients: [{ name: a, bearer_token_file: tokens, bundles: [x] }]\n";
    assert_eq!(check(text).ok(), "<stdin>: ok, 0 bundles\n");
    check(&text.replace("tokens", "none")).refused(
        "<stdin>:2:22: clients[0].bearer_token_file: none does not exist; create it, or correct the path",
    );
    check("").refused("<stdin>:1:1: the configuration must be a mapping; begin with `version: 1`");
    let long = "#".repeat((1 << 20) + 1);
    check(&long).refused("<stdin>: config check: standard input is longer than 1 MiB");
}

#[test]
fn without_a_name_the_configuration_is_in_the_current_folder() {
    let author = Author::new();
    for (line, way) in [
        ("config check", "`bundlegate config check FILE`"),
        ("serve", "`bundlegate serve --config FILE`"),
    ] {
        author.line(line).refused(&format!(
            "bundlegate.yaml: the current folder has no such file; write it, or name a \
             configuration by {way}"
        ));
    }
    author.write("bundlegate.yaml", LEAST);
    assert_eq!(
        author.line("config check").ok(),
        "bundlegate.yaml: ok, 0 bundles\n"
    );
    author.write("bundlegate.yaml", &format!("{LEAST}severs: {{}}\n"));
    author
        .line("serve")
        .refused("bundlegate.yaml:3:1: severs: unknown key; did you mean `server`?");
}

#[test]
fn errors_as_json_have_their_places() {
    let author = Author::new();
    author.write(
        "bundlegate.yaml",
        &format!("{LEAST}severs: {{}}\nlimits:\n  files: many\n"),
    );
    let ran = author.line("config check --json");
    assert_eq!(ran.code, 1);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let error = |key: &str, line: u64, column: u64, message: &str| json!({ "key": key, "file": "bundlegate.yaml", "line": line, "column": column, "message": message });
    let errors = json!([
        error("severs", 3, 1, "unknown key; did you mean `server`?"),
        error(
            "limits.files",
            5,
            3,
            "expected a whole number, found \"many\"; correct the value"
        ),
    ]);
    let expected = json!({
        "file": "bundlegate.yaml", "ok": false, "errors": errors, "missing_files": [],
    });
    assert_eq!(report, expected);
    assert_eq!(
        ran.stderr,
        "bundlegate: bundlegate.yaml: 2 errors; correct them\n"
    );
    author.write("bundlegate.yaml", LEAST);
    let expected = json!({
        "file": "bundlegate.yaml", "ok": true, "errors": [], "missing_files": [],
    });
    assert_eq!(author.line("config check --json").json(), expected);
}

/// An error elsewhere is one, wherever the files are.
#[test]
fn a_check_without_the_files_refuses_everything_else() {
    let author = Author::new();
    let text = "version: 1
server: { tls: { certificate: none.crt, key: none.key, client_ca: none.pem }, admin_token_file: none }
clients:
  - { name: a, bearer_token_file: none.tokens, bundles: ['a**'] }
  - { name: b, mtls: { san_uri: 'spiffe://corp/opa/*' }, bundles: [b] }
trust:
  authorities: { key: { keys: [none.pub], tlog: none } }
  policies: { signed: { require: { any_of: [key] } } }
bundles: { b: { reference: 'r.io/b:1', trust: signed, poll: 1ms } }
";
    author.write("bundlegate.yaml", text);
    let ran = author.line("config check --no-environment");
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(
        lines.len() == 3
            && lines[0]
                .starts_with("bundlegate: bundlegate.yaml:4:58: clients[0].bundles[0]: glob")
            && lines[1]
                .starts_with("bundlegate: bundlegate.yaml:9:55: bundles.b.poll: 1ms is below"),
        "{lines:#?}"
    );
    author.write(
        "bundlegate.yaml",
        &text.replace("a**", "a/**").replace("1ms", "1s"),
    );
    let ran = author.line("config check --no-environment --json").json();
    let missing = [
        "none",
        "none.crt",
        "none.key",
        "none.pem",
        "none.pub",
        "none.tokens",
    ];
    assert_eq!(ran["missing_files"], json!(missing));
}
