//! `trusted_root.json`, and PEM files with private certificate authorities.

#![no_main]

use bundlegate::verify::{CaRoots, TrustRoot};
use bundlegate_fuzz::pem;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = CaRoots::from_pem(&pem("CERTIFICATE", bytes));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = CaRoots::from_pem(text);
    match TrustRoot::from_json("fuzzed", text) {
        Ok(root) => assert_eq!((root.name(), root.is_pending()), ("fuzzed", false)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
