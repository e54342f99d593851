//! Key pairs, and signing and verifying as a person does it, on layout folders and the image
//! store.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use crate::command::{Author, PASSWORD};

const REF: &str = "oci-layout:layout:v1";
const POLICY: &[(&str, &str)] = &[("authz.rego", "package authz\n\nallow := true\n")];

/// An author with an artifact and a key pair.
fn author() -> (Author, String) {
    let author = Author::new();
    let digest = author.artifact(POLICY);
    author.run(&["generate-key-pair"]).ok();
    (author, digest)
}

fn other_key(author: &Author) {
    author
        .run(&["generate-key-pair", "--output-key-prefix", "other"])
        .ok();
}

#[test]
fn a_key_pair_is_sealed_private_and_never_overwritten_by_accident() {
    let author = Author::new();
    let made = author.run(&["generate-key-pair", "--json"]).json();
    assert_eq!(
        (&made["private_key"], &made["public_key"]),
        (&json!("cosign.key"), &json!("cosign.pub"))
    );
    let key = fs::read_to_string(author.path("cosign.key")).unwrap();
    assert!(
        key.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"),
        "{key}"
    );
    assert_eq!(
        fs::metadata(author.path("cosign.key"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    assert!(
        fs::read_to_string(author.path("cosign.pub"))
            .unwrap()
            .starts_with("-----BEGIN PUBLIC KEY-----\n")
    );
    assert!(
        author
            .run(&["generate-key-pair"])
            .error()
            .contains("cosign.key: already exists")
    );
    assert_eq!(fs::read_to_string(author.path("cosign.key")).unwrap(), key);
    fs::rename(author.path("cosign.key"), author.path("mine.key")).unwrap();
    assert!(
        author
            .run(&["generate-key-pair"])
            .error()
            .contains("cosign.pub: already exists")
    );
    assert!(!author.path("cosign.key").exists());
    fs::rename(author.path("mine.key"), author.path("cosign.key")).unwrap();
    author.run(&["generate-key-pair", "--force"]).ok();
    assert_ne!(fs::read_to_string(author.path("cosign.key")).unwrap(), key);
    fs::create_dir(author.path("keys")).unwrap();
    author
        .run(&["generate-key-pair", "--output-key-prefix", "keys/release"])
        .ok();
    assert!(author.path("keys/release.key").exists() && author.path("keys/release.pub").exists());
    assert!(
        author
            .run(&["generate-key-pair", "--output-key-prefix", "nowhere/x"])
            .error()
            .contains("nowhere/x.key")
    );
    let left: Vec<_> = fs::read_dir(author.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "cosign.key, cosign.pub, keys: {left:?}");
}

#[test]
fn without_a_terminal_and_a_password_nothing_is_asked() {
    let author = Author::new();
    let ran = author.run_with(&["generate-key-pair"], "", &[]);
    assert!(
        ran.error().contains("COSIGN_PASSWORD") && !author.path("cosign.key").exists(),
        "{ran:?}"
    );
}

#[test]
fn a_signature_in_either_format_is_accepted_and_both_may_lie_side_by_side() {
    let (author, digest) = author();
    let unsigned = author.run(&["verify", REF, "--key", "cosign.pub"]);
    assert!(
        unsigned.error().contains("no signature") && unsigned.error().contains("bundlegate sign"),
        "{unsigned:?}"
    );
    for (flags, format) in [(&[][..], "bundle"), (&["--legacy"], "legacy")] {
        let signed = author
            .run(&[&["sign", REF, "--key", "cosign.key", "--json"], flags].concat())
            .json();
        assert_eq!(
            (&signed["digest"], &signed["format"]),
            (&json!(digest), &json!(format))
        );
    }
    let verified = author
        .run(&["verify", REF, "--key", "cosign.pub", "--json"])
        .json();
    assert_eq!(
        (
            &verified["digest"],
            &verified["verified"],
            &verified["reference"]
        ),
        (&json!(digest), &json!(true), &json!(REF))
    );
    let formats: Vec<_> = verified["signatures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["format"])
        .collect();
    assert_eq!(formats, ["bundle", "legacy"]);
    for signature in verified["signatures"].as_array().unwrap() {
        assert_eq!(
            (&signature["verified"], &signature["authority"]),
            (&json!(true), &json!("cosign.pub"))
        );
        assert!(
            signature["checks"]
                .as_array()
                .unwrap()
                .iter()
                .all(|check| check["ok"] == true),
            "{signature}"
        );
    }
    // A folder with its signatures is still one artifact.
    author
        .run(&["verify", "oci-layout:layout", "--key", "cosign.pub"])
        .ok();
    let text = author.run(&["verify", REF, "--key", "cosign.pub"]).ok();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "verified by cosign.pub",
            &format!("oci-layout:layout@{digest}")
        ]
    );
}

#[test]
fn several_people_sign_and_no_signature_is_lost() {
    let (author, _) = author();
    other_key(&author);
    for key in ["cosign.key", "other.key"] {
        author.run(&["sign", REF, "--key", key]).ok();
        author.run(&["sign", REF, "--key", key, "--legacy"]).ok();
    }
    for key in ["cosign.pub", "other.pub"] {
        let verified = author.run(&["verify", REF, "--key", key, "--json"]).json();
        let votes: Vec<_> = verified["signatures"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["verified"])
            .collect();
        assert_eq!(
            votes
                .iter()
                .filter(|vote| **vote == &Value::Bool(true))
                .count(),
            2,
            "{verified}"
        );
        assert_eq!(votes.len(), 4);
    }
}

#[test]
fn signing_at_the_same_moment_loses_no_signature() {
    let (author, _) = author();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let author = &author;
            scope.spawn(move || author.run(&["sign", REF, "--key", "cosign.key"]).ok());
        }
    });
    let verified = author
        .run(&["verify", REF, "--key", "cosign.pub", "--json"])
        .json();
    assert_eq!(
        verified["signatures"].as_array().unwrap().len(),
        4,
        "{verified}"
    );
}

