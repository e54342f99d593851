//! How many connections requests take, and connections that end.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bundlegate::registry::{Credentials, Options, Timeouts};
use futures_util::future::join_all;
use h2::{Reason, server::SendResponse};
use hyper::Version;
use rustls::ServerConfig;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{Authority, Clients, reference_at, source_at};
use crate::{
    access::{Access, Scheme},
    faulty::{Fault, FaultyRegistry},
};

#[tokio::test]
async fn all_requests_to_a_registry_with_tls_share_one_http2_connection() {
    let authority = Authority::new();
    let tls = authority.server(&["127.0.0.1"], Clients::Anonymous);
    let registry = FaultyRegistry::start_secured(tls).await;
    let (_, layer) = registry.put_artifact("live", &[7; 300_000]);
    let source = registry.source_with(Options {
        extra_roots: authority.pem().into(),
        ..registry.options()
    });
    let reference = registry.reference("live");
    for _ in 0..20 {
        source.resolve(&reference).await.unwrap();
    }
    let requests = (0..40).map(|_| async {
        source.resolve(&reference).await.unwrap();
        source.blob(&layer).await.unwrap().collect().await.unwrap();
    });
    join_all(requests).await;
    let missing = registry.reference("none");
    source.resolve(&missing).await.unwrap_err();
    let asked = registry.asked("");
    assert!(asked.len() > 100);
    assert!(asked.iter().all(|asked| asked.version == Version::HTTP_2));
    assert_eq!(registry.connections(), 1);
}

#[tokio::test]
async fn a_server_without_http2_is_asked_over_http1() {
    let authority = Authority::new();
    let mut tls = authority.server(&["127.0.0.1"], Clients::Anonymous);
    tls.alpn_protocols.clear();
    let registry = FaultyRegistry::start_secured(tls).await;
    registry.put_artifact("live", b"bundle");
    let source = registry.source_with(Options {
        extra_roots: authority.pem().into(),
        ..registry.options()
    });
    for _ in 0..10 {
        source.resolve(&registry.reference("live")).await.unwrap();
    }
    assert_eq!(registry.asked("")[0].version, Version::HTTP_11);
    assert_eq!(registry.connections(), 1);
}

/// More than hyper reads by itself when an answer is dropped.
const PAGE: &str = match std::str::from_utf8(&[b' '; 40_000]) {
    Ok(page) => page,
    Err(_) => "",
};

#[tokio::test]
async fn over_http1_a_connection_is_used_again_after_answers_whose_body_nobody_needs() {
    let registry = FaultyRegistry::start().await;
    let (_, layer) = registry.put_artifact("live", b"bundle");
    registry.protect(Access::new(Scheme::Bearer, "robot:secret"));
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "secret").unwrap();
    let source = registry.source_with(Options {
        credentials: Some(Credentials::PasswordFile {
            username: "robot".to_owned(),
            password_file,
        }),
        ..registry.options()
    });
    for status in [404, 403, 500, 404] {
        registry.fail("GET", 1, Fault::Refuse(status, PAGE));
        let pinned = source.resolve(&registry.reference("live")).await.unwrap();
        let _ = source.manifest(&pinned).await;
        let _ = source.tagged_manifest("none").await;
        source.blob(&layer).await.unwrap().collect().await.unwrap();
    }
    assert_eq!(registry.connections(), 1, "{:?}", registry.asked(""));
}

/// What an HTTP/2 server does with a request.
#[derive(Debug, Clone, Copy)]
enum Step {
    NotFound,
    /// `REFUSED_STREAM`: the request was not processed.
    Refuse,
    /// `GOAWAY`, with the request not processed.
    GoAway,
    /// The connection ends without a word.
    Close,
    /// Nothing on this connection is answered or read any more.
    Dead,
}

/// An HTTP/2 server that takes the next step at each request.
async fn server(
    tls: ServerConfig,
    steps: Vec<Step>,
) -> (SocketAddr, Arc<Mutex<usize>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(Mutex::new(0));
    let tls = TlsAcceptor::from(Arc::new(tls));
    let count = Arc::clone(&taken);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, count, steps) = (tls.clone(), Arc::clone(&count), steps.clone());
            connections.spawn(async move {
                let stream = tls.accept(stream).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, answer))) = connection.accept().await {
                    let at = {
                        let mut count = count.lock().unwrap();
                        *count += 1;
                        *count - 1
                    };
                    match steps.get(at).copied().unwrap_or(Step::NotFound) {
                        Step::NotFound => not_found(answer),
                        Step::Refuse => reset(answer, Reason::REFUSED_STREAM),
                        Step::GoAway => {
                            connection.abrupt_shutdown(Reason::NO_ERROR);
                            while connection.accept().await.is_some() {}
                            return;
                        }
                        Step::Close => return,
                        Step::Dead => std::future::pending().await,
                    }
                }
            });
        }
    });
    (address, taken, tasks)
}

fn not_found(mut answer: SendResponse<bytes::Bytes>) {
    let response = hyper::Response::builder().status(404).body(()).unwrap();
    // The client may be gone.
    let _ = answer.send_response(response, true);
}

fn reset(mut answer: SendResponse<bytes::Bytes>, reason: Reason) {
    answer.send_reset(reason);
}

#[tokio::test]
async fn a_connection_that_ends_under_a_request_is_no_failure() {
    let authority = Authority::new();
    let mut undisturbed = None;
    for step in [
        Step::NotFound,
        Step::Refuse,
        Step::GoAway,
        Step::Close,
        Step::Dead,
    ] {
        let tls = authority.server(&["127.0.0.1"], Clients::Anonymous);
        let steps = vec![Step::NotFound, step];
        let (address, taken, _tasks) = server(tls, steps).await;
        let host = address.to_string();
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(6),
            total: Duration::from_secs(60),
        };
        let source = source_at(
            &host,
            Options {
                extra_roots: authority.pem().into(),
                timeouts,
                ..Options::default()
            },
        );
        for _ in 0..3 {
            let error = source.resolve(&reference_at(&host)).await.unwrap_err();
            assert_eq!(error.label(), "no_such_tag", "{step:?}: {error}");
        }
        // A step that is no answer costs one request more.
        let taken = *taken.lock().unwrap();
        match undisturbed {
            None => undisturbed = Some(taken),
            Some(requests) => assert_eq!(taken, requests + 1, "{step:?}"),
        }
    }
}
