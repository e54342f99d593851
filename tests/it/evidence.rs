//! Whoever may push can attach anything to an artifact. Nothing of it keeps a good signature from
//! being found, and nothing of it is mistaken for trouble of the registry.

mod kinds;
mod positions;

use bundlegate::{
    oci::{Descriptor, Digest, media_type},
    registry::Class,
    verify::{self, Reason},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    attacks::{Fixture, keyed, policy},
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload},
    gateway::{Setup, TestGateway, bundle, eventually},
};

/// Attaches a referrer before the good signature, and returns its entry in the list.
type Attach = fn(&Fixture) -> Value;

fn junk(fixture: &Fixture, bend: impl FnOnce(&mut Value)) -> Value {
    fixture.registry.put_referrer(&fixture.digest, b"{}", bend)
}

fn digest_of(entry: &Value) -> Digest {
    entry["digest"].as_str().unwrap().parse().unwrap()
}

/// Other bytes at the place of a manifest.
fn hold(fixture: &Fixture, entry: &Value, kind: &str, bytes: &[u8]) {
    fixture.registry.put(
        &format!("manifests/{}", digest_of(entry)),
        kind,
        bytes.to_vec(),
    );
}

/// A manifest of these bytes, whatever they are.
fn raw(fixture: &Fixture, bytes: &[u8]) -> Value {
    let entry = Descriptor::of(media_type::OCI_MANIFEST, bytes);
    fixture.registry.put(
        &format!("manifests/{}", entry.digest),
        media_type::OCI_MANIFEST,
        bytes.to_vec(),
    );
    json!(entry)
}

const REFERRERS: &[(&str, Attach)] = &[
    ("a layer said to be longer than it is", |fixture| {
        junk(fixture, |manifest| manifest["layers"][0]["size"] = 3.into())
    }),
    ("a layer said to be shorter than it is", |fixture| {
        junk(fixture, |manifest| manifest["layers"][0]["size"] = 1.into())
    }),
    ("a layer said to be huge", |fixture| {
        junk(fixture, |manifest| {
            manifest["layers"][0]["size"] = u64::MAX.into()
        })
    }),
    ("a layer of another digest", |fixture| {
        let absent = Digest::sha256(b"absent");
        junk(fixture, |manifest| {
            manifest["layers"][0]["digest"] = json!(absent)
        })
    }),
    ("a layer of other bytes", |fixture| {
        let layer = Descriptor::of(media_type::EMPTY, b"ab");
        fixture
            .registry
            .put(&format!("blobs/{}", layer.digest), "text/plain", "cd");
        junk(fixture, |manifest| {
            manifest["layers"][0]["digest"] = json!(layer.digest)
        })
    }),
    ("a layer that is gone for good", |fixture| {
        let layer = Descriptor::of(media_type::EMPTY, b"gone");
        fixture.registry.fail(
            layer.digest.as_str(),
            usize::MAX,
            Fault::Status(410, vec![]),
        );
        junk(fixture, |manifest| {
            manifest["layers"][0]["digest"] = json!(layer.digest)
        })
    }),
    ("a manifest of another type", |fixture| {
        let entry = junk(fixture, |_| {});
        let (_, bytes) = fixture
            .registry
            .held(&format!("manifests/{}", digest_of(&entry)))
            .unwrap();
        hold(fixture, &entry, media_type::OCI_INDEX, &bytes);
        entry
    }),
    ("a manifest of other bytes", |fixture| {
        let entry = junk(fixture, |_| {});
        hold(fixture, &entry, media_type::OCI_MANIFEST, &[b' '; 1000]);
        entry
    }),
    ("a manifest without end", |fixture| {
        let entry = junk(fixture, |_| {});
        fixture
            .registry
            .fail(digest_of(&entry).as_str(), usize::MAX, Fault::Endless);
        entry
    }),
    ("a manifest that is missing", |fixture| {
        let entry = junk(fixture, |_| {});
        fixture
            .registry
            .remove(&format!("manifests/{}", digest_of(&entry)));
        entry
    }),
    ("a manifest that is none", |fixture| {
        raw(fixture, &[b'x'; 500])
    }),
    ("a manifest with a malformed layer", |fixture| {
        junk(fixture, |manifest| {
            manifest["layers"][0]["digest"] = "x".into()
        })
    }),
    ("an entry said to be longer than it is", |fixture| {
        let mut entry = junk(fixture, |_| {});
        entry["size"] = 5000.into();
        entry
    }),
    ("an entry said to be shorter than it is", |fixture| {
        let mut entry = junk(fixture, |_| {});
        entry["size"] = 200.into();
        entry
    }),
    ("an entry said to be huge", |fixture| {
        let mut entry = junk(fixture, |_| {});
        entry["size"] = 5_000_000_000_u64.into();
        entry
    }),
    ("an entry of no size", |fixture| {
        let mut entry = junk(fixture, |_| {});
        entry["size"] = (-1).into();
        entry
    }),
    (
        "an entry of an unknown algorithm",
        |_| json!({"mediaType": "a/b", "digest": "blake3:00", "size": 500}),
    ),
    ("an entry that is null", |_| Value::Null),
    ("an entry that is a text", |_| json!("sha256")),
];

