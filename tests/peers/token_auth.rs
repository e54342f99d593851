//! Token authentication at real registries, which verify every token: renewal, refusal, rotation
//! and scopes, with a token server that tells what it was asked for.

use std::fs;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    pushes::build,
    support::{
        Artifact, Author, Front, GatewayConfig, Issued, KeyPair, Kind, PASSWORD, Quirk,
        RealTokenServer, Registry, TOKEN_READER, TestGateway, TokenServer, USER, poll_until,
    },
};

const KINDS: [Kind; 2] = [Kind::Debian, Kind::Distribution];
const PULL: &str = "repository:acme/authz:pull";

/// A registry that wants tokens, and a signed artifact in it.
struct Signed {
    registry: Registry,
    key: KeyPair,
    repository: &'static str,
    first: String,
}

impl Signed {
    async fn start(kind: Kind, auth: Value, repository: &'static str) -> Self {
        let mut signed = Self {
            registry: Registry::with_tokens(kind, auth).await,
            key: KeyPair::generate().await,
            repository,
            first: String::new(),
        };
        signed.first = signed.push("first").await;
        signed
    }

    /// Pushes and signs another version, under the tag that is served.
    async fn push(&self, answer: &str) -> String {
        let (artifact, name) = (Artifact::answering(answer).await, self.repository);
        let live = format!("{name}:live");
        let digest = self.registry.push(&live, &artifact.file()).await;
        let pinned = format!("{name}@{digest}");
        self.key.sign(&self.registry, &pinned).await;
        digest
    }

    fn config(&self) -> GatewayConfig {
        let live = format!("{}:live", self.repository);
        GatewayConfig::trusting(&self.key).bundle("authz", &self.registry, &live)
    }

    /// With the credentials in a file of docker's format.
    fn docker_config(&self, author: &Author, entry: &Value) -> GatewayConfig {
        let auths = json!({ "auths": { &self.registry.host: entry } });
        author.write(".docker/config.json", &auths.to_string());
        let mut config = self.config();
        config.0["registries"][&self.registry.host]["credentials"] =
            json!({ "docker_config": author.path(".docker/config.json") });
        config
    }

    /// The requests of bundlegate that the registry refused so far.
    fn refused(&self) -> usize {
        let log = self.registry.log();
        let ours = log.lines().filter(|line| line.contains("bundlegate/"));
        ours.filter(|line| line.contains("status\":401") || line.contains("\" 401 "))
            .count()
    }
}

async fn serves(gate: &TestGateway, digest: &str) {
    let serves = |status: &Value| status["manifest"] == digest && status["last_failure"].is_null();
    gate.status_when("authz", digest, serves).await;
}

async fn fails(gate: &TestGateway, class: &str) {
    let fails = |status: &Value| status["last_failure"]["class"] == class;
    let status = gate.status_when("authz", class, fails).await;
    assert_eq!(status["state"], "serving", "{status}");
}

