//! The registries as they are set up in the field: a password, tokens of a token server, TLS of a
//! private CA. In each, every verb works, what any client pushes and either cosign signs reaches a
//! real OPA, a new version follows, and an unsigned one does not.

use std::fs;

use serde_json::json;

use crate::{
    pushes::build,
    support::{
        Artifact, Author, Ca, Cosign, Format, GatewayConfig, KeyPair, Kind, Opa, OpaVersion,
        PASSWORD, RealTokenServer, Registry, TestGateway, TokenServer, USER,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_with_a_password() {
    let registry = Registry::with_password(Kind::Debian).await;
    every_client_works(&registry, "acme/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_with_a_password_over_tls() {
    let ca = Ca::new();
    let registry = Registry::protected(Kind::Debian, &ca).await;
    every_client_works(&registry, "acme/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_with_tokens() {
    let tokens = TokenServer::start(None).await;
    let registry = Registry::with_tokens(Kind::Debian, tokens.auth()).await;
    every_client_works(&registry, "acme/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_with_tokens_of_distributions_token_server_over_tls() {
    let ca = Ca::new();
    let tokens = RealTokenServer::start(Some(&ca.issue("tokens"))).await;
    let registry = Registry::with_tokens_over_tls(Kind::Debian, &ca, tokens.auth()).await;
    every_client_works(&registry, "robot/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_3_with_a_password_over_tls() {
    let ca = Ca::new();
    let registry = Registry::protected(Kind::Distribution, &ca).await;
    every_client_works(&registry, "acme/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_3_with_tokens_over_tls() {
    let ca = Ca::new();
    let tokens = TokenServer::start(Some(&ca.issue("tokens"))).await;
    let registry = Registry::with_tokens_over_tls(Kind::Distribution, &ca, tokens.auth()).await;
    every_client_works(&registry, "acme/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_3_with_tokens_of_distributions_token_server() {
    let tokens = RealTokenServer::start(None).await;
    let registry = Registry::with_tokens(Kind::Distribution, tokens.auth()).await;
    every_client_works(&registry, "robot/authz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_the_referrers_api_over_tls() {
    let ca = Ca::new();
    let registry = Registry::secured(Kind::Referrers, &ca).await;
    every_client_works(&registry, "acme/authz").await;
}

async fn every_client_works(registry: &Registry, repository: &str) {
    let author = Author::new();
    author.policy("first");
    fs::write(author.path("ca.pem"), registry.ca_pem()).unwrap();
    every_verb_works(registry, &author, repository).await;
    crane_copies(registry, &author, repository).await;
    every_version_reaches_opa(registry, repository).await;
    println!("setups | {:?} | {repository} | works", registry.kind);
}

/// bundlegate, which logs in where it has to, and cosign, which verifies what bundlegate signed.
async fn every_verb_works(registry: &Registry, author: &Author, repository: &str) {
    let flags = registry.own_flags();
    let run = async |words: &[&str]| author.run(&[words, &flags].concat()).await;
    let name = registry.reference(&format!("{repository}:own"));
    let digest = build(author, &name).await;
    if registry.is_protected() {
        run(&["push", &name]).await.refused("bundlegate login");
        let login = ["login", &registry.host, "-u", USER, "--password-stdin"];
        let login = [&login[..], &flags].concat();
        let wrong = author.run_with(&login, "wrong\n").await;
        wrong.refused("user name and password");
        author.run_with(&login, &format!("{PASSWORD}\n")).await.ok();
    }
    let pinned = registry.reference(&format!("{repository}@{digest}"));
    assert_eq!(run(&["push", &name]).await.told(), pinned);
    let listed = run(&["tags", &registry.reference(repository)]).await.told();
    assert!(listed.lines().any(|line| line.contains("own")), "{listed}");
    author
        .run(&["generate-key-pair", "--output-key-prefix", "cosign"])
        .await
        .ok();
    let key = ["--key", "cosign.pub"];
    let unsigned = run(&[&["verify", &name], &key[..]].concat()).await;
    unsigned.refused("no signature");
    for format in [Format::Bundle, Format::Legacy] {
        let mut sign = vec!["sign", &name, "--key", "cosign.key"];
        sign.extend((format == Format::Legacy).then_some("--legacy"));
        run(&sign).await.ok();
        let new_format = format!("--new-bundle-format={}", format == Format::Bundle);
        let verify = [
            "verify",
            "--insecure-ignore-tlog",
            &new_format,
            "--key",
            "cosign.pub",
            &name,
        ];
        let theirs = registry.cosign_flags();
        let theirs: Vec<_> = theirs.iter().map(String::as_str).collect();
        author
            .peer("cosign", &[&verify[..], &theirs].concat())
            .await
            .ok();
    }
    run(&[&["verify", &name], &key[..]].concat()).await.ok();
    author.run(&["rm", &name]).await.ok();
    assert_eq!(run(&["pull", &name]).await.told(), pinned);
}

/// crane, with the credentials that bundlegate stored.
async fn crane_copies(registry: &Registry, author: &Author, repository: &str) {
    let [from, to] = ["own", "copy"].map(|tag| registry.reference(&format!("{repository}:{tag}")));
    let environment = "SSL_CERT_FILE=ca.pem";
    author
        .line(&format!("{environment} crane copy --insecure {from} {to}"))
        .await;
    let line = format!("{environment} crane digest --insecure {to}");
    let pushed = author.line(&line).await;
    let flags = registry.own_flags().join(" ");
    let pulled = author.line(&format!("bundlegate pull {to} {flags}")).await;
    assert!(pulled.ends_with(&pushed), "{pulled}: {pushed}");
}

async fn every_version_reaches_opa(registry: &Registry, repository: &str) {
    let key = KeyPair::generate().await;
    let live = format!("{repository}:live");
    let gate = GatewayConfig::trusting(&key).bundle("authz", registry, &live);
    let gate = TestGateway::start(gate).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    let mut served = String::new();
    for (answer, cosign, format) in [
        ("first", Cosign::V3, Format::Bundle),
        ("second", Cosign::V2, Format::Legacy),
        ("third", Cosign::V3, Format::Legacy),
    ] {
        let artifact = Artifact::answering(answer).await;
        served = registry.push(&live, &artifact.file()).await;
        let pinned = format!("{repository}@{served}");
        key.sign_with(cosign, format, registry, &pinned).await;
        opa.answers(answer).await;
    }
    let artifact = Artifact::answering("unsigned").await;
    let unsigned = registry.push(&live, &artifact.file()).await;
    let status = gate
        .status_when("authz", "the unsigned one is refused", |status| {
            status["last_failure"]["class"] == "evidence"
                && status["last_failure"]["digest"] == unsigned.as_str()
        })
        .await;
    assert_eq!(status["manifest"], json!(served));
    assert_eq!(opa.decision("authz/answer").await, Some(json!("third")));
}
