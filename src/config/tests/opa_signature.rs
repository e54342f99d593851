//! `resign`, `opa_signature` and `opa_keys`.

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A folder with the key files of the rows below.
fn folder() -> Folder {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    folder.write("key.pem", &key.serialize_pem());
    folder.write("key.pub", &key.public_key_pem());
    folder.write("secret", &format!("{SECRET}\n"));
    folder
}

fn bundle(keys: &str) -> String {
    format!(
        "trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ a: {{ reference: 'r.io/a:1', trust: dev, {keys} }} }}\n"
    )
}

#[test]
fn keys_of_opas_signatures_are_read_with_their_defaults() {
    let folder = folder();
    let artifact = |keys: &str| {
        folder.with(&bundle(keys)).unwrap().bundles[0]
            .artifact
            .clone()
    };
    let none = artifact("opa_signature: ignore");
    assert!(none.signer.is_none() && none.opa_verifier.is_none());
    let both = artifact(
        "resign: { key: key.pem, kid: gateway }, opa_signature: verify, opa_keys: [{ file: key.pub, kid: team, scope: write }, { file: secret, kid: old, algorithm: HS512 }]",
    );
    let signer = both.signer.unwrap();
    assert_eq!(
        (signer.kid(), signer.algorithm().name()),
        ("gateway", "ES256")
    );
    let verifier = both.opa_verifier.unwrap();
    let algorithms: Vec<_> = verifier.algorithms().map(|it| it.name()).collect();
    assert_eq!(algorithms, ["ES256", "HS512"]);
    // A watcher is replaced if the content of a file has changed, and not otherwise.
    let resign = "resign: { key: key.pem, kid: gateway, scope: x }";
    let before = artifact(resign);
    assert_eq!(artifact(resign), before);
    let other = rcgen::KeyPair::generate().unwrap();
    folder.write("key.pem", &other.serialize_pem());
    assert_ne!(artifact(resign), before);
}

#[test]
fn a_pattern_signs_and_verifies_as_a_bundle_does() {
    let config = folder().with(
        "trust: { policies: { dev: unsigned } }
patterns:
  - { resource: 'a/{x}', reference: 'r.io/{x}:v1', trust: dev, resign: { key: key.pem, kid: k }, opa_signature: verify, opa_keys: [{ file: key.pub, kid: k }] }",
    );
    let artifact = &config.unwrap().patterns[0].sample().artifact.clone();
    assert!(artifact.signer.is_some() && artifact.opa_verifier.is_some());
}

#[test]
fn a_key_that_every_opa_could_sign_with_is_warned_about() {
    let config = folder().with(&bundle(
        "resign: { key: secret, kid: k, algorithm: HS256 }, opa_signature: verify, opa_keys: [{ file: secret, kid: k, algorithm: HS256 }]",
    ));
    let warnings = config.unwrap().warnings();
    let warnings: Vec<_> = warnings
        .iter()
        .map(|warning| format!("{}: {}", warning.key, warning.message))
        .collect();
    assert_eq!(
        warnings,
        [
            "bundles.a.resign: with HS256 every OPA that can check a signature can forge one; use ES256 with a key pair",
            "bundles.a.opa_keys: with HS256 every OPA that can check a signature can forge one; sign with a key pair",
        ]
    );
    let config = folder().with(&bundle("resign: { key: key.pem, kid: k }"));
    assert_eq!(config.unwrap().warnings(), []);
}

#[test]
fn errors_of_opas_signatures_name_the_key_and_a_fix() {
    let folder = folder();
    for (keys, path, error) in [
        ("resign: { kid: k }", "resign.key", "missing; write it"),
        (
            "resign: { key: key.pem }",
            "resign.kid",
            "missing; write it",
        ),
        (
            "resign: { key: key.pem, kid: '' }",
            "resign.kid",
            "the name is empty; write the name of the key in OPA's `keys`, such as gateway",
        ),
        (
            "resign: { key: key.pem, kid: k, algorithm: es256 }",
            "resign.algorithm",
            "\"es256\" is not one of `ES256`, `ES384`, ",
        ),
        (
            "resign: { key: key.pem, kid: k, algorithm: RS256 }",
            "resign.key",
            "key.pem can't sign with RS256: it has an ECDSA key on P-256, but RS256 needs an RSA key; name the right file, or another `algorithm`",
        ),
        (
            "resign: { key: key.pub, kid: k }",
            "resign.key",
            "key.pub can't sign with ES256: it has a PEM block \"PUBLIC KEY\" instead of PRIVATE KEY,",
        ),
        ("resign: { key: none.pem, kid: k }", "resign.key", ""),
        (
            "resign: { key: key.pem, kid: k }, delta: { history: 4 }",
            "resign",
            "can't be used together with `delta`: ",
        ),
        (
            "opa_signature: maybe",
            "opa_signature",
            "\"maybe\" is neither `ignore` nor `verify`; ",
        ),
        (
            "opa_signature: verify",
            "opa_keys",
            "missing; `opa_signature: verify` needs the keys that may have signed",
        ),
        (
            "opa_keys: [{ file: key.pub, kid: k }]",
            "opa_keys",
            "without effect; write `opa_signature: verify` as well, or remove it",
        ),
        (
            "opa_signature: verify, opa_keys: []",
            "opa_keys",
            "empty; name at least one key",
        ),
        (
            "opa_signature: verify, opa_keys: [{ file: key.pub, kid: k }, { file: secret, kid: k, algorithm: HS256 }]",
            "opa_keys[1].kid",
            "another key has the name \"k\"; rename one of them",
        ),
        (
            "opa_signature: verify, opa_keys: [{ file: key.pem, kid: k }]",
            "opa_keys[0].file",
            "key.pem can't verify signatures by ES256: it has a PEM block \"PRIVATE KEY\" instead of PUBLIC KEY,",
        ),
    ] {
        let refused = folder.with(&bundle(keys)).unwrap_err();
        assert_eq!(refused.key(), format!("bundles.a.{path}"), "{refused}");
        assert!(refused.message().starts_with(error), "{refused}");
    }
}
