//! Configurations that are large, deep or name odd files: each is rejected or loaded, in bounded
//! time.

use super::*;
use crate::config::{difference, errors::all, values};

#[test]
fn braces_that_nest_are_refused_and_panic_nothing() {
    let folder = trust::folder();
    for depth in [11, 125, 250, 1000, 100_000] {
        let glob = format!("r.io/{}a{}", "{".repeat(depth), "}".repeat(depth));
        for typed in [
            format!("version: 1\nclients: [{{ name: a, anonymous: true, bundles: ['{glob}'] }}]\n"),
            format!(
                "{LEAST}trust: {{ authorities: {{ k: {{ keys: [release.pub], tlog: none }} }}, policies: {{ p: {{ match: '{glob}', require: {{ any_of: [k] }} }} }} }}\n"
            ),
        ] {
            let error = folder.parse(&typed).unwrap_err().to_string();
            assert!(
                error.contains("braces") || error.contains("characters at most"),
                "{depth}: {error}"
            );
            assert!(error.len() < 4096, "{}", error.len());
        }
    }
    for glob in ["r.io/{a,{b,{c,d}}}", "r.io/[{]", "r.io/a{b", "r.io/\\\\{a"] {
        let _ = values::glob(glob);
    }
}

/// Sixty thousand keys once took minutes: each was compared with all others.
#[test]
fn no_number_of_keys_takes_its_square() {
    let folder = Folder::new();
    let many = |entry: fn(usize) -> String| (0..12_000).map(entry).collect::<String>();
    for typed in [
        format!(
            "{LEAST}registries:\n{}",
            many(|n| format!("  r{n}.io: {{}}\n"))
        ),
        format!("{LEAST}severs:\n{}", many(|n| format!("  k{n}: 1\n"))),
        format!(
            "version: 1\nclients: [{}]\n",
            many(|n| format!("{{name: c{n}}},"))
        ),
    ] {
        let typed = &typed[..typed.len().min(1 << 20)];
        let _ = folder.parse(typed);
        let _ = all(typed, folder.0.path());
        let _ = difference::keys(typed, &typed.replacen("r1.io", "x1.io", 1));
    }
    let bundles = many(|n| {
        format!("  b{n}: {{reference: 'r.io/a:v{n}', trust: p, on_withdraw: {{fallback: b}}}}\n")
    });
    let bundles = &bundles[..bundles[..850_000].rfind('\n').unwrap()];
    let typed = format!(
        "{LEAST}trust: {{policies: {{p: unsigned}}}}\nbundles:\n  b: {{reference: 'r.io/a:v', trust: p}}\n{bundles}\n"
    );
    assert!(folder.parse(&typed).unwrap().bundles.len() > 9000);
}

/// Comparing two names costs the product of their lengths.
#[test]
fn names_without_end_are_not_compared() {
    let folder = Folder::new();
    let (long, other) = ("x".repeat(400_000), "y".repeat(400_000));
    let typed = format!(
        "{LEAST}trust: {{policies: {{? {long} : unsigned}}}}\nbundles: {{a: {{reference: 'r.io/a:v', trust: {other}}}}}\n"
    );
    let error = folder.parse(&typed).unwrap_err().to_string();
    assert!(error.len() < 4096, "{}", error.len());
}

#[test]
fn depth_and_aliases_are_bounded() {
    let folder = Folder::new();
    let deep = |depth: usize| format!("{LEAST}cache: {}{}\n", "[".repeat(depth), "]".repeat(depth));
    for depth in [24, 2000, 100_000] {
        assert!(folder.parse(&deep(depth)).is_err());
        assert_eq!(all(&deep(depth), folder.0.path()).0.len(), 1);
    }
    let mut laughs = "version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(folder.parse(&laughs).is_err());
}

/// The time of the parser of the evaluator doubles with every level.
#[test]
fn a_rule_that_nests_without_end_is_refused() {
    let folder = trust::folder();
    folder.write(
        "deep.rego",
        &format!(
            "package signature\nallow if {}1{}\n",
            "[".repeat(40),
            "]".repeat(40)
        ),
    );
    let typed = "trust: { authorities: { a: { keys: [release.pub], tlog: none } }, policies: { p: { require: { any_of: [a] }, \
                 attestations: [{ predicate_type: 'a:b', rego: deep.rego }] } } }";
    assert!(
        folder
            .with(typed)
            .unwrap_err()
            .to_string()
            .contains("nested too deep")
    );
}

