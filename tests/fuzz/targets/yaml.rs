//! YAML data: the result is JSON within limits, or an error.

#![no_main]

use bundlegate::bundle::fuzzing::yaml_to_json;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

fuzz_target!(|text: &[u8]| {
    let Some(json) = yaml_to_json(text) else {
        return;
    };
    assert!(json.len() <= (32 << 20) + 16 * text.len());
    // Ignoring a value does not recurse, so its depth does not matter.
    serde_json::from_slice::<IgnoredAny>(&json).expect("it is JSON");
});