/// Waits for so many more tokens, during all of which the bundle is served without a failure.
async fn served_while(tokens: &TokenServer, gate: &TestGateway, more: usize) -> Vec<Issued> {
    tokens.take();
    poll_until("more tokens", async || {
        let status = gate.bundle_status("authz").await;
        assert_eq!(
            (&status["state"], &status["last_failure"]),
            (&json!("serving"), &Value::Null)
        );
        (tokens.issued().len() >= more).then_some(())
    })
    .await;
    tokens.take()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_five_seconds_are_renewed_before_the_registry_refuses_them() {
    for kind in KINDS {
        let tokens = TokenServer::start(None).await;
        tokens.change(|tokens| {
            tokens.valid_for = 5;
            tokens.expires_in = json!(5);
        });
        let signed = Signed::start(kind, tokens.auth(), "acme/authz").await;
        let gate = TestGateway::start(signed.config()).await;
        serves(&gate, &signed.first).await;
        let before = signed.refused();
        assert_eq!(before, 1, "{kind:?}: the challenge");
        let began = Instant::now();
        let issued = served_while(&tokens, &gate, 4).await;
        let took = began.elapsed().as_secs_f64();
        // A token counts for four seconds, and is replaced a moment before.
        assert!(took > 8.0, "{kind:?}: four tokens in {took} s");
        assert_eq!(signed.refused(), before, "{kind:?}");
        let expected = Issued {
            method: "GET".to_owned(),
            account: Some(USER.to_owned()),
            scopes: vec![PULL.to_owned()],
            status: 200,
        };
        assert!(issued.iter().all(|one| *one == expected), "{issued:?}");
        serves(&gate, &signed.push("second").await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_registry_refuses_before_its_announced_end_is_replaced_at_once() {
    for kind in KINDS {
        for expires_in in [json!(3600), Value::Null] {
            let tokens = TokenServer::start(None).await;
            tokens.change(|tokens| tokens.expires_in = expires_in);
            let signed = Signed::start(kind, tokens.auth(), "acme/authz").await;
            tokens.change(|tokens| tokens.valid_for = 2);
            let gate = TestGateway::start(signed.config()).await;
            serves(&gate, &signed.first).await;
            let before = signed.refused();
            let issued = served_while(&tokens, &gate, 3).await.len();
            let refused = signed.refused() - before;
            assert!(
                (issued - 1..=issued + 1).contains(&refused),
                "{kind:?}: {refused} refusals and {issued} tokens"
            );
            tokens.change(|tokens| tokens.valid_for = 300);
            serves(&gate, &signed.push("second").await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_rotated_at_the_token_server_is_read_again() {
    for kind in KINDS {
        let tokens = TokenServer::start(None).await;
        let signed = Signed::start(kind, tokens.auth(), "acme/authz").await;
        let second = signed.push("second").await;
        signed
            .registry
            .tag(&format!("acme/authz@{}", signed.first), "live")
            .await;
        tokens.change(|tokens| tokens.valid_for = 2);
        let config = signed.config();
        let gate = TestGateway::start(config.clone()).await;
        serves(&gate, &signed.first).await;
        signed
            .registry
            .tag(&format!("acme/authz@{second}"), "live")
            .await;
        serves(&gate, &second).await;
        tokens.change(|tokens| tokens.password = "open barley".to_owned());
        fails(&gate, "denied").await;
        let credentials = &config.0["registries"][&signed.registry.host]["credentials"];
        let file = credentials["password_file"].as_str().unwrap();
        fs::write(file, "open barley\n").unwrap();
        serves(&gate, &second).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_that_is_down_is_an_outage_and_nobody_becomes_anonymous() {
    let tokens = TokenServer::start(None).await;
    let signed = Signed::start(Kind::Distribution, tokens.auth(), "acme/authz").await;
    tokens.change(|tokens| {
        tokens.valid_for = 2;
        tokens.expires_in = json!(2);
    });
    let gate = TestGateway::start(signed.config()).await;
    serves(&gate, &signed.first).await;
    tokens.change(|tokens| tokens.failure = Some(503));
    fails(&gate, "transient").await;
    tokens.change(|tokens| {
        tokens.failure = None;
        tokens.valid_for = 300;
        tokens.expires_in = json!(300);
    });
    serves(&gate, &signed.push("second").await).await;
    let issued = tokens.take();
    assert!(issued.iter().all(|one| one.account.is_some()), "{issued:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_by_post_or_get_and_read_again_once_it_is_revoked() {
    for kind in KINDS {
        let (tokens, author) = (TokenServer::start(None).await, Author::new());
        tokens.change(|tokens| tokens.fields = &["access_token"]);
        let signed = Signed::start(kind, tokens.auth(), "acme/authz").await;
        tokens.change(|tokens| {
            tokens.valid_for = 2;
            tokens.expires_in = json!(2);
            tokens.refresh_tokens = vec!["one".to_owned()];
        });
        let gate = signed.docker_config(&author, &json!({ "identitytoken": "one" }));
        let gate = TestGateway::start(gate).await;
        serves(&gate, &signed.first).await;
        let issued = served_while(&tokens, &gate, 2).await;
        assert!(issued.iter().all(|one| one.method == "POST"), "{issued:?}");
        assert!(issued.iter().all(|one| one.scopes == [PULL]), "{issued:?}");
        // crane, with the same file.
        let name = signed.registry.reference("acme/authz:live");
        let line = format!("crane digest --insecure {name}");
        assert_eq!(author.line(&line).await, signed.first);

        tokens.change(|tokens| tokens.refresh_tokens = vec!["two".to_owned()]);
        fails(&gate, "denied").await;
        author.shell(&line).await.failed();
        signed.docker_config(&author, &json!({ "identitytoken": "two" }));
        serves(&gate, &signed.first).await;
        assert_eq!(author.line(&line).await, signed.first);

        // Token servers without OAuth2.
        let pair = json!({ "username": USER, "password": PASSWORD, "identitytoken": "two" });
        signed.docker_config(&author, &pair);
        for status in [404, 405] {
            tokens.change(|tokens| tokens.post = Some(status));
            let issued = served_while(&tokens, &gate, 4).await;
            let got = |method: &str, status: u16| {
                let found = issued
                    .iter()
                    .find(|one| one.method == method && one.status == status);
                found.is_some()
            };
            assert!(got("POST", status) && got("GET", 200), "{issued:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_tokens_of_distributions_token_server_are_exchanged_at_both_registries() {
    for kind in KINDS {
        let (tokens, author) = (RealTokenServer::start(None).await, Author::new());
        let signed = Signed::start(kind, tokens.auth(), "robot/authz").await;
        let token = tokens.refresh_token().await;
        let before = tokens.log().matches("post token complete").count();
        let gate = signed.docker_config(&author, &json!({ "identitytoken": token }));
        let gate = TestGateway::start(gate).await;
        serves(&gate, &signed.first).await;
        assert_eq!(
            tokens.log().matches("post token complete").count(),
            before + 1,
            "{kind:?}: one token for all requests"
        );
        serves(&gate, &signed.push("second").await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_asks_for_the_scope_that_it_needs_and_no_more() {
    for kind in KINDS {
        let (tokens, author) = (TokenServer::start(None).await, Author::new());
        let registry = Registry::with_tokens(kind, tokens.auth()).await;
        let [name, copy] =
            ["authz", "copy"].map(|name| registry.reference(&format!("acme/{name}:v1")));
        author.policy("first");
        build(&author, &name).await;
        log_in(&author, &registry, USER).await;
        let requested = async |words: &[&str]| {
            tokens.take();
            let ran = author.run(&[words, &["--plain-http"]].concat()).await;
            let mut scopes: Vec<_> = tokens
                .take()
                .into_iter()
                .map(|one| one.scopes.join(" "))
                .collect();
            scopes.dedup();
            (ran, scopes)
        };
        let pull = PULL.to_owned();
        let push = "repository:acme/authz:pull,push".to_owned();
        let (ran, scopes) = requested(&["push", &name]).await;
        ran.ok();
        assert_eq!(scopes, std::slice::from_ref(&push), "{kind:?}");
        let (ran, scopes) = requested(&["tags", &registry.reference("acme/authz")]).await;
        assert_eq!(
            (ran.code, &scopes),
            (Some(0), &vec![pull.clone()]),
            "{ran:?}"
        );
        let (ran, scopes) = requested(&["pull", &name]).await;
        assert_eq!(
            (ran.code, &scopes),
            (Some(0), &vec![pull.clone()]),
            "{ran:?}"
        );
        let (ran, scopes) = requested(&["copy", &name, &copy]).await;
        ran.ok();
        for wanted in [PULL, "repository:acme/copy:pull,push"] {
            let all = scopes.join(" ");
            assert!(
                all.split(' ').any(|one| one == wanted),
                "{kind:?}: {scopes:?}"
            );
        }

        // Who may only pull gets a token without push, which the registry refuses.
        log_in(&author, &registry, TOKEN_READER).await;
        let (ran, _) = requested(&["pull", &name]).await;
        ran.ok();
        author.policy("second");
        build(&author, &name).await;
        let (ran, scopes) = requested(&["push", &name]).await;
        ran.refused("the stored credentials");
        assert!(scopes.iter().all(|one| *one == push), "{scopes:?}");
        let new = registry.reference("acme/new:v1");
        let line = format!("crane copy --insecure {name} {new}");
        author.shell(&line).await.failed();
    }
}

async fn log_in(author: &Author, registry: &Registry, user: &str) {
    let login = ["login", &registry.host, "-u", user, "--password-stdin"];
    let login = [&login[..], &["--plain-http"]].concat();
    author.run_with(&login, PASSWORD).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_among_others_is_answered_whether_crane_and_oras_answer_it_or_not() {
    let tokens = TokenServer::start(None).await;
    let signed = Signed::start(Kind::Distribution, tokens.auth(), "acme/authz").await;
    for (challenges, by_crane, by_oras) in [
        (&["Negotiate", "{}"][..], true, false),
        (&["Negotiate", "NTLM", "{}"], true, false),
        (&["{}", "Negotiate"], true, true),
        (&["Basic realm=\"x\"", "{}"], false, false),
        (&["NTLM, {}"], false, false),
        (&["{}, Basic realm=\"x\""], true, true),
    ] {
        let quirk = Quirk::Challenges(challenges);
        let front = Front::before(&signed.registry.host, "/v2/", quirk).await;
        let (author, name) = (Author::new(), format!("{}/acme/authz:live", front.host));
        let login = [
            "login",
            &front.host,
            "-u",
            USER,
            "--password-stdin",
            "--plain-http",
        ];
        author.run_with(&login, PASSWORD).await.ok();
        let crane = author
            .shell(&format!("crane digest --insecure {name}"))
            .await;
        let oras = format!("oras manifest fetch --plain-http --descriptor {name}");
        let oras = author.shell(&oras).await;
        let copes = [crane, oras].map(|ran| ran.code == Some(0));
        assert_eq!(copes, [by_crane, by_oras], "{challenges:?}");
        let line = format!("bundlegate pull --plain-http {name}");
        assert!(author.line(&line).await.ends_with(&signed.first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_that_redirects_is_followed_as_by_crane_and_oras() {
    let tokens = TokenServer::start(None).await;
    let signed = Signed::start(Kind::Debian, tokens.moved(), "acme/authz").await;
    let author = Author::new();
    log_in(&author, &signed.registry, USER).await;
    let name = signed.registry.reference("acme/authz:live");
    let line = format!("crane digest --insecure {name}");
    assert_eq!(author.line(&line).await, signed.first);
    author
        .line(&format!("oras manifest fetch --plain-http {name}"))
        .await;
    let line = format!("bundlegate pull --plain-http {name}");
    assert!(author.line(&line).await.ends_with(&signed.first));
    let gate = TestGateway::start(signed.config()).await;
    serves(&gate, &signed.first).await;
}
