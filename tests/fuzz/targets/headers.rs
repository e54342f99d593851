//! Headers and request paths, as the server and the registry client parse them.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use bundlegate::{
    registry::fuzzing as registry,
    server::{Clients, Requirement, Tokens, fuzzing as server},
};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

const TOKEN: &[u8] = b"s3cret";
const MAX_WAIT: Duration = Duration::from_secs(300);
/// A longer `Retry-After` is limited to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

static CLIENTS: LazyLock<Clients> = LazyLock::new(|| {
    let mut clients = Clients::default();
    clients
        .allow(
            "edge",
            &["authz/**".to_owned()],
            Requirement::Token(Tokens::new([TOKEN])),
        )
        .expect("the glob is one");
    clients
});

fuzz_target!(|bytes: &[u8]| {
    authorization(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    challenge(text);
    next_link(text);
    retry_after(text);
    prefer(text);
    if_none_match(text);
    path(text);
});

fn challenge(header: &str) {
    let Some((realm, service, scope)) = registry::challenge(&[header]) else {
        return;
    };
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""));
    let mut written = format!("Bearer realm={}", quoted(&realm));
    for (name, value) in [("service", &service), ("scope", &scope)] {
        written.extend(
            value
                .iter()
                .map(|value| format!(",{name}={}", quoted(value))),
        );
    }
    assert_eq!(
        registry::challenge(&[&written]),
        Some((realm, service, scope)),
        "{written}"
    );
}

fn next_link(header: &str) {
    if let Some(target) = registry::next_link(header) {
        let bracketed = header.contains(&format!("<{target}>"));
        // Some registries write no brackets.
        assert!(bracketed || !header.contains('<') && header.contains(target));
        assert!(header.to_ascii_lowercase().contains("next"));
    }
}

fn retry_after(header: &str) {
    let wait = registry::retry_after(
        header,
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777),
    );
    assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER), "{header}");
    if let Ok(seconds) = header.trim_ascii().parse::<u32>()
        && !header.contains('+')
    {
        // `None` if the text is not a valid header value.
        assert!(wait.is_none_or(|wait| wait == MAX_RETRY_AFTER.min(Duration::from_secs(seconds.into()))));
    }
}

fn prefer(header: &str) {
    let Some(wait) = server::wait(&[header]) else {
        return;
    };
    let held = server::hold_for(wait, MAX_WAIT);
    assert!(!wait.is_zero() && held <= wait.min(MAX_WAIT) && held >= wait.min(MAX_WAIT) / 2);
}

fn if_none_match(header: &str) {
    let (is_current, is_known) = server::if_none_match(&[header], "\"x\"");
    assert!(is_known || !is_current);
    let after = format!("\"x\",{header}");
    if server::if_none_match(&[&after], "\"x\"").1 {
        assert!(
            server::if_none_match(&[&after], "\"x\"").0,
            "the first tag names the version that the client runs"
        );
    }
}

fn path(text: &str) {
    let encoded = format!("/{}", utf8_percent_encode(text, NON_ALPHANUMERIC));
    assert_eq!(server::resource(&encoded).as_deref(), Some(text));
    if let Some(name) = server::resource(text) {
        let encoded = format!("/{}", utf8_percent_encode(&name, NON_ALPHANUMERIC));
        assert_eq!(server::resource(&encoded), Some(name));
    }
}

fn authorization(bytes: &[u8]) {
    assert!(!server::granted(&CLIENTS, bytes, "other"));
    if server::granted(&CLIENTS, bytes, "authz/main") {
        let (scheme, token) = bytes.split_at(7);
        assert!(scheme.eq_ignore_ascii_case(b"bearer ") && token.trim_ascii() == TOKEN);
    }
}
