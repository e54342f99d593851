//! A registry that fails on demand, and records requests.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bundlegate::{
    metrics::Metrics,
    oci::{Descriptor, Digest, Reference, TagRule, media_type},
    registry::{
        Destination, Options, ReadLimits, Registries, RegistryMetrics, Scheme, Source, Timeouts,
    },
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, Version,
    body::{Frame, Incoming},
    header::HeaderMap,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    access::Access,
    uploads::{self, Manners, Taken, Uploads, Wish},
};

type Body = BoxBody<Bytes, io::Error>;

/// What decides the answer to a request: its fault, the refusal of its credentials, and the content.
type Recorded = (
    Option<Fault>,
    Option<Response<Bytes>>,
    Option<(String, Bytes)>,
);

/// The effect on a request, instead of the right answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status, with these headers and no body.
    Status(u16, Vec<(&'static str, String)>),
    /// This status with this body.
    Refuse(u16, &'static str),
    /// No answer, ever.
    Stall,
    /// The first bytes, then a broken connection.
    Truncate(usize),
    /// Other bytes under the same name.
    Replace(Bytes),
    /// The right answer without this header.
    Without(&'static str),
    /// The right answer with this header.
    With(&'static str, String),
    /// The right answer with this header beside those that it has, even of the same name.
    Also(&'static str, String),
    /// The first bytes, as if they were all.
    Clip(usize),
    /// The first bytes, then silence on an open connection.
    Halt(usize),
    /// Bytes without end.
    Endless,
    /// A byte every 20 ms, without end.
    Trickle,
    /// The right answer in as many pieces as this, each after a pause.
    Pieces(usize, Duration),
    /// The right answer after this time, which is real time because the client's timeouts are.
    Slow(Duration),
    /// The right answer, once the test releases it.
    Held(Hold),
    /// This many bytes of the request's body are stored; then the connection breaks.
    Cut(usize),
    /// The request is granted, and the connection breaks before the answer.
    Unanswered,
}

/// Holds the answers to requests until a test releases them.
#[derive(Debug, Clone)]
pub(crate) struct Hold(Arc<Semaphore>);

impl Default for Hold {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Hold {
    /// Releases the answers that are held, and lets later ones pass.
    pub(crate) fn release(&self) {
        self.0.close();
    }
}

/// What a request for the rest of a blob gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// The whole, as from a server that knows no ranges.
    #[default]
    Ignored,
    /// The rest.
    Served,
    /// A rest that begins elsewhere.
    Shifted,
    /// The rest, without saying which.
    Unnamed,
    /// 416.
    Unsatisfiable,
}

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) version: Version,
    /// The registry whose mirror was asked (`?ns=`), which is not part of `path`.
    pub(crate) namespace: Option<String>,
    pub(crate) headers: HeaderMap,
    /// The digest of the client certificate.
    pub(crate) client: Option<Digest>,
}

#[derive(Debug, Default)]
struct Inner {
    content: HashMap<String, (String, Bytes)>,
    faults: Vec<(String, usize, Fault)>,
    asked: Vec<Asked>,
    /// The next page's path, by path.
    links: HashMap<String, String>,
    ranges: Ranges,
    manners: Manners,
    uploads: Uploads,
    access: Option<Access>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct FaultyRegistry {
    pub(crate) address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    connections: Arc<AtomicUsize>,
    is_secured: bool,
    _tasks: JoinSet<()>,
}

impl FaultyRegistry {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Over TLS, with HTTP/2 for clients that offer it if `tls` does.
    pub(crate) async fn start_secured(tls: rustls::ServerConfig) -> Self {
        let tls = TlsAcceptor::from(Arc::new(tls));
        Self::start_with(Some(tls)).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Mutex::new(Inner::default()));
        let shared = Arc::clone(&inner);
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, is_secured) = (Arc::clone(&connections), tls.is_some());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, tls.clone(), Arc::clone(&shared)));
            }
        });
        Self {
            address,
            inner,
            connections,
            is_secured,
            _tasks: tasks,
        }
    }

    /// The number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Holds these bytes at `/v2/acme/authz/<path>`.
    pub(crate) fn put(&self, path: &str, content_type: &str, bytes: impl Into<Bytes>) {
        let key = format!("/v2/acme/authz/{path}");
        self.inner
            .lock()
            .unwrap()
            .content
            .insert(key, (content_type.to_owned(), bytes.into()));
    }

    /// Holds everything that the other one holds now.
    pub(crate) fn copy_from(&self, other: &Self) {
        let content = other.inner.lock().unwrap().content.clone();
        self.inner.lock().unwrap().content = content;
    }

    /// Says that the list at this path continues at the other one.
    pub(crate) fn link(&self, path: &str, next: &str) {
        let full = |path: &str| format!("/v2/acme/authz/{path}");
        let mut inner = self.inner.lock().unwrap();
        inner.links.insert(full(path), full(next));
    }

    /// No list continues elsewhere.
    pub(crate) fn unlink(&self) {
        self.inner.lock().unwrap().links.clear();
    }

    /// The number of requests so far.
    pub(crate) fn count(&self) -> usize {
        self.inner.lock().unwrap().asked.len()
    }

    /// How requests for the rest of a blob are answered.
    pub(crate) fn serve_ranges(&self, ranges: Ranges) {
        self.inner.lock().unwrap().ranges = ranges;
    }

    /// Holds it no longer.
    pub(crate) fn remove(&self, path: &str) {
        self.inner
            .lock()
            .unwrap()
            .content
            .remove(&format!("/v2/acme/authz/{path}"));
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type::LAYER_TAR_GZIP, bytes);
        self.put(
            &format!("blobs/{}", descriptor.digest),
            "application/octet-stream",
            bytes.to_vec(),
        );
        descriptor
    }

    /// An artifact with one layer, under a tag and under its digest.
    pub(crate) fn put_artifact(&self, tag: &str, layer: &[u8]) -> (Digest, Descriptor) {
        self.put_annotated(tag, layer, &[])
    }

    /// One whose manifest has annotations.
    pub(crate) fn put_annotated(
        &self,
        tag: &str,
        layer: &[u8],
        annotations: &[(&str, &str)],
    ) -> (Digest, Descriptor) {
        let layer = self.put_blob(layer);
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [layer],
        });
        if !annotations.is_empty() {
            manifest["annotations"] = annotations.iter().copied().collect();
        }
        let manifest = manifest.to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        self.put(
            &format!("manifests/{tag}"),
            media_type::OCI_MANIFEST,
            manifest.clone(),
        );
        self.put(
            &format!("manifests/{digest}"),
            media_type::OCI_MANIFEST,
            manifest,
        );
        (digest, layer)
    }

    /// The next `times` requests whose method and path contain `part` meet `fault`; with `type:` in
    /// front, those for content of this type.
    pub(crate) fn fail(&self, part: &str, times: usize, fault: Fault) {
        self.inner
            .lock()
            .unwrap()
            .faults
            .push((part.to_owned(), times, fault));
    }

    /// From now on this status with this body.
    pub(crate) fn refuse(&self, part: &str, status: u16, body: &'static str) {
        self.fail(part, usize::MAX, Fault::Refuse(status, body));
    }

    /// The truth again, whatever was planned.
    pub(crate) fn heal(&self) {
        self.inner.lock().unwrap().faults.clear();
    }

    /// Who may read and write; everybody by default. Faults come first.
    pub(crate) fn protect(&self, access: Access) {
        self.inner.lock().unwrap().access = Some(access);
    }

    /// Changes who may read and write.
    pub(crate) fn access(&self, change: impl FnOnce(&mut Access)) {
        change(self.inner.lock().unwrap().access.as_mut().unwrap());
    }

    /// How it treats uploads.
    pub(crate) fn behave(&self, manners: Manners) {
        self.inner.lock().unwrap().manners = manners;
    }

    /// The content at `/v2/acme/authz/<path>`.
    pub(crate) fn held(&self, path: &str) -> Option<(String, Bytes)> {
        self.inner
            .lock()
            .unwrap()
            .content
            .get(&format!("/v2/acme/authz/{path}"))
            .cloned()
    }

    /// Every request so far whose method and path contain `part`.
    pub(crate) fn asked(&self, part: &str) -> Vec<Asked> {
        let asked = |asked: &&Asked| format!("{} {}", asked.method, asked.path).contains(part);
        self.inner
            .lock()
            .unwrap()
            .asked
            .iter()
            .filter(asked)
            .cloned()
            .collect()
    }

    pub(crate) fn destination(&self) -> Destination {
        self.registries(self.options())
            .destination(self.reference("x").repository())
            .unwrap()
    }

    pub(crate) fn registries(&self, options: Options) -> Registries {
        let limits = ReadLimits {
            manifest: 4 << 20,
            evidence: 8 << 20,
            bundle: 1 << 20,
        };
        Registries::new(
            [(self.address.to_string(), options)].into(),
            limits,
            RegistryMetrics::new(&Metrics::new()).unwrap(),
        )
    }

    pub(crate) fn reference(&self, tag: &str) -> Reference {
        format!("{}/acme/authz:{tag}", self.address)
            .parse()
            .unwrap()
    }

    /// The repository, whose tag a rule chooses.
    pub(crate) fn choosing(&self, rule: TagRule) -> Reference {
        Reference::with_rule(&format!("{}/acme/authz", self.address), rule).unwrap()
    }

    /// What the repository lists as its tags, whatever it has.
    pub(crate) fn list_tags(&self, tags: &[&str]) {
        let list = json!({ "name": "acme/authz", "tags": tags });
        self.put("tags/list?n=1000", "application/json", list.to_string());
    }

    pub(crate) fn source(&self) -> Source {
        self.source_with(self.options())
    }

    pub(crate) fn options(&self) -> Options {
        let timeouts = Timeouts {
            connect: Duration::from_secs(1),
            // Longer than a busy machine keeps the tests' thread from its sockets.
            read: Duration::from_secs(2),
            total: Duration::from_secs(20),
        };
        let scheme = match self.is_secured {
            true => Scheme::Https,
            false => Scheme::Http,
        };
        Options {
            scheme,
            timeouts,
            ..Options::default()
        }
    }

    pub(crate) fn source_with(&self, options: Options) -> Source {
        self.registries(options)
            .source(self.reference("x").repository())
            .unwrap()
    }
}

