//! JSON responses of registries and token servers other than manifests, and the files of docker.

#![no_main]

use std::time::Duration;

use bundlegate::{oci::Digest, registry::fuzzing as registry};
use libfuzzer_sys::fuzz_target;

const DAY: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|body: &[u8]| {
    if let Some((value, life)) = registry::token(body) {
        assert!(value.is_sensitive() && value.as_bytes().starts_with(b"Bearer ") && life < DAY);
    }
    let detail = registry::error_detail(body);
    assert!(
        !detail.contains(char::is_control) && detail.chars().count() <= 203,
        "{detail}"
    );
    let _ = registry::names(body);
    for entry in registry::referrers(body).unwrap_or_default() {
        assert_eq!(
            entry.digest.as_str().parse::<Digest>().as_ref(),
            Ok(&entry.digest)
        );
    }
    for host in ["r.example", "docker.io"] {
        if let Some((Some(helper), _)) = registry::docker_config(body, host) {
            assert!(!helper.is_empty() && !helper.contains(['/', '\\', '\0']));
        }
    }
    let _ = registry::helper_answer(body);
});
