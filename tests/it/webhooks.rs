//! `webhooks`: notifications of registries, and the checks that they cause.

use std::{fs, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Digest, TagOrder, TagRule},
    webhooks::{Authentication, Kind, Listener, Pointer, Secret, SecretPlace, Webhook},
};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, PATIENCE, Setup, TestGateway, bundle, error, eventually, header},
    shared::poll_until,
    signing::Signer,
};

type Gate = TestGateway<InProcess>;

const SECRET: &str = "open-sesame";

/// A webhook whose sender calls the registry by any name.
fn webhook(kind: Kind, authentication: Authentication, registry: &FaultyRegistry) -> Webhook {
    Webhook {
        name: "hook".to_owned(),
        kind,
        listener: Listener::Admin,
        path: "/webhooks/hook".to_owned(),
        host: Some(registry.address.to_string()),
        authentication,
    }
}

fn secrets() -> Vec<Secret> {
    ["an older one", SECRET].map(Secret::new).into()
}

fn distribution(registry: &FaultyRegistry) -> Webhook {
    webhook(
        Kind::Distribution,
        Authentication::Bearer(secrets()),
        registry,
    )
}

/// A registry with version one, and a gateway that serves it and polls once an hour.
async fn serving(hook: impl FnOnce(&FaultyRegistry) -> Webhook) -> (FaultyRegistry, Gate) {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let setup = Setup {
        webhooks: vec![hook(&registry)],
        ..Setup::default()
    };
    let gate = start(&registry, setup).await;
    gate.get("", 0).await.error_for_status().unwrap();
    (registry, gate)
}

async fn start(registry: &FaultyRegistry, mut setup: Setup) -> Gate {
    setup.rules.poll = HOUR;
    Gate::with(registry, setup).await
}

impl Gate {
    fn notifying(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let url = format!("http://{}/webhooks/hook", self.admin);
        self.http.post(url).timeout(PATIENCE).body(body)
    }

    /// Sends a notification with a bearer token.
    async fn notify(&self, body: &Value) -> Response {
        let request = self.notifying(body.to_string()).bearer_auth(SECRET);
        request.send().await.unwrap()
    }

    async fn until_served(&self, digest: &Digest, what: &str) {
        eventually(what, || self.status().manifest.as_ref() == Some(digest)).await;
    }

    fn events(&self, outcome: &str) -> u64 {
        self.count(&format!(
            r#"bundlegate_webhook_events_total{{outcome="{outcome}",webhook="hook"}}"#
        ))
    }
}

/// An event of distribution about the tag, or about a manifest without one.
fn event(tag: Option<&str>) -> Value {
    let mut event = json!({
        "action": "push", "request": { "host": "another.name" },
        "target": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "repository": "acme/authz", "digest": Digest::sha256(b"not looked at"),
        },
    });
    event["target"]["tag"] = tag.map_or(Value::Null, Into::into);
    json!({ "events": [event] })
}

fn sample(text: &str, case: &str) -> (Value, Value) {
    let sample: Value = serde_json::from_str(text).unwrap();
    let mut cases = sample["cases"].as_array().unwrap().iter();
    let found = cases.find(|one| one["name"] == case).unwrap();
    (found["headers"].clone(), found["body"].clone())
}

fn signature(body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, body.as_bytes());
    tag.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// How a sender proves who it is: a header, or a query string.
