//! Which credentials of docker's configuration go to a registry, compared with crane, oras and
//! podman's library (skopeo).

use std::{
    convert::Infallible,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::support::Author;

const PEERS: [&str; 4] = ["bundlegate", "crane", "oras", "skopeo"];

/// A registry that asks for credentials, records them and has nothing. Ends when dropped.
struct Recorder {
    host: String,
    seen: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy)]
enum Scheme {
    Basic,
    Bearer,
}

impl Recorder {
    async fn start(scheme: Scheme) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (own, shared) = (host.clone(), Arc::clone(&seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (own, shared) = (own.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        answer(own.clone(), scheme, Arc::clone(&shared), request)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            host,
            seen,
            _tasks: tasks,
        }
    }

    /// What was sent since the last call, without repetitions.
    fn take(&self) -> Vec<String> {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.dedup();
        seen
    }
}

async fn answer(
    host: String,
    scheme: Scheme,
    seen: Arc<Mutex<Vec<String>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorization = request.headers().get("authorization");
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let is_token_server = request.uri().path() == "/token";
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let refresh_token = url::form_urlencoded::parse(&body)
        .find(|(name, _)| name == "refresh_token")
        .map(|(_, token)| token.into_owned());
    // A token that this server issued is no credential.
    let issued = authorization.as_deref() == Some("Bearer issued");
    if let Some(value) = authorization.clone().filter(|_| !issued) {
        let shown = match value.strip_prefix("Basic ") {
            Some(pair) => String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap(),
            None => value,
        };
        // What skopeo sends without credentials.
        if shown != ":" {
            seen.lock().unwrap().push(shown);
        }
    }
    seen.lock().unwrap().extend(refresh_token);
    let answer = Response::builder();
    let text = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes()));
    let answer = if is_token_server {
        answer.body(text(r#"{"token": "issued", "access_token": "issued"}"#))
    } else if authorization.is_none() {
        let challenge = match scheme {
            Scheme::Basic => "Basic realm=\"x\"".to_owned(),
            Scheme::Bearer => format!("Bearer realm=\"http://{host}/token\",service=\"x\""),
        };
        let answer = answer.status(401).header("www-authenticate", challenge);
        answer.body(text(""))
    } else {
        let errors = r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "none"}]}"#;
        answer.status(404).body(text(errors))
    };
    Ok(answer.unwrap())
}

/// What each peer sends for HOST/acme/authz:v1.
async fn sent(
    author: &Author,
    registry: &Recorder,
    config: &Value,
    environment: &str,
) -> [Vec<String>; 4] {
    let text = config.to_string().replace("HOST", &registry.host);
    author.write(".docker/config.json", &text);
    let environment = environment.replace("HOST", &registry.host);
    let reference = format!("{}/acme/authz:v1", registry.host);
    let mut all = [const { Vec::new() }; 4];
    for (peer, sent) in PEERS.into_iter().zip(&mut all) {
        let line = match peer {
            "bundlegate" => format!("bundlegate pull --plain-http {reference}"),
            "crane" => format!("crane manifest --insecure {reference}"),
            "oras" => format!("oras manifest fetch --plain-http {reference}"),
            _ => format!(
                "skopeo inspect --raw --tls-verify=false --authfile .docker/config.json \
                 docker://{reference}"
            ),
        };
        let ran = author.shell(&format!("{environment} {line}")).await;
        assert_ne!(ran.code, Some(0), "{peer}: the registry has nothing");
        *sent = registry.take();
    }
    all
}

/// A case, with what bundlegate, crane, oras and skopeo send; `-` is nothing.
type Row = (&'static str, Value, [&'static str; 4]);

