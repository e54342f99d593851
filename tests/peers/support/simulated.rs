//! Clients that long-poll a bundle as OPA does, and take every version.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex as AsyncMutex, MutexGuard},
    task::JoinSet,
    time::Instant,
};

/// The limit of open files suffices for one of the tests that run at a time.
static ALONE: AsyncMutex<()> = AsyncMutex::const_new(());

/// Clients with names of their own, one connection each, until it is dropped.
#[derive(Debug)]
pub(crate) struct Simulated {
    /// How they run each version, by its tag.
    versions: Arc<Mutex<HashMap<String, Usage>>>,
    _tasks: JoinSet<()>,
    _alone: MutexGuard<'static, ()>,
}

/// The clients that run one version.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// How many run it.
    pub(crate) now: usize,
    /// How many have run it at any time.
    pub(crate) ever: usize,
    /// When the last one began to run it.
    pub(crate) last: Option<Instant>,
}

impl Simulated {
    /// `count` clients of the bundle `name`, in turns at these gateways. Waits for those of other tests to end.
    pub(crate) async fn start(gateways: &[SocketAddr], name: &str, count: usize) -> Self {
        let alone = ALONE.lock().await;
        let none = Usage {
            now: count,
            ..Usage::default()
        };
        let versions = Arc::new(Mutex::new(HashMap::from([(String::new(), none)])));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (versions, gateway) = (Arc::clone(&versions), gateways[number % gateways.len()]);
            let head = format!(
                "GET /bundles/{name} HTTP/1.1\r\nHost: {gateway}\r\nUser-Agent: simulated\r\n\
                 Prefer: modes=snapshot,delta;wait=60\r\nBundlegate-Client: simulated-{number}\r\n"
            );
            tasks.spawn(async move {
                let mut stream = TcpStream::connect(gateway).await.unwrap();
                let (mut tag, mut earlier) = (String::new(), HashSet::new());
                loop {
                    let next = poll(&mut stream, &head, &tag).await;
                    if next != tag {
                        let mut versions = versions.lock().unwrap();
                        versions.entry(tag).or_default().now -= 1;
                        let usage = versions.entry(next.clone()).or_default();
                        usage.now += 1;
                        usage.ever += usize::from(earlier.insert(next.clone()));
                        usage.last = Some(Instant::now());
                        tag = next;
                    }
                }
            });
        }
        Self {
            versions,
            _tasks: tasks,
            _alone: alone,
        }
    }

    /// The clients that run this version.
    pub(crate) fn usage(&self, tag: &str) -> Usage {
        let versions = self.versions.lock().unwrap();
        versions.get(tag).copied().unwrap_or_default()
    }

    /// How many run this version.
    pub(crate) fn running(&self, tag: &str) -> usize {
        self.usage(tag).now
    }
}

/// One request. Returns the tag of the version that the client runs afterwards.
async fn poll(stream: &mut TcpStream, head: &str, tag: &str) -> String {
    let mut request = head.to_owned();
    if !tag.is_empty() {
        request.push_str(&format!("If-None-Match: {tag}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    let end = loop {
        assert_ne!(stream.read_buf(&mut response).await.unwrap(), 0, "closed");
        let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&response[..end]).to_ascii_lowercase();
    let original = String::from_utf8_lossy(&response[..end]).into_owned();
    let value = |name: &str| {
        let at = text.find(&format!("\r\n{name}: "))? + name.len() + 4;
        original[at..].lines().next().map(str::to_owned)
    };
    let status = text.split(' ').nth(1).unwrap().to_owned();
    if status == "304" {
        return tag.to_owned();
    }
    assert_eq!(status, "200", "{text}");
    let size: usize = value("content-length").unwrap().parse().unwrap();
    while response.len() < end + size {
        assert_ne!(stream.read_buf(&mut response).await.unwrap(), 0, "closed");
    }
    value("etag").unwrap()
}
