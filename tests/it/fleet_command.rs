//! `bundlegate fleet`, with a server that answers as the admin listener does.

use std::{
    convert::Infallible,
    process::Command,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
};
use url::form_urlencoded;

use crate::{
    command::{Author, Ran},
    shared::{Process, Stream, accept},
};

/// An admin listener with these clients, two in an answer at most.
struct Admin {
    url: String,
    clients: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

impl Admin {
    async fn start(clients: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let clients = Arc::new(Mutex::new(clients));
        let shared = Arc::clone(&clients);
        let tasks = accept(listener, None, move |stream| {
            serve(stream, Arc::clone(&shared))
        });
        Self {
            url,
            clients,
            _tasks: tasks,
        }
    }

    async fn run(&self, line: &str) -> Ran {
        let url = self.url.clone();
        let line = format!("fleet {line}");
        let running = spawn_blocking(move || {
            let arguments: Vec<_> = line.split_whitespace().collect();
            Author::new().run_with(&arguments, "", &[("BUNDLEGATE_ADMIN", &url)])
        });
        running.await.unwrap()
    }
}

fn client(id: &str, state: &str, revision: &str) -> Value {
    let error =
        json!({ "source": "status", "code": "bundle_error", "message": "a.rego:3: no", "at": "" });
    json!({
        "id": id, "name": format!("opa-{id}"), "client": "edge", "identified_by": "header",
        "address": "127.0.0.1", "shared_address": false, "agent": null, "opa": null,
        "seen": "2026-11-30T06:00:00.000Z",
        "bundles": { "authz/main": {
            "state": state, "runs": { "etag": "\"x\"", "manifest": null, "revision": revision },
            "since": "2026-11-30T06:00:00.000Z", "seen": "2026-11-30T06:00:00.000Z", "waiting": 0,
            "interval_s": 30, "offered": null, "error": (state == "failing").then_some(error),
        } },
    })
}

async fn serve(stream: Box<dyn Stream>, clients: Arc<Mutex<Vec<Value>>>) {
    let service = service_fn(async |request: Request<Incoming>| {
        let clients = clients.lock().unwrap().clone();
        let reply = Response::builder();
        let (reply, body) = match (request.uri().path(), clients.is_empty()) {
            ("/fleet", false) => (reply, answer(&clients, request.uri().query())),
            _ => {
                let message = "the fleet view is disabled; write `fleet.enabled: true`";
                (
                    reply.status(404),
                    json!({ "error": { "reason": "not_found", "message": message } }),
                )
            }
        };
        let body = Full::new(Bytes::from(body.to_string()));
        Ok::<_, Infallible>(reply.body(body).unwrap())
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(clients: &[Value], query: Option<&str>) -> Value {
    let state = |client: &Value| {
        client["bundles"]["authz/main"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let states = ["failing", "silent", "none", "current", "behind", "changing"].map(|name| {
        let count = clients
            .iter()
            .filter(|client| state(client) == name)
            .count();
        (name.to_owned(), json!(count))
    });
    let mut answer = json!({
        "at": "2026-11-30T06:00:00.000Z", "scope": "replica", "dropped": 0,
        "bundles": { "authz/main": {
            "serving": { "etag": "\"b\"", "manifest": "sha256:bb", "revision": "r2" },
            "clients": clients.len(), "shared_addresses": 0, "versions": [],
            "states": states.into_iter().collect::<serde_json::Map<_, _>>(),
        } },
    });
    let Some(query) = query else {
        return answer;
    };
    let parameters: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let parameter = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let limit = parameter("limit").map_or(2, |limit| limit.parse::<usize>().unwrap().min(2));
    let after = parameter("after").unwrap_or_default();
    let found: Vec<_> = clients
        .iter()
        .filter(|client| client["id"].as_str().unwrap() > after.as_str())
        .filter(|client| parameter("state").is_none_or(|wanted| state(client) == wanted))
        .collect();
    let page = &found[..limit.min(found.len())];
    let next = page.last().filter(|_| page.len() < found.len());
    answer["next"] = next.map_or(Value::Null, |last| last["id"].clone());
    answer["clients"] = json!(page);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_and_clients_of_all_pages_are_listed() {
    let admin = Admin::start(vec![
        client("1", "current", "r2"),
        client("2", "current", "r2"),
        client("3", "failing", "r1"),
    ])
    .await;
    let bundles = admin.run("").await;
    let note = "this is what one replica has seen; other replicas may see other clients";
    assert!(bundles.stderr.contains(note), "{bundles:?}");
    let shown = bundles.ok();
    let rows: Vec<Vec<_>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[1],
        ["authz/main", "r2", "3", "2", "0", "0", "1", "0", "0"],
        "{shown}"
    );
    // The client that needs attention.
    assert_eq!(
        rows[4][..4],
        ["opa-3", "authz/main", "failing", "r1"],
        "{shown}"
    );
    assert!(shown.ends_with("a.rego:3: no\n"), "{shown}");

    let all = admin.run("authz/main").await.ok();
    assert_eq!(all.lines().count(), 4, "{all}");
    let limited = admin.run("authz/main --limit 2").await;
    assert!(
        limited.stderr.contains("1 more clients; raise --limit"),
        "{limited:?}"
    );
    assert_eq!(limited.ok().lines().count(), 3);
    let failing = admin
        .run("--state failing --state behind --json")
        .await
        .json();
    let ids: Vec<_> = failing["clients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|client| &client["id"])
        .collect();
    assert_eq!(ids, ["3"]);

    let unknown = admin.run("authz/other").await;
    let message = "fleet: no bundle authz/other; there are: authz/main";
    assert!(unknown.error().contains(message), "{unknown:?}");
    assert_eq!(admin.run("--state broken").await.code, 2);
    admin.clients.lock().unwrap().clear();
    let disabled = admin.run("").await;
    let message = "fleet: the fleet view is disabled; write `fleet.enabled: true`";
    assert_eq!(disabled.error(), message);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_a_client_that_is_followed_has_a_line() {
    let admin = Admin::start(vec![
        client("1", "current", "r1"),
        client("2", "current", "r1"),
    ])
    .await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command.args(["fleet", "authz/main", "--follow", "--admin", &admin.url]);
    let mut following = Process::start("fleet", &mut command);
    let contains = |text: &'static str| move |line: &str| line.contains(text).then_some(());
    following.line(contains("following 2 clients")).await;
    admin.clients.lock().unwrap()[1] = client("2", "failing", "r1");
    following
        .line(contains(
            "opa-2  authz/main  current r1 → failing r1: a.rego:3: no",
        ))
        .await;
    admin.clients.lock().unwrap()[1] = client("2", "current", "r2");
    following
        .line(contains("opa-2  authz/main  failing r1 → current r2"))
        .await;
    // Once for each change.
    let log = following.log();
    let lines = log.lines().filter(|line| line.contains(" → "));
    assert_eq!(lines.count(), 2, "{log}");
}
