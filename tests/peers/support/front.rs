//! A front end before a real registry that answers some requests as other registries do.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

use super::http;

/// How an answer differs from the registry's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Quirk {
    /// A status instead of it.
    Status(u16),
    /// This `Content-Type`.
    ContentType(&'static str),
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// A web page.
    Page,
}

/// Runs on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Front {
    /// As references name it.
    pub(crate) host: String,
    _tasks: JoinSet<()>,
}

impl Front {
    /// Before the registry `host`: requests whose method and path contain `part` meet `quirk`.
    pub(crate) async fn before(host: &str, part: &'static str, quirk: Quirk) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (upstream, client) = (Arc::<str>::from(host), http());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (upstream, client) = (Arc::clone(&upstream), client.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        answer(client.clone(), Arc::clone(&upstream), request, part, quirk)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            host: address,
            _tasks: tasks,
        }
    }
}

async fn answer(
    client: reqwest::Client,
    upstream: Arc<str>,
    request: Request<Incoming>,
    part: &str,
    quirk: Quirk,
) -> Result<Response<Full<Bytes>>, reqwest::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let quirk = Some(quirk).filter(|_| line.contains(part));
    if let Some(Quirk::Status(status)) = quirk {
        return Ok(Response::builder()
            .status(status)
            .body(Full::default())
            .unwrap());
    }
    if let Some(Quirk::Page) = quirk {
        let page = Response::builder().header("content-type", "text/html");
        return Ok(page.body("<html>Welcome</html>".into()).unwrap());
    }
    let url = format!("http://{upstream}{}", request.uri());
    let mut headers = request.headers().clone();
    headers.remove("host");
    let sent = client
        .request(request.method().clone(), url)
        .headers(headers);
    let truth = sent.send().await?;
    let (status, mut headers) = (truth.status(), truth.headers().clone());
    headers.remove("transfer-encoding");
    match quirk {
        Some(Quirk::ContentType(kind)) => {
            headers.insert("content-type", kind.parse().unwrap());
        }
        Some(Quirk::NoDigest) => {
            headers.remove("docker-content-digest");
        }
        _ => {}
    }
    let mut response = Response::new(Full::new(truth.bytes().await?));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}
