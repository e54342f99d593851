//! Client certificates and HTTP/2 through nginx, and a forward proxy, beside oras and crane.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    Artifact, Ca, Clients, Cosign, Format, ForwardProxy, GatewayConfig, KeyPair, Kind, Opa,
    OpaVersion, Registry, TestGateway, TlsFront, poll_until, program, run,
};

/// A registry without TLS, with a signed artifact.
async fn signed(kind: Kind) -> (Registry, KeyPair, String) {
    let (registry, key) = (Registry::start(kind).await, KeyPair::generate().await);
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    let pinned = format!("acme/authz@{digest}");
    key.sign_with(Cosign::V2, Format::Legacy, &registry, &pinned)
        .await;
    (registry, key, digest)
}

/// A gateway that reaches the registry at `host` with these settings.
async fn gateway(registry: &Registry, key: &KeyPair, host: &str, settings: &Value) -> TestGateway {
    let config = GatewayConfig::trusting(key)
        .bundle("authz", registry, "acme/authz:live")
        .by_way_of(host, registry);
    let pointer = format!("/registries/{host}");
    TestGateway::start(config.with(&pointer, settings.clone())).await
}

async fn serves(gateway: &TestGateway, digest: &str) {
    gateway
        .status_when("authz", "served", |status| status["manifest"] == digest)
        .await;
    Opa::polling(OpaVersion::Newest, &gateway.url, "authz")
        .await
        .answers("first")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_requires_a_client_certificate_is_read_over_http2_as_by_oras() {
    for kind in [Kind::Debian, Kind::Distribution] {
        let (registry, key, digest) = signed(kind).await;
        let ca = Ca::new();
        let front = TlsFront::before(&registry.host, "127.0.0.1", &ca, Clients::Verified).await;
        let client = ca.issue_for("client", &["gateway.example"]);
        let settings = json!({
            "ca_file": ca.file(),
            "client_certificate": client.certificate,
            "client_key": client.key,
            "max_concurrent": 1,
        });
        let name = format!("{}/acme/authz:live", front.host);
        let path = |file: &Path| file.to_str().unwrap().to_owned();
        let (ca_file, certificate) = (path(&ca.file()), path(&client.certificate));
        let client_key = path(&client.key);
        let found = run(
            "oras",
            Path::new("/"),
            &[
                "manifest",
                "fetch",
                "--descriptor",
                "--ca-file",
                &ca_file,
                "--cert-file",
                &certificate,
                "--key-file",
                &client_key,
                &name,
            ],
        )
        .await;
        assert!(found.contains(&digest), "{found}");
        let gateway = gateway(&registry, &key, &front.host, &settings).await;
        serves(&gateway, &digest).await;
        // As long as it takes for a few polls.
        let (seen, _) = poll_until("polls", async || {
            let seen = front.seen("bundlegate");
            (seen.len() > 15).then_some(seen)
        })
        .await;
        assert!(
            seen.iter().all(|seen| seen.protocol == "HTTP/2.0"),
            "{seen:?}"
        );
        let mut connections: Vec<_> = seen.iter().map(|seen| &seen.connection).collect();
        connections.dedup();
        assert_eq!(connections.len(), 1, "{connections:?}");
        // Another certificate, without a restart.
        let before = seen[0].client.clone();
        ca.issue_for("client", &["gateway.example"]);
        poll_until("the new certificate", async || {
            let seen = front.seen("bundlegate").pop().unwrap();
            assert!(matches!(seen.status, 200 | 404), "{seen:?}");
            (seen.client != before).then_some(())
        })
        .await;
        println!(
            "{kind:?}: {} requests over one HTTP/2 connection",
            seen.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_client_certificate_the_reason_names_the_keys() {
    let (registry, key, _) = signed(Kind::Debian).await;
    let ca = Ca::new();
    let front = TlsFront::before(&registry.host, "127.0.0.1", &ca, Clients::Verified).await;
    let gateway = gateway(
        &registry,
        &key,
        &front.host,
        &json!({ "ca_file": ca.file() }),
    )
    .await;
    let status = gateway
        .status_when("authz", "a failure", |status| {
            status["last_failure"].is_object()
        })
        .await;
    let text = status.to_string();
    assert!(text.contains("requires a client certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_behind_a_proxy_with_a_password_is_reached_as_by_crane() {
    let (registry, key, digest) = signed(Kind::Distribution).await;
    let ca = Ca::new();
    // Go's tools use no proxy for 127.0.0.1 and localhost.
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let front = TlsFront::before(&registry.host, name.trim(), &ca, Clients::Anyone).await;
    let proxy = ForwardProxy::start("robot", "open-sesame").await;
    let mut crane = Command::new(program("crane"));
    crane
        .args(["digest", &format!("{}/acme/authz:live", front.host)])
        .env(
            "HTTPS_PROXY",
            format!("http://robot:open-sesame@{}", proxy.address),
        )
        .env("SSL_CERT_FILE", ca.file());
    let found = tokio::task::spawn_blocking(move || crane.output().unwrap())
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&found.stdout).trim(),
        digest,
        "{found:?}"
    );
    let tunnels = proxy.tunnels(&front.host);
    assert!(tunnels > 0);
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    fs::write(&password_file, "open-sesame\n").unwrap();
    let settings = json!({
        "ca_file": ca.file(),
        "proxy": {
            "url": format!("http://{}", proxy.address),
            "username": "robot",
            "password_file": password_file,
        },
    });
    let gateway = gateway(&registry, &key, &front.host, &settings).await;
    serves(&gateway, &digest).await;
    assert_eq!(proxy.tunnels(&front.host), tunnels + 1, "one connection");
    let seen = front.seen("bundlegate");
    assert!(
        seen.iter().all(|seen| seen.protocol == "HTTP/2.0"),
        "{seen:?}"
    );
    for line in gateway.log() {
        assert!(!line.to_string().contains("open-sesame"), "{line}");
    }
}
