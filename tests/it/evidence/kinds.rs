//! Every kind of malformed evidence: entries of a list, and what they name.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::oci::{Digest, media_type};
use serde_json::{Value, json};

use crate::{
    attacks::Fixture,
    forge::{
        By, CERTIFICATE, CHAIN, Envelope, Key, LOGGED, Legacy, SIGNATURE, TIMESTAMP, payload,
        statement,
    },
};

/// What is malformed, and the entry of the list that is or leads to it.
pub(super) type Malformed = (String, Value);
type Bend = fn(&mut Value);

/// Changes of a descriptor, whatever it describes.
const DESCRIPTORS: &[(&str, Bend)] = &[
    ("null", |entry| *entry = Value::Null),
    ("a text", |entry| *entry = "sha256".into()),
    ("a number", |entry| *entry = 7.into()),
    ("a list", |entry| *entry = json!([entry.clone()])),
    ("an empty object", |entry| *entry = json!({})),
    ("no digest", |entry| remove(entry, "digest")),
    ("an empty digest", |entry| entry["digest"] = "".into()),
    ("a digest that is null", |entry| {
        entry["digest"] = Value::Null
    }),
    ("a digest without algorithm", |entry| {
        entry["digest"] = "00".repeat(32).into()
    }),
    ("a digest of an unknown algorithm", |entry| {
        entry["digest"] = "blake3:00".into()
    }),
    ("a digest that is too short", |entry| {
        entry["digest"] = "sha256:12".into()
    }),
    ("a digest that is a path", |entry| {
        entry["digest"] = "sha256:../../../etc/passwd".into()
    }),
    ("a digest in capitals", |entry| {
        let digest = entry["digest"].as_str().unwrap().to_uppercase();
        entry["digest"] = digest.into();
    }),
    ("a digest of nothing that exists", |entry| {
        entry["digest"] = json!(Digest::sha256(b"absent"))
    }),
    ("no size", |entry| remove(entry, "size")),
    ("a negative size", |entry| entry["size"] = (-1).into()),
    ("a size of 0", |entry| entry["size"] = 0.into()),
    ("a size of 1", |entry| entry["size"] = 1.into()),
    ("a size that is one too large", |entry| {
        entry["size"] = (entry["size"].as_u64().unwrap() + 1).into();
    }),
    ("a huge size", |entry| entry["size"] = u64::MAX.into()),
    ("a size beyond 64 bits", |entry| entry["size"] = json!(1e30)),
    ("a size that is a text", |entry| {
        entry["size"] = "500".into()
    }),
    ("a size that is a fraction", |entry| {
        entry["size"] = 500.5.into()
    }),
    ("no media type", |entry| remove(entry, "mediaType")),
    ("a media type that is a number", |entry| {
        entry["mediaType"] = 7.into()
    }),
    ("another media type", |entry| {
        entry["mediaType"] = "text/html".into()
    }),
    ("an artifact type that is a list", |entry| {
        entry["artifactType"] = json!([])
    }),
    ("annotations that are a list", |entry| {
        entry["annotations"] = json!(["a"])
    }),
    ("annotations that are a text", |entry| {
        entry["annotations"] = "a".into()
    }),
    ("an annotation that is a number", |entry| {
        entry["annotations"]["a"] = 7.into()
    }),
    ("an annotation that is null", |entry| {
        entry["annotations"]["a"] = Value::Null
    }),
    ("urls that are a number", |entry| entry["urls"] = 7.into()),
    ("data that is no base64", |entry| entry["data"] = "?".into()),
    ("a platform that is a text", |entry| {
        entry["platform"] = "linux".into()
    }),
];

