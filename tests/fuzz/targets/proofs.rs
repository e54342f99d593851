//! The verification material of a valid signature as bytes: certificates, log entries, checkpoints,
//! timestamps. The first byte selects the part of a bundle that the other bytes replace.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate_fuzz::{Case, PROOFS, TrustedMaterial};
use libfuzzer_sys::fuzz_target;

static TRUSTED: LazyLock<TrustedMaterial> = LazyLock::new(TrustedMaterial::load);
static CASE: LazyLock<Case> = LazyLock::new(|| Case::new(&TRUSTED));

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, part)) = bytes.split_first() else {
        return;
    };
    let choice = usize::from(*choice);
    let (pointer, is_text) = PROOFS[choice % PROOFS.len()];
    let mut bundle = TRUSTED.bundles[choice / PROOFS.len() % TRUSTED.bundles.len()].clone();
    let Some(place) = bundle.pointer_mut(pointer) else {
        return;
    };
    let good = place.clone();
    *place = if is_text {
        String::from_utf8_lossy(part).into()
    } else {
        STANDARD.encode(part).into()
    };
    let same = *place == good;
    let accepted = CASE.accepts(&CASE.bundle_evidence(bundle.to_string().as_bytes()));
    assert!(accepted || !same, "a valid signature is accepted");
    // Not all of a timestamp response is signed, a checkpoint may carry further signatures, and
    // Rekor v2 states the root hash a second time, which is not used. Any other change is refused.
    let is_open = ["/signedTimestamp", "/envelope", "/rootHash"]
        .iter()
        .any(|end| pointer.ends_with(end));
    assert!(
        !accepted || same || is_open,
        "{pointer} is not what was signed"
    );
});
