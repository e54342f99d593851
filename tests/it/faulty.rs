//! A registry that fails on demand, and records requests.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
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
    Request, Response,
    body::{Frame, Incoming},
    header::HeaderMap,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

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
    /// The first bytes, then silence on an open connection.
    Halt(usize),
    /// Bytes without end.
    Endless,
    /// A byte every 20 ms, without end.
    Trickle,
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
    pub(crate) headers: HeaderMap,
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
    _tasks: JoinSet<()>,
}

impl FaultyRegistry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Mutex::new(Inner::default()));
        let shared = Arc::clone(&inner);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            inner,
            _tasks: tasks,
        }
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

    /// Says that the list at this path continues at the other one.
    pub(crate) fn link(&self, path: &str, next: &str) {
        let full = |path: &str| format!("/v2/acme/authz/{path}");
        let mut inner = self.inner.lock().unwrap();
        inner.links.insert(full(path), full(next));
    }

    /// Says of no list any more that it continues.
    pub(crate) fn unlink(&self) {
        self.inner.lock().unwrap().links.clear();
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

    /// The next `times` requests whose method and path contain `part` meet `fault`.
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
        Options {
            scheme: Scheme::Http,
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
    fn record(&mut self, request: &Request<Incoming>, path: &str) -> Recorded {
        self.asked.push(Asked {
            method: request.method().to_string(),
            path: path.to_owned(),
            headers: request.headers().clone(),
        });
        let line = format!("{} {path}", request.method());
        let fault = self
            .faults
            .iter_mut()
            .find(|(part, left, _)| *left > 0 && line.contains(part.as_str()));
        let fault = fault.map(|(_, left, fault)| {
            *left -= 1;
            fault.clone()
        });
        let refused = match &fault {
            None | Some(Fault::Slow(_)) => self.access.as_mut().and_then(|one| one.refuse(request)),
            Some(_) => None,
        };
        (fault, refused, self.content.get(path).cloned())
    }
}

async fn answer(
    inner: Arc<Mutex<Inner>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let path = request.uri().to_string();
    let (fault, refused, content) = inner.lock().unwrap().record(&request, &path);
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
        None => granted(&inner, request, content).await,
    })
}

/// The answer of a registry that works.
async fn granted(
    inner: &Mutex<Inner>,
    request: Request<Incoming>,
    content: Option<(String, Bytes)>,
) -> Response<Body> {
    let (method, path) = (request.method().to_string(), request.uri().to_string());
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
    let (kind, bytes) = content.unwrap();
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

fn halted(content: Option<(String, Bytes)>, length: usize) -> Response<Body> {
    let (kind, bytes) = content.unwrap();
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
