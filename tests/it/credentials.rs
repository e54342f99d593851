//! Credentials that keep working: rotation, helpers, tokens.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::Reference,
    registry::{Class, Credentials, DockerConfig, Options, Registries, Source, Timeouts, Unlisted},
};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    access::{Access, Refusal, Scheme},
    faulty::{Fault, FaultyRegistry},
    gateway::{InProcess, PATIENCE, Setup, TestGateway, bundle, eventually},
};

pub(crate) const REFUSALS: [Refusal; 4] = [
    Refusal {
        status: 401,
        challenge: true,
    },
    Refusal {
        status: 401,
        challenge: false,
    },
    Refusal {
        status: 403,
        challenge: true,
    },
    Refusal {
        status: 403,
        challenge: false,
    },
];

/// Where the credentials of a test come from; in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    PasswordFile,
    DockerConfig,
    /// A `.dockerconfigjson` behind a symbolic link, as Kubernetes mounts secrets.
    Secret,
    Helper,
}

pub(crate) struct Store {
    folder: tempfile::TempDir,
    stored: Stored,
    host: String,
}

impl Store {
    pub(crate) fn new(stored: Stored, registry: &FaultyRegistry, password: &str) -> Self {
        let store = Self {
            folder: tempfile::tempdir().unwrap(),
            stored,
            host: registry.address.to_string(),
        };
        if stored == Stored::Helper {
            let config = json!({ "credHelpers": { &store.host: "test" } });
            store.write("config.json", &config.to_string());
            store.helper("cat \"${0%/*}/answer\"");
        }
        store.rotate(password);
        store
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let temporary = self.path(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path(name)).unwrap();
    }

    /// Replaces the script of the helper, which notes each call in `calls`.
    pub(crate) fn helper(&self, script: &str) {
        let text = format!("#!/bin/sh\necho >> \"${{0%/*}}/calls\"\n{script}\n");
        self.write("docker-credential-test", &text);
        let program = self.path("docker-credential-test");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |text| text.lines().count())
    }

    /// Stores USER:PASSWORD.
    pub(crate) fn rotate(&self, password: &str) {
        let auth = json!({ "auth": STANDARD.encode(password) });
        let config = json!({ "auths": { &self.host: auth } }).to_string();
        let (user, secret) = password.split_once(':').unwrap();
        match self.stored {
            Stored::PasswordFile => self.write("password", secret),
            Stored::DockerConfig => self.write("config.json", &config),
            Stored::Secret => {
                let data = self.path(secret);
                fs::create_dir_all(&data).unwrap();
                fs::write(data.join(".dockerconfigjson"), config).unwrap();
                let link = self.path(".link");
                std::os::unix::fs::symlink(data, &link).unwrap();
                fs::rename(link, self.path("..data")).unwrap();
            }
            Stored::Helper => {
                let answer = json!({ "ServerURL": &self.host, "Username": user, "Secret": secret });
                self.write("answer", &answer.to_string());
            }
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        let file = match self.stored {
            Stored::PasswordFile => {
                return Credentials::PasswordFile {
                    username: "robot".to_owned(),
                    password_file: self.path("password"),
                };
            }
            Stored::Secret => self.path("..data/.dockerconfigjson"),
            Stored::DockerConfig | Stored::Helper => self.path("config.json"),
        };
        let path = std::env::var("PATH").unwrap();
        let config = DockerConfig::new(file)
            .with_helpers_in(format!("{}:{path}", self.folder.path().display()))
            .with_helper_timeout(Duration::from_secs(3));
        Credentials::DockerConfig {
            config,
            unlisted: Unlisted::Error,
        }
    }

    fn registries(&self, registry: &FaultyRegistry) -> Registries {
        registry.registries(Options {
            credentials: Some(self.credentials()),
            timeouts: Timeouts::default(),
            ..registry.options()
        })
    }

    fn source(&self, registry: &FaultyRegistry) -> Source {
        let registries = self.registries(registry);
        registries
            .source(registry.reference("x").repository())
            .unwrap()
    }
}

