//! References as in commands, configurations and indexes, and digests.

#![no_main]

use bundlegate::oci::{Digest, Reference, Repository, Selector};
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(
            (
                digest.as_str(),
                format!("{}:{}", digest.algorithm(), digest.hex())
            ),
            (text, text.to_owned())
        );
    }
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    assert_eq!(reference.to_string(), text);
    let selector = match reference.selector() {
        Selector::Tag(tag) => format!(":{tag}"),
        Selector::Digest(digest) => format!("@{digest}"),
        Selector::Only | Selector::Rule(_) => String::new(),
    };
    let canonical = format!("{}{selector}", reference.repository());
    let again: Reference = canonical
        .parse()
        .expect("its canonical form is a reference");
    assert_eq!(
        (again.repository(), again.selector()),
        (reference.repository(), reference.selector())
    );
    if let Some(pinned) = reference.pinned() {
        assert_eq!(pinned.to_string(), canonical);
    }
    if let Repository::Registry { host, path } = reference.repository() {
        check_url(host, path, reference.tag().unwrap_or("tag"));
    }
});

/// The URL for a reference is at its host, below its path.
fn check_url(host: &str, path: &str, tag: &str) {
    // Ports of six digits pass the grammar, and are refused here.
    let Ok(base) = Url::parse(&format!("https://{host}/v2/")) else {
        return;
    };
    assert!(
        base.username().is_empty() && base.password().is_none() && base.path() == "/v2/",
        "{base}"
    );
    let url = base
        .join(&format!("{path}/manifests/{tag}"))
        .expect("a path makes a URL");
    assert_eq!(
        (url.origin(), url.path()),
        (
            base.origin(),
            format!("/v2/{path}/manifests/{tag}").as_str()
        )
    );
    assert!(url.query().is_none() && url.fragment().is_none(), "{url}");
}
