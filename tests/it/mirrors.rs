//! Registries with mirrors: which host is asked for what, what each of them can and can't change,
//! and what a client sees when one of them dies.

mod blobs;
mod commands;
mod evidence;
mod gateway;

use std::time::Duration;

use bundlegate::{
    metrics::Metrics,
    oci::{Descriptor, PinnedReference, Reference, media_type},
    registry::{
        Class, Credentials, Lookup, Options, ReadLimits, Registries, RegistryError,
        RegistryMetrics, Source,
    },
};
use futures_util::{StreamExt as _, stream};

use crate::{
    access::{Access, Scheme},
    faulty::{Asked, Fault, FaultyRegistry},
};

/// Hosts with one artifact: the mirrors have what the registry has at the start.
struct Mirrored {
    registry: FaultyRegistry,
    mirrors: Vec<FaultyRegistry>,
}

impl Mirrored {
    /// With this many mirrors of a registry that has `put`.
    async fn with(mirrors: usize, put: impl FnOnce(&FaultyRegistry)) -> Self {
        let registry = FaultyRegistry::start().await;
        put(&registry);
        let mut started = Vec::new();
        for _ in 0..mirrors {
            let mirror = FaultyRegistry::start().await;
            mirror.copy_from(&registry);
            started.push(mirror);
        }
        Self {
            registry,
            mirrors: started,
        }
    }

    async fn new() -> Self {
        Self::with(1, |registry| drop(registry.put_artifact("live", LAYER))).await
    }

    fn mirror(&self) -> &FaultyRegistry {
        &self.mirrors[0]
    }

    fn options(&self) -> Vec<(String, Options)> {
        let mirrors = self.mirrors.iter();
        mirrors
            .map(|mirror| (mirror.address.to_string(), mirror.options()))
            .collect()
    }

    fn registries(&self) -> Registries {
        self.registries_with(|_, _| {})
    }

    /// After `change` of the options of the registry and of its mirrors.
    fn registries_with(
        &self,
        change: impl FnOnce(&mut Options, &mut [(String, Options)]),
    ) -> Registries {
        let mut mirrors = self.options();
        let mut options = Options {
            mirrors: mirrors.iter().map(|(host, _)| host.clone()).collect(),
            ..self.registry.options()
        };
        change(&mut options, &mut mirrors);
        mirrors.push((self.registry.address.to_string(), options));
        registries(mirrors)
    }

    fn source(&self) -> Source {
        self.registries()
            .source(self.reference().repository())
            .unwrap()
    }

    fn reference(&self) -> Reference {
        self.registry.reference("live")
    }

    fn pinned(&self) -> PinnedReference {
        let (_, manifest) = self.registry.held("manifests/live").unwrap();
        let digest = bundlegate::oci::Digest::sha256(&manifest);
        let repository = self.registry.reference("x").repository().to_string();
        let pinned: Reference = format!("{repository}@{digest}").parse().unwrap();
        pinned.pinned().unwrap()
    }
}

fn registries(options: Vec<(String, Options)>) -> Registries {
    let limits = ReadLimits {
        manifest: 4 << 20,
        evidence: 8 << 20,
        bundle: 1 << 20,
    };
    let metrics = RegistryMetrics::new(&Metrics::new()).unwrap();
    Registries::new(options.into_iter().collect(), limits, metrics)
}

const LAYER: &[u8] = b"the bytes of a bundle, as far as a registry is concerned";

fn lines(registry: &FaultyRegistry) -> Vec<String> {
    let asked = registry.asked("").into_iter();
    asked
        .map(|asked| format!("{} {}", asked.method, asked.path))
        .collect()
}

/// The layer of the artifact, resolved and fetched.
async fn fetch(source: &Source, reference: &Reference) -> Result<Vec<u8>, RegistryError> {
    let pinned = source.resolve(reference).await?;
    let manifest = source.manifest(&pinned).await?;
    let blob = source.blob(&manifest.layers()[0]).await?.collect().await?;
    Ok(blob.in_memory().unwrap().to_vec())
}