const MANIFESTS: &[(&str, Bend)] = &[
    ("no layers", |manifest| remove(manifest, "layers")),
    ("layers that are null", |manifest| {
        manifest["layers"] = Value::Null
    }),
    ("layers that are an object", |manifest| {
        manifest["layers"] = json!({})
    }),
    ("no layer", |manifest| manifest["layers"] = json!([])),
    ("two layers", |manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = json!([layer, layer]);
    }),
    ("no config", |manifest| remove(manifest, "config")),
    ("a config that is a text", |manifest| {
        manifest["config"] = "{}".into()
    }),
    ("no subject", |manifest| remove(manifest, "subject")),
    ("a subject that is null", |manifest| {
        manifest["subject"] = Value::Null
    }),
    ("another subject", |manifest| {
        manifest["subject"]["digest"] = json!(Digest::sha256(b"another"));
    }),
    ("a subject without digest", |manifest| {
        remove(&mut manifest["subject"], "digest")
    }),
    ("the media type of an index", |manifest| {
        manifest["mediaType"] = media_type::OCI_INDEX.into();
    }),
    ("a media type that is a number", |manifest| {
        manifest["mediaType"] = 7.into()
    }),
    ("schema version 1", |manifest| {
        manifest["schemaVersion"] = 1.into()
    }),
    ("annotations that are a list", |manifest| {
        manifest["annotations"] = json!([])
    }),
    ("null", |manifest| *manifest = Value::Null),
    ("a list", |manifest| *manifest = json!([])),
    ("an empty object", |manifest| *manifest = json!({})),
];

const BUNDLES: &[(&str, Bend)] = &[
    ("null", |bundle| *bundle = Value::Null),
    ("a list", |bundle| *bundle = json!([])),
    ("an empty object", |bundle| *bundle = json!({})),
    ("another version", |bundle| {
        bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.9".into();
    }),
    ("a media type that is a number", |bundle| {
        bundle["mediaType"] = 7.into()
    }),
    ("no verification material", |bundle| {
        remove(bundle, "verificationMaterial")
    }),
    ("verification material that is a text", |bundle| {
        bundle["verificationMaterial"] = "x".into()
    }),
    ("a certificate that is none", |bundle| {
        bundle["verificationMaterial"] = json!({"certificate": {"rawBytes": STANDARD.encode("x")}});
    }),
    ("a certificate in cut base64", |bundle| {
        bundle["verificationMaterial"] = json!({"certificate": {"rawBytes": "MIIB"}});
    }),
    ("a chain that is empty", |bundle| {
        bundle["verificationMaterial"] = json!({"x509CertificateChain": {"certificates": []}});
    }),
    ("log entries that are a text", |bundle| {
        bundle["verificationMaterial"]["tlogEntries"] = "x".into();
    }),
    ("a log entry that is empty", |bundle| {
        bundle["verificationMaterial"]["tlogEntries"] = json!([{}]);
    }),
    ("a timestamp that is none", |bundle| {
        bundle["verificationMaterial"]["timestampVerificationData"] =
            json!({"rfc3161Timestamps": [{"signedTimestamp": "AAAA"}]});
    }),
    ("no envelope", |bundle| remove(bundle, "dsseEnvelope")),
    ("an envelope that is null", |bundle| {
        bundle["dsseEnvelope"] = Value::Null
    }),
    ("a message signature and no envelope", |bundle| {
        remove(bundle, "dsseEnvelope");
        bundle["messageSignature"] = json!({"signature": "AAAA"});
    }),
    ("no payload", |bundle| {
        remove(&mut bundle["dsseEnvelope"], "payload")
    }),
    ("a payload in cut base64", |bundle| {
        cut(&mut bundle["dsseEnvelope"]["payload"])
    }),
    ("a payload that is no base64", |bundle| {
        bundle["dsseEnvelope"]["payload"] = "{}".into()
    }),
    ("a payload that is no JSON", |bundle| {
        bundle["dsseEnvelope"]["payload"] = STANDARD.encode("<html>").into();
    }),
    ("another payload type", |bundle| {
        bundle["dsseEnvelope"]["payloadType"] = "text/plain".into();
    }),
    ("no signatures", |bundle| {
        remove(&mut bundle["dsseEnvelope"], "signatures")
    }),
    ("an empty list of signatures", |bundle| {
        bundle["dsseEnvelope"]["signatures"] = json!([])
    }),
    ("a signature that is null", |bundle| {
        bundle["dsseEnvelope"]["signatures"][0] = Value::Null
    }),
    ("a signature that is empty", |bundle| {
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = "".into();
    }),
    ("a signature in cut base64", |bundle| {
        cut(&mut bundle["dsseEnvelope"]["signatures"][0]["sig"]);
    }),
    ("a signature that is a number", |bundle| {
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = 7.into();
    }),
    ("two signatures", |bundle| {
        let signature = bundle["dsseEnvelope"]["signatures"][0].clone();
        bundle["dsseEnvelope"]["signatures"] = json!([signature, signature]);
    }),
];

