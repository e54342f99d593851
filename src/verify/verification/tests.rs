//! Each requirement of a policy by itself, with signatures by keys.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sigstore_verify::{crypto::KeyPair, types::dsse::pae};

use crate::{
    oci::{Descriptor, Digest, Manifest, PinnedReference, Reference, cosign, media_type},
    verify::{
        Attestation, AttestationRule, Authority, AuthorityKey, AuthorityKind, ClaimedRepository,
        Evidence, Format, PublicKey, Reason, Requirements, TlogPolicy, TrustPolicy, VerdictCache,
        VerificationContext, VerificationError, Verified,
        evidence::{LegacySignature, SignatureBundle},
    },
};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT: &str = "application/vnd.in-toto+json";
const SLSA: &str = "https://slsa.dev/provenance/v1";

/// A holder of a private key.
struct KeyHolder(KeyPair);

impl KeyHolder {
    fn new() -> Self {
        Self(KeyPair::generate_ecdsa_p256().unwrap())
    }

    fn key(&self) -> PublicKey {
        PublicKey::from_pem(&self.0.public_key_der().unwrap().to_pem()).unwrap()
    }

    fn named(&self, name: &str) -> Authority {
        Authority::with_keys(name.to_owned(), [self.key()])
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes).unwrap().as_bytes())
    }

    fn legacy(&self, optional: Value) -> Evidence {
        let payload = json!({ "critical": { "identity": { "docker-reference": "r.example/a" },
            "image": { "docker-manifest-digest": artifact().digest() }, "type": "cosign container image signature" },
            "optional": optional });
        let payload = Bytes::from(payload.to_string());
        let signature = self.sign(&payload);
        Evidence {
            legacy: vec![LegacySignature {
                signature,
                payload,
                ..LegacySignature::default()
            }],
            ..Evidence::default()
        }
    }

    fn states(&self, predicate_type: &str, predicate: Value, annotations: Value) -> Evidence {
        let subject = json!([
            { "digest": { "sha256": Digest::sha256(b"other").hex() }, "annotations": { "env": "dev" } },
            { "digest": { "sha256": artifact().digest().hex() }, "annotations": annotations },
        ]);
        let statement = json!({ "_type": "https://in-toto.io/Statement/v1", "subject": subject,
            "predicateType": predicate_type, "predicate": predicate })
        .to_string();
        let bundle = json!({ "mediaType": BUNDLE, "verificationMaterial": { "publicKey": { "hint": "x" } },
            "dsseEnvelope": { "payload": STANDARD.encode(&statement), "payloadType": STATEMENT,
                "signatures": [{ "sig": self.sign(&pae(STATEMENT, statement.as_bytes())) }] } });
        let bundle = Bytes::from(bundle.to_string());
        let referrer = manifest(&json!({ "layers": [Descriptor::of(BUNDLE, &bundle)],
            "subject": { "mediaType": media_type::OCI_MANIFEST, "size": 2, "digest": artifact().digest() } }));
        let attached = SignatureBundle {
            referrer: referrer.raw().clone(),
            bundle,
        };
        Evidence {
            bundles: vec![attached],
            ..Evidence::default()
        }
    }

    fn signs(&self) -> Evidence {
        self.states(cosign::SIGN_PREDICATE, json!({}), json!({}))
    }
}

fn manifest(extra: &Value) -> Manifest {
    let mut whole = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [] });
    whole
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    Manifest::parse(whole.to_string().into(), None, 1 << 20).unwrap()
}

fn artifact() -> Manifest {
    manifest(&json!({}))
}

fn pinned() -> PinnedReference {
    format!("r.example/a@{}", artifact().digest())
        .parse::<Reference>()
        .unwrap()
        .pinned()
        .unwrap()
}

fn all(evidence: impl IntoIterator<Item = Evidence>) -> Evidence {
    evidence
        .into_iter()
        .fold(Evidence::default(), |mut all, one| {
            all.bundles.extend(one.bundles);
            all.legacy.extend(one.legacy);
            all
        })
}

fn policy(requirements: Requirements) -> TrustPolicy {
    TrustPolicy::signed("p".into(), requirements).unwrap()
}

fn verify_at(
    now: Timestamp,
    requirements: &Requirements,
    evidence: &Evidence,
) -> Result<Verified<Manifest>, VerificationError> {
    let context = VerificationContext {
        now,
        ..VerificationContext::now()
    };
    Verified::verify_with_report(
        &policy(requirements.clone()),
        &pinned(),
        artifact(),
        evidence,
        context,
    )
    .0
}

