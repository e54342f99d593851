//! The table for `trust.roots` and `trust.authorities`.

use super::errors::check;

const ROOTS: &str = "roots: { corp: { trusted_root: corp.json }, no_log: { trusted_root: no_log.json }, \
                     no_tsa: { trusted_root: no_tsa.json }, no_ca: { trusted_root: no_ca.json } }";

/// Rows about one authority: what is written of it, the key, and the sentence.
#[track_caller]
fn check_authority(rows: &[(&str, &str, &str)]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(typed, key, sentence)| {
            let typed = format!("trust: {{ {ROOTS}, authorities: {{ a: {{ {typed} }} }} }}");
            (typed, format!("trust.authorities.a{key}: {sentence}"))
        })
        .collect();
    check(&rows.iter().map(|(typed, error)| (typed.as_str(), error.as_str())).collect::<Vec<_>>());
}

#[track_caller]
fn check_roots(rows: &[(&str, &str, &str)]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(typed, key, sentence)| {
            (format!("trust: {{ roots: {{ r: {typed} }} }}"), format!("trust.roots.r{key}: {sentence}"))
        })
        .collect();
    check(&rows.iter().map(|(typed, error)| (typed.as_str(), error.as_str())).collect::<Vec<_>>());
}

#[test]
fn root_mistakes_have_a_way_out() {
    check_roots(&[
        (
            "{}",
            "",
            "nothing says where it comes from; write `builtin: sigstore`, `trusted_root: FILE` or `tuf: { url: URL, \
             root: FILE }`",
        ),
        ("sigstore", "", "\"sigstore\" stands where a mapping of keys is wanted; write that instead"),
        ("{ trusted_rot: a }", ".trusted_rot", "unknown key; did you mean `trusted_root`?"),
        (
            "{ builtin: sigstore, trusted_root: corp.json }",
            "",
            "a root comes from one place; keep `builtin` or `trusted_root`",
        ),
        ("{ builtin: sigstor }", ".builtin", "no root \"sigstor\" is built in; did you mean `sigstore`?"),
        (
            "{ builtin: sigstore, tuf: never }",
            ".tuf",
            "\"never\" is neither `none` nor `{ refresh: TIME }`; write one of them",
        ),
        (
            "{ builtin: sigstore, tuf: [] }",
            ".tuf",
            "a list stands where `none` or a mapping of keys such as `{ refresh: 24h }` is wanted; write that instead",
        ),
        ("{ builtin: sigstore, tuf: }", ".tuf", "has no value; write one, or remove the key to get its default"),
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
            "none.json can't be read: No such file or directory (os error 2); correct the path or its permissions",
        ),
        (
            "{ trusted_root: release.pub }",
            ".trusted_root",
            "release.pub: no trusted root: not strict JSON: invalid number at line 1 column 2; give a trusted_root.json",
        ),
        (
            "{ trusted_root: corp.json, tuf: { refresh: 1h } }",
            ".tuf",
            "a file is not refreshed; remove it, or take the root from a repository without `trusted_root`",
        ),
        ("{ tuf: none }", ".tuf", "\"none\" is no repository; write `{ url: URL, root: FILE }`, or add `builtin`"),
        ("{ tuf: { refresh: 1h } }", ".tuf.url", "is missing; write it, or add `builtin`"),
        (
            "{ tuf: { url: 'https://tuf.example.com' } }",
            ".tuf.root",
            "without it whoever answers would be believed; name the repository's first trusted root.json",
        ),
        (
            "{ tuf: { url: tuf.example.com, root: root.json } }",
            ".tuf.url",
            "\"tuf.example.com\" is no URL: relative URL without a base; write one such as https://tuf.example.com/",
        ),
        (
            "{ tuf: { url: 'ftp://tuf.example.com', root: root.json } }",
            ".tuf.url",
            "ftp://tuf.example.com/ is no repository; write https://HOST/PATH",
        ),
        (
            "{ tuf: { url: 'https://me:secret@tuf.example.com', root: root.json } }",
            ".tuf.url",
            "a secret is not written in a URL; remove user and password",
        ),
        (
            "{ tuf: { url: 'https://tuf.example.com', root: corp.json } }",
            ".tuf.root",
            "corp.json: no TUF root: malformed metadata: missing `signed`; name a root.json",
        ),
    ]);
}

