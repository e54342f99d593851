//! `server.drain`: a replica stops without an error for any client.

use std::time::Duration;

use bundlegate::server::Drain;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, PATIENCE, Setup, TestGateway, bundle, eventually, header, tag},
    shared::poll_until,
};

async fn gate(
    registry: &FaultyRegistry,
    notice: Duration,
    over: Duration,
) -> TestGateway<InProcess> {
    registry.put_artifact("live", &bundle("one"));
    TestGateway::with(
        registry,
        Setup {
            drain: Drain { notice, over },
            ..Setup::default()
        },
    )
    .await
}

async fn not_ready(gate: &TestGateway<InProcess>) {
    poll_until("the replica is not ready", async || {
        let status = gate.admin_response("/readyz").await.status();
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_during_drain_notice_are_answered_at_once_with_connection_close() {
    let registry = FaultyRegistry::start().await;
    let mut gate = gate(&registry, HOUR, HOUR).await;
    let etag = tag(&gate.get("", 0).await);
    let waiting = tokio::spawn(gate.asking(&etag, 300).send());
    eventually("it waits", || gate.waiters() == 1).await;
    gate.begin_to_drain();
    not_ready(&gate).await;
    for (tags, wait, status) in [
        ("", 0, StatusCode::OK),
        (&*etag, 0, StatusCode::NOT_MODIFIED),
        (&etag, 300, StatusCode::NOT_MODIFIED),
    ] {
        let answer = timeout(PATIENCE, gate.get(tags, wait)).await.expect("held");
        assert_eq!(
            (answer.status(), header(&answer, "connection")),
            (status, "close"),
            "{tags} {wait}"
        );
    }
    // A request that was held before is still held, and a change still answers it.
    assert_eq!(gate.waiters(), 1);
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(
        timeout(PATIENCE, waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .status(),
        StatusCode::OK
    );
    gate.until_drained().await;
}

#[tokio::test]
async fn waiting_clients_are_released_over_drain_over_with_304_and_the_tag_they_sent() {
    let registry = FaultyRegistry::start().await;
    let notice = Duration::from_secs(1);
    let mut gate = gate(&registry, notice, Duration::from_secs(1)).await;
    let etag = tag(&gate.get("", 0).await);
    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(gate.asking(&etag, 300).send()))
        .collect();
    eventually("they wait", || gate.waiters() == 20).await;
    let began = Instant::now();
    gate.begin_to_drain();
    for waiting in waiting {
        let released = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
        assert!(
            began.elapsed() >= notice,
            "released after {:?} already",
            began.elapsed()
        );
        assert_eq!(
            (released.status(), header(&released, "connection")),
            (StatusCode::NOT_MODIFIED, "close")
        );
        assert_eq!(tag(&released), etag);
    }
    gate.until_drained().await;
    // Not at once: another test may use the port for a while.
    eventually("the port is closed", || {
        std::net::TcpStream::connect(gate.data).is_err()
    })
    .await;
}

#[tokio::test]
async fn a_request_that_waits_for_a_silent_registry_is_released_with_304_too() {
    let registry = FaultyRegistry::start().await;
    let mut gate = gate(&registry, Duration::ZERO, Duration::from_secs(1)).await;
    let etag = tag(&gate.get("", 0).await);
    registry.fail("", usize::MAX, Fault::Stall);
    let disagreeing = tokio::spawn(gate.asking(&format!("\"another\", {etag}"), 300).send());
    eventually("it waits", || gate.waiters() == 1).await;
    gate.begin_to_drain();
    let released = timeout(PATIENCE, disagreeing)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (released.status(), tag(&released)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    gate.until_drained().await;
}

#[tokio::test]
async fn drain_ends_early_when_no_client_is_connected() {
    let registry = FaultyRegistry::start().await;
    let mut unconnected = gate(&registry, HOUR, HOUR).await;
    unconnected.begin_to_drain();
    unconnected.until_drained().await;
    // It also ends when the last connection closes.
    let mut gate = gate(&registry, HOUR, HOUR).await;
    let etag = tag(&gate.get("", 0).await);
    let waiting = tokio::spawn(gate.asking(&etag, 300).send());
    eventually("it waits", || gate.waiters() == 1).await;
    gate.begin_to_drain();
    assert_eq!(header(&gate.get("", 0).await, "connection"), "close");
    assert_eq!(gate.waiters(), 1);
    waiting.abort();
    gate.until_drained().await;
}

/// An HTTP/2 connection: its sender and its task.
async fn connected(
    gate: &TestGateway<InProcess>,
) -> (
    http2::SendRequest<Empty<Bytes>>,
    JoinHandle<hyper::Result<()>>,
) {
    let stream = TcpStream::connect(gate.data).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

fn asking(gate: &TestGateway<InProcess>, etag: &str, wait: u32) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{}/bundles/{}", gate.data, gate.name()))
        .header("if-none-match", etag)
        .header("prefer", format!("wait={wait}"))
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn over_http_2_a_response_closes_the_connection_to_new_requests_only() {
    let registry = FaultyRegistry::start().await;
    let mut gate = gate(&registry, HOUR, HOUR).await;
    let (mut sender, connection) = connected(&gate).await;
    let first = sender.send_request(asking(&gate, "", 0)).await.unwrap();
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    drop(first);
    let waiting = tokio::spawn(sender.send_request(asking(&gate, &etag, 300)));
    eventually("it waits", || gate.waiters() == 1).await;
    gate.begin_to_drain();
    not_ready(&gate).await;
    let answer = sender
        .send_request(asking(&gate, &etag, 300))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    // GOAWAY has arrived when no further request can be sent on this connection.
    let closed_for_requests =
        async { while sender.send_request(asking(&gate, &etag, 300)).await.is_ok() {} };
    timeout(PATIENCE, closed_for_requests)
        .await
        .expect("the connection accepts requests for ever");
    // Another connection is still accepted, and closed after its response.
    let (mut other, ended) = connected(&gate).await;
    let answer = other.send_request(asking(&gate, &etag, 300)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    drop(answer);
    timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
    // The request that is held on the first is still held, and a change still answers it.
    assert_eq!(gate.waiters(), 1);
    registry.put_artifact("live", &bundle("two"));
    assert_eq!(
        timeout(PATIENCE, waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .status(),
        StatusCode::OK
    );
    timeout(PATIENCE, connection)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    gate.until_drained().await;
}

#[tokio::test]
async fn over_http_2_too_waiting_clients_are_released_with_304() {
    let registry = FaultyRegistry::start().await;
    let mut gate = gate(
        &registry,
        Duration::from_millis(500),
        Duration::from_millis(500),
    )
    .await;
    let etag = tag(&gate.get("", 0).await);
    let (mut sender, connection) = connected(&gate).await;
    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(sender.send_request(asking(&gate, &etag, 300))))
        .collect();
    eventually("they wait", || gate.waiters() == 20).await;
    gate.begin_to_drain();
    for waiting in waiting {
        let released = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(released.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(released.headers()["etag"], etag);
    }
    timeout(PATIENCE, connection)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    gate.until_drained().await;
}