async fn compare(author: &Author, scheme: Scheme, rows: &[Row]) {
    let registry = Recorder::start(scheme).await;
    let mut wrong = Vec::new();
    for (case, config, expected) in rows {
        let sent = sent(author, &registry, config, "").await;
        let sent = sent.map(|sent| match sent.as_slice() {
            [] => "-".to_owned(),
            sent => sent.join(" then "),
        });
        println!("credentials | {case} | {} |", sent.join(" | "));
        if sent != *expected {
            wrong.push(format!("{case}: {sent:?} and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "of {PEERS:?}: {wrong:#?}");
}

fn auth(pair: &str) -> Value {
    json!({ "auth": STANDARD.encode(pair) })
}

fn auths(entries: &[(&str, &str)]) -> Value {
    let entries = entries
        .iter()
        .map(|(key, pair)| ((*key).to_owned(), auth(pair)));
    json!({ "auths": entries.collect::<serde_json::Map<_, _>>() })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_a_key_is_found_as_crane_oras_and_skopeo_find_it() {
    let mut rows: Vec<Row> = [
        "HOST",
        "https://HOST",
        "https://HOST/",
        "http://HOST",
        "https://HOST/v1/",
        "https://HOST/v2/",
        "HOST/acme",
        "HOST/acme/authz",
    ]
    .map(|key| (key, auths(&[(key, "a:b")]), ["a:b"; 4]))
    .into();
    rows.extend([
        (
            "HOST/",
            auths(&[("HOST/", "a:b")]),
            ["a:b", "a:b", "a:b", "-"],
        ),
        (
            "HOST/v1/",
            auths(&[("HOST/v1/", "a:b")]),
            ["a:b", "a:b", "a:b", "-"],
        ),
        // A path is a prefix for podman and Kubernetes, and has no meaning for docker's tools. We
        // don't send credentials for one path with requests for another.
        (
            "HOST/other",
            auths(&[("HOST/other", "a:b")]),
            ["-", "a:b", "a:b", "-"],
        ),
        (
            "HOST/ac",
            auths(&[("HOST/ac", "a:b")]),
            ["-", "a:b", "a:b", "-"],
        ),
        (
            "HOST and HOST/acme",
            auths(&[("HOST", "a:b"), ("HOST/acme", "c:d")]),
            ["c:d", "a:b", "a:b", "c:d"],
        ),
        (
            "HOST/acme and HOST/acme/authz",
            auths(&[
                ("HOST", "a:b"),
                ("HOST/acme", "c:d"),
                ("HOST/acme/authz", "e:f"),
            ]),
            ["e:f", "e:f", "a:b", "e:f"],
        ),
        (
            "another host",
            auths(&[("x.HOST", "a:b"), ("https://other/", "a:b")]),
            ["-"; 4],
        ),
        (
            "auth: null",
            json!({ "auths": { "HOST": { "auth": null } } }),
            ["-"; 4],
        ),
        ("null", json!({ "auths": { "HOST": null } }), ["-"; 4]),
        // What Go decodes to an empty entry is skipped here, and ends the search there.
        (
            "auth: null and https://HOST",
            json!({ "auths": { "HOST": { "auth": null }, "https://HOST": auth("a:b") } }),
            ["a:b", "-", "-", "-"],
        ),
        (
            "username and password",
            json!({ "auths": { "HOST": { "username": "a", "password": "b" } } }),
            ["a:b", "a:b", "a:b", "-"],
        ),
        ("no auths", json!({}), ["-"; 4]),
    ]);
    compare(&Author::new(), Scheme::Basic, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_token_is_sent_as_crane_oras_and_skopeo_send_it() {
    let acr = json!({ "auth": STANDARD.encode("0000:"), "identitytoken": "id" });
    let rows: [Row; 3] = [
        ("user and password", auths(&[("HOST", "a:b")]), ["a:b"; 4]),
        (
            "identitytoken",
            json!({ "auths": { "HOST": acr } }),
            ["id"; 4],
        ),
        (
            "registrytoken",
            json!({ "auths": { "HOST": { "registrytoken": "tok" } } }),
            ["Bearer tok", "Bearer tok", "Bearer tok", "-"],
        ),
    ];
    compare(&Author::new(), Scheme::Bearer, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helpers_are_asked_as_crane_oras_and_skopeo_ask_them() {
    let author = Author::new();
    author.write(
        "bin/docker-credential-test",
        "#!/bin/sh\nread server\nprintf '{\"Username\":\"%s\",\"Secret\":\"%s\"}' \"$1\" \"${server%%:*}\"\n",
    );
    author.write(
        "bin/docker-credential-token",
        "#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"id\"}'\n",
    );
    for name in ["test", "token"] {
        let program = author.path(&format!("bin/docker-credential-{name}"));
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let rows: [Row; 5] = [
        (
            "credHelpers",
            json!({ "credHelpers": { "HOST": "test" } }),
            ["get:127.0.0.1"; 4],
        ),
        (
            "credsStore",
            json!({ "credsStore": "test" }),
            // podman has no common helper in this file.
            ["get:127.0.0.1", "get:127.0.0.1", "get:127.0.0.1", "-"],
        ),
        (
            "credHelpers before auths",
            json!({ "credHelpers": { "HOST": "test" }, "auths": { "HOST": auth("a:b") } }),
            ["get:127.0.0.1"; 4],
        ),
        (
            "credHelpers before credsStore",
            json!({ "credHelpers": { "HOST": "test" }, "credsStore": "absent" }),
            // crane asks for HOST/acme/authz first, and so the common helper.
            ["get:127.0.0.1", "-", "get:127.0.0.1", "get:127.0.0.1"],
        ),
        (
            "identity token",
            json!({ "credHelpers": { "HOST": "token" } }),
            ["id"; 4],
        ),
    ];
    compare(&author, Scheme::Bearer, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_auth_config_comes_before_the_file_as_for_crane() {
    let (author, registry) = (Author::new(), Recorder::start(Scheme::Basic).await);
    let environment = format!("DOCKER_AUTH_CONFIG='{}'", auths(&[("HOST", "env:pw")]));
    let file = auths(&[("HOST", "file:pw")]);
    let [own, crane, ..] = sent(&author, &registry, &file, &environment).await;
    assert_eq!(
        (own, crane),
        (vec!["env:pw".to_owned()], vec!["env:pw".to_owned()])
    );
    let other = format!("DOCKER_AUTH_CONFIG='{}'", auths(&[("other", "env:pw")]));
    let [own, crane, ..] = sent(&author, &registry, &file, &other).await;
    assert_eq!(
        (own, crane),
        (vec!["file:pw".to_owned()], vec!["file:pw".to_owned()])
    );
}

/// A place of credentials: the environment that names it, the file, and what each program sends.
type Place = (&'static str, &'static str, [&'static str; 4]);

#[tokio::test(flavor = "multi_thread")]
async fn the_places_of_docker_podman_and_kubernetes_are_read_as_their_tools_read_them() {
    let places: [Place; 5] = [
        ("", ".docker/config.json", ["a:b", "a:b", "a:b", "a:b"]),
        (
            "DOCKER_CONFIG=elsewhere",
            "elsewhere/config.json",
            ["a:b"; 4],
        ),
        (
            "REGISTRY_AUTH_FILE=my/auth.json",
            "my/auth.json",
            ["a:b", "a:b", "-", "a:b"],
        ),
        (
            "XDG_RUNTIME_DIR=run",
            "run/containers/auth.json",
            ["a:b", "a:b", "-", "a:b"],
        ),
        (
            "XDG_CONFIG_HOME=config",
            "config/containers/auth.json",
            ["a:b", "a:b", "-", "a:b"],
        ),
    ];
    let registry = Recorder::start(Scheme::Basic).await;
    let mut wrong = Vec::new();
    for (environment, file, expected) in places {
        let author = Author::new();
        let text = auths(&[(&registry.host, "a:b")]).to_string();
        author.write(file, &text);
        let reference = format!("{}/acme/authz:v1", registry.host);
        let lines = [
            format!("bundlegate pull --plain-http {reference}"),
            format!("crane manifest --insecure {reference}"),
            format!("oras manifest fetch --plain-http {reference}"),
            format!("skopeo inspect --raw --tls-verify=false docker://{reference}"),
        ];
        let mut sent = Vec::new();
        for line in lines {
            author
                .shell(&format!("{environment} {line}"))
                .await
                .failed();
            sent.push(registry.take().pop().unwrap_or_else(|| "-".to_owned()));
        }
        println!("places | {environment} | {} |", sent.join(" | "));
        if sent != expected {
            wrong.push(format!("{environment}: {sent:?} and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "of {PEERS:?}: {wrong:#?}");
}

/// Kubernetes mounts a secret as a link to a file in a folder that it exchanges.
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_secret_of_kubernetes_is_read_and_read_again_once_it_is_exchanged() {
    let (author, registry) = (Author::new(), Recorder::start(Scheme::Basic).await);
    let config = json!({
        "version": 1,
        "registries": { &registry.host: {
            "scheme": "http", "credentials": { "docker_config": "secret/.dockerconfigjson" },
        } },
    });
    author.write("bundlegate.yaml", &config.to_string());
    author
        .line("mkdir secret && ln -s ..data/.dockerconfigjson secret/.dockerconfigjson")
        .await;
    for (version, pair) in [("one", "a:b"), ("two", "c:d")] {
        let file = format!("secret/{version}/.dockerconfigjson");
        author.write(&file, &auths(&[(&registry.host, pair)]).to_string());
        author
            .line(&format!(
                "ln -s {version} secret/..new && mv -T secret/..new secret/..data"
            ))
            .await;
        let reference = format!("{}/acme/authz:v1", registry.host);
        for line in [
            format!("bundlegate pull --config bundlegate.yaml {reference}"),
            format!(
                "oras manifest fetch --plain-http --registry-config secret/.dockerconfigjson {reference}"
            ),
            format!(
                "skopeo inspect --raw --tls-verify=false --authfile secret/.dockerconfigjson docker://{reference}"
            ),
        ] {
            author.shell(&line).await.failed();
            assert_eq!(registry.take(), [pair], "{line}");
        }
    }
}