async fn protected(scheme: Scheme) -> FaultyRegistry {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"bundle");
    registry.protect(Access::new(scheme, "robot:one"));
    registry
}

/// The same artifact in as many repositories.
fn repositories(
    registry: &FaultyRegistry,
    registries: &Registries,
    count: usize,
) -> Vec<(Source, Reference)> {
    let one = |number: usize| {
        let reference = format!("{}/acme/authz{number}:live", registry.address);
        let reference: Reference = reference.parse().unwrap();
        (
            registries.source(reference.repository()).unwrap(),
            reference,
        )
    };
    (0..count).map(one).collect()
}

#[tokio::test]
async fn every_place_of_credentials_is_read_again_after_every_kind_of_refusal() {
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        for stored in [Stored::PasswordFile, Stored::DockerConfig, Stored::Secret] {
            for refusal in REFUSALS {
                let registry = protected(scheme).await;
                let store = Store::new(stored, &registry, "robot:one");
                let (source, live) = (store.source(&registry), registry.reference("live"));
                source.resolve(&live).await.unwrap();
                registry.access(|access| {
                    access.refusal = refusal;
                    access.rotate("robot:two");
                });
                store.rotate("robot:two");
                let resolved = source.resolve(&live).await;
                assert!(
                    resolved.is_ok(),
                    "{scheme:?} {stored:?} {refusal:?}: {resolved:?}"
                );
            }
        }
    }
}

/// A cloud's helper answers with a password that expires.
#[tokio::test]
async fn a_helper_is_asked_again_after_every_kind_of_refusal() {
    for (scheme, refusal) in [
        (Scheme::Basic, REFUSALS[3]),
        (Scheme::Basic, REFUSALS[1]),
        (Scheme::Bearer, REFUSALS[0]),
    ] {
        let registry = protected(scheme).await;
        let store = Store::new(Stored::Helper, &registry, "robot:one");
        let (source, live) = (store.source(&registry), registry.reference("live"));
        for _ in 0..20 {
            source.resolve(&live).await.unwrap();
        }
        assert_eq!(store.calls(), 1, "{scheme:?}");
        registry.access(|access| {
            access.refusal = refusal;
            access.rotate("robot:two");
        });
        // The helper was asked a moment ago.
        assert_eq!(
            source.resolve(&live).await.unwrap_err().class(),
            Class::Denied
        );
        assert_eq!(store.calls(), 1);
        store.rotate("robot:two");
        let before = Instant::now();
        while source.resolve(&live).await.is_err() {
            assert!(
                before.elapsed() < Duration::from_secs(60),
                "{scheme:?} {refusal:?}"
            );
            sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(store.calls(), 2, "{scheme:?} {refusal:?}");
    }
}

#[tokio::test]
async fn refused_credentials_are_sent_once_for_all_bundles_until_they_change() {
    let registry = protected(Scheme::Bearer).await;
    let store = Store::new(Stored::PasswordFile, &registry, "robot:wrong");
    let registries = store.registries(&registry);
    let bundles = repositories(&registry, &registries, 40);
    for _ in 0..3 {
        let all = bundles
            .iter()
            .map(|(source, reference)| source.resolve(reference));
        for resolved in join_all(all).await {
            assert_eq!(resolved.unwrap_err().class(), Class::Denied);
        }
    }
    assert_eq!(registry.asked("/token").len(), 1);
    store.rotate("robot:one");
    let all = bundles
        .iter()
        .map(|(source, reference)| source.resolve(reference));
    for resolved in join_all(all).await {
        assert_eq!(resolved.unwrap_err().class(), Class::NotFound);
    }
}

/// A password that the registry itself refuses is not sent with every poll: accounts get locked.
#[tokio::test]
async fn a_password_that_never_worked_is_not_sent_again_for_some_seconds() {
    let registry = protected(Scheme::Basic).await;
    let store = Store::new(Stored::DockerConfig, &registry, "robot:wrong");
    let (source, live) = (store.source(&registry), registry.reference("live"));
    for _ in 0..10 {
        assert_eq!(
            source.resolve(&live).await.unwrap_err().class(),
            Class::Denied
        );
    }
    let sent = |registry: &FaultyRegistry| {
        let asked = registry.asked("manifests/live");
        asked
            .iter()
            .filter(|asked| asked.headers.contains_key("authorization"))
            .count()
    };
    assert_eq!(sent(&registry), 1);
    store.rotate("robot:one");
    source.resolve(&live).await.unwrap();
    assert_eq!(sent(&registry), 2);
}

/// Some registries answer 401 or 403 for one thing, such as a missing signature, that they hide.
#[tokio::test]
async fn a_refusal_of_one_thing_costs_the_others_nothing() {
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let registry = protected(scheme).await;
        let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
        let (source, live) = (store.source(&registry), registry.reference("live"));
        source.resolve(&live).await.unwrap();
        for status in [401, 403] {
            registry.fail(
                "manifests/hidden",
                usize::MAX,
                Fault::Status(status, vec![]),
            );
            for _ in 0..5 {
                let hidden = registry.reference("hidden");
                let error = source.resolve(&hidden).await.unwrap_err();
                assert_eq!(error.class(), Class::Denied, "{scheme:?}: {error}");
                source.resolve(&live).await.unwrap();
            }
            registry.heal();
        }
        assert!(registry.asked("/token").len() <= 2, "{scheme:?}");
    }
}

