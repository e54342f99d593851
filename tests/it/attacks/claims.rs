//! Signatures for another artifact, or with other claims.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Digest, media_type},
    verify::{Attestation, AttestationRule, ClaimedRepository, Format, Reason},
};
use serde_json::{Value, json};

use super::fixture::{Fixture, keyed, keyed_in_log, keyless, policy, policy_with};
use crate::forge::{By, Envelope, Legacy, SIGNATURE, payload, statement};

const SLSA: &str = "https://slsa.dev/provenance/v1";

/// Case 2.
#[tokio::test]
async fn a_signature_of_another_digest_under_this_ones_tag_proves_nothing() {
    let fixture = Fixture::new().await;
    let (key, other) = (fixture.trusts_key(), Digest::sha256(b"other"));
    fixture
        .legacy(&[Legacy::sign(&fixture.key, &fixture.payload())], &key)
        .await
        .accepted();
    let moved = Legacy::sign(&fixture.key, &payload(&other, &fixture.repository()));
    fixture
        .legacy(&[moved], &key)
        .await
        .refused(Reason::OtherDigest, "digest", other.as_str());
    fixture
        .registry
        .remove(&format!("manifests/sha256-{}.sig", fixture.digest.hex()));
    fixture
        .bundles(&[fixture.bare(&fixture.statement())], &key)
        .await
        .accepted();
    fixture
        .bundles(&[fixture.bare(&statement(&other))], &key)
        .await
        .refused(Reason::OtherDigest, "digest", other.as_str());
    let keyless = fixture.keyless(&statement(&other));
    fixture
        .bundles(&[keyless], &fixture.trusts_workflow())
        .await
        .refused(Reason::OtherDigest, "digest", other.as_str());
}

/// Case 3.
#[tokio::test]
async fn a_signature_of_another_payload_does_not_verify_a_forged_one() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    fixture
        .legacy(&[fixture.legacy_keyless(&fixture.payload())], &workflow)
        .await
        .accepted();
    // Certificate, signature and log entry are real, and of another artifact.
    let real = fixture.legacy_keyless(&payload(&Digest::sha256(b"other"), &fixture.repository()));
    let forged = Legacy {
        payload: fixture.payload().to_string().into_bytes(),
        ..real.clone()
    };
    fixture
        .legacy(std::slice::from_ref(&forged), &workflow)
        .await
        .refused(Reason::Signature, "signature", "verification failed");
    for nonsense in ["", "AAAA", "bm8gc2lnbmF0dXJl"] {
        let forged = forged.clone().with(SIGNATURE, nonsense);
        fixture.legacy(&[forged], &workflow).await.refused(
            Reason::Signature,
            "signature",
            "verification failed",
        );
        let keyed = Legacy::sign(&fixture.key, &fixture.payload()).with(SIGNATURE, nonsense);
        fixture
            .legacy(&[keyed], &fixture.trusts_key())
            .await
            .refused(Reason::AnotherKey, "signature", "no authority");
    }
    let garbage = forged.with(SIGNATURE, "%%%");
    fixture
        .legacy(&[garbage], &workflow)
        .await
        .refused(Reason::Malformed, "format", "not base64");
}

/// Case 4.
#[tokio::test]
async fn a_digest_copied_to_another_repository_counts_where_the_policy_ignores_the_name() {
    let (here, there) = (Fixture::new().await, Fixture::new().await);
    assert_eq!(here.digest, there.digest);
    let named = Legacy::sign(&here.key, &here.payload());
    let claims = |claimed: ClaimedRepository| {
        policy_with([keyed(&here.key)], |wanted| {
            wanted.claimed_repository = claimed
        })
    };
    let ignored = claims(ClaimedRepository::Ignore);
    here.legacy(std::slice::from_ref(&named), &ignored)
        .await
        .accepted();
    there
        .legacy(std::slice::from_ref(&named), &ignored)
        .await
        .accepted();
    for strict in [
        ClaimedRepository::Match,
        ClaimedRepository::Exactly(here.repository()),
    ] {
        here.legacy(std::slice::from_ref(&named), &claims(strict))
            .await
            .accepted();
    }
    let matching = there
        .legacy(
            std::slice::from_ref(&named),
            &claims(ClaimedRepository::Match),
        )
        .await;
    matching.refused(Reason::Repository, "repository", &here.repository());
    let exact = claims(ClaimedRepository::Exactly(there.repository()));
    there.legacy(&[named], &exact).await.refused(
        Reason::Repository,
        "repository",
        &here.repository(),
    );
    let part = payload(&there.digest, &format!("{}-evil", there.repository()));
    let part = there
        .legacy(
            &[Legacy::sign(&here.key, &part)],
            &claims(ClaimedRepository::Match),
        )
        .await;
    part.refused(Reason::Repository, "repository", "-evil");
}

