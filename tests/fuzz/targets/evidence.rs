//! Evidence as the cache stores it, verified.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::verify::Evidence;
use bundlegate_fuzz::Case;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static CASE: LazyLock<Case> = LazyLock::new(Case::load);
static SIGNED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| CASE.signed());

fuzz_target!(|bytes: &[u8]| {
    let Ok(evidence) = Evidence::from_bytes(bytes) else {
        return;
    };
    let kept = evidence.to_bytes().expect("every part is a string");
    let again = Evidence::from_bytes(&kept).expect("we wrote it");
    assert_eq!(
        (again.len(), again.to_bytes().ok()),
        (evidence.len(), Some(kept))
    );
    if CASE.accepts_evidence(&evidence) {
        let evidence: Value = serde_json::from_slice(bytes).expect("it was read before");
        assert!(
            payloads(&evidence)
                .iter()
                .any(|payload| SIGNED.contains(payload)),
            "it was never signed"
        );
    }
});

fn payloads(evidence: &Value) -> Vec<Vec<u8>> {
    let decode = |text: &Value| STANDARD.decode(text.as_str()?).ok();
    let all = |name: &str| evidence[name].as_array().cloned().unwrap_or_default();
    let legacy = all("legacy")
        .into_iter()
        .filter_map(|one| decode(&one["payload"]));
    let bundles = all("bundles").into_iter().filter_map(|one| {
        let bundle: Value = serde_json::from_slice(&decode(&one["bundle"])?).ok()?;
        decode(&bundle["dsseEnvelope"]["payload"])
    });
    legacy.chain(bundles).collect()
}