#[tokio::test]
async fn a_helper_that_hangs_fails_and_works_again_is_told_and_then_used() {
    let registry = protected(Scheme::Basic).await;
    let store = Store::new(Stored::Helper, &registry, "robot:one");
    let (source, live) = (store.source(&registry), registry.reference("live"));
    let mut errors = Vec::new();
    for script in ["echo locked >&2; sleep 1000", "echo no network; exit 1"] {
        store.helper(script);
        // A failure is kept for some seconds.
        let before = Instant::now();
        loop {
            let error = source.resolve(&live).await.unwrap_err();
            assert_eq!(error.class(), Class::Transient, "{error}");
            let error = error.to_string();
            if errors.last() != Some(&error) {
                errors.push(error);
                break;
            }
            assert!(before.elapsed() < Duration::from_secs(60));
        }
    }
    let [hangs, fails] = errors.as_slice() else {
        panic!("{errors:?}")
    };
    let helper = "docker-credential-test get: ";
    assert!(
        hangs.contains(&format!(
            "{helper}no answer within 3s; killed (stderr: locked)"
        )),
        "{hangs}"
    );
    assert!(fails.contains(&format!("{helper}no network")), "{fails}");
    store.helper("cat \"${0%/*}/answer\"");
    let before = Instant::now();
    while source.resolve(&live).await.is_err() {
        assert!(before.elapsed() < Duration::from_secs(60));
    }
    // Without the password nothing was sent: neither anonymously nor otherwise.
    let refused = registry
        .asked("manifests/live")
        .iter()
        .filter(|asked| asked.headers.contains_key("authorization"))
        .count();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn a_registry_that_the_configured_file_does_not_list_is_no_anonymous_access() {
    let registry = protected(Scheme::Bearer).await;
    let store = Store::new(Stored::DockerConfig, &registry, "robot:one");
    store.write(
        "config.json",
        r#"{"auths": {"other.example": {"auth": "YTpi"}}}"#,
    );
    let error = store
        .source(&registry)
        .resolve(&registry.reference("live"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.class(), error.label()),
        (Class::Denied, "credentials"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("config.json; log in with `docker login"),
        "{error}"
    );
    assert_eq!(registry.asked("/token").len(), 0);
}

#[tokio::test]
async fn an_identity_token_goes_to_a_server_without_post_as_the_password_of_a_get() {
    for (post, methods) in [
        (404, &["POST", "GET"][..]),
        (405, &["POST", "GET"]),
        (200, &["POST"]),
    ] {
        let registry = protected(Scheme::Bearer).await;
        registry.access(|access| {
            access.post = post;
            access.password = "0000:1dentity".to_owned();
        });
        let store = Store::new(Stored::DockerConfig, &registry, "robot:one");
        let entry = json!({ "auth": STANDARD.encode("0000:"), "identitytoken": "1dentity" });
        let config = json!({ "auths": { &store.host: entry } });
        store.write("config.json", &config.to_string());
        store
            .source(&registry)
            .resolve(&registry.reference("live"))
            .await
            .unwrap();
        let asked = registry.asked("/token");
        let asked: Vec<_> = asked.iter().map(|asked| asked.method.as_str()).collect();
        assert_eq!(asked, methods, "{post}");
    }
}

/// As crane and oras follow them; to no other server.
#[tokio::test]
async fn redirects_of_the_token_server_are_followed_within_it() {
    let registry = protected(Scheme::Bearer).await;
    let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
    let live = registry.reference("live");
    let redirect = |to: String| Fault::Status(307, vec![("location", to)]);
    let scope = "service=x&scope=repository:acme/authz:pull";
    let here = format!("/token?{scope}");
    registry.fail("/token", 2, redirect(here.clone()));
    store.source(&registry).resolve(&live).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 3);

    let elsewhere = FaultyRegistry::start().await;
    for to in [
        format!("http://{}{here}", elsewhere.address),
        "http://169.254.169.254/token".to_owned(),
        String::new(),
        "ftp://x/".to_owned(),
    ] {
        registry.fail("/token", usize::MAX, redirect(to.clone()));
        let error = store.source(&registry).resolve(&live).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{to}: {error}");
        registry.heal();
    }
    assert!(elsewhere.asked("").is_empty());
    registry.fail("/token", usize::MAX, redirect(here));
    let error = store.source(&registry).resolve(&live).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
}

#[tokio::test]
async fn a_failure_of_the_token_server_has_its_class_and_is_never_an_anonymous_request() {
    for (status, headers, class) in [
        (503, vec![], Class::Transient),
        (500, vec![], Class::Transient),
        (404, vec![], Class::Transient),
        (
            429,
            vec![("retry-after", "120".to_owned())],
            Class::RateLimited {
                retry_after: Some(Duration::from_secs(120)),
            },
        ),
        (401, vec![], Class::Denied),
        (403, vec![], Class::Denied),
    ] {
        let registry = protected(Scheme::Bearer).await;
        let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
        let (source, live) = (store.source(&registry), registry.reference("live"));
        registry.fail("/token", usize::MAX, Fault::Status(status, headers));
        let error = source.resolve(&live).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}: {error}");
        registry.heal();
        if class == Class::Transient {
            source.resolve(&live).await.unwrap();
        }
    }
    // Neither is an answer without a token.
    for body in [r#"{"token": ""}"#, "{}", "<html>"] {
        let registry = protected(Scheme::Bearer).await;
        let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
        registry.fail(
            "/token",
            usize::MAX,
            Fault::Replace(Bytes::from_static(body.as_bytes())),
        );
        let error = store
            .source(&registry)
            .resolve(&registry.reference("live"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.class(), error.label()),
            (Class::Transient, "token"),
            "{body}: {error}"
        );
    }
}