/// Case 15. Even where a trusted key signed it: programs differ in which of two members counts.
#[tokio::test]
async fn a_member_that_is_there_twice_makes_a_document_unreadable_whichever_comes_first() {
    let fixture = Fixture::new().await;
    let key = fixture.trusts_key();
    let (good, evil) = (
        fixture.digest.to_string(),
        Digest::sha256(b"other").to_string(),
    );
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let member = |digest: &str| format!(r#""docker-manifest-digest":"{digest}""#);
        let twice = fixture.payload().to_string().replace(
            &member(&good),
            &format!("{},{}", member(first), member(second)),
        );
        let mut legacy = Legacy::sign(&fixture.key, &json!({}));
        legacy.annotations.insert(
            SIGNATURE,
            STANDARD.encode(fixture.key.sign(twice.as_bytes())),
        );
        legacy.payload = twice.into_bytes();
        fixture.legacy(&[legacy], &key).await.refused(
            Reason::Malformed,
            "statement",
            "duplicate key",
        );
    }
    let mut capital = fixture.payload();
    capital["critical"]["image"] = json!({"Docker-manifest-digest": good});
    let capital = Legacy::sign(&fixture.key, &capital);
    fixture.legacy(&[capital], &key).await.refused(
        Reason::Malformed,
        "statement",
        "docker-manifest-digest",
    );
    fixture
        .registry
        .remove(&format!("manifests/sha256-{}.sig", fixture.digest.hex()));

    let hex = |digest: &str| format!(r#""sha256":"{}""#, digest.trim_start_matches("sha256:"));
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let twice = fixture
            .statement()
            .to_string()
            .replace(&hex(&good), &format!("{},{}", hex(first), hex(second)));
        let envelope = Envelope::sign_as(
            &fixture.key,
            "application/vnd.in-toto+json",
            twice.as_bytes(),
        );
        let bundle = envelope.bundle(By::Key(&fixture.key), &[], &[]);
        fixture.bundles(&[bundle], &key).await.refused(
            Reason::Malformed,
            "statement",
            "duplicate key",
        );
    }
    let (good, evil) = (
        fixture.bare(&fixture.statement()),
        fixture.bare(&statement(&Digest::sha256(b"other"))),
    );
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let [first, second] = [first, second].map(|bundle| bundle["dsseEnvelope"].to_string());
        let text = format!(r#"{{"dsseEnvelope":{first},"dsseEnvelope":{second},"#);
        let rest = good.to_string();
        let text = rest.replacen(
            &format!("{{\"dsseEnvelope\":{}", good["dsseEnvelope"]),
            text.trim_end_matches(','),
            1,
        );
        fixture.attach_text(&text);
        fixture
            .verify(&key)
            .await
            .refused(Reason::Malformed, "format", "duplicate key");
    }
}

/// Case 16.
#[tokio::test]
async fn an_attestation_by_the_right_one_is_no_signature() {
    let fixture = Fixture::new().await;
    let predicate = |kind: &str| {
        let mut statement = fixture.statement();
        statement["predicateType"] = kind.into();
        statement
    };
    for kind in [
        SLSA,
        "https://cosign.sigstore.dev/attestation/vuln/v1",
        "https://spdx.dev/Document",
        "",
    ] {
        let by_key = fixture
            .bundles(&[fixture.bare(&predicate(kind))], &fixture.trusts_key())
            .await;
        by_key.refused(Reason::NotASignature, "statement", kind);
        let by_workflow = fixture
            .bundles(
                &[fixture.keyless(&predicate(kind))],
                &fixture.trusts_workflow(),
            )
            .await;
        by_workflow.refused(Reason::NotASignature, "statement", kind);
    }
    fixture.registry.put_bundles(&fixture.digest, &[]);
    let mut other_type = fixture.payload();
    other_type["critical"]["type"] = "atomic container signature".into();
    let legacy = fixture
        .legacy(
            &[Legacy::sign(&fixture.key, &other_type)],
            &fixture.trusts_key(),
        )
        .await;
    legacy.refused(
        Reason::NotASignature,
        "statement",
        "atomic container signature",
    );
}

