//! The value of each key of `trust`.

use std::{collections::BTreeSet, path::PathBuf, sync::LazyLock};

use serde_json::{Value, json};

use super::{
    trusted_root::{ca, trusted_root},
    *,
};
use crate::oci::cosign::SIGN_PREDICATE;
use crate::verify::{
    Authority, AuthorityKind, ClaimedRepository, Format, Requirements, San, SigningTime,
    TlogPolicy, TrustRoot, X509,
};
use crate::{
    publish::OnWithdraw,
    watch::{OnOlder, Order},
};

/// A folder with the files that are named here.
pub(super) fn folder() -> Folder {
    static KEYS: LazyLock<[(&str, String); 4]> = LazyLock::new(|| {
        let key = |name, algorithm| {
            (
                name,
                rcgen::KeyPair::generate_for(algorithm)
                    .unwrap()
                    .public_key_pem(),
            )
        };
        [
            key("p384.pub", &rcgen::PKCS_ECDSA_P384_SHA384),
            key("p521.pub", &rcgen::PKCS_ECDSA_P521_SHA512),
            key("ed25519.pub", &rcgen::PKCS_ED25519),
            key("rsa.pub", &rcgen::PKCS_RSA_SHA256),
        ]
    });
    let folder = Folder::new();
    for (name, pem) in KEYS.iter() {
        folder.write(name, pem);
    }
    folder.write(
        "old.pub",
        &rcgen::KeyPair::generate().unwrap().public_key_pem(),
    );
    folder.write("corp_ca.pem", &ca().pem());
    folder.write("ca.pem", &(ca().pem() + &ca().pem()));
    folder.write("corp.json", &trusted_root(&["ca", "log", "tsa"]));
    folder.write("no_log.json", &trusted_root(&["ca", "tsa"]));
    folder.write("no_tsa.json", &trusted_root(&["ca", "log"]));
    folder.write("no_ca.json", &trusted_root(&["log", "tsa"]));
    folder.write("slsa.rego", RULE);
    folder.write("token", "s3cret\n");
    folder.write("github.secret", "s3cret\n");
    folder.write("webhook.token", "s3cret\n");
    folder.write("robot.basic", "robot:s3cret\n");
    folder.write(
        "jwks.json",
        r#"{"keys":[{"kty":"RSA","kid":"1","n":"AQAB","e":"AQAB"}]}"#,
    );
    // The files of the samples: the public ones, and secrets in place of those that are not published.
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/trust");
    for sample in std::fs::read_dir(samples).unwrap() {
        let path = sample.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        folder.write(
            &format!("trust/{name}"),
            &std::fs::read_to_string(&path).unwrap(),
        );
    }
    for name in [
        "tls.crt",
        "tls.key",
        "admin.tokens",
        "edge.tokens",
        "branch.users",
        "ghcr.password",
        "robot.basic",
        "github.secret",
    ] {
        let secret = std::fs::read_to_string(folder.0.path().join(name)).unwrap();
        folder.write(&format!("secrets/{name}"), &secret);
    }
    folder
}

/// The requirements of the policy `p` in `trust`, as a bundle gets them.
#[track_caller]
fn requirements(trust: &str) -> Requirements {
    let bundle = "bundles: { x: { reference: 'r.io/a:1', trust: p } }";
    let config = match folder().with(&format!("trust: {{ {trust} }}\n{bundle}")) {
        Ok(config) => config,
        Err(error) => panic!("{error}: {trust}"),
    };
    config.bundles[0].trust.requirements().unwrap().clone()
}

/// The authority `a`.
#[track_caller]
fn authority(keys: &str) -> Authority {
    let trust = format!(
        "{ROOTS}, authorities: {{ a: {{ {keys} }} }}, policies: {{ p: {{ require: {{ any_of: [a] }} }} }}"
    );
    requirements(&trust).authorities.remove(0)
}

/// A policy with these keys beside `require`.
#[track_caller]
fn policy(keys: &str) -> Requirements {
    requirements(&format!(
        "authorities: {{ a: {{ keys: [release.pub] }} }}, policies: {{ p: {{ require: {{ any_of: [a] }}, {keys} }} }}"
    ))
}

