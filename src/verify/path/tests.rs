//! An index over an image, and signatures of either.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::json;
use sigstore_verify::crypto::KeyPair;

use super::*;
use crate::{
    oci::{Descriptor, Reference, media_type},
    verify::{Authority, PublicKey, Requirements, evidence::LegacySignature},
};

struct Case {
    pair: KeyPair,
    index: Manifest,
    image: Manifest,
}

fn parsed(document: &serde_json::Value) -> Manifest {
    Manifest::parse(document.to_string().into(), None, 1 << 20).unwrap()
}

fn image(name: &str) -> Manifest {
    parsed(&json!({
        "schemaVersion": 2, "config": Descriptor::of(media_type::EMPTY, b"{}"),
        "layers": [], "annotations": { "name": name },
    }))
}

fn repository() -> Repository {
    "r.example/a:live"
        .parse::<Reference>()
        .unwrap()
        .repository()
        .clone()
}

impl Case {
    fn new() -> Self {
        let image = image("one");
        let index = parsed(&json!({ "schemaVersion": 2, "manifests": [image.descriptor()] }));
        Self {
            pair: KeyPair::generate_ecdsa_p256().unwrap(),
            index,
            image,
        }
    }

    fn policy(&self, revoked: &[&Digest]) -> TrustPolicy {
        let key = PublicKey::from_pem(&self.pair.public_key_der().unwrap().to_pem()).unwrap();
        let authority = Authority::with_keys("release".into(), [key]);
        let requirements = Requirements {
            revoked_digests: revoked.iter().map(|digest| (*digest).clone()).collect(),
            ..Requirements::any_of(vec![authority])
        };
        TrustPolicy::signed("p".into(), requirements).unwrap()
    }

    fn path(&self) -> ManifestPath {
        let index = self.index.clone();
        ManifestPath::new(index.digest().clone(), index)
            .descend(self.image.clone())
            .unwrap()
    }

