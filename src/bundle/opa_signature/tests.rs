//! Signing, verifying and rewriting, with keys of every algorithm.

use std::sync::Arc;

use aws_lc_rs::{
    encoding::{AsDer as _, EcPrivateKeyRfc5915Der, PublicKeyX509Der},
    rsa::KeySize,
    signature::{EcdsaKeyPair, KeyPair as _, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{algorithm::SigningMethod, token::FileClaim, *};
use crate::{
    bundle::{
        Bundle, BundleError, LayerError, Limits,
        archive::walk,
        document::{Detail, Document},
        json_string,
        tarball::Output,
    },
    oci::{Blob, NewBlob},
};

mod rewriting;
mod verifying;

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 100,
    bundle_manifest: 1 << 20,
};
pub(super) const SECRET: &[u8] =
    b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

/// A private key and its public key, as files.
struct KeyFiles {
    private: Vec<u8>,
    public: Vec<u8>,
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n").into_bytes()
}

/// New keys for an algorithm; one RSA key for all of them, because generating one takes long.
fn keys(algorithm: SigningAlgorithm) -> KeyFiles {
    match algorithm.signing() {
        SigningMethod::Ecdsa(curve) => {
            let key = EcdsaKeyPair::generate(curve).unwrap();
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            KeyFiles {
                private: pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref()),
                public: pem("PUBLIC KEY", public.as_ref()),
            }
        }
        SigningMethod::Rsa(_) => {
            static RSA: std::sync::OnceLock<RsaKeyPair> = std::sync::OnceLock::new();
            let key = RSA.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
            let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().unwrap();
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            KeyFiles {
                private: pem("PRIVATE KEY", private.as_ref()),
                public: pem("PUBLIC KEY", public.as_ref()),
            }
        }
        SigningMethod::Hmac(_) => KeyFiles {
            private: SECRET.to_vec(),
            public: SECRET.to_vec(),
        },
    }
}

fn signer() -> Signer {
    let algorithm = SigningAlgorithm::Es256;
    Signer::new(&keys(algorithm).private, algorithm, "gateway", "").unwrap()
}

fn verifier(file: &[u8], algorithm: SigningAlgorithm, kid: &str, scope: &str) -> Verifier {
    let key = VerificationKey {
        kid: kid.to_owned(),
        scope: scope.to_owned(),
        key: PublicKey::parse(file, algorithm).unwrap(),
    };
    Verifier::new(vec![key]).unwrap()
}

fn output() -> Output {
    Output::to(NewBlob::system_space())
}

fn tarball(files: &[(&str, &str)]) -> Blob {
    let mut tarball = output().tarball();
    for (name, content) in files {
        tarball
            .add_exactly(name, content.len() as u64, content.as_bytes())
            .unwrap();
    }
    tarball.finish().unwrap()
}

fn open(blob: Blob) -> Bundle {
    Bundle::open(blob, &LIMITS).unwrap()
}

fn bundle(files: &[(&str, &str)]) -> Bundle {
    open(tarball(files))
}

fn files(blob: &Blob) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let walked = walk(blob, &LIMITS, |entry| -> Result<(), BundleError> {
        let content = String::from_utf8(entry.content()?).unwrap();
        found.push((entry.name().to_owned(), content));
        Ok(())
    });
    walked.unwrap();
    found
}

/// The claims of the last file, which is the signature.
fn claims(blob: &Blob) -> Value {
    let (name, content) = files(blob).pop().unwrap();
    assert_eq!(name, SIGNATURE_FILE);
    let file: Value = serde_json::from_str(&content).unwrap();
    let token = file["signatures"][0].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
    serde_json::from_slice(&claims.unwrap()).unwrap()
}

