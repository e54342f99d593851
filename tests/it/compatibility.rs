//! Names, flags and messages for users of docker, cosign and opa.

use std::fs;

use bundlegate::oci::media_type;
use serde_json::{Value, json};

use crate::{
    command::{Author, Ran},
    faulty::FaultyRegistry,
};

const POLICY: &[(&str, &str)] = &[
    (
        "policy/authz/authz.rego",
        "package authz\n\nallow if data.users[input.user].admin\n",
    ),
    ("policy/users/data.json", r#"{ "ann": { "admin": true } }"#),
];

fn author() -> Author {
    let author = Author::with(POLICY);
    author.line("build policy -t r.example/acme/authz:v1").ok();
    author
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn the_names_that_docker_has_for_verbs_and_flags_work() {
    let author = author();
    for verb in ["images", "ls", "list"] {
        assert!(
            author.line(verb).ok().contains("r.example/acme/authz"),
            "{verb}"
        );
    }
    author
        .line("save r.example/acme/authz:v1 -o out.tar.gz")
        .ok();
    author
        .line("save r.example/acme/authz:v1 --output second.tar.gz")
        .ok();
    assert_eq!(
        fs::read(author.path("out.tar.gz")).unwrap(),
        fs::read(author.path("second.tar.gz")).unwrap()
    );
    author
        .line("tag r.example/acme/authz:v1 r.example/acme/authz:v2")
        .ok();
    author.line("rmi r.example/acme/authz:v2").ok();
    assert!(
        author
            .line("cp oci-layout:nowhere:v1 oci-layout:out")
            .error()
            .contains("nowhere")
    );
}

#[test]
fn images_are_filtered_and_named_by_the_beginning_of_their_digest() {
    let author = author();
    author.write("policy/users/data.json", "{}");
    author.line("build policy -t r.example/other:v1").ok();
    author
        .line("tag r.example/acme/authz:v1 r.example/acme/authz:live")
        .ok();
    let quiet = |arguments: &str| author.line(&format!("images -q{arguments}")).ok();
    assert_eq!(lines(&quiet("")).len(), 2, "each digest once");
    let digest = quiet(" acme/authz");
    let digest = digest.trim_end();
    assert_eq!(digest.len(), 12);
    assert_eq!(
        quiet(" r.example/acme/*"),
        quiet(" --filter reference=r.example/acme/*")
    );
    assert_eq!(quiet(" nothing"), "");
    assert_eq!(
        author.json("images acme/authz").as_array().unwrap().len(),
        2
    );
    // Wherever an image of the store is named.
    for line in [
        &format!("inspect {digest}"),
        &format!("inspect sha256:{}", &digest[..6]),
        &format!("inspect r.example/acme/authz@sha256:{}", &digest[..6]),
        &format!("tag {digest} r.example/third:v1"),
        &format!("save {digest} -o out.tar.gz"),
        &format!("eval {digest} data.users"),
    ] {
        author.line(line).ok();
    }
    author
        .line("inspect 0000000")
        .refused("no digest in the image store begins with it");
    let several = author.line(&format!("rm {digest}"));
    assert!(
        several.stderr.contains("several repositories") && several.code == 1,
        "{several:?}"
    );
    author
        .line(&format!("rm r.example/acme/authz@sha256:{digest}"))
        .ok();
    assert_eq!(author.json("images acme/authz"), json!([]));
}

#[test]
fn what_was_done_is_told_on_stderr_and_stdout_is_for_scripts() {
    let author = author();
    let tag = author.line("tag r.example/acme/authz:v1 r.example/acme/authz:live");
    assert_eq!(
        tag.stderr,
        "bundlegate: tagged r.example/acme/authz:v1 as r.example/acme/authz:live\n"
    );
    let rm = author.line("rm r.example/acme/authz:live");
    assert_eq!(
        rm.stderr,
        "bundlegate: removed r.example/acme/authz:live from the image store\n"
    );
    for ran in [tag, rm] {
        assert!(
            ran.stdout.starts_with("r.example/acme/authz:live@sha256:")
                && ran.stdout.lines().count() == 1,
            "{ran:?}"
        );
    }
}

#[test]
fn a_folder_or_a_tarball_is_looked_into_without_being_built() {
    let author = author();
    author.line("save r.example/acme/authz:v1").ok();
    author.write("input.json", r#"{ "user": "ann" }"#);
    for subject in [
        "policy",
        "./policy",
        "policy/",
        "bundle.tar.gz",
        "r.example/acme/authz:v1",
    ] {
        let answer = author
            .run(&["eval", subject, "data.authz.allow", "-i", "input.json"])
            .json();
        assert_eq!(
            answer["result"][0]["expressions"][0]["value"], true,
            "{subject}"
        );
        let seen = author.json(&format!("inspect {subject}"));
        assert_eq!(
            (&seen["packages"], &seen["reference"]),
            (&json!(["authz"]), &json!(subject))
        );
        let asked = author.run_with(&["repl", subject], "data.users\n", &[]);
        assert_eq!(asked.ok(), "{\"ann\":{\"admin\":true}}\n");
    }
    let none = author.line("inspect nowhere");
    assert!(
        none.code == 2 && none.stderr.contains("and no file or folder has this name"),
        "{none:?}"
    );
    author.write(
        "policy/authz/authz.rego",
        "package authz\n\nallow if {\n\tinput.x ==\n}\n",
    );
    let broken = author.run(&["eval", "policy", "data.authz.allow"]);
    assert!(
        broken
            .stderr
            .starts_with("bundlegate: policy/authz/authz.rego:5:1: "),
        "{broken:?}"
    );
}

#[test]
fn a_name_without_a_host_is_told_of_the_variable_that_gives_it_one() {
    let author = author();
    let ran = author.line("inspect authz:v1");
    assert!(
        ran.code == 2 && ran.stderr.contains("BUNDLEGATE_REGISTRY"),
        "{ran:?}"
    );
    assert!(author.line("--help").ok().contains("BUNDLEGATE_REGISTRY"));
    let found = author.run_with(
        &["inspect", "authz:v1", "--json"],
        "",
        &[("BUNDLEGATE_REGISTRY", "r.example/acme")],
    );
    assert_eq!(found.json()["reference"], "r.example/acme/authz:v1");
    for (text, expected) in [
        (
            "http://r.example/authz:v1",
            "write r.example/authz:v1 alone",
        ),
        ("r.example/Acme/authz:v1", "a repository has no upper case"),
        ("r.example/authz:1.0.0+7", "write `_` for it"),
    ] {
        let ran = author.run(&["pull", text]);
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{ran:?}");
    }
}

#[test]
fn every_error_of_a_file_is_shown_with_its_line() {
    let author = Author::with(&[(
        "policy/p.rego",
        "package p\n\nallow if {\n\tinput.x ==\n}\n\nfine if input.y\n\ndeny contains x if {\n\tx := := 1\n}\n",
    )]);
    let ran = author.line("build policy -t r.example/a:v1");
    let told = lines(&ran.stderr);
    assert!(
        told[0].starts_with("bundlegate: policy/p.rego:5:1: ") && told[0].contains("--opa"),
        "{ran:?}"
    );
    assert_eq!(told[1..3], ["  5 | }", "    | ^"]);
    assert!(told[3].starts_with("policy/p.rego:10:10: "), "{ran:?}");
    assert_eq!(told[4..], ["  10 |  x := := 1", "     |          ^"]);
    author.write("policy/p.rego", "package p\n");
    author.write("policy/data.json", "{\n  \"a\": 1,\n  \"b\" 2\n}\n");
    let ran = author.line("build policy -t r.example/a:v1");
    let told = lines(&ran.stderr);
    assert!(
        told[0].starts_with("bundlegate: policy/data.json:3:7: "),
        "{ran:?}"
    );
    assert_eq!(told[1..], ["  3 |   \"b\" 2", "    |       ^"]);
}

#[test]
fn config_check_reports_all_errors() {
    let author = Author::with(&[(
        "bundlegate.yaml",
        "version: 1\nserver: { listen: nonsense, max_conections: 3 }\nclients: [{ name: a, anonymous: true, bundles: ['**'] }]\n\
         trust: { policies: { dev: unsigned } }\n\
         bundles:\n  one: { reference: 'r.io/A:v1', trust: dev, poll: 1ms }\n  two: { reference: 'r.io/a:v1', trust: dve }\n",
    )]);
    let ran = author.line("config check bundlegate.yaml");
    let told = lines(&ran.stderr);
    assert_eq!((ran.code, told.len()), (1, 6), "{ran:?}");
    for (line, expected) in told.iter().zip([
        "bundlegate.yaml:2:11: server.listen: ",
        "bundlegate.yaml:2:29: server.max_conections: unknown key; did you mean `max_connections`?",
        "bundlegate.yaml:6:10: bundles.one.reference: ",
        "bundlegate.yaml:6:46: bundles.one.poll: ",
        "bundlegate.yaml:7:34: bundles.two.trust: trust.policies has no \"dve\"; did you mean `dev`?",
        "5 errors",
    ]) {
        assert!(line.contains(expected), "{line} lacks {expected}");
    }
}

#[test]
fn signatures_in_the_registry_are_not_denied_by_the_store() {
    let author = author();
    assert!(author.line("images").ok().contains("not in the store"));
    assert!(
        author
            .line("inspect r.example/acme/authz:v1")
            .ok()
            .contains("signatures: not in the store")
    );
}

#[test]
fn what_is_hidden_in_text_is_hidden_in_json() {
    let author = Author::with(POLICY);
    let hostile = "a\u{9b}31m\u{202e}evil\u{2066}\u{7f}";
    let built = author.run(&[
        "build",
        "policy",
        "-t",
        "r.example/a:v1",
        "-a",
        &format!("note={hostile}"),
        "-r",
        hostile,
    ]);
    built.ok();
    for line in [
        "images",
        "images --json",
        "inspect r.example/a:v1",
        "inspect r.example/a:v1 --json",
    ] {
        let text = author.line(line).ok();
        let odd = text
            .chars()
            .find(|odd| "\u{9b}\u{202e}\u{2066}\u{7f}".contains(*odd));
        assert_eq!(odd, None, "{line}: {text}");
    }
    assert_eq!(
        author.json("inspect r.example/a:v1")["annotations"]["note"],
        hostile
    );
}

/// Whoever can push chooses names; they must not hide what others pushed.
#[tokio::test(flavor = "multi_thread")]
async fn one_hostile_tag_does_not_fail_the_list_of_tags() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("v1", b"layer");
    registry.put("manifests/broken", media_type::OCI_MANIFEST, "no manifest");
    let tags = json!({ "name": "acme/authz", "tags": ["v1", "../../x", "a b", "\u{202e}evil", "broken", "gone"] });
    registry.put("tags/list?n=1000", "application/json", tags.to_string());
    let repository = format!("{}/acme/authz", registry.address);
    let (text, list): (Ran, Value) = tokio::task::spawn_blocking(move || {
        let author = Author::new();
        let text = author.line(&format!("tags --plain-http {repository}"));
        (
            text,
            author.json(&format!("images --plain-http --remote {repository}")),
        )
    })
    .await
    .unwrap();
    assert!(
        text.stdout.contains(&digest.hex()[..12]) && text.stdout.contains("\\u{202e}evil"),
        "{text:?}"
    );
    assert_eq!(list.as_array().unwrap().len(), 6);
    let row = list
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["tag"] == "v1")
        .unwrap();
    assert_eq!(row["digest"], json!(digest));
}

/// A shell expands `~` at the beginning of a word only: not in `--key=~/release.key`.
#[test]
fn a_path_that_begins_with_a_tilde_is_refused_and_no_folder_of_that_name_is_made() {
    let author = author();
    for line in [
        "build ~/policy -t r.example/acme/authz:v2",
        "build policy -t r.example/acme/authz:v2 --opa=~/bin/opa",
        "save r.example/acme/authz:v1 --file=~/out.tar.gz",
        "images --store=~/images",
        "generate-key-pair --output-key-prefix=~/release",
        "sign r.example/acme/authz:v1 --key=~/cosign.key",
        "verify r.example/acme/authz:v1 --key=~/cosign.pub",
        "verify oci-layout:~/layout:v1 --key=cosign.pub",
        "copy r.example/acme/authz:v1 oci-layout:~/layout",
        "copy oci-layout:~/layout:v1 r.example/acme/authz:v3",
        "pull r.example/acme/authz:v1 --ca-file=~/ca.pem",
        "tags r.example/acme/authz --config=~/bundlegate.yaml",
        "init ~root/policy",
        "eval ~/policy data.authz",
        "dev ~/policy",
        "serve --config=~/bundlegate.yaml",
        "config check ~/bundlegate.yaml",
    ] {
        let ran = author.line(line);
        assert_ne!(ran.code, 0, "{line}");
        assert!(
            ran.stderr
                .contains("`~` is not expanded here; write the whole path, or ./~"),
            "{line}: {}",
            ran.stderr
        );
    }
    let made = fs::read_dir(author.home()).unwrap();
    let made = made.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(made.into_iter().all(|name| !name.starts_with('~')));
}