impl Inner {
    /// Records a request, and gives what decides its answer.
    fn record(
        &mut self,
        request: &Request<Incoming>,
        path: &str,
        namespace: Option<String>,
        client: Option<Digest>,
    ) -> Recorded {
        self.asked.push(Asked {
            method: request.method().to_string(),
            path: path.to_owned(),
            version: request.version(),
            namespace,
            headers: request.headers().clone(),
            client,
        });
        let line = format!("{} {path}", request.method());
        let content = self.content.get(path).cloned();
        let kind = content.as_ref().map(|(kind, _)| kind.as_str());
        let concerns = |part: &str| match part.strip_prefix("type:") {
            Some(wanted) => kind == Some(wanted),
            None => line.contains(part),
        };
        let fault = self
            .faults
            .iter_mut()
            .find(|(part, left, _)| *left > 0 && concerns(part));
        let fault = fault.map(|(_, left, fault)| {
            *left -= 1;
            fault.clone()
        });
        let refused = match &fault {
            None | Some(Fault::Slow(_)) => self.access.as_mut().and_then(|one| one.refuse(request)),
            Some(_) => None,
        };
        (fault, refused, content)
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, inner: Arc<Mutex<Inner>>) {
    let Some(tls) = tls else {
        let service = service_fn(move |request| answer(Arc::clone(&inner), request, None));
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
        return;
    };
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let session = stream.get_ref().1;
    let client = session
        .peer_certificates()
        .map(|chain| Digest::sha256(&chain[0]));
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| answer(Arc::clone(&inner), request, client.clone()));
    let stream = TokioIo::new(stream);
    if is_http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(stream, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(stream, service)
            .await;
    }
}