/// Case 16: what can't be read is not what was asked for.
#[tokio::test]
async fn a_required_attestation_that_can_not_be_read_is_missing() {
    let fixture = Fixture::new().await;
    let rule = AttestationRule::parse(
        "rule.rego",
        "package signature\n\nallow if input.predicate.builder == \"ci\"\n",
    );
    let attestation = Attestation {
        predicate_type: SLSA.into(),
        rule: Some(rule.unwrap()),
    };
    let wanted = policy_with([keyed(&fixture.key)], |wanted| {
        wanted.attestations = vec![attestation]
    });
    let saying = |predicate: Value| {
        let mut statement = fixture.statement();
        (statement["predicateType"], statement["predicate"]) = (SLSA.into(), predicate);
        fixture.bare(&statement)
    };
    let signature = fixture.bare(&fixture.statement());
    fixture
        .bundles(
            &[signature.clone(), saying(json!({"builder": "ci"}))],
            &wanted,
        )
        .await
        .accepted();
    let alone = fixture
        .bundles(std::slice::from_ref(&signature), &wanted)
        .await;
    alone.refused_as_a_whole(Reason::Attestation, "missing");
    for predicate in [
        json!("{\"builder\": \"ci\"}"),
        json!(null),
        json!({"builder": ["ci"]}),
        json!(7),
    ] {
        let judged = fixture
            .bundles(&[signature.clone(), saying(predicate)], &wanted)
            .await;
        judged.refused_as_a_whole(Reason::Attestation, "the rule");
    }
    let broken = Envelope::sign_as(
        &fixture.key,
        "application/vnd.in-toto+json",
        b"{\"predicate\": ",
    );
    let broken = broken.bundle(By::Key(&fixture.key), &[], &[]);
    let judged = fixture.bundles(&[signature, broken], &wanted).await;
    judged.refused_as_a_whole(Reason::Attestation, "missing");
}

/// Case 17.
#[tokio::test]
async fn an_envelope_holds_one_signature_of_an_in_toto_statement_about_something() {
    let fixture = Fixture::new().await;
    let key = fixture.trusts_key();
    let good = fixture.bare(&fixture.statement());
    let signature = &good["dsseEnvelope"]["signatures"][0];
    for signatures in [json!([]), json!([signature, signature])] {
        let mut bent = good.clone();
        bent["dsseEnvelope"]["signatures"] = signatures;
        fixture.bundles(&[bent], &key).await.refused(
            Reason::Malformed,
            "format",
            "exactly one signature",
        );
    }
    let mut bent = good;
    bent["dsseEnvelope"]["payloadType"] = "text/plain".into();
    fixture
        .bundles(&[bent], &key)
        .await
        .refused(Reason::AnotherKey, "signature", "no authority");
    let signed = Envelope::sign_as(
        &fixture.key,
        "text/plain",
        fixture.statement().to_string().as_bytes(),
    );
    let signed = fixture
        .bundles(&[signed.bundle(By::Key(&fixture.key), &[], &[])], &key)
        .await;
    signed.refused(Reason::NotASignature, "statement", "text/plain");
    let about = |subject: Value| {
        let mut statement = fixture.statement();
        statement["subject"] = subject;
        fixture.bare(&statement)
    };
    let us = json!({"digest": {"sha256": fixture.digest.hex()}});
    fixture
        .bundles(&[about(json!([{"digest": {"sha256": "00"}}, us]))], &key)
        .await
        .accepted();
    fixture.bundles(&[about(json!([]))], &key).await.refused(
        Reason::OtherDigest,
        "digest",
        "nothing",
    );
    let crowd = fixture
        .bundles(&[about(vec![us; 5_000].into())], &key)
        .await;
    crowd.refused(Reason::Malformed, "statement", "5000 subjects");
    let hundred_thousand = json!(vec![json!({"digest": {}}); 100_000]);
    let judged = fixture.bundles(&[about(hundred_thousand)], &key).await;
    judged.refused_as_a_whole(Reason::Unsigned, "too many for a signature");
    let sha512 = json!([{"digest": {"sha512": "ab".repeat(64)}}]);
    fixture
        .bundles(&[about(sha512)], &key)
        .await
        .refused(Reason::OtherDigest, "digest", "sha512:");
}

