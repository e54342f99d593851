//! Two documents, divided by a zero byte: a patch makes one of the other, whatever they are.

#![no_main]

use bundlegate::bundle::{NoDelta, fuzzing::patch};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

const EMPTY: &[u8] = br#"{"data":[]}"#;

fuzz_target!(|documents: &[u8]| {
    let mut parts = documents.splitn(2, |byte| *byte == 0);
    let (Some(base), Some(target)) = (parts.next(), parts.next()) else {
        return;
    };
    match patch(base, target) {
        Ok(text) => {
            serde_json::from_slice::<IgnoredAny>(&text).expect("it is JSON");
            let is_empty = text == EMPTY;
            let back = patch(target, base).is_ok_and(|back| back == EMPTY);
            assert_eq!(
                is_empty, back,
                "both documents are the same, or they are not"
            );
        }
        Err(reason) => assert_ne!(reason, NoDelta::NotProved),
    }
});