fn verify(
    requirements: &Requirements,
    evidence: &Evidence,
) -> Result<Verified<Manifest>, VerificationError> {
    verify_at(Timestamp::now(), requirements, evidence)
}

#[track_caller]
fn refused(requirements: &Requirements, evidence: &Evidence, reason: Reason) -> String {
    let error = verify(requirements, evidence).unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    error.to_string()
}

#[test]
fn at_least_counts_authorities_and_not_signatures() {
    let [one, two, three] = [KeyHolder::new(), KeyHolder::new(), KeyHolder::new()];
    let authorities = vec![one.named("one"), two.named("two"), three.named("three")];
    let wanted = Requirements {
        at_least: 2,
        ..Requirements::any_of(authorities)
    };
    let message = refused(
        &wanted,
        &all([one.signs(), one.signs(), one.legacy(json!({}))]),
        Reason::TooFewVotes,
    );
    assert!(message.contains("1 of 2: one"), "{message}");
    let verified = verify(&wanted, &all([one.signs(), three.legacy(json!({}))])).unwrap();
    let voters: Vec<_> = verified
        .signers()
        .iter()
        .map(|signer| signer.authority.as_str())
        .collect();
    assert_eq!(voters, ["one", "three"]);
    let all_three = Requirements {
        at_least: 3,
        ..wanted
    };
    refused(
        &all_three,
        &all([one.signs(), two.signs()]),
        Reason::TooFewVotes,
    );
    assert!(verify(&all_three, &all([one.signs(), two.signs(), three.signs()])).is_ok());
}

#[test]
fn a_signature_by_a_revoked_key_never_counts_and_is_reported() {
    let (old, new) = (KeyHolder::new(), KeyHolder::new());
    let keys = vec![
        AuthorityKey {
            revoked: true,
            ..old.key().into()
        },
        new.key().into(),
    ];
    let team = Authority {
        name: "team".into(),
        kind: AuthorityKind::Keys(keys),
        tlog: TlogPolicy::None,
        root: None,
    };
    let wanted = Requirements::any_of(vec![team]);
    assert!(refused(&wanted, &old.signs(), Reason::RevokedKey).contains(old.key().identity()));
    assert!(verify(&wanted, &all([old.signs(), new.signs()])).is_ok());
    // Another failure does not hide it.
    let with_other = Requirements {
        at_least: 2,
        ..Requirements::any_of(vec![
            wanted.authorities[0].clone(),
            KeyHolder::new().named("x"),
        ])
    };
    let short = verify(&with_other, &all([old.signs(), new.signs()])).unwrap_err();
    assert!(
        short.revoked && short.reason == Reason::TooFewVotes,
        "{short}"
    );
    // Revoking the last key has to be possible, and then nothing passes.
    let keys = vec![AuthorityKey {
        revoked: true,
        ..old.key().into()
    }];
    let team = Authority {
        name: "team".into(),
        kind: AuthorityKind::Keys(keys),
        tlog: TlogPolicy::None,
        root: None,
    };
    refused(
        &Requirements::any_of(vec![team]),
        &old.signs(),
        Reason::RevokedKey,
    );
}

#[test]
fn a_key_counts_from_not_before_until_not_after_and_the_verification_ends_with_it() {
    let holder = KeyHolder::new();
    let now = Timestamp::now();
    let [before, after] = [
        now - SignedDuration::from_hours(1),
        now + SignedDuration::from_hours(1),
    ];
    let with = |not_before: Option<Timestamp>, not_after: Option<Timestamp>| {
        let key = AuthorityKey {
            not_before,
            not_after,
            ..holder.key().into()
        };
        let team = Authority {
            name: "team".into(),
            kind: AuthorityKind::Keys(vec![key]),
            tlog: TlogPolicy::None,
            root: None,
        };
        Requirements::any_of(vec![team])
    };
    let wanted = with(Some(before), Some(after));
    assert_eq!(
        verify_at(now, &wanted, &holder.signs())
            .unwrap()
            .valid_until(),
        Some(after)
    );
    for (window, when) in [((None, Some(before)), now), ((Some(after), None), now)] {
        let error = verify_at(when, &with(window.0, window.1), &holder.signs()).unwrap_err();
        assert_eq!(error.reason, Reason::Validity, "{error}");
    }
    assert_eq!(
        verify_at(after, &wanted, &holder.signs())
            .unwrap()
            .valid_until(),
        Some(after)
    );
    assert!(
        verify_at(
            after + SignedDuration::from_nanos(1),
            &wanted,
            &holder.signs()
        )
        .is_err()
    );
    assert_eq!(
        verify(&with(Some(before), None), &holder.signs())
            .unwrap()
            .valid_until(),
        None
    );
}

