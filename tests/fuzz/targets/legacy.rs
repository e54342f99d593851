//! A signature of cosign's older format, in the order of [`Parts`]. It is verified as it is, and
//! its payload again with a valid signature.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate_fuzz::{Case, Parts, SEPARATOR};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static CASE: LazyLock<Case> = LazyLock::new(Case::load);
static SIGNED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| CASE.signed());

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut parts = text.split(SEPARATOR);
    let mut next = || parts.next().unwrap_or_default();
    let parts = Parts {
        signature: next(),
        payload: next().as_bytes(),
        certificate: next(),
        chain: next(),
        log_entry: next(),
        timestamp: next(),
    };
    if CASE.accepts(&CASE.legacy_evidence(&parts)) {
        assert!(
            SIGNED.iter().any(|signed| signed == parts.payload),
            "it was never signed"
        );
    }
    let own = STANDARD.encode(CASE.sign(parts.payload));
    if CASE.accepts(&CASE.legacy_evidence(&Parts {
        signature: &own,
        payload: parts.payload,
        ..Parts::default()
    })) {
        let payload: Value =
            serde_json::from_slice(parts.payload).expect("what is accepted is JSON");
        let critical = &payload["critical"];
        assert_eq!(critical["type"], "cosign container image signature");
        assert_eq!(
            critical["image"]["docker-manifest-digest"],
            CASE.manifest.digest().as_str()
        );
    }
});