async fn answer(
    inner: Arc<Mutex<Inner>>,
    mut request: Request<Incoming>,
    client: Option<Digest>,
) -> Result<Response<Body>, io::Error> {
    put_host_into_header(&mut request);
    let (path, namespace) = requested(&request);
    let (fault, refused, content) = {
        let mut inner = inner.lock().unwrap();
        inner.record(&request, &path, namespace, client)
    };
    if let Some(refused) = refused {
        if let Some(Fault::Slow(delay)) = fault {
            tokio::time::sleep(delay).await;
        }
        return Ok(refused.map(whole));
    }
    Ok(match fault {
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Status(status, headers)) => {
            // A server that closes the connection instead may reset it before the client has read
            // the answer.
            uploads::body(request, usize::MAX).await;
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(whole(Bytes::new())).unwrap()
        }
        Some(Fault::Refuse(status, body)) => {
            uploads::body(request, usize::MAX).await;
            Response::builder()
                .status(status)
                .body(whole(Bytes::from_static(body.as_bytes())))
                .unwrap()
        }
        Some(Fault::Truncate(length)) => truncated(content, length),
        Some(Fault::Halt(length)) => halted(content, length),
        Some(Fault::Endless) => Response::new(endless()),
        Some(Fault::Trickle) => Response::new(trickle()),
        Some(Fault::Clip(length)) => {
            truth(content.map(|(kind, bytes)| (kind, bytes.slice(..length.min(bytes.len())))))
        }
        Some(Fault::Pieces(number, pause)) => in_pieces(content, number, pause),
        Some(Fault::Slow(delay)) => {
            let response = granted(&inner, request, content).await;
            tokio::time::sleep(delay).await;
            response
        }
        Some(Fault::Held(hold)) => {
            let response = granted(&inner, request, content).await;
            // The semaphore has no permits, so this ends with an error when it is closed.
            let _ = hold.0.acquire().await;
            response
        }
        Some(Fault::Cut(length)) => {
            let (bytes, _) = uploads::body(request, length).await;
            inner.lock().unwrap().uploads.keep_part(&path, &bytes);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Some(Fault::Unanswered) => {
            granted(&inner, request, content).await;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Some(Fault::Replace(bytes)) => {
            let kind = content.map_or_else(|| "text/plain".to_owned(), |(kind, _)| kind);
            truth(Some((kind, bytes)))
        }
        Some(Fault::Without(name)) => {
            let mut response = granted(&inner, request, content).await;
            response.headers_mut().remove(name);
            response
        }
        Some(Fault::With(name, value)) => {
            let mut response = granted(&inner, request, content).await;
            response.headers_mut().insert(name, value.parse().unwrap());
            response
        }
        Some(Fault::Also(name, value)) => {
            let mut response = granted(&inner, request, content).await;
            response.headers_mut().append(name, value.parse().unwrap());
            response
        }
        None => granted(&inner, request, content).await,
    })
}

/// HTTP/2 has the host in the URI.
fn put_host_into_header(request: &mut Request<Incoming>) {
    if let Some(host) = request.uri().authority().cloned() {
        let headers = request.headers_mut();
        headers.insert("host", host.as_str().parse().unwrap());
        *request.uri_mut() = request.uri().path_and_query().unwrap().clone().into();
    }
}

/// The answer of a registry that works.
async fn granted(
    inner: &Mutex<Inner>,
    request: Request<Incoming>,
    content: Option<(String, Bytes)>,
) -> Response<Body> {
    let (method, path) = (request.method().to_string(), requested(&request).0);
    if matches!(method.as_str(), "GET" | "HEAD") && !path.contains("/blobs/uploads/") {
        let (next, ranges) = {
            let inner = inner.lock().unwrap();
            (inner.links.get(&path).cloned(), inner.ranges)
        };
        let range = request.headers().get("range");
        let first = range.and_then(|range| {
            let first = range.to_str().unwrap().strip_prefix("bytes=")?;
            first.strip_suffix('-')?.parse().ok()
        });
        let mut response = match first {
            Some(first) if ranges != Ranges::Ignored => rest(content, first, ranges),
            _ => truth(content),
        };
        if let Some(next) = next {
            let link = format!("<{next}>; rel=\"next\"");
            response.headers_mut().insert("link", link.parse().unwrap());
        }
        return response;
    }
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let (host, range, kind) = (
        header("host"),
        header("content-range"),
        header("content-type"),
    );
    let (bytes, _) = uploads::body(request, usize::MAX).await;
    let wish = Wish {
        host: host.unwrap(),
        method,
        path,
        range,
        kind: kind.unwrap_or_default(),
        bytes,
    };
    let mut inner = inner.lock().unwrap();
    let Inner {
        manners, uploads, ..
    } = &mut *inner;
    let taken = uploads.answer(manners, wish);
    let answer = match taken {
        Taken::Answer(answer) => answer,
        Taken::Keep {
            path,
            kind,
            bytes,
            answer,
        } => {
            if let Some((front, _)) = path.split_once("/manifests/") {
                let digest = Digest::sha256(&bytes);
                inner.content.insert(
                    format!("{front}/manifests/{digest}"),
                    (kind.clone(), bytes.clone()),
                );
            }
            inner.content.insert(path, (kind, bytes));
            answer
        }
    };
    answer.map(|body| body.map_err(|never| match never {}).boxed())
}

/// The path and query without `ns`, and its value.
fn requested(request: &Request<Incoming>) -> (String, Option<String>) {
    let uri = request.uri().to_string();
    let Some((path, query)) = uri.split_once('?') else {
        return (uri, None);
    };
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let namespace = pairs.into_owned().find(|(key, _)| key == "ns");
    let others: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.starts_with("ns="))
        .collect();
    let path = match others.join("&") {
        others if others.is_empty() => path.to_owned(),
        others => format!("{path}?{others}"),
    };
    (path, namespace.map(|(_, value)| value))
}

