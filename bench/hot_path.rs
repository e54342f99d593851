//! The hot path: the cost of a request that is answered immediately.
//!
//! The client sends requests over one loopback connection to a whole gateway in this process.
//! Requests go out in batches, so that a figure shows the server's work and not the time in which
//! two threads wake each other. Compare figures of one machine with each other only; for the
//! comparison with nginx see `bench/load`.
#![expect(clippy::unwrap_used, reason = "a failed setup must abort the bench")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
};

use bundlegate::{
    config::Config,
    gateway::{Gateway, server_options},
    oci::{Descriptor, Layout, media_type},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Compression, GzBuilder};
use serde_json::json;
use tokio::runtime::Runtime;

/// Requests in flight at a time.
const BATCH: usize = 16;
const BUNDLE: &str = "authz/main";

criterion_group!(benches, not_modified, whole_bundles);
criterion_main!(benches);

fn not_modified(criterion: &mut Criterion) {
    let gateway = RunningGateway::serving(2_000);
    let mut client = Client::connect(
        gateway.address,
        &format!("If-None-Match: {}\r\n", gateway.etag),
    );
    client.expect(b"HTTP/1.1 304 ");
    let mut group = criterion.benchmark_group("hot path");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("304", |bencher| bencher.iter(|| client.batch()));
}

fn whole_bundles(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hot path");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, size) in [
        ("200, 2 KB", 2_000),
        ("200, 20 KB", 20_000),
        ("200, 200 KB", 200_000),
    ] {
        let gateway = RunningGateway::serving(size);
        let mut client = Client::connect(gateway.address, "");
        client.expect(b"HTTP/1.1 200 ");
        group.bench_function(name, |bencher| bencher.iter(|| client.batch()));
    }
}

/// A gateway that serves one bundle.
struct RunningGateway {
    address: SocketAddr,
    etag: String,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl RunningGateway {
    /// Serves a bundle of about `size` bytes, which a watcher reads from an OCI layout.
    fn serving(size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        put_artifact(folder.path(), &bundle_of(size));
        let config = json!({
            "version": 1,
            "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0" },
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "trust": { "policies": { "bench": "unsigned" } },
            "bundles": { BUNDLE: { "reference": "oci-layout:.:live", "trust": "bench", "poll": "1h" } },
        });
        let config = Config::parse(&config.to_string(), folder.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (address, etag) = runtime.block_on(async {
            let options = server_options(&config).unwrap();
            let gateway = Gateway::start(config, options, None).await.unwrap();
            let mut state = gateway.catalog().get(BUNDLE).unwrap().handle().subscribe();
            let etag = state
                .wait_for(|state| state.snapshot().is_some())
                .await
                .unwrap()
                .snapshot()
                .unwrap()
                .etag()
                .to_owned();
            let address = gateway.data_address().unwrap();
            tokio::spawn(gateway.run(std::future::pending(), std::future::pending()));
            (address, etag)
        });
        Self {
            address,
            etag,
            _runtime: runtime,
            _folder: folder,
        }
    }
}

/// A keep-alive connection, and the batch of requests that it sends repeatedly.
struct Client {
    stream: TcpStream,
    requests: Vec<u8>,
    /// A response; all of them have the same length.
    response: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let request = format!("GET /bundles/{BUNDLE} HTTP/1.1\r\nHost: gate\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let response = one_response(&mut stream);
        let buffer = vec![0; response.len() * BATCH];
        Self {
            stream,
            requests: request.repeat(BATCH).into_bytes(),
            response,
            buffer,
        }
    }

    /// Asserts that the responses have the status of the bench's name.
    fn expect(&self, start: &[u8]) {
        assert!(
            self.response.starts_with(start),
            "{}",
            String::from_utf8_lossy(&self.response[..60])
        );
    }

    fn batch(&mut self) {
        self.stream.write_all(&self.requests).unwrap();
        self.stream.read_exact(&mut self.buffer).unwrap();
        let last = &self.buffer[self.buffer.len() - self.response.len()..];
        assert_eq!(last[..13], self.response[..13]);
    }
}

/// Reads one response by its `Content-Length`, which a 304 lacks.
fn one_response(stream: &mut TcpStream) -> Vec<u8> {
    let mut response = Vec::new();
    let mut byte = [0];
    while !response.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        response.push(byte[0]);
    }
    let head = String::from_utf8(response.clone())
        .unwrap()
        .to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |text| text.parse().unwrap());
    let start = response.len();
    response.resize(start + length, 0);
    stream.read_exact(&mut response[start..]).unwrap();
    response
}

/// A bundle that can't be compressed.
fn bundle_of(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(size)
        .collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    let mut tarball = tar::Builder::new(GzBuilder::new().write(Vec::new(), Compression::fast()));
    tarball
        .append_data(&mut header, "noise.bin", noise.as_slice())
        .unwrap();
    tarball.into_inner().unwrap().finish().unwrap()
}

fn put_artifact(folder: &Path, bundle: &[u8]) {
    let layout = Layout::create(folder).unwrap();
    layout.write_blob(bundle).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"),
        "layers": [Descriptor::of(media_type::LAYER_TAR_GZIP, bundle)],
    });
    let manifest = manifest.to_string();
    layout.write_blob(manifest.as_bytes()).unwrap();
    let mut index = layout.index().unwrap();
    index.set(
        "live",
        Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes()),
    );
    layout.write_index(&index).unwrap();
}