#[tokio::test]
async fn a_mirror_is_asked_before_the_registry_and_told_whose_content_it_is() {
    let hosts = Mirrored::new().await;
    let (source, reference) = (hosts.source(), hosts.reference());
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    let digest = hosts.pinned().digest().to_string();
    let front = "/v2/acme/authz";
    let layer = bundlegate::oci::Digest::sha256(LAYER);
    // What the mirror says about a tag counts once it has delivered the manifest.
    let first = [
        format!("HEAD {front}/manifests/live"),
        format!("GET {front}/manifests/{digest}"),
        format!("GET {front}/manifests/{digest}"),
        format!("GET {front}/blobs/{layer}"),
    ];
    assert_eq!(lines(hosts.mirror()), first);
    source.resolve(&reference).await.unwrap();
    assert_eq!(lines(hosts.mirror())[4..], first[..1]);
    let named = Some(hosts.registry.address.to_string());
    let all = hosts.mirror().asked("");
    assert!(all.iter().all(|asked| asked.namespace == named), "{all:?}");
    assert_eq!(lines(&hosts.registry), [""; 0]);
}

/// Both names of one registry in references, as containerd names it to its mirrors.
#[tokio::test]
async fn the_mirrors_of_docker_hub_are_asked_for_docker_io_by_each_of_its_names() {
    let mirror = FaultyRegistry::start().await;
    mirror.put_artifact("live", LAYER);
    let hub = Options {
        mirrors: vec![mirror.address.to_string()],
        ..Options::default()
    };
    let options = [
        ("docker.io".to_owned(), hub),
        (mirror.address.to_string(), mirror.options()),
    ];
    let registries = registries(options.into());
    for (number, host) in ["docker.io", "index.docker.io", "registry-1.docker.io"]
        .iter()
        .enumerate()
    {
        let reference: Reference = format!("{host}/acme/authz:live").parse().unwrap();
        let source = registries.source(reference.repository()).unwrap();
        assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER, "{host}");
        let asked = mirror.asked("HEAD /v2/acme/authz/manifests/live");
        assert_eq!(asked.len(), number + 1);
        assert_eq!(
            asked[number].namespace.as_deref(),
            Some("docker.io"),
            "{host}"
        );
    }
}

/// Whatever a mirror does, and with whatever request, the result is the registry's.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_mirror_leads_to_the_next_host() {
    let faults = || {
        let status = |status| (format!("{status}"), Fault::Status(status, vec![]));
        let mut faults: Vec<_> = [
            400, 401, 403, 404, 405, 410, 421, 429, 451, 500, 501, 502, 503,
        ]
        .map(status)
        .into();
        let elsewhere = vec![("location", "http://127.0.0.1:1/".to_owned())];
        faults.extend([
            (
                "a login page".to_owned(),
                Fault::Replace("<html>Welcome</html>".into()),
            ),
            ("nothing".to_owned(), Fault::Replace("".into())),
            (
                "other bytes of this length".to_owned(),
                Fault::Replace(vec![b'{'; LAYER.len()].into()),
            ),
            ("endless".to_owned(), Fault::Endless),
            ("cut short".to_owned(), Fault::Truncate(7)),
            ("silence".to_owned(), Fault::Stall),
            ("silence within".to_owned(), Fault::Halt(7)),
            (
                "no digest".to_owned(),
                Fault::Without("docker-content-digest"),
            ),
            ("no answer".to_owned(), Fault::Unanswered),
            ("a dead end".to_owned(), Fault::Status(307, elsewhere)),
            (
                "a strange type".to_owned(),
                Fault::With("content-type", "text/html".to_owned()),
            ),
            (
                "another manifest".to_owned(),
                Fault::With(
                    "docker-content-digest",
                    format!("sha256:{}", "0".repeat(64)),
                ),
            ),
        ]);
        faults
    };
    let parts = [
        "HEAD ",
        "/manifests/live",
        "/manifests/sha256:",
        "/blobs/",
        "/v2/",
    ];
    let rows = parts.map(|part| faults().into_iter().map(move |fault| (part, fault)));
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    let count = rows.len();
    let checked = stream::iter(rows).map(|(part, (what, fault))| async move {
        let hosts = Mirrored::new().await;
        hosts.mirror().fail(part, usize::MAX, fault);
        let (source, reference) = (hosts.source(), hosts.reference());
        let what = format!("{part}: {what}");
        assert_eq!(
            fetch(&source, &reference).await.expect(&what),
            LAYER,
            "{what}"
        );
        let looked_up = source
            .look_up(&reference, Lookup::Manifest)
            .await
            .expect(&what);
        assert_eq!(looked_up.pinned, hosts.pinned(), "{what}");
    });
    assert_eq!(checked.buffer_unordered(16).count().await, count);
}

