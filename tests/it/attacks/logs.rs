//! Transparency logs and timestamp authorities: which times and entries they prove, and which not.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::Digest,
    verify::{Authority, Pattern, Reason, TlogPolicy, TrustPolicy, VerificationContext},
};
use serde_json::{Value, json};

use super::fixture::{Fixture, identified, keyed, keyed_in_log, keyless, policy, policy_with};
use crate::forge::{
    By, Entry, Envelope, Generation, ISSUER, Key, Legacy, Log, Proof, SUBJECT, Sigstore,
    TimestampAuthority, Window, minutes, payload, statement, trust, window,
};

/// A signed statement, and the log's entry of it.
struct Logged<'a> {
    by: By<'a>,
    envelope: Envelope,
    entry: Entry,
}

impl<'a> Logged<'a> {
    fn new(fixture: &'a Fixture) -> Self {
        let by = By::Certificate(&fixture.signer);
        let envelope = Envelope::sign(&fixture.signer.key, &fixture.statement());
        Self {
            by,
            entry: fixture.forge.log_envelope(by, &envelope),
            envelope,
        }
    }

    fn bundle(&self, entry: &Entry) -> Value {
        self.envelope
            .bundle(self.by, std::slice::from_ref(entry), &[])
    }
}

/// Case 9.
#[tokio::test]
async fn an_unknown_or_closed_log_proves_nothing() {
    let fixture = Fixture::new().await;
    let logged = Logged::new(&fixture);
    fixture
        .bundles(&[logged.bundle(&logged.entry)], &fixture.trusts_workflow())
        .await
        .accepted();
    let stranger = Sigstore::new().log_envelope(logged.by, &logged.envelope);
    let judged = fixture
        .bundles(&[logged.bundle(&stranger)], &fixture.trusts_workflow())
        .await;
    judged.refused(Reason::Log, "log", "No log key valid");
    for bend in [
        Window {
            until: fixture.forge.then - minutes(1),
            ..fixture.forge.valid
        },
        Window {
            from: fixture.forge.then + minutes(1),
            ..fixture.forge.valid
        },
    ] {
        let mut root = fixture.forge.trusted_root();
        root["tlogs"][0]["publicKey"]["validFor"] = window(bend);
        let closed = policy([keyless(trust(&root))]);
        let judged = fixture
            .bundles(&[logged.bundle(&logged.entry)], &closed)
            .await;
        judged.refused(Reason::Log, "log", "No log key valid");
        fixture.registry.put_bundles(&fixture.digest, &[]);
        let legacy = fixture.legacy_keyless(&fixture.payload());
        fixture
            .legacy(&[legacy], &closed)
            .await
            .refused(Reason::Log, "log", "No log key valid");
        fixture.registry.put_legacy(&fixture.digest, &[]);
    }
}

/// Case 10 (CVE-2022-23649, CVE-2022-36056, CVE-2026-22703).
#[tokio::test]
async fn a_real_entry_of_another_signature_proves_nothing() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    let logged = Logged::new(&fixture);
    let forge = &fixture.forge;
    let other = Envelope::sign(&fixture.signer.key, &statement(&Digest::sha256(b"other")));
    let again = Envelope::sign(&fixture.signer.key, &fixture.statement());
    let else_signer = forge.signer();
    for (entry, words) in [
        (
            forge.log_envelope(logged.by, &other),
            "payload hash mismatch",
        ),
        (
            forge.log_envelope(logged.by, &again),
            "does not match any signature",
        ),
        (
            forge.log_envelope(By::Certificate(&else_signer), &logged.envelope),
            "verifier mismatch",
        ),
    ] {
        fixture
            .bundles(&[logged.bundle(&entry)], &workflow)
            .await
            .refused(Reason::Log, "log", words);
    }
    fixture.registry.put_bundles(&fixture.digest, &[]);

    let good = fixture.legacy_keyless(&fixture.payload());
    let moved = payload(&Digest::sha256(b"other"), &fixture.repository());
    let entry = |by: By<'_>, payload: &Value, signature: &[u8]| {
        forge.log_payload(by, payload.to_string().as_bytes(), signature)
    };
    let another = fixture.signer.key.sign(&good.payload);
    for (entry, words) in [
        (entry(logged.by, &moved, &good.signature()), "hash mismatch"),
        (
            entry(logged.by, &fixture.payload(), &another),
            "does not match signature",
        ),
        (
            entry(
                By::Certificate(&else_signer),
                &fixture.payload(),
                &good.signature(),
            ),
            "does not match certificate",
        ),
    ] {
        fixture
            .legacy(&[good.clone().logged(&entry)], &workflow)
            .await
            .refused(Reason::Log, "log", words);
    }
    let dsse = good.clone().logged(&logged.entry);
    fixture.legacy(&[dsse], &workflow).await.refused(
        Reason::Log,
        "log",
        "log entry of kind dsse 0.0.1",
    );
}

