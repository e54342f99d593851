//! Certificates that should not be believed, and those of somebody else.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::verify::{
    Authority, AuthorityKind, CaRoots, FulcioExtension, Identity, Pattern, Reason, San as Subject,
    SigningTime, TlogPolicy, TrustPolicy, X509,
};
use serde_json::{Value, json};

use super::fixture::{Fixture, identified, keyed, keyless, policy};
use crate::forge::{
    By, CERTIFICATE, CHAIN, Certified, Content, Envelope, ISSUER, Key, Legacy, SIGNATURE, SUBJECT,
    San, Sct, Sigstore, Window, ca, minutes, trust, window,
};

fn exactly(text: &str) -> Pattern {
    Pattern::exact(text).unwrap()
}

/// Case 7.
#[tokio::test]
async fn an_identity_is_the_whole_of_the_name() {
    let fixture = Fixture::new().await;
    let by = |san: San| {
        let content = Content {
            san: Some(san),
            ..fixture.forge.content()
        };
        fixture.keyless_by(&fixture.forge.certify(&content), &fixture.statement())
    };
    let uri = |text: &str| by(San::Uri(text.into()));
    let trusting = |subject| policy([identified(fixture.forge.trust(), exactly(ISSUER), subject)]);
    let ours = "https://github.com/acme/policies/.github/workflows/release.yml@refs/";
    for (pattern, good, evil) in [
        (
            Pattern::exact(SUBJECT),
            SUBJECT,
            vec![
                format!("{SUBJECT}\n"),
                format!("\n{SUBJECT}"),
                format!("{SUBJECT}0"),
            ],
        ),
        (
            Pattern::glob(&format!("{ours}tags/*")),
            SUBJECT,
            vec![
                format!("{ours}heads/v1"),
                format!("{ours}tags/v1/x"),
                format!("{SUBJECT}\n"),
                format!("x{SUBJECT}"),
            ],
        ),
        (
            Pattern::regex("https://github.com/acme/policies"),
            "https://github.com/acme/policies",
            vec![
                "https://github.com/acme/policies-evil/.github/workflows/release.yml@refs/tags/v1"
                    .into(),
                "https://evil.example/?https://github.com/acme/policies".into(),
                "https://github.com/acme/policies\n".into(),
                "\nhttps://github.com/acme/policies".into(),
            ],
        ),
        (
            Pattern::regex("^https://a/|^https://b/$"),
            "https://b/",
            vec!["https://a/x".into(), "https://b/\n".into()],
        ),
    ] {
        let policy = trusting(pattern.unwrap());
        fixture.bundles(&[uri(good)], &policy).await.accepted();
        for evil in evil {
            let judged = fixture.bundles(&[uri(&evil)], &policy).await;
            judged.refused(Reason::Identity, "identity", ISSUER);
        }
    }
    let mail = trusting(exactly("ci@acme.example"));
    fixture
        .bundles(&[by(San::Email("ci@acme.example".into()))], &mail)
        .await
        .accepted();
    let judged = fixture
        .bundles(&[by(San::Email("ci@acme.example.evil".into()))], &mail)
        .await;
    judged.refused(Reason::Identity, "identity", "ci@acme.example.evil");
    let nobody = fixture
        .bundles(&[by(San::Dns("ci.acme.example".into()))], &mail)
        .await;
    nobody.refused(Reason::Identity, "identity", "\"\"");
}

