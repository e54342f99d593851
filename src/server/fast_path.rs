//! The fast path of HTTP/1.1: plain requests ([`plain_request`]) are read and answered here, by the
//! same decision as all others ([`BundleApi::decide`]). The first other request hands the
//! connection to hyper for good, with the bytes that were read.
//!
//! A connection that waits, for a request or for a change of its bundle, holds neither buffers nor
//! headers: all connections of a thread read into one buffer and write from one, which are never
//! held across an `await`. A reply is written where it is decided; only what the socket does not
//! take at once is kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{Method, header::CONNECTION};
use rustix::net::SendFlags;
use tokio::{
    io::{AsyncWriteExt as _, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    bundle_api::{BundleApi, Decision},
    close_signal::CloseReason,
    connection::{CONNECTION_CLOSE, ConnectionContext, Transport, complete_headers},
    date,
    delivery::{BodyBytes, Delivery},
    idle_connections::{ActiveRequest, Slot},
    plain_request::{self, PlainRequest},
    reply::{ROLLOUT, Reply},
    response_body::{Http1Body, ResponseBody},
    service::Answer,
};
use crate::{oci::Blob, publish::http1_head, rollout::Variant};

/// Bytes that are read at once. A longer head is read in parts, and so by hyper.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    static WRITE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves plain requests. Returns the bytes that were read of the first request that is not plain;
/// `None` once the connection has to be closed.
pub(super) async fn serve<S: Transport>(
    stream: &mut S,
    api: &Arc<BundleApi>,
    context: &ConnectionContext,
) -> Option<Bytes> {
    let mut connection = FastPath {
        stream,
        api,
        context,
        pipelined: BytesMut::new(),
    };
    loop {
        let mut step = poll_fn(|context| connection.poll_request(context)).await;
        if let Step::Held(held) = &mut step {
            step = poll_fn(|context| connection.poll_held(context, held)).await;
        }
        let closes = match step {
            Step::Sent { closes } => closes,
            // Boxed, because most responses are sent at once.
            Step::Unsent { response, closes } => {
                Box::pin(connection.send(*response)).await.is_err() || closes
            }
            Step::NotPlain(read) => return Some(read),
            Step::Close | Step::Held(_) => true,
        };
        if closes {
            connection.shut_down().await;
            return None;
        }
    }
}

/// A connection whose requests have all been plain.
struct FastPath<'a, S> {
    stream: &'a mut S,
    api: &'a Arc<BundleApi>,
    context: &'a ConnectionContext,
    /// Bytes that were read and not answered yet.
    pipelined: BytesMut,
}

/// What follows from a request.
enum Step {
    /// The client has left, or the connection has to close.
    Close,
    NotPlain(Bytes),
    Held(Held),
    Sent {
        closes: bool,
    },
    Unsent {
        response: Box<Unsent>,
        closes: bool,
    },
}

/// A request that is not answered at once.
struct Held {
    reply: Pin<Box<dyn Future<Output = Decision> + Send>>,
    closes: bool,
    _active: ActiveRequest,
}

/// What the socket has not taken of a response.
struct Unsent {
    head: Bytes,
    /// The rest of a body in memory.
    chunk: BodyBytes,
    /// A body in a file.
    file: Option<Http1Body>,
    /// A body that the kernel sends from a file.
    copy: Option<FileCopy>,
    delivery: Option<Arc<Delivery>>,
}

/// The body of a response.
enum Body {
    Copy(FileCopy),
    Other(ResponseBody),
}

/// A blob in memory, and the rest of its copy in a file, which the kernel can send.
struct FileCopy {
    blob: Blob,
    offset: u64,
    left: usize,
}

