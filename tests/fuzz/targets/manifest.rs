//! Manifests and indexes, and the strict JSON parser that comes first.

#![no_main]

use bundlegate::{
    bundle::LayerPlan,
    oci::{Digest, Manifest, strict_json},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let strict = strict_json(bytes).is_ok();
    if strict {
        serde_json::from_slice::<serde_json::Value>(bytes).expect("what is strict is JSON");
    }
    let length = bytes.len() as u64;
    assert!(length == 0 || Manifest::parse(bytes.to_vec().into(), None, length - 1).is_err());
    let Ok(manifest) = Manifest::parse(bytes.to_vec().into(), None, length) else {
        return;
    };
    assert!(strict);
    assert_eq!(
        (manifest.raw().as_ref(), manifest.digest()),
        (bytes, &Digest::sha256(bytes))
    );
    assert!(manifest.subject().is_none() || !manifest.media_type().contains("index"));
    let typed = Manifest::parse(bytes.to_vec().into(), Some(manifest.media_type()), length)
        .expect("its own type fits");
    assert_eq!(typed.as_referrer(), manifest.as_referrer());
    let _ = LayerPlan::of(&manifest, None);
});
