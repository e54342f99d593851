//! Keys outside their time, and signatures that can be written in more than one way.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use bundlegate::verify::{
    Authority, AuthorityKey, AuthorityKind, Reason, TlogPolicy, VerificationContext,
};
use jiff::Timestamp;
use serde_json::json;

use super::fixture::{Fixture, keyed, keyed_in_log, policy, policy_with, public};
use crate::forge::{By, Envelope, Key, Legacy, SIGNATURE, minutes};

/// Case 33 (CVE-2026-54787).
#[tokio::test]
async fn a_key_counts_in_its_time_by_the_log_where_it_tells_and_by_the_clock_otherwise() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let windowed = |authority: Authority, not_before, not_after| {
        let key = AuthorityKey {
            not_before,
            not_after,
            ..public(&fixture.key).into()
        };
        policy([Authority {
            kind: AuthorityKind::Keys(vec![key]),
            ..authority
        }])
    };
    let at = |minute: i64| Some(forge.then + minutes(minute));
    let now = |minute: i64| Some(Timestamp::now() + minutes(minute));
    let (by, envelope) = (
        By::Key(&fixture.key),
        Envelope::sign(&fixture.key, &fixture.statement()),
    );
    let logged = [envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[])];
    let stamped = [envelope.bundle(by, &[], &[forge.stamp(&envelope.signature)])];
    let bare = [envelope.bundle(by, &[], &[])];
    let in_log = || keyed_in_log(&fixture.key, forge.trust());
    let by_stamp = || Authority {
        tlog: TlogPolicy::None,
        ..in_log()
    };
    // It was signed an hour ago; since then the key has ended.
    for (not_before, not_after, good) in [
        (None, at(1), true),
        (at(-1), at(1), true),
        (None, at(-1), false),
        (at(1), None, false),
    ] {
        for (bundle, authority) in [(&logged, in_log()), (&stamped, by_stamp())] {
            let judged = fixture
                .bundles(bundle, &windowed(authority, not_before, not_after))
                .await;
            if good {
                assert_eq!(judged.accepted().valid_until(), None);
            } else {
                judged.refused(Reason::Validity, "validity", "it was signed at");
            }
        }
        // Nothing proves it, so the clock decides.
        let judged = fixture
            .bundles(&bare, &windowed(keyed(&fixture.key), not_before, not_after))
            .await;
        if not_after.is_none() {
            judged.accepted();
        } else {
            judged.refused(Reason::Validity, "validity", "it is");
        }
    }
    let soon = now(10);
    let policy = windowed(keyed(&fixture.key), None, soon);
    assert_eq!(
        fixture
            .bundles(&bare, &policy)
            .await
            .accepted()
            .valid_until(),
        soon
    );
    let later = VerificationContext {
        now: now(11).unwrap(),
        ..VerificationContext::now()
    };
    fixture
        .verify_at(&policy, later)
        .await
        .refused(Reason::Validity, "validity", "it is");
    // A log entry that another key's owner made proves no time.
    let stranger = Key::p256();
    let stolen = forge.log_envelope(
        By::Key(&stranger),
        &Envelope::sign(&stranger, &fixture.statement()),
    );
    let backdated = [envelope.bundle(by, &[stolen], &[])];
    let judged = fixture
        .bundles(&backdated, &windowed(in_log(), None, at(1)))
        .await;
    judged.refused(Reason::Log, "log", "does not match");
}

/// Case 33: a hint is the signer's word.
#[tokio::test]
async fn a_hint_chooses_no_key() {
    let fixture = Fixture::new().await;
    let other = Key::p256();
    let both = policy([
        keyed(&fixture.key),
        Authority {
            name: "other".into(),
            ..keyed(&other)
        },
    ]);
    for hint in [
        STANDARD.encode(other.id()),
        String::new(),
        "x".repeat(1000),
        "\u{1b}[31m".into(),
    ] {
        let mut bundle = fixture.bare(&fixture.statement());
        bundle["verificationMaterial"]["publicKey"] = json!({"hint": hint});
        let verified = fixture.bundles(&[bundle], &both).await.accepted();
        let signers: Vec<_> = verified
            .signers()
            .iter()
            .map(|signer| signer.authority.as_str())
            .collect();
        assert_eq!(signers, ["key"], "{hint}");
    }
    // Nor does it make a stranger's signature a known key's.
    let stranger = Key::p256();
    let envelope = Envelope::sign(&stranger, &fixture.statement());
    let bundle = envelope.bundle(By::Key(&fixture.key), &[], &[]);
    fixture.bundles(&[bundle], &both).await.refused(
        Reason::AnotherKey,
        "signature",
        "no authority",
    );
    let mut keyid = fixture.bare(&fixture.statement());
    keyid["dsseEnvelope"]["signatures"][0]["keyid"] = STANDARD.encode(other.id()).into();
    fixture.bundles(&[keyid], &both).await.accepted();
}

/// Case 24: the same evidence, another policy.
#[tokio::test]
async fn a_revoked_key_or_digest_is_refused_whatever_else_is_right() {
    let fixture = Fixture::new().await;
    let other = Key::p256();
    let revoked = AuthorityKey {
        revoked: true,
        ..public(&fixture.key).into()
    };
    let keys = AuthorityKind::Keys(vec![revoked, public(&other).into()]);
    let without = policy([Authority {
        kind: keys,
        ..keyed(&fixture.key)
    }]);
    let bundle = [fixture.bare(&fixture.statement())];
    fixture
        .bundles(&bundle, &fixture.trusts_key())
        .await
        .accepted();
    fixture.bundles(&bundle, &without).await.refused(
        Reason::RevokedKey,
        "signature",
        "revoked key",
    );
    let digest = policy_with([keyed(&fixture.key)], |wanted| {
        wanted.revoked_digests = [fixture.digest.clone()].into()
    });
    fixture
        .bundles(&bundle, &digest)
        .await
        .refused_as_a_whole(Reason::RevokedDigest, fixture.digest.as_str());
}