/// Case 10 with a key: the entry is of another key, or of another statement by the same key.
#[tokio::test]
async fn a_real_entry_of_another_key_or_statement_proves_nothing() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let in_log = policy([keyed_in_log(&fixture.key, forge.trust())]);
    let (by, envelope) = (
        By::Key(&fixture.key),
        Envelope::sign(&fixture.key, &fixture.statement()),
    );
    let bundle = |entry| envelope.bundle(by, &[entry], &[]);
    fixture
        .bundles(&[bundle(forge.log_envelope(by, &envelope))], &in_log)
        .await
        .accepted();
    let evil = Key::p256();
    let entry = forge.log_envelope(By::Key(&evil), &envelope);
    fixture.bundles(&[bundle(entry)], &in_log).await.refused(
        Reason::Log,
        "log",
        "does not match the Rekor verifier",
    );
    let entry = forge.log_envelope(
        by,
        &Envelope::sign(&fixture.key, &statement(&Digest::sha256(b"other"))),
    );
    fixture.bundles(&[bundle(entry)], &in_log).await.refused(
        Reason::Log,
        "log",
        "payload hash mismatch",
    );
}

/// A timestamp says that something was signed no later; whoever can push can have one of today
/// for what was signed long ago, and leave out what the log said of the time.
#[tokio::test]
async fn removing_the_logs_time_makes_no_signature_younger() {
    let fixture = Fixture::new().await;
    let (by, envelope) = (
        By::Key(&fixture.key),
        Envelope::sign(&fixture.key, &fixture.statement()),
    );
    let age = Some(std::time::Duration::from_secs(3600 * 24 * 3650));
    let in_log = policy_with(
        [keyed_in_log(&fixture.key, fixture.forge.trust())],
        |wanted| wanted.max_signature_age = age,
    );
    let (entry, stamp) = (
        fixture.forge.log_envelope(by, &envelope),
        fixture.forge.stamp(&envelope.signature),
    );
    fixture
        .bundles(
            &[envelope.bundle(
                by,
                std::slice::from_ref(&entry),
                std::slice::from_ref(&stamp),
            )],
            &in_log,
        )
        .await
        .accepted();
    let mut untimed = entry;
    untimed.promise = None;
    let judged = fixture
        .bundles(&[envelope.bundle(by, &[untimed], &[stamp])], &in_log)
        .await;
    judged.refused(Reason::Timestamp, "log", "without the log's signed time");
}

