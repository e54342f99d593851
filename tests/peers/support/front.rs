//! A front end before a real registry that answers some requests as other registries do.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

use super::{PASSWORD, USER, http, registry::by_name};

/// How an answer differs from the registry's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Quirk {
    /// A status instead of it.
    Status(u16),
    /// A status instead of it, with `Retry-After` of a second, so many times.
    Busy(u16, usize),
    /// This `Content-Type`.
    ContentType(&'static str),
    /// No `Content-Type`.
    NoContentType,
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// A web page.
    Page,
    /// 404 until a GET.
    IndexedByGet,
    /// 406 where `Accept` names this.
    NotAcceptable(&'static str),
    /// The connection breaks within the body, so many times.
    Broken(usize),
    /// A redirect with this status to a storage that refuses `Authorization`.
    Storage(u16),
    /// Pages of two entries, whose `Link` has this form.
    Pages(LinkForm),
    /// Each `WWW-Authenticate` is replaced by these, with the real one for `{}`.
    Challenges(&'static [&'static str]),
}

/// `Link` for the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkForm {
    Relative,
    Absolute,
    /// Without `<` and `>`.
    Bare,
    /// On another origin.
    Foreign,
}

/// Runs on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Front {
    /// As references name it.
    pub(crate) host: String,
    _tasks: JoinSet<()>,
}

/// What a front end passes requests to, and how.
#[derive(Debug)]
struct Route {
    host: String,
    upstream: String,
    /// The host of the storage.
    storage: String,
    client: reqwest::Client,
    part: &'static str,
    quirk: Quirk,
    /// How often the quirk was met, or would have been.
    met: AtomicUsize,
}

type Body = BoxBody<Bytes, io::Error>;

