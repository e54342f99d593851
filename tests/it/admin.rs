//! The admin listener: Unix socket, TLS, tokens, and who may change something by it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixStream, task::spawn_blocking};

use crate::{
    command::{Author, Ran},
    gateway::{PATIENCE, error, header},
    shared::{
        Process, TestGateway,
        gateway::{Program, listener},
        poll_until,
    },
};

const TOKEN: &str = "s3cret-token";

/// The address of this machine in its network, or loopback if it has none. No packet is sent to
/// find it.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("192.0.2.1:9") {
        Ok(()) => socket.local_addr().unwrap().ip(),
        Err(_) => Ipv4Addr::LOCALHOST.into(),
    }
}

/// A configuration without bundles, and with these keys of `server`.
fn config(server: Value) -> Value {
    let mut config = json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "drain": { "notice": "0s", "over": "0s" } },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
    });
    for (key, value) in server.as_object().unwrap() {
        config["server"][key] = value.clone();
    }
    config
}

/// A folder with a configuration, a token, and a certificate of two names and its key.
fn folder(config: &Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    let names = ["gate.example", "localhost"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    for (name, text) in [
        ("bundlegate.yaml", config.to_string()),
        ("token", format!("another\n{TOKEN}\n")),
        ("token.first", format!("{TOKEN}\n")),
        ("token.wrong", "wrong\n".to_owned()),
        ("tls.crt", made.cert.pem()),
        ("tls.key", made.signing_key.serialize_pem()),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// The program, until it listens.
async fn started(folder: &TempDir) -> Process {
    let mut process = Program::launch(folder);
    listener(&mut process, "data").await;
    process.line(is_listening).await;
    process
}

/// Whether a line of the log says that the admin listener listens.
fn is_listening(line: &str) -> Option<()> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == "listening" && line["listener"] == "admin").then_some(())
}

async fn run(arguments: &[&str]) -> Ran {
    let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
    let running = spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Author::new().run(&arguments)
    });
    running.await.unwrap()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn a_unix_socket_is_private_replaces_a_stale_one_and_is_removed_at_the_end() {
    let folder = folder(&config(json!({ "admin": "unix:admin.sock" })));
    let socket: PathBuf = folder.path().join("admin.sock");
    let mut killed = started(&folder).await;
    killed.kill();
    assert!(socket.exists(), "a killed process leaves its socket");
    UnixStream::connect(&socket).await.unwrap_err();

    let mut gateway = started(&folder).await;
    let mode = fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let http = Client::builder()
        .unix_socket(socket.as_path())
        .build()
        .unwrap();
    let status = http.get("http://localhost/status").timeout(PATIENCE);
    let status: Value = status.send().await.unwrap().json().await.unwrap();
    assert_eq!(status["config"]["refused"], Value::Null, "{status}");
    let admin = format!("unix:{}", socket.display());
    let said = run(&["reload", "--admin", &admin]).await.ok();
    assert_eq!(said, "the configuration is in force\n");
    let ran = run(&["refresh", "none", "--admin", &admin]).await;
    assert!(ran.error().contains("no bundle of this name"), "{ran:?}");
    // A page can reach the socket by a proxy in front of it.
    let rebound = http
        .post("http://rebound.example/reload")
        .header("content-type", "application/json");
    let rebound = rebound.send().await.unwrap();
    assert_eq!(rebound.status(), StatusCode::FORBIDDEN);

    // Another process can't take it.
    let mut second = Program::launch(&folder);
    assert!(!second.ended().await.success());
    let log = second.log();
    assert!(
        log.contains("server.admin unix:") && log.contains("another process listens there"),
        "{log}"
    );
    UnixStream::connect(&socket).await.unwrap();
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert!(!socket.exists());
    let ran = run(&["reload", "--admin", &admin]).await;
    assert!(ran.error().contains("does not answer"), "{ran:?}");
}

/// A gateway that listens on all addresses, with TLS and a token.
async fn with_tls_and_token() -> TestGateway {
    let server = json!({
        "admin": "0.0.0.0:0",
        "admin_tls": { "certificate": "tls.crt", "key": "tls.key" },
        "admin_token_file": "token",
        "admin_hosts": ["gate.internal"],
    });
    TestGateway::run(folder(&config(server))).await
}

/// A client that trusts the certificate of `gate.example`, which is at `address`.
fn trusting(gateway: &TestGateway, address: IpAddr) -> Client {
    let pem = fs::read(gateway.runner.folder.path().join("tls.crt")).unwrap();
    Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&pem).unwrap()])
        .resolve("gate.example", (address, gateway.admin.port()).into())
        .build()
        .unwrap()
}

fn reload(http: &Client, gateway: &TestGateway) -> RequestBuilder {
    let url = format!("https://gate.example:{}/reload", gateway.admin.port());
    let request = http.post(url).timeout(PATIENCE);
    request
        .header("content-type", "application/json")
        .body("{}")
}

