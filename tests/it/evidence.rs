//! Whoever may push can attach anything to an artifact. Nothing of it keeps a good signature from
//! being found, and nothing of it is mistaken for trouble of the registry.

use bundlegate::{
    oci::{Descriptor, Digest, media_type},
    registry::Class,
    verify::{self, Reason},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    attacks::{Scene, keyed, policy},
    faulty::{Fault, FaultyRegistry},
    forge::{By, Envelope, Key, Legacy, payload},
    gate::{Gate, Setup, bundle, eventually},
};

/// What is attached before the good signature: the entry in the list.
type Attach = fn(&Scene) -> Value;

fn junk(scene: &Scene, bend: impl FnOnce(&mut Value)) -> Value {
    scene.registry.put_referrer(&scene.digest, b"{}", bend)
}

fn digest_of(entry: &Value) -> Digest {
    entry["digest"].as_str().unwrap().parse().unwrap()
}

/// Other bytes at the place of a manifest.
fn hold(scene: &Scene, entry: &Value, kind: &str, bytes: &[u8]) {
    scene.registry.put(&format!("manifests/{}", digest_of(entry)), kind, bytes.to_vec());
}

/// A manifest of these bytes, whatever they are.
fn raw(scene: &Scene, bytes: &[u8]) -> Value {
    let entry = Descriptor::of(media_type::OCI_MANIFEST, bytes);
    scene.registry.put(&format!("manifests/{}", entry.digest), media_type::OCI_MANIFEST, bytes.to_vec());
    json!(entry)
}

const REFERRERS: &[(&str, Attach)] = &[
    ("a layer said to be longer than it is", |scene| junk(scene, |manifest| manifest["layers"][0]["size"] = 3.into())),
    ("a layer said to be shorter than it is", |scene| junk(scene, |manifest| manifest["layers"][0]["size"] = 1.into())),
    ("a layer said to be huge", |scene| junk(scene, |manifest| manifest["layers"][0]["size"] = u64::MAX.into())),
    ("a layer of another digest", |scene| {
        let absent = Digest::sha256(b"absent");
        junk(scene, |manifest| manifest["layers"][0]["digest"] = json!(absent))
    }),
    ("a layer of other bytes", |scene| {
        let layer = Descriptor::of(media_type::EMPTY, b"ab");
        scene.registry.put(&format!("blobs/{}", layer.digest), "text/plain", "cd");
        junk(scene, |manifest| manifest["layers"][0]["digest"] = json!(layer.digest))
    }),
    ("a layer that is gone for good", |scene| {
        let layer = Descriptor::of(media_type::EMPTY, b"gone");
        scene.registry.fail(layer.digest.as_str(), usize::MAX, Fault::Status(410, vec![]));
        junk(scene, |manifest| manifest["layers"][0]["digest"] = json!(layer.digest))
    }),
    ("a manifest of another type", |scene| {
        let entry = junk(scene, |_| {});
        let (_, bytes) = scene.registry.held(&format!("manifests/{}", digest_of(&entry))).unwrap();
        hold(scene, &entry, media_type::OCI_INDEX, &bytes);
        entry
    }),
    ("a manifest of other bytes", |scene| {
        let entry = junk(scene, |_| {});
        hold(scene, &entry, media_type::OCI_MANIFEST, &[b' '; 1000]);
        entry
    }),
    ("a manifest without end", |scene| {
        let entry = junk(scene, |_| {});
        scene.registry.fail(digest_of(&entry).as_str(), usize::MAX, Fault::Endless);
        entry
    }),
    ("a manifest that is missing", |scene| {
        let entry = junk(scene, |_| {});
        scene.registry.remove(&format!("manifests/{}", digest_of(&entry)));
        entry
    }),
    ("a manifest that is none", |scene| raw(scene, &[b'x'; 500])),
    ("a manifest with a malformed layer", |scene| junk(scene, |manifest| manifest["layers"][0]["digest"] = "x".into())),
    ("an entry said to be longer than it is", |scene| {
        let mut entry = junk(scene, |_| {});
        entry["size"] = 5000.into();
        entry
    }),
    ("an entry said to be shorter than it is", |scene| {
        let mut entry = junk(scene, |_| {});
        entry["size"] = 200.into();
        entry
    }),
    ("an entry said to be huge", |scene| {
        let mut entry = junk(scene, |_| {});
        entry["size"] = 5_000_000_000_u64.into();
        entry
    }),
    ("an entry of no size", |scene| {
        let mut entry = junk(scene, |_| {});
        entry["size"] = (-1).into();
        entry
    }),
    ("an entry of an unknown algorithm", |_| json!({"mediaType": "a/b", "digest": "blake3:00", "size": 500})),
    ("an entry that is null", |_| Value::Null),
    ("an entry that is a text", |_| json!("sha256")),
];