#[tokio::test]
async fn a_referrer_that_can_not_be_used_is_reported_and_the_others_are_verified() {
    for (what, attach) in REFERRERS {
        let fixture = Fixture::new().await;
        let bad = attach(&fixture);
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([bad]));
        let unsigned = fixture.verify(&fixture.trusts_key()).await;
        assert!(
            !unsigned.report.skipped.is_empty(),
            "{what}: nothing is said"
        );
        assert_eq!(
            unsigned.verdict.unwrap_err().reason,
            Reason::Unsigned,
            "{what}"
        );
        let good = fixture.bare(&fixture.statement()).to_string();
        let good = fixture
            .registry
            .put_referrer(&fixture.digest, good.as_bytes(), |_| {});
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!([bad, good]));
        let judged = fixture.verify(&fixture.trusts_key()).await;
        assert!(
            !judged.report.skipped.is_empty(),
            "{what}: nothing is said beside the good one"
        );
        judged.accepted();
    }
}

/// Changes the first of two layers of the image of signatures.
type Bend = fn(&Fixture, &mut Value);

const LEGACY: &[(&str, Bend)] = &[
    ("a payload said to be longer than it is", |_, layer| {
        layer["size"] = 3000.into()
    }),
    ("a payload said to be shorter than it is", |_, layer| {
        layer["size"] = 1.into()
    }),
    ("a payload said to be huge", |_, layer| {
        layer["size"] = u64::MAX.into()
    }),
    ("a payload of no size", |_, layer| {
        layer["size"] = (-3).into()
    }),
    ("a payload that is missing", |_, layer| {
        layer["digest"] = json!(Digest::sha256(b"absent"))
    }),
    ("a payload of an unknown algorithm", |_, layer| {
        layer["digest"] = "md5:00".into()
    }),
    ("annotations that are no texts", |_, layer| {
        layer["annotations"] = json!({"a": 7})
    }),
    ("a layer that is null", |_, layer| *layer = Value::Null),
    ("a payload of other bytes", |fixture, layer| {
        let other = Descriptor::of(media_type::EMPTY, &[b'a'; 40]);
        fixture.registry.put(
            &format!("blobs/{}", other.digest),
            "text/plain",
            vec![b'b'; 40],
        );
        (layer["digest"], layer["size"]) = (json!(other.digest), 40.into());
    }),
];