/// Case 7, for the other half of an identity and for what surrounds it.
#[tokio::test]
async fn another_issuer_or_another_run_is_another_identity() {
    let fixture = Fixture::new().await;
    let claims = |issuer: &str, owner: &str| {
        let mut content = fixture.forge.content();
        content.bare_claims.clear();
        content.claims = vec![(8, issuer.into()), (15, owner.into())];
        fixture.keyless_by(&fixture.forge.certify(&content), &fixture.statement())
    };
    let mut workflow = keyless(fixture.forge.trust());
    let identity = Identity {
        issuer: exactly(ISSUER),
        subject: exactly(SUBJECT),
        claims: [(
            FulcioExtension::named("source_repository_id").unwrap(),
            exactly("123456"),
        )]
        .into(),
    };
    workflow.kind = AuthorityKind::Keyless(identity);
    let policy = policy([workflow]);
    fixture
        .bundles(&[claims(ISSUER, "123456")], &policy)
        .await
        .accepted();
    let evil = "https://token.actions.githubusercontent.com.evil";
    fixture
        .bundles(&[claims(evil, "123456")], &policy)
        .await
        .refused(Reason::Identity, "identity", evil);
    fixture
        .bundles(&[claims(ISSUER, "1234567")], &policy)
        .await
        .refused(Reason::Claim, "identity", "1234567");
    let mut silent = fixture.forge.content();
    silent.claims.retain(|(number, _)| *number == 8);
    let silent = fixture.keyless_by(&fixture.forge.certify(&silent), &fixture.statement());
    fixture
        .bundles(&[silent], &policy)
        .await
        .refused(Reason::Claim, "identity", "missing");
    // The old extension and the new one name different issuers: programs differ in which they read.
    let mut two = fixture.forge.content();
    two.bare_claims = vec![(1, evil.into())];
    let two = fixture.keyless_by(&fixture.forge.certify(&two), &fixture.statement());
    fixture.bundles(&[two], &policy).await.refused(
        Reason::Certificate,
        "certificate",
        "two different issuers",
    );
}

/// Case 8.
#[tokio::test]
async fn a_certificate_counts_only_with_a_proof_that_it_was_valid() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    let (by, envelope) = (
        By::Certificate(&fixture.signer),
        Envelope::sign(&fixture.signer.key, &fixture.statement()),
    );
    let unlogged = fixture
        .bundles(&[envelope.bundle(by, &[], &[])], &workflow)
        .await;
    unlogged.refused(Reason::Log, "log", "in no transparency log");
    // Proof that it is in the log, but none of the time.
    let mut entry = fixture.forge.log_envelope(by, &envelope);
    entry.promise = None;
    let untimed = fixture
        .bundles(&[envelope.bundle(by, &[entry], &[])], &workflow)
        .await;
    untimed.refused(
        Reason::Timestamp,
        "timestamp",
        "without the log's signed time",
    );
    fixture.registry.put_bundles(&fixture.digest, &[]);
    let legacy = Legacy::sign(&fixture.signer.key, &fixture.payload()).certified(&fixture.signer);
    fixture.legacy(&[legacy], &workflow).await.refused(
        Reason::Log,
        "log",
        "in no transparency log",
    );
    fixture.registry.put_legacy(&fixture.digest, &[]);
    // Signed an hour after it had expired, and an hour before it was valid.
    for late in [70, -60] {
        let mut content = fixture.forge.content();
        let then = fixture.forge.then - minutes(late);
        content.valid = Window::around(then, minutes(1), minutes(9));
        let bundle = fixture.keyless_by(&fixture.forge.certify(&content), &fixture.statement());
        let judged = fixture.bundles(&[bundle], &workflow).await;
        judged.refused(
            Reason::Certificate,
            "certificate",
            if late > 0 { "Expired" } else { "NotValidYet" },
        );
    }
}

/// Case 8: cosign looked at the leaf alone (CVE-2026-24122).
#[tokio::test]
async fn an_expired_intermediate_is_rejected() {
    let mut fixture = Fixture::new().await;
    let then = fixture.forge.then;
    let expired = Window::around(then, minutes(1000), minutes(-10));
    for (valid, good) in [(fixture.forge.valid, true), (expired, false)] {
        let intermediate =
            fixture
                .forge
                .root
                .issue("intermediate", Key::p384(), &ca(valid), &Sct::Missing);
        fixture.forge.intermediate = intermediate;
        let signer = fixture.forge.signer();
        let judged = fixture
            .bundles(
                &[fixture.keyless_by(&signer, &fixture.statement())],
                &fixture.trusts_workflow(),
            )
            .await;
        if good {
            judged.accepted();
        } else {
            judged.refused(Reason::Certificate, "certificate", "UnknownIssuer");
        }
    }
    // As it comes with the signature, under an authority of one's own.
    let private = private(&fixture.forge, &fixture.forge.root.pem(), SigningTime::Tsa);
    for (valid, good) in [(fixture.forge.valid, true), (expired, false)] {
        let intermediate =
            fixture
                .forge
                .root
                .issue("intermediate", Key::p384(), &ca(valid), &Sct::Missing);
        let signer = intermediate.issue("", Key::p256(), &fixture.forge.content(), &Sct::Missing);
        let legacy = Legacy::sign(&signer.key, &fixture.payload()).certified(&signer);
        let stamp = fixture.forge.stamp(&legacy.signature());
        let judged = fixture
            .legacy(
                &[legacy.with(CHAIN, intermediate.pem()).stamped(&stamp)],
                &private,
            )
            .await;
        if good {
            judged.accepted();
        } else {
            fixture.registry.put_bundles(&fixture.digest, &[]);
            fixture
                .verify(&private)
                .await
                .refused(Reason::Certificate, "certificate", "Expired");
        }
    }
}

