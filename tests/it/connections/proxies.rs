//! `registries.HOST.proxy`, and the proxies of the environment.

use std::{fs, path::PathBuf};

use bundlegate::registry::{Options, Proxy, ProxyServer, Scheme};
use hyper::Version;

use super::{Authority, Clients, reference_at, source_at};
use crate::{
    command::Author,
    faulty::{Fault, FaultyRegistry},
    forward_proxy::ForwardProxy,
    shared::poll_until,
};

/// A host that no resolver knows.
const HOST: &str = "registry.test:5000";

pub(super) fn server(url: &str) -> Proxy {
    Proxy::Server(ProxyServer {
        url: url.parse().unwrap(),
        username: None,
        password_file: None,
    })
}

fn with_user(url: &str, username: &str, password_file: PathBuf) -> Proxy {
    Proxy::Server(ProxyServer {
        url: url.parse().unwrap(),
        username: Some(username.to_owned()),
        password_file: Some(password_file),
    })
}

#[tokio::test]
async fn a_registry_without_tls_its_token_server_and_its_storage_are_reached_through_the_proxy() {
    let registry = FaultyRegistry::start().await;
    let (digest, layer) = registry.put_artifact("live", b"bundle");
    registry.put("token", "application/json", r#"{ "token": "t0ken" }"#);
    let challenge = "Bearer realm=\"http://tokens.test/v2/acme/authz/token\"".to_owned();
    registry.fail(
        "HEAD",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    let blob = format!("http://blobs.test/v2/acme/authz/blobs/{}", layer.digest);
    registry.fail(
        "GET /v2/acme/authz/blobs",
        1,
        Fault::Status(307, vec![("location", blob)]),
    );
    for scheme in ["http", "socks5h"] {
        let proxy = ForwardProxy::start(
            &["registry.test", "tokens.test", "blobs.test"].map(|name| (name, registry.address)),
        )
        .await;
        let source = source_at(
            HOST,
            Options {
                scheme: Scheme::Http,
                proxy: server(&format!("{scheme}://{}", proxy.address)),
                ..registry.options()
            },
        );
        let pinned = source.resolve(&reference_at(HOST)).await.unwrap();
        assert_eq!(pinned.digest(), &digest);
        source.blob(&layer).await.unwrap().collect().await.unwrap();
        let seen = proxy.seen();
        if scheme == "http" {
            assert_eq!(
                seen,
                [
                    format!("HEAD http://{HOST}/v2/acme/authz/manifests/live"),
                    "GET http://tokens.test/v2/acme/authz/token?scope=repository%3Aacme%2Fauthz%3Apull"
                        .to_owned(),
                    format!("GET http://blobs.test/v2/acme/authz/blobs/{}", layer.digest),
                ]
            );
        } else {
            assert_eq!(seen, [format!("SOCKS {HOST}")]);
        }
    }
}

#[tokio::test]
async fn a_registry_with_tls_is_reached_by_connect_with_the_current_password_of_the_proxy() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let tls = authority.server(&["registry.test"], Clients::Anonymous);
    let registry = FaultyRegistry::start_secured(tls).await;
    registry.put_artifact("live", b"bundle");
    let proxy = ForwardProxy::start(&[("registry.test", registry.address)]).await;
    let password_file = folder.path().join("password");
    // Nothing in it is decoded or cut.
    fs::write(&password_file, " s%41:@/?#cret \n").unwrap();
    proxy.require("ro bot:s%41:@/?#cret");
    let url = format!("http://{}", proxy.address);
    let source = source_at(
        HOST,
        Options {
            scheme: Scheme::Https,
            extra_roots: authority.pem().into(),
            proxy: with_user(&url, "ro bot", password_file.clone()),
            ..registry.options()
        },
    );
    for _ in 0..5 {
        source.resolve(&reference_at(HOST)).await.unwrap();
    }
    let asked = registry.asked("");
    assert!(asked.iter().all(|asked| asked.version == Version::HTTP_2));
    assert!(
        asked
            .iter()
            .all(|asked| !asked.headers.contains_key("proxy-authorization"))
    );
    assert_eq!(proxy.seen(), [format!("CONNECT {HOST}")]);
    // Another password, which the proxy does not accept.
    fs::write(&password_file, "wrong-s3cret").unwrap();
    let (refused, _) = poll_until("the new password", async || {
        source.resolve(&reference_at(HOST)).await.err()
    })
    .await;
    let refused = refused.to_string();
    assert!(
        refused.contains("the proxy refuses the user; check registries.HOST.proxy"),
        "{refused}"
    );
    assert!(
        refused.contains(&url) && !refused.contains("s3cret"),
        "{refused}"
    );
    proxy.require("ro bot:wrong-s3cret");
    let shown = format!("{source:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    source.resolve(&reference_at(HOST)).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_is_down_is_named() {
    let registry = FaultyRegistry::start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let source = source_at(
        HOST,
        Options {
            proxy: server(&url),
            ..registry.options()
        },
    );
    let error = source.resolve(&reference_at(HOST)).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.ends_with(&format!("through the proxy {url}")),
        "{error}"
    );
}

#[tokio::test]
async fn no_answer_leads_the_proxy_to_a_metadata_service() {
    let registry = FaultyRegistry::start().await;
    let (_, layer) = registry.put_artifact("live", b"bundle");
    let metadata = [
        "169.254.169.254",
        "metadata.google.internal",
        "instance-data",
    ];
    let mut routes = metadata.map(|name| (name, registry.address)).to_vec();
    routes.push(("registry.test", registry.address));
    let proxy = ForwardProxy::start(&routes).await;
    let options = Options {
        proxy: server(&format!("http://{}", proxy.address)),
        ..registry.options()
    };
    let source = source_at(HOST, options);
    for name in metadata {
        let blob = format!("http://{name}/v2/acme/authz/blobs/{}", layer.digest);
        registry.fail(
            "GET /v2/acme/authz/blobs",
            4,
            Fault::Status(307, vec![("location", blob)]),
        );
        let error = source.blob(&layer).await.unwrap_err().to_string();
        assert!(error.contains("cloud metadata address"), "{error}");
        let realm = format!("Bearer realm=\"http://{name}/token\"");
        registry.fail(
            "HEAD",
            4,
            Fault::Status(401, vec![("www-authenticate", realm)]),
        );
        let error = source
            .resolve(&reference_at(HOST))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cloud metadata address"), "{error}");
        registry.heal();
    }
    let seen = proxy.seen();
    assert!(
        seen.iter()
            .all(|line| line.contains("http://registry.test")),
        "{seen:?}"
    );
}

/// The tags of a repository as the program lists them, with this environment.
fn tags(author: &Author, host: &str, flags: &[&str], environment: &[(&str, &str)]) -> String {
    let repository = format!("{host}/acme/authz");
    let mut arguments = vec!["tags", &repository];
    arguments.extend(flags);
    let ran = author.run_with(&arguments, "", environment);
    ran.stdout + &ran.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_names_the_proxy_unless_the_configuration_does() {
    let registry = FaultyRegistry::start().await;
    registry.put(
        "tags/list?n=1000",
        "application/json",
        r#"{ "tags": ["v1"] }"#,
    );
    let named = ForwardProxy::start(&[("registry.test", registry.address)]).await;
    let other = ForwardProxy::start(&[("registry.test", registry.address)]).await;
    let author = Author::new();
    let url = format!("http://{}", named.address);
    let proxy = ("HTTP_PROXY", url.as_str());
    let plain = &["--plain-http"];
    let run = |host: &str, flags: &[&str], environment: &[(&str, &str)]| {
        tokio::task::block_in_place(|| tags(&author, host, flags, environment))
    };
    assert!(run(HOST, plain, &[proxy]).contains("v1"));
    assert_eq!(named.seen().len(), 1);
    assert!(!run(HOST, plain, &[proxy, ("NO_PROXY", ".test")]).contains("v1"));
    // This machine is reached directly, as by Go's tools.
    let own = registry.address.to_string();
    assert!(run(&own, plain, &[proxy]).contains("v1"));
    assert_eq!(named.seen().len(), 1);
    let config = |value: &str| {
        let yaml = format!(
            "version: 1\nregistries: {{ '{HOST}': {{ scheme: http, proxy: '{value}' }} }}\n"
        );
        author.write("bundlegate.yaml", &yaml);
    };
    let configured = &["--config", "bundlegate.yaml"];
    config("none");
    assert!(!run(HOST, configured, &[proxy]).contains("v1"));
    config(&format!("http://{}", other.address));
    let bypassed = ("NO_PROXY", "*");
    assert!(run(HOST, configured, &[proxy, bypassed]).contains("v1"));
    assert_eq!((named.seen().len(), other.seen().len()), (1, 1));
}
