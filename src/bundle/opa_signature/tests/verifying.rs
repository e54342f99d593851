//! OPA's rules for a signature.

use super::*;

/// The bundle and the token of `TestReadWithSignaturesWithBaseDir` in `v1/bundle/bundle_test.go`,
/// which is signed with the secret `secret`.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6ImZvbyJ9.eyJmaWxlcyI6W3sibmFtZSI6ImZvby9iYXIvLm1hbmlmZXN0IiwiaGFzaCI6IjUwN2EyYzM4YTE0NDFkYjU4ZDJjYjg3OTgyYzQyYWE5MWE0MzQyZWY0MjJhNmI1NDJlZGRlYmVlZjZmMDQxMmYiLCJhbGdvcml0aG0iOiJTSEEtMjU2In0seyJuYW1lIjoiZm9vL2Jhci9hL2IvYy9kYXRhLmpzb24iLCJoYXNoIjoiYTYxNWVlYWVlMjFkZTUxNzlkZTA4MGRlOGMzMDUyYzhkYTkwMTEzODQwNmJhNzFjMzhjMDMyODQ1ZjdkNTRmNCIsImFsZ29yaXRobSI6IlNIQS0yNTYifSx7Im5hbWUiOiJmb28vYmFyL2h0dHAvcG9saWN5L3BvbGljeS5yZWdvIiwiaGFzaCI6ImY2NjQ0NjFlMzAzYjM3YzIwYzVlMGJlMjkwMDg4MTY3OGNkZjhlODYwYWE0MzNhNWExNGQ0OTRiYTNjNjY2NDkiLCJhbGdvcml0aG0iOiJTSEEtMjU2In1dLCJpYXQiOjE1OTIyNDgwMjcsImlzcyI6IkpXVFNlcnZpY2UiLCJzY29wZSI6IndyaXRlIn0.qTHkuBDVuT-Zl5pbJdZ6LoJ9eooFOhhpRdCheauDrlA";
const FILES: [(&str, &str); 3] = [
    ("foo/bar/.manifest", r#"{"revision": "quickbrownfaux"}"#),
    ("/foo/bar/a/b/c/data.json", "[1,2,3]"),
    ("foo/bar/http/policy/policy.rego", "package example"),
];

/// A verifier with another key of the name `k`.
pub(super) fn other_key(algorithm: SigningAlgorithm) -> Verifier {
    let file = match algorithm.signing() {
        SigningMethod::Hmac(_) => b"another secret".to_vec(),
        SigningMethod::Rsa(_) => {
            let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            pem("PUBLIC KEY", public.as_ref())
        }
        SigningMethod::Ecdsa(_) => keys(algorithm).public,
    };
    verifier(&file, algorithm, "k", "write")
}

fn with_signatures(signatures: &Value) -> Bundle {
    let signatures = signatures.to_string();
    let mut files = FILES.to_vec();
    files.push(("/.signatures.json", &signatures));
    bundle(&files)
}

fn secret(kid: &str, scope: &str) -> Verifier {
    verifier(b"secret\n", SigningAlgorithm::Hs256, kid, scope)
}

#[track_caller]
fn refused(verifier: &Verifier, bundle: &Bundle, expected: &str) {
    let error = verifier.verify(bundle).unwrap_err();
    assert!(matches!(error, LayerError::OpaSignature(_)), "{error}");
    let error = error.to_string();
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_signature_of_opa_is_verified() {
    let signed = with_signatures(&json!({ "signatures": [TOKEN] }));
    secret("foo", "write").verify(&signed).unwrap();
    let plugin = json!({ "signatures": [TOKEN], "plugin": "_default" });
    secret("foo", "write")
        .verify(&with_signatures(&plugin))
        .unwrap();
}

#[test]
fn a_signature_is_refused_unless_it_is_one_of_a_known_key_with_its_scope() {
    let signed = with_signatures(&json!({ "signatures": [TOKEN] }));
    for (verifier, expected) in [
        (
            secret("bar", "write"),
            "the OPA signature names the key \"foo\", which opa_keys does not have",
        ),
        (
            secret("foo", ""),
            "the OPA signature has the scope \"write\" instead of \"\"",
        ),
        (
            verifier(b"other", SigningAlgorithm::Hs256, "foo", "write"),
            "the OPA signature was not made by the key \"foo\" with HS256",
        ),
        (
            // The header says HS256, but the algorithm is that of the key.
            verifier(b"secret", SigningAlgorithm::Hs384, "foo", "write"),
            "the OPA signature was not made by the key \"foo\" with HS384",
        ),
    ] {
        refused(&verifier, &signed, expected);
    }
    let verifier = secret("foo", "write");
    refused(
        &verifier,
        &bundle(&FILES),
        "the bundle has no OPA signature",
    );
    let [header, claims, signature] = TOKEN.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts");
    };
    for (signatures, expected) in [
        (json!({}), "the bundle has no OPA signature"),
        (json!(null), "the bundle has no OPA signature"),
        (
            json!({ "signatures": [] }),
            ".signatures.json has 0 signatures",
        ),
        (
            json!({ "plugin": "_default" }),
            ".signatures.json has 0 signatures",
        ),
        (
            json!({ "signatures": [TOKEN, TOKEN] }),
            ".signatures.json has 2 signatures instead of one",
        ),
        (
            json!({ "signatures": [TOKEN], "plugin": "mine" }),
            ".signatures.json names the plug-in \"mine\"",
        ),
        (
            json!({ "signatures": ["x"] }),
            ".signatures.json has a malformed signature: it has no dot",
        ),
        (
            json!({ "signatures": ["x.y"] }),
            ".signatures.json has a malformed signature: it has not three parts",
        ),
        (
            json!({ "signatures": [format!("{TOKEN}.x")] }),
            ".signatures.json has a malformed signature: it has not three parts",
        ),
        (
            json!({ "signatures": [format!("{header}.{claims}.{signature}=")] }),
            ".signatures.json has a malformed signature: its signature is not base64url",
        ),
        (
            json!({ "signatures": [format!("e30.{claims}.{signature}")] }),
            "the OPA signature names no key (kid)",
        ),
        (
            json!({ "signatures": [format!("e.{claims}.{signature}")] }),
            ".signatures.json has a malformed signature: its header is not base64url",
        ),
        (
            json!({ "signatures": [format!("{header}.e30.{signature}")] }),
            "the OPA signature was not made by the key",
        ),
    ] {
        refused(&verifier, &with_signatures(&signatures), expected);
    }
}

/// Claims, signed with the secret, under the name `foo` in a header or a claim.
fn token(header: &Value, claims: &Value) -> Value {
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let message = [header, claims].map(|part| engine.encode(part.to_string()));
    let message = message.join(".");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"secret");
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    json!({ "signatures": [format!("{message}.{}", engine.encode(signature))] })
}

