//! Bundles: the gzip stream, the tarball, and the files in it that are parsed. After a first byte
//! of 0 the input is the bytes as they are; after any other byte it is a tar stream whose header
//! checksums are fixed and which is compressed.

#![no_main]

use bundlegate::bundle::{Bundle, Contents, Limits};
use bundlegate_fuzz::{blob, fix_checksums, gzip};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 50,
    bundle_manifest: 1 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let tarball = match kind {
        0 => rest.to_vec(),
        _ => gzip(&fix_checksums(rest)),
    };
    let Ok(bundle) = Bundle::open(blob(tarball), &LIMITS) else {
        return;
    };
    let contents = Contents::of(&bundle).expect("opening read every file");
    assert!(contents.files.len() as u64 <= LIMITS.files);
    assert!(
        contents
            .files
            .iter()
            .all(|(_, size)| *size <= LIMITS.unpacked)
    );
    assert!(
        !contents
            .files
            .iter()
            .any(|(name, _)| name == "patch.json" || name.ends_with("/patch.json"))
    );
});
