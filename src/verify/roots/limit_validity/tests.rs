use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use serde_json::{Value, json};
use sigstore_verify::{
    VerificationPolicy, Verifier,
    crypto::{self, sha256},
    trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, SigstoreInstance},
    types::Bundle,
};

use super::{super::TrustRoot, *};

const ARTIFACT: &[u8] = b"what was signed";
/// A range of days as `(year, month, day)`, from the start of the first to the start of the
/// second.
type Days = [(i32, u8, u8); 2];
const ALWAYS: Days = [(2020, 1, 1), (2040, 1, 1)];
const FIRST_HALF: Days = [(2024, 1, 1), (2024, 7, 1)];

/// A certificate authority of two levels, a log, and a signer whose certificate outlives all of
/// them.
struct World {
    root: Value,
    leaf: rcgen::Certificate,
    key: crypto::KeyPair,
    log: crypto::KeyPair,
}

impl World {
    fn new(root: Days, intermediate: Days) -> Self {
        let (root_key, key, leaf_key) = (
            KeyPair::generate().unwrap(),
            KeyPair::generate().unwrap(),
            KeyPair::generate().unwrap(),
        );
        let root = authority("root", root);
        let root_certificate = root.self_signed(&root_key).unwrap();
        let root = Issuer::new(root, root_key);
        let intermediate = authority("intermediate", intermediate);
        let intermediate_certificate = intermediate.signed_by(&key, &root).unwrap();
        let mut leaf = named("leaf", ALWAYS);
        leaf.subject_alt_names = vec![SanType::Rfc822Name("team@example.com".try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let leaf = leaf
            .signed_by(&leaf_key, &Issuer::new(intermediate, key))
            .unwrap();

        let log = crypto::KeyPair::generate_ecdsa_p256().unwrap();
        let chain = [intermediate_certificate, root_certificate]
            .map(|one| json!({"rawBytes": STANDARD.encode(one.der())}));
        let root = json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot.v0.2+json",
            "tlogs": [{
                "baseUrl": "https://log.example.com",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": public(&log), "keyDetails": "PKIX_ECDSA_P256_SHA_256"},
                "logId": {"keyId": STANDARD.encode(log_id(&log))},
            }],
            "certificateAuthorities": [{
                "uri": "https://ca.example.com",
                "certChain": {"certificates": chain},
                "validFor": {"start": "2020-01-01T00:00:00Z"},
            }],
        });
        let key = crypto::KeyPair::from_pkcs8_der(leaf_key.serialized_der()).unwrap();
        Self {
            root,
            leaf,
            key,
            log,
        }
    }

    /// A signature that was logged at `time`.
    fn signed_at(&self, time: &str) -> Bundle {
        let time = time.parse::<jiff::Timestamp>().unwrap().as_second();
        let signature = STANDARD.encode(self.key.sign(ARTIFACT).unwrap().as_bytes());
        let hash = sha256(ARTIFACT);
        let body = STANDARD.encode(
            json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hash.to_hex()}},
                "signature": {"content": signature, "publicKey": {"content": STANDARD.encode(self.leaf.pem())}},
            }})
            .to_string(),
        );
        let id = log_id(&self.log);
        // The keys in the order in which the log signs them.
        let promise = format!(
            r#"{{"body":"{body}","integratedTime":{time},"logID":"{}","logIndex":1}}"#,
            hex(&id)
        );
        let bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
            "verificationMaterial": {
                "x509CertificateChain": {"certificates": [{"rawBytes": STANDARD.encode(self.leaf.der())}]},
                "tlogEntries": [{
                    "logIndex": "1",
                    "logId": {"keyId": STANDARD.encode(id)},
                    "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
                    "integratedTime": time.to_string(),
                    "inclusionPromise": {
                        "signedEntryTimestamp": STANDARD.encode(self.log.sign(promise.as_bytes()).unwrap().as_bytes()),
                    },
                    "canonicalizedBody": body,
                }],
            },
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": STANDARD.encode(hash.as_bytes())},
                "signature": signature,
            },
        });
        Bundle::from_json(&bundle.to_string()).unwrap()
    }

    /// The results with limited time ranges, and with those of the file.
    fn verify(&self, time: &str) -> [Result<(), String>; 2] {
        let bundle = self.signed_at(time);
        let limited = TrustRoot::from_json("test", &self.root.to_string()).unwrap();
        let as_written =
            Verifier::new(&TrustedRoot::from_json(&self.root.to_string()).unwrap()).unwrap();
        [limited.verifier(), &as_written].map(|verifier| {
            let policy = VerificationPolicy::any_identity().skip_sct();
            verifier
                .verify(ARTIFACT, &bundle, &policy)
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
    }
}

fn named(name: &str, [from, until]: Days) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    params
}