#[tokio::test]
async fn a_referrer_that_can_not_be_used_is_noted_and_the_others_are_judged() {
    for (what, attach) in REFERRERS {
        let scene = Scene::new().await;
        let bad = attach(&scene);
        scene.registry.list_referrers(&scene.digest, &json!([bad]));
        let unsigned = scene.judge(&scene.trusts_key()).await;
        assert!(!unsigned.report.skipped.is_empty(), "{what}: nothing is said");
        assert_eq!(unsigned.verdict.unwrap_err().reason, Reason::Unsigned, "{what}");
        let good = scene.bare(&scene.statement()).to_string();
        let good = scene.registry.put_referrer(&scene.digest, good.as_bytes(), |_| {});
        scene.registry.list_referrers(&scene.digest, &json!([bad, good]));
        let judged = scene.judge(&scene.trusts_key()).await;
        assert!(!judged.report.skipped.is_empty(), "{what}: nothing is said beside the good one");
        judged.accepted();
    }
}

/// Changes the first of two layers of the image of signatures.
type Bend = fn(&Scene, &mut Value);

const LEGACY: &[(&str, Bend)] = &[
    ("a payload said to be longer than it is", |_, layer| layer["size"] = 3000.into()),
    ("a payload said to be shorter than it is", |_, layer| layer["size"] = 1.into()),
    ("a payload said to be huge", |_, layer| layer["size"] = u64::MAX.into()),
    ("a payload of no size", |_, layer| layer["size"] = (-3).into()),
    ("a payload that is missing", |_, layer| layer["digest"] = json!(Digest::sha256(b"absent"))),
    ("a payload of an unknown algorithm", |_, layer| layer["digest"] = "md5:00".into()),
    ("annotations that are no texts", |_, layer| layer["annotations"] = json!({"a": 7})),
    ("a layer that is null", |_, layer| *layer = Value::Null),
    ("a payload of other bytes", |scene, layer| {
        let other = Descriptor::of(media_type::EMPTY, &[b'a'; 40]);
        scene.registry.put(&format!("blobs/{}", other.digest), "text/plain", vec![b'b'; 40]);
        (layer["digest"], layer["size"]) = (json!(other.digest), 40.into());
    }),
];

#[tokio::test]
async fn a_layer_of_the_sig_image_that_can_not_be_used_is_noted_and_the_others_are_judged() {
    for (what, bend) in LEGACY {
        let scene = Scene::new().await;
        let signatures = [&Key::p256(), &scene.key].map(|key| Legacy::sign(key, &scene.payload()));
        scene.registry.put_legacy(&scene.digest, &signatures);
        let tag = format!("manifests/sha256-{}.sig", scene.digest.hex());
        let (kind, bytes) = scene.registry.held(&tag).unwrap();
        let mut image: Value = serde_json::from_slice(&bytes).unwrap();
        bend(&scene, &mut image["layers"][0]);
        scene.registry.put(&tag, &kind, image.to_string());
        let judged = scene.judge(&scene.trusts_key()).await;
        assert!(!judged.report.skipped.is_empty(), "{what}: nothing is said");
        judged.accepted();
    }
    // The registry contradicts the image as a whole.
    let scene = Scene::new().await;
    scene.registry.put_legacy(&scene.digest, &[Legacy::sign(&scene.key, &scene.payload())]);
    let tag = format!("manifests/sha256-{}.sig", scene.digest.hex());
    let (_, bytes) = scene.registry.held(&tag).unwrap();
    scene.registry.put(&tag, media_type::OCI_INDEX, bytes);
    let judged = scene.judge(&scene.trusts_key()).await;
    assert!(judged.report.skipped.iter().any(|sentence| sentence.contains(media_type::OCI_INDEX)));
    judged.accepted();
}