/// Three authorities, of which this is required.
#[track_caller]
fn votes(require: &str) -> (usize, Vec<String>) {
    let authorities =
        "a: { keys: [release.pub] }, b: { keys: [other.pub] }, c: { keys: [p384.pub] }";
    let trust =
        format!("authorities: {{ {authorities} }}, policies: {{ p: {{ require: {require} }} }}");
    let requirements = requirements(&trust);
    (
        requirements.at_least,
        requirements
            .authorities
            .into_iter()
            .map(|authority| authority.name)
            .collect(),
    )
}

pub(super) const TUF_ROOT: &str = include_str!("../../verify/roots/sigstore_tuf_root.json");
const RULE: &str = "package signature\n\nallow if input.predicate.builder == \"ci\"\n";
const ROOTS: &str = "roots: { corp: { trusted_root: corp.json }, no_log: { trusted_root: no_log.json }, \
                     no_tsa: { trusted_root: no_tsa.json }, no_ca: { trusted_root: no_ca.json } }";

fn x509(keys: &str) -> (X509, Authority) {
    let authority = authority(keys);
    let AuthorityKind::X509(x509) = authority.kind.clone() else {
        panic!("{authority:?}")
    };
    (x509, authority)
}

fn root_name(authority: &Authority) -> Option<&str> {
    authority.root.as_ref().map(TrustRoot::name)
}

#[test]
fn keys_need_the_public_log_by_default() {
    for (keys, log, root) in [
        ("keys: [release.pub]", TlogPolicy::Require, Some("sigstore")),
        (
            "keys: [release.pub], tlog: require",
            TlogPolicy::Require,
            Some("sigstore"),
        ),
        (
            "keys: [release.pub], tlog: if_present",
            TlogPolicy::IfPresent,
            Some("sigstore"),
        ),
        ("keys: [release.pub], tlog: none", TlogPolicy::None, None),
        (
            "keys: [release.pub], tlog: none, root: corp",
            TlogPolicy::None,
            Some("corp"),
        ),
        (
            "keys: [release.pub], root: corp",
            TlogPolicy::Require,
            Some("corp"),
        ),
    ] {
        let authority = authority(keys);
        assert_eq!(
            (authority.tlog, root_name(&authority)),
            (log, root),
            "{keys}"
        );
    }
}

#[test]
fn a_key_is_a_file_or_a_file_with_conditions() {
    let authority = authority(
        "tlog: none, keys: [release.pub, { file: other.pub }, { file: rsa.pub, schemes: [rsa_pss_sha256, \
         rsa_pss_sha512] }, { file: ed25519.pub, schemes: [ed25519ph], not_before: 2026-01-01T00:00:00Z, not_after: \
         2027-01-01T01:00:00+01:00 }, { file: p521.pub, revoked: true }]",
    );
    let keys = authority.keys();
    let schemes: Vec<_> = keys.iter().map(|key| format!("{:?}", key.key)).collect();
    for (printed, expected) in schemes.iter().zip([
        "[EcdsaP256Sha256]",
        "[EcdsaP256Sha256]",
        "[RsaPssSha256, RsaPssSha512]",
        "[Ed25519ph]",
        "[EcdsaP521Sha512, EcdsaP521Sha256]",
    ]) {
        assert!(printed.contains(expected), "{printed}");
    }
    let conditions: Vec<_> = keys
        .iter()
        .map(|key| (key.not_before, key.not_after, key.revoked))
        .collect();
    let at = |text: &str| Some(text.parse().unwrap());
    let window = (
        at("2026-01-01T00:00:00Z"),
        at("2027-01-01T00:00:00Z"),
        false,
    );
    let always = (None, None, false);
    assert_eq!(
        conditions,
        [always, always, always, window, (None, None, true)]
    );
}