#[tokio::test]
async fn only_the_registry_itself_can_say_that_a_tag_is_missing() {
    let hosts = Mirrored::with(2, |_| {}).await;
    let (source, reference) = (hosts.source(), hosts.reference());
    let class = async || source.resolve(&reference).await.unwrap_err().class();
    assert_eq!(class().await, Class::NotFound);
    // It is asked last, and decides.
    hosts.registry.put_artifact("live", LAYER);
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    hosts.registry.remove("manifests/live");
    for (status, expected) in [(500, Class::Transient), (401, Class::Denied)] {
        hosts
            .registry
            .fail("/manifests/", usize::MAX, Fault::Status(status, vec![]));
        assert_eq!(class().await, expected, "{status}");
        hosts.registry.heal();
    }
    let limited = Fault::Status(429, vec![("retry-after", "7".to_owned())]);
    hosts.registry.fail("/manifests/", 1, limited);
    let retry_after = |class| match class {
        Class::RateLimited { retry_after } => retry_after,
        other => panic!("{other:?}"),
    };
    assert_eq!(retry_after(class().await), Some(Duration::from_secs(7)));
    // It is not asked again meanwhile, and this is still the reason.
    let asked = hosts.registry.asked("").len();
    assert!(retry_after(class().await) <= Some(Duration::from_secs(7)));
    assert_eq!(hosts.registry.asked("").len(), asked);
    // The mirrors are.
    hosts.mirrors[1].put_artifact("live", LAYER);
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
}

#[tokio::test]
async fn a_dead_registry_with_a_live_mirror_is_transient_where_the_mirror_lacks_something() {
    let hosts = Mirrored::new().await;
    let (source, reference) = (hosts.source(), hosts.reference());
    let Mirrored { registry, mirrors } = hosts;
    let missing = registry.reference("other");
    drop(registry);
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    let error = source.resolve(&missing).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    let asked = mirrors[0].asked("/manifests/other");
    assert!(!asked.is_empty());
}

