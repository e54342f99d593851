//! `log`: the format of lines, and the access log.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{bundle, packed, tag, wishing},
    shared::{
        PATIENCE, Process, TestGateway,
        gateway::{Program, listener},
        poll_until,
    },
};

const TOKEN: &str = "s3cret-token";

/// A configuration with the bundles `authz`, which needs the token of the client `edge`, and
/// `public/large`.
fn config(registry: &FaultyRegistry, log: &Value) -> Value {
    let reference = |tag| registry.reference(tag).to_string();
    json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "drain": { "notice": "0s", "over": "0s" } },
        "log": log,
        "clients": [
            { "name": "edge", "bearer_token_file": "edge.token", "bundles": ["**"] },
            { "name": "anyone", "anonymous": true, "bundles": ["public/**"] },
        ],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": {
            "authz": { "reference": reference("live"), "trust": "dev", "poll": "1h" },
            "public/large": { "reference": reference("large"), "trust": "dev", "poll": "1h" },
        },
    })
}

/// A registry with both bundles. The large one can't be compressed.
async fn registry() -> FaultyRegistry {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut state = 1_u32;
    let noise = (0..700_000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'!' + (state >> 24) as u8 % 90)
    });
    let noise: String = noise.filter(|char| !"\"\\".contains(*char)).collect();
    registry.put_artifact(
        "large",
        &packed(&[("data.json", &format!("{{\"a\": \"{noise}\"}}"))]),
    );
    registry
}

fn folder(config: &Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("edge.token"), TOKEN).unwrap();
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    folder
}

async fn started(config: &Value) -> TestGateway {
    let gateway = TestGateway::run(folder(config)).await;
    for name in ["authz", "public/large"] {
        let is_served = |status: &Value| status["state"] == "serving";
        gateway.status_when(name, "served", is_served).await;
    }
    gateway
}

impl TestGateway {
    /// The lines of the access log so far.
    fn accesses(&self) -> Vec<Value> {
        let mut lines = self.log();
        lines.retain(|line| line["target"] == "bundlegate::access");
        lines
    }

    /// Waits until there is a line that `like` accepts.
    async fn access(&self, what: &str, like: impl Fn(&Value) -> bool) -> Value {
        poll_until(what, async || self.accesses().into_iter().find(&like))
            .await
            .0
    }

    /// Waits until there are this many lines.
    async fn until_accesses(&self, count: usize) -> Vec<Value> {
        let look = async || Some(self.accesses()).filter(|lines| lines.len() >= count);
        poll_until(&format!("{count} lines"), look).await.0
    }
}

/// Opens a connection, sends a request, and reads a part of the response.
fn raw(address: SocketAddr, request: &str, read: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut part = vec![0; read];
    stream.read_exact(&mut part).unwrap();
    stream
}

/// The method, the status, the bytes of a body that is no error, the client and the bundle.
type Row<'a> = (&'a str, u16, usize, &'a Value, &'a Value);