#[test]
fn a_revoked_key_is_rejected_everywhere() {
    let requirements = requirements(
        "authorities: { a: { keys: [release.pub, other.pub] }, leaked: { keys: [{ file: release.pub, revoked: true }] } },
         policies: { p: { require: { any_of: [a] } } }",
    );
    let revoked: Vec<_> = requirements.authorities[0]
        .keys()
        .iter()
        .map(|key| key.revoked)
        .collect();
    assert_eq!(revoked, [true, false]);
}

// A configuration that revokes the last key must be taken: the one before it still trusts it.
#[test]
fn the_last_key_may_be_revoked() {
    assert!(authority("keys: [{ file: release.pub, revoked: true }]").keys()[0].revoked);
}

#[test]
fn a_keyless_authority_is_an_issuer_a_subject_and_claims() {
    let issuer = "issuer: 'https://token.actions.githubusercontent.com'";
    let workflow = "https://github.com/acme/policies/.github/workflows/release.yml@refs/tags";
    let ci = authority(&format!(
        "keyless: {{ {issuer}, subject: '{workflow}/*', claims: {{ source_repository_id: '123456', \
         runner_environment: github-hosted, source_repository_ref: 'refs/tags/*' }} }}"
    ));
    let AuthorityKind::Keyless(identity) = &ci.kind else {
        panic!("{ci:?}")
    };
    assert_eq!(
        (ci.tlog, root_name(&ci)),
        (TlogPolicy::Require, Some("sigstore"))
    );
    assert!(
        identity
            .issuer
            .is_match("https://token.actions.githubusercontent.com")
    );
    assert!(
        !identity
            .issuer
            .is_match("https://token.actions.githubusercontent.com.evil")
    );
    assert!(identity.subject.is_match(&format!("{workflow}/v1")));
    assert!(!identity.subject.is_match(&format!("{workflow}/v1/x")));
    let claims: Vec<_> = identity
        .claims
        .iter()
        .map(|(claim, pattern)| format!("{claim}={pattern}"))
        .collect();
    assert_eq!(claims.len(), 3);
    for claim in [
        "source_repository_id=123456",
        "runner_environment=github-hosted",
        "source_repository_ref=refs/tags/*",
    ] {
        assert!(claims.iter().any(|known| known == claim), "{claims:?}");
    }

    let people = authority(
        "tlog: none, keyless: { root: corp, issuer_regex: 'https://(a|b)\\.example\\.com', subject_regex: \
         '[a-z]+@example\\.com' }",
    );
    let AuthorityKind::Keyless(identity) = &people.kind else {
        panic!("{people:?}")
    };
    assert_eq!(
        (people.tlog, root_name(&people)),
        (TlogPolicy::None, Some("corp"))
    );
    assert!(
        identity.issuer.is_match("https://a.example.com")
            && !identity.issuer.is_match("https://axexample.com")
    );
    assert!(
        identity.subject.is_match("ann@example.com")
            && !identity.subject.is_match("ann@example.com.evil")
    );
}

#[test]
fn a_private_authority_is_its_certificates_a_name_and_a_proof_of_time() {
    let (spiffe, authority) = x509(
        "x509: { roots: ca.pem, san_uri: 'spiffe://corp/ci/*', time: tsa, root: no_log }, tlog: none",
    );
    assert_eq!(
        (authority.tlog, root_name(&authority)),
        (TlogPolicy::None, Some("no_log"))
    );
    assert_eq!(spiffe.time, SigningTime::Tsa);
    assert!(matches!(&spiffe.subject, San::Uri(pattern) if pattern.is_match("spiffe://corp/ci/x")));

    let (_, authority) =
        x509("x509: { roots: ca.pem, san_email: ci@example.com, time: tsa, root: corp }");
    assert_eq!(
        (authority.tlog, root_name(&authority)),
        (TlogPolicy::Require, Some("corp"))
    );
    let (email, authority) =
        x509("x509: { roots: ca.pem, san_email_regex: 'ci-.*@example\\.com', time: rekor }");
    assert_eq!(
        (authority.tlog, root_name(&authority)),
        (TlogPolicy::Require, Some("sigstore"))
    );
    assert_eq!(email.time, SigningTime::Rekor);
    assert!(matches!(&email.subject, San::Email(pattern) if pattern.is_match("ci-1@example.com")));

    let (now, authority) =
        x509("x509: { roots: ca.pem, san_uri_regex: 'spiffe://corp/.*', time: now }");
    assert_eq!(
        (now.time, authority.tlog, root_name(&authority)),
        (SigningTime::Now, TlogPolicy::None, None)
    );
    assert!(matches!(&now.subject, San::Uri(pattern) if pattern.is_match("spiffe://corp/a/b")));
}

