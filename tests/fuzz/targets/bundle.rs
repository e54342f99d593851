//! Bundles: the tarball, the gzip around it, and the files in it that are judged. The first
//! byte says what follows: 0 the bytes as they are, others a tar stream whose headers get
//! their checksums and which is compressed first.

#![no_main]

use bundlegate::bundle::{Bundle, Contents, Limits};
use bundlegate_fuzz::{blob, gzip, sum_headers};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 50, bundle_manifest: 1 << 20 };

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let tarball = match kind {
        0 => rest.to_vec(),
        _ => gzip(&sum_headers(rest)),
    };
    let Ok(bundle) = Bundle::open(blob(tarball), &LIMITS) else { return };
    let contents = Contents::of(&bundle).expect("opening it has read it all");
    assert!(contents.files.len() as u64 <= LIMITS.files);
    assert!(contents.files.iter().all(|(_, size)| *size <= LIMITS.unpacked));
    assert!(!contents.files.iter().any(|(name, _)| name == "patch.json" || name.ends_with("/patch.json")));
});
