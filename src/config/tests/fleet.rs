//! `fleet`.

use super::{errors::check, *};
use crate::fleet::Options;

#[test]
fn absent_keys_of_the_fleet_view_have_defaults_and_the_others_are_read() {
    let folder = trust::folder();
    let read = |rest: &str| folder.with(rest).unwrap().fleet;
    let default = Options::default();
    assert_eq!(read(""), default);
    assert_eq!(read("fleet: { status: {} }"), default);
    let all = "fleet: { identity: X-Pod, retention: 10m, max_entries: 1000, \
               status: { accept: false, limit: 64KiB, rate: 1 } }";
    assert_eq!(
        read(all),
        Options {
            is_enabled: true,
            identity: "x-pod".parse().unwrap(),
            accept_status: false,
            status_limit: 64 << 10,
            status_rate: 1,
            retention: secs(600),
            max_entries: 1000,
        }
    );
    // Without a fleet view no report has a use.
    let disabled = read("fleet: { enabled: false, status: { accept: true } }");
    assert!(!disabled.is_enabled && !disabled.accept_status);
}

#[test]
fn fleet_errors_name_the_key_and_a_fix() {
    let way = "write a header of its own, such as Bundlegate-Client, which OPA sends by \
               `services.NAME.headers`";
    let secret = format!(
        "fleet.identity: \"Cookie\" has a secret of the client, and an identity is shown to operators; {way}"
    );
    let taken = format!(
        "fleet.identity: \"Host\" names no client: it has another meaning in requests; {way}"
    );
    let range = "write a number in this range";
    check(&[
        ("fleet: { identity: Cookie }", secret.as_str()),
        ("fleet: { identity: Host }", taken.as_str()),
        (
            "fleet: { identity: '' }",
            "fleet.identity: \"\" is not the name of a header, of at most 64 characters; write one such as Bundlegate-Client",
        ),
        (
            "fleet: { status: { limit: 63KiB } }",
            "fleet.status.limit: 64512 bytes are not between 64KiB and 16MiB; a report of OPA has some 60KiB, so write a size such as 1MiB",
        ),
        (
            "fleet: { status: { rate: 100001 } }",
            &format!("fleet.status.rate: 100001 is not between 1 and 100000; {range}"),
        ),
        (
            "fleet: { max_entries: 999 }",
            &format!("fleet.max_entries: 999 is not between 1000 and 100000000; {range}"),
        ),
        (
            "fleet: { retention: 9m }",
            "fleet.retention: 9m is below the minimum of 10m; write a longer time, such as 24h",
        ),
        (
            "fleet: { retention: 721h }",
            "fleet.retention: 721h is above the maximum of 720h (a client that is gone stays in every count); write 720h or less",
        ),
        (
            "fleet: { status: { accept: 'no' } }",
            "fleet.status.accept: expected true or false, found \"no\"; correct the value",
        ),
    ]);
}

#[test]
fn a_webhook_takes_the_path_of_status_reports_only_while_none_are_received() {
    let folder = trust::folder();
    folder.write("hook.secrets", "one\n");
    let webhook = |listener: &str, path: &str| {
        format!(
            "webhooks: [{{ name: a, kind: quay, secret_file: hook.secrets, listener: {listener}, path: {path} }}]\n"
        )
    };
    for path in ["/status", "/status/", "/status/a"] {
        let error = folder.with(&webhook("data", path)).unwrap_err().to_string();
        let sentence = "webhooks[0].path: /status and what is below it receive the status reports of \
                        OPA; write another path, or `fleet: { status: { accept: false } }`";
        assert!(error.ends_with(sentence), "{error}");
        for fleet in ["{ status: { accept: false } }", "{ enabled: false }"] {
            let accepted = format!("{}fleet: {fleet}\n", webhook("data", path));
            folder.with(&accepted).unwrap();
        }
    }
    folder.with(&webhook("data", "/statuses")).unwrap();
    folder.with(&webhook("admin", "/status/a")).unwrap();
}
