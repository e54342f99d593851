//! A signature of cosign's present format. Each input is verified as a bundle, and as the statement
//! in a bundle with a valid signature.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate_fuzz::Case;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static CASE: LazyLock<Case> = LazyLock::new(Case::load);
static SIGNED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| CASE.signed());

fuzz_target!(|bytes: &[u8]| {
    if CASE.accepts(&CASE.bundle_evidence(bytes)) {
        let bundle: Value = serde_json::from_slice(bytes).expect("what is accepted is JSON");
        let payload = bundle["dsseEnvelope"]["payload"]
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok());
        assert!(
            payload.is_some_and(|payload| SIGNED.contains(&payload)),
            "it was never signed"
        );
    }
    let bundle = CASE.bundle_of(bytes).to_string();
    if CASE.accepts(&CASE.bundle_evidence(bundle.as_bytes())) {
        let statement: Value = serde_json::from_slice(bytes).expect("what is accepted is JSON");
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(
            statement["predicateType"],
            "https://sigstore.dev/cosign/sign/v1"
        );
        let named = |subject: &Value| subject["digest"]["sha256"] == CASE.manifest.digest().hex();
        assert!(
            statement["subject"]
                .as_array()
                .is_some_and(|subjects| subjects.iter().any(named))
        );
    }
});