/// A registry may fail to give out one blob for ever.
#[tokio::test]
async fn a_piece_that_the_registry_does_not_give_out_counts_only_where_it_may_be_the_one_that_is_missing() {
    let scene = Scene::new().await;
    let layer = scene.registry.put_blob(b"lost");
    scene.registry.fail(layer.digest.as_str(), usize::MAX, Fault::Status(500, vec![]));
    let lost = junk(&scene, |manifest| {
        (manifest["layers"][0]["digest"], manifest["layers"][0]["size"]) = (json!(layer.digest), 4.into());
    });
    let attach = |key: &Key| {
        let envelope = Envelope::sign(key, &scene.statement());
        let bundle = envelope.bundle(By::Key(key), &[], &[]).to_string();
        scene.registry.put_referrer(&scene.digest, bundle.as_bytes(), |_| {})
    };
    let (good, foreign) = (attach(&scene.key), attach(&Key::p256()));
    let pinned = scene.gather_pin().await;
    // Nothing else: that is no "unsigned".
    scene.registry.list_referrers(&scene.digest, &json!([lost]));
    let error = verify::collect(&scene.registry.source(), &pinned, 8 << 20).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    // Something that is not enough: the lost one may be.
    scene.registry.list_referrers(&scene.digest, &json!([lost, foreign]));
    let evidence = verify::collect(&scene.registry.source(), &pinned, 8 << 20).await.unwrap();
    assert_eq!((evidence.len(), evidence.unavailable().unwrap().class()), (1, Class::Transient));
    let gate = Gate::with(&scene.registry, Setup { policy: scene.trusts_key(), ..Setup::default() }).await;
    eventually("a failed check", || gate.last_failure().is_some()).await;
    let failure = gate.last_failure().unwrap();
    assert_eq!((failure.class, failure.step.as_str()), ("transient", "evidence"), "{failure:?}");
    // Something that is.
    scene.registry.list_referrers(&scene.digest, &json!([lost, foreign, good]));
    scene.judge(&scene.trusts_key()).await.accepted();
}

/// As many referrers as this, which the list calls signatures, before the good one.
fn crowd(scene: &Scene, number: usize) -> Vec<Value> {
    let numbered =
        |number: usize| junk(scene, |manifest| manifest["annotations"]["number"] = number.to_string().into());
    (0..number).map(numbered).collect()
}

#[tokio::test]
async fn thousands_of_referrers_do_not_hide_a_signature() {
    for number in [64, 1000, 4000] {
        let scene = Scene::new().await;
        let mut entries = crowd(&scene, number);
        let good = scene.bare(&scene.statement()).to_string();
        entries.push(scene.registry.put_referrer(&scene.digest, good.as_bytes(), |_| {}));
        scene.registry.list_referrers(&scene.digest, &json!(entries));
        let (began, asked) = (Instant::now(), scene.registry.asked("").len());
        let judged = scene.judge(&scene.trusts_key()).await;
        let requests = scene.registry.asked("").len() - asked;
        println!("{number} referrers before ours: {requests} requests, {:?}", began.elapsed());
        judged.accepted();
        // One for each manifest; their layer is one and the same.
        assert!(requests <= number + 10, "{requests} requests for {number} referrers");
    }
}

#[tokio::test]
async fn thousands_of_foreign_signatures_in_the_sig_image_do_not_hide_ours() {
    let other = Key::p256();
    for number in [32, 1000, 4000] {
        let scene = Scene::new().await;
        let mut signatures: Vec<_> = (0..number).map(|_| Legacy::sign(&other, &scene.payload())).collect();
        signatures.push(Legacy::sign(&scene.key, &scene.payload()));
        scene.registry.put_legacy(&scene.digest, &signatures);
        let (began, asked) = (Instant::now(), scene.registry.asked("").len());
        let judged = scene.judge(&scene.trusts_key()).await;
        let requests = scene.registry.asked("").len() - asked;
        println!("{number} foreign layers before ours: {requests} requests, {:?}", began.elapsed());
        assert_eq!(judged.report.signatures.len(), number + 1);
        judged.accepted();
        assert!(requests <= 10, "{requests} requests");
    }
}

#[tokio::test]
async fn large_pieces_do_not_use_up_the_budget_before_small_ones() {
    let scene = Scene::new().await;
    let large = |number: u8| {
        let bytes = vec![number; 1_000_000];
        scene.registry.put_referrer(&scene.digest, &bytes, |_| {})
    };
    let mut entries: Vec<_> = (0..20).map(large).collect();
    let good = scene.bare(&scene.statement()).to_string();
    entries.push(scene.registry.put_referrer(&scene.digest, good.as_bytes(), |_| {}));
    scene.registry.list_referrers(&scene.digest, &json!(entries));
    let judged = scene.judge(&scene.trusts_key()).await;
    assert!(judged.report.skipped.iter().any(|sentence| sentence.contains("limits.evidence")));
    judged.accepted();
    let fetched = scene.registry.asked("blobs/").len();
    assert!(fetched <= 9, "{fetched} blobs of a million bytes within 8 MiB");
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
    let gate = Gate::with(&registry, Setup { policy: policy([keyed(&ours)]), ..Setup::default() }).await;
    eventually("it is served", || gate.state() == "serving").await;
    let verdict = &gate.shown().await["verdict"];
    let signatures = verdict["signatures"].as_array().unwrap();
    assert_eq!(signatures.len(), 64);
    assert!(signatures.iter().any(|one| one["verified"] == true), "{verdict}");
    assert!(verdict["skipped"].to_string().contains("937 more signatures"), "{}", verdict["skipped"]);
}
