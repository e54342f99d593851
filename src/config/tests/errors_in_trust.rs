//! The table for `registries`, `trust` and `bundles`.

use super::errors::check;
use crate::{
    config::Config,
    registry::{Credentials, DockerConfig, Unlisted},
};

const AUTHORITIES: &str = "authorities: { a: { keys: [release.pub], tlog: none }, b: { keys: [other.pub], tlog: none }, \
                           same: { keys: [release.pub], tlog: none } }";

/// `trust` with these policies, and a bundle that names none of them.
fn policies(policies: &str) -> String {
    format!(
        "trust: {{ {AUTHORITIES}, policies: {{ {policies} }} }}\nbundles: {{ x: {{ reference: 'r.io/a/b:1' }} }}"
    )
}

#[track_caller]
fn check_owned(rows: &[(String, String)]) {
    check(
        &rows
            .iter()
            .map(|(typed, error)| (typed.as_str(), error.as_str()))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn mirror_errors_name_the_key_and_a_fix() {
    check(&[
        (
            "registries: { r.io: { mirrors: m.io } }",
            "registries.r.io.mirrors: expected a list, found \"m.io\"; correct the value",
        ),
        (
            "registries: { r.io: { mirrors: [m.io, 'http://m.lan:5000/'] } }",
            "registries.r.io.mirrors[1]: name the mirror by host and port only; write `m.lan:5000`, \
             and its scheme in `registries.m.lan:5000.scheme`",
        ),
        (
            "registries: { r.io: { mirrors: [m.io/proxy] } }",
            "registries.r.io.mirrors[0]: not a HOST or HOST:PORT; write one such as \
             `registry.lan:5000`",
        ),
        (
            "registries: { r.io: { mirrors: [m.io, r.io] } }",
            "registries.r.io.mirrors[1]: r.io is the registry itself, which is asked after its \
             mirrors; remove it",
        ),
        (
            "registries: { docker.io: { mirrors: [registry-1.docker.io] } }",
            "registries.docker.io.mirrors[0]: registry-1.docker.io is the registry itself, which is \
             asked after its mirrors; remove it",
        ),
        (
            "registries: { r.io: { mirrors: [m.io, n.io, M.io] } }",
            "registries.r.io.mirrors[2]: M.io is named twice; remove one",
        ),
        (
            "registries: { r.io: { mirrors: [a.io, b.io, c.io, d.io, e.io, f.io, g.io, h.io, i.io] } }",
            "registries.r.io.mirrors: 9 are too many; name at most 8",
        ),
    ]);
}

#[test]
fn registry_errors_name_the_key_and_a_fix() {
    check(&[
        (
            "registries: { 'http://registry.lan:5000/': {} }",
            "registries.http://registry.lan:5000/: name the registry by host and port only; write \
             `registry.lan:5000: { scheme: http }`",
        ),
        (
            "registries: { ghcr.io/acme: {} }",
            "registries.ghcr.io/acme: not a HOST or HOST:PORT; write one such as `registry.lan:5000`",
        ),
        (
            "registries: { 'r.io:99999': {} }",
            "registries.r.io:99999: not a HOST or HOST:PORT; write one such as `registry.lan:5000`",
        ),
        (
            "registries: { registry: {} }",
            "registries.registry: no reference can name this host; write it with its port, such as `registry:443`",
        ),
        (
            "registries: { r.io: { scheme: ftp } }",
            "registries.r.io.scheme: \"ftp\" is neither `https` nor `http`; available: https, http",
        ),
        (
            "registries: { r.io: { scheme: http, ca_file: registry-ca.pem } }",
            "registries.r.io.ca_file: plain HTTP has no certificates; remove `ca_file` or `scheme: http`",
        ),
        (
            "registries: { r.io: { ca_file: empty } }",
            "registries.r.io.ca_file: empty has no certificate; use PEM certificates \
             (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "registries: { r.io: { credentials: { username: a } } }",
            "registries.r.io.credentials.password_file: missing; write it",
        ),
        (
            "registries: { r.io: { credentials: { username: a, password_file: none } } }",
            "registries.r.io.credentials.password_file: none does not exist; create it, or correct the path",
        ),
        (
            "registries: { r.io: { credentials: { username: a, password_file: empty } } }",
            "registries.r.io.credentials.password_file: empty is empty; write the password to it",
        ),
        (
            "registries: { r.io: { timeouts: { read: 0s } } }",
            "registries.r.io.timeouts.read: 0s is below the minimum of 100ms; write a longer time, such as 5s",
        ),
    ]);
}

#[test]
fn docker_config_is_read_and_its_errors_name_the_key_and_a_fix() {
    let with = |value: &str| {
        format!("registries: {{ r.io: {{ credentials: {{ docker_config: {value} }} }} }}")
    };
    check(&[
        (
            &with("none.json"),
            "registries.r.io.credentials.docker_config: none.json does not exist; create it, or correct the path",
        ),
        (
            &with("empty"),
            "registries.r.io.credentials.docker_config: no credentials for r.io in empty; log in with `docker login r.io`",
        ),
        (
            &with("binary"),
            "registries.r.io.credentials.docker_config: binary is not docker's configuration: it is not a JSON object \
             (line 1, column 1); correct or remove it",
        ),
        (
            &with("~/.docker/config.json"),
            "registries.r.io.credentials.docker_config: `~` is not expanded; write the whole path, or `default` for the \
             places where docker looks",
        ),
        (
            "registries: { r.io: { credentials: { docker_config: docker.json, username: a } } }",
            "registries.r.io.credentials.docker_config: either `docker_config`, or `username` and `password_file`; remove \
             one of them",
        ),
        (
            "registries: { r.io: { credentials: { password_file: ghcr.password } } }",
            "registries.r.io.credentials.username: missing; write it",
        ),
        (
            "registries: { r.io: { credentials: {} } }",
            "registries.r.io.credentials: empty; write `username` and `password_file`, or `docker_config`, or remove the \
             key for anonymous access",
        ),
    ]);
    let folder = super::trust::folder();
    folder.write(
        "docker.json",
        r#"{ "auths": { "https://r.io/v1/": { "auth": "YTpi" } } }"#,
    );
    let config = folder.with(&with("docker.json")).unwrap();
    let expected = Credentials::DockerConfig {
        config: DockerConfig::new(folder.0.path().join("docker.json")),
        unlisted: Unlisted::Error,
    };
    assert_eq!(config.registries["r.io"].credentials, Some(expected));
    // All mistakes are told at once, and a helper that is not installed is one.
    folder.write(
        "helper.json",
        r#"{ "credHelpers": { "s.io": "bundlegate-absent" } }"#,
    );
    folder.write(
        "bundlegate.yaml",
        &format!(
            "{}registries:\n  r.io: {{ credentials: {{ docker_config: ~/x }} }}\n  \
             s.io: {{ credentials: {{ docker_config: helper.json }} }}\n  \
             t.io: {{ credentials: {{ docker_config: docker.json }} }}\n",
            super::LEAST
        ),
    );
    let errors = Config::load_or_errors(&folder.0.path().join("bundlegate.yaml")).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3, "{errors:#?}");
    for (error, expected) in errors.iter().zip([
        "registries.r.io.credentials.docker_config: `~`",
        "registries.s.io.credentials.docker_config: docker-credential-bundlegate-absent get: no such program in PATH",
        "registries.t.io.credentials.docker_config: no credentials for t.io in ",
    ]) {
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn policy_errors_name_the_key_and_a_fix() {
    let require = |names: &str| policies(&format!("p: {{ require: {{ any_of: [{names}] }} }}"));
    let matching = |glob: &str| {
        policies(&format!(
            "p: {{ match: {glob}, require: {{ any_of: [a] }} }}"
        ))
    };
    check(&[
        (
            &policies("p: unsinged"),
            "trust.policies.p: \"unsinged\" is not a policy; write `unsigned` or `{ require: { any_of: [AUTHORITY] } }`",
        ),
        (
            &policies("p: { match: r.io/** }"),
            "trust.policies.p.require: missing; write it",
        ),
        (
            &require(""),
            "trust.policies.p.require.any_of: the list is empty; name one of \
             trust.authorities: a, b, same",
        ),
        (
            &require("a, sane"),
            "trust.policies.p.require.any_of[1]: trust.authorities has no \"sane\"; did you mean `same`?",
        ),
        (
            &require("a, a"),
            "trust.policies.p.require.any_of[1]: a is named twice; name it once",
        ),
        (
            &require("a, b, same"),
            "trust.policies.p.require: same and a share a key; leave one of them out",
        ),
        (
            &matching("ghcr.io"),
            "trust.policies.p.match[0]: \"ghcr.io\" matches no HOST/REPOSITORY; write \"ghcr.io/**\"",
        ),
        (
            &matching("['r.io/**', 'r.io/a:v1']"),
            "trust.policies.p.match[1]: \"r.io/a:v1\" has a tag or digest; match HOST/REPOSITORY without it",
        ),
        (
            &matching("'https://r.io/**'"),
            "trust.policies.p.match[0]: \"https://r.io/**\" has a scheme; write HOST/REPOSITORY, such as \
             \"ghcr.io/acme/**\"",
        ),
        (
            &matching("quay.io/**"),
            "bundles.x.trust: no policy matches r.io/a/b; name one here (trust.policies: p) or give one \
             `match: \"r.io/a/b\"`",
        ),
        (
            &policies(
                "p: { match: 'r.io/a/*', require: { any_of: [a] } }, q: { match: 'r.io/*/b', require: { any_of: [b] } }",
            ),
            "bundles.x.trust: the policies p and q match r.io/a/b equally well; name one of them here",
        ),
        // Unsigned never applies by itself.
        (
            &policies("dev: unsigned"),
            "bundles.x.trust: no policy matches r.io/a/b; name one here (trust.policies: dev) or give one \
             `match: \"r.io/a/b\"`",
        ),
    ]);
}

#[test]
fn a_requirement_that_nothing_or_everything_satisfies_is_refused() {
    let require = |rest: &str| policies(&format!("p: {{ require: {rest} }}"));
    let key = |key: &str, message: &str| format!("trust.policies.p.{key}: {message}");
    let alternatives = key(
        "require",
        "these are alternatives; keep `any_of`, `all_of`, or `at_least` with `of`",
    );
    let rows = [
        (
            require("{}"),
            key(
                "require",
                "nothing is required; write `any_of: [AUTHORITY]`, `all_of`, or `at_least` and `of`",
            ),
        ),
        (
            require("{ any_of: [a], all_of: [b] }"),
            alternatives.clone(),
        ),
        (require("{ any_of: [a], at_least: 1 }"), alternatives),
        (
            require("{ of: [a] }"),
            key(
                "require",
                "`of` needs `at_least`; write `at_least: 1`, or more",
            ),
        ),
        (
            require("{ at_least: 1 }"),
            key(
                "require",
                "`at_least` needs `of`; write `of: [AUTHORITY, AUTHORITY]`",
            ),
        ),
        (
            require("{ at_least: 1, of: [] }"),
            key(
                "require.of",
                "the list is empty; name one of trust.authorities: a, b, same",
            ),
        ),
        (
            require("{ all_of: [] }"),
            key(
                "require.all_of",
                "the list is empty; name one of trust.authorities: a, b, same",
            ),
        ),
        (
            require("{ at_least: 0, of: [a] }"),
            key(
                "require",
                "at_least: 0 would accept anything; write 1 or more",
            ),
        ),
        (
            require("{ at_least: 3, of: [a, b] }"),
            key(
                "require",
                "3 of 2 authorities can never sign; lower at_least",
            ),
        ),
        (
            require("{ at_least: -1, of: [a, b] }"),
            key(
                "require.at_least",
                "expected a whole number, found the integer `-1`; correct the value",
            ),
        ),
        (
            require("[a]"),
            key(
                "require",
                "expected a mapping of keys, found a list; correct the value",
            ),
        ),
    ];
    check_owned(&rows);
}

#[test]
fn a_policy_that_nothing_or_everything_satisfies_is_refused() {
    let with = |rest: &str| policies(&format!("p: {{ require: {{ any_of: [a] }}, {rest} }}"));
    let key = |key: &str, message: &str| format!("trust.policies.p.{key}: {message}");
    let rows = [
        (
            with("formats: []"),
            key(
                "formats",
                "no signature could be accepted; write bundle, legacy or both",
            ),
        ),
        (
            with("predicate_types: []"),
            key(
                "predicate_types",
                "nothing would count as a signature; write [\"https://sigstore.dev/cosign/sign/v1\"]",
            ),
        ),
        (
            with("formats: [legacy], attestations: [{ predicate_type: 'a:b' }]"),
            key(
                "attestations",
                "attestations are bundles; add bundle to formats",
            ),
        ),
        (
            with("predicate_types: ['a:b'], attestations: [{ predicate_type: 'a:b' }]"),
            key(
                "attestations",
                "a:b already counts as a signature (predicate_types); remove it from one of them",
            ),
        ),
        (
            with("max_signature_age: 24h"),
            key(
                "max_signature_age",
                "nothing proves the age of a signature by a; require a log (tlog: require)",
            ),
        ),
    ];
    check_owned(&rows);
    // Used or unused.
    let keyless = "{ keyless: { issuer: 'https://a.example.com', subject: a@example.com } }";
    check(&[(
        &format!(
            "trust: {{ authorities: {{ a: {keyless}, b: {keyless} }}, policies: {{ p: {{ require: {{ any_of: [a, b] \
             }} }} }} }}"
        ),
        "trust.policies.p.require: b and a are the same signer; leave one of them out",
    )]);
}

#[test]
fn policy_details_name_the_key_and_a_fix() {
    let with = |rest: &str| policies(&format!("p: {{ require: {{ any_of: [a] }}, {rest} }}"));
    let key = |key: &str, message: &str| format!("trust.policies.p.{key}: {message}");
    let rows = [
        (
            with("fromats: [bundle]"),
            key("fromats", "unknown key; did you mean `formats`?"),
        ),
        (
            with("formats: [bundel]"),
            key(
                "formats[0]",
                "\"bundel\" is neither `bundle` nor `legacy`; did you mean `bundle`?",
            ),
        ),
        (
            with("predicate_types: [slsaprovenance]"),
            key(
                "predicate_types[0]",
                "\"slsaprovenance\" is not a predicate type; write a URI such as \"https://sigstore.dev/cosign/sign/v1\"",
            ),
        ),
        (
            with("attestations: [{}]"),
            key("attestations[0].predicate_type", "missing; write it"),
        ),
        (
            with("attestations: [{ predicate_type: 'a:b', rego: corp.rego }]"),
            key(
                "attestations[0].rego",
                "corp.rego: the module is in package corp; write `package signature` and a rule `allow`",
            ),
        ),
        (
            with("attestations: [{ predicate_type: 'a:b', cue: x }]"),
            key(
                "attestations[0].cue",
                "unknown key; known here: predicate_type, rego",
            ),
        ),
        (
            with("annotations: { a: [1] }"),
            key(
                "annotations.a",
                "expected a text, a number, true or false, found a list; correct the value",
            ),
        ),
        (
            with("annotations: { a: { b: c } }"),
            key(
                "annotations.a",
                "expected a text, a number, true or false, found a mapping of keys; correct the value",
            ),
        ),
        (
            with("annotations: { a: }"),
            key(
                "annotations.a",
                "no value; write one, or remove the key to use its default",
            ),
        ),
        (
            with("annotations: { '': x }"),
            key("annotations", "an annotation has an empty name; write one"),
        ),
    ];
    check_owned(&rows);
}

#[test]
fn repositories_ages_and_digests_of_a_policy_name_the_key_and_a_fix() {
    let with = |rest: &str| policies(&format!("p: {{ require: {{ any_of: [a] }}, {rest} }}"));
    let key = |key: &str, message: &str| format!("trust.policies.p.{key}: {message}");
    let rows = [
        (
            with("claimed_repository: mach"),
            key(
                "claimed_repository",
                "\"mach\" is neither `ignore`, `match` nor a repository; did you mean `match`?",
            ),
        ),
        (
            with("claimed_repository: 'r.io/a:v1'"),
            key(
                "claimed_repository",
                "repository \"r.io/a:v1\" has a tag or digest; write HOST/REPOSITORY alone, such as ghcr.io/acme/authz",
            ),
        ),
        (
            with("claimed_repository: acme/authz"),
            key(
                "claimed_repository",
                "reference \"acme/authz\" names no registry host; write it out, such as ghcr.io/acme/authz:v1",
            ),
        ),
        (
            with("signatures: r.io/a"),
            key(
                "signatures",
                "expected a mapping of keys, found \"r.io/a\"; correct the value",
            ),
        ),
        (
            with("max_signature_age: 0s"),
            key(
                "max_signature_age",
                "0s is below the minimum of 1s; write a longer time, such as 2160h",
            ),
        ),
        (
            with("revoked_digests: [latest]"),
            key(
                "revoked_digests[0]",
                "digest \"latest\" starts with neither sha256: nor sha512:; write one such as sha256:…",
            ),
        ),
    ];
    check_owned(&rows);
}

// Attack 38 of the threat list.
#[test]
fn a_malformed_signatures_repository_is_refused() {
    let with = |rest: &str| policies(&format!("p: {{ require: {{ any_of: [a] }}, {rest} }}"));
    let repository = |text: &str| with(&format!("signatures: {{ repository: '{text}' }}"));
    let key = |key: &str, message: &str| format!("trust.policies.p.{key}: {message}");
    let malformed = |text: &str, reason: &str| {
        key(
            "signatures.repository",
            &format!("reference \"{text}\" is malformed: {reason}"),
        )
    };
    let hint = "write HOST/REPOSITORY, such as ghcr.io/acme/authz";
    let rows = [
        (
            repository("r.io/a/../../evil"),
            malformed("r.io/a/../../evil", hint),
        ),
        (
            repository("r.io/a/%2e%2e/evil"),
            malformed("r.io/a/%2e%2e/evil", hint),
        ),
        (
            repository("r.io/a?x=/evil"),
            malformed("r.io/a?x=/evil", hint),
        ),
        (
            repository("https://r.io/a"),
            malformed("https://r.io/a", "it has a scheme; write HOST/REPOSITORY"),
        ),
        (
            repository("oci-layout:sigs"),
            malformed("oci-layout:sigs", "this is a folder; write HOST/REPOSITORY"),
        ),
        (
            repository("r.io/a:latest"),
            key(
                "signatures.repository",
                "repository \"r.io/a:latest\" has a tag or digest; write HOST/REPOSITORY alone, such as \
                 ghcr.io/acme/authz",
            ),
        ),
    ];
    check_owned(&rows);
}

#[test]
fn bundle_errors_name_the_key_and_a_fix() {
    let bundle = |rest: &str| {
        format!("trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ x: {{ {rest} }} }}")
    };
    let good = "reference: 'r.io/a:1', trust: dev";
    check(&[
        (
            &bundle("trust: dev"),
            "bundles.x.reference: missing; write it",
        ),
        (
            &bundle("reference: 'authz:v1', trust: dev"),
            "bundles.x.reference: reference \"authz:v1\" names no registry host; write it out, such as \
             ghcr.io/acme/authz:v1",
        ),
        (
            &bundle("reference: 'r.io/a:1', trust: dve"),
            "bundles.x.trust: trust.policies has no \"dve\"; did you mean `dev`?",
        ),
        (
            &bundle("reference: 'oci-layout:x'"),
            "bundles.x.trust: no `match` applies to a folder; name one here (trust.policies: dev)",
        ),
        (
            &bundle(&format!("{good}, poll: 50ms")),
            "bundles.x.poll: 50ms is below the minimum of 100ms; write a longer time, such as 30s",
        ),
        (
            &bundle(&format!("{good}, poll: 1m, max_stale: 1m")),
            "bundles.x.max_stale: 1m is below the minimum of 2m; write a longer time, such as 24h",
        ),
        (
            &bundle(&format!("{good}, on_missing: withdrawn")),
            "bundles.x.on_missing: \"withdrawn\" is neither `keep` nor `withdraw`; did you mean `withdraw`?",
        ),
        (
            &bundle(&format!("{good}, platform: amd64")),
            "bundles.x.platform: \"amd64\" is not a platform; write one such as linux/amd64 or linux/arm/v7",
        ),
        (
            &bundle(&format!("{good}, data_root: ../x")),
            "bundles.x.data_root: \"../x\" is no folder within the artifact; write one such as policy",
        ),
    ]);
}

#[test]
fn bundle_names_survive_a_url_and_mean_one_bundle() {
    let bundles = |names: &[&str]| {
        let entries = names
            .iter()
            .map(|name| format!("\"{name}\": {{ reference: 'r.io/a:1', trust: dev }}"));
        format!(
            "trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ {} }}",
            entries.collect::<Vec<_>>().join(", ")
        )
    };
    let slash = "a bundle name must not begin or end with a slash or have an empty segment; write a name such as authz/main";
    let dots = "a bundle name must not have a segment `.` or `..`; write a name such as authz/main";
    check(&[
        (
            &bundles(&[""]),
            "bundles.: a bundle name must not be empty; write a name such as authz/main",
        ),
        (&bundles(&["/a"]), &format!("bundles./a: {slash}")),
        (&bundles(&["a/"]), &format!("bundles.a/: {slash}")),
        (&bundles(&["a//b"]), &format!("bundles.a//b: {slash}")),
        (&bundles(&["a/../b"]), &format!("bundles.a/../b: {dots}")),
        (&bundles(&["."]), &format!("bundles..: {dots}")),
        (
            &bundles(&["a\\nb"]),
            "bundles.a\\nb: a bundle name must not have control characters; write a name such as authz/main",
        ),
        (
            &bundles(&["x", "bundles/x"]),
            "bundles.x: the path /bundles/x could mean this bundle or bundles/x; rename one of them",
        ),
        (
            &bundles(&["x", "bundle/x"]),
            "bundles.x: the path /bundle/x could mean this bundle or bundle/x; rename one of them",
        ),
    ]);
}

/// A bundle `x` under `policy` with these keys of `expect`.
fn expecting(policy: &str, expect: &str) -> String {
    format!(
        "trust: {{ {AUTHORITIES}, policies: {{ dev: unsigned, a: {{ require: {{ any_of: [a] }} }} }} }}\nbundles: \
         {{ x: {{ reference: 'r.io/a:1', trust: {policy}, expect: {{ {expect} }} }} }}"
    )
}

#[test]
fn expect_errors_name_the_key_and_a_fix() {
    let untimed = |policy: &str| {
        format!(
            "nothing proves when a bundle under the policy {policy} was signed; write another order, or ask its \
             authorities for a log (tlog: require)"
        )
    };
    let key = |key: &str, message: &str| format!("bundles.x.expect.{key}: {message}");
    let rows = [
        (
            expecting("a", "oder: version"),
            key("oder", "unknown key; did you mean `order`?"),
        ),
        (
            expecting("a", "order: versions"),
            key(
                "order",
                "\"versions\" is not one of `version`, `created` and `signed_time`; did you mean `version`?",
            ),
        ),
        (
            expecting("a", "order: signed_time"),
            key("order", &untimed("a")),
        ),
        (
            expecting("dev", "order: signed_time"),
            key("order", &untimed("dev")),
        ),
        (
            expecting("a", "minimum: 1.4.0"),
            key(
                "minimum",
                "`minimum` needs an `order`; write `order` as well",
            ),
        ),
        (
            expecting("a", "order: version, minimum: '1.4'"),
            key(
                "minimum",
                "\"1.4\" is not a semantic version; write it such as 1.4.0",
            ),
        ),
        (
            expecting("a", "order: version, minimum: 1.4"),
            key(
                "minimum",
                "expected text, found the floating point `1.4`; put it in quotes",
            ),
        ),
        (
            expecting("a", "order: created, minimum: 1.4.0"),
            key(
                "minimum",
                "\"1.4.0\" is not a time; write one with its zone, such as 2027-01-01T00:00:00Z",
            ),
        ),
        (
            expecting("a", "order: version, minimum: 1.4.0, on_older: serve"),
            key(
                "on_older",
                "versions below `minimum` would be served; write `alarm` or `refuse`",
            ),
        ),
        (
            expecting("a", "on_older: ignore"),
            key(
                "on_older",
                "\"ignore\" is not one of `serve`, `alarm` and `refuse`; available: serve, alarm, refuse",
            ),
        ),
    ];
    check_owned(&rows);
}

#[test]
fn expected_roots_and_annotations_name_the_key_and_a_fix() {
    let key = |key: &str, message: &str| format!("bundles.x.expect.{key}: {message}");
    let rows = [
        (
            expecting("a", "roots: []"),
            key(
                "roots",
                "the list is empty; write roots such as [\"authz\"], or remove the key",
            ),
        ),
        (
            expecting("a", "roots: [authz, authz/]"),
            key(
                "roots[1]",
                "\"authz/\" is not a root; write it as in `.manifest`, such as authz/users",
            ),
        ),
        (
            expecting("a", "annotations: { a: 1 }"),
            key(
                "annotations.a",
                "expected text, found the integer `1`; put it in quotes",
            ),
        ),
        (
            expecting("a", "annotations: { '': x }"),
            key("annotations", "an annotation has an empty name; write one"),
        ),
    ];
    check_owned(&rows);
}

#[test]
fn a_fallback_is_there_and_has_none() {
    let bundles = |x: &str, y: &str| {
        let bundle = |fallback: &str| {
            format!(
                "{{ reference: 'r.io/a:1', trust: dev, on_withdraw: {{ fallback: {fallback} }} }}"
            )
        };
        format!(
            "trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ x: {}, y: {}, deny: {{ reference: 'r.io/a:1', \
             trust: dev }} }}",
            bundle(x),
            bundle(y)
        )
    };
    let key = "bundles.x.on_withdraw.fallback";
    check(&[
        (
            &bundles("x", "deny"),
            &format!("{key}: a bundle can't be its own fallback; name another bundle"),
        ),
        (
            &bundles("dney", "deny"),
            &format!("{key}: bundles has no \"dney\"; did you mean `deny`?"),
        ),
        (
            &bundles("y", "deny"),
            &format!(
                "{key}: y has a fallback of its own (deny); name that one, or remove its `on_withdraw`"
            ),
        ),
        (
            &bundles("y", "x"),
            &format!(
                "{key}: y has a fallback of its own (x); name that one, or remove its `on_withdraw`"
            ),
        ),
    ]);
}
