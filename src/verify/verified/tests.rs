//! Signatures as cosign makes them, and every way to alter them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use sigstore_verify::{crypto::KeyPair, types::dsse::pae};

use super::*;
use crate::{
    oci::{Descriptor, Digest, Reference, media_type},
    verify::{
        Authority, Format, PublicKey, Requirements,
        evidence::{LegacySignature, SignatureBundle},
    },
};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

struct Case {
    pair: KeyPair,
    policy: TrustPolicy,
    manifest: Manifest,
}

impl Case {
    fn new() -> Self {
        let pair = KeyPair::generate_ecdsa_p256().unwrap();
        let key = PublicKey::from_pem(&pair.public_key_der().unwrap().to_pem()).unwrap();
        let authority = Authority::with_keys("release".into(), [key]);
        let policy =
            TrustPolicy::signed("p".into(), Requirements::any_of(vec![authority])).unwrap();
        Self {
            pair,
            policy,
            manifest: manifest(json!({})),
        }
    }

    fn pinned(&self) -> PinnedReference {
        let text = format!("r.example/a@{}", self.manifest.digest());
        text.parse::<Reference>().unwrap().pinned().unwrap()
    }

    fn verify(&self, evidence: &Evidence) -> Result<Verified<Manifest>, VerificationError> {
        Verified::verify(
            &self.policy,
            &self.pinned(),
            self.manifest.clone(),
            evidence,
        )
    }

    fn reason(&self, evidence: &Evidence) -> Reason {
        self.verify(evidence).unwrap_err().reason
    }

    fn legacy(&self, payload: &Value) -> Evidence {
        let payload = Bytes::from(payload.to_string());
        let signature = STANDARD.encode(self.pair.sign(&payload).unwrap().as_bytes());
        Evidence {
            legacy: vec![LegacySignature {
                signature,
                payload,
                ..LegacySignature::default()
            }],
            ..Evidence::default()
        }
    }

    fn bundle(&self, statement: &Value, subject: &Digest) -> Evidence {
        let payload = statement.to_string();
        let kind = "application/vnd.in-toto+json";
        let signature = self.pair.sign(&pae(kind, payload.as_bytes())).unwrap();
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&payload), "payloadType": kind,
                "signatures": [{"sig": STANDARD.encode(signature.as_bytes())}],
            },
        });
        attach(&bundle, subject)
    }
}

fn attach(bundle: &Value, subject: &Digest) -> Evidence {
    let bundle = Bytes::from(bundle.to_string());
    let referrer = manifest(json!({
        "layers": [Descriptor::of(BUNDLE, &bundle)],
        "subject": {"mediaType": media_type::OCI_MANIFEST, "size": 2, "digest": subject},
    }));
    let attached = SignatureBundle {
        referrer: referrer.raw().clone(),
        bundle,
    };
    Evidence {
        bundles: vec![attached],
        ..Evidence::default()
    }
}

fn manifest(extra: Value) -> Manifest {
    let mut whole = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [],
    });
    whole
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    Manifest::parse(whole.to_string().into(), None, 1 << 20).unwrap()
}

fn payload(digest: &Digest) -> Value {
    json!({"critical": {"identity": {"docker-reference": "r.example/a"}, "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature"}, "optional": null})
}

fn statement(digest: &Digest, predicate: &str) -> Value {
    json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": predicate, "predicate": {}})
}

#[test]
fn a_signature_in_either_format_by_a_trusted_key_is_accepted() {
    let case = Case::new();
    let digest = case.manifest.digest();
    let legacy = case.verify(&case.legacy(&payload(digest))).unwrap();
    assert_eq!(
        (
            legacy.signers()[0].format,
            legacy.signers()[0].authority.as_str()
        ),
        (Format::Legacy, "release")
    );
    let bundle = case
        .verify(&case.bundle(&statement(digest, SIGN), digest))
        .unwrap();
    assert_eq!(bundle.signers()[0].format, Format::Bundle);
    assert_eq!(bundle.pinned(), &case.pinned());
}

#[test]
fn evidence_that_was_stored_verifies_the_same() {
    let case = Case::new();
    let digest = case.manifest.digest();
    for evidence in [
        case.legacy(&payload(digest)),
        case.bundle(&statement(digest, SIGN), digest),
    ] {
        let again = Evidence::from_bytes(&evidence.to_bytes().unwrap()).unwrap();
        assert!(case.verify(&again).is_ok());
    }
}

#[test]
fn each_way_to_be_unsigned_has_its_own_reason() {
    let case = Case::new();
    let (digest, other_digest) = (case.manifest.digest(), Digest::sha256(b"other"));
    assert_eq!(case.reason(&Evidence::default()), Reason::Unsigned);
    let other = Case::new();
    assert_eq!(
        case.reason(&other.legacy(&payload(digest))),
        Reason::AnotherKey
    );
    assert_eq!(
        case.reason(&other.bundle(&statement(digest, SIGN), digest)),
        Reason::AnotherKey
    );
    assert_eq!(
        case.reason(&case.legacy(&payload(&other_digest))),
        Reason::OtherDigest
    );
    assert_eq!(
        case.reason(&case.bundle(&statement(&other_digest, SIGN), digest)),
        Reason::OtherDigest
    );
    assert_eq!(
        case.reason(&case.bundle(&statement(digest, SIGN), &other_digest)),
        Reason::OtherDigest
    );
    let report = statement(digest, "https://example.com/scan-failed");
    assert_eq!(
        case.reason(&case.bundle(&report, digest)),
        Reason::NotASignature
    );
}