#[test]
fn a_refusal_says_which_check_failed_and_why() {
    let (author, _) = author();
    other_key(&author);
    author.run(&["sign", REF, "--key", "other.key"]).ok();
    let refused = author.run(&["verify", REF, "--key", "cosign.pub", "--json"]);
    assert!(
        refused.error().contains("signature by another key"),
        "{refused:?}"
    );
    let document: Value = serde_json::from_str(&refused.stdout).unwrap();
    let signature = &document["signatures"][0];
    assert_eq!(
        (&document["verified"], &signature["verified"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(
        (&signature["authority"], &signature["identity"]),
        (&Value::Null, &Value::Null)
    );
    let last = signature["checks"].as_array().unwrap().last().unwrap();
    assert_eq!(
        last,
        &json!({"check": "signature", "ok": false, "detail": "no authority in the policy matches this signer"})
    );
    let ran = author.run(&["verify", REF, "--key", "cosign.pub"]);
    assert!(
        ran.stdout.starts_with("not verified\n") && ran.error().contains("-v shows every check"),
        "{ran:?}"
    );
    let text = author
        .run(&["verify", REF, "--key", "cosign.pub", "-v"])
        .stdout;
    assert!(text.starts_with("not verified\n"), "{text}");
    assert!(
        text.contains("failed  signature  no authority in the policy matches this signer\n"),
        "{text}"
    );
    // With the other key beside it, it is accepted.
    author
        .run(&["verify", REF, "--key", "cosign.pub", "--key", "other.pub"])
        .ok();
}

#[test]
fn a_configuration_says_whom_to_trust() {
    let (author, _) = author();
    author.run(&["sign", REF, "--key", "cosign.key"]).ok();
    other_key(&author);
    author.write(
        "bundlegate.yaml",
        r#"{"version": 1, "trust": {
            "authorities": {"us": {"keys": ["cosign.pub"], "tlog": "none"}, "them": {"keys": ["other.pub"], "tlog": "none"}},
            "policies": {"ours": {"require": {"any_of": ["us"]}}, "theirs": {"require": {"any_of": ["them"]}}, "dev": "unsigned"}}}"#,
    );
    let with = |policy: &str| {
        author.run(&[
            "verify",
            REF,
            "--config",
            "bundlegate.yaml",
            "--policy",
            policy,
            "--json",
        ])
    };
    let ours = with("ours").json();
    assert_eq!(
        (&ours["policy"], &ours["signatures"][0]["authority"]),
        (&json!("ours"), &json!("us"))
    );
    assert!(with("theirs").error().contains("signature by another key"));
    assert_eq!(with("dev").json()["verified"], true);
    let typo = with("our");
    assert!(typo.error().contains("did you mean `ours`?"), "{typo:?}");
    // A folder falls under no policy by itself.
    let chosen = author.run(&["verify", REF, "--config", "bundlegate.yaml"]);
    assert!(chosen.error().contains("ours"), "{chosen:?}");
    assert_eq!(author.run(&["verify", REF]).code, 2);
}

/// The policy is chosen as the gateway chooses it: by the bundle that has the reference, and only
/// then by `match`.
#[test]
fn a_configuration_applies_the_policy_of_the_bundle_with_the_reference() {
    let (author, digest) = author();
    author.run(&["sign", REF, "--key", "cosign.key"]).ok();
    other_key(&author);
    author.run(&["copy", REF, "oci-layout:second:v1"]).ok();
    author.run(&["copy", REF, "oci-layout:second:v2"]).ok();
    author.write(
        "etc/bundlegate.yaml",
        r#"{"version": 1, "clients": [{"name": "x", "anonymous": true, "bundles": ["**"]}], "trust": {
            "authorities": {"us": {"keys": ["../cosign.pub"], "tlog": "none"}, "them": {"keys": ["../other.pub"], "tlog": "none"}},
            "policies": {"ours": {"require": {"any_of": ["us"]}}, "theirs": {"match": "r.example/**", "require": {"any_of": ["them"]}}}},
            "bundles": {
                "a": {"reference": "oci-layout:../layout:v1", "trust": "ours"},
                "b": {"reference": "oci-layout:../second:v1", "trust": "theirs"},
                "c": {"reference": "oci-layout:../second:v1", "trust": "ours"}}}"#,
    );
    let verify =
        |reference: &str| author.run(&["verify", reference, "--config", "etc/bundlegate.yaml"]);
    let text = verify(REF).ok();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "verified by us",
            &format!("oci-layout:layout@{digest}"),
            "policy ours"
        ]
    );
    // However the folder is written.
    verify(&format!(
        "oci-layout:{}:v1",
        author.path("layout").display()
    ))
    .ok();
    let two = verify("oci-layout:second:v1");
    assert!(
        two.error()
            .contains("the bundles b and c use two policies for it, theirs and ours"),
        "{two:?}"
    );
    let none = verify("oci-layout:second:v2");
    assert!(none.error().contains("name one with --policy"), "{none:?}");
}