/// Case 31.
#[tokio::test]
async fn a_certificate_that_is_not_for_signing_code_signs_nothing() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    fixture
        .bundles(&[fixture.keyless(&fixture.statement())], &workflow)
        .await
        .accepted();
    type Bend = fn(&mut Content);
    let bends: [(Bend, &str); 3] = [
        (|content| content.usages.clear(), "RequiredEkuNotFound"),
        (
            |content| content.usages = vec!["1.3.6.1.5.5.7.3.1"],
            "RequiredEkuNotFound",
        ),
        (|content| content.is_ca = true, "CaUsedAsEndEntity"),
    ];
    for (bend, words) in bends {
        let mut content = fixture.forge.content();
        bend(&mut content);
        let bundle = fixture.keyless_by(&fixture.forge.certify(&content), &fixture.statement());
        fixture.bundles(&[bundle], &workflow).await.refused(
            Reason::Certificate,
            "certificate",
            words,
        );
    }
}

/// Case 31: trust never comes from what the signer sent along.
#[tokio::test]
async fn a_chain_brings_no_trust_with_it() {
    let fixture = Fixture::new().await;
    let (workflow, evil) = (fixture.trusts_workflow(), Sigstore::new());
    // By another authority, with the whole of its chain, root and all; the log is the right one.
    let forged = |chain: String| {
        let signer = evil.intermediate.issue(
            "",
            Key::p256(),
            &fixture.forge.content(),
            &Sct::By(&fixture.forge.ct, evil.then),
        );
        signed_legacy(&fixture, signer).with(CHAIN, chain)
    };
    for chain in [
        String::new(),
        evil.intermediate.pem(),
        format!("{}{}", evil.intermediate.pem(), evil.root.pem()),
    ] {
        fixture.legacy(&[forged(chain)], &workflow).await.refused(
            Reason::Certificate,
            "certificate",
            "InvalidSignature",
        );
    }
    // By itself, and the chain says that this is an authority.
    let itself = Certified::root("itself", Key::p256(), &fixture.forge.content());
    let pem = itself.pem();
    let judged = fixture
        .legacy(
            &[signed_legacy(&fixture, itself).with(CHAIN, pem)],
            &workflow,
        )
        .await;
    judged.refused(Reason::Certificate, "certificate", "UnknownIssuer");
    // The right chain is of no harm.
    let chain = format!(
        "{}{}",
        fixture.forge.intermediate.pem(),
        fixture.forge.root.pem()
    );
    let good = fixture
        .legacy_keyless(&fixture.payload())
        .with(CHAIN, chain);
    fixture
        .legacy(std::slice::from_ref(&good), &workflow)
        .await
        .accepted();
    let two = format!("{}{}", fixture.signer.pem(), evil.signer().pem());
    let judged = fixture
        .legacy(&[good.with(CERTIFICATE, two)], &workflow)
        .await;
    judged.refused(Reason::Malformed, "format", "2 certificates");
}

/// Case 31.
#[tokio::test]
async fn a_certificate_for_another_key_proves_no_signature_of_this_one() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    // Somebody else's signature under the signer's certificate, all of it in the log.
    let (evil, by) = (Key::p256(), By::Certificate(&fixture.signer));
    let envelope = Envelope::sign(&evil, &fixture.statement());
    let bundle = envelope.bundle(by, &[fixture.forge.log_envelope(by, &envelope)], &[]);
    fixture.bundles(&[bundle], &workflow).await.refused(
        Reason::Signature,
        "signature",
        "verification failed",
    );
    fixture.registry.put_bundles(&fixture.digest, &[]);
    let legacy = Legacy::sign(&evil, &fixture.payload()).certified(&fixture.signer);
    let entry = fixture
        .forge
        .log_payload(by, &legacy.payload, &legacy.signature());
    let judged = fixture.legacy(&[legacy.logged(&entry)], &workflow).await;
    judged.refused(Reason::Signature, "signature", "verification failed");
}