impl Front {
    /// Before the registry `host`: requests whose method and path contain `part` meet `quirk`.
    pub(crate) async fn before(host: &str, part: &'static str, quirk: Quirk) -> Self {
        let [own, storage] = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let address = by_name(&own.local_addr().unwrap().to_string());
        let route = Arc::new(Route {
            host: address.clone(),
            upstream: host.to_owned(),
            storage: by_name(&storage.local_addr().unwrap().to_string()),
            client: http(),
            part,
            quirk,
            met: AtomicUsize::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(own, Arc::clone(&route), false));
        tasks.spawn(listen(storage, route, true));
        Self {
            host: address,
            _tasks: tasks,
        }
    }
}

async fn listen(listener: TcpListener, route: Arc<Route>, is_storage: bool) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let route = Arc::clone(&route);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let route = Arc::clone(&route);
                async move {
                    match is_storage {
                        true => route.stored(request).await,
                        false => route.answer(request).await,
                    }
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Route {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, reqwest::Error> {
        let line = format!("{} {}", request.method(), request.uri());
        let Some(quirk) = Some(self.quirk).filter(|_| line.contains(self.part)) else {
            return self.passed(request, None).await;
        };
        let is_get = request.method() == "GET";
        let met = match quirk {
            Quirk::IndexedByGet if !is_get => self.met.load(Ordering::SeqCst),
            _ => self.met.fetch_add(1, Ordering::SeqCst),
        };
        match quirk {
            Quirk::Status(status) => Ok(status_only(status)),
            Quirk::Busy(status, times) if met < times => {
                let mut busy = status_only(status);
                busy.headers_mut().insert("retry-after", 1.into());
                Ok(busy)
            }
            Quirk::IndexedByGet if !is_get && met == 0 => Ok(status_only(404)),
            Quirk::NotAcceptable(kind) if names(request.headers(), kind) => Ok(status_only(406)),
            Quirk::Page => {
                let page = Response::builder().header("content-type", "text/html");
                Ok(page.body(whole("<html>Welcome</html>".into())).unwrap())
            }
            Quirk::Storage(status) => {
                let mut elsewhere = status_only(status);
                let location = format!("http://{}{}", self.storage, request.uri());
                let headers = elsewhere.headers_mut();
                headers.insert(header::LOCATION, location.parse().unwrap());
                Ok(elsewhere)
            }
            Quirk::Broken(times) if met >= times => self.passed(request, None).await,
            quirk => self.passed(request, Some(quirk)).await,
        }
    }

    /// The registry's own answer, changed by a quirk.
    async fn passed(
        &self,
        request: Request<Incoming>,
        quirk: Option<Quirk>,
    ) -> Result<Response<Body>, reqwest::Error> {
        let mut path = request.uri().to_string();
        if let Some(Quirk::Pages(_)) = quirk {
            path = of_two_entries(&path);
        }
        let url = format!("http://{}{path}", self.upstream);
        let mut headers = request.headers().clone();
        headers.remove("host");
        headers.remove("content-length");
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let sent = self.client.request(method, url).headers(headers).body(body);
        let truth = sent.send().await?;
        let (status, mut headers) = (truth.status(), truth.headers().clone());
        headers.remove("transfer-encoding");
        if let Some(quirk) = quirk {
            self.change(&mut headers, quirk);
        }
        let bytes = truth.bytes().await?;
        let body = match quirk {
            Some(Quirk::Broken(_)) => broken(&bytes),
            _ => whole(bytes),
        };
        let mut response = Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }

    fn change(&self, headers: &mut HeaderMap, quirk: Quirk) {
        match quirk {
            Quirk::ContentType(kind) => {
                headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            }
            Quirk::NoContentType => {
                headers.remove(header::CONTENT_TYPE);
            }
            Quirk::NoDigest => {
                headers.remove("docker-content-digest");
            }
            Quirk::Pages(form) => {
                let Some(link) = headers.get(header::LINK) else {
                    return;
                };
                let link = self.link(link.to_str().unwrap(), form);
                headers.insert(header::LINK, link.parse().unwrap());
            }
            Quirk::Challenges(all) => {
                let Some(real) = headers.remove(header::WWW_AUTHENTICATE) else {
                    return;
                };
                for challenge in all {
                    let challenge = challenge.replace("{}", real.to_str().unwrap());
                    headers.append(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
                }
            }
            _ => {}
        }
    }

    /// Another form of the registry's own `</v2/…>; rel="next"`.
    fn link(&self, real: &str, form: LinkForm) -> String {
        let path = &real[real.find("/v2/").unwrap()..real.find('>').unwrap()];
        let relation = "; rel=\"next\"";
        match form {
            LinkForm::Relative => format!("<{path}>{relation}"),
            LinkForm::Absolute => format!("<http://{}{path}>{relation}", self.host),
            LinkForm::Bare => format!("{path}{relation}"),
            LinkForm::Foreign => format!("<http://{}{path}>{relation}", self.storage),
        }
    }

    /// The answer of the storage, which reads the registry with its own credentials.
    async fn stored(&self, request: Request<Incoming>) -> Result<Response<Body>, reqwest::Error> {
        if request.headers().contains_key(header::AUTHORIZATION) {
            return Ok(status_only(400));
        }
        let url = format!("http://{}{}", self.upstream, request.uri());
        let mut headers = request.headers().clone();
        headers.remove("host");
        let sent = self.client.request(request.method().clone(), url);
        let sent = sent.headers(headers).basic_auth(USER, Some(PASSWORD));
        let truth = sent.send().await?;
        let (status, mut headers) = (truth.status(), truth.headers().clone());
        headers.remove("transfer-encoding");
        let mut response = Response::new(whole(truth.bytes().await?));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }
}

fn names(headers: &HeaderMap, kind: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT);
    accepted
        .iter()
        .any(|value| value.to_str().unwrap().contains(kind))
}

/// The same list with two entries a page.
fn of_two_entries(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let rest: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.starts_with("n="))
        .collect();
    format!("{path}?n=2&{}", rest.join("&"))
}

fn status_only(status: u16) -> Response<Body> {
    let response = Response::builder().status(status);
    response.body(whole(Bytes::new())).unwrap()
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Half of the bytes, and then the end of the connection.
fn broken(bytes: &Bytes) -> Body {
    let half = bytes.slice(..bytes.len() / 2);
    let frames = [
        Ok(Frame::data(half)),
        Err(io::Error::other("the connection breaks")),
    ];
    StreamBody::new(stream::iter(frames)).boxed()
}