/// Case 28.
#[tokio::test]
async fn a_referrer_of_another_digest_or_with_other_bytes_counts_for_nothing_however_it_is_listed()
{
    let fixture = Fixture::new().await;
    let (key, bundle) = (
        fixture.trusts_key(),
        fixture.bare(&fixture.statement()).to_string(),
    );
    let other = Digest::sha256(b"other");
    let list = |entry: &Value| {
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([entry]))
    };
    let attach = |bend: fn(&mut Value)| {
        fixture
            .registry
            .put_referrer(&fixture.digest, bundle.as_bytes(), bend)
    };
    list(&attach(|_| {}));
    fixture.verify(&key).await.accepted();
    list(&attach(|referrer| {
        referrer["subject"]["digest"] = Digest::sha256(b"other").to_string().into()
    }));
    fixture
        .verify(&key)
        .await
        .refused(Reason::OtherDigest, "referrer", other.as_str());
    list(&attach(|referrer| {
        drop(referrer.as_object_mut().unwrap().remove("subject"))
    }));
    fixture
        .verify(&key)
        .await
        .refused(Reason::Malformed, "referrer", "without a subject");
    let entry = attach(|referrer| referrer["annotations"]["x"] = "y".into());
    let name = entry["digest"].as_str().unwrap();
    let (kind, bytes) = fixture.registry.held(&format!("manifests/{name}")).unwrap();
    let bent = String::from_utf8(bytes.to_vec())
        .unwrap()
        .replace("\"y\"", "\"z\"");
    fixture
        .registry
        .put(&format!("manifests/{name}"), &kind, bent);
    list(&entry);
    fixture
        .verify(&key)
        .await
        .refused_as_a_whole(Reason::Unsigned, name);
}

/// Case 29, which is to be accepted: go-containerregistry wrote such lists for years.
#[tokio::test]
async fn a_list_that_lies_about_types_hides_no_signature() {
    let fixture = Fixture::new().await;
    let (key, bundle) = (
        fixture.trusts_key(),
        fixture.bare(&fixture.statement()).to_string(),
    );
    let entry = fixture
        .registry
        .put_referrer(&fixture.digest, bundle.as_bytes(), |_| {});
    let wrong = [
        json!(media_type::EMPTY),
        json!("application/vnd.example"),
        Value::Null,
    ];
    for artifact_type in wrong {
        let mut entry = entry.clone();
        (entry["artifactType"], entry["annotations"]) = (artifact_type, Value::Null);
        entry
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([entry]));
        fixture.verify(&key).await.accepted();
        // The same under the fallback tag, where there is no API, and where it knows nothing.
        for api in [None, Some(json!([]))] {
            fixture
                .registry
                .remove(&format!("referrers/{}", fixture.digest));
            api.iter()
                .for_each(|entries| fixture.registry.list_referrers(&fixture.digest, entries));
            let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
            let tag = format!("manifests/sha256-{}", fixture.digest.hex());
            fixture
                .registry
                .put(&tag, media_type::OCI_INDEX, index.to_string());
            fixture.verify(&key).await.accepted();
            fixture.registry.remove(&tag);
        }
    }
}

/// Case 30.
#[tokio::test]
async fn what_is_weaker_than_the_policy_wants_does_not_stand_in_for_what_is_gone() {
    let fixture = Fixture::new().await;
    let legacy = [Legacy::sign(&fixture.key, &fixture.payload())];
    fixture
        .legacy(&legacy, &fixture.trusts_key())
        .await
        .accepted();
    let bundles_only = policy_with([keyed(&fixture.key)], |wanted| {
        wanted.formats = [Format::Bundle].into()
    });
    fixture
        .legacy(&legacy, &bundles_only)
        .await
        .refused(Reason::Format, "format", "legacy");
    fixture
        .registry
        .remove(&format!("manifests/sha256-{}.sig", fixture.digest.hex()));
    let legacy_only = policy_with([keyed(&fixture.key)], |wanted| {
        wanted.formats = [Format::Legacy].into()
    });
    let bundle = fixture.bare(&fixture.statement());
    fixture
        .bundles(std::slice::from_ref(&bundle), &legacy_only)
        .await
        .refused(Reason::Format, "format", "bundle");
    // A good key, where a log has to have seen it.
    let logged = policy([keyed_in_log(&fixture.key, fixture.forge.trust())]);
    fixture
        .bundles(std::slice::from_ref(&bundle), &logged)
        .await
        .refused(Reason::Log, "log", "in no transparency log");
    for version in ["0.1", "0.2"] {
        let mut old = fixture.keyless(&fixture.statement());
        old["mediaType"] =
            format!("application/vnd.dev.sigstore.bundle+json;version={version}").into();
        let judged = fixture
            .bundles(std::slice::from_ref(&old), &fixture.trusts_workflow())
            .await;
        judged.refused(Reason::Malformed, "format", &format!("version={version}"));
        // Nor is it looked at when the layer says so itself.
        let bent = old["mediaType"].clone();
        let entry = fixture.registry.put_referrer(
            &fixture.digest,
            old.to_string().as_bytes(),
            |referrer| {
                referrer["layers"][0]["mediaType"] = bent;
            },
        );
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([entry]));
        fixture
            .verify(&fixture.trusts_workflow())
            .await
            .refused_as_a_whole(Reason::Unsigned, "no signature");
    }
    let mut message = bundle;
    let envelope = message
        .as_object_mut()
        .unwrap()
        .remove("dsseEnvelope")
        .unwrap();
    message["messageSignature"] = json!({"signature": envelope["signatures"][0]["sig"]});
    let message = fixture.bundles(&[message], &fixture.trusts_key()).await;
    message.refused(Reason::Malformed, "format", "one DSSE envelope");
}