/// Case 32 (GHSA-fx35-mq7g-6g98).
#[tokio::test]
async fn a_key_does_not_pass_for_a_certificate_nor_a_certificate_for_a_key() {
    let fixture = Fixture::new().await;
    let (workflow, key) = (fixture.trusts_workflow(), fixture.trusts_key());
    let evil = Key::p256();
    let (by, envelope) = (By::Key(&evil), Envelope::sign(&evil, &fixture.statement()));
    let bare = envelope.bundle(by, &[fixture.forge.log_envelope(by, &envelope)], &[]);
    fixture
        .bundles(std::slice::from_ref(&bare), &workflow)
        .await
        .refused(Reason::AnotherKey, "signature", "no authority");
    let certificate = json!({"rawBytes": STANDARD.encode(&fixture.signer.certificate)});
    let mut both = bare.clone();
    both["verificationMaterial"]["certificate"] = certificate.clone();
    fixture.bundles(&[both], &workflow).await.refused(
        Reason::Malformed,
        "format",
        "a key and a certificate",
    );
    let mut good_and_key = fixture.keyless(&fixture.statement());
    good_and_key["verificationMaterial"]["publicKey"] = json!({"hint": ""});
    fixture.bundles(&[good_and_key], &workflow).await.refused(
        Reason::Malformed,
        "format",
        "a key and a certificate",
    );
    let mut smuggled = bare;
    smuggled["verificationMaterial"] =
        json!({"certificate": {"rawBytes": STANDARD.encode(&evil.spki)}});
    let judged = fixture.bundles(&[smuggled], &workflow).await;
    judged.refused(
        Reason::Certificate,
        "certificate",
        "failed to parse certificate",
    );
    // The trusted key signs, and somebody adds a certificate.
    let mut certified = fixture.bare(&fixture.statement());
    certified["verificationMaterial"] = json!({"certificate": certificate});
    fixture.bundles(&[certified], &key).await.refused(
        Reason::AnotherKey,
        "signature",
        "no authority",
    );
    fixture.registry.put_bundles(&fixture.digest, &[]);

    let legacy = Legacy::sign(&evil, &fixture.payload()).with(CERTIFICATE, evil.pem());
    let entry = fixture
        .forge
        .log_payload(by, &legacy.payload, &legacy.signature());
    fixture
        .legacy(&[legacy.logged(&entry)], &workflow)
        .await
        .refused(Reason::Malformed, "format", "0 certificates");
    let certified = Legacy::sign(&fixture.key, &fixture.payload()).certified(&fixture.signer);
    fixture.legacy(&[certified], &key).await.refused(
        Reason::AnotherKey,
        "signature",
        "no authority",
    );
    // Nor does the key inside a certificate count as a key.
    let inside = policy([keyed(&fixture.signer.key)]);
    let judged = fixture
        .legacy(&[fixture.legacy_keyless(&fixture.payload())], &inside)
        .await;
    judged.refused(Reason::AnotherKey, "signature", "no authority");
}

/// Case 34.
#[tokio::test]
async fn a_certificate_that_no_certificate_log_has_seen_in_its_time_is_refused() {
    let fixture = Fixture::new().await;
    let (workflow, forge, evil) = (fixture.trusts_workflow(), &fixture.forge, Key::p256());
    let issue = |sct: Sct<'_>| {
        forge
            .intermediate
            .issue("", Key::p256(), &forge.content(), &sct)
    };
    let with = |sct| fixture.keyless_by(&issue(sct), &fixture.statement());
    fixture
        .bundles(&[with(Sct::By(&forge.ct, forge.then))], &workflow)
        .await
        .accepted();
    let long_ago = forge.valid.from - minutes(1);
    for (sct, words) in [
        (Sct::Missing, "missing SCT"),
        (
            Sct::Stolen(&forge.ct, forge.then),
            "SCT signature verification failed",
        ),
        (Sct::By(&evil, forge.then), "not found or not valid"),
        (Sct::By(&forge.ct, long_ago), "not found or not valid"),
    ] {
        fixture.bundles(&[with(sct)], &workflow).await.refused(
            Reason::Certificate,
            "certificate",
            words,
        );
    }
    // The log was retired before the certificate was issued.
    let good = with(Sct::By(&forge.ct, forge.then));
    let mut root = forge.trusted_root();
    root["ctlogs"][0]["publicKey"]["validFor"] = window(Window {
        until: forge.then - minutes(5),
        ..forge.valid
    });
    let judged = fixture
        .bundles(
            std::slice::from_ref(&good),
            &policy([keyless(trust(&root))]),
        )
        .await;
    judged.refused(Reason::Certificate, "certificate", "not found or not valid");
    // A root of one's own that knows no certificate log asks for none.
    root["ctlogs"] = Value::Array(vec![]);
    fixture
        .bundles(&[with(Sct::Missing)], &policy([keyless(trust(&root))]))
        .await
        .accepted();
}

