//! A table of invalid configurations and their errors.

use super::*;

/// `(text after the minimal configuration, error)`.
type Row<'a> = (&'a str, &'a str);

#[track_caller]
pub(super) fn check(rows: &[Row<'_>]) {
    let folder = trust::folder();
    folder.write("empty", "\n");
    folder.write("binary", "\u{0}\u{1}");
    folder.write(
        "two.pub",
        &(read(&folder, "release.pub") + &read(&folder, "other.pub")),
    );
    let other = rcgen::KeyPair::generate().unwrap();
    folder.write("other.key", &other.serialize_pem());
    folder.write("corp.rego", "package corp\n\nallow if true\n");
    folder.write("root.json", trust::TUF_ROOT);
    let mut wrong = Vec::new();
    for (typed, expected) in rows {
        let error = match folder.with(typed) {
            Ok(_) => panic!("accepted: {typed}"),
            Err(error) => error.to_string(),
        };
        assert!(!error.contains('\n'), "{error}");
        // Other tests check the line; the name of the temporary folder varies.
        let (_, error) = error.split_once(": ").unwrap();
        let error = error.replace(&format!("{}/", folder.0.path().display()), "");
        if error != *expected {
            wrong.push(format!(
                "{typed}\n  has the error {error}\n  instead of {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read(folder: &Folder, name: &str) -> String {
    std::fs::read_to_string(folder.0.path().join(name)).unwrap()
}

#[test]
fn unknown_keys_are_named() {
    check(&[
        ("severs: {}", "severs: unknown key; did you mean `server`?"),
        (
            "server: { drain: { notcie: 1s } }",
            "server.drain.notcie: unknown key; did you mean `notice`?",
        ),
        (
            "cache: { zebra: 1 }",
            "cache.zebra: unknown key; known here: directory, required, disk, memory",
        ),
        (
            "registries: { ghcr.io: { credentials: { username: a, password: b } } }",
            "registries.ghcr.io.credentials.password: unknown key; did you mean `password_file`?",
        ),
        (
            "cache: {}\nlimits: {}\ncache: {}",
            "cache: duplicate key, first on line 3; keep one",
        ),
        (
            "bundles: { a: { poll: 1s, poll: 2s } }",
            "bundles.a.poll: duplicate key, first on line 3; keep one",
        ),
    ]);
}

#[test]
fn errors_in_patterns_name_the_key_and_a_fix() {
    let base = "trust: { policies: { dev: unsigned } }\n";
    let one = |resource: &str, reference: &str, more: &str| {
        format!("{{ resource: '{resource}', reference: '{reference}', trust: dev{more} }}")
    };
    let rows = [
        (
            one("a/b", "r.io/a:v1", ""),
            "patterns[0].resource: the resource has no capture; write one such as \
             teams/{team}/{name}, or write this bundle under `bundles`",
        ),
        (
            one("{a}", "{a}.io/a:v1", ""),
            "patterns[0].reference: a client must not choose the registry or the folder; use \
             captures in the repository after the host, or in the tag",
        ),
        (
            format!(
                "{}, {}",
                one("x/{a}", "r.io/{a}:v1", ""),
                one("{b}/y", "r.io/{b}:v1", "")
            ),
            "patterns[1].resource: a name could match this pattern and x/{a}; change a literal \
             segment of one of them",
        ),
        (
            one("{a}", "r.io/{a}:v1", ", idle: 10ms"),
            "patterns[0].idle: 10ms is below the minimum of 1s; write a longer time, such as 1h",
        ),
        (
            one("{a}", "r.io/{a}:v1", ", max: 0"),
            "patterns[0].max: 0 is not between 1 and 100000; write a number such as 1000",
        ),
        (
            "{ resource: '{a}', reference: 'r.io/{a}:v1' }".to_owned(),
            "patterns[0].trust: missing; write it",
        ),
        (
            "{ resource: '{a}', reference: 'r.io/{a}:v1', trust: other }".to_owned(),
            "patterns[0].trust: trust.policies has no \"other\"; available: dev",
        ),
    ];
    for (patterns, expected) in rows {
        let typed = format!("version: 1\n{base}patterns: [{patterns}]");
        let error = Folder::new().parse(&typed).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{patterns}: {error}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_named() {
    check(&[
        (
            "server:",
            "server: no value; write one, or remove the key to use its default",
        ),
        (
            "server: { tls: }",
            "server.tls: no value; write one, or remove the key to use its default",
        ),
        (
            "server: [1]",
            "server: expected a mapping of keys, found a list; correct the value",
        ),
        (
            "bundles: []",
            "bundles: expected a mapping of keys, found a list; correct the value",
        ),
        (
            "limits: { files: many }",
            "limits.files: expected a whole number, found \"many\"; correct the value",
        ),
        (
            "clients: x\n",
            "clients: duplicate key, first on line 2; keep one",
        ),
        (
            "trust: { authorities: { a: { keys: x, tlog: none } } }",
            "trust.authorities.a.keys: expected a list, found \"x\"; correct the value",
        ),
        (
            "cache: { directory: 5 }",
            "cache.directory: expected text, found the integer `5`; put it in quotes",
        ),
        (
            "bundles: { x: { reference: r.io/a, trust: true } }",
            "bundles.x.trust: expected text, found the boolean `true`; put it in quotes",
        ),
        (
            "long_poll: { max_wait: 30 }",
            "long_poll.max_wait: \"30\" has no unit; write 30s or 30ms",
        ),
        (
            "long_poll: { max_wait: 5 minutes }",
            "long_poll.max_wait: \"5 minutes\" is not a duration; write a whole number with its unit, such as 250ms, \
             30s, 5m or 24h",
        ),
        (
            "limits: { bundle: 64 }",
            "limits.bundle: \"64\" has no unit; write 64MiB or 64B",
        ),
        (
            "limits: { bundle: 64MB }",
            "limits.bundle: \"64MB\": units are B, KiB, MiB, GiB and TiB; write a size such as 64MiB",
        ),
        (
            "cache: { memory: 0B }",
            "cache.memory: \"0B\" is zero; write a size such as 64MiB",
        ),
        (
            "cache: { directory: '' }",
            "cache.directory: the path is empty; write one, or remove the key",
        ),
        (
            "limits: { files: 0 }",
            "limits.files: no bundle would pass; write a number of at least 1",
        ),
    ]);
}

#[test]
fn errors_of_the_admin_listener_name_the_key_and_a_fix() {
    let name = "x".repeat(200);
    let long = format!("server: {{ admin: 'unix:/{name}' }}");
    let too_long =
        format!("server.admin: the path of the socket, /{name}, is too long; write a shorter one");
    check(&[
        (
            "server: { admin: 'unix:' }",
            "server.admin: the path is empty; write one, or remove the key",
        ),
        (&long, &too_long),
        (
            "server: { admin: 'unix:a', admin_tls: { certificate: tls.crt, key: tls.key } }",
            "server.admin_tls: connections to a Unix socket don't leave this machine; remove it, or \
             write an address in `server.admin`",
        ),
        (
            "server: { admin_tls: { certificate: tls.crt, key: tls.crt } }",
            "server.admin_tls.key: tls.crt has no usable private key; use an unencrypted PEM key (PKCS#8, SEC1, PKCS#1)",
        ),
        (
            "server: { admin_token_file: empty }",
            "server.admin_token_file: empty: the file has no token; write one token per line",
        ),
        (
            "server: { admin_token_file: none }",
            "server.admin_token_file: none does not exist; create it, or correct the path",
        ),
        (
            "server: { admin_hosts: [gate.internal, 10.0.0.1] }",
            "server.admin_hosts[1]: 10.0.0.1 is an address, and every address is accepted; remove it",
        ),
        (
            "server: { admin_token_file: edge.tokens, admin_hosts: ['https://gate.internal'] }",
            "server.admin_hosts[0]: \"https://gate.internal\" is not a host name; write one without \
             scheme and port, such as gate.internal",
        ),
    ]);
}

#[test]
fn errors_of_the_cache_name_the_key_and_a_fix() {
    check(&[
        (
            "cache: { required: true }",
            "cache.required: no folder is required; add `directory`, or remove it",
        ),
        (
            "cache: { directory: cache, required: maybe }",
            "cache.required: expected true or false, found \"maybe\"; correct the value",
        ),
    ]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat table")]
fn server_errors_name_the_key_and_a_fix() {
    const EXAMPLES: &str =
        "write an address such as \":8443\" (all addresses) or \"127.0.0.1:8443\"";
    let port = format!("server.listen: \"8443\" has no port; {EXAMPLES}");
    let host =
        format!("server.admin: \"gate.example:80\" has no IP address; {EXAMPLES}, or unix:PATH");
    for (typed, expected) in [
        ("server: { listen: 8443 }", port),
        ("server: { admin: 'gate.example:80' }", host),
    ] {
        assert!(
            Folder::new()
                .with(typed)
                .unwrap_err()
                .to_string()
                .ends_with(&expected),
            "{typed}"
        );
    }
    check(&[
        (
            "server: { trusted_proxies: [10.0.0.0/8, proxy] }",
            "server.trusted_proxies[1]: \"proxy\" is not a network; write one such as \"10.0.0.0/8\", \"fd00::/8\" or an address",
        ),
        (
            "server: { trusted_proxies: [10.1.2.3/8] }",
            "server.trusted_proxies[0]: 10.1.2.3/8 has address bits beyond its length; write 10.0.0.0/8 or 10.1.2.3",
        ),
        (
            "log: { format: xml }",
            "log.format: \"xml\" is not one of `auto`, `text` and `json`; available: auto, text, json",
        ),
        (
            "log: { access: error }",
            "log.access: \"error\" is not one of `off`, `errors` and `all`; did you mean `errors`?",
        ),
        (
            "server: { max_connections: 0 }",
            "server.max_connections: no client could connect; write a number of at least 1",
        ),
        (
            "server: { listen: '127.0.0.1:8090' }",
            "server.admin: the same address as `server.listen`; write another",
        ),
        (
            "server: { tls: { certificate: tls.crt } }",
            "server.tls.key: missing; write it",
        ),
        (
            "server: { tls: { certificate: none.crt, key: tls.key } }",
            "server.tls.certificate: none.crt does not exist; create it, or correct the path",
        ),
        (
            "server: { tls: { certificate: tls.key, key: tls.key } }",
            "server.tls.certificate: tls.key has no certificate; use PEM certificates \
             (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "server: { tls: { certificate: tls.crt, key: tls.crt } }",
            "server.tls.key: tls.crt has no usable private key; use an unencrypted PEM key (PKCS#8, SEC1, PKCS#1)",
        ),
        (
            "server: { tls: { certificate: tls.crt, key: other.key } }",
            "server.tls: the key is not that of the certificate; use a matching pair",
        ),
        (
            "long_poll: { first_wait: 10s }",
            "long_poll.first_wait: 10s is above the maximum of 9s (an OPA without long polling times out after 10s); write 9s or less",
        ),
        (
            "long_poll: { max_wait: 0s }",
            "long_poll.max_wait: 0s is below the minimum of 1s; write a longer time, such as 5m",
        ),
        (
            "long_poll: { spread: soon }",
            "long_poll.spread: \"soon\" is not a duration; write a whole number with its unit, such as 250ms, \
             30s, 5m or 24h, or auto",
        ),
        (
            "long_poll: { max_wait: 1m, spread: 2m }",
            "long_poll.spread: 2m is above the maximum of 1m (the longest hold, `long_poll.max_wait`); write 1m or less",
        ),
        (
            "long_poll: { bandwidth: 10MB }",
            "long_poll.bandwidth: \"10MB\": units are B, KiB, MiB, GiB and TiB; write a size such as 64MiB",
        ),
        (
            "long_poll: { bandwidth: 1KiB }",
            "long_poll.bandwidth: 1024 bytes a second are below the minimum of 64KiB; write a larger size, \
             such as 10MiB",
        ),
        (
            "long_poll: { repeat_delay: 10s }",
            "long_poll.repeat_delay: 10s is above the maximum of 9s (OPA waits 10s for the head of a response); write 9s or less",
        ),
        (
            "long_poll: { spread: 0s, bandwidth: 10MiB }",
            "long_poll.bandwidth: `long_poll.spread: 0s` sends everything at once; remove one of the two",
        ),
    ]);
}

#[test]
fn client_errors_name_the_key_and_a_fix() {
    let clients = |typed: &str, expected: &str| {
        let error = Folder::new()
            .parse(&format!("version: 1\n{typed}"))
            .unwrap_err()
            .to_string();
        assert_eq!(error.split_once(": ").unwrap().1, expected, "{typed}");
    };
    let none = "clients: no client is configured; write one, such as clients: [{ name: anyone, anonymous: true, \
                  bundles: [\"**\"] }]";
    clients("cache: {}", none);
    clients("clients: []", none);
    for (client, expected) in [
        (
            "name: a, bundles: ['**']",
            ": the client has no credential; write one of `bearer_token_file`, `basic_file`, `mtls`, \
          `jwt` and `anonymous: true`",
        ),
        (
            "name: a, anonymous: true, bearer_token_file: edge.tokens, bundles: ['**']",
            ": a client has one credential; keep `anonymous` or `bearer_token_file`",
        ),
        (
            "name: a, basic_file: edge.users, bearer_token_file: edge.tokens, bundles: ['**']",
            ": a client has one credential; keep `bearer_token_file` or `basic_file`",
        ),
        (
            "name: a, basic_file: edge.tokens, bundles: ['**']",
            ".basic_file: edge.tokens: line 1 is not USER:HASH; write it with `htpasswd -B`",
        ),
        ("name: a, anonymous: true", ".bundles: missing; write it"),
        (
            "name: a, anonymous: true, bundles: []",
            ".bundles: the list is empty; write globs such as \
          [\"authz/**\"]",
        ),
        (
            "name: a, anonymous: true, bundles: [x, 'a**']",
            ".bundles[1]: glob \"a**\": `**` stands for whole segments; \
          write `*`, or put a / around it",
        ),
        (
            "name: 'a b', anonymous: true, bundles: [x]",
            ".name: \"a b\" is not a name; use only letters, digits and . _ - /",
        ),
    ] {
        clients(
            &format!("clients: [{{ {client} }}]"),
            &format!("clients[0]{expected}"),
        );
    }
    let twice = "{ name: a, bearer_token_file: edge.tokens, bundles: [x] }";
    clients(
        &format!("clients: [{twice}, {twice}]"),
        "clients[1].name: a is the name of two clients; rename one",
    );
    clients(
        &format!(
            "clients: [{twice}, {}]",
            twice.replace("name: a", "name: b")
        ),
        "clients[1].bearer_token_file: the file shares a token with client a; use different tokens",
    );
    let user = "{ name: a, basic_file: edge.users, bundles: [x] }";
    clients(
        &format!("clients: [{user}, {}]", user.replace("name: a", "name: b")),
        "clients[1].basic_file: the file shares a user with client a; use different users",
    );
    for (content, expected) in [
        ("\n \n", "the file has no token; write one token per line"),
        (
            "one\ntwo three",
            "line 2 has a token with white space or non-ASCII characters; write one token per line",
        ),
    ] {
        let folder = Folder::new();
        folder.write("edge.tokens", content);
        let error = folder
            .parse(&format!("version: 1\nclients: [{twice}]"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!("line 2, column 22: clients[0].bearer_token_file: edge.tokens: {expected}")
        );
    }
}

#[test]
fn errors_in_client_certificates_name_the_key_and_a_fix() {
    let folder = Folder::new();
    let tls = "certificate: tls.crt, key: tls.key";
    let parse = |tls: &str, mtls: &str| {
        let client = format!("{{ name: a, mtls: {mtls}, bundles: [x] }}");
        let text = format!("version: 1\nserver: {{ tls: {{ {tls} }} }}\nclients: [{client}]");
        folder.parse(&text)
    };
    let with_ca = format!("{tls}, client_ca: registry-ca.pem");
    parse(&with_ca, "{ san_uri: 'spiffe://corp/*' }").unwrap();
    for (tls, mtls, expected) in [
        (
            tls,
            "{ san_uri: 'spiffe://corp/*' }",
            "clients[0].mtls: no client can show a certificate; name the authority that issues \
             them in `server.tls.client_ca`",
        ),
        (
            &with_ca,
            "{}",
            "clients[0].mtls: without it anyone with a certificate could read; write one of \
             `common_name`, `san_dns` and `san_uri`",
        ),
        (
            &with_ca,
            "{ san_uri: 'spiffe://corp/*', common_name: a }",
            "clients[0].mtls: a certificate is matched by one name; keep one of `common_name`, \
             `san_dns` and `san_uri`",
        ),
        (
            &with_ca,
            "{ san_dns: Opa.corp.example }",
            "clients[0].mtls.san_dns: no certificate has \"Opa.corp.example\" here; write a DNS \
             name in lower case such as \"opa.corp.example\"",
        ),
        (
            &with_ca,
            "{ common_name_regex: '.*' }",
            "clients[0].mtls.common_name_regex: matches any identity; name the expected one",
        ),
        (
            &format!("{tls}, client_ca: tls.key"),
            "{ common_name: a }",
            "server.tls.client_ca: tls.key has no certificate; use PEM certificates (-----BEGIN \
             CERTIFICATE-----)",
        ),
    ] {
        let error = parse(tls, mtls).map(drop).unwrap_err().to_string();
        assert_eq!(error.split_once(": ").unwrap().1, expected, "{tls} {mtls}");
    }
}

#[test]
fn errors_in_tokens_of_clients_name_the_key_and_a_fix() {
    let folder = Folder::new();
    folder.write("jwks.json", r#"{"keys":[{"kty":"oct","k":"AQAB"}]}"#);
    let parse = |keys: &str, issuer: &str, more: &str| {
        let jwt = format!("{{ {keys}, issuer: {issuer}, audience: gate {more} }}");
        let client = format!("{{ name: a, jwt: {jwt}, bundles: [x] }}");
        folder.parse(&format!("version: 1\nclients: [{client}]"))
    };
    let url = "jwks_url: 'https://issuer.example/jwks'";
    for accepted in [
        url,
        "jwks_url: 'http://127.0.0.1:80/x'",
        "jwks_url: 'http://[::1]/'",
        "jwks_url: 'https://issuer.example/jwks', ca_file: registry-ca.pem",
    ] {
        parse(accepted, "i", ", claims: { sub: 'a:*' }").unwrap();
    }
    let no_url = "is neither https nor http on this machine; write one such as \"https://issuer.example/.well-known/jwks.json\"";
    for (keys, issuer, more, expected) in [
        (
            "claims: {}",
            "i",
            "",
            ": no keys verify the tokens; write `jwks_file` or `jwks_url`".to_owned(),
        ),
        (
            &format!("{url}, jwks_file: jwks.json"),
            "i",
            "",
            ": the keys are in one place; keep `jwks_file` or `jwks_url`".to_owned(),
        ),
        (
            "jwks_file: jwks.json, ca_file: registry-ca.pem",
            "i",
            "",
            ".ca_file: nothing is fetched with `jwks_file`; remove it".to_owned(),
        ),
        (
            "jwks_file: edge.tokens",
            "i",
            "",
            ".jwks_file: edge.tokens: it is not a JSON Web Key Set (a mapping with `keys`); save the issuer's JSON Web Key Set"
                .to_owned(),
        ),
        (
            "jwks_file: jwks.json",
            "i",
            "",
            ".jwks_file: jwks.json: it has no key for signatures with RS256, RS384, RS512, PS256, \
             PS384, PS512, ES256, ES384 or EdDSA (Ed25519); save the issuer's JSON Web Key Set"
                .to_owned(),
        ),
        (
            "jwks_url: 'http://issuer.example/'",
            "i",
            "",
            format!(".jwks_url: \"http://issuer.example/\" {no_url}"),
        ),
        (
            "jwks_url: 'https://me:s3cret@issuer.example/'",
            "i",
            "",
            ".jwks_url: a URL with a user would appear in logs; remove the user".to_owned(),
        ),
        (
            url,
            "''",
            "",
            ".issuer: empty; write the value of the token's claim".to_owned(),
        ),
        (
            url,
            "i",
            ", claims: { sub: '*' }",
            ".claims.sub: matches any identity; name the expected one".to_owned(),
        ),
    ] {
        let error = parse(keys, issuer, more).map(drop).unwrap_err().to_string();
        let expected = format!("clients[0].jwt{expected}");
        assert_eq!(error.split_once(": ").unwrap().1, expected, "{keys} {more}");
    }
}

#[test]
fn the_version_comes_first() {
    for (text, expected) in [
        (
            "",
            "the configuration must be a mapping; begin with `version: 1`",
        ),
        ("clients: []", "version: missing; write `version: 1`"),
        (
            "version: 2\nfuture: x",
            "version: this bundlegate reads version 1; write `version: 1`",
        ),
        (
            "version: '1'",
            "version: this bundlegate reads version 1; write `version: 1`",
        ),
        (
            "version: 1\n---\nversion: 1",
            "line 3, column 1: a second YAML document begins here; keep one",
        ),
        ("version: [1", "this is not YAML: "),
        ("version: 1\n\tserver: {}", "this is not YAML: "),
    ] {
        let error = Folder::new().parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn opa_check_errors_name_the_key_and_a_fix() {
    let dev = "trust: { policies: { dev: unsigned } }\n";
    let of_bundle = |check: &str| {
        format!(
            "{dev}bundles: {{ a: {{ reference: 'r.io/a:1', trust: dev, opa_check: {check} }} }}"
        )
    };
    let too_short = "timeout: 500ms is below the minimum of 1s; write a longer time, such as 30s";
    check(&[
        (
            "opa_check: opa",
            "opa_check: \"opa\" is not `none`; write that, or keys such as { opa: opa }",
        ),
        (
            "opa_check: false",
            "opa_check: expected `none` or a mapping of keys such as `{ opa: opa }`, found the boolean `false`; \
             correct the value",
        ),
        (
            "opa_check:",
            "opa_check: no value; write one, or remove the key to use its default",
        ),
        (
            "opa_check: { opa: '' }",
            "opa_check.opa: the path is empty; write one, or remove the key",
        ),
        (
            "opa_check: { test: true }",
            "opa_check.test: unknown key; did you mean `tests`?",
        ),
        (
            "opa_check: { tests: 'yes' }",
            "opa_check.tests: expected true or false, found \"yes\"; correct the value",
        ),
        (
            "opa_check: { timeout: 500ms }",
            &format!("opa_check.{too_short}"),
        ),
        (
            "opa_check: { timeout: 11m }",
            "opa_check.timeout: 11m is above the maximum of 10m (no new version is published while one is checked); \
             write 10m or less",
        ),
        (
            &of_bundle("{ timeout: 500ms }"),
            &format!("bundles.a.opa_check.{too_short}"),
        ),
        (
            &of_bundle("off"),
            "bundles.a.opa_check: \"off\" is not `none`; write that, or keys such as { opa: opa }",
        ),
    ]);
}

#[test]
fn errors_of_traces_name_the_key_and_a_fix() {
    let example = "write one such as \"http://collector.example:4318\"";
    check(&[
        (
            "tracing: { endpoint: collector }",
            &format!(
                "tracing.endpoint: \"collector\" is not a URL (relative URL without a base); {example}"
            ),
        ),
        (
            "tracing: { endpoint: 'grpc://collector:4317' }",
            &format!(
                "tracing.endpoint: \"grpc://collector:4317\" is neither http nor https: traces are sent by OTLP over HTTP; {example}"
            ),
        ),
        (
            "tracing: { endpoint: 'https://me:s3cret@collector' }",
            "tracing.endpoint: a URL with a user would appear in logs; remove the user, and write \
             `Authorization: …` into `headers_file`",
        ),
        (
            "tracing: { endpoint: 'http://c', sample: 50 }",
            "tracing.sample: 50 is no share of all requests; write a number from 0 to 1, such as 0.01 for one in a hundred",
        ),
        (
            "tracing: { endpoint: 'http://c', service_name: '' }",
            "tracing.service_name: empty; write a name, or remove the key for `bundlegate`",
        ),
        (
            "tracing: { endpoint: 'http://c', headers_file: edge.tokens }",
            "tracing.headers_file: edge.tokens: line 1 is not a header; write one per line, as `NAME: VALUE`",
        ),
        (
            "tracing: { endpoint: 'http://c', ca_file: registry-ca.pem }",
            "tracing.ca_file: `endpoint` is not https; remove this key, or write https there",
        ),
        (
            "tracing: { endpoint: 'https://c', ca_file: edge.tokens }",
            "tracing.ca_file: edge.tokens has no certificate; use PEM certificates (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "tracing: { sample: 1 }",
            "tracing.endpoint: missing; write it",
        ),
    ]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a flat table")]
fn errors_of_the_shared_state_name_the_key_and_a_fix() {
    let example = "write one such as \"rediss://valkey.example:6379/0\"";
    let sentinel = "write its scheme and database, such as \"rediss:///0\"";
    let node = "write one such as \"s1.example:26379\"";
    check(&[
        ("shared: { prefix: gate }", "shared.url: missing; write it"),
        (
            "shared: { url: valkey }",
            &format!("shared.url: not a URL (relative URL without a base); {example}"),
        ),
        (
            "shared: { url: 'http://valkey' }",
            &format!(
                "shared.url: neither `redis`, nor `rediss` (with TLS), nor `local:` (a single replica); {example}"
            ),
        ),
        (
            "shared: { url: 'redis://me:s3cret@valkey' }",
            "shared.url: a password in the configuration can be read by everyone who can read the \
             file; remove the user from the URL, and write `username` and `password_file`",
        ),
        (
            "shared: { url: 'redis://valkey/0?timeout=1' }",
            &format!("shared.url: the URL has more than a host, a port and a database; {example}"),
        ),
        (
            "shared: { url: 'redis://valkey/main' }",
            &format!("shared.url: the path is not the number of a database; {example}"),
        ),
        (
            "shared: { url: 'redis:///0' }",
            &format!("shared.url: the URL has no host, and `sentinel` names none; {example}"),
        ),
        (
            "shared: { url: 'redis://valkey', sentinel: { master: m, nodes: [s1] } }",
            &format!("shared.url: the URL has a host, and `sentinel` names the server; {sentinel}"),
        ),
        (
            "shared: { url: 'redis://', sentinel: { master: '', nodes: [s1] } }",
            "shared.sentinel.master: empty, or with control characters; write the name in \
             `sentinel monitor`",
        ),
        (
            "shared: { url: 'redis://', sentinel: { master: m, nodes: [] } }",
            "shared.sentinel.nodes: write 1 to 16 sentinels, such as \"s1.example:26379\"",
        ),
        (
            "shared: { url: 'redis://', sentinel: { master: m, nodes: [s1, 's2:x'] } }",
            &format!("shared.sentinel.nodes[1]: \"s2:x\" is not a host and a port; {node}"),
        ),
        (
            "shared: { url: 'redis://v', username: gate }",
            "shared.password_file: missing; write it",
        ),
        (
            "shared: { url: 'redis://v', username: 'a b', password_file: token }",
            "shared.username: the user name is empty, or has spaces or control characters; write another",
        ),
        (
            "shared: { url: 'redis://v', password_file: empty }",
            "shared.password_file: empty is empty; write the password to it",
        ),
        (
            "shared: { url: 'redis://v', ca_file: corp_ca.pem }",
            "shared.ca_file: `url` is not rediss; remove this key, or write rediss:// there",
        ),
        (
            "shared: { url: 'rediss://v', ca_file: token }",
            "shared.ca_file: token has no certificate; use PEM certificates (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "shared: { url: 'redis://v', prefix: 'a b' }",
            "shared.prefix: \"a b\" is not 1 to 64 letters, digits, dots, dashes and underscores; write such a prefix",
        ),
        (
            "shared: { url: 'redis://v', timeout: 10ms }",
            "shared.timeout: 10ms is below the minimum of 50ms; write a longer time, such as 500ms",
        ),
        (
            "shared: { url: 'redis://v', timeout: 11s }",
            "shared.timeout: 11s is above the maximum of 10s (a replica waits for it); write 10s or less",
        ),
    ]);
}

#[test]
fn the_shared_state_is_read_with_its_defaults_and_needs_a_restart() {
    use crate::shared::{Endpoint, Options, Servers};

    let folder = trust::folder();
    let with = |text: &str| folder.with(text).unwrap();
    let running = with("shared: { url: 'redis://v' }");
    let engine = |config: &Config| config.shared.as_ref().unwrap().engine().unwrap().clone();
    let options = engine(&running);
    let expected = Options {
        servers: Servers::Address(Endpoint {
            host: "v".to_owned(),
            port: 6379,
        }),
        tls: false,
        database: 0,
        username: None,
        password_file: None,
        extra_roots: Vec::new(),
        prefix: "bundlegate".to_owned(),
        timeout: Duration::from_millis(500),
    };
    assert_eq!(options, expected);
    assert_eq!(running.shared.as_ref().unwrap().grace(), secs(600));
    let other = with(
        "shared: { url: 'rediss:///2', sentinel: { master: m, nodes: [s1, 's2:7'] }, \
         username: gate, password_file: token, ca_file: ca.pem, prefix: a.b, timeout: 1s, grace: 1m }",
    );
    assert_eq!(other.shared.as_ref().unwrap().grace(), secs(60));
    let options = engine(&other);
    assert_eq!((options.tls, options.database), (true, 2));
    assert_eq!(
        options.servers.to_string(),
        "primary `m` of the sentinels s1:26379, s2:7"
    );
    assert_eq!(options.password().unwrap().unwrap().as_str(), "s3cret");
    assert_eq!(options.extra_roots.len(), 2);
    assert!(
        other
            .files()
            .contains(options.password_file.as_ref().unwrap())
    );
    assert_eq!(running.differences(&other).first().unwrap(), "shared.url");
    let mut adopted = running;
    adopted.adopt_live(other);
    assert_eq!(engine(&adopted), expected);
}