/// Case 11.
#[tokio::test]
async fn only_the_log_sets_the_time() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    let logged = Logged::new(&fixture);
    for edit in [-1, 1, 3600] {
        let time = logged.entry.time.map(|time| time + edit);
        let bent = Entry {
            time,
            ..logged.entry.clone()
        };
        fixture
            .bundles(&[logged.bundle(&bent)], &workflow)
            .await
            .refused(Reason::Log, "log", "SET verification failed");
        fixture.registry.put_bundles(&fixture.digest, &[]);
        let legacy =
            Legacy::sign(&fixture.signer.key, &fixture.payload()).certified(&fixture.signer);
        let entry = fixture
            .forge
            .log_payload(logged.by, &legacy.payload, &legacy.signature());
        let bent = legacy.logged(&Entry { time, ..entry });
        fixture.legacy(&[bent], &workflow).await.refused(
            Reason::Log,
            "log",
            "SET verification failed",
        );
        fixture.registry.put_legacy(&fixture.digest, &[]);
    }
    // Not even the log, in the future.
    let time = jiff::Timestamp::now().as_second() + 3600;
    let promise = fixture.forge.rekor.promise(
        &logged.entry.body,
        &logged.entry.log_id,
        logged.entry.index,
        time,
    );
    let future = Entry {
        time: Some(time),
        promise: Some(promise),
        ..logged.entry.clone()
    };
    fixture
        .bundles(&[logged.bundle(&future)], &workflow)
        .await
        .refused(Reason::Log, "log", "in the future");
    // Nor outside of the certificate's time.
    let time = (fixture.forge.then + minutes(30)).as_second();
    let promise = fixture.forge.rekor.promise(
        &logged.entry.body,
        &logged.entry.log_id,
        logged.entry.index,
        time,
    );
    let late = Entry {
        time: Some(time),
        promise: Some(promise),
        ..logged.entry.clone()
    };
    fixture
        .bundles(&[logged.bundle(&late)], &workflow)
        .await
        .refused(Reason::Certificate, "certificate", "Expired");
}

/// Case 12.
#[tokio::test]
async fn an_inclusion_proof_leads_to_a_checkpoint_that_the_log_signed() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    let logged = Logged::new(&fixture);
    let (log, stranger) = (
        &fixture.forge.rekor,
        Log::new(fixture.forge.rekor.origin, Generation::V1),
    );
    let proof = logged.entry.proof.clone().unwrap();
    let mut wrong = proof.root;
    wrong[0] ^= 1;
    let with = |bend: &dyn Fn(&mut Proof)| {
        let mut entry = logged.entry.clone();
        bend(entry.proof.as_mut().unwrap());
        logged.bundle(&entry)
    };
    let own_hint = {
        // The right log's hint over another's signature.
        let signed = stranger.checkpoint(3, &proof.root);
        let (text, line) = signed.trim_end().rsplit_once(' ').unwrap();
        let mut bytes = STANDARD.decode(line).unwrap();
        bytes[..4].copy_from_slice(&log.id()[..4]);
        format!("{text} {}\n", STANDARD.encode(bytes))
    };
    type Bend<'a> = &'a dyn Fn(&mut Proof);
    let bends: [(Bend<'_>, &str); 9] = [
        (
            &|proof| proof.checkpoint = stranger.checkpoint(3, &proof.root),
            "No matching Rekor key",
        ),
        (
            &|proof| proof.checkpoint.clone_from(&own_hint),
            "No valid Rekor signature",
        ),
        (
            &|proof| proof.checkpoint = log.checkpoint(3, &wrong),
            "root hash",
        ),
        (
            &|proof| (proof.root, proof.checkpoint) = (wrong, log.checkpoint(3, &wrong)),
            "inclusion proof",
        ),
        (&|proof| proof.hashes[1][5] ^= 1, "inclusion proof"),
        (&|proof| proof.hashes.clear(), "inclusion proof"),
        (&|proof| proof.index = 3, "out of range"),
        (&|proof| proof.size = 0, "out of range"),
        (&|proof| proof.index = 0, "inclusion proof"),
    ];
    for (bend, words) in bends {
        let judged = fixture.bundles(&[with(bend)], &workflow).await;
        let told = format!("{:?}", judged.report);
        assert!(told.contains(words), "{words}: {told}");
        assert_eq!(judged.verdict.unwrap_err().reason, Reason::Log, "{words}");
    }
    for gone in ["inclusionProof", "inclusionPromise"] {
        let mut bundle = logged.bundle(&logged.entry);
        bundle["verificationMaterial"]["tlogEntries"][0]
            .as_object_mut()
            .unwrap()
            .remove(gone);
        let refused = fixture
            .bundles(&[bundle], &workflow)
            .await
            .verdict
            .unwrap_err();
        assert!(
            matches!(refused.reason, Reason::Log | Reason::Timestamp),
            "{gone}: {refused}"
        );
    }
}

