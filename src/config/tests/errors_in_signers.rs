//! The table for `trust.roots` and `trust.authorities`.

use super::errors::check;

const ROOTS: &str = "roots: { corp: { trusted_root: corp.json }, no_log: { trusted_root: no_log.json }, \
                     no_tsa: { trusted_root: no_tsa.json }, no_ca: { trusted_root: no_ca.json } }";

/// Rows about one authority: its keys, the path of the key, and the message.
#[track_caller]
fn check_authority(rows: &[(&str, &str, &str)]) {
    check_below("trust.authorities.a", rows, |typed| {
        format!("trust: {{ {ROOTS}, authorities: {{ a: {{ {typed} }} }} }}")
    });
}

/// Rows about one root.
#[track_caller]
fn check_roots(rows: &[(&str, &str, &str)]) {
    check_below("trust.roots.r", rows, |typed| {
        format!("trust: {{ roots: {{ r: {typed} }} }}")
    });
}

/// Checks rows whose errors are about keys below `path`. `document` makes the configuration of what
/// a row has typed.
#[track_caller]
fn check_below(path: &str, rows: &[(&str, &str, &str)], document: impl Fn(&str) -> String) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(typed, key, message)| (document(typed), format!("{path}{key}: {message}")))
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(document, error)| (document.as_str(), error.as_str()))
        .collect();
    check(&rows);
}

#[test]
fn root_errors_name_the_key_and_a_fix() {
    check_roots(&[
        (
            "{}",
            "",
            "the root has no source; write `builtin: sigstore`, `trusted_root: FILE` or `tuf: { url: URL, \
             root: FILE }`",
        ),
        (
            "sigstore",
            "",
            "expected a mapping of keys, found \"sigstore\"; correct the value",
        ),
        (
            "{ trusted_rot: a }",
            ".trusted_rot",
            "unknown key; did you mean `trusted_root`?",
        ),
        (
            "{ builtin: sigstore, trusted_root: corp.json }",
            "",
            "a root has one source; keep `builtin` or `trusted_root`",
        ),
        (
            "{ builtin: sigstor }",
            ".builtin",
            "no root \"sigstor\" is built in; did you mean `sigstore`?",
        ),
        (
            "{ builtin: sigstore, tuf: never }",
            ".tuf",
            "\"never\" is neither `none` nor `{ refresh: TIME }`; write one of them",
        ),
        (
            "{ builtin: sigstore, tuf: [] }",
            ".tuf",
            "expected `none` or a mapping of keys such as `{ refresh: 24h }`, found a list; correct the value",
        ),
        (
            "{ builtin: sigstore, tuf: }",
            ".tuf",
            "no value; write one, or remove the key to use its default",
        ),
        (
            "{ builtin: sigstore, tuf: { refresh: 1ms } }",
            ".tuf.refresh",
            "1ms is below the minimum of 1s; write a longer time, such as 24h",
        ),
        (
            "{ builtin: sigstore, tuf: { url: 'https://a' } }",
            ".tuf.url",
            "the built-in root comes from its own repository; remove this, or remove `builtin`",
        ),
        (
            "{ trusted_root: none.json }",
            ".trusted_root",
            "none.json does not exist; create it, or correct the path",
        ),
        (
            "{ trusted_root: release.pub }",
            ".trusted_root",
            "release.pub: not a trusted root: not strict JSON: invalid number at line 1 column 2; use a trusted_root.json",
        ),
        (
            "{ trusted_root: corp.json, tuf: { refresh: 1h } }",
            ".tuf",
            "a `trusted_root` file is not refreshed; keep `tuf` or `trusted_root`",
        ),
    ]);
}

