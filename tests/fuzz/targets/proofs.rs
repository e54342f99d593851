//! What vouches for a good signature, each part as the bytes that it is made of: certificates,
//! log entries, checkpoints, timestamps. The first byte says which part of which bundle the
//! others stand in for.

#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate_fuzz::{Believed, Case, PROOFS};
use libfuzzer_sys::fuzz_target;

static BELIEVED: LazyLock<Believed> = LazyLock::new(Believed::load);
static CASE: LazyLock<Case> = LazyLock::new(|| Case::new(&BELIEVED));

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, part)) = bytes.split_first() else { return };
    let choice = usize::from(*choice);
    let (pointer, is_text) = PROOFS[choice % PROOFS.len()];
    let mut bundle = BELIEVED.bundles[choice / PROOFS.len() % BELIEVED.bundles.len()].clone();
    let Some(place) = bundle.pointer_mut(pointer) else { return };
    let good = place.clone();
    *place = if is_text { String::from_utf8_lossy(part).into() } else { STANDARD.encode(part).into() };
    let same = *place == good;
    let accepted = CASE.accepts(&CASE.bundle_evidence(bundle.to_string().as_bytes()));
    assert!(accepted || !same, "what is in order passes");
    // Of a timestamp's answer not all is signed, a checkpoint may have signatures of others,
    // and Rekor v2 states the root a second time, which nobody reads; whatever else is bent is
    // refused.
    let is_open = ["/signedTimestamp", "/envelope", "/rootHash"].iter().any(|end| pointer.ends_with(end));
    assert!(!accepted || same || is_open, "{pointer} is not what was signed");
});
