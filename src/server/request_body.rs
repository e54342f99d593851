//! The body of a request, which most requests don't have and most handlers drop unread.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

/// The body of a request over either protocol.
#[derive(Debug)]
pub(super) enum RequestBody {
    Http1(Incoming),
    Http2(RecvStream),
}

/// Why a body can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It exceeds the limit.
    TooLarge,
    /// It did not arrive in time.
    TimedOut,
    /// The connection or the stream broke.
    Broken,
}

impl RequestBody {
    /// Reads the whole body: at most `limit` bytes, within `deadline`. Cancel-safe in that the body
    /// is lost.
    pub(super) async fn read(self, limit: usize, deadline: Duration) -> Result<Bytes, BodyError> {
        let reading = async {
            match self {
                Self::Http1(body) => read_http1(body, limit).await,
                Self::Http2(stream) => read_http2(stream, limit).await,
            }
        };
        timeout(deadline, reading)
            .await
            .unwrap_or(Err(BodyError::TimedOut))
    }
}

async fn read_http1(body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Err(_) => Err(BodyError::Broken),
    }
}

async fn read_http2(mut stream: RecvStream, limit: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.map_err(|_| BodyError::Broken)?;
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        stream
            .flow_control()
            .release_capacity(chunk.len())
            .map_err(|_| BodyError::Broken)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