#[test]
fn tuf_errors_name_the_key_and_a_fix() {
    check_roots(&[
        (
            "{ tuf: none }",
            ".tuf",
            "\"none\" is not a repository; write `{ url: URL, root: FILE }`, or add `builtin`",
        ),
        (
            "{ tuf: { refresh: 1h } }",
            ".tuf.url",
            "missing; write it, or add `builtin`",
        ),
        (
            "{ tuf: { url: 'https://tuf.example.com' } }",
            ".tuf.root",
            "without it any answer would be trusted; name the repository's first trusted root.json",
        ),
        (
            "{ tuf: { url: tuf.example.com, root: root.json } }",
            ".tuf.url",
            "\"tuf.example.com\" is not a URL: relative URL without a base; write one such as https://tuf.example.com/",
        ),
        (
            "{ tuf: { url: 'ftp://tuf.example.com', root: root.json } }",
            ".tuf.url",
            "ftp://tuf.example.com/ is not a repository URL; write https://HOST/PATH",
        ),
        (
            "{ tuf: { url: 'https://me:secret@tuf.example.com', root: root.json } }",
            ".tuf.url",
            "a URL must not contain a secret; remove user and password",
        ),
        (
            "{ tuf: { url: 'https://tuf.example.com', root: corp.json } }",
            ".tuf.root",
            "corp.json: not a TUF root: malformed metadata: missing `signed`; name a root.json",
        ),
    ]);
}

#[test]
fn an_authority_is_known_in_one_way() {
    let identity = "issuer: 'https://a.example.com', subject: a@example.com";
    check_authority(&[
        (
            "",
            "",
            "the authority has no kind; write one of `keys`, `keyless` and `x509`",
        ),
        (
            &format!("keys: [release.pub], keyless: {{ {identity} }}"),
            "",
            "an authority has one kind; keep one of `keys`, `keyless` and `x509`",
        ),
        (
            "keys: release.pub",
            ".keys",
            "expected a list, found \"release.pub\"; correct the value",
        ),
        (
            "keys: [release.pub], tlog: required",
            ".tlog",
            "\"required\" is not one of `none`, `if_present` and `require`; did you mean `require`?",
        ),
        (
            "keys: [release.pub], root: crop",
            ".root",
            "trust.roots has no \"crop\"; did you mean `corp`?",
        ),
        (
            &format!("keyless: {{ {identity} }}, root: corp"),
            ".root",
            "write it inside, as `keyless: { root: corp, … }`",
        ),
        (
            "keys: [release.pub], root: no_log",
            ".tlog",
            "its root (no_log) has no transparency log; write `tlog: none`, or name another root",
        ),
    ]);
}

#[test]
fn key_errors_name_the_key_and_a_fix() {
    check_authority(&[
        (
            "keys: [], tlog: none",
            ".keys",
            "the list is empty; name a PEM public key file",
        ),
        (
            "keys: [none.pub]",
            ".keys[0]",
            "none.pub does not exist; create it, or correct the path",
        ),
        (
            "keys: [release.pub, two.pub]",
            ".keys[1]",
            "two.pub: the file has several keys; put each in its own file",
        ),
        (
            "keys: [other.key]",
            ".keys[0]",
            "other.key: it holds a private key; give the public one (cosign public-key --key FILE)",
        ),
        (
            "keys: [[]]",
            ".keys[0]",
            "expected the path of a PEM public key, found a list; correct the value",
        ),
        (
            "keys: [{ schemes: [ed25519] }]",
            ".keys[0].file",
            "missing; write it",
        ),
        (
            "keys: [{ file: release.pub, not_afer: 2027-01-01T00:00:00Z }]",
            ".keys[0].not_afer",
            "unknown key; did you mean `not_after`?",
        ),
        (
            "keys: [{ file: release.pub, not_after: 2027-01-01 }]",
            ".keys[0].not_after",
            "\"2027-01-01\" is not a time; write one with its zone, such as 2027-01-01T00:00:00Z",
        ),
        (
            "keys: [{ file: release.pub, not_before: 2028-01-01T00:00:00Z, not_after: 2027-01-01T00:00:00Z }]",
            ".keys[0].not_after",
            "the key would never be valid (from 2028-01-01T00:00:00Z until 2027-01-01T00:00:00Z); correct one of \
             them",
        ),
        (
            "keys: [{ file: release.pub, revoked: yes }]",
            ".keys[0].revoked",
            "expected true or false, found \"yes\"; correct the value",
        ),
        (
            "keys: [{ file: rsa.pub, schemes: [rsa_pss_sha265] }]",
            ".keys[0].schemes[0]",
            "\"rsa_pss_sha265\" is not a signature scheme; did you mean `rsa_pss_sha256`?",
        ),
        (
            "keys: [{ file: ed25519.pub, schemes: [rsa_pss_sha256] }]",
            ".keys[0].schemes",
            "this kind of key does not support rsa_pss_sha256, only: ed25519, ed25519ph",
        ),
        (
            "keys: [{ file: rsa.pub, schemes: [] }]",
            ".keys[0].schemes",
            "no scheme is given, so nothing could be verified; omit schemes or name one",
        ),
        (
            "keys: [release.pub, { file: ./release.pub, not_after: 2027-01-01T00:00:00Z }]",
            ".keys[1]",
            "the same key as keys[0]; keep one of them",
        ),
        (
            "keys: [p521.pub]",
            ".tlog",
            "signatures by these keys can't be verified against a log; write `tlog: none`",
        ),
    ]);
}