/// Cases 7, 8 and 31 for an authority of one's own.
#[tokio::test]
async fn a_private_ca_is_accepted_for_its_own_certificates_in_their_time() {
    let fixture = Fixture::new().await;
    let (forge, signer) = (&fixture.forge, fixture.forge.signer());
    let pem = format!("{}{}", forge.intermediate.pem(), forge.root.pem());
    let stamped = |signer: &Certified| {
        let legacy = Legacy::sign(&signer.key, &fixture.payload()).certified(signer);
        let stamp = forge.stamp(&legacy.signature());
        legacy.stamped(&stamp)
    };
    let by_stamp = private(forge, &pem, SigningTime::Tsa);
    fixture
        .legacy(&[stamped(&signer)], &by_stamp)
        .await
        .accepted();
    let unstamped = Legacy::sign(&signer.key, &fixture.payload()).certified(&signer);
    let judged = fixture.legacy(&[unstamped], &by_stamp).await;
    judged.refused(Reason::Timestamp, "timestamp", "nothing proves when");
    let stranger = Sigstore::new();
    let judged = fixture
        .legacy(&[stamped(&stranger.signer())], &by_stamp)
        .await;
    judged.refused(Reason::Certificate, "certificate", "InvalidSignature");
    let other = Content {
        san: Some(San::Uri(format!("{SUBJECT}-evil"))),
        ..forge.content()
    };
    let judged = fixture
        .legacy(&[stamped(&forge.certify(&other))], &by_stamp)
        .await;
    judged.refused(Reason::Identity, "identity", "-evil");
    let mail = Content {
        san: Some(San::Email(SUBJECT.into())),
        ..forge.content()
    };
    fixture
        .legacy(&[stamped(&forge.certify(&mail))], &by_stamp)
        .await
        .refused(Reason::Identity, "identity", SUBJECT);
    let server = Content {
        usages: vec!["1.3.6.1.5.5.7.3.1"],
        ..forge.content()
    };
    let judged = fixture
        .legacy(&[stamped(&forge.certify(&server))], &by_stamp)
        .await;
    judged.refused(Reason::Certificate, "certificate", "RequiredEkuNotFound");

    let by_clock = private(forge, &pem, SigningTime::Now);
    let long = Content {
        valid: forge.valid,
        ..forge.content()
    };
    let long = forge.certify(&long);
    let legacy = Legacy::sign(&long.key, &fixture.payload()).certified(&long);
    fixture
        .legacy(std::slice::from_ref(&legacy), &by_clock)
        .await
        .accepted();
    let elsewhere = Legacy::sign(&Key::p256(), &fixture.payload()).annotations[SIGNATURE].clone();
    let judged = fixture
        .legacy(&[legacy.with(SIGNATURE, elsewhere)], &by_clock)
        .await;
    judged.refused(Reason::Signature, "certificate", "");
    let expired = Legacy::sign(&signer.key, &fixture.payload()).certified(&signer);
    fixture.legacy(&[expired], &by_clock).await.refused(
        Reason::Certificate,
        "certificate",
        "Expired",
    );
}

fn signed_legacy(fixture: &Fixture, signer: Certified) -> Legacy {
    let legacy = Legacy::sign(&signer.key, &fixture.payload()).certified(&signer);
    let entry = fixture.forge.log_payload(
        By::Certificate(&signer),
        &legacy.payload,
        &legacy.signature(),
    );
    legacy.logged(&entry)
}

/// Whoever has a certificate of these authorities for the workflow.
fn private(forge: &Sigstore, roots: &str, time: SigningTime) -> TrustPolicy {
    let roots = CaRoots::from_pem(roots).unwrap();
    let kind = AuthorityKind::X509(X509 {
        roots,
        subject: Subject::Uri(exactly(SUBJECT)),
        time,
    });
    policy([Authority {
        name: "private".into(),
        kind,
        tlog: TlogPolicy::None,
        root: Some(forge.trust()),
    }])
}