#[test]
fn an_authority_is_known_in_one_way() {
    let identity = "issuer: 'https://a.example.com', subject: a@example.com";
    check_authority(&[
        ("", "", "nothing tells who this is; write one of `keys`, `keyless` and `x509`"),
        (
            &format!("keys: [release.pub], keyless: {{ {identity} }}"),
            "",
            "an authority is known in one way; keep one of `keys`, `keyless` and `x509`",
        ),
        ("keys: release.pub", ".keys", "\"release.pub\" stands where a list is wanted; write that instead"),
        (
            "keys: [release.pub], tlog: required",
            ".tlog",
            "\"required\" is none of `none`, `if_present` and `require`; did you mean `require`?",
        ),
        ("keys: [release.pub], root: crop", ".root", "trust.roots has no \"crop\"; did you mean `corp`?"),
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
fn key_mistakes_have_a_way_out() {
    check_authority(&[
        ("keys: [], tlog: none", ".keys", "without a key nobody speaks for it; name a PEM public key file"),
        (
            "keys: [none.pub]",
            ".keys[0]",
            "none.pub can't be read: No such file or directory (os error 2); correct the path or its permissions",
        ),
        ("keys: [release.pub, two.pub]", ".keys[1]", "two.pub: it holds several keys; put each into a file of its own"),
        (
            "keys: [other.key]",
            ".keys[0]",
            "other.key: it holds a private key; give the public one (cosign public-key --key FILE)",
        ),
        ("keys: [[]]", ".keys[0]", "a list stands where the path of a PEM public key is wanted; write that instead"),
        ("keys: [{ schemes: [ed25519] }]", ".keys[0].file", "is missing; write it"),
        (
            "keys: [{ file: release.pub, not_afer: 2027-01-01T00:00:00Z }]",
            ".keys[0].not_afer",
            "unknown key; did you mean `not_after`?",
        ),
        (
            "keys: [{ file: release.pub, not_after: 2027-01-01 }]",
            ".keys[0].not_after",
            "\"2027-01-01\" is no moment; write one with its zone, such as 2027-01-01T00:00:00Z",
        ),
        (
            "keys: [{ file: release.pub, not_before: 2028-01-01T00:00:00Z, not_after: 2027-01-01T00:00:00Z }]",
            ".keys[0].not_after",
            "the key would count from 2028-01-01T00:00:00Z until 2027-01-01T00:00:00Z, which is never; correct one of \
             them",
        ),
        (
            "keys: [{ file: release.pub, revoked: yes }]",
            ".keys[0].revoked",
            "\"yes\" stands where true or false is wanted; write that instead",
        ),
        (
            "keys: [{ file: rsa.pub, schemes: [rsa_pss_sha265] }]",
            ".keys[0].schemes[0]",
            "\"rsa_pss_sha265\" is no signature scheme; did you mean `rsa_pss_sha256`?",
        ),
        (
            "keys: [{ file: ed25519.pub, schemes: [rsa_pss_sha256] }]",
            ".keys[0].schemes",
            "rsa_pss_sha256 is not for this kind of key, which has: ed25519, ed25519ph",
        ),
        (
            "keys: [{ file: rsa.pub, schemes: [] }]",
            ".keys[0].schemes",
            "without a scheme it verifies nothing; leave the schemes out, or name one",
        ),
        (
            "keys: [release.pub, { file: ./release.pub, not_after: 2027-01-01T00:00:00Z }]",
            ".keys[1]",
            "it is the same key as keys[0]; keep one of them",
        ),
        ("keys: [p521.pub]", ".tlog", "no signature of its keys can be judged together with a log; write `tlog: none`"),
    ]);
    check(&[(
        "trust: { authorities: { 'a,b': { keys: [release.pub], tlog: none } } }",
        "trust.authorities.a,b: \"a,b\" is no name; use letters, digits and . _ - / alone",
    )]);
}

#[test]
fn keyless_mistakes_have_a_way_out() {
    let issuer = "issuer: 'https://a.example.com'";
    let keyless = |rest: &str| format!("keyless: {{ {issuer}, {rest} }}");
    check_authority(&[
        (
            "keyless: { subject: a@example.com }",
            ".keyless.issuer",
            "without it whoever has an account anywhere could sign; write `issuer`, a URL such as \
             \"https://token.actions.githubusercontent.com\"",
        ),
        (
            "keyless: { issuer: 'https://a.example.com' }",
            ".keyless.subject",
            "without it whoever the issuer knows could sign; write `subject`, an e-mail address or a workflow's URI",
        ),
        (
            &keyless("subject: a@example.com, subject_regex: 'a@example\\.com'"),
            ".keyless.subject_regex",
            "`subject` and `subject_regex` are two ways to say it; keep one",
        ),
        (
            "keyless: { issuer: token.actions.githubusercontent.com, subject: a@example.com }",
            ".keyless.issuer",
            "no certificate has \"token.actions.githubusercontent.com\" there; write a URL such as \
             \"https://token.actions.githubusercontent.com\"",
        ),
        (
            &keyless("subject: release.yml"),
            ".keyless.subject",
            "no certificate has \"release.yml\" there; write an e-mail address or a workflow's URI",
        ),
        (
            &keyless("subject: \"a@example.com\\n\""),
            ".keyless.subject",
            "no certificate has \"a@example.com\\n\" there; write an e-mail address or a workflow's URI",
        ),
        (&keyless("subject: ''"), ".keyless.subject", "it is empty; write the text that has to be there"),
        (&keyless("subject: '*'"), ".keyless.subject", "it matches everybody; name who it has to be"),
        (&keyless("subject_regex: '.*'"), ".keyless.subject_regex", "it matches everybody; name who it has to be"),
        (
            "keyless: { issuer_regex: 'https://.*', subject: a@example.com }",
            ".keyless.issuer_regex",
            "it matches everybody; name who it has to be",
        ),
        (
            &keyless("subject_regex: 'a('"),
            ".keyless.subject_regex",
            "it is no regular expression: unclosed group; correct it",
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
        (
            &keyless("subject: a@example.com, claims: { runner_enviroment: github-hosted }"),
            ".keyless.claims.runner_enviroment",
            "no certificate has such a claim; did you mean `runner_environment`?",
        ),
        (
            &keyless("subject: a@example.com, claims: { source_repository_id: 123 }"),
            ".keyless.claims.source_repository_id",
            "the integer `123` stands where text is wanted; put it into quotes",
        ),
        (
            &keyless("subject: a@example.com, claims: { source_repository_id: '' }"),
            ".keyless.claims.source_repository_id",
            "it is empty; write the text that has to be there",
        ),
    ]);
}

#[test]
fn x509_mistakes_have_a_way_out() {
    let x509 = |rest: &str| format!("x509: {{ roots: ca.pem, {rest} }}");
    let name = "san_uri: 'spiffe://corp/ci/*'";
    check_authority(&[
        ("x509: { san_uri: 'spiffe://corp/ci' }", ".x509.roots", "is missing; write it"),
        (
            &x509(name),
            ".x509.time",
            "nothing proves when a certificate was used; write `tsa` (a timestamp), `rekor` (a log) or `now` (the \
             certificate is valid while it is served)",
        ),
        (
            &x509(&format!("{name}, time: tas")),
            ".x509.time",
            "\"tas\" is none of `tsa`, `rekor` and `now`; did you mean `tsa`?",
        ),
        (
            &x509("san_uri: corp/ci, time: now"),
            ".x509.san_uri",
            "no certificate has \"corp/ci\" there; write a URI such as \"spiffe://corp/ci/*\"",
        ),
        (
            &x509("san_email: 'ci.example.com', time: now"),
            ".x509.san_email",
            "no certificate has \"ci.example.com\" there; write an e-mail address",
        ),
        (
            &x509("time: now"),
            ".x509.san_uri",
            "without it whoever has a certificate could sign; write `san_uri` or `san_email`",
        ),
        (
            &x509(&format!("{name}, san_email: a@example.com, time: now")),
            ".x509",
            "a certificate is known by one name; keep `san_uri` or `san_email`",
        ),
        (
            &x509("san_email_regex: '.+', time: now"),
            ".x509.san_email_regex",
            "it matches everybody; name who it has to be",
        ),
        (
            &format!("x509: {{ roots: release.pub, {name}, time: now }}"),
            ".x509.roots",
            "release.pub: no PEM certificate (-----BEGIN CERTIFICATE-----) in it; give PEM certificates of the authority",
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
            "the log that proves the time is not looked at; write `tlog: require`, or another time",
        ),
        (
            &(x509(&format!("{name}, time: now")) + ", tlog: require"),
            ".tlog",
            "by `time: now` no log is looked at; write `tlog: none`, or another time",
        ),
    ]);
}
