//! Whole configurations: the example, the defaults, and errors.

use std::{path::Path, sync::Arc, time::Duration};

use super::*;
use crate::{
    publish::OnMissing,
    registry::{self, Credentials, Scheme},
    server::AccessLevel,
    telemetry::LogFormat,
    verify::RootSource,
};

mod connections;
mod described;
mod errors;
mod errors_in_signers;
mod errors_in_trust;
mod errors_in_versions;
mod fleet;
mod hostile;
mod opa_signature;
mod rollouts;
mod shapes;
mod trust;
mod trusted_root;
mod webhooks;

/// A folder with the files that the example names.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        folder.write("tls.crt", &cert.pem());
        folder.write("tls.key", &signing_key.serialize_pem());
        folder.write("registry-ca.pem", &cert.pem());
        folder.write("clients-ca.pem", &cert.pem());
        folder.write("issuer-ca.pem", &cert.pem());
        folder.write("admin.tokens", "s3cret-admin\n");
        folder.write("edge.tokens", "s3cret-one\n\n  s3cret-two\r\n");
        let hash = bcrypt::hash_with_salt("s3cret-three", 4, [7; 16]).unwrap();
        folder.write("edge.users", &format!("edge:{hash}\n"));
        folder.write("branch.users", &format!("branch:{hash}\n"));
        folder.write("ghcr.password", "s3cret-password\n");
        for name in ["release.pub", "other.pub"] {
            folder.write(name, &rcgen::KeyPair::generate().unwrap().public_key_pem());
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Whatever is accepted must be accepted by the schema.
    #[track_caller]
    fn parse(&self, text: &str) -> Result<Config, ConfigError> {
        let config = Config::parse(text, self.0.path());
        if config.is_ok() {
            described::accepts(text);
        }
        config
    }

    /// The minimal configuration followed by `rest`.
    fn with(&self, rest: &str) -> Result<Config, ConfigError> {
        self.parse(&format!("{LEAST}{rest}"))
    }
}

const LEAST: &str = "version: 1\nclients: [{ name: anyone, anonymous: true, bundles: ['**'] }]\n";
const EXAMPLE: &str = include_str!("../../config/bundlegate.yaml");

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_example_loads_from_beside_its_files() {
    let folder = trust::folder();
    folder.write("bundlegate.yaml", EXAMPLE);
    let config = Config::load(&folder.0.path().join("bundlegate.yaml")).unwrap();
    assert_eq!(config.server.listen.to_string(), "[::]:8443");
    assert_eq!(
        config.server.tls.unwrap().config().alpn_protocols,
        [b"h2".to_vec(), b"http/1.1".to_vec()]
    );
    assert_eq!(
        config.cache.directory.unwrap(),
        folder.0.path().join("cache")
    );
    let ghcr = &config.registries["ghcr.io"];
    assert!(ghcr.extra_roots.starts_with(b"-----BEGIN CERTIFICATE"));
    let password_file = folder.0.path().join("secrets/ghcr.password");
    assert_eq!(
        ghcr.credentials,
        Some(Credentials::PasswordFile {
            username: "robot".into(),
            password_file
        })
    );
    assert_eq!(config.registries["registry.lan:5000"].scheme, Scheme::Http);
    let [authz, nightly, v1, hello] = config.bundles.as_slice() else {
        panic!("four bundles")
    };
    let references = [nightly, v1].map(|bundle| bundle.reference.to_string());
    let pattern = r#""^main-[0-9a-f]+-(?P<ts>[0-9]+)$""#;
    assert_eq!(
        references,
        [
            format!(
                "ghcr.io/acme/authz (highest in numerical order, tags with {pattern}, of which \"$ts\")"
            ),
            "ghcr.io/acme/authz (semver ^1 || ^3)".to_owned(),
        ]
    );
    assert_eq!(
        (authz.name.as_str(), authz.trust.name()),
        ("authz/main", "release")
    );
    assert_eq!(authz.max_stale, Some(secs(86_400)));
    assert!(hello.trust.requirements().is_none());
    assert_eq!(authz.on_withdraw.as_ref().unwrap().fallback, hello.name);
    assert_eq!(config.roots.keys().collect::<Vec<_>>(), ["sigstore"]);
    let Credential::Tokens { tokens, .. } = &config.clients[0].credential else {
        panic!("tokens")
    };
    assert_eq!(
        tokens.iter().map(Secret::expose).collect::<Vec<_>>(),
        [b"s3cret-one", b"s3cret-two"]
    );
}

