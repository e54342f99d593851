//! The fast path and hyper: the same bytes lead to the same responses. The first byte chooses where
//! the rest is split into two parts; `@` stands for the entity tag of the bundle.

#![no_main]

use bundlegate::server::fuzzing::Paths;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static PATHS: Paths = Paths::new();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    PATHS.with(|paths| {
        let bytes = paths.with_etag(bytes);
        let at = bytes.len() * usize::from(*choice) / 255;
        let (one, other) = bytes.split_at(at);
        let [fast, hyper] = paths.responses(&[one, other]);
        assert_eq!(fast, hyper);
    });
});