#[test]
fn any_of_all_of_and_at_least_are_read() {
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(votes("{ any_of: [a, b] }"), (1, names(&["a", "b"])));
    assert_eq!(votes("{ all_of: [a, b, c] }"), (3, names(&["a", "b", "c"])));
    assert_eq!(
        votes("{ at_least: 2, of: [c, a, b] }"),
        (2, names(&["c", "a", "b"]))
    );
    assert_eq!(votes("{ at_least: 1, of: [a] }"), (1, names(&["a"])));
}

#[test]
fn absent_policy_keys_have_the_documented_defaults() {
    let policy = policy("match: '**'");
    assert_eq!(
        policy.predicate_types,
        BTreeSet::from([SIGN_PREDICATE.to_owned()])
    );
    assert_eq!(
        policy.formats,
        BTreeSet::from([Format::Bundle, Format::Legacy])
    );
    assert_eq!(policy.claimed_repository, ClaimedRepository::Ignore);
    assert!(
        policy.attestations.is_empty()
            && policy.annotations.is_empty()
            && policy.revoked_digests.is_empty()
    );
    assert_eq!((policy.signatures, policy.max_signature_age), (None, None));
}

#[test]
fn predicate_types_and_attestations_are_read() {
    let slsa = "https://slsa.dev/provenance/v1";
    let policy = policy(&format!(
        "predicate_types: ['{SIGN_PREDICATE}', 'https://example.com/approval'], \
         attestations: [{{ predicate_type: '{slsa}', rego: slsa.rego }}, {{ predicate_type: 'https://spdx.dev/Document' }}]"
    ));
    assert!(
        policy
            .predicate_types
            .contains("https://example.com/approval")
    );
    assert_eq!(policy.predicate_types.len(), 2);
    let [provenance, sbom] = policy.attestations.as_slice() else {
        panic!("{policy:?}")
    };
    assert_eq!(
        (
            provenance.predicate_type.as_str(),
            provenance.rule.is_some()
        ),
        (slsa, true)
    );
    assert_eq!(
        (sbom.predicate_type.as_str(), sbom.rule.is_some()),
        ("https://spdx.dev/Document", false)
    );
}

#[test]
fn annotations_keep_the_type_that_they_are_written_with() {
    let annotations =
        policy("annotations: { a: 1, b: '1', c: true, d: 'true', e: 1.5, f: -1, g: prod, h: no }")
            .annotations;
    let values: Vec<&Value> = annotations.values().collect();
    assert_eq!(
        json!(values),
        json!([1, "1", true, "true", 1.5, -1, "prod", "no"])
    );
}

#[test]
fn formats_signatures_max_signature_age_and_revoked_digests_are_read() {
    assert_eq!(
        policy("formats: [bundle]").formats,
        BTreeSet::from([Format::Bundle])
    );
    for (word, expected) in [
        ("ignore", ClaimedRepository::Ignore),
        ("match", ClaimedRepository::Match),
        (
            "'r.io:5000/acme/authz'",
            ClaimedRepository::Exactly("r.io:5000/acme/authz".to_owned()),
        ),
    ] {
        assert_eq!(
            policy(&format!("claimed_repository: {word}")).claimed_repository,
            expected
        );
    }
    let elsewhere = policy("signatures: { repository: registry.example.com/sigs }")
        .signatures
        .unwrap();
    assert_eq!(elsewhere.to_string(), "registry.example.com/sigs");
    assert_eq!(
        policy("max_signature_age: 2160h").max_signature_age,
        Some(secs(2160 * 3600))
    );
    let digest = crate::oci::Digest::sha256(b"leaked");
    let revoked = policy(&format!("revoked_digests: ['{digest}']")).revoked_digests;
    assert_eq!(revoked, BTreeSet::from([digest]));
}