fn hash(name: &str, content: &str) -> String {
    let signed = signer()
        .sign(&bundle(&[(name, content)]), &output())
        .unwrap();
    claims(&signed)["files"][0]["hash"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn hashes_are_those_of_opa() {
    for (name, content, expected) in [
        (
            "/.manifest",
            r#"{"revision": "quickbrownfaux"}"#,
            "507a2c38a1441db58d2cb87982c42aa91a4342ef422a6b542eddebeef6f0412f",
        ),
        (
            "a/b/c/data.json",
            "[1,2,3]",
            "a615eeaee21de5179de080de8c3052c8da901138406ba71c38c032845f7d54f4",
        ),
        (
            "p.rego",
            "package x\n",
            "3ea66a23367f14bd3e79ebd5c296779a4c3c40ef3a2035e23863b56ab5894bc5",
        ),
        (
            "bar/data.json",
            "{\"a\": 1}\n",
            "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862",
        ),
    ] {
        assert_eq!(hash(name, content), expected, "{name}");
    }
    // The values count, and numbers by their text.
    let one = hash("data.json", r#"{"b":[1.0,-0,1e3],"a":"\u0041\/"}"#);
    assert_eq!(
        hash("data.json", " {\"a\" : \"A/\",\n\"b\":[1.0,-0,1e3]} "),
        one
    );
    assert_ne!(hash("data.json", r#"{"b":[1,-0,1e3],"a":"A/"}"#), one);
    // Other names hold bytes.
    assert_ne!(hash("x.manifest", "{} "), hash("x.manifest", "{}"));
    assert_eq!(hash(".manifest", "{} "), hash(".manifest", "{}"));
}

#[test]
fn the_canonical_form_has_sorted_members_and_the_strings_of_go() {
    let text = r#"{"b":"\u2028\b</\u007f","a\"":[true,null,{}],"B":1.50,"é":0}"#;
    let document = Document::of_json(text.as_bytes(), Detail::Values).unwrap();
    let mut bytes = Vec::new();
    document
        .write_with(&mut bytes, json_string::write_string)
        .unwrap();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "{\"B\":1.50,\"a\\\"\":[true,null,{}],\"b\":\"\\u2028\\b</\u{7f}\",\"é\":0}"
    );
}

#[test]
fn a_document_that_takes_too_much_memory_is_refused_with_the_limit() {
    let list = format!("[{}1]", "1,".repeat(2000));
    let parse = |limit| Document::of_json(list.as_bytes(), Detail::ValuesWithin(limit));
    let memory = parse(u64::MAX).unwrap().memory();
    assert!((100_000..400_000).contains(&memory), "{memory}");
    parse(memory).unwrap();
    let error = parse(memory - 1).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("its values take more than {} bytes", memory - 1)),
        "{error}"
    );
    let keys: Vec<_> = (0..100).map(|key| format!("\"{key}\":{{}}")).collect();
    let object = format!("{{{}}}", keys.join(","));
    let parse = |limit| Document::of_json(object.as_bytes(), Detail::ValuesWithin(limit));
    let memory = parse(u64::MAX).unwrap().memory();
    parse(memory).unwrap();
    parse(memory - 1).unwrap_err();
}

#[test]
fn every_algorithm_signs_what_it_verifies_and_nothing_else() {
    let files = [("a/p.rego", "package a\n"), ("data.json", "{\"x\": 1}")];
    for (name, algorithm) in SigningAlgorithm::ALL {
        assert_eq!(SigningAlgorithm::named(name), Some(algorithm));
        assert_eq!(algorithm.to_string(), name);
        let KeyFiles { private, public } = keys(algorithm);
        let signer = Signer::new(&private, algorithm, "k", "write").unwrap();
        let signed = open(signer.sign(&bundle(&files), &output()).unwrap());
        let verifier = verifier(&public, algorithm, "k", "write");
        verifier.verify(&signed).unwrap();
        let other = verifying::other_key(algorithm);
        let error = other.verify(&signed).unwrap_err().to_string();
        let expected = format!("the OPA signature was not made by the key \"k\" with {name}");
        assert_eq!(error, expected);
    }
}

#[test]
fn keys_are_read_from_every_kind_of_pem() {
    let SigningMethod::Ecdsa(p256) = SigningAlgorithm::Es256.signing() else {
        panic!("ES256 is ECDSA");
    };
    let key = EcdsaKeyPair::generate(p256).unwrap();
    let sec1: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der().unwrap();
    let pkcs8 = key.to_pkcs8v1().unwrap();
    let as_sec1 = pem("EC PRIVATE KEY", sec1.as_ref());
    let parameters = pem("EC PARAMETERS", b"\x06\x08*\x86H\xce=\x03\x01\x07");
    let read = |file: &[u8]| Signer::new(file, SigningAlgorithm::Es256, "k", "").unwrap();
    let one = read(&as_sec1);
    assert_eq!(read(&[parameters, as_sec1].concat()), one);
    assert_eq!(read(&pem("PRIVATE KEY", pkcs8.as_ref())), one);

    let certificate = rcgen::KeyPair::generate().unwrap();
    let public = certificate.public_key_pem();
    let params = rcgen::CertificateParams::new(vec!["opa.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&certificate).unwrap().pem();
    let public_key = |file: &str| PublicKey::parse(file.as_bytes(), SigningAlgorithm::Es256);
    assert_eq!(public_key(&certificate), public_key(&public));

    let rsa = keys(SigningAlgorithm::Rs256);
    let public = PublicKey::parse(&rsa.public, SigningAlgorithm::Rs256).unwrap();
    let block = pem::PemBlock::first(&rsa.public, "").unwrap();
    // The modulus follows a header of 24 bytes.
    let pkcs1 = pem("RSA PUBLIC KEY", &block.der[24..]);
    assert_eq!(
        PublicKey::parse(&pkcs1, SigningAlgorithm::Rs256).unwrap(),
        public
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat table")]
fn keys_that_do_not_fit_are_refused_without_a_quote() {
    use SigningAlgorithm::{Es256, Es384, Hs256, Ps512, Rs256};
    let [p256, p384, rsa] = [Es256, Es384, Rs256].map(keys);
    let small = include_bytes!("tests/rsa1024.pem");
    let small_public = include_bytes!("tests/rsa1024.pub");
    let refusal = |file: &[u8], algorithm| {
        Signer::new(file, algorithm, "k", "")
            .unwrap_err()
            .to_string()
    };
    for (file, algorithm, reason) in [
        (
            &p256.private[..],
            Es384,
            "an ECDSA key on P-256, but ES384 needs an ECDSA key on P-384",
        ),
        (
            &p384.private,
            Es256,
            "an ECDSA key on P-384, but ES256 needs an ECDSA key on P-256",
        ),
        (
            &p256.private,
            Ps512,
            "an ECDSA key on P-256, but PS512 needs an RSA key",
        ),
        (
            &rsa.private,
            Es256,
            "an RSA key, but ES256 needs an ECDSA key on P-256",
        ),
        (small, Rs256, "an RSA key of less than 2048 bits"),
        (
            &rsa.public,
            Rs256,
            "a PEM block \"PUBLIC KEY\" instead of PRIVATE KEY,",
        ),
        (
            b"short secret",
            Hs256,
            "a secret of 12 bytes; HS256 needs at least 32",
        ),
        (b"\n", Hs256, "an empty secret"),
        (SECRET, Es256, "no PEM key"),
    ] {
        let error = refusal(file, algorithm);
        assert!(error.starts_with(reason), "{error}");
        assert!(!error.contains("short"), "{error}");
    }
    let refusal =
        |file: &[u8], algorithm| PublicKey::parse(file, algorithm).unwrap_err().to_string();
    for (file, algorithm, reason) in [
        (
            &p256.public[..],
            Es384,
            "an ECDSA key on P-256, but ES384 needs an ECDSA key on P-384",
        ),
        (
            &rsa.public,
            Es256,
            "an RSA key, but ES256 needs an ECDSA key on P-256",
        ),
        (
            &p384.public,
            Rs256,
            "an ECDSA key on P-384, but RS256 needs an RSA key",
        ),
        (
            small_public,
            Rs256,
            "an RSA key of 1024 bits; use one of at least 2048",
        ),
        (
            &p256.private,
            Es256,
            "a PEM block \"PRIVATE KEY\" instead of PUBLIC KEY,",
        ),
        (b"", Hs256, "an empty secret"),
        (b"secret", Es256, "no PEM key"),
    ] {
        let error = refusal(file, algorithm);
        assert!(error.starts_with(reason), "{error}");
    }
}

#[test]
fn keys_are_in_no_debug_output() {
    let algorithm = SigningAlgorithm::Hs256;
    let signer = Signer::new(SECRET, algorithm, "k", "s").unwrap();
    let verifier = verifier(SECRET, algorithm, "k", "s");
    let shown = format!("{signer:?} {verifier:?} {:?}", signer.parameters());
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
    assert_eq!(
        format!("{signer:?}"),
        "Signer { algorithm: Hs256, kid: \"k\", scope: \"s\", .. }"
    );
}

#[test]
fn signers_are_equal_if_opa_can_not_tell_them_apart() {
    let algorithm = SigningAlgorithm::Es256;
    let [one, two] = [keys(algorithm), keys(algorithm)];
    let signer = |file: &KeyFiles, kid: &str, scope: &str| {
        Arc::new(Signer::new(&file.private, algorithm, kid, scope).unwrap())
    };
    assert_eq!(signer(&one, "k", ""), signer(&one, "k", ""));
    for other in [
        signer(&two, "k", ""),
        signer(&one, "l", ""),
        signer(&one, "k", "s"),
    ] {
        assert_ne!(signer(&one, "k", ""), other);
    }
}