/// Whatever the server says about their lifetime.
#[tokio::test]
async fn tokens_that_live_for_seconds_never_fail_a_request() {
    for (expires_in, lifetime) in [
        (Some(json!(2)), 2000),
        (Some(json!("2")), 2000),
        (Some(json!(1.5)), 1500),
        // These are valid for a shorter time than they say.
        (None, 700),
        (Some(json!(0)), 700),
        (Some(json!(-5)), 700),
        (Some(json!("3600")), 700),
    ] {
        let registry = protected(Scheme::Bearer).await;
        let case = format!("{expires_in:?}");
        registry.access(|access| {
            access.expires_in = expires_in;
            access.lifetime = Duration::from_millis(lifetime);
        });
        let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
        let (source, live) = (store.source(&registry), registry.reference("live"));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            source.resolve(&live).await.expect(&case);
            sleep(Duration::from_millis(100)).await;
        }
        let tokens = registry.asked("/token").len();
        assert!((2..15).contains(&tokens), "{case}: {tokens}");
    }
}

#[tokio::test]
async fn no_request_waits_for_the_renewal_of_a_token_that_is_still_valid() {
    let registry = protected(Scheme::Bearer).await;
    registry.access(|access| {
        access.expires_in = Some(json!(20));
        access.lifetime = Duration::from_secs(3600);
    });
    let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
    let (source, live) = (store.source(&registry), registry.reference("live"));
    source.resolve(&live).await.unwrap();
    registry.fail("/token", usize::MAX, Fault::Stall);
    // The time between two requests tells that the token may have expired at the next one.
    sleep(Duration::from_secs(9)).await;
    source.resolve(&live).await.unwrap();
    eventually("the token is being renewed", || {
        registry.asked("/token").len() == 2
    })
    .await;
    source.resolve(&live).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 2);
    let refused = registry
        .asked("HEAD ")
        .iter()
        .filter(|asked| !asked.headers.contains_key("authorization"))
        .count();
    assert_eq!(refused, 1, "only the first request is sent without a token");
}

