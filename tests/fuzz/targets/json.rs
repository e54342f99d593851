//! JSON data: each text that a strict parser accepts is accepted with the same value, and the
//! output is JSON for other parsers.

#![no_main]

use bundlegate::bundle::fuzzing::json_to_json;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let ours = json_to_json(text);
    if let Ok(strict) = serde_json::from_slice::<Value>(text) {
        let ours = ours.as_deref().expect("strict JSON is JSON");
        assert_eq!(
            serde_json::from_slice::<Value>(ours).expect("it is JSON"),
            strict
        );
    }
    let Some(ours) = ours else { return };
    assert!(ours.len() <= 6 * text.len());
    serde_json::from_slice::<IgnoredAny>(&ours).expect("it is JSON");
    assert_eq!(
        json_to_json(&ours).as_deref(),
        Some(&ours[..]),
        "the output is a fixed point"
    );
});
