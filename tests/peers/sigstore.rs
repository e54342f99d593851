//! A private Sigstore of the real programs: what it signs is verified under its root, and
//! not under another.

use std::fs;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Artifact, Cosign, Evidence, Format, Identity, Kind, Registry, Signer, Signing, Sigstore,
};

#[tokio::test(flavor = "multi_thread")]
async fn its_trusted_root_names_every_authority_and_log() {
    let sigstore = Sigstore::start().await;
    let root: Value = serde_json::from_slice(&fs::read(sigstore.trusted_root()).unwrap()).unwrap();
    let many = |kind: &str| root[kind].as_array().map_or(0, Vec::len);
    assert_eq!(
        [
            "certificateAuthorities",
            "ctlogs",
            "tlogs",
            "timestampAuthorities"
        ]
        .map(many),
        [1, 1, 2, 1],
        "{root}"
    );
    let chain = |pointer: &str| {
        root.pointer(pointer)
            .and_then(Value::as_array)
            .map_or(0, Vec::len)
    };
    assert_eq!(
        chain("/certificateAuthorities/0/certChain/certificates"),
        2,
        "{root}"
    );
    assert_eq!(
        chain("/timestampAuthorities/0/certChain/certificates"),
        3,
        "{root}"
    );
    for pointer in [
        "/certificateAuthorities/0/validFor/start",
        "/ctlogs/0/publicKey/validFor/start",
        "/tlogs/0/publicKey/validFor/start",
        "/tlogs/1/publicKey/validFor/start",
        "/timestampAuthorities/0/validFor/start",
    ] {
        assert!(
            root.pointer(pointer).is_some_and(Value::is_string),
            "{pointer} of {root}"
        );
    }
    let keys: Vec<_> = ["/tlogs/0", "/tlogs/1", "/ctlogs/0"]
        .map(|log| {
            root.pointer(&format!("{log}/logId/keyId"))
                .and_then(Value::as_str)
                .unwrap()
        })
        .into();
    assert!(keys[0] != keys[1] && keys[1] != keys[2], "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_cosigns_verify_what_is_signed_with_it_and_not_under_another_root() {
    let began = Instant::now();
    let (sigstore, other) = tokio::join!(Sigstore::start(), Sigstore::start());
    println!(
        "private Sigstore | two of them up in {:.2} s",
        began.elapsed().as_secs_f64()
    );
    let registry = Registry::start(Kind::Distribution).await;
    for how in Signing::every() {
        let label = how.label();
        let digest = registry
            .push(
                &format!("acme/{label}:v1"),
                &Artifact::answering(&label).await.file(),
            )
            .await;
        let name = format!("acme/{label}@{digest}");
        let began = Instant::now();
        sigstore.sign(&how, &registry, &name).await;
        println!(
            "private Sigstore | {label:28} | signed in {:.2} s",
            began.elapsed().as_secs_f64()
        );
        for cosign in [Cosign::V3, Cosign::V2] {
            sigstore
                .verify(cosign, &how, &sigstore, &registry, &name)
                .await
                .ok();
            sigstore
                .verify(cosign, &how, &other, &registry, &name)
                .await
                .failed();
            if let Signer::Keyless(Identity::Job(_)) = how.signer {
                let workflow = "acme/policies/.github/workflows/other.yml@refs/tags/v1.0.0";
                let signer =
                    Signer::Keyless(Identity::release_job().with("job_workflow_ref", workflow));
                let expected = Signing {
                    signer,
                    ..how.clone()
                };
                sigstore
                    .verify(cosign, &expected, &sigstore, &registry, &name)
                    .await
                    .failed();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_cosigns_attest_with_it() {
    let (sigstore, other) = tokio::join!(Sigstore::start(), Sigstore::start());
    let registry = Registry::start(Kind::Distribution).await;
    for cosign in [Cosign::V3, Cosign::V2] {
        let signer = Signer::Keyless(Identity::release_job());
        let how = Signing {
            cosign,
            format: Format::Bundle,
            signer,
            evidence: Evidence::LogAndTime,
        };
        let digest = registry
            .push(
                "acme/authz:v1",
                &Artifact::answering(&how.label()).await.file(),
            )
            .await;
        let name = format!("acme/authz@{digest}");
        for (kind, predicate) in [
            ("slsaprovenance1", provenance("https://example.com/builder")),
            (REVIEW, json!({ "approved": true })),
        ] {
            sigstore
                .attest(&how, &registry, &name, kind, &predicate)
                .await;
            sigstore
                .verify_attestation(kind, &how, &sigstore, &registry, &name)
                .await
                .ok();
            sigstore
                .verify_attestation(kind, &how, &other, &registry, &name)
                .await
                .failed();
        }
        sigstore
            .verify_attestation("vuln", &how, &sigstore, &registry, &name)
            .await
            .failed();
    }
}

/// A predicate of <https://slsa.dev/provenance/v1>.
pub(crate) fn provenance(builder: &str) -> Value {
    json!({
        "buildDefinition": {
            "buildType": "https://example.com/opa-build/v1",
            "externalParameters": { "ref": "refs/tags/v1.0.0" },
        },
        "runDetails": { "builder": { "id": builder } },
    })
}

const REVIEW: &str = "https://example.com/review/v1";