#[test]
fn every_file_that_is_named_is_a_regular_one_within_a_limit() {
    let folder = trust::folder();
    std::fs::create_dir(folder.0.path().join("folder")).unwrap();
    std::fs::File::create(folder.0.path().join("endless"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for typed in [
        "server: { tls: { certificate: FILE, key: tls.key } }",
        "server: { tls: { certificate: tls.crt, key: FILE } }",
        "registries: { r.io: { ca_file: FILE } }",
        "registries: { r.io: { credentials: { username: a, password_file: FILE } } }",
        "registries: { r.io: { credentials: { docker_config: FILE } } }",
        "trust: { roots: { a: { trusted_root: FILE } } }",
        "trust: { roots: { a: { tuf: { url: 'https://r.io', root: FILE } } } }",
        "trust: { authorities: { a: { keys: [FILE], tlog: none } } }",
        "trust: { authorities: { a: { keys: [{ file: FILE }], tlog: none } } }",
        "trust: { authorities: { a: { x509: { roots: FILE, san_uri: 'a:b', time: now } } } }",
        "trust: { authorities: { a: { keys: [release.pub], tlog: none } }, policies: { p: { require: { any_of: [a] }, \
         attestations: [{ predicate_type: 'a:b', rego: FILE }] } } }",
    ] {
        for (file, expected) in [
            ("/dev/zero", "is larger than 1 MiB"),
            ("folder", "it is a folder, not a regular file"),
            ("endless", "is larger than 1 MiB"),
        ] {
            let error = folder
                .with(&typed.replace("FILE", file))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{typed} with {file}: {error}");
        }
    }
    for (file, expected) in [
        ("/dev/zero", "larger than 1 MiB"),
        ("folder", "a folder"),
        ("endless", "larger than 1 MiB"),
    ] {
        let error = Config::load(&folder.0.path().join(file))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

#[test]
fn all_errors_are_reported_without_their_consequences() {
    let folder = trust::folder();
    let reported = |typed: &str| {
        let found = all(&format!("{LEAST}{typed}"), folder.0.path()).0;
        found
            .iter()
            .map(|error| error.key().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(reported(""), [""; 0]);
    // One in each section, and several in one section.
    let typed = "
server: { listen: x, admin: y, severs: 1, tls: { certificate: none.crt, key: tls.key } }
long_poll: { first_wait: 1h }
cache: { disk: 1, memory: 1XB }
limits: { files: 0, bundle: 3 }
registries: { 'https://r.io': {}, r.io: { scheme: ftp, timeouts: { read: 1ms } } }
trust:
  authorities:
    a: { keys: [none.pub], tlog: none }
    b: { keyless: { issuer: x, subject: y } }
    c: { keys: [release.pub], tlog: none }
  policies:
    p: { require: { any_of: [a] } }
    q: { require: { any_of: [b, zzz, c] }, formats: [x] }
    r: { require: { any_of: [c] } }
bundles:
  one: { reference: 'r.io/A:v1', trust: r, poll: 1ms, on_missing: x }
  two: { reference: 'r.io/a:v1', trust: missing, on_withdraw: { fallback: one } }
  thr: { reference: 'r.io/a:v1', trust: q, expect: { order: x, minimum: 1.0.0 } }
";
    let reported = reported(typed);
    let expected = [
        "server.listen",
        "server.admin",
        "server.severs",
        "server.tls.certificate",
        "long_poll.first_wait",
        "cache.disk",
        "cache.memory",
        "limits.files",
        "limits.bundle",
        "registries.https://r.io",
        "registries.r.io.scheme",
        "registries.r.io.timeouts.read",
        "trust.authorities.a.keys[0]",
        "trust.authorities.b.keyless.issuer",
        "trust.policies.q.require.any_of[1]",
        "trust.policies.q.formats[0]",
        "bundles.one.reference",
        "bundles.one.poll",
        "bundles.one.on_missing",
        "bundles.two.trust",
        "bundles.thr.expect.order",
    ];
    for key in expected {
        assert!(
            reported.iter().any(|reported| reported == key),
            "{key} is not among {reported:#?}"
        );
    }
    for key in &reported {
        assert!(
            expected.contains(&key.as_str()) || key == "trust.authorities.b.keyless.subject",
            "{key} follows from another"
        );
    }
}

#[test]
fn items_of_a_list_keep_their_number_and_line() {
    let folder = Folder::new();
    let typed = "version: 1\nclients:\n- { name: a, anonymous: true, bundles: ['**'] }\n- { name: b, anonymous: true, bundles: 3 }\n\
                 - { name: c, anonymous: true, bundles: ['**'] }\n- { name: d, anonymous: true, bundles: [''] }\n";
    let found = all(typed, folder.0.path()).0;
    let reported: Vec<_> = found
        .iter()
        .map(|error| (error.line().unwrap(), error.key()))
        .collect();
    assert_eq!(
        reported,
        [(4, "clients[1].bundles"), (6, "clients[3].bundles[0]")]
    );
}