/// Case 13.
#[tokio::test]
async fn the_newer_log_tells_no_time_so_an_authority_has_to() {
    let fixture = Fixture::new().await;
    let workflow = fixture.trusts_workflow();
    let Logged { by, envelope, .. } = Logged::new(&fixture);
    let forge = &fixture.forge;
    let entry = [forge.log2_envelope(by, &envelope)];
    let with = |stamps: &[Vec<u8>]| envelope.bundle(by, &entry, stamps);
    fixture
        .bundles(&[with(&[forge.stamp(&envelope.signature)])], &workflow)
        .await
        .accepted();
    let judged = fixture.bundles(&[with(&[])], &workflow).await;
    judged.refused(Reason::Timestamp, "timestamp", "requires RFC3161 timestamp");
    let stranger = TimestampAuthority::new("tsa", forge.valid);
    let other = forge.stamp(&fixture.signer.key.sign(b"another"));
    let early = forge
        .tsa
        .stamp(&envelope.signature, forge.valid.from - minutes(5));
    for (stamp, words) in [
        (other, "mismatch"),
        (
            stranger.stamp(&envelope.signature, forge.then),
            "TSA timestamp verification failed",
        ),
        (early, "TSA timestamp verification failed"),
        (
            b"no timestamp".to_vec(),
            "TSA timestamp verification failed",
        ),
        (vec![], "TSA timestamp verification failed"),
    ] {
        let judged = fixture
            .bundles(&[with(std::slice::from_ref(&stamp))], &workflow)
            .await;
        judged.refused(Reason::Timestamp, "timestamp", words);
        // A good one beside it does not help a bad one.
        let both = [forge.stamp(&envelope.signature), stamp];
        fixture.bundles(&[with(&both)], &workflow).await.refused(
            Reason::Timestamp,
            "timestamp",
            words,
        );
    }
    let mut root = forge.trusted_root();
    let closed = Window {
        until: forge.then - minutes(5),
        ..forge.valid
    };
    root["timestampAuthorities"][0]["validFor"] = window(closed);
    let judged = fixture
        .bundles(
            &[with(&[forge.stamp(&envelope.signature)])],
            &policy([keyless(trust(&root))]),
        )
        .await;
    judged.refused(
        Reason::Timestamp,
        "timestamp",
        "outside the validity period",
    );
    // Nor may it say a time at which the certificate was not valid.
    let late = forge
        .tsa
        .stamp(&envelope.signature, forge.then + minutes(30));
    let both = [forge.stamp(&envelope.signature), late];
    fixture.bundles(&[with(&both)], &workflow).await.refused(
        Reason::Certificate,
        "certificate",
        "Expired",
    );
}

/// Case 13, for signatures in no log at all.
#[tokio::test]
async fn a_timestamp_alone_proves_the_time_where_no_log_is_asked_for() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let unlogged = policy([Authority {
        tlog: TlogPolicy::None,
        ..keyless(forge.trust())
    }]);
    let Logged {
        by,
        envelope,
        entry,
    } = Logged::new(&fixture);
    fixture
        .bundles(
            &[envelope.bundle(by, &[], &[forge.stamp(&envelope.signature)])],
            &unlogged,
        )
        .await
        .accepted();
    // What the log says is not looked at, so its time does not count either.
    for entries in [&[entry][..], &[]] {
        let judged = fixture
            .bundles(&[envelope.bundle(by, entries, &[])], &unlogged)
            .await;
        judged.refused(
            Reason::Timestamp,
            "timestamp",
            "nothing proves when it was signed",
        );
    }
    fixture.registry.put_bundles(&fixture.digest, &[]);
    let legacy = Legacy::sign(&fixture.signer.key, &fixture.payload()).certified(&fixture.signer);
    let stamp = forge.stamp(&legacy.signature());
    fixture
        .legacy(&[legacy.clone().stamped(&stamp)], &unlogged)
        .await
        .accepted();
    for stamp in [
        forge.stamp(b"another"),
        TimestampAuthority::new("tsa", forge.valid).stamp(&legacy.signature(), forge.then),
    ] {
        let judged = fixture
            .legacy(&[legacy.clone().stamped(&stamp)], &unlogged)
            .await;
        judged.refused(
            Reason::Timestamp,
            "timestamp",
            "TSA timestamp verification failed",
        );
    }
}

