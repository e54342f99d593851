//! The forge itself: what it makes is good in the eyes of `sigstore-verify`, and a fault in
//! any part of it is seen there.

use bundlegate::oci::Digest;
use serde_json::{Value, json};
use sigstore_verify::{
    PublicKeyVerificationPolicy, VerificationPolicy, Verifier,
    trust_root::TrustedRoot,
    types::{Bundle, DerPublicKey, Sha256Hash},
};

use super::{By, Certified, Envelope, ISSUER, Key, SUBJECT, Sigstore, minutes, statement};

struct Bench {
    forge: Sigstore,
    signer: Certified,
    digest: Digest,
}

impl Bench {
    fn new() -> Self {
        let forge = Sigstore::new();
        Self {
            signer: forge.signer(),
            forge,
            digest: Digest::sha256(b"artifact"),
        }
    }

    fn verify(&self, bundle: &Value) -> Result<(), String> {
        self.verify_with(bundle, &VerificationPolicy::new(SUBJECT, ISSUER))
    }

    fn verify_with(
        &self,
        bundle: &Value,
        policy: &dyn sigstore_verify::Policy,
    ) -> Result<(), String> {
        let root = TrustedRoot::from_json(&self.forge.trusted_root().to_string()).unwrap();
        let bundle = Bundle::from_json(&bundle.to_string()).map_err(|error| error.to_string())?;
        let hash = Sha256Hash::from_hex(self.digest.hex()).unwrap();
        let verified = Verifier::new(&root).unwrap().verify(hash, &bundle, policy);
        verified.map(drop).map_err(|error| error.to_string())
    }
}

#[test]
fn every_kind_of_bundle_from_the_forge_is_good() {
    let bench = Bench::new();
    let (forge, by) = (&bench.forge, By::Certificate(&bench.signer));
    let envelope = Envelope::sign(&bench.signer.key, &statement(&bench.digest));
    let stamp = [forge.stamp(&envelope.signature)];
    let (one, two) = (
        forge.log_envelope(by, &envelope),
        forge.log2_envelope(by, &envelope),
    );
    bench
        .verify(&envelope.bundle(by, std::slice::from_ref(&one), &[]))
        .unwrap();
    bench.verify(&envelope.bundle(by, &[one], &stamp)).unwrap();
    bench.verify(&envelope.bundle(by, &[two], &stamp)).unwrap();

    let key = Key::p256();
    let managed = PublicKeyVerificationPolicy::new(DerPublicKey::new(key.spki.clone()));
    let (by, envelope) = (
        By::Key(&key),
        Envelope::sign(&key, &statement(&bench.digest)),
    );
    for entry in [
        forge.log_envelope(by, &envelope),
        forge.log2_envelope(by, &envelope),
    ] {
        bench
            .verify_with(&envelope.bundle(by, &[entry], &[]), &managed)
            .unwrap();
    }
}

#[test]
fn a_fault_in_any_part_of_the_forge_is_seen() {
    let bench = Bench::new();
    let (forge, by) = (&bench.forge, By::Certificate(&bench.signer));
    let envelope = Envelope::sign(&bench.signer.key, &statement(&bench.digest));
    let good = forge.log_envelope(by, &envelope);
    let stranger = Sigstore::new();
    let faults = [
        (envelope.bundle(by, &[], &[]), "inclusion proof"),
        (
            envelope.bundle(by, &[stranger.log_envelope(by, &envelope)], &[]),
            "log key",
        ),
        (
            envelope.bundle(
                by,
                std::slice::from_ref(&good),
                &[stranger.stamp(&envelope.signature)],
            ),
            "TSA",
        ),
        (
            envelope.bundle(by, std::slice::from_ref(&good), &[forge.stamp(b"another")]),
            "TSA",
        ),
        (
            envelope.bundle(by, &[good.with_body(|body| body["x"] = json!(1))], &[]),
            "SET",
        ),
        (
            envelope.bundle(by, &[forge.log2_envelope(by, &envelope)], &[]),
            "timestamp",
        ),
        (
            envelope.bundle(By::Certificate(&stranger.signer()), &[good], &[]),
            "chain",
        ),
    ];
    for (bundle, words) in faults {
        let error = bench.verify(&bundle).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    }
    let mut late = forge.content();
    late.valid.from = forge.then + minutes(1);
    let late = forge.certify(&late);
    let envelope = Envelope::sign(&late.key, &statement(&bench.digest));
    let by = By::Certificate(&late);
    let error = bench
        .verify(&envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &[]))
        .unwrap_err();
    assert!(error.contains("NotValidYet"), "{error}");
}
