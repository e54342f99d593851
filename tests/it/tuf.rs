//! A TUF repository of its own, served over HTTP, whose every file can be bent.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bundlegate::verify::{RootSource, TufOptions};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sigstore_verify::crypto::KeyPair;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use url::Url;

/// An answer instead of a file.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Bytes(Vec<u8>),
    /// A status without a body, and a redirect's target.
    Status(u16, &'static str),
    /// Bytes without end.
    Endless,
    /// Nothing, for ever.
    Silence,
}

/// The keys of the roles and the metadata that they sign. [`Self::publish`] makes files of both.
pub(crate) struct Tuf {
    /// Two of them sign roots.
    pub(crate) root_keys: Vec<KeyPair>,
    /// Signs everything else.
    pub(crate) online: KeyPair,
    pub(crate) root: u64,
    pub(crate) timestamp: u64,
    pub(crate) snapshot: u64,
    pub(crate) targets: u64,
    /// When timestamps expire; the rest lasts a year.
    pub(crate) expires: Timestamp,
    /// The files that may be fetched, by path.
    pub(crate) content: BTreeMap<String, Vec<u8>>,
    files: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    address: SocketAddr,
    first_root: Vec<u8>,
    _server: JoinSet<()>,
}

impl Tuf {
    /// One that has published `trusted_root` for a day.
    pub(crate) async fn start(trusted_root: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (files, asked) = (
            Arc::<Mutex<BTreeMap<String, Answer>>>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let mut server = JoinSet::new();
        server.spawn(serve(listener, files.clone(), asked.clone()));
        let mut tuf = Self {
            root_keys: (0..3)
                .map(|_| KeyPair::generate_ecdsa_p256().unwrap())
                .collect(),
            online: KeyPair::generate_ecdsa_p256().unwrap(),
            root: 1,
            timestamp: 0,
            snapshot: 0,
            targets: 0,
            expires: Timestamp::now() + SignedDuration::from_hours(24),
            content: BTreeMap::new(),
            files,
            asked,
            address,
            first_root: Vec::new(),
            _server: server,
        };
        tuf.first_root = tuf.root_file(&[&tuf.root_keys[0], &tuf.root_keys[1]]);
        tuf.put("1.root.json", tuf.first_root.clone());
        tuf.publish_root(trusted_root);
        tuf
    }

    /// How it is asked: with little patience, and at once if something changes.
    pub(crate) fn options(&self) -> TufOptions {
        let options = TufOptions::new(
            self.url(),
            self.first_root.clone().into(),
            Some(Duration::from_secs(1)),
        )
        .unwrap();
        // A silent repository never answers. Another one answers in this time, also on a busy
        // machine.
        options.with_timeout(Duration::from_secs(20))
    }

    pub(crate) fn url(&self) -> Url {
        Url::parse(&format!("http://{}/repository", self.address)).unwrap()
    }

    pub(crate) fn source(&self) -> RootSource {
        RootSource::Tuf(self.options())
    }

    /// Publishes this `trusted_root.json` in place of the one before.
    pub(crate) fn publish_root(&mut self, trusted_root: &str) {
        self.content.insert(
            "trusted_root.json".to_owned(),
            trusted_root.as_bytes().to_vec(),
        );
        self.publish();
    }

    /// Signs everything anew, one version up.
    pub(crate) fn publish(&mut self) {
        for (path, content) in &self.content {
            self.put(
                &format!("targets/{}.{path}", hash(content)),
                content.clone(),
            );
        }
        let targets = self
            .content
            .iter()
            .map(|(path, content)| (path.clone(), pin(content)));
        self.publish_targets(targets.collect());
    }

    /// The same, with this list of what may be fetched.
    pub(crate) fn publish_targets(&mut self, targets: BTreeMap<String, Value>) {
        self.targets += 1;
        let targets = self.signed("targets", self.targets, json!({ "targets": targets }));
        self.put(&format!("{}.targets.json", self.targets), targets.clone());
        self.publish_snapshot(&targets, self.targets);
    }

    /// This `trusted_root.json`, listed by a role of its own that ends when it says.
    pub(crate) fn publish_delegated(&mut self, trusted_root: &str, expires: Timestamp) {
        let key = key_id(&self.online);
        let pin = pin(trusted_root.as_bytes());
        self.put(
            &format!(
                "targets/{}.trusted_root.json",
                hash(trusted_root.as_bytes())
            ),
            trusted_root.into(),
        );
        let role = json!({
            "_type": "targets", "spec_version": "1.0.31", "version": 1, "expires": written(expires),
            "targets": {"trusted_root.json": pin},
        });
        let role = envelope(&role, &[&self.online]);
        self.put("1.trust.json", role.clone());
        self.targets += 1;
        let delegations = json!({
            "keys": {&key: public(&self.online)},
            "roles": [{"name": "trust", "keyids": [&key], "threshold": 1, "terminating": true, "paths": ["trusted_*"]}],
        });
        let content = json!({"targets": {}, "delegations": delegations});
        let targets = self.signed("targets", self.targets, content);
        self.put(&format!("{}.targets.json", self.targets), targets.clone());
        let meta = json!({"targets.json": versioned(&targets, self.targets), "trust.json": versioned(&role, 1)});
        self.publish_meta(&meta);
    }

    pub(crate) fn publish_snapshot(&mut self, targets: &[u8], version: u64) {
        self.publish_meta(&json!({"targets.json": versioned(targets, version)}));
    }

    fn publish_meta(&mut self, meta: &Value) {
        self.snapshot += 1;
        let snapshot = self.signed("snapshot", self.snapshot, json!({ "meta": meta }));
        self.put(
            &format!("{}.snapshot.json", self.snapshot),
            snapshot.clone(),
        );
        self.publish_timestamp(&snapshot, self.snapshot);
    }

    pub(crate) fn publish_timestamp(&mut self, snapshot: &[u8], version: u64) {
        self.timestamp += 1;
        let content = json!({"meta": {"snapshot.json": versioned(snapshot, version)}});
        let timestamp = self.signed("timestamp", self.timestamp, content);
        self.put("timestamp.json", timestamp);
    }

    /// The next `root.json`, which names the present keys, signed by `signers`.
    pub(crate) fn root_file(&self, signers: &[&KeyPair]) -> Vec<u8> {
        let keys = self
            .root_keys
            .iter()
            .chain([&self.online])
            .map(|key| (key_id(key), public(key)));
        let online = json!({"keyids": [key_id(&self.online)], "threshold": 1});
        let signed = json!({
            "_type": "root",
            "spec_version": "1.0.31",
            "version": self.root,
            "expires": in_a_year(),
            "consistent_snapshot": true,
            "keys": keys.collect::<BTreeMap<_, _>>(),
            "roles": {
                "root": {"keyids": self.root_keys.iter().map(key_id).collect::<Vec<_>>(), "threshold": 2},
                "timestamp": online, "snapshot": online, "targets": online,
            },
        });
        envelope(&signed, signers)
    }

    pub(crate) fn put(&self, path: &str, bytes: Vec<u8>) {
        self.answer(path, Answer::Bytes(bytes));
    }

    /// From now on this is what `path` gets. What was there before.
    pub(crate) fn answer(&self, path: &str, answer: Answer) -> Option<Answer> {
        self.files.lock().unwrap().insert(path.to_owned(), answer)
    }

    pub(crate) fn bytes(&self, path: &str) -> Vec<u8> {
        match self.files.lock().unwrap().get(path) {
            Some(Answer::Bytes(bytes)) => bytes.clone(),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// All files, to come back to.
    pub(crate) fn files(&self) -> BTreeMap<String, Answer> {
        self.files.lock().unwrap().clone()
    }

    pub(crate) fn restore(&self, files: BTreeMap<String, Answer>) {
        *self.files.lock().unwrap() = files;
    }

    /// The whole paths of the requests since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn signed(&self, role: &str, version: u64, content: Value) -> Vec<u8> {
        let expires = if role == "timestamp" {
            written(self.expires)
        } else {
            in_a_year()
        };
        let mut signed = content;
        for (key, value) in [
            ("_type", json!(role)),
            ("spec_version", json!("1.0.31")),
            ("version", json!(version)),
            ("expires", json!(expires)),
        ] {
            signed[key] = value;
        }
        envelope(&signed, &[&self.online])
    }
}

/// Length and hash of a file that may be fetched.
pub(crate) fn pin(content: &[u8]) -> Value {
    json!({"length": content.len(), "hashes": {"sha256": hash(content)}})
}

pub(crate) fn envelope(signed: &Value, signers: &[&KeyPair]) -> Vec<u8> {
    let canonical = sigstore_tuf::canonical_json::to_canonical_bytes(signed).unwrap();
    let signatures = signers.iter().map(|key| {
        let signature = key.sign(&canonical).unwrap();
        json!({"keyid": key_id(key), "sig": hex(signature.as_bytes())})
    });
    let document = json!({"signatures": signatures.collect::<Vec<_>>(), "signed": signed});
    serde_json::to_vec(&document).unwrap()
}

fn versioned(metadata: &[u8], version: u64) -> Value {
    let mut pin = pin(metadata);
    pin["version"] = json!(version);
    pin
}

fn public(key: &KeyPair) -> Value {
    let pem = key.public_key_der().unwrap().to_pem();
    json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": pem}})
}

fn key_id(key: &KeyPair) -> String {
    hash(&sigstore_tuf::canonical_json::to_canonical_bytes(&public(key)).unwrap())
}

fn in_a_year() -> String {
    written(Timestamp::now() + SignedDuration::from_hours(24 * 365))
}

/// TUF has whole seconds.
fn written(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn serve(
    listener: TcpListener,
    files: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let (files, asked) = (files.clone(), asked.clone());
        connections
            .spawn(async move { answer(connection, &files, &asked).await.unwrap_or_default() });
    }
}

async fn answer(
    mut connection: TcpStream,
    files: &Mutex<BTreeMap<String, Answer>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = connection.read_u8().await?;
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());
    let found = path
        .strip_prefix("/repository/")
        .and_then(|path| files.lock().unwrap().get(path).cloned());
    match found.unwrap_or(Answer::Status(404, "")) {
        Answer::Silence => std::future::pending().await,
        Answer::Status(status, location) => {
            let head = format!(
                "HTTP/1.1 {status} -\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).await
        }
        Answer::Bytes(bytes) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                bytes.len()
            );
            connection.write_all(head.as_bytes()).await?;
            connection.write_all(&bytes).await
        }
        Answer::Endless => {
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                .await?;
            loop {
                connection.write_all(&[b' '; 4096]).await?;
            }
        }
    }
}
