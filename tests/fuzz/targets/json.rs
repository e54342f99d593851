//! JSON data of other people: whatever a strict parser reads is read, to the same value, and what
//! is read can be read by others.

#![no_main]

use bundlegate::bundle::fuzzing::json_to_json;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let ours = json_to_json(text);
    if let Ok(strict) = serde_json::from_slice::<Value>(text) {
        let ours = ours.as_deref().expect("strict JSON is JSON");
        assert_eq!(serde_json::from_slice::<Value>(ours).expect("it is JSON"), strict);
    }
    let Some(ours) = ours else { return };
    assert!(ours.len() <= 6 * text.len());
    serde_json::from_slice::<IgnoredAny>(&ours).expect("it is JSON");
    assert_eq!(json_to_json(&ours).as_deref(), Some(&ours[..]), "written once, it stays as it is");
});