#[test]
fn the_report_has_every_candidate_up_to_its_first_failure() {
    let (case, other) = (Case::new(), Case::new());
    let (digest, other_digest) = (case.manifest.digest(), Digest::sha256(b"other"));
    let mut evidence = case.bundle(&statement(&other_digest, SIGN), digest);
    evidence
        .bundles
        .extend(other.bundle(&statement(digest, SIGN), digest).bundles);
    evidence.legacy = case.legacy(&payload(digest)).legacy;
    evidence.skipped.push("a\u{1b}[31m piece".into());
    let (verdict, report) = Verified::verify_with_report(
        &case.policy,
        &case.pinned(),
        case.manifest.clone(),
        &evidence,
        VerificationContext::now(),
    );
    assert_eq!(verdict.unwrap().signers().len(), 1);
    let results: Vec<_> = report
        .signatures
        .iter()
        .map(|signature| (signature.format, signature.is_verified()))
        .collect();
    assert_eq!(
        results,
        [
            (Format::Bundle, false),
            (Format::Bundle, false),
            (Format::Legacy, true)
        ]
    );
    let [elsewhere, unknown, good] = report.signatures.as_slice() else {
        panic!("{report:?}")
    };
    let last = elsewhere.checks.last().unwrap();
    assert_eq!(
        (last.name, last.ok, last.detail.as_str()),
        (
            "digest",
            false,
            format!("the signature is for {other_digest}").as_str()
        )
    );
    assert_eq!(elsewhere.signer.as_ref().unwrap().authority, "release");
    assert_eq!(
        (unknown.signer.as_ref(), unknown.checks.last().unwrap().name),
        (None, "signature")
    );
    let names: Vec<_> = good.checks.iter().map(|check| check.name).collect();
    assert_eq!(names, ["format", "signature", "statement", "digest"]);
    assert_eq!(report.skipped, ["a[31m piece"]);
}

#[test]
fn a_bad_candidate_neither_helps_nor_harms_a_good_one() {
    let (case, other) = (Case::new(), Case::new());
    let digest = case.manifest.digest();
    let mut evidence = other.legacy(&payload(digest));
    evidence.legacy.extend(case.legacy(&payload(digest)).legacy);
    assert_eq!(case.verify(&evidence).unwrap().signers().len(), 1);
}

#[test]
fn one_flipped_bit_anywhere_in_a_legacy_signature_is_refused() {
    let case = Case::new();
    let good = case.legacy(&payload(case.manifest.digest()));
    for at in 0..good.legacy[0].payload.len() {
        let mut altered = good.clone();
        let mut bytes = altered.legacy[0].payload.to_vec();
        bytes[at] ^= 1;
        altered.legacy[0].payload = bytes.into();
        assert!(case.verify(&altered).is_err(), "byte {at}");
    }
    let mut altered = good;
    let mut signature = STANDARD.decode(&altered.legacy[0].signature).unwrap();
    for at in 0..signature.len() {
        signature[at] ^= 1;
        altered.legacy[0].signature = STANDARD.encode(&signature);
        assert!(case.verify(&altered).is_err(), "signature byte {at}");
        signature[at] ^= 1;
    }
}

/// Every field of a valid bundle, changed in turn.
#[test]
fn a_bundle_with_any_changed_field_is_refused() {
    let case = Case::new();
    let digest = case.manifest.digest();
    let good = case.bundle(&statement(digest, SIGN), digest);
    let bundle: Value = serde_json::from_slice(&good.bundles[0].bundle).unwrap();
    assert!(case.verify(&attach(&bundle, digest)).is_ok());
    let other_payload = STANDARD.encode(statement(digest, "https://x/").to_string());
    for (pointer, value) in [
        (
            "/mediaType",
            json!("application/vnd.dev.sigstore.bundle.v0.2+json"),
        ),
        ("/verificationMaterial", json!({})),
        (
            "/verificationMaterial",
            json!({"certificate": {"rawBytes": ""}}),
        ),
        ("/dsseEnvelope/payload", json!(other_payload)),
        ("/dsseEnvelope/payload", json!("%%")),
        ("/dsseEnvelope/payloadType", json!("text/plain")),
        ("/dsseEnvelope/signatures", json!([])),
        (
            "/dsseEnvelope/signatures",
            json!([bundle["dsseEnvelope"]["signatures"][0], {"sig": ""}]),
        ),
        ("/dsseEnvelope/signatures/0/sig", json!("")),
        ("/dsseEnvelope", json!(null)),
    ] {
        let mut altered = bundle.clone();
        *altered.pointer_mut(pointer).unwrap() = value.clone();
        assert!(
            case.verify(&attach(&altered, digest)).is_err(),
            "{pointer} = {value}"
        );
    }
    let mut both = bundle;
    both["messageSignature"] = json!({"signature": ""});
    assert!(case.verify(&attach(&both, digest)).is_err());
}

#[test]
fn a_manifest_that_is_not_the_pinned_one_is_refused_even_unsigned() {
    let case = Case::new();
    let policy = TrustPolicy::unsigned("dev".into());
    let other = manifest(json!({"annotations": {"a": "b"}}));
    let evidence = Evidence::default();
    assert!(Verified::verify(&policy, &case.pinned(), other, &evidence).is_err());
    assert!(Verified::verify(&policy, &case.pinned(), case.manifest, &evidence).is_ok());
}