#[test]
fn an_authority_has_a_name_without_commas() {
    check(&[(
        "trust: { authorities: { 'a,b': { keys: [release.pub], tlog: none } } }",
        "trust.authorities.a,b: \"a,b\" is not a name; use only letters, digits and . _ - /",
    )]);
}

#[test]
fn keyless_errors_name_the_key_and_a_fix() {
    let issuer = "issuer: 'https://a.example.com'";
    let keyless = |rest: &str| format!("keyless: {{ {issuer}, {rest} }}");
    check_authority(&[
        (
            "keyless: { subject: a@example.com }",
            ".keyless.issuer",
            "without it anyone with an account anywhere could sign; write `issuer`, a URL such as \
             \"https://token.actions.githubusercontent.com\"",
        ),
        (
            "keyless: { issuer: 'https://a.example.com' }",
            ".keyless.subject",
            "without it anyone known to the issuer could sign; write `subject`, an e-mail address or a workflow's URI",
        ),
        (
            &keyless("subject: a@example.com, subject_regex: 'a@example\\.com'"),
            ".keyless.subject_regex",
            "`subject` and `subject_regex` are alternatives; keep one",
        ),
        (
            "keyless: { issuer: token.actions.githubusercontent.com, subject: a@example.com }",
            ".keyless.issuer",
            "no certificate has \"token.actions.githubusercontent.com\" here; write a URL such as \
             \"https://token.actions.githubusercontent.com\"",
        ),
        (
            &keyless("subject: release.yml"),
            ".keyless.subject",
            "no certificate has \"release.yml\" here; write an e-mail address or a workflow's URI",
        ),
        (
            &keyless("subject: \"a@example.com\\n\""),
            ".keyless.subject",
            "no certificate has \"a@example.com\\n\" here; write an e-mail address or a workflow's URI",
        ),
        (
            &keyless("subject: ''"),
            ".keyless.subject",
            "is empty; write the expected text",
        ),
        (
            &keyless("subject: '*'"),
            ".keyless.subject",
            "matches any identity; name the expected one",
        ),
        (
            &keyless("subject_regex: '.*'"),
            ".keyless.subject_regex",
            "matches any identity; name the expected one",
        ),
        (
            "keyless: { issuer_regex: 'https://.*', subject: a@example.com }",
            ".keyless.issuer_regex",
            "matches any identity; name the expected one",
        ),
        (
            &keyless("subject_regex: 'a('"),
            ".keyless.subject_regex",
            "not a regular expression: unclosed group; correct it",
        ),
        (
            &keyless("subject: a@example.com, root: sigstor"),
            ".keyless.root",
            "trust.roots has no \"sigstor\"; did you mean `sigstore`?",
        ),
        (
            &keyless("subject: a@example.com, root: no_ca"),
            ".keyless.root",
            "this root (no_ca) has no certificate authority; name one that has",
        ),
        (
            &(keyless("subject: a@example.com, root: no_tsa") + ", tlog: none"),
            ".tlog",
            "without a log only a timestamp proves the time, and its root (no_tsa) has no timestamp authority; write \
             `tlog: require`, or name another root",
        ),
    ]);
}