#[tokio::test]
async fn over_tls_a_token_allows_to_change_something_from_elsewhere() {
    let gateway = with_tls_and_token().await;
    let address = own_address();
    let http = trusting(&gateway, address);
    let livez = format!("https://gate.example:{}/livez", gateway.admin.port());
    let status = async |request: RequestBuilder| request.send().await.unwrap().status();
    assert_eq!(status(http.get(livez)).await, StatusCode::OK);
    let reload = || match address.is_loopback() {
        // What a proxy on this machine forwards comes from elsewhere, too.
        true => reload(&http, &gateway).header("via", "1.1 proxy"),
        false => reload(&http, &gateway),
    };
    let refused = reload().send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(header(&refused, "www-authenticate"), "Bearer");
    assert_eq!(error(refused).await["reason"], "unauthorized");
    let wrong = status(reload().bearer_auth("wrong")).await;
    assert_eq!(wrong, StatusCode::UNAUTHORIZED);
    for token in ["another", TOKEN] {
        assert_eq!(status(reload().bearer_auth(token)).await, StatusCode::OK);
    }
    // A token that is removed from the file is refused, whatever else is wrong.
    let path = |name: &str| gateway.runner.folder.path().join(name);
    let broken = fs::read_to_string(path("bundlegate.yaml"))
        .unwrap()
        .replace("anonymous", "anonymus");
    fs::write(path("bundlegate.yaml"), broken).unwrap();
    fs::write(path("token"), format!("{TOKEN}\n")).unwrap();
    poll_until("the token is refused", async || {
        let status = status(reload().bearer_auth("another")).await;
        (status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let invalid = status(reload().bearer_auth(TOKEN)).await;
    assert_eq!(invalid, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn the_commands_send_the_token_of_a_file_over_tls() {
    let gateway = with_tls_and_token().await;
    let file = |name: &str| text(&gateway.runner.folder.path().join(name));
    let admin = format!("https://localhost:{}", gateway.admin.port());
    let reload = async |token: &str| {
        let (token, ca) = (file(token), file("tls.crt"));
        let flags = ["--admin-token-file", &token, "--ca-file", &ca];
        run(&[&["reload", "--admin", &admin], &flags[..]].concat()).await
    };
    assert_eq!(
        reload("token.first").await.ok(),
        "the configuration is in force\n"
    );
    let ran = reload("token.wrong").await;
    assert!(ran.error().contains("server.admin_token_file"), "{ran:?}");
    assert!(!ran.stderr.contains("wrong\n"), "{ran:?}");
    let ran = run(&["reload", "--admin", &admin]).await;
    assert!(ran.error().contains("does not answer"), "{ran:?}");
    let ran = run(&["reload", "--admin", "http://user:pass@127.0.0.1:1"]).await;
    assert!(
        ran.code == 2 && ran.stderr.contains("--admin-token-file FILE"),
        "{ran:?}"
    );
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// A POST to `/reload` with these headers.
fn post(gateway: &TestGateway, headers: &[(&str, &str)]) -> RequestBuilder {
    let url = format!("http://{}/reload", gateway.admin);
    let mut request = gateway.http.post(url).timeout(PATIENCE).body("{}");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

/// The requests that a browser can be made to send by a page of another origin, and by one whose
/// name was resolved to the admin listener (DNS rebinding).
fn of_web_pages(gateway: &TestGateway) -> Vec<RequestBuilder> {
    let (own, rebound) = (gateway.admin.to_string(), "rebound.example:8090");
    let evil = "http://evil.example";
    let mut requests = Vec::new();
    for (host, origin, site, content_type) in [
        (&*own, evil, "cross-site", "text/plain;charset=UTF-8"),
        (
            &own,
            "null",
            "cross-site",
            "application/x-www-form-urlencoded",
        ),
        (&own, evil, "cross-site", "application/json"),
        (
            rebound,
            "http://rebound.example:8090",
            "same-origin",
            "application/json",
        ),
    ] {
        requests.push(post(
            gateway,
            &[
                ("host", host),
                ("origin", origin),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", "cors"),
                ("sec-fetch-dest", "empty"),
                ("content-type", content_type),
                ("referer", "http://evil.example/"),
                (
                    "user-agent",
                    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0",
                ),
            ],
        ));
    }
    // Without `Origin`.
    requests.push(post(gateway, &[("host", rebound), JSON]));
    requests.push(post(
        gateway,
        &[("host", &own), ("content-type", "text/plain")],
    ));
    requests
}

#[tokio::test]
async fn no_web_page_can_change_something_with_a_token_or_without() {
    let tokens = json!({ "admin_token_file": "token", "admin_hosts": ["gate.internal"] });
    for server in [json!({}), tokens] {
        let has_token = server.get("admin_token_file").is_some();
        let gateway = TestGateway::run(folder(&config(server))).await;
        let status = async |request: RequestBuilder| request.send().await.unwrap().status();
        for request in of_web_pages(&gateway) {
            let with_token = request.try_clone().unwrap().bearer_auth(TOKEN);
            for request in [request, with_token] {
                let status = status(request).await;
                assert!(
                    matches!(
                        status,
                        StatusCode::FORBIDDEN | StatusCode::UNSUPPORTED_MEDIA_TYPE
                    ),
                    "{status}"
                );
            }
        }
        // A preflight is not granted.
        let url = format!("http://{}/reload", gateway.admin);
        let preflight = gateway
            .http
            .request(Method::OPTIONS, url)
            .header("origin", "http://evil.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type");
        let preflight = preflight.send().await.unwrap();
        assert_eq!(preflight.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(header(&preflight, "access-control-allow-origin"), "");
        let reloads = r#"bundlegate_config_reloads_total{outcome="unchanged"}"#;
        assert_eq!(gateway.metric(reloads).await, 0.0);

        assert_eq!(status(post(&gateway, &[JSON])).await, StatusCode::OK);
        let named = post(&gateway, &[("host", "gate.internal:8090"), JSON]);
        let expected = if has_token {
            StatusCode::OK
        } else {
            StatusCode::FORBIDDEN
        };
        assert_eq!(status(named.bearer_auth(TOKEN)).await, expected);
    }
}

/// Once a minute for each address and reason, so that a guess a second does not fill the log.
#[tokio::test]
async fn a_refused_request_is_in_the_log_once_and_its_token_is_not() {
    let gateway = with_tls_and_token().await;
    let http = trusting(&gateway, Ipv4Addr::LOCALHOST.into());
    for _ in 0..3 {
        let request = reload(&http, &gateway).bearer_auth("guessed-token");
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    let refused = |line: &Value| line["message"] == "request to the admin listener refused";
    let lines: Vec<_> = gateway.log().into_iter().filter(refused).collect();
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (&line["path"], &line["address"]),
        (&json!("/reload"), &json!("127.0.0.1"))
    );
    assert!(
        line["reason"]
            .as_str()
            .unwrap()
            .contains("server.admin_token_file"),
        "{line}"
    );
    assert!(!line.to_string().contains("guessed"), "{line}");
}

#[tokio::test]
async fn a_reload_answers_with_what_became_of_the_configuration() {
    let mut written = config(json!({}));
    let gateway = TestGateway::run(folder(&written)).await;
    let file = gateway.runner.folder.path().join("bundlegate.yaml");
    let url = format!("http://{}/reload", gateway.admin);
    let reload = async || {
        let request = gateway.http.post(&url).timeout(PATIENCE);
        let request = request.header("content-type", "application/json");
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json::<Value>().await.unwrap())
    };
    let applied = json!({ "applied": true, "refused": null, "restart_keys": [] });
    assert_eq!(reload().await, (StatusCode::OK, applied.clone()));
    let status: Value = serde_json::from_str(&gateway.admin_text("/status").await).unwrap();
    assert_eq!(status["config"]["refused"], Value::Null, "{status}");

    written["server"]["ready_after"] = json!("1h");
    written["clients"][0]["bundles"] = json!(["public/*"]);
    fs::write(&file, written.to_string()).unwrap();
    let (code, answer) = reload().await;
    let keys = json!(["server.ready_after (new)"]);
    assert_eq!(
        (code, &answer["applied"], &answer["restart_keys"]),
        (StatusCode::OK, &json!(true), &keys)
    );
    let admin = format!("http://{}", gateway.admin);
    let said = run(&["reload", "--admin", &admin]).await.ok();
    assert!(
        said.ends_with("at the next start: server.ready_after (new)\n"),
        "{said}"
    );

    written["clients"][0]["bundles"] = json!([]);
    fs::write(&file, written.to_string()).unwrap();
    let (code, answer) = reload().await;
    assert_eq!(
        (code, &answer["applied"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!(false))
    );
    let reason = answer["refused"].as_str().unwrap();
    assert!(reason.contains("clients[0].bundles"), "{reason}");
    let status: Value = serde_json::from_str(&gateway.admin_text("/status").await).unwrap();
    assert_eq!(status["config"]["refused"], reason, "{status}");
    let successful = "bundlegate_config_last_reload_successful";
    assert_eq!(gateway.metric(successful).await, 0.0);
    let ran = run(&["reload", "--admin", &admin]).await;
    assert_eq!(ran.error(), format!("reload: {reason}"));
    let ran = run(&["reload", "--admin", &admin, "--json"]).await;
    assert_eq!(ran.code, 1);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(said["refused"], reason);

    written["clients"][0]["bundles"] = json!(["**"]);
    written["server"]
        .as_object_mut()
        .unwrap()
        .remove("ready_after");
    fs::write(&file, written.to_string()).unwrap();
    assert_eq!(reload().await, (StatusCode::OK, applied));
    assert_eq!(gateway.metric(successful).await, 1.0);
}
