//! A client that writes HTTP/2 frames itself, for behaviour that no library has.

use std::{collections::BTreeSet, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// An HTTP/2 client that gives each response a window of this many bytes, and acknowledges pings.
pub(crate) struct Client {
    stream: TcpStream,
    next: u32,
    pub(crate) seen: Vec<Frame>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, window: u32) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let mut client = Self {
            stream,
            next: 1,
            seen: Vec::new(),
        };
        client
            .stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await?;
        // SETTINGS_INITIAL_WINDOW_SIZE
        let setting = [&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
        client.write(SETTINGS, 0, 0, &setting).await?;
        Ok(client)
    }

    /// Sends a request without a body, and returns its stream.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> std::io::Result<u32> {
        let mut block = Vec::new();
        let pseudo = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
        ];
        for (name, value) in pseudo.iter().chain(headers) {
            // Literal, never indexed, new name (RFC 7541 §6.2.3).
            block.push(0x10);
            for text in [name, value] {
                assert!(text.len() < 127, "{text} needs a longer length");
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let stream = self.next;
        self.next += 2;
        self.write(HEADERS, END_STREAM | END_HEADERS, stream, &block)
            .await?;
        Ok(stream)
    }

    /// Reads frames until one matches; `None` if the connection is closed before.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.read().await.ok()?;
            self.seen.push(frame.clone());
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Acknowledges pings and settings until the connection is closed.
    pub(crate) async fn live(mut self) {
        self.until(|_| false).await;
    }

    /// The streams that the server has reset.
    pub(crate) fn resets(&self) -> BTreeSet<u32> {
        self.seen
            .iter()
            .filter(|frame| frame.kind == RESET)
            .map(|frame| frame.stream)
            .collect()
    }

    async fn read(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.stream.read_exact(&mut payload).await?;
        if flags & ACK == 0 && matches!(kind, PING | SETTINGS) {
            let answer = if kind == PING {
                payload.clone()
            } else {
                Vec::new()
            };
            self.write(kind, ACK, 0, &answer).await?;
        }
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            payload,
        })
    }

    async fn write(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.stream
            .write_all(&[head, payload.to_vec()].concat())
            .await
    }
}
