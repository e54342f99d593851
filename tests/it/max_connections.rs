//! Clients that try to take all connections, and one that only wants its bundle. The former have no
//! more credentials than the latter.

use std::{sync::Arc, time::Duration};

use bundlegate::server::{Clients, Deadlines};
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
    gate::{Gate, HOUR, PATIENCE, Setup, bundle, error, eventually, header, tag, wishing},
};

const PLACES: usize = 8;

/// Nothing ends in these tests because its time is over, but only because its place is needed.
fn patient() -> Deadlines {
    Deadlines { handshake: HOUR, first_request: HOUR, head: HOUR, idle: HOUR, progress: HOUR, ..Deadlines::default() }
}

async fn gate(registry: &FaultyRegistry, setup: Setup) -> Gate {
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::with(registry, setup).await;
    eventually("it is served", || gate.state() == "serving").await;
    gate
}

/// Over a connection of its own.
async fn fresh(gate: &Gate) -> Response {
    let get = reqwest::Client::new().get(format!("http://{}/bundles/{}", gate.data, gate.name)).send();
    timeout(PATIENCE, get).await.expect("kept out").unwrap()
}

/// Twice as many as there are places, each of which comes back as often as it is sent away.
async fn an_honest_client_gets_in<F>(deadlines: Deadlines, attack: impl Fn(std::net::SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let registry = FaultyRegistry::start().await;
    let mut clients = Clients::default();
    clients.allow(&["**".to_owned()], None).unwrap();
    let setup = Setup { max_connections: PLACES, deadlines, clients: Some(clients), ..Setup::default() };
    let gate = gate(&registry, setup).await;
    let mut attackers = JoinSet::new();
    for _ in 0..2 * PLACES {
        attackers.spawn(attack(gate.data));
    }
    eventually("all places are taken", || gate.metrics.connections.get() >= PLACES as i64).await;
    for _ in 0..3 {
        assert_eq!(fresh(&gate).await.status(), StatusCode::OK);
        assert!(gate.metrics.connections.get() <= PLACES as i64);
    }
}

/// Sends this much and then nothing, again and again.
async fn sending(address: std::net::SocketAddr, bytes: &'static [u8]) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
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
        // Half a preface, and a whole one.
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // SETTINGS, and half a HEADERS frame.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\x05\0\0\0\x01",
        // A request body that does not come.
        b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    ] {
        an_honest_client_gets_in(patient(), move |address| sending(address, bytes)).await;
    }
}