/// Case 14 (CVE-2026-49834).
#[tokio::test]
async fn one_signature_is_one_vote_however_often_it_is_logged_or_found() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let by_name = keyless(forge.trust());
    let glob = Pattern::glob(&SUBJECT.replace("v1", "*")).unwrap();
    let by_shape = Authority {
        name: "any release".into(),
        ..identified(forge.trust(), Pattern::exact(ISSUER).unwrap(), glob)
    };
    let two = |authorities: [Authority; 2]| policy_with(authorities, |wanted| wanted.at_least = 2);
    let both = two([by_name.clone(), by_shape]);
    let logged = Logged::new(&fixture);
    let bundle = logged.envelope.bundle(
        logged.by,
        &[logged.entry.clone(), logged.entry.clone()],
        &[],
    );
    fixture
        .bundles(std::slice::from_ref(&bundle), &fixture.trusts_workflow())
        .await
        .accepted();
    let again = forge.log_envelope(logged.by, &logged.envelope);
    let twice_logged = logged
        .envelope
        .bundle(logged.by, &[logged.entry.clone(), again], &[]);
    let copy = {
        let mut copy = bundle.clone();
        copy["verificationMaterial"]["x"] = json!("so that it is another blob");
        copy
    };
    for bundles in [
        vec![bundle.clone()],
        vec![twice_logged.clone()],
        vec![bundle.clone(), copy, twice_logged],
    ] {
        let judged = fixture.bundles(&bundles, &both).await;
        judged.refused_as_a_whole(Reason::TooFewVotes, "1 of 2");
    }
    // In both formats, by one key.
    fixture
        .registry
        .put_bundles(&fixture.digest, &[logged.bundle(&logged.entry)]);
    let legacy = fixture.legacy_keyless(&fixture.payload());
    fixture
        .legacy(&[legacy.clone(), legacy], &both)
        .await
        .refused_as_a_whole(Reason::TooFewVotes, "1 of 2");
    // Somebody else's is the second vote.
    fixture.registry.put_legacy(&fixture.digest, &[]);
    let (key, bare) = (keyed(&fixture.key), fixture.bare(&fixture.statement()));
    let mixed = two([by_name, key]);
    fixture
        .bundles(&[bundle.clone(), bundle.clone()], &mixed)
        .await
        .refused_as_a_whole(Reason::TooFewVotes, "1 of 2");
    assert_eq!(
        fixture
            .bundles(&[bundle, bare], &mixed)
            .await
            .accepted()
            .signers()
            .len(),
        2
    );
}

/// Case 22, as far as signatures can tell: `expect` is where orders and floors are.
#[tokio::test]
async fn a_signature_grows_too_old_by_the_time_that_is_proved() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let within = |minutes: u64| -> TrustPolicy {
        policy_with([keyless(forge.trust())], |wanted| {
            wanted.max_signature_age = Some(std::time::Duration::from_secs(60 * minutes));
        })
    };
    let bundle = [fixture.keyless(&fixture.statement())];
    let verified = fixture.bundles(&bundle, &within(90)).await.accepted();
    assert_eq!(verified.valid_until(), Some(forge.then + minutes(90)));
    fixture
        .bundles(&bundle, &within(50))
        .await
        .refused(Reason::TooOld, "age", "good until");
    // A timestamp that is added later makes it no younger.
    let Logged {
        by,
        envelope,
        entry,
    } = Logged::new(&fixture);
    let later = forge
        .tsa
        .stamp(&envelope.signature, forge.then + minutes(5));
    let refreshed = [envelope.bundle(by, &[entry], &[later])];
    fixture
        .bundles(&refreshed, &within(57))
        .await
        .refused(Reason::TooOld, "age", "good until");
    let then = VerificationContext {
        now: forge.then + minutes(91),
        ..VerificationContext::now()
    };
    fixture
        .verify_at(&within(90), then)
        .await
        .refused(Reason::TooOld, "age", "good until");
}