/// Case 36. ECDSA has two signatures for each: both count, and as one. Every other spelling is
/// refused.
#[tokio::test]
async fn one_signature_has_two_values_and_one_spelling() {
    let fixture = Fixture::new().await;
    let key = fixture.trusts_key();
    let good = Legacy::sign(&fixture.key, &fixture.payload());
    let raw = good.signature();
    let spelled = |text: String| good.clone().with(SIGNATURE, text);
    let high = spelled(STANDARD.encode(twin(&raw)));
    fixture
        .legacy(std::slice::from_ref(&high), &key)
        .await
        .accepted();
    fixture
        .legacy(std::slice::from_ref(&good), &key)
        .await
        .accepted();
    let other = Key::p256();
    let two = policy_with(
        [
            keyed(&fixture.key),
            Authority {
                name: "other".into(),
                ..keyed(&other)
            },
        ],
        |wanted| {
            wanted.at_least = 2;
        },
    );
    fixture
        .legacy(&[good.clone(), high], &two)
        .await
        .refused_as_a_whole(Reason::TooFewVotes, "1 of 2");

    let wrapped = STANDARD.encode(&raw);
    let (front, back) = wrapped.split_at(40);
    fixture
        .legacy(&[spelled(format!("{front}\n{back}\n"))], &key)
        .await
        .accepted();
    let url_safe = URL_SAFE.encode(&raw);
    for text in [
        format!("{front} {back}"),
        format!("{front}\t{back}"),
        format!("{wrapped} "),
        format!("{front}\r\n{back}"),
        wrapped.trim_end_matches('=').to_owned() + "====",
        format!("{wrapped}{wrapped}"),
    ] {
        let judged = fixture.legacy(&[spelled(text.clone())], &key).await;
        let reason = judged.verdict.unwrap_err().reason;
        assert!(
            matches!(reason, Reason::Malformed | Reason::AnotherKey),
            "{text}: {reason:?}"
        );
    }
    if url_safe != wrapped {
        fixture.legacy(&[spelled(url_safe)], &key).await.refused(
            Reason::Malformed,
            "format",
            "not base64",
        );
    }
    for bytes in not_der(&raw) {
        let judged = fixture
            .legacy(&[spelled(STANDARD.encode(&bytes))], &key)
            .await;
        judged.refused(Reason::AnotherKey, "signature", "no authority");
        fixture.registry.put_legacy(&fixture.digest, &[]);
        let mut bundle = fixture.bare(&fixture.statement());
        let signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
            .as_str()
            .unwrap();
        let signature = STANDARD.decode(signature).unwrap();
        for bytes in not_der(&signature) {
            bundle["dsseEnvelope"]["signatures"][0]["sig"] = STANDARD.encode(bytes).into();
            let judged = fixture.bundles(std::slice::from_ref(&bundle), &key).await;
            judged.refused(Reason::AnotherKey, "signature", "no authority");
        }
        fixture.registry.put_bundles(&fixture.digest, &[]);
    }
}

/// The group's order.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// The other signature with the same meaning: `(r, n − s)`.
fn twin(signature: &[u8]) -> Vec<u8> {
    let (r, s) = numbers(signature);
    let mut difference = [0; 32];
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i32::from(ORDER[at]) - i32::from(s[at]) - borrow;
        borrow = i32::from(digit < 0);
        difference[at] = u8::try_from(digit.rem_euclid(256)).unwrap();
    }
    join(&integer(&r), &integer(&difference))
}

/// The same two numbers, spelled as DER does not allow, and more than them.
fn not_der(signature: &[u8]) -> Vec<Vec<u8>> {
    let (r, s) = numbers(signature);
    let (r, s) = (integer(&r), integer(&s));
    let padded = |number: &[u8]| {
        let mut number = number.to_vec();
        number[1] += 1;
        number.insert(2, 0);
        number
    };
    let long_form = [&[0x30, 0x81, signature[1]][..], &signature[2..]].concat();
    let trailing_inside = join(&r, &[s.as_slice(), &[5, 0]].concat());
    let mut all = vec![
        long_form,
        trailing_inside,
        [signature, &[0]].concat(),
        [&r[2..], &s[2..]].concat(),
    ];
    all.extend([
        join(&padded(&r), &s),
        join(&r, &padded(&s)),
        join(&r, &integer(&[0; 32])),
    ]);
    all
}

fn numbers(signature: &[u8]) -> ([u8; 32], [u8; 32]) {
    let number = |at: usize| {
        let length = usize::from(signature[at + 1]);
        let digits = &signature[at + 2..at + 2 + length];
        let digits = digits.strip_prefix(&[0]).unwrap_or(digits);
        let mut number = [0; 32];
        number[32 - digits.len()..].copy_from_slice(digits);
        (number, at + 2 + length)
    };
    let (r, next) = number(2);
    (r, number(next).0)
}

fn integer(digits: &[u8; 32]) -> Vec<u8> {
    crate::forge::integer(digits)
}

fn join(r: &[u8], s: &[u8]) -> Vec<u8> {
    crate::forge::sequence(&[r.to_vec(), s.to_vec()])
}
