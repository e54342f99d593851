//! A forward proxy: CONNECT, absolute-form requests, and SOCKS 5. It resolves names itself.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct ForwardProxy {
    pub(crate) address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Inner {
    routes: HashMap<String, SocketAddr>,
    /// USER:PASSWORD, if a user is required.
    user: Option<String>,
    seen: Vec<String>,
}

impl ForwardProxy {
    /// Knows the addresses of these names, and of no other.
    pub(crate) async fn start(routes: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = routes.iter().map(|(name, at)| ((*name).to_owned(), *at));
        let inner = Arc::new(Mutex::new(Inner {
            routes: routes.collect(),
            ..Inner::default()
        }));
        let shared = Arc::clone(&inner);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            inner,
            _tasks: tasks,
        }
    }

    /// From now on it requires USER:PASSWORD.
    pub(crate) fn require(&self, user: &str) {
        self.inner.lock().unwrap().user = Some(user.to_owned());
    }

    /// The first lines of the requests so far: one for each connection.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.inner.lock().unwrap().seen.clone()
    }
}

async fn serve(mut client: TcpStream, inner: Arc<Mutex<Inner>>) {
    // Either side may break off at any time.
    let _ = forward(&mut client, &inner).await;
}

async fn forward(client: &mut TcpStream, inner: &Mutex<Inner>) -> io::Result<()> {
    let mut first = [0];
    client.read_exact(&mut first).await?;
    if first == [5] {
        return socks(client, inner).await;
    }
    let mut head = first.to_vec();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap().to_owned();
    let (method, rest) = line.split_once(' ').unwrap();
    let target = rest.split(' ').next().unwrap();
    inner
        .lock()
        .unwrap()
        .seen
        .push(format!("{method} {target}"));
    if !is_allowed(inner, &head) {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                       proxy-authenticate: Basic realm=\"proxy\"\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal.as_bytes()).await;
    }
    let authority = target.strip_prefix("http://").unwrap_or(target);
    let (authority, path) = authority.split_once('/').unwrap_or((authority, ""));
    let Some(mut server) = connect(inner, authority).await else {
        let unknown = "HTTP/1.1 502 x\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(unknown.as_bytes()).await;
    };
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        let head = head.replacen(target, &format!("/{path}"), 1);
        server.write_all(head.as_bytes()).await?;
    }
    copy_bidirectional(client, &mut server).await.map(drop)
}

fn is_allowed(inner: &Mutex<Inner>, head: &str) -> bool {
    let Some(user) = inner.lock().unwrap().user.clone() else {
        return true;
    };
    let expected = format!("proxy-authorization: Basic {}", STANDARD.encode(user));
    head.lines()
        .any(|line| line.eq_ignore_ascii_case(&expected))
}

/// The request of RFC 1928 with a name, without authentication.
async fn socks(client: &mut TcpStream, inner: &Mutex<Inner>) -> io::Result<()> {
    let methods = client.read_u8().await?;
    client
        .read_exact(&mut vec![0; usize::from(methods)])
        .await?;
    client.write_all(&[5, 0]).await?;
    let mut request = [0; 5];
    client.read_exact(&mut request).await?;
    assert_eq!(request[..4], [5, 1, 0, 3], "CONNECT to a name");
    let mut name = vec![0; usize::from(request[4])];
    client.read_exact(&mut name).await?;
    let port = client.read_u16().await?;
    let authority = format!("{}:{port}", String::from_utf8(name).unwrap());
    inner
        .lock()
        .unwrap()
        .seen
        .push(format!("SOCKS {authority}"));
    let Some(mut server) = connect(inner, &authority).await else {
        return client.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    };
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    copy_bidirectional(client, &mut server).await.map(drop)
}

async fn connect(inner: &Mutex<Inner>, authority: &str) -> Option<TcpStream> {
    let name = authority
        .rsplit_once(':')
        .map_or(authority, |(name, _)| name);
    let address = inner.lock().unwrap().routes.get(name).copied()?;
    TcpStream::connect(address).await.ok()
}
