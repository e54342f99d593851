//! The table for `registries`, `trust` and `bundles`.

use super::mistakes::check;

const AUTHORITIES: &str = "authorities: { a: { keys: [release.pub], tlog: none }, b: { keys: [other.pub], tlog: none }, \
                           same: { keys: [release.pub], tlog: none } }";

/// `trust` with these policies, and a bundle that asks for none of them.
fn policies(policies: &str) -> String {
    format!("trust: {{ {AUTHORITIES}, policies: {{ {policies} }} }}\nbundles: {{ x: {{ reference: 'r.io/a/b:1' }} }}")
}

#[test]
fn registry_mistakes_have_a_way_out() {
    check(&[
        (
            "registries: { 'http://registry.lan:5000/': {} }",
            "registries.http://registry.lan:5000/: a registry is named by host and port alone; write \
             `registry.lan:5000: { scheme: http }`",
        ),
        (
            "registries: { ghcr.io/acme: {} }",
            "registries.ghcr.io/acme: this is no HOST or HOST:PORT; write one such as `registry.lan:5000`",
        ),
        (
            "registries: { 'r.io:99999': {} }",
            "registries.r.io:99999: this is no HOST or HOST:PORT; write one such as `registry.lan:5000`",
        ),
        (
            "registries: { registry: {} }",
            "registries.registry: no reference can name this host; write it with its port, such as `registry:443`",
        ),
        (
            "registries: { r.io: { scheme: ftp } }",
            "registries.r.io.scheme: \"ftp\" is no scheme; write `https` or `http`",
        ),
        (
            "registries: { r.io: { scheme: http, ca_file: registry-ca.pem } }",
            "registries.r.io.ca_file: plain HTTP has no certificates; remove `ca_file` or `scheme: http`",
        ),
        (
            "registries: { r.io: { ca_file: empty } }",
            "registries.r.io.ca_file: empty holds no certificate; give PEM certificates \
             (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "registries: { r.io: { credentials: { username: a } } }",
            "registries.r.io.credentials.password_file: is missing; write it",
        ),
        (
            "registries: { r.io: { credentials: { username: a, password_file: none } } }",
            "registries.r.io.credentials.password_file: none can't be read: No such file or directory (os error 2); correct the path \
             or its permissions",
        ),
        (
            "registries: { r.io: { credentials: { username: a, password_file: empty } } }",
            "registries.r.io.credentials.password_file: empty is empty; put the password into it",
        ),
        (
            "registries: { r.io: { timeouts: { read: 0s } } }",
            "registries.r.io.timeouts.read: 0s is below the minimum of 100ms; write a longer time, such as 5s",
        ),
    ]);
}

#[test]
fn authority_mistakes_have_a_way_out() {
    check(&[
        (
            "trust: { authorities: { a: { keys: [], tlog: none } } }",
            "trust.authorities.a.keys: without a key nobody speaks for it; name a PEM public key file",
        ),
        (
            "trust: { authorities: { a: { keys: [none.pub], tlog: none } } }",
            "trust.authorities.a.keys[0]: none.pub can't be read: No such file or directory (os error 2); correct the path \
             or its permissions",
        ),
        (
            "trust: { authorities: { a: { keys: [release.pub, two.pub], tlog: none } } }",
            "trust.authorities.a.keys[1]: two.pub: it holds several keys; put each into a file of its own",
        ),
        (
            "trust: { authorities: { a: { keys: [other.key], tlog: none } } }",
            "trust.authorities.a.keys[0]: other.key: it holds a private key; give the public one \
             (cosign public-key --key FILE)",
        ),
        (
            "trust: { authorities: { 'a,b': { keys: [release.pub], tlog: none } } }",
            "trust.authorities.a,b: \"a,b\" is no name; use letters, digits and . _ - / alone",
        ),
    ]);
}

#[test]
fn policy_mistakes_have_a_way_out() {
    let require = |names: &str| policies(&format!("p: {{ require: {{ any_of: [{names}] }} }}"));
    let matching = |glob: &str| policies(&format!("p: {{ match: {glob}, require: {{ any_of: [a] }} }}"));
    check(&[
        (
            &policies("p: unsinged"),
            "trust.policies.p: \"unsinged\" is no policy; write `unsigned` or `{ require: { any_of: [AUTHORITY] } }`",
        ),
        (&policies("p: { match: r.io/** }"), "trust.policies.p.require: is missing; write it"),
        (
            &require(""),
            "trust.policies.p.require.any_of: without an authority nothing could pass; name one of \
             trust.authorities: a, b, same",
        ),
        (
            &require("a, sane"),
            "trust.policies.p.require.any_of[1]: trust.authorities has no \"sane\"; did you mean `same`?",
        ),
        (&require("a, a"), "trust.policies.p.require.any_of[1]: a is named twice; name it once"),
        (&require("a, b, same"), "trust.policies.p.require: same and a share a key; leave one of them out"),
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
fn bundle_mistakes_have_a_way_out() {
    let bundle = |rest: &str| format!("trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ x: {{ {rest} }} }}");
    let good = "reference: 'r.io/a:1', trust: dev";
    check(&[
        (&bundle("trust: dev"), "bundles.x.reference: is missing; write it"),
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
            "bundles.x.trust: a folder falls under no policy by itself; name one here (trust.policies: dev)",
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
    ]);
}

#[test]
fn bundle_names_survive_a_url_and_mean_one_bundle() {
    let bundles = |names: &[&str]| {
        let entries = names.iter().map(|name| format!("\"{name}\": {{ reference: 'r.io/a:1', trust: dev }}"));
        format!("trust: {{ policies: {{ dev: unsigned }} }}\nbundles: {{ {} }}", entries.collect::<Vec<_>>().join(", "))
    };
    let slash = "a bundle's name has no slash at either end and no empty segment; write a name such as authz/main";
    let dots = "a bundle's name has no segment `.` or `..`; write a name such as authz/main";
    check(&[
        (&bundles(&[""]), "bundles.: a bundle's name is not empty; write a name such as authz/main"),
        (&bundles(&["/a"]), &format!("bundles./a: {slash}")),
        (&bundles(&["a/"]), &format!("bundles.a/: {slash}")),
        (&bundles(&["a//b"]), &format!("bundles.a//b: {slash}")),
        (&bundles(&["a/../b"]), &format!("bundles.a/../b: {dots}")),
        (&bundles(&["."]), &format!("bundles..: {dots}")),
        (
            &bundles(&["a\\nb"]),
            "bundles.a\\nb: a bundle's name has no control characters; write a name such as authz/main",
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
