//! Rego in a bundle that `inspect` shows. The first byte selects the version of Rego.

#![no_main]

use bundlegate::bundle::{Bundle, Contents, Limits};
use bundlegate_fuzz::{blob, gzip, tar};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 50,
    bundle_manifest: 1 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    let manifest = format!(r#"{{"rego_version":{}}}"#, kind % 2);
    let tarball = gzip(&tar(&[
        (".manifest", manifest.as_bytes()),
        ("a.rego", text),
    ]));
    // Opening parses the package only.
    let Ok(bundle) = Bundle::open(blob(tarball), &LIMITS) else {
        return;
    };
    let contents = Contents::of(&bundle).expect("opening read every file");
    assert_eq!(contents.modules.len(), 1);
});