type Proof = fn(&str) -> (&'static str, String);

fn bearer(_: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {SECRET}"))
}

fn basic(_: &str) -> (&'static str, String) {
    (
        "authorization",
        format!("Basic {}", STANDARD.encode(SECRET)),
    )
}

fn hub(body: &str) -> (&'static str, String) {
    ("x-hub-signature-256", format!("sha256={}", signature(body)))
}

fn jfrog(body: &str) -> (&'static str, String) {
    ("x-jfrog-event-auth", signature(body))
}

fn query(_: &str) -> (&'static str, String) {
    ("?", format!("secret={SECRET}"))
}

fn shared(kind: &Kind) -> Authentication {
    Authentication::Shared(kind.secret_place().unwrap(), secrets())
}

/// Every sender, the sample of its notification, and its proof.
fn senders() -> Vec<(Kind, Authentication, (Value, Value), Proof)> {
    macro_rules! sample_of {
        ($file:literal, $case:literal) => {
            sample(
                include_str!(concat!("../shared/notifications/", $file, ".json")),
                $case,
            )
        };
    }
    let by_secret = |kind: Kind, sample, proof: Proof| {
        let authentication = shared(&kind);
        (kind, authentication, sample, proof)
    };
    let by_bearer = |kind, sample| {
        let proof: Proof = bearer;
        (kind, Authentication::Bearer(secrets()), sample, proof)
    };
    let pointer = Pointer::new("/image/name").unwrap();
    let token: Proof = |_| ("x-gitlab-token", SECRET.to_owned());
    let plain: Proof = |_| ("authorization", SECRET.to_owned());
    vec![
        by_bearer(Kind::Distribution, sample_of!("distribution-2", "push")),
        by_bearer(Kind::Distribution, sample_of!("distribution-3", "push")),
        (
            Kind::Zot,
            Authentication::Basic(secrets()),
            sample_of!("zot", "a tag"),
            basic,
        ),
        by_secret(Kind::Harbor, sample_of!("harbor", "default format"), plain),
        by_bearer(Kind::Harbor, sample_of!("harbor", "CloudEvents")),
        by_secret(Kind::Github, sample_of!("github", "package"), hub),
        by_secret(Kind::Github, sample_of!("github", "registry_package"), hub),
        by_secret(
            Kind::Gitlab,
            sample_of!("gitlab", "notification of its registry"),
            token,
        ),
        by_secret(Kind::DockerHub, sample_of!("docker_hub", "a tag"), query),
        by_secret(Kind::Quay, sample_of!("quay", "tags"), query),
        by_secret(Kind::Jfrog, sample_of!("jfrog", "a tag"), jfrog),
        by_bearer(Kind::Ecr, sample_of!("ecr", "a tag")),
        by_bearer(Kind::Acr, sample_of!("acr", "a tag")),
        by_secret(Kind::Generic(pointer), sample_of!("generic", "a tag"), hub),
    ]
}

fn proven(request: RequestBuilder, (name, value): (&str, String)) -> RequestBuilder {
    match name {
        "?" => request.query(&[value.split_once('=').unwrap()]),
        name => request.header(name, value),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sender_has_a_push_served_at_once_and_only_with_its_secret() {
    for (kind, authentication, (headers, body), proof) in senders() {
        let what = kind.label();
        let hook = |registry: &FaultyRegistry| webhook(kind, authentication, registry);
        let (registry, gate) = serving(hook).await;
        let (two, _) = registry.put_artifact("live", &bundle("two"));
        let asked = registry.asked("").len();
        let body = body.to_string();
        let request = || {
            let mut request = gate.notifying(body.clone());
            for (name, value) in headers.as_object().unwrap() {
                request = request.header(name, value.as_str().unwrap());
            }
            request
        };
        let query = |secret: &str| ("?", format!("secret={secret}"));
        for refused in [
            request(),
            request().bearer_auth("another"),
            request().basic_auth("robot", Some("another")),
            request().header("x-gitlab-token", "another"),
            request().header("x-jfrog-event-auth", "another"),
            proven(request(), query("another")),
            // The signature of another body.
            proven(request(), hub("{}")),
            proven(request(), jfrog("{}")),
        ] {
            let response = refused.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{what}");
            assert!(!header(&response, "www-authenticate").is_empty());
            assert_eq!(error(response).await["reason"], "unauthorized");
        }
        assert_eq!(gate.events("unauthorized"), 8);
        assert_eq!(
            registry.asked("").len(),
            asked,
            "{what}: a check was caused"
        );
        let response = proven(request(), proof(&body)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{what}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["bundles"], 1, "{what}: {answer}");
        gate.until_served(&two, what).await;
        assert!(gate.events("matched") > 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_a_hint_about_its_own_repository_and_tag() {
    let (registry, gate) = serving(distribution).await;
    registry.put_artifact("live", &bundle("two"));
    let asked = registry.asked("").len();
    let mut foreign = event(Some("live"));
    foreign["events"][0]["target"]["repository"] = json!("acme/other");
    let mut blob = event(None);
    blob["events"][0]["target"]["mediaType"] = json!("application/octet-stream");
    let mut pull = event(Some("live"));
    pull["events"][0]["action"] = json!("pull");
    for (body, outcome) in [
        (event(Some("v1")), "unmatched"),
        (foreign, "unmatched"),
        (blob, "ignored"),
        (pull, "ignored"),
    ] {
        let before = gate.events(outcome);
        let answer: Value = gate.notify(&body).await.json().await.unwrap();
        assert_eq!(answer["bundles"], 0, "{body}");
        assert_eq!(gate.events(outcome), before + 1, "{body}");
    }
    // A signature of a bundle that lacks none.
    gate.notify(&event(None)).await;
    // The next one is followed, and by one check alone.
    gate.notify(&event(Some("live"))).await;
    eventually("the push", || gate.refreshes("accepted") == 2).await;
    let heads = registry.asked("HEAD").len();
    assert!(registry.asked("").len() > asked);
    assert_eq!(heads, 1, "only the last one caused a check");
}

/// Some registries notify before their lists have the tag.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_that_follows_up_a_hint_lists_the_tags_anew() {
    let registry = FaultyRegistry::start().await;
    let (one, _) = registry.put_artifact("1.0.0", &bundle("one"));
    registry.list_tags(&["1.0.0"]);
    let mut setup = Setup {
        rule: Some(TagRule::new(TagOrder::Version("^1".parse().unwrap()), None)),
        webhooks: vec![distribution(&registry)],
        ..Setup::default()
    };
    // Lists are shared for so long.
    setup.rules.confirm_within = Duration::from_secs(120);
    let gate = start(&registry, setup).await;
    gate.until_served(&one, "the first version").await;
    let (two, _) = registry.put_artifact("1.1.0", &bundle("two"));
    gate.notify(&event(Some("1.1.0"))).await;
    eventually("the check of the hint", || gate.refreshes("unchanged") == 1).await;
    registry.list_tags(&["1.0.0", "1.1.0"]);
    gate.until_served(&two, "the tag that is listed late").await;
}

/// A thousand notifications of one push are one push.
#[tokio::test(flavor = "multi_thread")]
async fn notifications_of_one_bundle_cause_one_check_a_second() {
    let (registry, gate) = serving(distribution).await;
    let began = Instant::now();
    for _ in 0..100 {
        gate.notify(&event(Some("live"))).await;
    }
    let (two, _) = registry.put_artifact("live", &bundle("two"));
    gate.notify(&event(Some("live"))).await;
    gate.until_served(&two, "the last push").await;
    let (checks, seconds) = (registry.asked("HEAD").len(), began.elapsed().as_secs());
    let allowed = usize::try_from(seconds).unwrap() + 2;
    assert!(checks <= allowed, "{checks} checks in {seconds} seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_a_pause_is_not_asked() {
    let (registry, gate) = serving(distribution).await;
    let wait = vec![("retry-after", "600".into())];
    registry.fail("", usize::MAX, Fault::Status(429, wait));
    gate.notify(&event(Some("live"))).await;
    eventually("a refused check", || gate.refreshes("rate_limited") == 1).await;
    let asked = registry.asked("").len();
    for _ in 0..10 {
        gate.notify(&event(Some("live"))).await;
    }
    // Only real time shows that nothing is asked: more than the interval of checks.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(registry.asked("").len(), asked);
}

/// The schedule retries after 1, 2, 4 … seconds; here after more than a minute, so that only the
/// notification can be the reason.
#[tokio::test(flavor = "multi_thread")]
async fn the_arrival_of_a_signature_wakes_the_bundle_that_waits_for_it() {
    let signer = Signer::new();
    let forms: [fn(&Signer, &FaultyRegistry, &Digest); 2] = [
        |signer, registry, digest| signer.sign_legacy(registry, digest),
        |signer, registry, digest| signer.sign_bundle(registry, digest),
    ];
    let tags: [fn(&Digest) -> Option<String>; 4] = [
        |digest| Some(format!("sha256-{}.sig", digest.hex())),
        |digest| Some(format!("sha256-{}.att", digest.hex())),
        |digest| Some(format!("sha256-{}", digest.hex())),
        // A referrer, which has no tag and of which the sender does not say more.
        |_| None,
    ];
    for (index, tag) in tags.into_iter().enumerate() {
        for is_elsewhere in [false, true] {
            let registry = FaultyRegistry::start().await;
            let (digest, _) = registry.put_artifact("live", &bundle("one"));
            let setup = Setup {
                policy: signer.policy(),
                webhooks: vec![distribution(&registry)],
                ..Setup::default()
            };
            let gate = start(&registry, setup).await;
            for _ in 0..8 {
                assert_eq!(gate.refresh().await["failure"]["class"], "evidence");
            }
            let mut body = event(tag(&digest).as_deref());
            if is_elsewhere {
                // Signatures may be in another repository; the tag says for which artifact.
                body["events"][0]["target"]["repository"] = json!("acme/signatures");
            }
            forms[index % 2](&signer, &registry, &digest);
            let answer: Value = gate.notify(&body).await.json().await.unwrap();
            if tag(&digest).is_none() && is_elsewhere {
                assert_eq!(answer["bundles"], 0, "it says nothing of this bundle");
                continue;
            }
            assert_eq!(answer["bundles"], 1, "{body}");
            gate.until_served(&digest, &body.to_string()).await;
        }
    }
}

/// The failure is that of the index, which the reference names.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_the_image_below_an_index_wakes_the_bundle() {
    let (signer, registry) = (Signer::new(), FaultyRegistry::start().await);
    let (image, _) = registry.put_artifact("image", &bundle("one"));
    let index = registry.put_index("live", &[(&image, json!({}))]);
    let setup = Setup {
        policy: signer.policy(),
        webhooks: vec![distribution(&registry)],
        ..Setup::default()
    };
    let gate = start(&registry, setup).await;
    for _ in 0..8 {
        assert_eq!(gate.refresh().await["failure"]["class"], "evidence");
    }
    let about = |digest: &Digest| {
        let mut body = event(Some(&format!("sha256-{}.sig", digest.hex())));
        // Only the tag says that the signature concerns this bundle.
        body["events"][0]["target"]["repository"] = json!("acme/signatures");
        body
    };
    let other = gate.notify(&about(&Digest::sha256(b"another"))).await;
    assert_eq!(other.json::<Value>().await.unwrap()["bundles"], 0);
    signer.sign_legacy(&registry, &image);
    let answer = gate.notify(&about(&image)).await;
    assert_eq!(answer.json::<Value>().await.unwrap()["bundles"], 1);
    gate.until_served(&index, "the signed image").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_error() {
    let (registry, gate) = serving(distribution).await;
    let asked = registry.asked("").len();
    let events: Vec<_> = (0..201).map(|_| json!({ "action": "pull" })).collect();
    let send = async |body: Vec<u8>| {
        let request = gate.notifying(body).bearer_auth(SECRET);
        request.send().await.unwrap()
    };
    for (body, status, reason, message) in [
        (b"{".to_vec(), 400, "malformed", "the body is not JSON"),
        (vec![b'['; 100_000], 400, "malformed", "recursion limit"),
        (b"{}".to_vec(), 400, "malformed", "no text at /events"),
        (
            json!({ "events": events }).to_string().into(),
            400,
            "malformed",
            "more than 200 events",
        ),
        (
            vec![b' '; (1 << 20) + 1],
            413,
            "too_large",
            "exceeds the limit of 1048576 bytes",
        ),
    ] {
        let response = send(body).await;
        assert_eq!(response.status().as_u16(), status);
        let error = error(response).await;
        assert_eq!(error["reason"], reason);
        assert!(
            error["message"].as_str().unwrap().contains(message),
            "{error}"
        );
    }
    for method in ["GET", "PUT", "DELETE"] {
        let url = format!("http://{}/webhooks/hook", gate.admin);
        let request = gate.http.request(method.parse().unwrap(), url);
        let response = request.bearer_auth(SECRET).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(header(&response, "allow"), "POST");
    }
    // On the other listener there is no such webhook.
    let url = format!("{}/webhooks/hook", gate.url);
    let response = gate.http.post(url).bearer_auth(SECRET).send().await;
    assert_eq!(response.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        (gate.events("malformed"), registry.asked("").len()),
        (5, asked)
    );
    let status: Value = serde_json::from_str(&gate.admin_text("/status").await).unwrap();
    let shown = &status["webhooks"]["hook"];
    assert_eq!(
        (&shown["kind"], &shown["listener"], &shown["authentication"]),
        (&json!("distribution"), &json!("admin"), &json!("bearer"))
    );
    assert_eq!(shown["last_refusal"]["reason"], "malformed", "{shown}");
    assert!(!status.to_string().contains(SECRET));
}

/// Without a secret, a web page that is open on the machine must not cause checks.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_can_not_use_a_webhook_without_a_secret() {
    let open =
        |registry: &FaultyRegistry| webhook(Kind::Distribution, Authentication::None, registry);
    let (_registry, gate) = serving(open).await;
    let request = || gate.notifying(event(Some("live")).to_string());
    let page = request().header("origin", "http://evil.example");
    assert_eq!(
        page.send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(request().send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_listener_receives_notifications_over_both_protocols() {
    let on_data = |registry: &FaultyRegistry| Webhook {
        listener: Listener::Data,
        authentication: Authentication::Shared(
            SecretPlace::Hmac(&["x-hub-signature-256"]),
            secrets(),
        ),
        ..distribution(registry)
    };
    let (registry, gate) = serving(on_data).await;
    let builder = reqwest::Client::builder().no_proxy();
    let http_2 = builder.http2_prior_knowledge().build().unwrap();
    let url = format!("{}/webhooks/hook", gate.url);
    for (index, client) in [&gate.http, &http_2].into_iter().enumerate() {
        let (digest, _) = registry.put_artifact("live", &bundle(&index.to_string()));
        // More than the window of a stream.
        let mut body = event(Some("live"));
        body["padding"] = "x".repeat(200_000).into();
        let body = body.to_string();
        let (name, value) = hub(&body);
        let request = client.post(&url).header(name, value).body(body);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
        gate.until_served(&digest, "the push").await;
        let large = vec![b' '; 2 << 20];
        let request = client.post(&url).header("x-hub-signature-256", "sha256=00");
        // The connection may break before the body is sent.
        if let Ok(response) = request.body(large).send().await {
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        }
    }
    let response = gate.http.get(&url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND, "it is no bundle");
    let url = format!("http://{}/webhooks/hook", gate.admin);
    let response = gate.http.post(url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_and_their_secrets_change_while_serving() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("token"), "one\n").unwrap();
    let config = json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": { "authz": {
            "reference": registry.reference("live").to_string(), "trust": "dev", "poll": "1h",
        } },
        "webhooks": [{
            "name": "hook", "kind": "distribution", "bearer_token_file": "token",
            "host": registry.address.to_string(),
        }],
    });
    let write = |folder: &TempDir, config: &Value| {
        fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    };
    write(&folder, &config);
    let gate = TestGateway::run(folder).await;
    let status = async |token: &str| {
        let url = format!("http://{}/webhooks/hook", gate.admin);
        let body = event(Some("live")).to_string();
        let request = gate.http.post(url).bearer_auth(token).body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let until = async |token: &str, wanted: u16| {
        let what = format!("{token}: {wanted}");
        poll_until(&what, async || {
            (status(token).await == wanted).then_some(())
        })
        .await;
    };
    assert_eq!((status("one").await, status("two").await), (200, 401));
    fs::write(gate.runner.folder.path().join("token"), "two\n").unwrap();
    until("two", 200).await;
    assert_eq!(status("one").await, 401);
    let series = r#"bundlegate_webhook_events_total{outcome="matched",webhook="hook"}"#;
    assert!(gate.metric(series).await > 0.0);
    let mut without = config.clone();
    without["webhooks"] = json!([]);
    write(&gate.runner.folder, &without);
    // A POST to another path of the admin listener.
    until("two", 405).await;
    assert!(!gate.admin_text("/metrics").await.contains(series));
}