#[test]
fn claim_errors_name_the_key_and_a_fix() {
    let issuer = "issuer: 'https://a.example.com'";
    let keyless = |rest: &str| format!("keyless: {{ {issuer}, {rest} }}");
    check_authority(&[
        (
            &keyless("subject: a@example.com, claims: { runner_enviroment: github-hosted }"),
            ".keyless.claims.runner_enviroment",
            "unknown claim; did you mean `runner_environment`?",
        ),
        (
            &keyless("subject: a@example.com, claims: { source_repository_id: 123 }"),
            ".keyless.claims.source_repository_id",
            "expected text, found the integer `123`; put it in quotes",
        ),
        (
            &keyless("subject: a@example.com, claims: { source_repository_id: '' }"),
            ".keyless.claims.source_repository_id",
            "is empty; write the expected text",
        ),
    ]);
}

#[test]
fn x509_errors_name_the_key_and_a_fix() {
    let x509 = |rest: &str| format!("x509: {{ roots: ca.pem, {rest} }}");
    let name = "san_uri: 'spiffe://corp/ci/*'";
    check_authority(&[
        (
            "x509: { san_uri: 'spiffe://corp/ci' }",
            ".x509.roots",
            "missing; write it",
        ),
        (
            &x509(name),
            ".x509.time",
            "without it nothing proves when a certificate was used; write `tsa` (a timestamp), `rekor` (a log) or `now` (the \
             certificate is valid while it is served)",
        ),
        (
            &x509(&format!("{name}, time: tas")),
            ".x509.time",
            "\"tas\" is not one of `tsa`, `rekor` and `now`; did you mean `tsa`?",
        ),
        (
            &x509("san_uri: corp/ci, time: now"),
            ".x509.san_uri",
            "no certificate has \"corp/ci\" here; write a URI such as \"spiffe://corp/ci/*\"",
        ),
        (
            &x509("san_email: 'ci.example.com', time: now"),
            ".x509.san_email",
            "no certificate has \"ci.example.com\" here; write an e-mail address",
        ),
        (
            &x509("time: now"),
            ".x509.san_uri",
            "without it anyone with a certificate could sign; write `san_uri` or `san_email`",
        ),
        (
            &x509(&format!("{name}, san_email: a@example.com, time: now")),
            ".x509",
            "a certificate is matched by one name; keep `san_uri` or `san_email`",
        ),
        (
            &x509("san_email_regex: '.+', time: now"),
            ".x509.san_email_regex",
            "matches any identity; name the expected one",
        ),
        (
            &format!("x509: {{ roots: release.pub, {name}, time: now }}"),
            ".x509.roots",
            "release.pub: no PEM certificate (-----BEGIN CERTIFICATE-----); use PEM certificates of the authority",
        ),
        (
            &x509(&format!("{name}, time: tsa, root: no_tsa")),
            ".x509.time",
            "its root (no_tsa) has no timestamp authority; write `rekor` or `now`, or name another root",
        ),
        (
            &x509(&format!("{name}, time: tsa, root: no_log")),
            ".tlog",
            "its root (no_log) has no transparency log; write `tlog: none`, or name another root",
        ),
        (
            &(x509(&format!("{name}, time: rekor")) + ", tlog: none"),
            ".x509.time",
            "the log that proves the time is not checked; write `tlog: require`, or another time",
        ),
        (
            &(x509(&format!("{name}, time: now")) + ", tlog: require"),
            ".tlog",
            "with `time: now` no log is checked; write `tlog: none`, or another time",
        ),
    ]);
}
