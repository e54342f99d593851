//! HTTP/1.1, by hyper.

use std::{convert::Infallible, pin::pin, sync::Arc};

use hyper::{Request, Response, body::Incoming, header::CONNECTION, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    connection::{CLOSE, Caller, Context, Transport, complete},
    response_body::{Content, Sending},
};

/// Request lines and headers together.
const HEADER_BYTES: usize = 64 << 10;

/// Serves a connection until it ends.
pub(super) async fn serve<S, H, F>(stream: S, handle: H, context: Context)
where
    S: Transport,
    H: Fn(Request<()>, Caller) -> F,
    F: Future<Output = Response<Content>> + Send + 'static,
{
    let (caller, leaving) = (context.caller.clone(), context.leaving.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = caller.seat.busy();
        let (method, seat, leaving) = (request.method().clone(), Arc::clone(&caller.seat), leaving.clone());
        let answer = handle(request.map(drop), caller.clone());
        async move {
            let mut response = answer.await;
            if leaving.has_begun() {
                response.headers_mut().insert(CONNECTION, CLOSE);
            }
            complete(&method, &mut response);
            let response = response.map(|content| {
                let responding = (content.size() > 0).then(|| seat.respond());
                Sending::new(content, responding)
            });
            drop(busy);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    // hyper counts the idle time between two requests in; OPA polls every two minutes at most
    // by default. A request that comes too slowly is noticed by its seat.
    builder.timer(TokioTimer::new()).header_read_timeout(context.deadlines.idle).max_buf_size(HEADER_BYTES);
    let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    context.until_ended(connection, |connection| connection.graceful_shutdown()).await;
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        sync::watch,
        task::JoinHandle,
        time::{Instant, advance},
    };

    use super::*;
    use crate::server::{
        Deadlines,
        drain::{Leaving, Phase},
        idle_connections::{Idle, Limits, Seat},
        write_timeout::Patient,
    };

    fn connected(content: Content) -> (DuplexStream, Arc<Seat>, JoinHandle<()>) {
        let deadlines = Deadlines::default();
        let seat = Idle::new(Limits::new(10, 10, deadlines)).seat();
        let (far, near) = duplex(1 << 10);
        let caller = Caller { address: IpAddr::V4(Ipv4Addr::LOCALHOST), seat: Arc::clone(&seat), is_too_many: false };
        let leaving = Leaving::new(watch::channel(Phase::Open).1, Duration::ZERO);
        let (open, closing) = watch::channel(false);
        let context = Context { caller, deadlines, leaving, closing, last_response: Arc::default() };
        let near = Patient::new(near, deadlines.progress, Arc::clone(&seat));
        let handle = move |_: Request<()>, _: Caller| {
            let _ = &open;
            let response = Response::new(content.clone());
            async move { response }
        };
        (far, seat, tokio::spawn(serve(near, handle, context)))
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// 200 half requests held 200 places for 179 s once.
    #[tokio::test(start_paused = true)]
    async fn half_a_request_has_a_deadline_and_gives_way_at_once() {
        let deadlines = Deadlines::default();
        for (before, limit) in [(&b""[..], deadlines.first_request), (REQUEST, deadlines.head)] {
            for dismissed in [false, true] {
                let (mut stream, seat, serving) = connected(Content::Memory(Bytes::from_static(b"x")));
                stream.write_all(before).await.unwrap();
                if !before.is_empty() {
                    let mut read = [0; 512];
                    assert!(stream.read(&mut read).await.unwrap() > 0);
                }
                let began = Instant::now();
                stream.write_all(b"GET /nope HTTP/1.1\r\nHost: ").await.unwrap();
                if dismissed {
                    advance(deadlines.newcomer).await;
                    assert!(seat.dismiss());
                }
                serving.await.unwrap();
                let limit = if dismissed { deadlines.newcomer } else { limit };
                assert_eq!(began.elapsed(), limit, "{dismissed} after {before:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_and_does_not_read_has_a_deadline_and_gives_way_before_it() {
        let deadlines = Deadlines::default();
        for dismissed in [false, true] {
            let (mut stream, seat, serving) = connected(Content::Memory(vec![0; 1 << 20].into()));
            stream.write_all(REQUEST).await.unwrap();
            let began = Instant::now();
            if dismissed {
                advance(Duration::from_millis(1)).await;
                assert!(!seat.dismiss());
                advance(deadlines.stalled).await;
                assert!(seat.dismiss());
            }
            serving.await.unwrap();
            let limit = if dismissed { deadlines.stalled + Duration::from_millis(1) } else { deadlines.progress };
            assert_eq!(began.elapsed(), limit);
        }
    }
}