fn authority(name: &str, days: Days) -> CertificateParams {
    let mut params = named(name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn public(key: &crypto::KeyPair) -> String {
    STANDARD.encode(key.public_key_der().unwrap().as_bytes())
}

fn log_id(key: &crypto::KeyPair) -> [u8; 32] {
    *sha256(key.public_key_der().unwrap().as_bytes()).as_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn windows(root: &TrustRoot) -> Vec<String> {
    let authorities = root.content().certificate_authorities.iter();
    authorities
        .map(|one| one.valid_for.unwrap())
        .map(|one| format!("{}..{}", one.start, one.end.unwrap()))
        .collect()
}

/// CVE-2026-24122: the leaf is valid at that time, the certificate that signed it is not.
#[test]
fn an_expired_intermediate_is_not_trusted() {
    let world = World::new(ALWAYS, FIRST_HALF);
    let [limited, as_written] = world.verify("2024-09-01T00:00:00Z");
    assert_eq!(
        as_written,
        Ok(()),
        "the verifier checks anchors itself; limiting has become unnecessary"
    );
    assert!(
        limited
            .as_ref()
            .is_err_and(|reason| reason.contains("UnknownIssuer")),
        "{limited:?}"
    );
}

#[test]
fn nothing_below_an_expired_root_is_trusted() {
    let [limited, as_written] = World::new(FIRST_HALF, ALWAYS).verify("2024-09-01T00:00:00Z");
    assert_eq!(as_written, Ok(()));
    assert!(
        limited.as_ref().is_err_and(|reason| reason.contains("no ")),
        "{limited:?}"
    );
}

#[test]
fn an_authority_is_trusted_to_the_last_second_of_its_certificates() {
    let world = World::new(ALWAYS, FIRST_HALF);
    for (time, expected) in [
        ("2023-12-31T23:59:59Z", false),
        ("2024-01-01T00:00:00Z", true),
        ("2024-07-01T00:00:00Z", true),
        ("2024-07-01T00:00:01Z", false),
    ] {
        let [limited, _] = world.verify(time);
        assert_eq!(limited.is_ok(), expected, "{time}: {limited:?}");
    }
}

#[test]
fn each_certificate_gets_the_window_of_all_that_is_above_it() {
    let world = World::new([(2024, 3, 1), (2030, 1, 1)], FIRST_HALF);
    let mut root = world.root;
    let read = |root: &Value| windows(&TrustRoot::from_json("test", &root.to_string()).unwrap());
    let (below, above) = (
        "2024-03-01T00:00:00Z..2024-07-01T00:00:00Z",
        "2024-03-01T00:00:00Z..2030-01-01T00:00:00Z",
    );
    assert_eq!(read(&root), [below, above]);
    // The order in the file is irrelevant.
    root["certificateAuthorities"][0]["certChain"]["certificates"]
        .as_array_mut()
        .unwrap()
        .reverse();
    assert_eq!(read(&root), [above, below]);
    root["certificateAuthorities"][0]["validFor"] =
        json!({"start": "2024-04-01T00:00:00Z", "end": "2024-05-01T00:00:00Z"});
    let window = "2024-04-01T00:00:00Z..2024-05-01T00:00:00Z";
    assert_eq!(read(&root), [window, window]);
    root["certificateAuthorities"][0]["validFor"] = json!({"start": "2031-01-01T00:00:00Z"});
    assert_eq!(read(&root), [""; 0]);
    assert!(
        !TrustRoot::from_json("test", &root.to_string())
            .unwrap()
            .has_certificate_authorities()
    );
}

#[test]
fn a_timestamp_authority_ends_with_its_root_certificate() {
    let mut root = World::new(FIRST_HALF, ALWAYS).root;
    root["timestampAuthorities"] = root["certificateAuthorities"].take();
    root.as_object_mut()
        .unwrap()
        .remove("certificateAuthorities");
    let read = |root: &Value| TrustRoot::from_json("test", &root.to_string()).unwrap();
    let limited = read(&root);
    let [authority] = limited.content().timestamp_authorities.as_slice() else {
        panic!("one authority")
    };
    assert_eq!(
        authority.cert_chain.certificates.len(),
        2,
        "webpki needs the chain as it is"
    );
    assert_eq!(
        authority.valid_for.unwrap().end,
        Some("2024-07-01T00:00:00Z".parse().unwrap())
    );
    root["timestampAuthorities"][0]["validFor"] = json!({"start": "2025-01-01T00:00:00Z"});
    assert!(!read(&root).has_timestamp_authorities());
}

#[test]
fn the_published_roots_are_read_and_keep_all_that_they_have() {
    for instance in [
        SigstoreInstance::PublicGood,
        SigstoreInstance::Staging,
        SigstoreInstance::GitHub,
    ] {
        let text = instance.embedded_trusted_root_json();
        let root = TrustRoot::from_json("test", text)
            .unwrap_or_else(|error| panic!("{instance:?}: {error}"));
        let written = TrustedRoot::from_json(text).unwrap();
        let certificates: usize = written
            .certificate_authorities
            .iter()
            .map(|one| one.cert_chain.certificates.len())
            .sum();
        assert_eq!(
            root.content().certificate_authorities.len(),
            certificates,
            "{instance:?}"
        );
        assert_eq!(
            root.content().timestamp_authorities.len(),
            written.timestamp_authorities.len(),
            "{instance:?}"
        );
    }
    assert!(SIGSTORE_PRODUCTION_TRUSTED_ROOT.len() * 8 < super::super::root::MAX_LENGTH);
}

#[test]
fn an_invalid_root_is_rejected() {
    let world = World::new(ALWAYS, ALWAYS).root;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut root = world.clone();
        change(&mut root);
        root.to_string()
    };
    let text = world.to_string();
    for (text, reason) in [
        (String::new(), "EOF"),
        (format!("{text} {text}"), "trailing"),
        // Even in members that this program ignores: another program may read them.
        (text.replacen('{', r#"{"more":1,"more":2,"#, 1), "duplicate"),
        (text.replacen('{', r#"{"tlogs":[],"#, 1), "duplicate"),
        (format!("{text}{}", " ".repeat(1 << 20)), "too many"),
        (
            changed(&|root| root["mediaType"] = json!("application/json")),
            "mediaType",
        ),
        (
            changed(&|root| {
                root["certificateAuthorities"][0]["certChain"]["certificates"] = json!([])
            }),
            "empty",
        ),
        (
            changed(&|root| {
                root["certificateAuthorities"][0]["certChain"]["certificates"][1]["rawBytes"] =
                    json!("AAAA")
            }),
            "certificate",
        ),
        (
            changed(&|root| root["tlogs"][0]["publicKey"]["rawBytes"] = json!("AAAA")),
            "key",
        ),
    ] {
        let error = TrustRoot::from_json("test", &text).unwrap_err().to_string();
        assert!(
            error.to_lowercase().contains(&reason.to_lowercase()),
            "{reason}: {error}"
        );
    }
}
