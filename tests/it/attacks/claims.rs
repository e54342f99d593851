//! What was signed is something else, or says something else.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Digest, media_type},
    verify::{Attestation, ClaimedRepository, Format, Reason, StatementRule},
};
use serde_json::{Value, json};

use super::fixture::{Scene, keyed, keyed_in_log, keyless, policy, policy_with};
use crate::forge::{By, Envelope, Legacy, SIGNATURE, payload, statement};

const SLSA: &str = "https://slsa.dev/provenance/v1";

/// Case 2.
#[tokio::test]
async fn a_signature_of_another_digest_under_this_ones_tag_vouches_for_nothing() {
    let scene = Scene::new().await;
    let (key, other) = (scene.trusts_key(), Digest::sha256(b"other"));
    scene.legacy(&[Legacy::sign(&scene.key, &scene.payload())], &key).await.accepted();
    let moved = Legacy::sign(&scene.key, &payload(&other, &scene.repository()));
    scene.legacy(&[moved], &key).await.refused(Reason::OtherDigest, "digest", other.as_str());
    scene.registry.remove(&format!("manifests/sha256-{}.sig", scene.digest.hex()));
    scene.bundles(&[scene.bare(&scene.statement())], &key).await.accepted();
    scene.bundles(&[scene.bare(&statement(&other))], &key).await.refused(Reason::OtherDigest, "digest", other.as_str());
    let keyless = scene.keyless(&statement(&other));
    scene.bundles(&[keyless], &scene.trusts_workflow()).await.refused(Reason::OtherDigest, "digest", other.as_str());
}

/// Case 3.
#[tokio::test]
async fn what_vouches_for_another_payload_does_not_vouch_for_a_forged_one() {
    let scene = Scene::new().await;
    let workflow = scene.trusts_workflow();
    scene.legacy(&[scene.legacy_keyless(&scene.payload())], &workflow).await.accepted();
    // Certificate, signature and log entry are real, and of another artifact.
    let real = scene.legacy_keyless(&payload(&Digest::sha256(b"other"), &scene.repository()));
    let forged = Legacy { payload: scene.payload().to_string().into_bytes(), ..real.clone() };
    scene.legacy(std::slice::from_ref(&forged), &workflow).await.refused(
        Reason::Signature,
        "signature",
        "verification failed",
    );
    for nonsense in ["", "AAAA", "bm8gc2lnbmF0dXJl"] {
        let forged = forged.clone().with(SIGNATURE, nonsense);
        scene.legacy(&[forged], &workflow).await.refused(Reason::Signature, "signature", "verification failed");
        let keyed = Legacy::sign(&scene.key, &scene.payload()).with(SIGNATURE, nonsense);
        scene.legacy(&[keyed], &scene.trusts_key()).await.refused(Reason::AnotherKey, "signature", "nobody");
    }
    let garbage = forged.with(SIGNATURE, "%%%");
    scene.legacy(&[garbage], &workflow).await.refused(Reason::Malformed, "format", "not base64");
}

/// Case 4.
#[tokio::test]
async fn a_digest_copied_to_another_repository_counts_where_the_policy_ignores_the_name() {
    let (here, there) = (Scene::new().await, Scene::new().await);
    assert_eq!(here.digest, there.digest);
    let named = Legacy::sign(&here.key, &here.payload());
    let claims =
        |claimed: ClaimedRepository| policy_with([keyed(&here.key)], |wanted| wanted.claimed_repository = claimed);
    let ignored = claims(ClaimedRepository::Ignore);
    here.legacy(std::slice::from_ref(&named), &ignored).await.accepted();
    there.legacy(std::slice::from_ref(&named), &ignored).await.accepted();
    for strict in [ClaimedRepository::Match, ClaimedRepository::Exactly(here.repository())] {
        here.legacy(std::slice::from_ref(&named), &claims(strict)).await.accepted();
    }
    let matching = there.legacy(std::slice::from_ref(&named), &claims(ClaimedRepository::Match)).await;
    matching.refused(Reason::Repository, "repository", &here.repository());
    let exact = claims(ClaimedRepository::Exactly(there.repository()));
    there.legacy(&[named], &exact).await.refused(Reason::Repository, "repository", &here.repository());
    let part = payload(&there.digest, &format!("{}-evil", there.repository()));
    let part = there.legacy(&[Legacy::sign(&here.key, &part)], &claims(ClaimedRepository::Match)).await;
    part.refused(Reason::Repository, "repository", "-evil");
}