    /// A signature of a digest, by the key of the policy.
    fn signature(&self, digest: &Digest) -> Evidence {
        let payload = Bytes::from(
            json!({
                "critical": {
                    "identity": { "docker-reference": "r.example/a" },
                    "image": { "docker-manifest-digest": digest },
                    "type": "cosign container image signature",
                },
                "optional": null,
            })
            .to_string(),
        );
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

    fn verify(&self, policy: &TrustPolicy, evidence: &[&Evidence]) -> PathVerdict {
        let context = VerificationContext::now();
        let evidence = evidence.iter().copied();
        VerdictCache::default().verify_path(policy, &repository(), &self.path(), evidence, context)
    }
}

#[test]
fn a_signature_of_the_index_counts_first_and_else_one_of_the_image() {
    let case = Case::new();
    let policy = case.policy(&[]);
    let (index, image) = (case.index.digest(), case.image.digest());
    let (of_index, of_image, none) = (
        case.signature(index),
        case.signature(image),
        Evidence::default(),
    );
    for (evidence, decided_by) in [
        (&[&of_index][..], index),
        (&[&of_index, &of_image], index),
        (&[&none, &of_image], image),
        // A signature of the image proves nothing about the index, and the other way round.
        (&[&of_image, &of_image], image),
    ] {
        let PathVerdict { result, digest, .. } = case.verify(&policy, evidence);
        let verified = result.unwrap();
        assert_eq!(&digest, decided_by);
        assert_eq!(verified.value().digest(), image);
        assert_eq!(verified.pinned().digest(), image);
        assert_eq!(verified.signers().len(), 1);
        assert_eq!(verified.revision(), policy.revision());
    }
    for evidence in [&[][..], &[&none], &[&of_image], &[&none, &of_index]] {
        assert!(case.verify(&policy, evidence).result.is_err());
    }
}

#[test]
fn a_refusal_has_the_reasons_of_both() {
    let case = Case::new();
    let other = Case::new();
    let foreign = other.signature(case.index.digest());
    let none = Evidence::default();
    let PathVerdict {
        result,
        digest,
        report,
    } = case.verify(&case.policy(&[]), &[&foreign, &none]);
    let error = result.unwrap_err();
    assert_eq!(digest, *case.index.digest(), "the more specific one");
    assert_eq!(report.signatures.len(), 1);
    let message = error.to_string();
    assert!(
        message.contains(case.index.digest().as_str())
            && message.contains(case.image.digest().as_str()),
        "{message}"
    );
}

#[test]
fn a_revoked_digest_anywhere_on_the_path_is_refused() {
    let case = Case::new();
    let (index, image) = (case.index.digest(), case.image.digest());
    let (of_index, of_image) = (case.signature(index), case.signature(image));
    for revoked in [index, image] {
        for policy in [
            case.policy(&[revoked]),
            TrustPolicy::unsigned("u".into()).without(&[revoked.clone()].into()),
        ] {
            let error = case
                .verify(&policy, &[&of_index, &of_image])
                .result
                .unwrap_err();
            assert_eq!(error.reason, Reason::RevokedDigest);
            assert!(error.revoked);
            assert_eq!(error.digest, *revoked);
        }
    }
}

/// Anyone can write an index that lists a revoked image by another digest.
#[test]
fn an_image_is_revoked_by_whichever_digest_an_index_lists_it() {
    let zeros: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    let case = Case::new();
    let by_sha256 = case.image.digest().clone();
    let by_sha512 = zeros.recompute(case.image.raw());
    for (listed, revoked) in [(&by_sha512, &by_sha256), (&by_sha256, &by_sha512)] {
        let entry = Descriptor {
            digest: listed.clone(),
            ..case.image.descriptor()
        };
        let case = Case {
            index: parsed(&json!({ "schemaVersion": 2, "manifests": [entry] })),
            pair: KeyPair::generate_ecdsa_p256().unwrap(),
            image: case.image.clone(),
        };
        let (of_index, of_image) = (case.signature(case.index.digest()), case.signature(listed));
        let none = Evidence::default();
        for policy in [
            case.policy(&[revoked]),
            TrustPolicy::unsigned("u".into()).without(&[revoked.clone()].into()),
        ] {
            for evidence in [[&of_index, &none], [&none, &of_image]] {
                let error = case.verify(&policy, &evidence).result.unwrap_err();
                assert_eq!((error.reason, error.revoked), (Reason::RevokedDigest, true));
            }
            // Without an index in front of it as well.
            let pinned = repository().pin(listed.clone());
            let error = Verified::verify(&policy, &pinned, case.image.clone(), &of_image);
            assert_eq!(error.unwrap_err().reason, Reason::RevokedDigest);
        }
        assert!(
            case.verify(&case.policy(&[]), &[&none, &of_image])
                .result
                .is_ok()
        );
    }
}

#[test]
fn an_index_vouches_for_nothing_that_it_does_not_list() {
    let case = Case::new();
    let pinned = repository().pin(case.index.digest().clone());
    let policy = case.policy(&[]);
    let evidence = case.signature(case.index.digest());
    let index = || Verified::verify(&policy, &pinned, case.index.clone(), &evidence).unwrap();
    assert!(index().child(case.image.clone()).is_ok());
    let error = index().child(image("other")).unwrap_err();
    assert_eq!(error.reason, Reason::OtherDigest);
    let image = index().child(case.image.clone()).unwrap();
    assert!(
        image.child(case.image.clone()).is_err(),
        "an image lists nothing"
    );
}

#[test]
fn an_unsigned_policy_accepts_what_an_index_leads_to() {
    let case = Case::new();
    let policy = TrustPolicy::unsigned("u".into());
    let verified = case
        .verify(&policy, &[&Evidence::default()])
        .result
        .unwrap();
    assert_eq!(verified.value().digest(), case.image.digest());
}