#[test]
fn annotations_are_compared_with_their_types_and_on_the_right_subject() {
    let holder = KeyHolder::new();
    let annotations = [
        ("env".to_owned(), json!("prod")),
        ("wave".to_owned(), json!(1)),
    ]
    .into();
    let wanted = Requirements {
        annotations,
        ..Requirements::any_of(vec![holder.named("one")])
    };
    let good = json!({ "env": "prod", "wave": 1, "more": true });
    assert!(verify(&wanted, &holder.legacy(good.clone())).is_ok());
    assert!(
        verify(
            &wanted,
            &holder.states(cosign::SIGN_PREDICATE, json!({}), good)
        )
        .is_ok()
    );
    for bad in [
        json!({}),
        json!({ "env": "prod" }),
        json!({ "env": "prod", "wave": "1" }),
        json!({ "env": "dev", "wave": 1 }),
    ] {
        refused(&wanted, &holder.legacy(bad.clone()), Reason::Annotations);
        refused(
            &wanted,
            &holder.states(cosign::SIGN_PREDICATE, json!({}), bad),
            Reason::Annotations,
        );
    }
    refused(&wanted, &holder.legacy(Value::Null), Reason::Annotations);
    // The first subject has `dev`, but is another artifact.
    let dev = Requirements {
        annotations: [("env".to_owned(), json!("dev"))].into(),
        ..wanted
    };
    refused(
        &dev,
        &holder.states(cosign::SIGN_PREDICATE, json!({}), json!({ "env": "prod" })),
        Reason::Annotations,
    );
}

#[test]
fn a_signature_in_a_format_outside_of_formats_does_not_count() {
    let holder = KeyHolder::new();
    let only = |format| Requirements {
        formats: BTreeSet::from([format]),
        ..Requirements::any_of(vec![holder.named("one")])
    };
    refused(
        &only(Format::Bundle),
        &holder.legacy(json!({})),
        Reason::Format,
    );
    refused(&only(Format::Legacy), &holder.signs(), Reason::Format);
    assert!(
        verify(
            &only(Format::Legacy),
            &all([holder.signs(), holder.legacy(json!({}))])
        )
        .is_ok()
    );
}

#[test]
fn claimed_repository_holds_for_legacy_signatures_only() {
    let holder = KeyHolder::new();
    let claiming = |claimed_repository| Requirements {
        claimed_repository,
        ..Requirements::any_of(vec![holder.named("one")])
    };
    assert!(
        verify(
            &claiming(ClaimedRepository::Match),
            &holder.legacy(json!({}))
        )
        .is_ok()
    );
    assert!(
        verify(
            &claiming(ClaimedRepository::Exactly("r.example/a".into())),
            &holder.legacy(json!({}))
        )
        .is_ok()
    );
    let elsewhere = claiming(ClaimedRepository::Exactly("r.example/b".into()));
    assert!(
        refused(&elsewhere, &holder.legacy(json!({})), Reason::Repository).contains("r.example/a")
    );
    // Bundles name none.
    assert!(verify(&elsewhere, &holder.signs()).is_ok());
}

#[test]
fn a_revoked_digest_is_refused_whoever_signed_it() {
    let holder = KeyHolder::new();
    let revoked_digests = BTreeSet::from([artifact().digest().clone()]);
    let wanted = Requirements {
        revoked_digests,
        ..Requirements::any_of(vec![holder.named("one")])
    };
    refused(&wanted, &holder.signs(), Reason::RevokedDigest);
}