/// Case 15. Even where a trusted key signed it: programs differ in which of two members counts.
#[tokio::test]
async fn a_member_that_is_there_twice_makes_a_document_unreadable_whichever_comes_first() {
    let scene = Scene::new().await;
    let key = scene.trusts_key();
    let (good, evil) = (scene.digest.to_string(), Digest::sha256(b"other").to_string());
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let member = |digest: &str| format!(r#""docker-manifest-digest":"{digest}""#);
        let twice =
            scene.payload().to_string().replace(&member(&good), &format!("{},{}", member(first), member(second)));
        let mut legacy = Legacy::sign(&scene.key, &json!({}));
        legacy.annotations.insert(SIGNATURE, STANDARD.encode(scene.key.sign(twice.as_bytes())));
        legacy.payload = twice.into_bytes();
        scene.legacy(&[legacy], &key).await.refused(Reason::Malformed, "statement", "duplicate key");
    }
    let mut capital = scene.payload();
    capital["critical"]["image"] = json!({"Docker-manifest-digest": good});
    let capital = Legacy::sign(&scene.key, &capital);
    scene.legacy(&[capital], &key).await.refused(Reason::Malformed, "statement", "docker-manifest-digest");
    scene.registry.remove(&format!("manifests/sha256-{}.sig", scene.digest.hex()));

    let hex = |digest: &str| format!(r#""sha256":"{}""#, digest.trim_start_matches("sha256:"));
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let twice = scene.statement().to_string().replace(&hex(&good), &format!("{},{}", hex(first), hex(second)));
        let envelope = Envelope::sign_as(&scene.key, "application/vnd.in-toto+json", twice.as_bytes());
        let bundle = envelope.bundle(By::Key(&scene.key), &[], &[]);
        scene.bundles(&[bundle], &key).await.refused(Reason::Malformed, "statement", "duplicate key");
    }
    let (good, evil) = (scene.bare(&scene.statement()), scene.bare(&statement(&Digest::sha256(b"other"))));
    for (first, second) in [(&good, &evil), (&evil, &good)] {
        let [first, second] = [first, second].map(|bundle| bundle["dsseEnvelope"].to_string());
        let text = format!(r#"{{"dsseEnvelope":{first},"dsseEnvelope":{second},"#);
        let rest = good.to_string();
        let text =
            rest.replacen(&format!("{{\"dsseEnvelope\":{}", good["dsseEnvelope"]), text.trim_end_matches(','), 1);
        scene.attach_text(&text);
        scene.judge(&key).await.refused(Reason::Malformed, "format", "duplicate key");
    }
}

/// Case 16.
#[tokio::test]
async fn an_attestation_by_the_right_one_is_no_signature() {
    let scene = Scene::new().await;
    let predicate = |kind: &str| {
        let mut statement = scene.statement();
        statement["predicateType"] = kind.into();
        statement
    };
    for kind in [SLSA, "https://cosign.sigstore.dev/attestation/vuln/v1", "https://spdx.dev/Document", ""] {
        let by_key = scene.bundles(&[scene.bare(&predicate(kind))], &scene.trusts_key()).await;
        by_key.refused(Reason::NotASignature, "statement", kind);
        let by_workflow = scene.bundles(&[scene.keyless(&predicate(kind))], &scene.trusts_workflow()).await;
        by_workflow.refused(Reason::NotASignature, "statement", kind);
    }
    scene.registry.put_bundles(&scene.digest, &[]);
    let mut other_type = scene.payload();
    other_type["critical"]["type"] = "atomic container signature".into();
    let legacy = scene.legacy(&[Legacy::sign(&scene.key, &other_type)], &scene.trusts_key()).await;
    legacy.refused(Reason::NotASignature, "statement", "atomic container signature");
}

/// Case 16: what can't be read is not what was asked for.
#[tokio::test]
async fn a_required_attestation_that_can_not_be_read_is_missing() {
    let scene = Scene::new().await;
    let rule = StatementRule::parse("rule.rego", "package signature\n\nallow if input.predicate.builder == \"ci\"\n");
    let attestation = Attestation { predicate_type: SLSA.into(), rule: Some(rule.unwrap()) };
    let wanted = policy_with([keyed(&scene.key)], |wanted| wanted.attestations = vec![attestation]);
    let saying = |predicate: Value| {
        let mut statement = scene.statement();
        (statement["predicateType"], statement["predicate"]) = (SLSA.into(), predicate);
        scene.bare(&statement)
    };
    let signature = scene.bare(&scene.statement());
    scene.bundles(&[signature.clone(), saying(json!({"builder": "ci"}))], &wanted).await.accepted();
    let alone = scene.bundles(std::slice::from_ref(&signature), &wanted).await;
    alone.refused_as_a_whole(Reason::Attestation, "missing");
    for predicate in [json!("{\"builder\": \"ci\"}"), json!(null), json!({"builder": ["ci"]}), json!(7)] {
        let judged = scene.bundles(&[signature.clone(), saying(predicate)], &wanted).await;
        judged.refused_as_a_whole(Reason::Attestation, "the rule");
    }
    let broken = Envelope::sign_as(&scene.key, "application/vnd.in-toto+json", b"{\"predicate\": ");
    let broken = broken.bundle(By::Key(&scene.key), &[], &[]);
    let judged = scene.bundles(&[signature, broken], &wanted).await;
    judged.refused_as_a_whole(Reason::Attestation, "missing");
}

/// Case 17.
#[tokio::test]
async fn an_envelope_holds_one_signature_of_an_in_toto_statement_about_something() {
    let scene = Scene::new().await;
    let key = scene.trusts_key();
    let good = scene.bare(&scene.statement());
    let signature = &good["dsseEnvelope"]["signatures"][0];
    for signatures in [json!([]), json!([signature, signature])] {
        let mut bent = good.clone();
        bent["dsseEnvelope"]["signatures"] = signatures;
        scene.bundles(&[bent], &key).await.refused(Reason::Malformed, "format", "exactly one signature");
    }
    let mut bent = good;
    bent["dsseEnvelope"]["payloadType"] = "text/plain".into();
    scene.bundles(&[bent], &key).await.refused(Reason::AnotherKey, "signature", "nobody");
    let signed = Envelope::sign_as(&scene.key, "text/plain", scene.statement().to_string().as_bytes());
    let signed = scene.bundles(&[signed.bundle(By::Key(&scene.key), &[], &[])], &key).await;
    signed.refused(Reason::NotASignature, "statement", "text/plain");
    let about = |subject: Value| {
        let mut statement = scene.statement();
        statement["subject"] = subject;
        scene.bare(&statement)
    };
    let us = json!({"digest": {"sha256": scene.digest.hex()}});
    scene.bundles(&[about(json!([{"digest": {"sha256": "00"}}, us]))], &key).await.accepted();
    scene.bundles(&[about(json!([]))], &key).await.refused(Reason::OtherDigest, "digest", "nothing");
    let crowd = scene.bundles(&[about(vec![us; 5_000].into())], &key).await;
    crowd.refused(Reason::Malformed, "statement", "5000 subjects");
    let hundred_thousand = json!(vec![json!({"digest": {}}); 100_000]);
    let judged = scene.bundles(&[about(hundred_thousand)], &key).await;
    judged.refused_as_a_whole(Reason::Unsigned, "too many for a signature");
    let sha512 = json!([{"digest": {"sha512": "ab".repeat(64)}}]);
    scene.bundles(&[about(sha512)], &key).await.refused(Reason::OtherDigest, "digest", "sha512:");
}

/// Case 28.
#[tokio::test]
async fn a_referrer_of_another_digest_or_with_other_bytes_counts_for_nothing_however_it_is_listed() {
    let scene = Scene::new().await;
    let (key, bundle) = (scene.trusts_key(), scene.bare(&scene.statement()).to_string());
    let other = Digest::sha256(b"other");
    let list = |entry: &Value| scene.registry.list_referrers(&scene.digest, &json!([entry]));
    let attach = |bend: fn(&mut Value)| scene.registry.put_referrer(&scene.digest, bundle.as_bytes(), bend);
    list(&attach(|_| {}));
    scene.judge(&key).await.accepted();
    list(&attach(|referrer| referrer["subject"]["digest"] = Digest::sha256(b"other").to_string().into()));
    scene.judge(&key).await.refused(Reason::OtherDigest, "referrer", other.as_str());
    list(&attach(|referrer| drop(referrer.as_object_mut().unwrap().remove("subject"))));
    scene.judge(&key).await.refused(Reason::Malformed, "referrer", "without a subject");
    let entry = attach(|referrer| referrer["annotations"]["x"] = "y".into());
    let name = entry["digest"].as_str().unwrap();
    let (kind, bytes) = scene.registry.held(&format!("manifests/{name}")).unwrap();
    let bent = String::from_utf8(bytes.to_vec()).unwrap().replace("\"y\"", "\"z\"");
    scene.registry.put(&format!("manifests/{name}"), &kind, bent);
    list(&entry);
    scene.judge(&key).await.refused_as_a_whole(Reason::Unsigned, name);
}

/// Case 29, which is to be accepted: go-containerregistry wrote such lists for years.
#[tokio::test]
async fn a_list_that_lies_about_types_hides_no_signature() {
    let scene = Scene::new().await;
    let (key, bundle) = (scene.trusts_key(), scene.bare(&scene.statement()).to_string());
    let entry = scene.registry.put_referrer(&scene.digest, bundle.as_bytes(), |_| {});
    let wrong = [json!(media_type::EMPTY), json!("application/vnd.example"), Value::Null];
    for artifact_type in wrong {
        let mut entry = entry.clone();
        (entry["artifactType"], entry["annotations"]) = (artifact_type, Value::Null);
        entry.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        scene.registry.list_referrers(&scene.digest, &json!([entry]));
        scene.judge(&key).await.accepted();
        // The same under the fallback tag, where there is no API, and where it knows nothing.
        for api in [None, Some(json!([]))] {
            scene.registry.remove(&format!("referrers/{}", scene.digest));
            api.iter().for_each(|entries| scene.registry.list_referrers(&scene.digest, entries));
            let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
            let tag = format!("manifests/sha256-{}", scene.digest.hex());
            scene.registry.put(&tag, media_type::OCI_INDEX, index.to_string());
            scene.judge(&key).await.accepted();
            scene.registry.remove(&tag);
        }
    }
}

/// Case 30.
#[tokio::test]
async fn what_is_weaker_than_the_policy_wants_does_not_stand_in_for_what_is_gone() {
    let scene = Scene::new().await;
    let legacy = [Legacy::sign(&scene.key, &scene.payload())];
    scene.legacy(&legacy, &scene.trusts_key()).await.accepted();
    let bundles_only = policy_with([keyed(&scene.key)], |wanted| wanted.formats = [Format::Bundle].into());
    scene.legacy(&legacy, &bundles_only).await.refused(Reason::Format, "format", "legacy");
    scene.registry.remove(&format!("manifests/sha256-{}.sig", scene.digest.hex()));
    let legacy_only = policy_with([keyed(&scene.key)], |wanted| wanted.formats = [Format::Legacy].into());
    let bundle = scene.bare(&scene.statement());
    scene.bundles(std::slice::from_ref(&bundle), &legacy_only).await.refused(Reason::Format, "format", "bundle");
    // A good key, where a log has to have seen it.
    let logged = policy([keyed_in_log(&scene.key, scene.forge.trust())]);
    scene.bundles(std::slice::from_ref(&bundle), &logged).await.refused(Reason::Log, "log", "in no transparency log");
    for version in ["0.1", "0.2"] {
        let mut old = scene.keyless(&scene.statement());
        old["mediaType"] = format!("application/vnd.dev.sigstore.bundle+json;version={version}").into();
        let judged = scene.bundles(std::slice::from_ref(&old), &scene.trusts_workflow()).await;
        judged.refused(Reason::Malformed, "format", &format!("version={version}"));
        // Nor is it looked at when the layer says so itself.
        let bent = old["mediaType"].clone();
        let entry = scene.registry.put_referrer(&scene.digest, old.to_string().as_bytes(), |referrer| {
            referrer["layers"][0]["mediaType"] = bent;
        });
        scene.registry.list_referrers(&scene.digest, &json!([entry]));
        scene.judge(&scene.trusts_workflow()).await.refused_as_a_whole(Reason::Unsigned, "no signature");
    }
    let mut message = bundle;
    let envelope = message.as_object_mut().unwrap().remove("dsseEnvelope").unwrap();
    message["messageSignature"] = json!({"signature": envelope["signatures"][0]["sig"]});
    let message = scene.bundles(&[message], &scene.trusts_key()).await;
    message.refused(Reason::Malformed, "format", "one DSSE envelope");
}

/// Case 35.
#[tokio::test]
async fn annotations_count_with_their_type_and_beside_this_digest_only() {
    let scene = Scene::new().await;
    let wanted = policy_with([keyed(&scene.key), keyless(scene.forge.trust())], |wanted| {
        wanted.annotations = [("level".to_owned(), json!("1"))].into();
    });
    let annotated = |annotations: Value| {
        let mut statement = scene.statement();
        statement["subject"][0]["annotations"] = annotations.clone();
        let mut payload = scene.payload();
        payload["optional"] = annotations;
        (statement, payload)
    };
    let (statement, payload) = annotated(json!({"level": "1", "more": true}));
    scene.bundles(&[scene.bare(&statement)], &wanted).await.accepted();
    scene.bundles(&[scene.keyless(&statement)], &wanted).await.accepted();
    scene.bundles(&[], &wanted).await.refused_as_a_whole(Reason::Unsigned, "no signature");
    scene.legacy(&[Legacy::sign(&scene.key, &payload)], &wanted).await.accepted();
    scene.registry.put_legacy(&scene.digest, &[]);
    let bent =
        [(json!({"level": 1}), "level is 1, not"), (json!({"level": "2"}), "level is \"2\""), (json!({}), "missing")];
    for (annotations, words) in bent {
        let (statement, payload) = annotated(annotations);
        scene.bundles(&[scene.bare(&statement)], &wanted).await.refused(Reason::Annotations, "annotations", words);
        scene.bundles(&[scene.keyless(&statement)], &wanted).await.refused(Reason::Annotations, "annotations", words);
        scene.registry.put_bundles(&scene.digest, &[]);
        let judged = scene.legacy(&[Legacy::sign(&scene.key, &payload)], &wanted).await;
        judged.refused(Reason::Annotations, "annotations", words);
        scene.registry.put_legacy(&scene.digest, &[]);
    }
    let mut elsewhere = scene.statement();
    let other = json!({"digest": {"sha256": Digest::sha256(b"other").hex()}, "annotations": {"level": "1"}});
    elsewhere["subject"].as_array_mut().unwrap().insert(0, other);
    let judged = scene.bundles(&[scene.bare(&elsewhere)], &wanted).await;
    judged.refused(Reason::Annotations, "annotations", "missing");
}

/// Case 20: a bundle is JSON, and nothing is inflated to find out.
#[tokio::test]
async fn a_compressed_bundle_is_no_bundle() {
    use std::io::Write as _;
    let scene = Scene::new().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(scene.bare(&scene.statement()).to_string().as_bytes()).unwrap();
    let bomb = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![b' '; 64 << 20]).unwrap();
        gzip.finish().unwrap()
    };
    for bytes in [gzip.finish().unwrap(), bomb] {
        let entry = scene.registry.put_referrer(&scene.digest, &bytes, |_| {});
        scene.registry.list_referrers(&scene.digest, &json!([entry]));
        scene.judge(&scene.trusts_key()).await.refused(Reason::Malformed, "format", "not strict JSON");
    }
}
