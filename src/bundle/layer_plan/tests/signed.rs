//! Bundles whose own signature is verified and replaced.

use std::collections::BTreeSet;

use super::*;
use crate::bundle::{PublicKey, SigningAlgorithm, VerificationKey};

/// A key for HMAC, which makes the same bytes each time.
fn signer(kid: &str, scope: &str) -> Option<Arc<Signer>> {
    let secret = b"0123456789abcdef0123456789abcdef";
    let algorithm = SigningAlgorithm::Hs256;
    Signer::new(secret, algorithm, kid, scope)
        .ok()
        .map(Arc::new)
}

fn verifier(secret: &[u8]) -> Option<Arc<Verifier>> {
    let key = VerificationKey {
        kid: "k".to_owned(),
        scope: String::new(),
        key: PublicKey::parse(secret, SigningAlgorithm::Hs256).unwrap(),
    };
    Verifier::new(vec![key]).map(Arc::new)
}

#[test]
fn a_signed_bundle_has_one_entity_tag_for_its_layers_and_its_key() {
    let unsigned = tarball(&[REGO]);
    let shapes = [
        Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &unsigned),
        Artifact::new().with(OCI_ZSTD, "", &zstd(&[REGO])),
        conftest(),
    ];
    let mut digests = Vec::new();
    for artifact in shapes {
        let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
        for signer in [None, signer("k", ""), signer("l", ""), signer("k", "s")] {
            let plan = plan.clone().signed_by(signer.clone());
            let assembled = [1, 9].map(|level| {
                plan.assemble_to(&artifact.blobs, &LIMITS, &output(level))
                    .unwrap()
            });
            let [digest, other] = assembled.each_ref().map(|assembled| {
                assembled
                    .provenance()
                    .map_or_else(|| assembled.blob().digest().clone(), Provenance::digest)
            });
            assert_eq!(plan.expected_digest(), Some(digest.clone()));
            assert_eq!(digest, other);
            let [assembled, _] = assembled;
            if let Some(provenance) = assembled.provenance().filter(|_| signer.is_some()) {
                assert_eq!(provenance.transform().name(), "resign");
                assert_eq!(provenance.manifest(), artifact.manifest().digest());
            }
            let is_signed = files(assembled.blob())
                .iter()
                .any(|(name, _)| name == SIGNATURE_FILE);
            assert_eq!(is_signed, signer.is_some());
            digests.push(digest);
        }
    }
    let distinct: BTreeSet<_> = digests.iter().map(Digest::as_str).collect();
    assert_eq!(distinct.len(), digests.len());
}

#[test]
fn a_signature_is_verified_as_the_artifact_has_it_and_then_replaced() {
    let secret = b"0123456789abcdef0123456789abcdef";
    let unsigned = Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &tarball(&[REGO]));
    let assemble = |artifact: &Artifact, verifier, signer| {
        let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
        let plan = plan.verified_by(verifier).signed_by(signer);
        plan.assemble_to(&artifact.blobs, &LIMITS, &output(6))
    };
    let signed = assemble(&unsigned, None, signer("k", "")).unwrap();
    let signed = content(signed.blob()).unwrap();
    let signed = Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &signed);

    let same = assemble(&signed, verifier(secret), None).unwrap();
    assert!(same.provenance().is_none());
    assert_eq!(same.blob().digest(), signed.blobs[0].digest());
    let again = assemble(&signed, verifier(secret), signer("l", "")).unwrap();
    again.open(&LIMITS).unwrap();
    for (artifact, verifier, reason) in [
        (
            &unsigned,
            verifier(secret),
            "the bundle has no OPA signature",
        ),
        (
            &signed,
            verifier(b"other"),
            "the OPA signature was not made by",
        ),
    ] {
        // Signing does not hide what was not signed before.
        for signer in [None, signer("k", "")] {
            let error = assemble(artifact, verifier.clone(), signer).unwrap_err();
            assert!(matches!(error, LayerError::OpaSignature(_)), "{error}");
            assert!(error.to_string().starts_with(reason), "{error}");
        }
    }
    // A bundle that OPA would refuse is refused as it is in the registry.
    let broken = tarball(&[("data.json", "{} x")]);
    let broken = Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &broken);
    let error = assemble(&broken, None, signer("k", "")).unwrap_err();
    assert!(matches!(error, LayerError::Refused(_)), "{error}");
}