#[test]
fn the_example_shows_the_defaults() {
    let folder = trust::folder();
    let (example, least) = (folder.parse(EXAMPLE).unwrap(), folder.with("").unwrap());
    assert_eq!(example.limits, least.limits);
    assert_eq!(example.long_poll, least.long_poll);
    assert_eq!(example.log, least.log);
    assert_eq!(
        (
            example.cache.required,
            example.cache.disk,
            example.cache.memory
        ),
        (least.cache.required, least.cache.disk, least.cache.memory)
    );
    assert_eq!(example.server.drain, least.server.drain);
    assert_eq!(example.server.admin, least.server.admin);
    assert_eq!(example.server.max_connections, least.server.max_connections);
    assert_eq!(example.server.ready_after, least.server.ready_after);
    assert_eq!(
        example.registries["ghcr.io"].timeouts,
        registry::Options::default().timeouts
    );
    assert_eq!(
        example.registries["ghcr.io"].max_concurrent,
        registry::Options::default().max_concurrent
    );
    let (written, default) = (&example.bundles[0], &example.bundles[3]);
    assert_eq!(example.bundles[2].suspend, default.suspend);
    assert_eq!(
        (written.poll, written.confirm_within),
        (default.poll, default.confirm_within)
    );
    assert_eq!(written.on_missing, default.on_missing);
    assert_eq!(written.expect.on_older, default.expect.on_older);
    assert_eq!(example.roots["sigstore"], RootSource::sigstore());
}

/// Another configuration has other session tickets, so that a client's session ends with it.
#[test]
fn tls_whose_files_are_the_same_is_kept_with_its_sessions() {
    let folder = Folder::new();
    let text = "version: 1\nserver: { tls: { certificate: tls.crt, key: tls.key } }\n\
        clients: [{ name: a, anonymous: true, bundles: [x] }]";
    let read = || folder.parse(text).unwrap().server;
    let config = |server: &Server| Arc::clone(server.tls.as_ref().unwrap().config());
    let (running, mut same) = (read(), read());
    assert!(!Arc::ptr_eq(&config(&running), &config(&same)));
    same.keep_equal_tls(&running);
    assert!(Arc::ptr_eq(&config(&running), &config(&same)));
    let certified = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    folder.write("tls.crt", &certified.cert.pem());
    folder.write("tls.key", &certified.signing_key.serialize_pem());
    let mut other = read();
    other.keep_equal_tls(&running);
    assert!(!Arc::ptr_eq(&config(&running), &config(&other)));
}

#[test]
fn absent_keys_have_the_documented_defaults() {
    let config = Folder::new().with("").unwrap();
    assert_eq!(config.server.listen.to_string(), "[::]:8080");
    assert_eq!(config.server.admin.to_string(), "127.0.0.1:8090");
    assert!(config.server.admin_tls.is_none() && config.server.admin_tokens.is_none());
    assert!(config.server.tls.is_none());
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.log.access, AccessLevel::Off);
    assert_eq!(config.server.max_connections, 20_000);
    assert_eq!(config.server.ready_after, secs(30));
    assert_eq!(
        config.server.drain,
        Drain {
            notice: secs(5),
            over: secs(10)
        }
    );
    assert_eq!(
        config.long_poll,
        LongPoll {
            max_wait: secs(300),
            first_wait: secs(5),
            spread: None,
            bandwidth: None,
            repeat_delay: secs(5),
        }
    );
    assert_eq!(
        config.cache,
        Cache {
            directory: None,
            required: true,
            disk: 10 << 30,
            memory: 512 << 20
        }
    );
    let limits = Limits {
        bundle: 64 << 20,
        unpacked: 512 << 20,
        files: 20_000,
        bundle_manifest: 1 << 20,
        manifest: 4 << 20,
        evidence: 16 << 20,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.limits.read_limits().evidence, 16 << 20);
    assert_eq!(config.limits.bundle_limits().unpacked, 512 << 20);
    assert!(config.registries.is_empty() && config.bundles.is_empty());
    let config = Folder::new()
        .with("trust: { policies: { dev: unsigned } }\nbundles: { a: { reference: 'r.io/a:1', trust: dev } }");
    let bundle = &config.unwrap().bundles[0];
    assert_eq!(
        (bundle.poll, bundle.confirm_within, bundle.max_stale),
        (secs(30), secs(2), None)
    );
    assert_eq!(bundle.on_missing, OnMissing::Keep);
}

#[test]
fn json_is_yaml() {
    let text =
        r#"{"version": 1, "clients": [{"name": "a", "anonymous": true, "bundles": ["**"]}]}"#;
    assert_eq!(Folder::new().parse(text).unwrap().clients[0].name, "a");
}