#[tokio::test]
async fn bundles_of_one_repository_share_a_token() {
    let registry = protected(Scheme::Bearer).await;
    let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
    let (registries, live) = (store.registries(&registry), registry.reference("live"));
    let bundles: Vec<_> = (0..50)
        .map(|_| registries.source(live.repository()).unwrap())
        .collect();
    for resolved in join_all(bundles.iter().map(|source| source.resolve(&live))).await {
        resolved.unwrap();
    }
    assert_eq!(registry.asked("/token").len(), 1);
}

/// Waits until the gateway serves a bundle, or only checks that it still does.
async fn serves(gate: &TestGateway<InProcess>, text: &str) {
    let start = Instant::now();
    loop {
        let reply = gate.get("", 0).await;
        assert_eq!(reply.status(), 200);
        if reply.bytes().await.unwrap() == bundle(text) {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{text}: {:?}",
            gate.last_failure()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// What happens to credentials in a year, in a minute.
#[tokio::test]
async fn a_bundle_is_served_without_a_gap_and_updated_whatever_happens_to_credentials() {
    let registry = protected(Scheme::Bearer).await;
    registry.put_artifact("live", &bundle("first"));
    registry.access(|access| {
        access.expires_in = Some(json!(1));
        access.lifetime = Duration::from_secs(1);
    });
    let store = Store::new(Stored::Helper, &registry, "robot:one");
    let setup = Setup {
        credentials: Some(store.credentials()),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    eventually("the first version is served", || gate.state() == "serving").await;
    // The token server is down for some of the tokens' lifetimes.
    registry.fail("/token", usize::MAX, Fault::Status(503, vec![]));
    sleep(Duration::from_secs(3)).await;
    serves(&gate, "first").await;
    registry.heal();
    registry.put_artifact("live", &bundle("after 503"));
    serves(&gate, "after 503").await;
    // The password is rotated, first at the registry; in between the helper hangs or fails.
    let works = "cat \"${0%/*}/answer\"";
    for (number, (refusal, script)) in [
        (REFUSALS[1], works),
        (REFUSALS[3], "sleep 1000"),
        (REFUSALS[0], "echo locked; exit 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let (password, text) = (
            format!("robot:{number}"),
            format!("after rotation {number}"),
        );
        store.helper(script);
        registry.access(|access| {
            access.refusal = refusal;
            access.rotate(&password);
        });
        registry.put_artifact("live", &bundle(&text));
        let old = gate.get("", 0).await.bytes().await.unwrap();
        sleep(Duration::from_secs(6)).await;
        let reply = gate.get("", 0).await;
        assert_eq!(
            (reply.status(), reply.bytes().await.unwrap()),
            (200.try_into().unwrap(), old)
        );
        store.helper(works);
        store.rotate(&password);
        serves(&gate, &text).await;
    }
}
