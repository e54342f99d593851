//! `.manifest`, the file that states the roots of a bundle.

#![no_main]

use bundlegate::bundle::BundleManifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = BundleManifest::parse(bytes) else {
        return;
    };
    let inside = |root: &str, path: &str| {
        root.is_empty() || format!("{path}/").starts_with(&format!("{root}/"))
    };
    for (at, one) in manifest.roots.iter().enumerate().take(100) {
        assert!(
            manifest.owns(one) && manifest.owns(&format!("{one}/below")),
            "{one}"
        );
        for other in &manifest.roots[at + 1..] {
            assert!(
                !inside(one, other) && !inside(other, one),
                "{one:?} and {other:?}"
            );
        }
    }
    assert!(
        manifest
            .rego_version
            .is_none_or(|version| (0..=2).contains(&version))
    );
});