/// Case 35.
#[tokio::test]
async fn annotations_count_with_their_type_and_beside_this_digest_only() {
    let fixture = Fixture::new().await;
    let wanted = policy_with(
        [keyed(&fixture.key), keyless(fixture.forge.trust())],
        |wanted| {
            wanted.annotations = [("level".to_owned(), json!("1"))].into();
        },
    );
    let annotated = |annotations: Value| {
        let mut statement = fixture.statement();
        statement["subject"][0]["annotations"] = annotations.clone();
        let mut payload = fixture.payload();
        payload["optional"] = annotations;
        (statement, payload)
    };
    let (statement, payload) = annotated(json!({"level": "1", "more": true}));
    fixture
        .bundles(&[fixture.bare(&statement)], &wanted)
        .await
        .accepted();
    fixture
        .bundles(&[fixture.keyless(&statement)], &wanted)
        .await
        .accepted();
    fixture
        .bundles(&[], &wanted)
        .await
        .refused_as_a_whole(Reason::Unsigned, "no signature");
    fixture
        .legacy(&[Legacy::sign(&fixture.key, &payload)], &wanted)
        .await
        .accepted();
    fixture.registry.put_legacy(&fixture.digest, &[]);
    let bent = [
        (json!({"level": 1}), "level is 1, not"),
        (json!({"level": "2"}), "level is \"2\""),
        (json!({}), "missing"),
    ];
    for (annotations, words) in bent {
        let (statement, payload) = annotated(annotations);
        fixture
            .bundles(&[fixture.bare(&statement)], &wanted)
            .await
            .refused(Reason::Annotations, "annotations", words);
        fixture
            .bundles(&[fixture.keyless(&statement)], &wanted)
            .await
            .refused(Reason::Annotations, "annotations", words);
        fixture.registry.put_bundles(&fixture.digest, &[]);
        let judged = fixture
            .legacy(&[Legacy::sign(&fixture.key, &payload)], &wanted)
            .await;
        judged.refused(Reason::Annotations, "annotations", words);
        fixture.registry.put_legacy(&fixture.digest, &[]);
    }
    let mut elsewhere = fixture.statement();
    let other = json!({"digest": {"sha256": Digest::sha256(b"other").hex()}, "annotations": {"level": "1"}});
    elsewhere["subject"]
        .as_array_mut()
        .unwrap()
        .insert(0, other);
    let judged = fixture.bundles(&[fixture.bare(&elsewhere)], &wanted).await;
    judged.refused(Reason::Annotations, "annotations", "missing");
}

/// Case 20: a bundle is JSON, and nothing is inflated to find out.
#[tokio::test]
async fn a_compressed_bundle_is_no_bundle() {
    use std::io::Write as _;
    let fixture = Fixture::new().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(fixture.bare(&fixture.statement()).to_string().as_bytes())
        .unwrap();
    let bomb = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![b' '; 64 << 20]).unwrap();
        gzip.finish().unwrap()
    };
    for bytes in [gzip.finish().unwrap(), bomb] {
        let entry = fixture
            .registry
            .put_referrer(&fixture.digest, &bytes, |_| {});
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([entry]));
        fixture.verify(&fixture.trusts_key()).await.refused(
            Reason::Malformed,
            "format",
            "not strict JSON",
        );
    }
}