/// The annotations of a layer under the `.sig` tag.
const SIGNATURES: &[(&str, &str, &str)] = &[
    ("an empty signature", SIGNATURE, ""),
    ("a signature that is no base64", SIGNATURE, "?"),
    ("a signature in cut base64", SIGNATURE, "MEUCIQ"),
    ("a signature of other bytes", SIGNATURE, "AAAA"),
    ("a certificate that is none", CERTIFICATE, "x"),
    (
        "a certificate in cut base64",
        CERTIFICATE,
        "-----BEGIN CERTIFICATE-----\nMIIBI\n-----END CERTIFICATE-----\n",
    ),
    (
        "a certificate without an end",
        CERTIFICATE,
        "-----BEGIN CERTIFICATE-----\nMIIB",
    ),
    ("a chain that is none", CHAIN, "x"),
    ("a log entry that is no JSON", LOGGED, "<html>"),
    ("a log entry that is null", LOGGED, "null"),
    ("a log entry that is empty", LOGGED, "{}"),
    ("a timestamp that is no JSON", TIMESTAMP, "x"),
    (
        "a timestamp that is none",
        TIMESTAMP,
        r#"{"SignedRFC3161Timestamp": "AAAA"}"#,
    ),
];

fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key);
}

fn cut(text: &mut Value) {
    let whole = text.as_str().unwrap();
    let length = whole.len() / 4 * 4 - 3;
    *text = whole[..length].into();
}

/// A referrer by a foreign key, whose manifest is changed.
fn foreign(fixture: &Fixture, what: &str, bend: impl FnOnce(&mut Value)) -> Value {
    let key = Key::p256();
    let bundle = Envelope::sign(&key, &fixture.statement()).bundle(By::Key(&key), &[], &[]);
    let text = bundle.to_string();
    fixture
        .registry
        .put_referrer(&fixture.digest, text.as_bytes(), |manifest| {
            manifest["annotations"]["what"] = what.into();
            bend(manifest);
        })
}

/// A signature by a key that nobody trusts, as an entry of a list of referrers.
pub(super) fn foreign_referrer(fixture: &Fixture, number: usize) -> Value {
    foreign(fixture, &number.to_string(), |_| {})
}

/// Entries of a list of referrers.
pub(super) fn referrers(fixture: &Fixture) -> Vec<Malformed> {
    let mut all = Vec::new();
    for (what, bend) in DESCRIPTORS {
        let mut entry = foreign(fixture, what, |_| {});
        bend(&mut entry);
        all.push((format!("entry: {what}"), entry));
        let entry = foreign(fixture, what, |manifest| bend(&mut manifest["layers"][0]));
        all.push((format!("layer: {what}"), entry));
    }
    for (what, bend) in MANIFESTS {
        all.push((format!("manifest: {what}"), foreign(fixture, what, bend)));
    }
    let key = Key::p256();
    for (what, bend) in BUNDLES {
        let mut bundle = Envelope::sign(&key, &fixture.statement()).bundle(By::Key(&key), &[], &[]);
        bend(&mut bundle);
        all.push((
            format!("bundle: {what}"),
            attach(fixture, what, bundle.to_string().as_bytes()),
        ));
    }
    let other = Envelope::sign(&fixture.key, &statement(&Digest::sha256(b"other")));
    let other = other.bundle(By::Key(&fixture.key), &[], &[]).to_string();
    for (what, bytes) in [
        ("no JSON", &b"<html>"[..]),
        ("empty", b""),
        ("no UTF-8", b"{\"\xff\": 1}"),
        ("ten thousand levels deep", &[b'['; 10_000]),
        ("a good signature of another digest", other.as_bytes()),
    ] {
        all.push((format!("bundle: {what}"), attach(fixture, what, bytes)));
    }
    all.extend(of_other_bytes(fixture));
    all
}