#[test]
fn a_bundle_without_trust_takes_the_longest_match() {
    let config = Folder::new().with(
        "trust:
  authorities: { a: { keys: [release.pub], tlog: none }, b: { keys: [{ file: other.pub }], tlog: none } }
  policies:
    all:   { match: '**', require: { any_of: [a] } }
    acme:  { match: ['ghcr.io/acme/**', 'r.io/**'], require: { any_of: [a, b] } }
    authz: { match: ghcr.io/acme/authz, require: { any_of: [b] } }
bundles:
  1-one:   { reference: 'ghcr.io/acme/authz:v1' }
  2-two:   { reference: 'ghcr.io/acme/other:v1' }
  3-three: { reference: 'quay.io/acme/other:v1' }
  4-four:  { reference: 'ghcr.io/acme/authz:v1', trust: all }
  5-five:  { reference: 'oci-layout:policies:v1', trust: all }",
    );
    let config = config.unwrap();
    let policies: Vec<_> = config
        .bundles
        .iter()
        .map(|bundle| bundle.trust.name())
        .collect();
    assert_eq!(policies, ["authz", "acme", "all", "all", "all"]);
    assert!(
        config.bundles[4]
            .reference
            .repository()
            .to_string()
            .ends_with("/policies")
    );
}

#[test]
fn deltas_are_off_unless_there_is_a_history_and_errors_name_the_key_and_a_fix() {
    let folder = Folder::new();
    let read = |delta: &str| {
        let config = folder.with(&format!(
            "trust: {{ policies: {{ dev: unsigned }} }}
bundles: {{ a: {{ reference: 'r.io/a:1', trust: dev{delta} }} }}
patterns: [{{ resource: 'p/{{x}}', reference: 'r.io/{{x}}:1', trust: dev{delta} }}]"
        ));
        config.map(|config| {
            let of_pattern = config.patterns[0].sample().delta;
            assert_eq!(config.bundles[0].delta, of_pattern);
            of_pattern
        })
    };
    let options = |history, ratio, memory| {
        Some(crate::watch::DeltaOptions {
            history,
            ratio,
            memory,
        })
    };
    assert_eq!(read("").unwrap(), None);
    assert_eq!(read(", delta: { history: 0, ratio: 1 }").unwrap(), None);
    assert_eq!(
        read(", delta: { history: 4 }").unwrap(),
        options(4, 0.5, 256 << 20)
    );
    assert_eq!(
        read(", delta: { history: 32, ratio: 0.125, memory: 1MiB }").unwrap(),
        options(32, 0.125, 1 << 20)
    );
    for (delta, message) in [
        (
            "{ ratio: 0.1 }",
            "bundles.a.delta: without `history` there are no deltas",
        ),
        (
            "{ history: 33 }",
            "bundles.a.delta.history: 33 is not between 0 and 32",
        ),
        (
            "{ history: 1, ratio: 0 }",
            "bundles.a.delta.ratio: 0 is no part of a bundle",
        ),
        (
            "{ history: 1, ratio: 1.5 }",
            "bundles.a.delta.ratio: 1.5 is no part of a bundle",
        ),
        (
            "{ history: 1, memory: 1KiB }",
            "bundles.a.delta.memory: 1024 bytes are not between 1MiB and 64GiB",
        ),
    ] {
        let error = read(&format!(", delta: {delta}")).unwrap_err().to_string();
        assert!(error.contains(message), "{delta}: {error}");
    }
}

#[test]
fn opa_check_of_a_bundle_inherits_absent_keys_from_the_top_level() {
    let folder = Folder::new();
    let checks = |top: &str| {
        let config = folder.with(&format!(
            "trust: {{ policies: {{ dev: unsigned }} }}\n{top}bundles:
  1-default: {{ reference: 'r.io/a:1', trust: dev }}
  2-none: {{ reference: 'r.io/a:1', trust: dev, opa_check: none }}
  3-tests: {{ reference: 'r.io/a:1', trust: dev, opa_check: {{ tests: true }} }}
  4-other: {{ reference: 'r.io/a:1', trust: dev, opa_check: {{ opa: bin/opa, tests: false, timeout: 1s }} }}"
        ));
        config
            .unwrap()
            .bundles
            .into_iter()
            .map(|bundle| bundle.opa_check)
            .collect::<Vec<_>>()
    };
    let options = |program: &str, tests, timeout| {
        Some(crate::opa_check::Options {
            program: program.into(),
            tests,
            timeout: secs(timeout),
        })
    };
    // A path is relative to the configuration, and a name is searched in PATH.
    let own = folder.0.path().join("bin/opa").display().to_string();
    for top in ["", "opa_check: none\n"] {
        assert_eq!(
            checks(top),
            [
                None,
                None,
                options("opa", true, 30),
                options(&own, false, 1)
            ]
        );
    }
    let top = "opa_check: { opa: opa-1, timeout: 10m }\n";
    assert_eq!(
        checks(top),
        [
            options("opa-1", false, 600),
            None,
            options("opa-1", true, 600),
            options(&own, false, 1)
        ]
    );
    assert_eq!(
        checks("opa_check: { tests: true }\n")[0],
        options("opa", true, 30)
    );
    assert_eq!(checks("opa_check: {}\n")[0], options("opa", false, 30));
    assert_eq!(
        checks("opa_check: { opa: /usr/bin/opa }\n")[0],
        options("/usr/bin/opa", false, 30)
    );
}

