//! `webhooks`.

use super::{errors::check, *};
use crate::webhooks::{Authentication, Listener};

/// The keys of a webhook named `a`, and the error from its index on.
const ERRORS: &[(&str, &str)] = &[
    (
        "kind: hub",
        ".kind: \"hub\" is not one of `distribution`, `zot`, `harbor`, `github`, `gitlab`, `docker_hub`, `quay`, `jfrog`, `ecr`, `acr`, `artifact_registry` and `generic`; available: distribution, zot, harbor, github, gitlab, docker_hub, quay, jfrog, ecr, acr, artifact_registry, generic",
    ),
    (
        "kind: quay",
        ": anyone could send notifications; write `secret_file`",
    ),
    (
        "kind: acr",
        ": anyone could send notifications; write `bearer_token_file` or `basic_file`",
    ),
    (
        "kind: harbor",
        ": anyone could send notifications; write `secret_file`, `bearer_token_file` or `basic_file`",
    ),
    (
        "kind: artifact_registry",
        ": anyone could send notifications; write `oidc: { audience, email, jwks_file }`",
    ),
    (
        "kind: github, bearer_token_file: token",
        ".bearer_token_file: github can't send this; write `secret_file`",
    ),
    (
        "kind: ecr, secret_file: token",
        ".secret_file: ecr can't send this; write `bearer_token_file` or `basic_file`",
    ),
    (
        "kind: harbor, secret_file: token, basic_file: token",
        ": a sender is authenticated in one way; keep `secret_file` or `basic_file`",
    ),
    (
        "kind: quay, unauthenticated: true, listener: data",
        ".unauthenticated: only a webhook of the admin listener may be unauthenticated; remove it, or write `listener: admin`",
    ),
    (
        "kind: quay, unauthenticated: false",
        ": anyone could send notifications; write `secret_file`",
    ),
    (
        "kind: quay, secret_file: missing",
        ".secret_file: missing does not exist; create it, or correct the path",
    ),
    (
        "kind: quay, secret_file: empty",
        ".secret_file: empty is empty; write one secret per line",
    ),
    (
        "kind: quay, secret_file: binary",
        ".secret_file: binary has control characters; name the right file",
    ),
    (
        "kind: acr, basic_file: token",
        ".basic_file: token: write USER:PASSWORD, one a line",
    ),
    (
        "kind: zot, bearer_token_file: token",
        ".host: missing: zot does not say which registry it is; write the host as references have it",
    ),
    (
        "kind: zot, bearer_token_file: token, host: 'https://r.example'",
        ".host: \"https://r.example\" is not a host; write it as references have it, such as ghcr.io",
    ),
    (
        "kind: zot, bearer_token_file: token, host: r.example/a",
        ".host: \"r.example/a\" is not a host; write it as references have it, such as ghcr.io",
    ),
    (
        "kind: quay, unauthenticated: true, path: hook",
        ".path: \"hook\" is not a path; begin with a slash, and use only letters, digits and / . _ ~ -",
    ),
    (
        "kind: quay, unauthenticated: true, path: '/a?b'",
        ".path: \"/a?b\" is not a path; begin with a slash, and use only letters, digits and / . _ ~ -",
    ),
    (
        "kind: quay, unauthenticated: true, path: /status",
        ".path: /status belongs to the admin API; write another, such as /webhooks/NAME",
    ),
    (
        "kind: quay, unauthenticated: true, path: /refresh/a",
        ".path: /refresh/ belongs to the admin API; write another, such as /webhooks/NAME",
    ),
    (
        "kind: quay, unauthenticated: true, listener: public",
        ".listener: \"public\" is neither `admin` nor `data`; available: admin, data",
    ),
    (
        "kind: generic, secret_file: token",
        ".pointer: missing; write the JSON pointer of the image's name, such as /image",
    ),
    (
        "kind: generic, secret_file: token, pointer: image",
        ".pointer: not a JSON pointer; write one such as /image",
    ),
    (
        "kind: quay, secret_file: token, pointer: /image",
        ".pointer: only `kind: generic` has a pointer; remove it",
    ),
    (
        "kind: artifact_registry, oidc: { audience: a, email: '', jwks_file: jwks.json }",
        ".oidc.email: empty; write the value of the token's claim",
    ),
    (
        "kind: artifact_registry, oidc: { audience: a, email: b, jwks_file: token }",
        ".oidc.jwks_file: token: it is not a JSON Web Key Set; save the keys of the issuer, such as https://www.googleapis.com/oauth2/v3/certs",
    ),
    (
        "kind: quay, oidc: { audience: a, email: b, jwks_file: jwks.json }",
        ".oidc: quay can't send this; write `secret_file`",
    ),
];

#[test]
fn webhook_errors_name_the_key_and_a_fix() {
    let rows: Vec<_> = ERRORS
        .iter()
        .map(|(keys, error)| {
            (
                format!("webhooks: [{{ name: a, {keys} }}]"),
                format!("webhooks[0]{error}"),
            )
        })
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(typed, error)| (typed.as_str(), error.as_str()))
        .collect();
    check(&rows);
    let quay = "kind: quay, unauthenticated: true";
    check(&[
        (
            &format!("webhooks: [{{ name: a, {quay} }}, {{ name: a, {quay}, path: /b }}]"),
            "webhooks[1].name: a is the name of two webhooks; rename one",
        ),
        (
            &format!("webhooks: [{{ name: a, {quay} }}, {{ name: b, {quay}, path: /webhooks/a }}]"),
            "webhooks[1].path: /webhooks/a is the path of two webhooks of one listener; change one",
        ),
        (
            "webhooks: {}",
            "webhooks: expected a list, found a mapping of keys; correct the value",
        ),
    ]);
}

#[test]
fn a_webhook_has_a_sender_a_place_and_a_secret() {
    let folder = trust::folder();
    folder.write("hook.secrets", "one\n\n two \n");
    let config = folder.with(
        "webhooks:
  - { name: hub, kind: docker_hub, secret_file: hook.secrets, listener: data }
  - { name: lan, kind: zot, bearer_token_file: hook.secrets, host: 'registry.lan:5000', path: /zot }
  - { name: open, kind: quay, unauthenticated: true }",
    );
    let config = config.unwrap();
    let [hub, lan, open] = config.webhooks.as_slice() else {
        panic!("{:?}", config.webhooks)
    };
    assert_eq!(
        (hub.path.as_str(), hub.listener),
        ("/webhooks/hub", Listener::Data)
    );
    assert!(
        matches!(&hub.authentication, Authentication::Shared(_, secrets) if secrets.len() == 2)
    );
    assert_eq!(
        (lan.path.as_str(), lan.listener, lan.host.as_deref()),
        ("/zot", Listener::Admin, Some("registry.lan:5000"))
    );
    assert_eq!(open.authentication, Authentication::None);
    // Changes of the file are applied while serving.
    assert!(
        config
            .files()
            .iter()
            .any(|path| path.ends_with("hook.secrets"))
    );
}
