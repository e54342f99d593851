//! An artifact, its signatures, and a policy that accepts these signatures and no others.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Descriptor, Manifest, NewManifest, PinnedReference, Reference, media_type},
    sign::{Attachment, KeyPair, LegacyImage, LegacySignature, SigningRequest, fuzzing},
    verify::{
        Authority, AuthorityKind, CaRoots, Evidence, Identity, Pattern, PublicKey, Requirements,
        San, SigningTime, TlogPolicy, TrustPolicy, TrustRoot, VerificationContext, Verified, X509,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::forge::{ISSUER, SUBJECT, Sigstore, payload, statement};

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const REPOSITORY: &str = "r.example/acme/authz";
/// A fixed key, so that inputs with its signatures stay valid from run to run.
const PKCS8: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgsgC1v8St3tft6Oi7dRGLwfUlGG7wS2Gyh5pI9cf9eA\
                     ahRANCAASWeNrjGQMVAc+ow61oAhZuln4ctf3d+oH48c8/OcshudO1o8G2Kk8qpfarlkK9543mqkqbzR2+3qFJtp4M\
                     gHFt";

/// The key that [`Case::policy`] trusts without a transparency log.
///
/// # Panics
/// Never.
pub fn key() -> KeyPair {
    fuzzing::pkcs8(&pkcs8()).expect("it is a key")
}

/// The same key in PKCS#8.
///
/// # Panics
/// Never.
pub fn pkcs8() -> Vec<u8> {
    STANDARD.decode(PKCS8).expect("it is base64")
}

/// The trust material of the policy beside that key. Made once and stored with the seeds, because
/// signatures under other material would not be accepted.
#[derive(Clone, Serialize, Deserialize)]
pub struct TrustedMaterial {
    /// The trusted root of a forged Sigstore instance.
    trusted_root: Value,
    /// A key whose signatures must be in the transparency log, PEM.
    logged: String,
    /// A private certificate authority, PEM.
    private: String,
    /// One bundle of each kind, which the policy accepts.
    pub bundles: Vec<Value>,
}

impl TrustedMaterial {
    pub(crate) fn new(forge: &Sigstore, logged: String, private: String) -> Self {
        Self {
            trusted_root: forge.trusted_root(),
            logged,
            private,
            bundles: Vec::new(),
        }
    }

    /// # Panics
    /// When there is none; `run` makes it and sets `BUNDLEGATE_FUZZ_CASE`.
    pub fn load() -> Self {
        let file = std::env::var_os("BUNDLEGATE_FUZZ_CASE")
            .expect("BUNDLEGATE_FUZZ_CASE is set by tests/fuzz/run");
        Self::read(Path::new(&file))
    }

    /// # Panics
    /// When [`Self::write`] did not write it.
    pub fn read(file: &Path) -> Self {
        serde_json::from_slice(&fs::read(file).expect("tests/fuzz/run made it"))
            .expect("it is what `seeds` wrote")
    }

    /// # Panics
    /// When it can't be written.
    pub fn write(&self, file: &Path) {
        fs::write(file, serde_json::to_vec(self).expect("it is JSON"))
            .expect("the folder can be written");
    }

    pub fn trusted_root(&self) -> String {
        self.trusted_root.to_string()
    }

    fn authorities(&self) -> Vec<Authority> {
        let root =
            TrustRoot::from_json("forged", &self.trusted_root.to_string()).expect("it is a root");
        let exact = |text| Pattern::exact(text).expect("it is a text");
        let key = |pem: &str| PublicKey::from_pem(pem).expect("it is a key");
        let identity = Identity {
            issuer: exact(ISSUER),
            subject: exact(SUBJECT),
            claims: [].into(),
        };
        let private = X509 {
            roots: CaRoots::from_pem(&self.private).expect("they are certificates"),
            subject: San::Uri(exact(SUBJECT)),
            time: SigningTime::Tsa,
        };
        let release = Authority::with_keys("release".to_owned(), [key(crate::key().public_pem())]);
        let mut logged = Authority::with_keys("logged".to_owned(), [key(&self.logged)]);
        (logged.tlog, logged.root) = (TlogPolicy::Require, Some(root.clone()));
        let [ci, team] = [
            ("ci", AuthorityKind::Keyless(identity), TlogPolicy::Require),
            ("team", AuthorityKind::X509(private), TlogPolicy::None),
        ]
        .map(|(name, kind, tlog)| Authority {
            name: name.to_owned(),
            kind,
            tlog,
            root: Some(root.clone()),
        });
        vec![release, logged, ci, team]
    }
}

/// The inputs of a verification except the evidence.
pub struct Case {
    pub key: KeyPair,
    pub manifest: Manifest,
    pub pinned: PinnedReference,
    pub policy: TrustPolicy,
}

/// A signature of the older format as text. An empty part is absent.
#[derive(Clone, Default)]
pub struct Parts<'a> {
    pub signature: &'a str,
    pub payload: &'a [u8],
    pub certificate: &'a str,
    pub chain: &'a str,
    pub log_entry: &'a str,
    pub timestamp: &'a str,
}

impl Case {
    /// # Panics
    /// See [`TrustedMaterial::load`].
    pub fn load() -> Self {
        Self::new(&TrustedMaterial::load())
    }