#[tokio::test]
async fn a_layer_of_the_sig_image_that_can_not_be_used_is_reported_and_the_others_are_verified() {
    for (what, bend) in LEGACY {
        let fixture = Fixture::new().await;
        let signatures =
            [&Key::p256(), &fixture.key].map(|key| Legacy::sign(key, &fixture.payload()));
        fixture.registry.put_legacy(&fixture.digest, &signatures);
        let tag = format!("manifests/sha256-{}.sig", fixture.digest.hex());
        let (kind, bytes) = fixture.registry.held(&tag).unwrap();
        let mut image: Value = serde_json::from_slice(&bytes).unwrap();
        bend(&fixture, &mut image["layers"][0]);
        fixture.registry.put(&tag, &kind, image.to_string());
        let judged = fixture.verify(&fixture.trusts_key()).await;
        assert!(!judged.report.skipped.is_empty(), "{what}: nothing is said");
        judged.accepted();
    }
    // The registry contradicts the image as a whole.
    let fixture = Fixture::new().await;
    fixture.registry.put_legacy(
        &fixture.digest,
        &[Legacy::sign(&fixture.key, &fixture.payload())],
    );
    let tag = format!("manifests/sha256-{}.sig", fixture.digest.hex());
    let (_, bytes) = fixture.registry.held(&tag).unwrap();
    fixture.registry.put(&tag, media_type::OCI_INDEX, bytes);
    let judged = fixture.verify(&fixture.trusts_key()).await;
    assert!(
        judged
            .report
            .skipped
            .iter()
            .any(|sentence| sentence.contains(media_type::OCI_INDEX))
    );
    judged.accepted();
}

/// A registry may fail to give out one blob for ever.
#[tokio::test]
async fn a_piece_that_the_registry_does_not_give_out_counts_only_where_it_may_be_the_one_that_is_missing()
 {
    let fixture = Fixture::new().await;
    let layer = fixture.registry.put_blob(b"lost");
    fixture.registry.fail(
        layer.digest.as_str(),
        usize::MAX,
        Fault::Status(500, vec![]),
    );
    let lost = junk(&fixture, |manifest| {
        (
            manifest["layers"][0]["digest"],
            manifest["layers"][0]["size"],
        ) = (json!(layer.digest), 4.into());
    });
    let attach = |key: &Key| {
        let envelope = Envelope::sign(key, &fixture.statement());
        let bundle = envelope.bundle(By::Key(key), &[], &[]).to_string();
        fixture
            .registry
            .put_referrer(&fixture.digest, bundle.as_bytes(), |_| {})
    };
    let (good, foreign) = (attach(&fixture.key), attach(&Key::p256()));
    let pinned = fixture.gather_pin().await;
    // Nothing else: that is no "unsigned".
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!([lost]));
    let error = verify::collect(&fixture.registry.source(), &pinned, 8 << 20)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    // Something that is not enough: the lost one may be.
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!([lost, foreign]));
    let evidence = verify::collect(&fixture.registry.source(), &pinned, 8 << 20)
        .await
        .unwrap();
    assert_eq!(
        (evidence.len(), evidence.unavailable().unwrap().class()),
        (1, Class::Transient)
    );
    let gate = TestGateway::with(
        &fixture.registry,
        Setup {
            policy: fixture.trusts_key(),
            ..Setup::default()
        },
    )
    .await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let failure = gate.last_failure().unwrap();
    assert_eq!(
        (failure.class, failure.step.as_str()),
        ("transient", "evidence"),
        "{failure:?}"
    );
    // Something that is.
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!([lost, foreign, good]));
    fixture.verify(&fixture.trusts_key()).await.accepted();
}

/// As many referrers as this, which the list calls signatures, before the good one.
fn crowd(fixture: &Fixture, number: usize) -> Vec<Value> {
    let numbered = |number: usize| {
        junk(fixture, |manifest| {
            manifest["annotations"]["number"] = number.to_string().into()
        })
    };
    (0..number).map(numbered).collect()
}