impl<S: Transport> FastPath<'_, S> {
    /// Reads a request, and answers it or begins to hold it.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let closing = self.slot().poll_close(context);
        if closing == Poll::Ready(CloseReason::Overdue) {
            return Poll::Ready(Step::Close);
        }
        if !self.pipelined.is_empty() {
            let mut read = std::mem::take(&mut self.pipelined);
            let (step, length) = self.answer(context, &read);
            read.advance(length);
            self.pipelined = read;
            return Poll::Ready(step);
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let reading = Pin::new(&mut *self.stream).poll_read(context, &mut read);
            // A request that has arrived is answered before the connection closes.
            if reading.is_pending() && closing.is_pending() {
                return Poll::Pending;
            }
            if read.filled().is_empty() || !matches!(reading, Poll::Ready(Ok(()))) {
                return Poll::Ready(Step::Close);
            }
            let (step, length) = self.answer(context, read.filled());
            self.pipelined.extend_from_slice(&read.filled()[length..]);
            Poll::Ready(step)
        })
    }

    /// Answers the request at the start of `bytes`. Returns its length as well.
    fn answer(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> (Step, usize) {
        let slot = self.slot();
        let Some(PlainRequest {
            head,
            length,
            closes,
        }) = plain_request::parse(bytes, self.api.identity_header())
        else {
            slot.record_read();
            return (Step::NotPlain(Bytes::copy_from_slice(bytes)), bytes.len());
        };
        let step = match self.api.decide(&head, &self.context.peer) {
            Answer::Now(decision) => {
                let duration = slot.record_request();
                let status = decision.reply.status();
                self.api.metrics.observe_request(status, duration);
                self.reply(context, decision, closes)
            }
            Answer::Later(reply) => Step::Held(Held {
                reply,
                closes,
                _active: slot.begin_request(),
            }),
        };
        (step, length)
    }

    /// Waits for the reply to a held request, and sends it.
    fn poll_held(&mut self, context: &mut Context<'_>, held: &mut Held) -> Poll<Step> {
        if self.slot().poll_close(context) == Poll::Ready(CloseReason::Overdue) {
            return Poll::Ready(Step::Close);
        }
        if let Poll::Ready(decision) = held.reply.as_mut().poll(context) {
            return Poll::Ready(self.reply(context, decision, held.closes));
        }
        ready!(self.poll_pipelined(context));
        Poll::Ready(Step::Close)
    }

    /// Reads what the client sends while its request is held. Ready once the client has left; not
    /// noticed, as by hyper, after it has sent a further request.
    fn poll_pipelined(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.pipelined.is_empty() {
            return Poll::Pending;
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let reading = ready!(Pin::new(&mut *self.stream).poll_read(context, &mut read));
            if reading.is_err() || read.filled().is_empty() {
                return Poll::Ready(());
            }
            self.pipelined.extend_from_slice(read.filled());
            Poll::Pending
        })
    }

    /// Sends a reply as far as the socket takes it.
    fn reply(&mut self, context: &mut Context<'_>, decision: Decision, closes: bool) -> Step {
        let Decision {
            reply,
            access,
            offer,
        } = decision;
        let closes = closes
            || self.context.drain.is_draining()
            || self.slot().poll_close(context).is_ready();
        WRITE_BUFFER.with_borrow_mut(|head| {
            head.clear();
            let (body, closes) = write_head(head, reply, closes);
            let delivery = Delivery::new(access, offer);
            delivery.begin(body.size());
            let sent = match body {
                Body::Copy(copy) if self.stream.tcp().is_some() => {
                    self.begin_send_copy(head, copy, delivery)
                }
                body => self.begin_send(context, head, body.into(), delivery),
            };
            match sent {
                Ok(None) => Step::Sent { closes },
                Ok(Some(response)) => Step::Unsent { response, closes },
                Err(_) => Step::Close,
            }
        })
    }

    fn begin_send(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: ResponseBody,
        delivery: Delivery,
    ) -> io::Result<Option<Box<Unsent>>> {
        let (mut bytes, file) = match body {
            ResponseBody::Memory(bytes) => (bytes, None),
            file @ ResponseBody::File(_) => (Bytes::new(), Some(file)),
        };
        let stream = Pin::new(&mut *self.stream);
        let written = if bytes.is_empty() {
            stream.poll_write(context, head)
        } else {
            stream.poll_write_vectored(context, &[IoSlice::new(head), IoSlice::new(&bytes)])
        };
        let written = match written {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        let of_body = written.saturating_sub(head.len());
        bytes.advance(of_body);
        delivery.add_sent(of_body);
        let head = &head[written.min(head.len())..];
        let is_written = head.is_empty() && bytes.is_empty() && file.is_none();
        if is_written && let Poll::Ready(flushed) = Pin::new(&mut *self.stream).poll_flush(context)
        {
            return flushed.map(|()| None);
        }
        let (unsent, delivery) = (self.slot().begin_response(), delivery.shared());
        Ok(Some(Box::new(Unsent {
            head: Bytes::copy_from_slice(head),
            chunk: BodyBytes::new(unsent.wrap_shared(bytes), delivery.clone()),
            file: file.map(|file| Http1Body::new(file, Some(unsent), delivery.clone())),
            copy: None,
            delivery,
        })))
    }

    /// Sends the head, and has the kernel send the body from a file.
    fn begin_send_copy(
        &mut self,
        head: &[u8],
        mut copy: FileCopy,
        delivery: Delivery,
    ) -> io::Result<Option<Box<Unsent>>> {
        let (Some(tcp), slot) = (self.stream.tcp(), self.slot()) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // The head leaves in one packet with the start of the body.
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let sent = tcp.try_io(Interest::WRITABLE, || {
            Ok(rustix::net::send(tcp, head, flags)?)
        });
        let head = &head[or_zero(sent)?..];
        if head.is_empty() {
            delivery.add_sent(copy.send(tcp, slot)?);
        }
        if head.is_empty() && copy.left == 0 {
            return Ok(None);
        }
        Ok(Some(Box::new(Unsent {
            head: Bytes::copy_from_slice(head),
            // It counts as unsent until this is dropped.
            chunk: BodyBytes::new(slot.begin_response().wrap_shared(Bytes::new()), None),
            file: None,
            copy: Some(copy),
            delivery: delivery.shared(),
        })))
    }

    /// Sends the rest of a response.
    async fn send(&mut self, response: Unsent) -> io::Result<()> {
        let slot = Arc::clone(self.slot());
        let mut sending = pin!(send(self.stream, &slot, response));
        poll_fn(|context| {
            let is_cut_off = match slot.poll_close(context) {
                Poll::Ready(CloseReason::Overdue) => true,
                Poll::Ready(CloseReason::Evicted) => slot.is_evictable(),
                Poll::Ready(CloseReason::Shutdown) | Poll::Pending => false,
            };
            if is_cut_off {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sending.as_mut().poll(context)
        })
        .await
    }

    /// Ends the stream, without waiting for a client that reads nothing.
    async fn shut_down(&mut self) {
        poll_fn(|context| {
            let _ = Pin::new(&mut *self.stream).poll_shutdown(context);
            Poll::Ready(())
        })
        .await;
    }

    fn slot(&self) -> &Arc<Slot> {
        &self.context.peer.slot
    }
}

/// Writes the head of a response. Returns its body, and whether the connection closes after it.
fn write_head(head: &mut Vec<u8>, reply: Reply, closes: bool) -> (Body, bool) {
    let body = match &reply {
        Reply::NotModified { snapshot, variant } => {
            head.extend_from_slice(snapshot.headers().http1_not_modified());
            write_variant(head, *variant);
            Body::Other(ResponseBody::empty())
        }
        Reply::Bundle {
            snapshot,
            promises_long_polling: true,
            variant,
            delta: None,
        } => {
            head.extend_from_slice(snapshot.headers().http1_bundle());
            write_variant(head, *variant);
            Body::of(snapshot.content().bytes())
        }
        Reply::Bundle { .. } | Reply::Other(_) => return write_any_head(head, reply, closes),
    };
    if closes {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"date: ");
    date::write_now(head);
    head.extend_from_slice(b"\r\n\r\n");
    (body, closes)
}

/// Writes which version of a bundle it is, where versions are rolled out in steps.
fn write_variant(head: &mut Vec<u8>, variant: Option<Variant>) {
    let Some(variant) = variant else {
        return;
    };
    for part in [ROLLOUT.as_str(), ": ", variant.label(), "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
}

/// Writes the head of a response that is not prepared.
fn write_any_head(head: &mut Vec<u8>, reply: Reply, closes: bool) -> (Body, bool) {
    let mut response = reply.into_response();
    if closes {
        response.headers_mut().insert(CONNECTION, CONNECTION_CLOSE);
    }
    complete_headers(&Method::GET, &mut response);
    let closes = response.headers().contains_key(CONNECTION);
    head.extend_from_slice(&http1_head(response.status(), response.headers()));
    head.extend_from_slice(b"\r\n");
    (Body::Other(response.into_body()), closes)
}

impl Body {
    fn of(blob: &Blob) -> Self {
        match (blob.copy(), blob.in_memory()) {
            (Some(_), Some(bytes)) => Self::Copy(FileCopy {
                blob: blob.clone(),
                offset: 0,
                left: bytes.len(),
            }),
            _ => Self::Other(ResponseBody::of(blob)),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Copy(copy) => copy.left as u64,
            Self::Other(body) => body.size(),
        }
    }
}

impl From<Body> for ResponseBody {
    fn from(body: Body) -> Self {
        match body {
            Body::Copy(copy) => Self::of(&copy.blob),
            Body::Other(body) => body,
        }
    }
}

impl FileCopy {
    /// Sends as much as the socket takes, and returns how many bytes that is.
    fn send(&mut self, tcp: &TcpStream, slot: &Slot) -> io::Result<usize> {
        let Some(file) = self.blob.copy() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (offset, left) = (&mut self.offset, self.left);
        let sent = tcp.try_io(Interest::WRITABLE, || {
            Ok(rustix::fs::sendfile(tcp, file, Some(offset), left)?)
        });
        if matches!(sent, Ok(0)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let sent = or_zero(sent)?;
        slot.record_write(sent);
        self.left -= sent;
        Ok(sent)
    }
}

/// Nothing was sent if the socket was full.
fn or_zero(sent: io::Result<usize>) -> io::Result<usize> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent,
    }
}

async fn send<S: Transport>(stream: &mut S, slot: &Slot, response: Unsent) -> io::Result<()> {
    let Unsent {
        mut head,
        mut chunk,
        file,
        copy,
        delivery,
    } = response;
    while head.has_remaining() || chunk.has_remaining() {
        let pieces = [IoSlice::new(&head), IoSlice::new(chunk.chunk())];
        let written = stream.write_vectored(&pieces).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = written.min(head.len());
        head.advance(of_head);
        chunk.advance(written - of_head);
    }
    if let Some((mut copy, tcp)) = copy.zip(stream.tcp()) {
        while copy.left > 0 {
            tcp.writable().await?;
            let sent = copy.send(tcp, slot)?;
            if let Some(delivery) = &delivery {
                delivery.add_sent(sent);
            }
        }
    }
    drop(chunk);
    if let Some(mut file) = file {
        while let Some(frame) = file.frame().await {
            let Ok(mut chunk) = frame?.into_data() else {
                continue;
            };
            stream.write_all_buf(&mut chunk).await?;
        }
    }
    stream.flush().await
}

#[cfg(test)]
mod tests;
