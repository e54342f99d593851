//! HTTP/1.1 on hyper.

use std::{convert::Infallible, pin::pin, sync::Arc};

use hyper::{
    Request, body::Incoming, header::CONNECTION, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;

use super::{
    connection::{CONNECTION_CLOSE, ConnectionContext, Transport, complete_headers},
    delivery::Delivery,
    request_body::RequestBody,
    response_body::Http1Body,
    service::Service,
};

/// The size of a request line and its headers.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Serves a connection until it is closed.
pub(super) async fn serve<S: Transport, V: Service>(
    stream: S,
    service: Arc<V>,
    context: ConnectionContext,
) {
    let (peer, drain) = (context.peer.clone(), context.drain.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let active = peer.slot.begin_request();
        let (method, slot, drain) = (
            request.method().clone(),
            Arc::clone(&peer.slot),
            drain.clone(),
        );
        let answer = service.answer(request.map(RequestBody::Http1), &peer);
        async move {
            let mut response = answer.get().await;
            if drain.is_draining() {
                response.headers_mut().insert(CONNECTION, CONNECTION_CLOSE);
            }
            complete_headers(&method, &mut response);
            let delivery = Delivery::take(&mut response);
            let response = response.map(|body| {
                let unsent = (body.size() > 0).then(|| slot.begin_response());
                Http1Body::new(body, unsent, delivery)
            });
            drop(active);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    // The deadlines of a connection are enforced for all connections at once, by their slots.
    builder
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES);
    let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    context
        .run_until_closed(connection, |connection| connection.graceful_shutdown())
        .await;
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use bytes::Bytes;
    use hyper::Response;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        sync::watch,
        task::JoinHandle,
        time::{Instant, advance},
    };

    use super::*;
    use crate::server::{
        Deadlines,
        connection::Peer,
        drain::{DrainSignal, Phase},
        idle_connections::{IdleConnections, Limits, Slot},
        response_body::ResponseBody,
        service::Answer,
        write_timeout::WriteTimeout,
    };

    /// A connection that gets `body`, and whose deadlines are enforced.
    fn connected(body: ResponseBody) -> (DuplexStream, Arc<Slot>, JoinHandle<()>) {
        let deadlines = Deadlines::default();
        let connections = IdleConnections::new(Limits::new(10, 10, deadlines));
        let slot = connections.register();
        let (client, server) = duplex(1 << 10);
        let peer = Peer {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            certificate: None,
            slot: Arc::clone(&slot),
            is_over_limit: false,
        };
        let drain = DrainSignal::new(watch::channel(Phase::Open).1);
        let context = ConnectionContext { peer, drain };
        let server = WriteTimeout::new(server, deadlines.progress, Arc::clone(&slot));
        let service = Arc::new(move |_: Request<RequestBody>, _: &Peer| {
            Answer::Now(Response::new(body.clone()))
        });
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = serve(server, service, context) => {}
                () = connections.enforce_deadlines() => {}
            }
        });
        (client, slot, serving)
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Once, 200 incomplete requests occupied 200 connections for 179 s.
    #[tokio::test(start_paused = true)]
    async fn an_incomplete_request_has_a_deadline_and_is_evictable() {
        let deadlines = Deadlines::default();
        for (before, limit) in [
            (&b""[..], deadlines.first_request),
            (REQUEST, deadlines.head),
        ] {
            for evicted in [false, true] {
                let (mut stream, slot, serving) =
                    connected(ResponseBody::Memory(Bytes::from_static(b"x")));
                stream.write_all(before).await.unwrap();
                if !before.is_empty() {
                    let mut read = [0; 512];
                    assert!(stream.read(&mut read).await.unwrap() > 0);
                }
                let began = Instant::now();
                stream
                    .write_all(b"GET /nope HTTP/1.1\r\nHost: ")
                    .await
                    .unwrap();
                if evicted {
                    advance(deadlines.new_connection_grace).await;
                    assert!(slot.evict());
                }
                serving.await.unwrap();
                let limit = if evicted {
                    deadlines.new_connection_grace
                } else {
                    limit
                };
                assert_eq!(began.elapsed(), limit, "{evicted} after {before:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_not_read_has_a_deadline_and_is_evictable_before_it() {
        let deadlines = Deadlines::default();
        for evicted in [false, true] {
            let (mut stream, slot, serving) =
                connected(ResponseBody::Memory(vec![0; 1 << 20].into()));
            stream.write_all(REQUEST).await.unwrap();
            let began = Instant::now();
            if evicted {
                advance(Duration::from_millis(1)).await;
                assert!(!slot.evict());
                advance(deadlines.stalled_response_grace).await;
                assert!(slot.evict());
            }
            serving.await.unwrap();
            let limit = if evicted {
                deadlines.stalled_response_grace + Duration::from_millis(1)
            } else {
                deadlines.progress
            };
            assert_eq!(began.elapsed(), limit);
        }
    }
}
