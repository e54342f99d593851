//! Notifications of registries: the first byte chooses the sender, the rest is the body.

#![no_main]

use bundlegate::webhooks::{MAX_EVENTS, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else {
        return;
    };
    let Ok(notification) = fuzzing::parse(*choice, body) else {
        return;
    };
    assert!(notification.pushes.len() <= MAX_EVENTS);
    for push in &notification.pushes {
        assert!(!push.repositories.is_empty());
        // A name that the sender does not give is no name of a registry.
        assert!(push.hosts.iter().all(|host| !host.is_empty()));
    }
});