fn check_line(line: &Value, (method, status, bytes, client, bundle): Row<'_>) {
    assert_eq!(
        (&line["method"], &line["status"]),
        (&json!(method), &json!(status)),
        "{line}"
    );
    assert_eq!(
        (&line["client"], &line["bundle"]),
        (client, bundle),
        "{line}"
    );
    match status {
        400.. => assert!(line["bytes"].as_u64() > Some(0), "{line}"),
        _ => assert_eq!(line["bytes"], bytes, "{line}"),
    }
    for (field, value) in [
        ("aborted", Value::Null),
        ("address", json!("127.0.0.1")),
        ("user_agent", json!("a test")),
        ("level", json!("INFO")),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    assert!(line["duration_ms"].as_f64() > Some(0.0), "{line}");
    assert!(!line["path"].as_str().unwrap().contains('?'), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_one_line_with_its_client_its_response_and_its_times() {
    let registry = registry().await;
    let gateway = started(&config(&registry, &json!({ "access": "all" }))).await;
    for (protocol, http) in [
        ("HTTP/1.1", Client::builder()),
        ("HTTP/2", Client::builder().http2_prior_knowledge()),
    ] {
        let before = gateway.accesses().len();
        let http = http.no_proxy().user_agent("a test").build().unwrap();
        let ask = async |method: Method, path: &str, token: Option<&str>, tags: &str, wait| {
            let request = http.request(method, format!("{}{path}", gateway.url));
            let request = wishing(request, tags, wait);
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let response = request.send().await.unwrap();
            let etag = response.headers().get("etag").map(|_| tag(&response));
            (
                etag.unwrap_or_default(),
                response.bytes().await.unwrap().len(),
            )
        };
        let token = Some(TOKEN);
        let (etag, size) = ask(Method::GET, "/bundles/authz?secret=x", token, "", 0).await;
        ask(Method::GET, "/bundles/authz", token, &etag, 0).await;
        ask(Method::HEAD, "/bundles/authz", token, "", 0).await;
        ask(Method::GET, "/bundles/authz", token, &etag, 1).await;
        ask(Method::GET, "/bundles/nope", token, "", 0).await;
        ask(Method::GET, "/bundles/authz", None, "", 0).await;
        ask(Method::GET, "/bundles/authz", Some("wr0ng"), "", 0).await;
        ask(Method::PUT, "/bundles/authz", token, "", 0).await;
        let large = ask(Method::GET, "/bundles/public/large", None, "", 0)
            .await
            .1;
        let lines = gateway.until_accesses(before + 9).await.split_off(before);
        assert_eq!(lines.len(), 9, "{lines:#?}");
        let (client, bundle) = (json!("edge"), json!("authz"));
        let rows = [
            ("GET", 200, size, &client, &bundle),
            ("GET", 304, 0, &client, &bundle),
            ("HEAD", 200, 0, &client, &bundle),
            ("GET", 304, 0, &client, &bundle),
            ("GET", 404, 0, &client, &Value::Null),
            ("GET", 401, 0, &Value::Null, &Value::Null),
            ("GET", 401, 0, &Value::Null, &Value::Null),
            ("PUT", 405, 0, &Value::Null, &Value::Null),
            ("GET", 200, large, &json!("anyone"), &json!("public/large")),
        ];
        for (line, row) in lines.iter().zip(rows) {
            assert_eq!(line["protocol"], protocol, "{line}");
            check_line(line, row);
        }
        let held = |line: &Value| line["hold_ms"].as_f64();
        let holds: Vec<_> = lines.iter().filter_map(held).collect();
        // It is answered half a second after it has arrived, and held from a moment later on.
        assert!(holds.len() == 1 && holds[0] >= 400.0, "{holds:?}");
        let duration = lines[3]["duration_ms"].as_f64();
        assert!(
            duration >= held(&lines[3]) && duration >= Some(500.0),
            "{lines:#?}"
        );
    }
    let log = gateway.runner.process.log();
    assert!(!log.contains(TOKEN) && !log.contains("wr0ng") && !log.contains("secret=x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_has_a_line_with_what_it_got() {
    let registry = registry().await;
    let gateway = started(&config(&registry, &json!({ "access": "all" }))).await;
    let size = gateway.bundle_status("public/large").await["size"]
        .as_u64()
        .unwrap();
    // Without an entity tag it would be answered at once.
    let etag = gateway.bundle_status("public/large").await["etag"].clone();
    let etag = etag.as_str().unwrap();
    let held = format!(
        "GET /bundles/public/large HTTP/1.1\r\nHost: x\r\nIf-None-Match: {etag}\r\nPrefer: wait=60\r\n\r\n"
    );
    let stream = raw(gateway.data, &held, 0);
    let waiters = r#"bundlegate_waiters{bundle="public/large"}"#;
    let is_held = async || (gateway.metric(waiters).await == 1.0).then_some(());
    poll_until("it is held", is_held).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    let line = gateway
        .access("the client of a long poll leaves", |line| {
            line["aborted"] == true
        })
        .await;
    assert_eq!(
        (&line["status"], &line["bytes"]),
        (&Value::Null, &json!(0)),
        "{line}"
    );
    assert!(line["hold_ms"].as_f64() >= Some(50.0), "{line}");
    assert_eq!(line["client"], "anyone", "{line}");
    // The fast path, hyper and, below, h2. The connection is reset when data is unread.
    for extra in ["", "Accept: a\r\nExpect: nothing\r\n"] {
        let before = gateway.accesses().len();
        let request = format!("GET /bundles/public/large HTTP/1.1\r\nHost: x\r\n{extra}\r\n");
        let stream = raw(gateway.data, &request, 10_000);
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
        let lines = gateway.until_accesses(before + 1).await;
        let line = &lines[before];
        let sent = line["bytes"].as_u64().unwrap();
        assert_eq!(line["status"], 200, "{line}");
        // The kernel may have taken all of it.
        assert!(sent >= 9_000 && sent <= size, "{line}");
        assert_eq!(line["aborted"] == true, sent < size, "{line}");
    }
    let before = gateway.accesses().len();
    let http = Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(20_000_u32)
        .build()
        .unwrap();
    let url = format!("{}/bundles/public/large", gateway.url);
    let mut response = http.get(url).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop((response, http));
    let lines = gateway.until_accesses(before + 1).await;
    let sent = lines[before]["bytes"].as_u64().unwrap();
    assert_eq!(lines[before]["aborted"], true, "{:#?}", lines[before]);
    assert!(sent > 0 && sent < size, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_changes_while_serving() {
    const READ: &str = "configuration read again";
    let registry = registry().await;
    let gateway = started(&config(&registry, &json!({}))).await;
    let ask = async || {
        for path in [
            "/bundles/public/large",
            "/bundles/authz",
            "/bundles/public/nope",
        ] {
            let url = format!("{}{path}", gateway.url);
            gateway
                .http
                .get(url)
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
        }
    };
    let reload = async |log: Value| {
        let count = || {
            gateway
                .log()
                .iter()
                .filter(|line| line["message"] == READ)
                .count()
        };
        let before = count();
        let text = config(&registry, &log).to_string();
        fs::write(gateway.runner.folder.path().join("bundlegate.yaml"), text).unwrap();
        poll_until("it is applied", async || (count() > before).then_some(())).await;
    };
    // The server follows a change of the configuration a moment later.
    let until_logged = async |method: Method, path: &str, is_logged| {
        let probe = async || {
            let lines = gateway.accesses().len();
            let url = format!("{}{path}", gateway.url);
            gateway
                .http
                .request(method.clone(), url)
                .send()
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            ((gateway.accesses().len() > lines) == is_logged).then_some(())
        };
        poll_until("the change counts", probe).await;
        gateway.accesses().len()
    };
    let statuses = |lines: &[Value]| {
        let statuses = lines.iter().map(|line| line["status"].as_u64().unwrap());
        statuses.collect::<Vec<_>>()
    };
    let (probe, large) = ("/bundles/public/probe", "/bundles/public/large");
    ask().await;
    reload(json!({ "access": "errors" })).await;
    let before = until_logged(Method::GET, probe, true).await;
    ask().await;
    let lines = gateway.until_accesses(before + 2).await;
    assert_eq!(statuses(&lines[before..]), [401, 404]);
    reload(json!({ "access": "all" })).await;
    let before = until_logged(Method::HEAD, large, true).await;
    ask().await;
    let lines = gateway.until_accesses(before + 3).await;
    assert_eq!(statuses(&lines[before..]), [200, 401, 404]);
    reload(json!({ "access": "off" })).await;
    let before = until_logged(Method::GET, probe, false).await;
    ask().await;
    // Its line follows all of these.
    reload(json!({})).await;
    assert_eq!(gateway.accesses().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_shows_requests_and_polls() {
    let registry = registry().await;
    let folder = folder(&config(&registry, &json!({})));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .env("BUNDLEGATE_LOG", "debug")
        .args(["serve", "--config"]);
    let mut process = Process::start(
        "bundlegate",
        command.arg(folder.path().join("bundlegate.yaml")),
    );
    let data = listener(&mut process, "data").await;
    let line = |message: &'static str| {
        move |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == message).then_some(line)
        }
    };
    let check = process.line(line("checked the registry")).await;
    assert_eq!(
        (&check["trigger"], &check["level"]),
        (&json!("start"), &json!("DEBUG")),
        "{check}"
    );
    assert_eq!(check["outcome"], "accepted", "{check}");
    assert!(
        check["bundle"].is_string() && check["duration_ms"].as_f64() > Some(0.0),
        "{check}"
    );
    drop(raw(
        data,
        "GET /bundles/nope HTTP/1.1\r\nHost: x\r\n\r\n",
        100,
    ));
    let request = process.line(line("request")).await;
    assert_eq!(
        (&request["status"], &request["level"]),
        (&json!(401), &json!("DEBUG")),
        "{request}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_have_the_format_of_the_configuration() {
    let registry = registry().await;
    let text = folder(&config(
        &registry,
        &json!({ "format": "text", "access": "all" }),
    ));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .args(["serve", "--config"])
        .arg(text.path().join("bundlegate.yaml"));
    let mut process = Process::start("bundlegate", &mut command);
    let data: SocketAddr = process
        .line(|line| {
            let (_, rest) = line.split_once(" INFO listening listener=data address=")?;
            rest.trim().parse().ok()
        })
        .await;
    drop(raw(
        data,
        "GET /bundles/public/nope HTTP/1.1\r\nHost: x\r\n\r\n",
        100,
    ));
    let line = process
        .line(|line| line.contains(" INFO request ").then(|| line.to_owned()))
        .await;
    for part in [
        " client=anyone ",
        " address=127.0.0.1 ",
        " path=/bundles/public/nope ",
        " status=404 ",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let json = config(&registry, &json!({ "format": "json" })).to_string();
    fs::write(text.path().join("bundlegate.yaml"), json).unwrap();
    let line = process
        .line(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "configuration read again").then_some(line)
        })
        .await;
    assert_eq!(line["level"], "INFO", "{line}");
}

fn line_with(message: &'static str, bundle: &'static str) -> impl Fn(&str) -> Option<Value> {
    move |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_it = line["message"].as_str()?.contains(message) && line["bundle"] == bundle;
        is_it.then_some(line)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_what_is_still_served_and_a_start_from_the_cache_says_so() {
    let registry = registry().await;
    let mut config = config(&registry, &json!({}));
    config["cache"] = json!({ "directory": "cache" });
    let folder = folder(&config);
    let mut process = Program::launch(&folder);
    let admin = listener(&mut process, "admin").await;
    let served = process.line(line_with("serving", "authz")).await;
    assert_eq!(served["message"], "serving", "{served}");
    let (refused, _) = registry.put_artifact("live", b"no bundle");
    let http = Client::builder().no_proxy().build().unwrap();
    let request = http.post(format!("http://{admin}/refresh/authz"));
    let request = request.header("content-type", "application/json");
    request.body("{}").send().await.unwrap();
    let line = process
        .line(|line| line_with("", "authz")(line).filter(|line| line["level"] == "WARN"))
        .await;
    let reference = registry.reference("live").to_string();
    assert_eq!(
        (&line["class"], &line["state"], &line["reference"]),
        (&json!("defect"), &json!("serving"), &json!(reference)),
        "{line}"
    );
    assert_eq!(line["digest"], refused.to_string(), "{line}");
    assert_eq!(
        (&line["serving"], &line["serving_revision"]),
        (&served["manifest"], &served["revision"]),
        "{line}"
    );
    assert!(line["reason"].is_string(), "{line}");
    process.kill();
    registry.fail("", usize::MAX, Fault::Status(503, vec![]));
    let mut process = Program::launch(&folder);
    let again = process.line(line_with("serving", "authz")).await;
    assert_eq!(
        (&again["message"], &again["manifest"]),
        (&json!("serving from the cache"), &served["manifest"]),
        "{again}"
    );
}

/// A gateway whose stderr is read by the test.
struct Unread {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Unread {
    fn start(folder: &TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bundlegate"))
            .args(["serve", "--config"])
            .arg(folder.path().join("bundlegate.yaml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads until a line that `find` accepts.
    fn line<T>(&mut self, find: impl Fn(&Value) -> Option<T>) -> T {
        loop {
            let mut line = String::new();
            assert!(
                self.stderr.read_line(&mut line).unwrap() > 0,
                "it has ended"
            );
            let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if let Some(found) = find(&line) {
                return found;
            }
        }
    }

    fn address(&mut self, listener: &str) -> SocketAddr {
        self.line(|line| {
            let is_it = line["message"] == "listening" && line["listener"] == listener;
            is_it.then(|| line["address"].as_str().unwrap().parse().unwrap())
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stderr_that_is_not_read_delays_no_request_and_what_is_dropped_is_counted() {
    const REQUESTS: usize = 12_000;
    let registry = registry().await;
    let config = config(&registry, &json!({ "access": "all" }));
    let folder = folder(&config);
    let mut gateway = Unread::start(&folder);
    let (data, admin) = (gateway.address("data"), gateway.address("admin"));
    // Nothing is read from here on. Each line has some 300 bytes.
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(data).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET /bundles/authz HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        for _ in 0..REQUESTS {
            stream.write_all(request.as_bytes()).unwrap();
            let mut length = 0;
            loop {
                line.clear();
                answers.read_line(&mut line).unwrap();
                if let Some(text) = line.strip_prefix("content-length: ") {
                    length = text.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            answers.read_exact(&mut vec![0; length]).unwrap();
        }
    });
    asked.await.unwrap();
    let http = Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{admin}/metrics");
    let metrics = http.get(url).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let dropped = |log: &str| {
        let series = format!("bundlegate_log_lines_dropped_total{{log=\"{log}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap().parse::<usize>().unwrap()
    };
    let (access, events) = (dropped("access"), dropped("events"));
    assert!(
        access > 0 && access < REQUESTS && events == 0,
        "{access} {events}"
    );
    let (lines, reported) = tokio::task::spawn_blocking(move || {
        let lines = std::cell::Cell::new(0);
        let reported = gateway.line(|line| {
            lines.set(lines.get() + usize::from(line["message"] == "request"));
            let is_it = line["message"].as_str().unwrap().contains("were dropped");
            is_it.then(|| line["lines"].as_u64().unwrap())
        });
        (lines.get(), reported as usize)
    })
    .await
    .unwrap();
    assert_eq!((lines + access, reported), (REQUESTS, access));
}