/// Two such clients held all places for ever once.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_response_blocks_no_other_client() {
    for window in [0, 1] {
        an_honest_client_gets_in(patient(), move |address| async move {
            loop {
                let Ok(mut client) = Client::connect(address, window).await else {
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
    let setup = Setup { max_connections: PLACES, deadlines: patient(), tls: Some(Arc::new(tls)), ..Setup::default() };
    let gate = gate(&registry, setup).await;
    let mut attackers = JoinSet::new();
    for _ in 0..2 * PLACES {
        // The start of a ClientHello.
        attackers.spawn(sending(gate.data, b"\x16\x03\x01\x02\0\x01"));
    }
    eventually("all places are taken", || gate.metrics.connections.get() >= PLACES as i64).await;
    let root = reqwest::Certificate::from_der(made.cert.der()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let get = http.get(format!("https://localhost:{}/bundles/{}", gate.data.port(), gate.name)).send();
    assert_eq!(timeout(PATIENCE, get).await.expect("kept out").unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_response_that_is_not_taken_is_given_up_alone() {
    let registry = FaultyRegistry::start().await;
    let deadlines = Deadlines { progress: Duration::from_millis(300), ..Deadlines::default() };
    let gate = gate(&registry, Setup { deadlines, ..Setup::default() }).await;
    let etag = tag(&gate.get("", 0).await);
    for window in [0, 1] {
        let mut client = Client::connect(gate.data, window).await.unwrap();
        let path = format!("/bundles/{}", gate.name);
        let waiting = [("if-none-match", &*etag), ("prefer", "wait=300")];
        let held = client.ask("HEAD", &path, &waiting).await.unwrap();
        eventually("it is held", || gate.waiters() == 1).await;
        let stuck = [client.ask("GET", &path, &[]).await.unwrap(), client.ask("GET", "/nope", &[]).await.unwrap()];
        for _ in stuck {
            timeout(PATIENCE, client.until(|frame| frame.kind == RESET)).await.expect("kept for ever").unwrap();
        }
        assert!(stuck.iter().all(|stream| client.resets().contains(stream)));
        assert_eq!(gate.waiters(), 1);
        registry.put_artifact("live", &bundle(&format!("after {window}")));
        let answer = client.until(|frame| frame.kind == HEADERS && frame.stream == held);
        assert!(timeout(PATIENCE, answer).await.unwrap().unwrap().ends_stream());
        registry.put_artifact("live", &bundle("one"));
        eventually("it is back", || gate.status().etag.as_deref() == Some(&*etag)).await;
    }
}

/// A client that could only be told to wait is told to come back, and one that asks for what there
/// is gets it.
#[tokio::test]
async fn long_polls_take_at_most_nine_tenths_of_max_connections_and_the_next_one_gets_503() {
    let registry = FaultyRegistry::start().await;
    let gate = gate(&registry, Setup { max_connections: 10, ..Setup::default() }).await;
    let etag = tag(&gate.get("", 0).await);
    let url = format!("http://{}/bundles/{}", gate.data, gate.name);
    let polling = |http: reqwest::Client| wishing(http.get(&url), &etag, 300).send();
    let mut waiting: Vec<_> = (0..9).map(|_| tokio::spawn(polling(reqwest::Client::new()))).collect();
    eventually("nine wait", || gate.waiters() == 9).await;
    for _ in 0..2 {
        let refused = timeout(PATIENCE, polling(reqwest::Client::new())).await.unwrap().unwrap();
        assert_eq!((refused.status(), header(&refused, "connection")), (StatusCode::SERVICE_UNAVAILABLE, "close"));
        let error = error(refused).await;
        assert_eq!((&error["reason"], &error["bundle"]), (&"unavailable".into(), &gate.name.into()));
        assert_eq!(fresh(&gate).await.status(), StatusCode::OK);
    }
    let refused = gate.metrics.http_requests.with_label_values(&[gate.name, "503"]).get();
    assert_eq!((refused, gate.waiters()), (2, 9), "refused requests count once, and nobody is sent away for them");
    // A place that becomes free is given to the next one.
    waiting.pop().unwrap().abort();
    eventually("one has left", || gate.waiters() == 8).await;
    waiting.push(tokio::spawn(polling(reqwest::Client::new())));
    eventually("nine wait again", || gate.waiters() == 9).await;
    registry.put_artifact("live", &bundle("two"));
    for woken in waiting {
        assert_eq!(timeout(PATIENCE, woken).await.unwrap().unwrap().unwrap().status(), StatusCode::OK);
    }
}

/// What a balancer does; it has many clients and one connection.
#[tokio::test]
async fn many_long_polls_over_one_connection_take_one_place() {
    let registry = FaultyRegistry::start().await;
    let gate = gate(&registry, Setup { max_connections: 3, ..Setup::default() }).await;
    let etag = tag(&gate.get("", 0).await);
    let stream = TcpStream::connect(gate.data).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let asking = || {
        Request::get(format!("http://{}/bundles/{}", gate.data, gate.name))
            .header("if-none-match", &etag)
            .header("prefer", "wait=300")
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let waiting: Vec<_> = (0..200).map(|_| tokio::spawn(sender.clone().send_request(asking()))).collect();
    eventually("all of them wait", || gate.waiters() == 200).await;
    let other = tokio::spawn(wishing(gate.http.get(format!("http://{}/authz/main", gate.data)), &etag, 300).send());
    eventually("and another one", || gate.waiters() == 201).await;
    registry.put_artifact("live", &bundle("two"));
    for woken in waiting {
        assert_eq!(woken.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::OK);
    drop(sender);
    connection.await.unwrap().unwrap();
}

/// What there is to say is said by the headers alone.
#[tokio::test]
async fn a_response_to_head_has_the_headers_of_get_and_no_data_over_both_protocols() {
    let registry = FaultyRegistry::start().await;
    let mut clients = Clients::default();
    clients.allow(&["authz/**".into()], Some(&[b"one"])).unwrap();
    let gate = gate(&registry, Setup { clients: Some(clients), ..Setup::default() }).await;
    let served = gate.request(reqwest::Method::GET, "/authz/main").bearer_auth("one").send().await.unwrap();
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
        let mut told = Vec::new();
        for http in [reqwest::Client::builder().http1_only(), reqwest::Client::builder().http2_prior_knowledge()] {
            let http = http.build().unwrap();
            for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
                let request = http.request(method.clone(), format!("http://{address}{path}"));
                let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), status, "{method} {path}");
                let mut said: Vec<_> = response
                    .headers()
                    .iter()
                    // Counters count the requests of this test, too.
                    .filter(|(name, _)| *name != "date" && !(path == "/metrics" && *name == "content-length"))
                    .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                    .collect();
                said.sort();
                let length = response.content_length();
                let body = response.bytes().await.unwrap();
                match method {
                    reqwest::Method::HEAD => assert!(body.is_empty(), "{path}"),
                    _ => assert_eq!(body.len() as u64, length.unwrap_or_default(), "{path}"),
                }
                told.push(said);
            }
        }
        assert!(told.iter().all(|said| *said == told[0]), "{path} {status}: {told:#?}");
        let mut client = Client::connect(address, 65_535).await.unwrap();
        let stream = client.ask("HEAD", path, headers).await.unwrap();
        let last = timeout(PATIENCE, client.until(|frame| frame.stream == stream && frame.ends_stream()));
        assert_eq!(last.await.unwrap().unwrap().kind, HEADERS, "{path} {status}");
        assert!(client.seen.iter().all(|frame| frame.kind != DATA), "{path} {status}");
    }
}

/// Behind a fleet's balancer there are many addresses; anybody can write one.
#[tokio::test]
async fn x_forwarded_for_counts_only_from_trusted_proxies() {
    for (trusted, counted) in [(&["127.0.0.0/8"][..], "5"), (&["192.0.2.0/24"], "1"), (&[], "1")] {
        let registry = FaultyRegistry::start().await;
        let signer = crate::signing::Signer::new();
        let (digest, _) = registry.put_artifact("live", &bundle("one"));
        signer.sign_bundle(&registry, &digest);
        let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let trusted_proxies = bundlegate::server::TrustedProxies::new(networks);
        let gate = Gate::with(&registry, Setup { policy: signer.policy(), trusted_proxies, ..Setup::default() }).await;
        let etag = tag(&gate.get("", 60).await);
        gate.trust(crate::signing::Signer::new().policy());
        eventually("it is withdrawn", || gate.state() == "withdrawn").await;
        for number in 0..5 {
            let request = gate.asking(&etag, 0).header("x-forwarded-for", format!("198.51.100.{number}"));
            // Nor does another header of the kind.
            let response = request.header("forwarded", format!("for=198.51.100.{number}")).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(gate.gauge("bundlegate_lost_clients").await, counted, "{trusted:?}");
    }
}

/// A token that is taken away while its request is held opens nothing any more.
#[tokio::test]
async fn a_request_that_is_held_is_answered_by_what_its_token_opens_then() {
    let registry = FaultyRegistry::start().await;
    let with = |token: &[u8]| {
        let mut clients = Clients::default();
        clients.allow(&["**".into()], Some(&[token])).unwrap();
        clients
    };
    let gate = gate(&registry, Setup { clients: Some(with(b"one")), ..Setup::default() }).await;
    let asking = |tags: &str, wait, token: &str| gate.asking(tags, wait).bearer_auth(token).send();
    let etag = tag(&asking("", 0, "one").await.unwrap());
    let held = tokio::spawn(asking(&etag, 300, "one"));
    eventually("it is held", || gate.waiters() == 1).await;
    gate.clients.replace(with(b"two"));
    assert_eq!(asking("", 0, "one").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(asking("", 0, "two").await.unwrap().status(), StatusCode::OK);
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(timeout(PATIENCE, held).await.unwrap().unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
}