fn truth(content: Option<(String, Bytes)>) -> Response<Body> {
    let Some((kind, bytes)) = content else {
        return Response::builder()
            .status(404)
            .body(whole(Bytes::new()))
            .unwrap();
    };
    Response::builder()
        .header("content-type", kind)
        .header("docker-content-digest", Digest::sha256(&bytes).to_string())
        .body(whole(bytes))
        .unwrap()
}

/// The bytes from `first` on.
fn rest(content: Option<(String, Bytes)>, first: usize, ranges: Ranges) -> Response<Body> {
    let Some((_, bytes)) = content else {
        return truth(None);
    };
    let answer = Response::builder();
    if ranges == Ranges::Unsatisfiable {
        return answer.status(416).body(whole(Bytes::new())).unwrap();
    }
    let named = first + usize::from(ranges == Ranges::Shifted);
    let range = format!("bytes {named}-{}/{}", bytes.len() - 1, bytes.len());
    let answer = match ranges {
        Ranges::Unnamed => answer,
        _ => answer.header("content-range", range),
    };
    let body = whole(bytes.slice(named..));
    answer.status(206).body(body).unwrap()
}

fn truncated(content: Option<(String, Bytes)>, length: usize) -> Response<Body> {
    let Some((kind, bytes)) = content else {
        return truth(None);
    };
    let length = length.min(bytes.len());
    let broken = async {
        // The bytes before it arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    let first = stream::iter([Ok(Frame::data(bytes.slice(..length)))]);
    let pieces = first.chain(stream::once(broken));
    Response::builder()
        .header("content-type", kind)
        .header("content-length", bytes.len())
        .body(BodyExt::boxed(StreamBody::new(pieces)))
        .unwrap()
}

/// The bytes, whose number is known from the start, a piece after each pause.
fn in_pieces(content: Option<(String, Bytes)>, number: usize, pause: Duration) -> Response<Body> {
    let Some((kind, bytes)) = content else {
        return truth(None);
    };
    let length = bytes.len();
    let size = length.div_ceil(number).max(1);
    let starts = (0..length).step_by(size);
    let pieces = starts.map(move |start| bytes.slice(start..length.min(start + size)));
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(piece))
    });
    Response::builder()
        .header("content-type", kind)
        .header("content-length", length)
        .body(BodyExt::boxed(StreamBody::new(pieces)))
        .unwrap()
}

fn halted(content: Option<(String, Bytes)>, length: usize) -> Response<Body> {
    let Some((kind, bytes)) = content else {
        return truth(None);
    };
    let length = length.min(bytes.len());
    let pieces = stream::iter([Ok(Frame::data(bytes.slice(..length)))]).chain(stream::pending());
    Response::builder()
        .header("content-type", kind)
        .header("content-length", bytes.len())
        .body(BodyExt::boxed(StreamBody::new(pieces)))
        .unwrap()
}

fn trickle() -> Body {
    let pieces = stream::repeat(()).then(|()| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(Frame::data(Bytes::from_static(b" ")))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

fn endless() -> Body {
    let pieces = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 1 << 16]))));
    BodyExt::boxed(StreamBody::new(pieces))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