#[tokio::test]
async fn tags_are_listed_by_the_registry_and_by_a_mirror_only_if_it_fails() {
    let hosts = Mirrored::new().await;
    let list = |tags: &str| format!(r#"{{"name": "acme/authz", "tags": {tags}}}"#);
    let path = "tags/list?n=1000";
    hosts
        .registry
        .put(path, "application/json", list(r#"["live", "v2"]"#));
    hosts
        .mirror()
        .put(path, "application/json", list(r#"["live"]"#));
    let (registries, reference) = (hosts.registries(), hosts.reference());
    let tags = async || registries.tags(reference.repository()).await;
    assert_eq!(tags().await.unwrap(), ["live", "v2"]);
    assert_eq!(hosts.mirror().asked("").len(), 0);
    hosts
        .registry
        .fail("/tags/", usize::MAX, Fault::Status(500, vec![]));
    assert_eq!(tags().await.unwrap(), ["live"]);
    let named = Some(hosts.registry.address.to_string());
    assert_eq!(hosts.mirror().asked("/tags/")[0].namespace, named);
    hosts.mirror().remove(path);
    assert_eq!(tags().await.unwrap_err().class(), Class::Transient);
    hosts.registry.heal();
    hosts.registry.remove(path);
    assert_eq!(tags().await.unwrap_err().class(), Class::NotFound);
}

fn typed(username: &str) -> Option<Credentials> {
    Some(Credentials::Typed {
        username: username.to_owned(),
        password: format!("{username}'s password"),
    })
}

fn secrets(asked: &[Asked]) -> Vec<String> {
    let header = |asked: &Asked| {
        let value = asked.headers.get("authorization")?;
        Some(value.to_str().unwrap().to_owned())
    };
    let mut secrets: Vec<_> = asked.iter().filter_map(header).collect();
    secrets.sort();
    secrets.dedup();
    secrets
}

/// Of both kinds of challenges, and where one host redirects to the other.
#[tokio::test]
async fn each_host_gets_its_own_credentials_and_never_those_of_another() {
    let basic = |user: &str| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{user}'s password"))
        )
    };
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let hosts = Mirrored::new().await;
        hosts
            .registry
            .protect(Access::new(scheme, "origin:origin's password"));
        hosts
            .mirror()
            .protect(Access::new(scheme, "mirror:mirror's password"));
        let registries = hosts.registries_with(|origin, mirrors| {
            origin.credentials = typed("origin");
            mirrors[0].1.credentials = typed("mirror");
        });
        let reference = hosts.reference();
        let source = registries.source(reference.repository()).unwrap();
        assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
        assert_eq!(lines(&hosts.registry), [""; 0]);
        // The mirror has lost the blob, and sends the client to the registry for the manifest.
        let layer = bundlegate::oci::Digest::sha256(LAYER);
        hosts.mirror().remove(&format!("blobs/{layer}"));
        let origin = format!(
            "http://{}/v2/acme/authz/manifests/live",
            hosts.registry.address
        );
        let redirect = Fault::Status(307, vec![("location", origin)]);
        hosts.mirror().fail("/manifests/live", usize::MAX, redirect);
        assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
        let of = |registry: &FaultyRegistry| {
            let mut all = secrets(&registry.asked(""));
            all.retain(|value| value.starts_with("Basic "));
            all
        };
        assert_eq!(of(&hosts.registry), [basic("origin")], "{scheme:?}");
        assert_eq!(of(hosts.mirror()), [basic("mirror")], "{scheme:?}");
        // Nor the tokens.
        let tokens = secrets(&hosts.mirror().asked("/v2/"));
        let theirs = secrets(&hosts.registry.asked("/token"));
        assert!(tokens.iter().all(|token| !theirs.contains(token)));
    }
}

#[tokio::test]
async fn the_credentials_of_a_registry_are_not_sent_to_a_mirror_without_its_own() {
    let hosts = Mirrored::new().await;
    for host in [&hosts.registry, hosts.mirror()] {
        host.protect(Access::new(Scheme::Basic, "origin:origin's password"));
    }
    let registries = hosts.registries_with(|origin, _| origin.credentials = typed("origin"));
    let reference = hosts.reference();
    let source = registries.source(reference.repository()).unwrap();
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    assert_eq!(secrets(&hosts.mirror().asked("")), [""; 0]);
    assert!(!hosts.mirror().asked("").is_empty());
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_costs_one_request_its_timeout_and_is_tried_again() {
    let hosts = Mirrored::new().await;
    hosts.mirror().fail("", usize::MAX, Fault::Stall);
    let (registries, reference) = (hosts.registries(), hosts.reference());
    // Every repository and bundle of the registry shares what is known.
    for number in 0..20 {
        let source = registries.source(reference.repository()).unwrap();
        assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER, "{number}");
    }
    assert_eq!(hosts.mirror().asked("").len(), 1);
    hosts.mirror().heal();
    let source = registries.source(reference.repository()).unwrap();
    crate::shared::poll_until("the mirror is asked again", async || {
        fetch(&source, &reference).await.unwrap();
        (hosts.mirror().asked("").len() > 1).then_some(())
    })
    .await;
    let before = hosts.registry.asked("").len();
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    assert_eq!(hosts.registry.asked("").len(), before);
}

/// Those that wait for the limits of a mirror ask the next host once it does not answer.
#[tokio::test]
async fn requests_that_wait_for_a_mirror_are_not_sent_to_it_after_it_failed() {
    let hosts = Mirrored::new().await;
    hosts.mirror().fail("", usize::MAX, Fault::Stall);
    let registries = hosts.registries_with(|_, mirrors| mirrors[0].1.max_concurrent = 1);
    let reference = hosts.reference();
    let source = registries.source(reference.repository()).unwrap();
    let requests = (0..8).map(|_| source.resolve(&reference));
    let resolved = futures_util::future::try_join_all(requests).await.unwrap();
    assert_eq!(resolved.len(), 8);
    assert_eq!(hosts.mirror().asked("").len(), 1);
}

/// If nothing else answers, a mirror is asked although it has failed a moment ago.
#[tokio::test]
async fn a_mirror_that_failed_a_moment_ago_is_the_last_resort() {
    let hosts = Mirrored::new().await;
    let (source, reference) = (hosts.source(), hosts.reference());
    hosts.mirror().fail("", 1, Fault::Unanswered);
    fetch(&source, &reference).await.unwrap();
    assert_eq!(hosts.mirror().asked("").len(), 1);
    let Mirrored { registry, mirrors } = hosts;
    drop(registry);
    for _ in 0..3 {
        assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    }
    assert!(mirrors[0].asked("").len() > 9);
}

/// A mirror that lacks HEAD or the referrers API says nothing about the registry.
#[tokio::test]
async fn what_a_mirror_lacks_is_remembered_of_the_mirror_alone() {
    let hosts = Mirrored::new().await;
    let (source, reference) = (hosts.source(), hosts.reference());
    hosts
        .mirror()
        .fail("HEAD ", usize::MAX, Fault::Status(405, vec![]));
    for _ in 0..3 {
        source.resolve(&reference).await.unwrap();
    }
    assert_eq!(hosts.mirror().asked("HEAD ").len(), 1);
    assert_eq!(
        hosts
            .mirror()
            .asked("GET /v2/acme/authz/manifests/live")
            .len(),
        3
    );
    hosts.mirror().remove("manifests/live");
    source.resolve(&reference).await.unwrap();
    assert_eq!(
        lines(&hosts.registry),
        ["HEAD /v2/acme/authz/manifests/live"]
    );
}

#[tokio::test]
async fn the_mirrors_of_a_mirror_are_not_asked() {
    let hosts = Mirrored::with(2, |registry| drop(registry.put_artifact("live", LAYER))).await;
    hosts.mirror().remove("manifests/live");
    let second = hosts.mirrors[1].address.to_string();
    let registries = hosts.registries_with(|origin, mirrors| {
        origin.mirrors.truncate(1);
        mirrors[0].1.mirrors.push(second);
    });
    let reference = hosts.reference();
    let source = registries.source(reference.repository()).unwrap();
    assert_eq!(fetch(&source, &reference).await.unwrap(), LAYER);
    assert_eq!(lines(&hosts.mirrors[1]), [""; 0]);
    // Under its own name it has them, and is not told whose content it is.
    let own = hosts.mirror().reference("live");
    let source = registries.source(own.repository()).unwrap();
    assert_eq!(fetch(&source, &own).await.unwrap(), LAYER);
    assert!(!lines(&hosts.mirrors[1]).is_empty());
}

/// Adding a mirror must not lose the cache, which is kept by repository and user.
#[tokio::test]
async fn the_identity_of_a_repository_does_not_depend_on_its_mirrors() {
    let hosts = Mirrored::new().await;
    let alone = hosts.registry.source();
    assert_eq!(hosts.source().identity(), alone.identity());
}

/// A write depends on what the registry has now.
#[tokio::test]
async fn writes_and_the_reads_that_they_depend_on_never_go_to_a_mirror() {
    use bundlegate::sign::{KeyPair, LegacySignature, SigningRequest};
    let hosts = Mirrored::new().await;
    let (pinned, registries) = (hosts.pinned(), hosts.registries());
    let source = registries.source(pinned.repository()).unwrap();
    let destination = registries.destination(pinned.repository()).unwrap();
    let subject = source.manifest(&pinned).await.unwrap().descriptor();
    let asked = hosts.mirror().asked("").len();
    let claim = SigningRequest {
        subject,
        annotations: [].into(),
    };
    for signatures in 1..=2 {
        let key = KeyPair::generate().unwrap();
        let signature = LegacySignature::sign(&key, &claim, "r.example/authz").unwrap();
        signature
            .append(&pinned, &source, &destination)
            .await
            .unwrap();
        let tag = format!("manifests/sha256-{}.sig", pinned.digest().hex());
        let (_, manifest) = hosts.registry.held(&tag).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), signatures);
        // The mirror fetched the tag too early.
        if signatures == 1 {
            hosts.mirror().copy_from(&hosts.registry);
            let (kind, _) = hosts.registry.held(&tag).unwrap();
            hosts.mirror().put(&tag, &kind, "{}");
        }
    }
    // While the registry does not say which signatures it has, none is written.
    let fails = Fault::Status(500, vec![]);
    hosts.registry.fail("GET ", usize::MAX, fails);
    let key = KeyPair::generate().unwrap();
    let signature = LegacySignature::sign(&key, &claim, "r.example/authz").unwrap();
    let appended = signature.append(&pinned, &source, &destination).await;
    assert!(appended.is_err());
    assert_eq!(hosts.mirror().asked("").len(), asked);
}

