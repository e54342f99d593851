//! The fast path and hyper, side by side, for the test and the fuzz target that compare them.

#![allow(clippy::unwrap_used, reason = "a failed setup must abort the test")]

use std::{fmt, sync::Arc, time::Duration};

use hyper::{Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    runtime::Runtime,
    sync::watch,
    time::sleep,
};

use super::{
    Catalog, Clients, Deadlines, Entry, Requirement, ServerMetrics, Tokens,
    bundle_api::BundleApi,
    connection::{ConnectionContext, Peer, serve_stream},
    drain::Phase,
    idle_connections::{IdleConnections, Limits},
    request_body::RequestBody,
    response_body::ResponseBody,
    service::{Answer, Service},
    write_timeout::WriteTimeout,
};
use crate::{
    metrics::{BundleScope, Metrics},
    publish::{Publisher, serving},
};

/// Pause between two parts of a request.
const PAUSE: Duration = Duration::from_secs(1);
/// Time from the last part until the client ends the stream: longer than the requests of one
/// conversation are held. hyper answers a request or not if the client has ended the stream
/// meanwhile, as its buffers happen to be.
const END_AFTER: Duration = Duration::from_secs(100_000);
/// The bundle that is served.
pub(super) const BUNDLE: &str = "authz/main";

/// A bundle API, which either path can answer for.
#[derive(Debug)]
pub(super) struct BothPaths {
    runtime: Runtime,
    api: Arc<BundleApi>,
    etag: String,
    _publisher: Publisher,
    _phase: watch::Sender<Phase>,
}

/// What a client gets for the bytes that it sends.
#[derive(PartialEq, Eq)]
pub(super) struct Conversation {
    /// The responses: the lines of the head in alphabetical order and without the date, and the
    /// body. The last one is what follows.
    pub(super) responses: Vec<(String, Vec<u8>)>,
    /// Whether the server closes the connection before the client does.
    pub(super) closed: bool,
}

#[cfg(fuzzing)]
impl Conversation {
    /// The conversation without the refusal that ends it, if there is one. hyper answers malformed
    /// bytes after a request with 400 or not, by how they fill its buffer.
    pub(super) fn without_refusal(mut self) -> Self {
        let refusal = self.responses.len().wrapping_sub(2);
        let is_refused = |(head, _): &(String, Vec<u8>)| head.starts_with("HTTP/1.1 400 ");
        if self.closed && self.responses.get(refusal).is_some_and(is_refused) {
            self.responses.remove(refusal);
            self.closed = false;
        }
        self
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (head, body) in &self.responses {
            writeln!(formatter, "{head}\n({} bytes)", body.len())?;
        }
        write!(formatter, "closed by the server: {}", self.closed)
    }
}

/// Answers as the bundle API does, without the fast path.
struct WithoutFastPath(Arc<BundleApi>);

impl Service for WithoutFastPath {
    fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Answer<Response<ResponseBody>> {
        self.0.answer(request, peer)
    }

    fn bundle_api(self: &Arc<Self>) -> Option<&Arc<BundleApi>> {
        None
    }
}

impl BothPaths {
    /// Serves [`BUNDLE`] to clients without a token, too.
    pub(super) fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let (publisher, handle) = serving(BUNDLE, 1);
        let metrics = ServerMetrics::new(&Metrics::new()).unwrap();
        let catalog = Catalog::default();
        let requests = metrics.bundle(&BundleScope::new(BUNDLE.into()));
        let reference = "r.example/a:live".parse().unwrap();
        let etag = handle
            .served_at(crate::telemetry::now)
            .unwrap()
            .etag()
            .to_owned();
        catalog.insert(Arc::new(Entry::new(
            handle,
            reference,
            None,
            Arc::new(requests),
        )));
        let mut clients = Clients::default();
        let tokens = Tokens::new([b"token".as_slice()]);
        for (name, bundles, requirement) in [
            ("anyone", "authz/*", Requirement::Anonymous),
            ("edge", "**", Requirement::Token(tokens)),
        ] {
            clients
                .allow(name, &[bundles.to_owned()], requirement)
                .unwrap();
        }
        let (phase, phase_receiver) = watch::channel(Phase::Open);
        let entered = runtime.enter();
        let api = BundleApi::fixture(catalog, clients.into(), metrics, phase_receiver);
        drop(entered);
        let api = Arc::new(api);
        assert!(api.bundle_api().is_some(), "no request takes the fast path");
        Self {
            runtime,
            api,
            etag,
            _publisher: publisher,
            _phase: phase,
        }
    }

    /// The entity tag of the bundle, in quotes.
    pub(super) fn etag(&self) -> &str {
        &self.etag
    }

    /// Sends the parts to the fast path.
    pub(super) fn on_fast_path(&self, parts: &[&[u8]]) -> Conversation {
        self.runtime
            .block_on(self.talk(Arc::clone(&self.api), parts))
    }

    /// Sends the parts to hyper.
    pub(super) fn on_hyper(&self, parts: &[&[u8]]) -> Conversation {
        let service = Arc::new(WithoutFastPath(Arc::clone(&self.api)));
        self.runtime.block_on(self.talk(service, parts))
    }

    async fn talk<V: Service>(&self, service: Arc<V>, parts: &[&[u8]]) -> Conversation {
        let (client, server) = duplex(1 << 16);
        let deadlines = Deadlines::default();
        let slot = IdleConnections::new(Limits::new(10, 10, deadlines)).register();
        let server = WriteTimeout::new(server, deadlines.progress, Arc::clone(&slot));
        let context = ConnectionContext {
            peer: Peer {
                address: [127, 0, 0, 1].into(),
                certificate: None,
                slot,
                is_over_limit: false,
            },
            drain: self.api.drain.clone(),
        };
        let (reader, writer) = split(client);
        let serving = serve_stream(server, service, Box::new(context));
        let ((), (bytes, closed)) = tokio::join!(serving, converse(reader, writer, parts));
        Conversation {
            responses: responses(&bytes),
            closed,
        }
    }
}

/// Sends the parts, and ends the stream some time after the last one. Returns what was received,
/// and whether the server has closed the connection before that.
async fn converse(
    mut reader: ReadHalf<DuplexStream>,
    mut writer: WriteHalf<DuplexStream>,
    parts: &[&[u8]],
) -> (Vec<u8>, bool) {
    let mut received = Vec::new();
    let sending = async {
        for part in parts {
            let _ = writer.write_all(part).await;
            sleep(PAUSE).await;
        }
        sleep(END_AFTER).await;
    };
    let closed = tokio::select! {
        biased;
        _ = reader.read_to_end(&mut received) => true,
        () = sending => false,
    };
    let _ = writer.shutdown().await;
    if !closed {
        let _ = reader.read_to_end(&mut received).await;
    }
    (received, closed)
}

/// Splits what was received into responses, in a form that can be compared.
fn responses(mut received: &[u8]) -> Vec<(String, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let mut responses = Vec::new();
    while let Some(end) = received.windows(END.len()).position(|bytes| bytes == END) {
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        received = &received[end + END.len()..];
        let mut lines: Vec<_> = head
            .lines()
            .filter(|line| !line.starts_with("date: "))
            .collect();
        lines.sort_unstable();
        let length = lines
            .iter()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        // A response to HEAD has a length and no body.
        let has_body = !received.starts_with(b"HTTP/1.1 ");
        let length = length.filter(|_| has_body).unwrap_or(0).min(received.len());
        responses.push((lines.join("\n"), received[..length].to_vec()));
        received = &received[length..];
    }
    responses.push((String::new(), received.to_vec()));
    responses
}