#[test]
fn secrets_are_not_printed() {
    let folder = trust::folder();
    let config = folder.parse(EXAMPLE).unwrap();
    let key = std::fs::read_to_string(folder.0.path().join("secrets/tls.key")).unwrap();
    let printed = format!("{config:?} {config:#?}");
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(!printed.contains(key.lines().nth(1).unwrap()));
    for (file, text) in [
        ("secrets/edge.tokens", "s3cret one"),
        (
            "secrets/tls.key",
            "-----BEGIN s3cret KEY-----\ns3cret\n-----END",
        ),
        ("secrets/tls.key", "s3cret"),
        ("secrets/ghcr.password", "\n"),
    ] {
        let folder = trust::folder();
        folder.write(file, text);
        let error = folder.parse(EXAMPLE).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
}

#[test]
fn an_error_says_file_line_and_key() {
    let folder = trust::folder();
    let file = folder.0.path().join("bundlegate.yaml");
    folder.write("bundlegate.yaml", &EXAMPLE.replace("poll: 30s", "poll: 30"));
    let error = Config::load(&file).unwrap_err();
    let line = 1 + EXAMPLE
        .lines()
        .position(|line| line.contains("poll: 30s"))
        .unwrap() as u64;
    assert_eq!(
        (error.key(), error.line()),
        ("bundles.authz/main.poll", Some(line))
    );
    let expected = format!(
        "{}:{line}:5: bundles.authz/main.poll: \"30\" has no unit; write 30s or 30ms",
        file.display()
    );
    assert_eq!(error.to_string(), expected);
    let missing = Config::load(&folder.0.path().join("none.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("none.yaml: can't read the file: "),
        "{missing}"
    );
    let endless = Config::load(Path::new("/dev/zero"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        endless,
        "/dev/zero: it is larger than 1 MiB; name the right file"
    );
}

#[test]
fn an_overridden_merge_is_no_duplicate() {
    let config = Folder::new().with(
        "trust: { policies: { dev: unsigned } }
bundles:
  a: &a { reference: 'r.io/a:1', trust: dev, poll: 5s }
  b: { <<: *a, poll: 1m }",
    );
    let polls: Vec<_> = config
        .unwrap()
        .bundles
        .iter()
        .map(|bundle| bundle.poll)
        .collect();
    assert_eq!(polls, [secs(5), secs(60)]);
}

#[test]
fn a_pattern_has_the_options_of_a_bundle() {
    let config = Folder::new()
        .with(
            "opa_check: { tests: true }
trust: { policies: { dev: unsigned } }
patterns:
  - { resource: 'a/{x}', reference: 'r.io/{x}:v1', trust: dev }
  - resource: 'b/{x}'
    reference: 'r.io/{x}:v1'
    trust: dev
    poll: 1m
    confirm_within: 3s
    on_missing: withdraw
    max_stale: 2h
    opa_check: none
    idle: 5m
    max: 7
",
        )
        .unwrap();
    let [defaults, written] = &config.patterns[..] else {
        panic!("two patterns");
    };
    assert_eq!(
        (defaults.idle, defaults.max),
        (Duration::from_secs(3600), 1000)
    );
    assert!(
        defaults
            .sample()
            .opa_check
            .as_ref()
            .is_some_and(|it| it.tests)
    );
    assert_eq!((written.idle, written.max), (Duration::from_secs(300), 7));
    let reference = written.pattern.reference("b/team").unwrap();
    let bundle = written.bundle("b/team", reference);
    assert_eq!(bundle.name, "b/team");
    assert_eq!(bundle.reference.to_string(), "r.io/team:v1");
    assert_eq!(bundle.poll, Duration::from_secs(60));
    assert_eq!(bundle.confirm_within, Duration::from_secs(3));
    assert_eq!(bundle.on_missing, OnMissing::Withdraw);
    assert_eq!(bundle.max_stale, Some(Duration::from_secs(7200)));
    assert!(bundle.opa_check.is_none());
}