#[test]
fn expect_and_on_withdraw_are_read() {
    let config = |authorities: &str, require: &str, bundle: &str| {
        let config = folder().with(&format!(
            "trust: {{ authorities: {{ {authorities} }}, policies: {{ p: {{ require: {require} }} }} }}\n\
             bundles: {{ deny: {{ reference: 'r.io/d:1', trust: p }}, x: {{ reference: 'r.io/a:1', trust: p, {bundle} }} }}"
        ));
        config
            .unwrap_or_else(|error| panic!("{error}: {bundle}"))
            .bundles
            .remove(1)
    };
    let (a, any) = ("a: { keys: [release.pub] }", "{ any_of: [a] }");
    let none = config(a, any, "poll: 30s");
    assert!(none.expect.annotations.is_empty() && none.expect.roots.is_empty());
    assert_eq!(
        (none.expect.order, none.expect.on_older, none.on_withdraw),
        (None, OnOlder::Alarm, None)
    );

    let full = config(
        a,
        any,
        "expect: { annotations: { env: prod }, roots: [authz, ''], order: version, minimum: v1.4.0, on_older: refuse }, \
         on_withdraw: { fallback: deny }",
    );
    assert_eq!(
        full.expect.annotations.into_iter().collect::<Vec<_>>(),
        [("env".to_owned(), "prod".to_owned())]
    );
    assert_eq!(full.expect.roots, ["authz", ""]);
    assert_eq!(
        full.expect.order,
        Some(Order::Version {
            minimum: Some("1.4.0".parse().unwrap())
        })
    );
    assert_eq!(full.expect.on_older, OnOlder::Refuse);
    assert_eq!(
        full.on_withdraw,
        Some(OnWithdraw {
            fallback: "deny".to_owned()
        })
    );

    let since = Some("2026-01-01T00:00:00Z".parse().unwrap());
    let created = config(
        a,
        any,
        "expect: { order: created, minimum: 2026-01-01T00:00:00Z }",
    );
    assert_eq!(
        created.expect.order,
        Some(Order::Created { minimum: since })
    );
    let serve = config(a, any, "expect: { order: signed_time, on_older: serve }");
    assert_eq!(
        serve.expect.order,
        Some(Order::SignedTime { minimum: None })
    );
    assert_eq!(serve.expect.on_older, OnOlder::Serve);

    // One of the two votes always has a time.
    let authorities = "a: { keys: [release.pub] }, b: { keys: [other.pub], tlog: none }";
    let two = config(
        authorities,
        "{ all_of: [a, b] }",
        "expect: { order: signed_time, minimum: 2026-01-01T00:00:00Z }",
    );
    assert_eq!(two.expect.order, Some(Order::SignedTime { minimum: since }));
}

#[test]
fn roots_come_from_the_program_a_file_or_a_repository() {
    let folder = folder();
    let config = |roots: &str, root: &str| {
        folder.with(&format!(
            "trust: {{ roots: {{ {roots} }}, authorities: {{ a: {{ keys: [release.pub], root: {root} }} }}, \
             policies: {{ p: {{ require: {{ any_of: [a] }} }} }} }}\n\
             bundles: {{ x: {{ reference: 'r.io/a:1', trust: p }} }}"
        ))
    };
    let source = |roots: &str, root: &str| {
        let config = config(roots, root).unwrap_or_else(|error| panic!("{error}: {roots}"));
        assert_eq!(
            config.roots.keys().collect::<Vec<_>>(),
            [root],
            "only what is used is refreshed"
        );
        config.roots[root].clone()
    };
    assert_eq!(source("", "sigstore"), RootSource::sigstore());
    assert_eq!(
        source("offline: { builtin: sigstore, tuf: none }", "offline"),
        RootSource::Builtin { tuf: None }
    );
    assert_eq!(
        source("sigstore: { builtin: sigstore, tuf: none }", "sigstore"),
        RootSource::Builtin { tuf: None }
    );
    assert_eq!(
        source(
            "again: { builtin: sigstore, tuf: { refresh: 24h } }",
            "again"
        ),
        RootSource::sigstore()
    );
    assert_ne!(
        source(
            "again: { builtin: sigstore, tuf: { refresh: 1h } }",
            "again"
        ),
        RootSource::sigstore()
    );
    let RootSource::File(text) = source("corp: { trusted_root: corp.json }", "corp") else {
        panic!("a file")
    };
    assert!(text.contains("rekor.example.com"));

    folder.write("root.json", TUF_ROOT);
    let tuf =
        "corp: { tuf: { url: 'https://tuf.example.com/corp', root: root.json, refresh: 1h } }";
    assert!(matches!(source(tuf, "corp"), RootSource::Tuf(_)));
    let pending = &config(tuf, "corp").unwrap().bundles[0].trust;
    assert!(
        pending.requirements().unwrap().authorities[0]
            .root
            .as_ref()
            .unwrap()
            .is_pending()
    );
}