#[tokio::test]
async fn thousands_of_referrers_do_not_hide_a_signature() {
    for number in [64, 1000, 4000] {
        let fixture = Fixture::new().await;
        let mut entries = crowd(&fixture, number);
        let good = fixture.bare(&fixture.statement()).to_string();
        entries.push(
            fixture
                .registry
                .put_referrer(&fixture.digest, good.as_bytes(), |_| {}),
        );
        fixture
            .registry
            .list_referrers(&fixture.digest, &json!(entries));
        let (began, asked) = (Instant::now(), fixture.registry.asked("").len());
        let judged = fixture.verify(&fixture.trusts_key()).await;
        let requests = fixture.registry.asked("").len() - asked;
        println!(
            "{number} referrers before ours: {requests} requests, {:?}",
            began.elapsed()
        );
        judged.accepted();
        // One for each manifest; their layer is one and the same.
        assert!(
            requests <= number + 10,
            "{requests} requests for {number} referrers"
        );
    }
}

#[tokio::test]
async fn thousands_of_foreign_signatures_in_the_sig_image_do_not_hide_ours() {
    let other = Key::p256();
    for number in [32, 1000, 4000] {
        let fixture = Fixture::new().await;
        let mut signatures: Vec<_> = (0..number)
            .map(|_| Legacy::sign(&other, &fixture.payload()))
            .collect();
        signatures.push(Legacy::sign(&fixture.key, &fixture.payload()));
        fixture.registry.put_legacy(&fixture.digest, &signatures);
        let (began, asked) = (Instant::now(), fixture.registry.asked("").len());
        let judged = fixture.verify(&fixture.trusts_key()).await;
        let requests = fixture.registry.asked("").len() - asked;
        println!(
            "{number} foreign layers before ours: {requests} requests, {:?}",
            began.elapsed()
        );
        assert_eq!(judged.report.signatures.len(), number + 1);
        judged.accepted();
        assert!(requests <= 10, "{requests} requests");
    }
}

#[tokio::test]
async fn large_pieces_do_not_use_up_the_budget_before_small_ones() {
    let fixture = Fixture::new().await;
    let large = |number: u8| {
        let bytes = vec![number; 1_000_000];
        fixture
            .registry
            .put_referrer(&fixture.digest, &bytes, |_| {})
    };
    let mut entries: Vec<_> = (0..20).map(large).collect();
    let good = fixture.bare(&fixture.statement()).to_string();
    entries.push(
        fixture
            .registry
            .put_referrer(&fixture.digest, good.as_bytes(), |_| {}),
    );
    fixture
        .registry
        .list_referrers(&fixture.digest, &json!(entries));
    let judged = fixture.verify(&fixture.trusts_key()).await;
    assert!(
        judged
            .report
            .skipped
            .iter()
            .any(|sentence| sentence.contains("limits.evidence"))
    );
    judged.accepted();
    let fetched = fixture.registry.asked("blobs/").len();
    assert!(
        fetched <= 9,
        "{fetched} blobs of a million bytes within 8 MiB"
    );
}

/// `/status` tells what counts, and of thousands that don't a few.
#[tokio::test]
async fn the_status_stays_short_however_many_signatures_there_are() {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("live", &bundle("one"));
    let (ours, other) = (Key::p256(), Key::p256());
    let signed = payload(&digest, "r.example/authz");
    let mut signatures: Vec<_> = (0..1000).map(|_| Legacy::sign(&other, &signed)).collect();
    signatures.push(Legacy::sign(&ours, &signed));
    registry.put_legacy(&digest, &signatures);
    let gate = TestGateway::with(
        &registry,
        Setup {
            policy: policy([keyed(&ours)]),
            ..Setup::default()
        },
    )
    .await;
    eventually("it is served", || gate.state() == "serving").await;
    let verdict = &gate.shown().await["verdict"];
    let signatures = verdict["signatures"].as_array().unwrap();
    assert_eq!(signatures.len(), 64);
    assert!(
        signatures.iter().any(|one| one["verified"] == true),
        "{verdict}"
    );
    assert!(
        verdict["skipped"]
            .to_string()
            .contains("937 more signatures"),
        "{}",
        verdict["skipped"]
    );
}