#[test]
fn an_attestation_is_no_signature_and_a_signature_is_no_attestation() {
    let (holder, other) = (KeyHolder::new(), KeyHolder::new());
    let provenance =
        |who: &KeyHolder, builder: &str| who.states(SLSA, json!({ "builder": builder }), json!({}));
    let plain = Requirements::any_of(vec![holder.named("one")]);
    refused(&plain, &provenance(&holder, "ci"), Reason::NotASignature);
    assert!(verify(&plain, &all([holder.signs(), provenance(&holder, "ci")])).is_ok());

    let attested = |rule: Option<&str>| Requirements {
        attestations: vec![Attestation {
            predicate_type: SLSA.to_owned(),
            rule: rule.map(|text| AttestationRule::parse("rule.rego", text).unwrap()),
        }],
        ..plain.clone()
    };
    let any = attested(None);
    refused(&any, &holder.signs(), Reason::Attestation);
    refused(&any, &provenance(&holder, "ci"), Reason::Unsigned);
    refused(
        &any,
        &all([holder.signs(), provenance(&other, "ci")]),
        Reason::Attestation,
    );
    assert!(verify(&any, &all([holder.signs(), provenance(&holder, "laptop")])).is_ok());

    let by_ci = attested(Some(
        "package signature\nallow if input.predicate.builder == \"ci\"\n",
    ));
    let message = refused(
        &by_ci,
        &all([holder.signs(), provenance(&holder, "laptop")]),
        Reason::Attestation,
    );
    assert!(message.contains("does not satisfy the rule"), "{message}");
    assert!(
        verify(
            &by_ci,
            &all([
                holder.signs(),
                provenance(&holder, "laptop"),
                provenance(&holder, "ci")
            ])
        )
        .is_ok()
    );
}

#[test]
fn a_verification_ends_with_its_attestations() {
    let (signer, scanner) = (KeyHolder::new(), KeyHolder::new());
    let now = Timestamp::now();
    let until = now + SignedDuration::from_mins(10);
    let key = AuthorityKey {
        not_after: Some(until),
        ..scanner.key().into()
    };
    let scans = Authority {
        name: "scanner".into(),
        kind: AuthorityKind::Keys(vec![key]),
        tlog: TlogPolicy::None,
        root: None,
    };
    let wanted = |rule: Option<&str>| Requirements {
        attestations: vec![Attestation {
            predicate_type: SLSA.to_owned(),
            rule: rule.map(|text| AttestationRule::parse("rule.rego", text).unwrap()),
        }],
        ..Requirements::any_of(vec![signer.named("team"), scans.clone()])
    };
    let by = |who: &KeyHolder| all([signer.signs(), who.states(SLSA, json!({}), json!({}))]);
    assert_eq!(
        verify_at(now, &wanted(None), &by(&scanner))
            .unwrap()
            .valid_until(),
        Some(until)
    );
    assert_eq!(
        verify_at(now, &wanted(None), &by(&signer))
            .unwrap()
            .valid_until(),
        None
    );
    // The latest end counts.
    let both = all([by(&scanner), signer.states(SLSA, json!({}), json!({}))]);
    assert_eq!(
        verify_at(now, &wanted(None), &both).unwrap().valid_until(),
        None
    );
    // A rule may depend on the clock: it is evaluated again, and its result holds until then.
    let rule = "package signature\nallow if true\n";
    let ruled = verify_at(now, &wanted(Some(rule)), &by(&signer)).unwrap();
    assert_eq!(
        (ruled.valid_until(), ruled.due()),
        (None, Some(now + SignedDuration::from_hours(1)))
    );
    let ending = verify_at(now, &wanted(Some(rule)), &by(&scanner)).unwrap();
    assert_eq!(
        (ending.valid_until(), ending.due()),
        (Some(until), Some(until))
    );
}

#[test]
fn predicate_types_replace_the_type_of_a_signature() {
    let holder = KeyHolder::new();
    let predicate_types = BTreeSet::from([SLSA.to_owned()]);
    let wanted = Requirements {
        predicate_types,
        ..Requirements::any_of(vec![holder.named("one")])
    };
    assert!(verify(&wanted, &holder.states(SLSA, json!({}), json!({}))).is_ok());
    refused(&wanted, &holder.signs(), Reason::NotASignature);
}