fn file(name: &str, hash: &str, algorithm: &str) -> Value {
    let (name, hash, algorithm) = (name.to_owned(), hash.to_owned(), algorithm.to_owned());
    json!(FileClaim {
        name,
        hash,
        algorithm
    })
}

#[test]
fn the_key_may_be_named_by_the_claim_that_opa_has_deprecated() {
    let files = json!([file(
        "a/data.json",
        "a615eeaee21de5179de080de8c3052c8da901138406ba71c38c032845f7d54f4",
        "SHA-256"
    ),]);
    let signed = |header: Value, claims: Value| {
        let signatures = token(&header, &claims).to_string();
        bundle(&[
            ("a/data.json", "[1,2,3]"),
            (".signatures.json", &signatures),
        ])
    };
    let verifier = secret("foo", "");
    let by_claim = json!({ "files": files, "keyid": "foo" });
    verifier
        .verify(&signed(json!({}), by_claim.clone()))
        .unwrap();
    verifier
        .verify(&signed(json!({ "kid": "" }), by_claim.clone()))
        .unwrap();
    let other = json!({ "kid": "bar", "alg": "none" });
    refused(
        &verifier,
        &signed(other, by_claim),
        "the OPA signature names the key \"bar\"",
    );
    let none = json!({ "kid": "foo", "alg": "none" });
    verifier
        .verify(&signed(none, json!({ "files": files })))
        .unwrap();
    let number = json!({ "kid": 7 });
    refused(
        &verifier,
        &signed(number, json!({ "files": files })),
        ".signatures.json has a malformed signature: its header: invalid type",
    );
}