fn listed(entries: &[&str]) -> serde_json::Value {
    let entry = |text: &&str| Descriptor::of(media_type::OCI_MANIFEST, text.as_bytes());
    serde_json::json!(entries.iter().map(entry).collect::<Vec<_>>())
}

#[tokio::test]
async fn referrers_are_those_of_the_registry_and_of_a_mirror_only_where_it_does_not_list_them() {
    let hosts = Mirrored::new().await;
    let (source, pinned) = (hosts.source(), hosts.pinned());
    let list = |registry: &FaultyRegistry, entries: &[&str]| {
        registry.list_referrers(pinned.digest(), &listed(entries))
    };
    list(&hosts.registry, &["one", "two"]);
    list(hosts.mirror(), &["foreign", "one"]);
    let found = source.referrers(&pinned, 100).await.unwrap();
    assert_eq!(serde_json::json!(found.entries), listed(&["one", "two"]));
    assert_eq!(hosts.mirror().asked("/referrers/").len(), 0);
    hosts
        .registry
        .fail("", usize::MAX, Fault::Status(500, vec![]));
    let found = source.referrers(&pinned, 100).await.unwrap();
    assert_eq!(
        serde_json::json!(found.entries),
        listed(&["foreign", "one"])
    );
    assert!(found.failure.is_some());
}

/// Some registries answer 401 or 403 for lists that are missing.
#[tokio::test]
async fn a_refused_list_of_referrers_counts_as_missing_beside_that_of_a_mirror() {
    let hosts = Mirrored::new().await;
    let (source, pinned) = (hosts.source(), hosts.pinned());
    let mirror = hosts.mirror();
    mirror.list_referrers(pinned.digest(), &listed(&["one"]));
    for part in ["/referrers/", "/manifests/sha256-"] {
        hosts
            .registry
            .fail(part, usize::MAX, Fault::Status(403, vec![]));
    }
    let found = source.referrers(&pinned, 100).await.unwrap();
    assert_eq!(serde_json::json!(found.entries), listed(&["one"]));
    assert!(found.failure.is_none());
}