#[test]
fn a_policy_that_accepts_nothing_or_everything_is_rejected() {
    let holder = KeyHolder::new();
    let good = Requirements::any_of(vec![holder.named("one")]);
    let key_of = |requirements| {
        TrustPolicy::signed("p".into(), requirements)
            .unwrap_err()
            .key
    };
    assert_eq!(key_of(Requirements::any_of(Vec::new())), "require");
    assert_eq!(
        key_of(Requirements {
            at_least: 0,
            ..good.clone()
        }),
        "require"
    );
    assert_eq!(
        key_of(Requirements {
            at_least: 2,
            ..good.clone()
        }),
        "require"
    );
    assert_eq!(
        key_of(Requirements::any_of(vec![
            holder.named("one"),
            holder.named("two")
        ])),
        "require"
    );
    assert_eq!(
        key_of(Requirements {
            formats: BTreeSet::new(),
            ..good.clone()
        }),
        "formats"
    );
    let ageing = Requirements {
        max_signature_age: Some(std::time::Duration::from_secs(1)),
        ..good
    };
    assert_eq!(key_of(ageing), "max_signature_age");
    let logged = Authority {
        tlog: TlogPolicy::Require,
        ..holder.named("one")
    };
    assert_eq!(key_of(Requirements::any_of(vec![logged])), "require");
}

#[test]
fn every_part_of_a_policy_is_part_of_its_revision() {
    let holder = KeyHolder::new();
    let base = Requirements::any_of(vec![holder.named("one"), KeyHolder::new().named("two")]);
    let windowed = AuthorityKey {
        not_after: Some(Timestamp::MAX),
        ..holder.key().into()
    };
    let team = Authority {
        name: "one".into(),
        kind: AuthorityKind::Keys(vec![windowed]),
        tlog: TlogPolicy::None,
        root: None,
    };
    let mut revisions: Vec<_> = [
        base.clone(),
        Requirements {
            at_least: 2,
            ..base.clone()
        },
        Requirements {
            authorities: base.authorities[..1].to_vec(),
            ..base.clone()
        },
        Requirements {
            authorities: vec![team, base.authorities[1].clone()],
            ..base.clone()
        },
        Requirements {
            predicate_types: BTreeSet::from([SLSA.to_owned()]),
            ..base.clone()
        },
        Requirements {
            formats: BTreeSet::from([Format::Bundle]),
            ..base.clone()
        },
        Requirements {
            annotations: [("a".to_owned(), json!(1))].into(),
            ..base.clone()
        },
        Requirements {
            annotations: [("a".to_owned(), json!("1"))].into(),
            ..base.clone()
        },
        Requirements {
            claimed_repository: ClaimedRepository::Match,
            ..base.clone()
        },
        Requirements {
            revoked_digests: BTreeSet::from([artifact().digest().clone()]),
            ..base.clone()
        },
        Requirements {
            signatures: Some(pinned().repository().clone()),
            ..base.clone()
        },
    ]
    .into_iter()
    .map(|requirements| policy(requirements).revision().to_string())
    .collect();
    assert_eq!(policy(base.clone()).revision(), policy(base).revision());
    let count = revisions.len();
    revisions.sort();
    revisions.dedup();
    assert_eq!(revisions.len(), count);
}

#[test]
fn a_cached_verification_is_found_by_its_own_key_only_and_while_it_is_valid() {
    let holder = KeyHolder::new();
    let now = Timestamp::now();
    let until = now + SignedDuration::from_hours(1);
    let key = AuthorityKey {
        not_after: Some(until),
        ..holder.key().into()
    };
    let team = Authority {
        name: "team".into(),
        kind: AuthorityKind::Keys(vec![key]),
        tlog: TlogPolicy::None,
        root: None,
    };
    let loose = policy(Requirements::any_of(vec![team.clone()]));
    let strict = policy(Requirements {
        revoked_digests: BTreeSet::from([artifact().digest().clone()]),
        ..Requirements::any_of(vec![team])
    });
    let cache = VerdictCache::default();
    let ask = |policy: &TrustPolicy, evidence: &Evidence, now| {
        let context = VerificationContext {
            now,
            ..VerificationContext::now()
        };
        cache.verify_with_report(policy, &pinned(), artifact(), evidence, context)
    };
    let (first, report) = ask(&loose, &holder.signs(), now);
    let signs = holder.signs();
    assert!(first.is_ok() && ask(&loose, &signs, now).0.is_ok());
    let (again, told_again) = ask(&loose, &signs, now);
    assert_eq!(
        (again.unwrap().valid_until(), told_again.signatures.len()),
        (Some(until), report.signatures.len())
    );
    assert!(ask(&strict, &signs, now).0.is_err());
    assert!(ask(&loose, &Evidence::default(), now).0.is_err());
    assert!(
        ask(&loose, &signs, until + SignedDuration::from_secs(1))
            .0
            .is_err()
    );
}