#[test]
fn every_file_is_listed_once_and_every_listed_file_is_there() {
    let one = file(
        "a/data.json",
        "A615EEAEE21DE5179DE080DE8C3052C8DA901138406BA71C38C032845F7D54F4",
        "SHA-256",
    );
    let signed = |files: &[Value], further: &[(&str, &str)]| {
        let signatures = token(&json!({ "kid": "foo" }), &json!({ "files": files })).to_string();
        let mut all = vec![
            ("/a/data.json", "[1,2,3]"),
            ("./.signatures.json", &signatures),
        ];
        all.extend(further);
        bundle(&all)
    };
    let verifier = secret("foo", "");
    verifier
        .verify(&signed(std::slice::from_ref(&one), &[]))
        .unwrap();
    refused(
        &verifier,
        &signed(&[], &[]),
        "the file \"a/data.json\" is not covered by the OPA signature",
    );
    for unlisted in ["README.md", "x-signatures.json", "./p.rego"] {
        refused(
            &verifier,
            &signed(std::slice::from_ref(&one), &[(unlisted, "package a\n")]),
            &format!("the file {unlisted:?} is not covered"),
        );
    }
    let b = file("b", "", "SHA-256");
    refused(
        &verifier,
        &signed(&[b, file("c", "", ""), one.clone()], &[]),
        "the file \"b\" is covered by the OPA signature but is not in the bundle (and 1 more)",
    );
    refused(
        &verifier,
        &signed(&[one.clone(), file("b", "00", "SHA-256")], &[("b", "")]),
        "the content of the file \"b\" is not that of the OPA signature",
    );
    // OPA compares the values of a manifest as a whole with those that it loads in part.
    refused(
        &verifier,
        &signed(
            &[one, file(".manifest", "00", "SHA-256")],
            &[(".manifest", "{} x: [")],
        ),
        "the file \".manifest\" can't be compared with the OPA signature: ",
    );
}

#[test]
fn hashes_that_can_be_forged_are_refused_and_all_others_of_opa_are_accepted() {
    // Of `[1,2,3]`.
    let hashes = [
        (
            "SHA-224",
            "f6bc357807106561d8f739eafea32e3d9c7352493493bac8084123bc",
        ),
        (
            "SHA-384",
            "dbedc8d7db9bdb866a7ba8c1fd6f4bc7e3457c09736242c64c51f4ff2fb0bb98e88ade6393a6ba33dbe77f3af4a44776",
        ),
        (
            "SHA-512",
            "60f7b5dc86ded48785436192a08dbfd04894d7f1b417c4f8d3714679a7f78cb3c833f16a8559a1cf1f32968747dc1d95ef34826263dacf125ded8f5c374be4c0",
        ),
        (
            "SHA-512-224",
            "a1f20aa7f4aed01c76f375459087bc9cd87f4f17c84f32a256314c54",
        ),
        (
            "SHA-512-256",
            "08df6df2fa4760a16633995691e3aa559883f08f29f3a0ac3b7ac691d775b05d",
        ),
    ];
    let verifier = secret("foo", "");
    let signed = |hash: &str, algorithm: &str| {
        let files = json!({ "files": [file("a/data.json", hash, algorithm)] });
        let signatures = token(&json!({ "kid": "foo" }), &files).to_string();
        bundle(&[
            ("a/data.json", "[1, 2, 3]"),
            (".signatures.json", &signatures),
        ])
    };
    for (algorithm, hash) in hashes {
        verifier.verify(&signed(hash, algorithm)).unwrap();
    }
    for (algorithm, reason) in [
        ("MD5", "two files can have one such hash"),
        ("SHA-1", "two files can have one such hash"),
        ("sha-256", "OPA has no such algorithm"),
        ("", "OPA has no such algorithm"),
    ] {
        let expected = format!(
            "the OPA signature has a hash of the file \"a/data.json\" by {algorithm:?}; {reason}"
        );
        refused(&verifier, &signed("a0", algorithm), &expected);
    }
}