#[test]
fn a_transparency_log_is_asked_for_as_the_file_spells_it() {
    let (author, _) = author();
    for word in ["if_present", "if-present"] {
        let ran = author.run(&["verify", REF, "--key", "cosign.pub", "--tlog", word]);
        assert!(ran.error().contains("no signature"), "{word}: {ran:?}");
    }
}

#[test]
fn keys_that_do_not_open_are_refused_before_anything_is_written() {
    let (author, _) = author();
    let before = fs::read(author.path("layout/index.json")).unwrap();
    for (name, text, password, expected) in [
        ("cosign.key", None, "wrong", "password"),
        ("missing.key", None, PASSWORD, "missing.key"),
        ("cosign.pub", None, PASSWORD, "public key"),
        ("garbage.key", Some("hello"), PASSWORD, "generate-key-pair"),
        (
            "plain.key",
            Some("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
            PASSWORD,
            "import-key-pair",
        ),
    ] {
        text.iter().for_each(|text| author.write(name, text));
        let ran = author.run_with(
            &["sign", REF, "--key", name],
            "",
            &[("COSIGN_PASSWORD", password)],
        );
        assert!(ran.error().contains(expected), "{name}: {ran:?}");
    }
    let ran = author.run(&["sign", "oci-layout:layout:v2", "--key", "cosign.key"]);
    assert!(ran.error().contains("no such tag"), "{ran:?}");
    assert_eq!(
        author
            .run(&["sign", REF, "--key", "cosign.key", "-a", "env"])
            .code,
        2
    );
    assert_eq!(fs::read(author.path("layout/index.json")).unwrap(), before);
    let private = author.run(&["verify", REF, "--key", "cosign.key"]);
    assert!(private.error().contains("private key"), "{private:?}");
}

#[test]
fn annotations_are_signed_along() {
    let (author, digest) = author();
    author
        .run(&[
            "sign",
            REF,
            "--key",
            "cosign.key",
            "-a",
            "env=prod",
            "--annotations",
            "a=b=c",
            "--legacy",
        ])
        .ok();
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"oci-layout:layout"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{{"a":"b=c","env":"prod"}}}}"#
    );
    let blob = bundlegate::oci::Digest::sha256(payload.as_bytes());
    assert!(
        author
            .path(&format!("layout/blobs/sha256/{}", blob.hex()))
            .exists(),
        "no such payload: {payload}"
    );
}

#[test]
fn signatures_in_the_store_belong_to_the_repository_that_they_were_made_for() {
    let author = Author::new();
    author.run(&["generate-key-pair"]).ok();
    author.write("policy/authz.rego", POLICY[0].1);
    let (ours, theirs) = ("r.example/ours:v1", "r.example/theirs:v1");
    author.run(&["build", "policy", "-t", ours]).ok();
    author.run(&["tag", ours, theirs]).ok();
    for flags in [&[][..], &["--legacy"]] {
        author
            .run(&[&["sign", ours, "--local", "--key", "cosign.key"], flags].concat())
            .ok();
    }
    let verified = author
        .run(&["verify", ours, "--local", "--key", "cosign.pub", "--json"])
        .json();
    assert_eq!(
        verified["signatures"].as_array().unwrap().len(),
        2,
        "{verified}"
    );
    let unsigned = author.run(&["verify", theirs, "--local", "--key", "cosign.pub"]);
    assert!(unsigned.error().contains("no signature"), "{unsigned:?}");
    let images = author.run(&["images", "--json"]).json();
    let signed = |name: &str| {
        images
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["repository"] == name)
            .unwrap()["signed"]
            .clone()
    };
    assert_eq!(
        (signed("r.example/ours"), signed("r.example/theirs")),
        (json!(true), json!(false))
    );
    let absent = author.run(&[
        "sign",
        "r.example/none:v1",
        "--local",
        "--key",
        "cosign.key",
    ]);
    assert!(
        absent.error().contains("not in the image store"),
        "{absent:?}"
    );
}