fn attach(fixture: &Fixture, what: &str, bundle: &[u8]) -> Value {
    fixture
        .registry
        .put_referrer(&fixture.digest, bundle, |manifest| {
            manifest["annotations"]["what"] = what.into();
        })
}

/// Referrers for which the registry has other bytes, or none.
fn of_other_bytes(fixture: &Fixture) -> Vec<Malformed> {
    let registry = &fixture.registry;
    let manifest = |what: &str| {
        let entry = foreign(fixture, what, |_| {});
        let path = format!("manifests/{}", entry["digest"].as_str().unwrap());
        (entry, path)
    };
    let mut all = Vec::new();
    for (what, bytes) in [
        ("other bytes", &[b' '; 700][..]),
        ("no JSON", b"<html>"),
        ("empty", b""),
    ] {
        let (entry, path) = manifest(what);
        registry.put(&path, media_type::OCI_MANIFEST, bytes.to_vec());
        all.push((format!("manifest in the registry: {what}"), entry));
    }
    let (entry, path) = manifest("missing");
    registry.remove(&path);
    all.push(("manifest in the registry: missing".into(), entry));
    for (what, bytes) in [("other bytes", Some("{}")), ("missing", None)] {
        let text = format!("{{\"bundle\": {what:?}}}");
        let entry = attach(fixture, what, text.as_bytes());
        let path = format!("blobs/{}", Digest::sha256(text.as_bytes()));
        match bytes {
            Some(bytes) => registry.put(&path, "text/plain", bytes),
            None => registry.remove(&path),
        }
        all.push((format!("bundle in the registry: {what}"), entry));
    }
    all
}

/// A signature by a key that nobody trusts, as a layer under the `.sig` tag.
pub(super) fn foreign_layer(fixture: &Fixture, number: usize) -> Value {
    let mut content = fixture.payload();
    content["optional"] = json!({ "number": number });
    fixture
        .registry
        .put_signature(&Legacy::sign(&Key::p256(), &content))
}

/// Layers of the image under the `.sig` tag.
pub(super) fn layers(fixture: &Fixture) -> Vec<Malformed> {
    let (registry, key) = (&fixture.registry, Key::p256());
    let mut all = Vec::new();
    for (number, (what, bend)) in DESCRIPTORS.iter().enumerate() {
        let mut layer = foreign_layer(fixture, 1000 + number);
        bend(&mut layer);
        all.push((format!("layer: {what}"), layer));
    }
    for (what, annotation, text) in SIGNATURES {
        let signature = Legacy::sign(&key, &fixture.payload()).with(annotation, *text);
        all.push((
            format!("annotations: {what}"),
            registry.put_signature(&signature),
        ));
    }
    let mut layer = foreign_layer(fixture, 2000);
    remove(&mut layer["annotations"], SIGNATURE);
    all.push(("annotations: no signature".into(), layer));
    let mut other_type = fixture.payload();
    other_type["critical"]["type"] = "atomic container signature".into();
    let mut without_image = fixture.payload();
    remove(&mut without_image["critical"], "image");
    for (what, content) in [
        ("null", Value::Null),
        ("an empty object", json!({})),
        (
            "another digest",
            payload(&Digest::sha256(b"other"), &fixture.repository()),
        ),
        ("another type", other_type),
        ("no image", without_image),
    ] {
        let layer = registry.put_signature(&Legacy::sign(&fixture.key, &content));
        all.push((format!("payload: {what}"), layer));
    }
    for (what, bytes) in [("other bytes", Some("{}")), ("missing", None)] {
        let signature = Legacy::sign(&key, &json!({ "payload": what }));
        let layer = registry.put_signature(&signature);
        let path = format!("blobs/{}", layer["digest"].as_str().unwrap());
        match bytes {
            Some(bytes) => registry.put(&path, "text/plain", bytes),
            None => registry.remove(&path),
        }
        all.push((format!("payload in the registry: {what}"), layer));
    }
    all
}
