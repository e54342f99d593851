//! Clients that try to take all connections, and one that only wants its bundle. The former have no
//! more credentials than the latter.

use std::{sync::Arc, time::Duration};

use bundlegate::server::Deadlines;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::{Response, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    faulty::FaultyRegistry,
    frames::{Client, DATA, HEADERS, RESET},
    gateway::{
        HOUR, InProcess, PATIENCE, Setup, TestGateway, bundle, clients, error, eventually, header,
        tag, wishing,
    },
};

const MAX_CONNECTIONS: usize = 8;

/// In these tests no connection exceeds a deadline; connections are closed by eviction only.
fn long_deadlines() -> Deadlines {
    Deadlines {
        handshake: HOUR,
        first_request: HOUR,
        head: HOUR,
        idle: HOUR,
        progress: HOUR,
        ..Deadlines::default()
    }
}

async fn gate(registry: &FaultyRegistry, setup: Setup) -> TestGateway<InProcess> {
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::with(registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    gate
}

/// Fetches the bundle over a new connection.
async fn fetch_over_new_connection(gate: &TestGateway<InProcess>) -> Response {
    let url = format!("http://{}/bundles/{}", gate.data, gate.name());
    admitted(&reqwest::Client::new(), &url).await
}

/// Fetches a bundle over new connections, as OPA does after an error. A loaded machine may read a
/// request only after `new_connection_grace`, when its connection may have been evicted.
async fn admitted(http: &reqwest::Client, url: &str) -> Response {
    let fetched = async {
        loop {
            match http.get(url).send().await {
                Ok(response) => return response,
                Err(error) => eprintln!("not admitted yet: {error:?}"),
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, fetched).await.expect("not admitted")
}

/// Runs twice as many attackers as there may be connections, each of which reconnects whenever it
/// is evicted, and asserts that another client is served.
async fn assert_client_is_served_during<F>(
    deadlines: Deadlines,
    attack: impl Fn(std::net::SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let registry = FaultyRegistry::start().await;
    let setup = Setup {
        max_connections: MAX_CONNECTIONS,
        deadlines,
        ..Setup::default()
    };
    let gate = gate(&registry, setup).await;
    let mut attackers = JoinSet::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        attackers.spawn(attack(gate.data));
    }
    eventually("all connections are in use", || {
        gate.connections() >= MAX_CONNECTIONS
    })
    .await;
    for _ in 0..3 {
        assert_eq!(
            fetch_over_new_connection(&gate).await.status(),
            StatusCode::OK
        );
        assert!(gate.connections() <= MAX_CONNECTIONS);
    }
}

/// Connects, sends `bytes` and nothing else, again and again.
async fn send_repeatedly(address: std::net::SocketAddr, bytes: &'static [u8]) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            // Connecting fails at once, so the loop would take a whole CPU without a pause.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        if stream.write_all(bytes).await.is_ok() {
            let mut ignored = Vec::new();
            let _ = stream.read_to_end(&mut ignored).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_or_incomplete_request_blocks_no_other_client() {
    for bytes in [
        &b""[..],
        b"G",
        b"GET /nope HTTP/1.1\r\nHost: x",
        b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\nGET /nope HT",
        b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n",
        // An incomplete preface, and a complete one.
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // SETTINGS, and an incomplete HEADERS frame.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\x05\0\0\0\x01",
        // A request body that never arrives.
        b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    ] {
        assert_client_is_served_during(long_deadlines(), move |address| {
            send_repeatedly(address, bytes)
        })
        .await;
    }
}

/// Once, two such clients occupied all connections for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_response_blocks_no_other_client() {
    for window in [0, 1] {
        assert_client_is_served_during(long_deadlines(), move |address| async move {
            loop {
                let Ok(mut client) = Client::connect(address, window).await else {
                    // As above: a pause keeps this loop from taking a whole CPU.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                };
                for _ in 0..3 {
                    let _ = client.ask("GET", "/nope", &[]).await;
                }
                client.live().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_tls_handshake_blocks_no_other_client() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let registry = FaultyRegistry::start().await;
    let setup = Setup {
        max_connections: MAX_CONNECTIONS,
        deadlines: long_deadlines(),
        tls: Some(Arc::new(tls)),
        ..Setup::default()
    };
    let gate = gate(&registry, setup).await;
    let mut attackers = JoinSet::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        // The start of a ClientHello.
        attackers.spawn(send_repeatedly(gate.data, b"\x16\x03\x01\x02\0\x01"));
    }
    eventually("all connections are in use", || {
        gate.connections() >= MAX_CONNECTIONS
    })
    .await;
    let root = reqwest::Certificate::from_der(made.cert.der()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([root])
        .build()
        .unwrap();
    let url = format!(
        "https://localhost:{}/bundles/{}",
        gate.data.port(),
        gate.name()
    );
    assert_eq!(admitted(&http, &url).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_response_that_is_not_read_is_reset_alone() {
    let registry = FaultyRegistry::start().await;
    let deadlines = Deadlines {
        progress: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let gate = gate(
        &registry,
        Setup {
            deadlines,
            ..Setup::default()
        },
    )
    .await;
    let etag = tag(&gate.get("", 0).await);
    for window in [0, 1] {
        let mut client = Client::connect(gate.data, window).await.unwrap();
        let path = format!("/bundles/{}", gate.name());
        let waiting = [("if-none-match", &*etag), ("prefer", "wait=300")];
        let held = client.ask("HEAD", &path, &waiting).await.unwrap();
        eventually("it is held", || gate.waiters() == 1).await;
        let stalled = [
            client.ask("GET", &path, &[]).await.unwrap(),
            client.ask("GET", "/nope", &[]).await.unwrap(),
        ];
        for _ in stalled {
            timeout(PATIENCE, client.until(|frame| frame.kind == RESET))
                .await
                .expect("not reset")
                .unwrap();
        }
        assert!(
            stalled
                .iter()
                .all(|stream| client.resets().contains(stream))
        );
        assert_eq!(gate.waiters(), 1);
        registry.put_artifact("live", &bundle(&format!("after {window}")));
        let answer = client.until(|frame| frame.kind == HEADERS && frame.stream == held);
        assert!(
            timeout(PATIENCE, answer)
                .await
                .unwrap()
                .unwrap()
                .ends_stream()
        );
        registry.put_artifact("live", &bundle("one"));
        eventually("the first version is served again", || {
            gate.status().etag.as_deref() == Some(&*etag)
        })
        .await;
    }
}

/// A request that would have to be held gets 503, and one that can be answered at once is answered.
#[tokio::test]
async fn long_polls_take_at_most_nine_tenths_of_max_connections_and_the_next_one_gets_503() {
    let registry = FaultyRegistry::start().await;
    let gate = gate(
        &registry,
        Setup {
            max_connections: 10,
            ..Setup::default()
        },
    )
    .await;
    let etag = tag(&gate.get("", 0).await);
    let url = format!("http://{}/bundles/{}", gate.data, gate.name());
    let polling = |http: reqwest::Client| wishing(http.get(&url), &etag, 300).send();
    let mut waiting: Vec<_> = (0..9)
        .map(|_| tokio::spawn(polling(reqwest::Client::new())))
        .collect();
    eventually("nine requests are held", || gate.waiters() == 9).await;
    for _ in 0..2 {
        let refused = timeout(PATIENCE, polling(reqwest::Client::new()))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (refused.status(), header(&refused, "connection")),
            (StatusCode::SERVICE_UNAVAILABLE, "close")
        );
        let error = error(refused).await;
        assert_eq!(
            (&error["reason"], &error["bundle"]),
            (&"unavailable".into(), &gate.name().into())
        );
        assert_eq!(
            fetch_over_new_connection(&gate).await.status(),
            StatusCode::OK
        );
    }
    let refused = gate.count(&format!(
        r#"bundlegate_http_requests_total{{bundle="{}",code="503"}}"#,
        gate.name()
    ));
    assert_eq!(
        (refused, gate.waiters()),
        (2, 9),
        "refused requests count once, and no held request is answered for them"
    );
    // When a held request ends, the next one is held.
    waiting.pop().unwrap().abort();
    eventually("eight requests are held", || gate.waiters() == 8).await;
    waiting.push(tokio::spawn(polling(reqwest::Client::new())));
    eventually("nine requests are held again", || gate.waiters() == 9).await;
    registry.put_artifact("live", &bundle("two"));
    for woken in waiting {
        assert_eq!(
            timeout(PATIENCE, woken)
                .await
                .unwrap()
                .unwrap()
                .unwrap()
                .status(),
            StatusCode::OK
        );
    }
}

/// A load balancer sends the requests of many clients over one connection.
#[tokio::test]
async fn many_held_requests_over_one_connection_count_as_one_connection() {
    let registry = FaultyRegistry::start().await;
    let gate = gate(
        &registry,
        Setup {
            max_connections: 3,
            ..Setup::default()
        },
    )
    .await;
    let etag = tag(&gate.get("", 0).await);
    let stream = TcpStream::connect(gate.data).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let asking = || {
        Request::get(format!("http://{}/bundles/{}", gate.data, gate.name()))
            .header("if-none-match", &etag)
            .header("prefer", "wait=300")
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let waiting: Vec<_> = (0..200)
        .map(|_| tokio::spawn(sender.clone().send_request(asking())))
        .collect();
    eventually("200 requests are held", || gate.waiters() == 200).await;
    let other = tokio::spawn(
        wishing(
            gate.http.get(format!("http://{}/authz/main", gate.data)),
            &etag,
            300,
        )
        .send(),
    );
    eventually("another one is held", || gate.waiters() == 201).await;
    registry.put_artifact("live", &bundle("two"));
    for woken in waiting {
        assert_eq!(woken.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::OK);
    drop(sender);
    connection.await.unwrap().unwrap();
}

/// A response to HEAD consists of headers alone (RFC 9110 §9.3.2).
#[tokio::test]
async fn a_response_to_head_has_the_headers_of_get_and_no_data_over_both_protocols() {
    let registry = FaultyRegistry::start().await;
    let clients = clients(&[("authz/**", Some("one"))]);
    let gate = gate(
        &registry,
        Setup {
            clients: Some(clients),
            ..Setup::default()
        },
    )
    .await;
    let served = gate
        .request(reqwest::Method::GET, "/authz/main")
        .bearer_auth("one")
        .send()
        .await
        .unwrap();
    let etag = tag(&served);
    let known = [("authorization", "Bearer one")];
    let runs = [known[0], ("if-none-match", &*etag)];
    for (address, path, headers, status) in [
        (gate.data, "/bundles/authz/main", &known[..], 200),
        (gate.data, "/bundles/authz/main", &runs, 304),
        (gate.data, "/bundles/authz/none", &known, 404),
        (gate.data, "/bundles/authz/main", &[], 401),
        (gate.data, "/bundles/%zz", &known, 400),
        (gate.admin, "/livez", &[], 200),
        (gate.admin, "/readyz", &[], 200),
        (gate.admin, "/metrics", &[], 200),
        (gate.admin, "/status", &[], 200),
        (gate.admin, "/nope", &[], 404),
    ] {
        let mut responses = Vec::new();
        for http in [
            reqwest::Client::builder().http1_only(),
            reqwest::Client::builder().http2_prior_knowledge(),
        ] {
            let http = http.build().unwrap();
            for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
                let request = http.request(method.clone(), format!("http://{address}{path}"));
                let request = headers.iter().fold(request, |request, (name, value)| {
                    request.header(*name, *value)
                });
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), status, "{method} {path}");
                let mut seen: Vec<_> = response
                    .headers()
                    .iter()
                    // The size of /metrics changes with the requests of this test.
                    .filter(|(name, _)| {
                        *name != "date" && !(path == "/metrics" && *name == "content-length")
                    })
                    .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                    .collect();
                seen.sort();
                let length = response.content_length();
                let body = response.bytes().await.unwrap();
                match method {
                    reqwest::Method::HEAD => assert!(body.is_empty(), "{path}"),
                    _ => assert_eq!(body.len() as u64, length.unwrap_or_default(), "{path}"),
                }
                responses.push(seen);
            }
        }
        assert!(
            responses.iter().all(|seen| *seen == responses[0]),
            "{path} {status}: {responses:#?}"
        );
        let mut client = Client::connect(address, 65_535).await.unwrap();
        let stream = client.ask("HEAD", path, headers).await.unwrap();
        let last = timeout(
            PATIENCE,
            client.until(|frame| frame.stream == stream && frame.ends_stream()),
        );
        assert_eq!(
            last.await.unwrap().unwrap().kind,
            HEADERS,
            "{path} {status}"
        );
        assert!(
            client.seen.iter().all(|frame| frame.kind != DATA),
            "{path} {status}"
        );
    }
}

/// `X-Forwarded-For` names the many clients behind a load balancer, and any client can send it.
#[tokio::test]
async fn x_forwarded_for_counts_only_from_trusted_proxies() {
    for (trusted, counted) in [
        (&["127.0.0.0/8"][..], "5"),
        (&["192.0.2.0/24"], "1"),
        (&[], "1"),
    ] {
        let registry = FaultyRegistry::start().await;
        let signer = crate::signing::Signer::new();
        let (digest, _) = registry.put_artifact("live", &bundle("one"));
        signer.sign_bundle(&registry, &digest);
        let networks = trusted
            .iter()
            .map(|network| network.parse().unwrap())
            .collect();
        let trusted_proxies = bundlegate::server::TrustedProxies::new(networks);
        let gate = TestGateway::with(
            &registry,
            Setup {
                policy: signer.policy(),
                trusted_proxies,
                ..Setup::default()
            },
        )
        .await;
        let etag = tag(&gate.get("", 60).await);
        gate.trust(crate::signing::Signer::new().policy());
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
        for number in 0..5 {
            let request = gate
                .asking(&etag, 0)
                .header("x-forwarded-for", format!("198.51.100.{number}"));
            // `Forwarded` is ignored.
            let response = request
                .header("forwarded", format!("for=198.51.100.{number}"))
                .send()
                .await
                .unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(
            gate.gauge("bundlegate_lost_clients").await,
            counted,
            "{trusted:?}"
        );
    }
}

/// A request whose token is removed while it is held gets 401.
#[tokio::test]
async fn a_held_request_is_authorized_again_when_it_is_answered() {
    let registry = FaultyRegistry::start().await;
    let with = |token: &str| clients(&[("**", Some(token))]);
    let gate = gate(
        &registry,
        Setup {
            clients: Some(with("one")),
            ..Setup::default()
        },
    )
    .await;
    let asking = |tags: &str, wait, token: &str| gate.asking(tags, wait).bearer_auth(token).send();
    let etag = tag(&asking("", 0, "one").await.unwrap());
    let held = tokio::spawn(asking(&etag, 300, "one"));
    eventually("it is held", || gate.waiters() == 1).await;
    gate.clients().replace(with("two"));
    assert_eq!(
        asking("", 0, "one").await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(asking("", 0, "two").await.unwrap().status(), StatusCode::OK);
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(
        timeout(PATIENCE, held)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .status(),
        StatusCode::UNAUTHORIZED
    );
}