#[test]
fn a_root_is_used_in_its_current_state() {
    let folder = folder();
    let file = folder.0.path().join("bundlegate.yaml");
    folder.write(
        "bundlegate.yaml",
        &format!(
            "{LEAST}trust: {{ authorities: {{ a: {{ keys: [release.pub] }} }}, policies: {{ p: {{ require: {{ any_of: \
             [a] }} }} }} }}\nbundles: {{ x: {{ reference: 'r.io/a:1', trust: p }} }}"
        ),
    );
    let newer = TrustRoot::from_json("sigstore", &trusted_root(&["ca", "log", "tsa"])).unwrap();
    let (before, after) = (
        Config::load(&file).unwrap(),
        Config::load_with(&file, &|_, _| Ok(newer.clone())).unwrap(),
    );
    assert_eq!(before.roots, after.roots);
    let revision = |config: &Config| config.bundles[0].trust.revision().clone();
    assert_ne!(revision(&before), revision(&after));
    assert_eq!(
        revision(&after),
        revision(&Config::load_with(&file, &|_, _| Ok(newer.clone())).unwrap())
    );
}

#[test]
fn files_lists_each_file_that_the_configuration_names_once() {
    let folder = folder();
    let trust = "trust: { roots: { corp: { trusted_root: corp.json }, again: { trusted_root: ./corp.json } }, \
                 authorities: { a: { keys: [release.pub] }, b: { x509: { roots: ca.pem, san_uri: 'spiffe://a/b', \
                 time: now } } }, policies: { p: { require: { any_of: [a] }, attestations: [{ predicate_type: 'a:b', \
                 rego: slsa.rego }] } } }\n\
                 registries: { r.io: { credentials: { username: a, password_file: ghcr.password } } }\n";
    let file = folder.0.path().join("bundlegate.yaml");
    folder.write("bundlegate.yaml", &format!("{LEAST}{trust}"));
    let config = Config::load(&file).unwrap();
    let names = |files: &[PathBuf]| -> Vec<_> {
        files
            .iter()
            .map(|file| {
                file.strip_prefix(folder.0.path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect()
    };
    let expected = [
        "bundlegate.yaml",
        "ca.pem",
        "corp.json",
        "ghcr.password",
        "release.pub",
        "slsa.rego",
    ];
    assert_eq!(names(config.files()), expected);
}

#[test]
fn a_file_is_read_once() {
    let folder = folder();
    let fifo = folder.0.path().join("fifo.pub");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    let pem = std::fs::read(folder.0.path().join("release.pub")).unwrap();
    // The pipe has no writer after the first read: a second read would block forever.
    let writer = std::thread::spawn(move || std::fs::write(fifo, pem).unwrap());
    let (sender, loaded) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let config = folder.with(
            "trust: { authorities: { a: { keys: [fifo.pub], tlog: none }, b: { keys: [fifo.pub], tlog: none } }, \
             policies: { p: { require: { any_of: [a] } } } }",
        );
        sender.send(config).unwrap();
    });
    loaded.recv_timeout(secs(60)).unwrap().unwrap();
    writer.join().unwrap();
}