    /// # Panics
    /// Never.
    pub fn new(trusted: &TrustedMaterial) -> Self {
        let layer = Descriptor::of(media_type::LAYER_TAR_GZIP, b"a bundle");
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![layer])
            .to_bytes()
            .expect("it has bytes");
        let manifest = Manifest::parse(manifest, None, 1 << 20).expect("we made it");
        let reference: Reference = format!("{REPOSITORY}@{}", manifest.digest())
            .parse()
            .expect("it is a reference");
        let pinned = reference.pinned().expect("it has a digest");
        let policy = TrustPolicy::signed(
            "release".to_owned(),
            Requirements::any_of(trusted.authorities()),
        );
        Self {
            key: key(),
            pinned,
            manifest,
            policy: policy.expect("it can be met"),
        }
    }

    /// All signed texts: payloads of the older format and statements, as bundlegate and as the
    /// forge write them.
    ///
    /// # Panics
    /// Never.
    pub fn signed(&self) -> Vec<Vec<u8>> {
        let bundle: Value = serde_json::from_slice(&self.attachment().bundle).expect("we wrote it");
        let own = STANDARD.decode(
            bundle["dsseEnvelope"]["payload"]
                .as_str()
                .expect("it is text"),
        );
        let forged = [self.forged_payload(), self.forged_statement()]
            .map(|value| value.to_string().into_bytes());
        [
            vec![self.legacy().0, own.expect("it is base64")],
            forged.into(),
        ]
        .concat()
    }

    pub fn forged_payload(&self) -> Value {
        payload(self.manifest.digest(), REPOSITORY)
    }

    pub fn forged_statement(&self) -> Value {
        statement(self.manifest.digest())
    }

    /// A valid payload and its signature, as in the annotation.
    ///
    /// # Panics
    /// Never.
    pub fn legacy(&self) -> (Vec<u8>, String) {
        let signature =
            LegacySignature::sign(&self.key, &self.claim(), REPOSITORY).expect("the key signs");
        let image = LegacyImage::with(None, &signature).expect("there is nothing yet");
        let image = Manifest::parse(image.manifest, None, 1 << 20).expect("we made it");
        let annotation = image.layers()[0]
            .annotation("dev.cosignproject.cosign/signature")
            .expect("it is signed");
        (signature.payload.to_vec(), annotation.to_owned())
    }

    /// A valid bundle.
    ///
    /// # Panics
    /// Never.
    pub fn attachment(&self) -> Attachment {
        Attachment::sign(&self.key, &self.claim()).expect("the key signs")
    }

    fn claim(&self) -> SigningRequest {
        SigningRequest::of(self.manifest.descriptor())
    }

    /// Evidence with one signature of the older format.
    pub fn legacy_evidence(&self, parts: &Parts<'_>) -> Value {
        let mut signature =
            json!({ "signature": parts.signature, "payload": STANDARD.encode(parts.payload) });
        for (name, text) in [
            ("certificate", parts.certificate),
            ("chain", parts.chain),
            ("log_entry", parts.log_entry),
            ("timestamp", parts.timestamp),
        ] {
            if !text.is_empty() {
                signature[name] = text.into();
            }
        }
        json!({ "legacy": [signature], "bundles": [] })
    }

    /// Evidence with one bundle in a valid referrer.
    ///
    /// # Panics
    /// Never.
    pub fn bundle_evidence(&self, bundle: &[u8]) -> Value {
        let referrer =
            NewManifest::new(media_type::EMPTY, vec![Descriptor::of(BUNDLE_TYPE, bundle)])
                .referring(BUNDLE_TYPE, self.manifest.descriptor())
                .to_bytes()
                .expect("it has bytes");
        json!({ "legacy": [], "bundles": [{ "referrer": STANDARD.encode(referrer), "bundle": STANDARD.encode(bundle) }] })
    }

    /// A bundle with the signature of any statement.
    pub fn bundle_of(&self, statement: &[u8]) -> Value {
        let kind = "application/vnd.in-toto+json";
        let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), statement.len()).into_bytes();
        message.extend(statement);
        json!({
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": { "publicKey": { "hint": "" } },
            "dsseEnvelope": {
                "payload": STANDARD.encode(statement),
                "payloadType": kind,
                "signatures": [{ "sig": STANDARD.encode(self.sign(&message)) }],
            },
        })
    }

    /// A signature by the key.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        fuzzing::sign(&self.key, message)
    }

    /// Whether the policy accepts the evidence.
    ///
    /// # Panics
    /// When `evidence` is malformed.
    pub fn accepts(&self, evidence: &Value) -> bool {
        self.accepts_evidence(
            &Evidence::from_bytes(evidence.to_string().as_bytes()).expect("it is evidence"),
        )
    }

    /// Whether the policy accepts the evidence. Checks that the report agrees and that its texts
    /// are short.
    ///
    /// # Panics
    /// When it does not.
    pub fn accepts_evidence(&self, evidence: &Evidence) -> bool {
        let (manifest, context) = (self.manifest.clone(), VerificationContext::now());
        let (verdict, report) =
            Verified::verify_with_report(&self.policy, &self.pinned, manifest, evidence, context);
        assert_eq!(
            verdict.is_ok(),
            report
                .signatures
                .iter()
                .any(|signature| signature.is_verified())
        );
        let details = report
            .signatures
            .iter()
            .flat_map(|signature| &signature.checks)
            .map(|check| &check.detail);
        for text in details.chain(&report.skipped) {
            assert!(
                text.chars().count() <= 300 && !text.contains(char::is_control),
                "{text}"
            );
        }
        if let Err(rejection) = &verdict {
            let text = rejection.to_string();
            assert!(
                text.chars().count() <= 2000 && !text.contains(char::is_control),
                "{text}"
            );
        }
        verdict.is_ok()
    }
}
