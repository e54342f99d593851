//! Private and public keys: each input is parsed as a PEM file, and as the content of one.

#![no_main]

use bundlegate::{
    sign::{KeyPair, fuzzing::pkcs8},
    verify::{PublicKey, Scheme},
};
use bundlegate_fuzz::pem;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        public(text);
        let _ = KeyPair::check(text);
    }
    public(&pem("PUBLIC KEY", bytes));
    // Not decrypted: this check bounds the cost of trying a password.
    let _ = KeyPair::check(&pem("ENCRYPTED SIGSTORE PRIVATE KEY", bytes));
    if let Some(pair) = pkcs8(bytes) {
        assert_eq!(
            PublicKey::from_pem(pair.public_pem())
                .expect("we wrote it")
                .identity(),
            pair.identity()
        );
    }
});

fn public(text: &str) {
    let Ok(key) = PublicKey::from_pem(text) else {
        return;
    };
    assert_eq!(key.identity().len(), 71);
    for scheme in Scheme::names().filter_map(Scheme::named) {
        if let Ok(other) = PublicKey::with_schemes(text, &[scheme]) {
            assert_eq!(other.identity(), key.identity());
        }
    }
}
