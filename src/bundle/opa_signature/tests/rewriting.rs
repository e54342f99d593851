//! What becomes of the files of a bundle that is signed anew.

use super::*;

fn signed(files_before: &[(&str, &str)]) -> Blob {
    let signed = signer().sign(&bundle(files_before), &output()).unwrap();
    open(signed.clone());
    signed
}

/// The files after signing, without the signature, and the names in it.
fn rewritten(files_before: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<String>) {
    let signed = signed(files_before);
    let claims = claims(&signed);
    let names = claims["files"].as_array().unwrap().iter();
    let names = names.map(|file| file["name"].as_str().unwrap().to_owned());
    let mut after = files(&signed);
    after.pop();
    (after, names.collect())
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let files = files.iter();
    files
        .map(|(name, content)| ((*name).to_owned(), (*content).to_owned()))
        .collect()
}

fn refusal(files: &[(&str, &str)]) -> String {
    let error = signer().sign(&bundle(files), &output()).unwrap_err();
    assert!(matches!(error, LayerError::Unsignable(_)), "{error}");
    error.to_string()
}

#[test]
fn files_keep_their_exact_names_and_bytes() {
    let long = format!("{}/p.rego", "x".repeat(300));
    let before = [
        ("/.manifest", "{\"roots\": [\"\"] }\n"),
        ("/data.json", "{\"b\": 1, \"c\" : 1.0}"),
        ("./a/data.json", "{}"),
        ("a//b/./p.rego", "package a\n"),
        ("README.md", "hello"),
        ("ä/ö ü.txt", "ß"),
        (&*long, "package b\n"),
        ("policy/data.json/", "[1]"),
        ("x\ty\n.txt", "odd"),
    ];
    let (after, names) = rewritten(&before);
    assert_eq!(after, owned(&before));
    let expected = before.map(|(name, _)| name.strip_prefix('/').unwrap_or(name));
    assert_eq!(names, expected);
}

#[test]
fn old_signatures_are_dropped_under_every_name_that_some_opa_reads() {
    let (after, names) = rewritten(&[
        ("/.signatures.json", "{\"signatures\": [\"x.y.z\"]}"),
        ("a/my-signatures.json", "{}"),
        ("a/signatures.json.txt", "kept"),
        ("data.json", "{}"),
    ]);
    assert_eq!(
        after,
        owned(&[("a/signatures.json.txt", "kept"), ("data.json", "{}")])
    );
    assert_eq!(names, ["a/signatures.json.txt", "data.json"]);
}

#[test]
fn yaml_becomes_json_with_the_other_data_of_its_mount_point() {
    let (after, names) = rewritten(&[
        ("/a/data.yaml", "x: NO\ny: 1.10\n"),
        ("b/data.json", "{\"kept\":  1}"),
        ("./a/data.json", "{\"z\": 12345678901234567890.0}"),
        ("c/data.yml", "- 1\n"),
        ("other.yaml", "x: 1\n"),
    ]);
    assert_eq!(
        after,
        owned(&[
            ("b/data.json", "{\"kept\":  1}"),
            ("other.yaml", "x: 1\n"),
            (
                "a/data.json",
                r#"{"x":"NO","y":1.1,"z":12345678901234567890.0}"#
            ),
            ("c/data.json", "[1]"),
        ])
    );
    assert_eq!(
        names,
        ["b/data.json", "other.yaml", "a/data.json", "c/data.json"]
    );
}

#[test]
fn data_of_one_name_is_merged_and_other_files_of_one_name_are_refused() {
    let (after, _) = rewritten(&[
        ("/data.json", r#"{"a":1}"#),
        ("data.json", r#"{"b":"\u2028"}"#),
    ]);
    assert_eq!(
        after,
        owned(&[("data.json", "{\"a\":1,\"b\":\"\u{2028}\"}")])
    );
    let error = refusal(&[("/p.rego", "package a\n"), ("p.rego", "package a\n")]);
    assert_eq!(
        error,
        "sign the bundle for OPA: the file \"p.rego\" is there twice, and OPA's signatures list each name once; remove one"
    );
    // These are two names.
    rewritten(&[("./p.rego", "package a\n"), ("p.rego", "package a\n")]);
}

#[test]
fn what_opa_ignores_after_a_value_is_cut() {
    let (after, _) = rewritten(&[
        (".manifest", " {\"roots\": [\"\"]} and more"),
        ("data.json", "{\"a\": [1]}\n null"),
        ("b/data.json", "{} \n"),
        ("x.manifest.txt", "{} kept"),
    ]);
    assert_eq!(
        after,
        owned(&[
            (".manifest", " {\"roots\": [\"\"]}"),
            ("data.json", "{\"a\": [1]}"),
            ("b/data.json", "{} \n"),
            ("x.manifest.txt", "{} kept"),
        ])
    );
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..5].copy_from_slice(b"a\xff.md");
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let stream = builder.into_inner().unwrap();
    let mut encoder = output().compress();
    std::io::Write::write_all(&mut encoder, &stream).unwrap();
    let bundle = open(encoder.finish().unwrap().finish().unwrap());
    let error = signer().sign(&bundle, &output()).unwrap_err().to_string();
    assert!(error.contains("is not UTF-8"), "{error}");
}

#[test]
fn a_signed_bundle_verifies_and_a_change_of_any_file_does_not() {
    let algorithm = SigningAlgorithm::Es256;
    let KeyFiles { private, public } = keys(algorithm);
    let signer = Signer::new(&private, algorithm, "k", "").unwrap();
    let verifier = verifier(&public, algorithm, "k", "");
    let before = [
        (".manifest", "{\"revision\":\"1\"}"),
        ("/a/data.yaml", "x: 1\n"),
        ("./p.rego", "package p\n"),
    ];
    let signed = signer.sign(&bundle(&before), &output()).unwrap();
    verifier.verify(&open(signed.clone())).unwrap();
    let after = files(&signed);
    for changed in 0..3 {
        let files: Vec<_> = after
            .iter()
            .enumerate()
            .map(|(at, (name, content))| {
                let other = if name == ".manifest" || name.ends_with("json") {
                    "{\"revision\":\"2\"}"
                } else {
                    "package q\n"
                };
                (name.as_str(), if at == changed { other } else { content })
            })
            .collect();
        let error = verifier.verify(&bundle(&files)).unwrap_err().to_string();
        assert!(error.starts_with("the content of the file"), "{error}");
    }
    // Signing again gives other bytes, and the same files.
    let again = signer.sign(&bundle(&before), &output()).unwrap();
    assert_eq!(claims(&again), claims(&signed));
    assert_eq!(claims(&again).get("scope"), None);
    let twice = signer.sign(&open(signed), &output()).unwrap();
    assert_eq!(claims(&twice), claims(&again));
}
