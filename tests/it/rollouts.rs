//! `/rollouts` and `bundlegate rollout`: a server whose roll-outs a task of the test carries out, by the state
//! machine of the product.

use std::{
    process::Command,
    sync::{Arc, Mutex},
};

use bundlegate::{
    metrics::Metrics,
    oci::Digest,
    rollout::{
        Context, EngineState, Event, Halt, Millis, OnStableLost, Operation, Order, Phase, Plan,
        Rollback, Share, Step, Strategy, Tally, Tolerance, Unchanged, Version, next,
    },
    server::{
        AccessLevel, AdminAddress, AdminOptions, Catalog, Clients, Deadlines, Drain, LongPoll,
        Options, RolloutReply, RolloutRequest, RolloutRequests, RolloutStatus, Rollouts, Server,
        ServerMetrics, Settings, TrustedProxies,
    },
    traces::Traces,
};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    task::{JoinSet, spawn_blocking},
    time::Duration,
};

use crate::{
    command::{Author, Ran},
    gateway::{HOUR, PATIENCE, error},
    shared::{Process, poll_until},
};

const NAME: &str = "authz/main";
const ENCODED: &str = "authz%2Fmain";
const NOW: Millis = 1_796_000_000_000;

/// A server with one roll-out.
struct Admin {
    url: String,
    http: reqwest::Client,
    requests: Arc<Mutex<Vec<RolloutRequest>>>,
    rollout: Arc<Mutex<Carried>>,
    rollouts: Rollouts,
    _tasks: JoinSet<()>,
}

/// The roll-out, as a gateway keeps it.
struct Carried {
    plan: Plan,
    is_engine_up: bool,
    is_halted: bool,
}

fn version(revision: &str) -> Version {
    Version::new(Digest::sha256(revision.as_bytes()), revision, revision)
}

fn strategy() -> Strategy {
    let step = |percent, minutes: u64, approve| Step {
        share: Share::from_percent(percent).unwrap(),
        soak: Duration::from_secs(60 * minutes),
        approve,
        ..Step::default()
    };
    Strategy {
        name: "careful".to_owned(),
        steps: vec![
            step(1.0, 10, false),
            step(20.0, 30, true),
            step(100.0, 0, false),
        ],
        quorum: Share::from_percent(90.0).unwrap(),
        min_clients: 1,
        max_failures: Tolerance::Share(Share::from_percent(1.0).unwrap()),
        deadline: Duration::from_secs(7200),
        on_deadline: Halt::Pause,
        on_failure: Halt::RollBack,
        on_stable_lost: OnStableLost::Promote,
        rollback: Rollback::Immediate,
        order: Order::Fixed,
        checks: Vec::new(),
    }
}

/// The plan that follows from an event.
fn after(plan: &Plan, event: &Event) -> Result<Plan, Unchanged> {
    let context = Context {
        now: NOW,
        threshold_of: &|_, _| None,
    };
    next(plan, event, &context)
}

/// `r2` is in its first step.
fn progressing() -> Plan {
    let plan = Plan::first(version("r1"), strategy(), NOW);
    after(&plan, &Event::Proposed(version("r2"), strategy())).unwrap()
}

impl Carried {
    fn status(&self) -> RolloutStatus {
        RolloutStatus {
            bundle: NAME.to_owned(),
            plan: Some(Arc::new(self.plan.clone())),
            tally: Tally {
                offered: 300,
                acknowledged: 298,
                failed: 1,
                outside: 2,
            },
            criteria: None,
            checks: Vec::new(),
            is_halted: self.is_halted,
            is_leader: false,
            engine: match self.is_engine_up {
                true => EngineState::Up,
                false => EngineState::Down,
            },
        }
    }

    fn carry_out(&mut self, request: &RolloutRequest) -> RolloutReply {
        if request.bundle != NAME {
            return RolloutReply::Unknown;
        }
        if !self.is_engine_up {
            self.is_halted = request.operation == Operation::Abort;
            return match self.is_halted {
                true => RolloutReply::HaltedHere,
                false => RolloutReply::Unreachable("the engine does not answer".to_owned()),
            };
        }
        if request.epoch.is_some_and(|epoch| epoch != self.plan.epoch) {
            return RolloutReply::Conflict("the plan has another epoch".to_owned());
        }
        let event = Event::Operator(request.operation, request.operator.clone());
        match after(&self.plan, &event) {
            Ok(plan) => {
                self.plan = plan.clone();
                RolloutReply::Changed(Arc::new(plan))
            }
            Err(unchanged) => RolloutReply::Conflict(unchanged.to_string()),
        }
    }
}

impl Admin {
    async fn start(plan: Plan) -> Self {
        let (rollouts, received) = Rollouts::new();
        let admin = AdminOptions {
            rollouts: rollouts.clone(),
            ..AdminAddress::Tcp("127.0.0.1:0".parse().unwrap()).into()
        };
        let background = Handle::current();
        let metrics = ServerMetrics::new(&Metrics::new()).unwrap();
        let server = Server::bind(options(admin), Catalog::default(), metrics, background);
        let server = server.await.unwrap();
        let AdminAddress::Tcp(address) = server.admin_address().unwrap() else {
            panic!("no address")
        };
        let (rollout, requests) = (
            Arc::new(Mutex::new(Carried {
                plan,
                is_engine_up: true,
                is_halted: false,
            })),
            Arc::default(),
        );
        rollouts.replace(vec![rollout.lock().unwrap().status()]);
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(std::future::pending()));
        let carried = (Arc::clone(&rollout), Arc::clone(&requests));
        tasks.spawn(carry_out(received, rollouts.clone(), carried));
        Self {
            url: format!("http://{address}"),
            http: reqwest::Client::new(),
            requests,
            rollout,
            rollouts,
            _tasks: tasks,
        }
    }

    fn post(&self, path: &str, body: &str) -> RequestBuilder {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        request.body(body.to_owned()).timeout(PATIENCE)
    }

    async fn operate(&self, operation: &str, body: &Value) -> (StatusCode, Value) {
        let path = format!("/rollouts/{ENCODED}/{operation}");
        let response = self.post(&path, &body.to_string()).send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.url));
        response.send().await.unwrap().json().await.unwrap()
    }

    /// Changes the roll-out, as a gateway does by itself.
    fn change(&self, change: impl FnOnce(&mut Carried)) {
        let mut rollout = self.rollout.lock().unwrap();
        change(&mut rollout);
        self.rollouts.replace(vec![rollout.status()]);
    }

    fn apply(&self, event: &Event) {
        self.change(|rollout| rollout.plan = after(&rollout.plan, event).unwrap());
    }

    async fn run(&self, line: &str) -> Ran {
        let (url, line) = (self.url.clone(), format!("rollout {line}"));
        let running = spawn_blocking(move || {
            let arguments: Vec<_> = line.split_whitespace().collect();
            let environment = [("BUNDLEGATE_ADMIN", &*url), ("USER", "kim")];
            Author::new().run_with(&arguments, "", &environment)
        });
        running.await.unwrap()
    }
}

async fn carry_out(
    mut received: RolloutRequests,
    rollouts: Rollouts,
    (rollout, requests): (Arc<Mutex<Carried>>, Arc<Mutex<Vec<RolloutRequest>>>),
) {
    loop {
        let (request, reply) = received.next().await;
        let mut rollout = rollout.lock().unwrap();
        let answer = rollout.carry_out(&request);
        rollouts.replace(vec![rollout.status()]);
        requests.lock().unwrap().push(request);
        let _ = reply.send(answer);
    }
}

fn options(admin: AdminOptions) -> Options {
    let settings = Settings {
        tls: None,
        max_connections: 10,
        drain: Drain {
            notice: Duration::ZERO,
            over: Duration::ZERO,
        },
        long_poll: LongPoll {
            max_wait: HOUR,
            first_wait: HOUR,
            bandwidth: None,
            spread: Duration::ZERO,
            repeat_delay: Duration::ZERO,
        },
        access_log: AccessLevel::Off,
        trusted_proxies: TrustedProxies::default(),
        admin_tls: None,
        admin_hosts: Vec::new(),
    };
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin,
        ready_after: HOUR,
        clients: Clients::default().into(),
        webhooks: Vec::new().into(),
        deadlines: Deadlines::default(),
        settings: settings.into(),
        traces: Traces::off(),
        fleet: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_has_its_versions_criteria_and_history() {
    let admin = Admin::start(progressing()).await;
    let (r1, r2) = (
        Digest::sha256(b"r1").to_string(),
        Digest::sha256(b"r2").to_string(),
    );
    let expected = json!({
        "bundle": NAME, "phase": "progressing", "step": 1, "steps": 3, "percent": 1.0,
        "since": "2026-11-30T00:53:20.000Z", "began": "2026-11-30T00:53:20.000Z", "epoch": 1, "generation": 2,
        "stable": { "manifest": r1, "etag": "r1", "revision": "r1" },
        "candidate": { "manifest": r2, "etag": "r2", "revision": "r2" },
        "strategy": "careful", "refused": [],
        "criteria": {
            "soak": { "observed_s": null, "required_s": 600 },
            "clients": {
                "offered": 300, "acknowledged": 298, "failed": 1, "outside": 2, "min": 1,
                "quorum_percent": 90.0, "tolerated": 3,
            },
            "checks": [],
            "approval": { "required": false, "awaited": null },
        },
        "history": [
            {
                "at": "2026-11-30T00:53:20.000Z", "to": "idle", "step": null, "cause": "version",
                "reason": format!("the reference names {r1}"), "by": null, "candidate": null,
            },
            {
                "at": "2026-11-30T00:53:20.000Z", "to": "progressing", "step": 1, "cause": "version",
                "reason": format!("the reference names {r2}"), "by": null, "candidate": r2,
            },
        ],
        "halted_here": false, "leader": false, "engine": "up",
    });
    assert_eq!(admin.get(&format!("/rollouts/{ENCODED}")).await, expected);
    assert_eq!(admin.get(&format!("/rollouts/{NAME}")).await, expected);
    assert_eq!(admin.get("/rollouts").await["rollouts"][NAME], expected);
    let none = admin.http.get(format!("{}/rollouts/none", admin.url));
    let none = none.send().await.unwrap();
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
    assert_eq!(error(none).await["reason"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_answers_with_the_plan_or_with_the_conflict() {
    let admin = Admin::start(progressing()).await;
    let no_body = json!({});
    for (operation, body, status, phase, step) in [
        ("retry", no_body.clone(), 409, "", 0),
        ("resume", no_body.clone(), 409, "", 0),
        ("promote", json!({ "epoch": 7 }), 409, "", 0),
        (
            "promote",
            json!({ "epoch": 1, "full": false }),
            200,
            "progressing",
            2,
        ),
        (
            "pause",
            json!({ "by": "kim", "reason": "INC-7" }),
            200,
            "paused",
            2,
        ),
        ("pause", no_body.clone(), 409, "", 0),
        ("resume", no_body.clone(), 200, "progressing", 2),
        ("abort", no_body.clone(), 200, "rolled_back", 2),
        ("abort", no_body.clone(), 409, "", 0),
        ("retry", no_body.clone(), 200, "progressing", 1),
        ("promote", json!({ "full": true }), 200, "idle", 0),
        ("abort", no_body, 409, "", 0),
    ] {
        let (code, answer) = admin.operate(operation, &body).await;
        assert_eq!(code.as_u16(), status, "{operation} {body}: {answer}");
        match status {
            200 => {
                assert_eq!(answer["phase"], phase, "{operation}");
                assert_eq!(
                    answer["step"].as_u64().unwrap_or_default(),
                    step,
                    "{operation}"
                );
            }
            _ => assert_eq!(answer["error"]["reason"], "conflict", "{operation}"),
        }
    }
    let document = admin.get(&format!("/rollouts/{ENCODED}")).await;
    assert_eq!(document["stable"]["revision"], "r2");
    assert_eq!(document["candidate"], Value::Null);
    let history = document["history"].as_array().unwrap();
    let paused = history.iter().find(|one| one["to"] == "paused").unwrap();
    assert_eq!(
        (&paused["by"], &paused["reason"]),
        (&json!("kim"), &json!("INC-7"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_engine_only_an_abort_has_an_effect_and_on_this_replica_alone() {
    let admin = Admin::start(progressing()).await;
    admin.change(|rollout| rollout.is_engine_up = false);
    let (code, answer) = admin.operate("promote", &json!({})).await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    assert_eq!(answer["error"]["reason"], "unavailable");
    let (code, answer) = admin.operate("abort", &json!({})).await;
    assert_eq!(
        (code, &answer["outcome"]),
        (StatusCode::ACCEPTED, &json!("halted_here"))
    );
    let document = admin.get(&format!("/rollouts/{ENCODED}")).await;
    assert_eq!(
        (
            &document["halted_here"],
            &document["engine"],
            &document["phase"]
        ),
        (&json!(true), &json!("down"), &json!("progressing"))
    );
    let ran = admin.run("abort authz/main").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("repeat the request once it answers"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_error_and_reaches_no_gateway() {
    let admin = Admin::start(progressing()).await;
    let promote = format!("/rollouts/{ENCODED}/promote");
    let pause = format!("/rollouts/{ENCODED}/pause");
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(4096));
    for (path, body, status, reason) in [
        (&*promote, "{\"who\":1}", 400, "bad_request"),
        (&promote, "{\"epoch\":-1}", 400, "bad_request"),
        (&promote, "[]x", 400, "bad_request"),
        (&promote, &large, 413, "too_large"),
        (&pause, "{\"full\":true}", 400, "bad_request"),
        ("/rollouts/%ff/pause", "", 400, "bad_request"),
        ("/rollouts/a/delete", "", 404, "not_found"),
        ("/rollouts/pause", "", 404, "not_found"),
    ] {
        let response = admin.post(path, body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path} {body}");
        assert_eq!(error(response).await["reason"], reason, "{path} {body}");
    }
    for (name, value, status) in [
        ("content-type", "text/plain", 415),
        ("origin", "http://localhost", 403),
        ("host", "rebound.example", 403),
        ("x-forwarded-for", "10.0.0.1", 403),
    ] {
        let request = admin.http.post(format!("{}{pause}", admin.url));
        let request = match name {
            "content-type" => request.header(name, value),
            _ => request
                .header("content-type", "application/json")
                .header(name, value),
        };
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}: {value}");
    }
    let deleted = admin.http.delete(format!("{}/rollouts/{NAME}", admin.url));
    let deleted = deleted.send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(admin.requests.lock().unwrap().is_empty());
    // No body is one without keys.
    let response = admin.post(&pause, "").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_and_changes_a_rollout() {
    let admin = Admin::start(progressing()).await;
    let listed = admin.run("list").await.ok();
    let lines: Vec<_> = listed.lines().collect();
    assert!(
        lines.len() == 2 && lines[1].starts_with("authz/main  progressing  1 of 3 (1 %)  r1"),
        "{listed}"
    );
    let said = admin
        .run("promote authz/main --reason looked --epoch 1")
        .await
        .ok();
    assert_eq!(
        said,
        "authz/main: progressing, step 2 of 3 (20 %), candidate r2\n"
    );
    let request = admin.requests.lock().unwrap()[0].clone();
    assert_eq!(request.operation, Operation::Promote { full: false });
    assert_eq!(request.epoch, Some(1));
    let by = (
        request.operator.by.as_deref(),
        request.operator.reason.as_deref(),
    );
    assert_eq!(by, (Some("kim"), Some("looked")));
    let shown = admin.run("show authz/main").await.ok();
    for part in [
        "300 were offered it, 298 run it (at least 1 and 90 %), 1 failed (3 tolerated)",
        "2 run it without being in the step",
        "required once the other criteria are met",
        "operator  kim  looked",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let said = admin
        .run("promote authz/main --full --by ci --json")
        .await
        .json();
    assert_eq!(
        (&said["phase"], &said["history"][3]["by"]),
        (&json!("idle"), &json!("ci"))
    );
    let ran = admin.run("abort authz/main").await;
    let expected = "bundlegate: rollout abort authz/main: no version is being rolled out\n";
    assert_eq!((ran.code, &*ran.stderr), (1, expected));
    let ran = admin.run("show none").await;
    assert!(
        ran.code == 1 && ran.stderr.contains("see /rollouts"),
        "{ran:?}"
    );
}

/// Waits for a version while something happens to it.
#[tokio::test(flavor = "multi_thread")]
async fn wait_exits_with_how_the_rollout_ends() {
    let operator = |operation| Event::Operator(operation, Default::default());
    let (full, r2) = (Operation::Promote { full: true }, Digest::sha256(b"r2"));
    let asked = ["--manifest", r2.as_str()];
    for (event, arguments, code, text) in [
        (operator(full), &[][..], 0, "authz/main: r2 is stable"),
        (operator(full), &asked, 0, "authz/main: r2 is stable"),
        (operator(Operation::Pause), &[], 1, "paused: pause"),
        (operator(Operation::Abort), &[], 1, "rolled back: abort"),
        (
            Event::Proposed(version("r3"), strategy()),
            &asked,
            1,
            "superseded: the reference names",
        ),
        (
            Event::Proposed(version("r1"), strategy()),
            &[],
            1,
            "superseded: the reference names",
        ),
    ] {
        let admin = Admin::start(progressing()).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command.args(["rollout", "wait", NAME, "--admin", &admin.url]);
        let mut waiting = Process::start("wait", command.args(arguments));
        let progress = "authz/main: progressing, step 1 of 3";
        waiting
            .line(|line| line.contains(progress).then_some(()))
            .await;
        admin.apply(&event);
        assert_eq!(waiting.ended().await.code(), Some(code), "{event:?}");
        poll_until(text, async || waiting.log().contains(text).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_exits_with_2_when_it_does_not_learn_the_end() {
    let admin = Admin::start(progressing()).await;
    let ran = admin.run("wait authz/main --timeout 1500ms").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("not promoted after 1s 500ms"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("298 of 300 clients run it, 1 failed"),
        "{ran:?}"
    );
    // One line of progress, though it asked more than once.
    assert_eq!(ran.stderr.lines().count(), 2, "{ran:?}");
    // A version that the gateway does not know yet.
    let unknown = Digest::sha256(b"r9");
    let ran = admin
        .run(&format!(
            "wait authz/main --timeout 1ms --manifest {unknown}"
        ))
        .await;
    assert_eq!(ran.code, 2, "{ran:?}");
    for line in [
        "wait none",
        "wait authz/main --timeout soon",
        "wait authz/main --manifest r2",
    ] {
        assert_eq!(admin.run(line).await.code, 2, "{line}");
    }
    let phase = admin.rollout.lock().unwrap().plan.phase;
    assert_eq!(phase, Phase::Progressing);
}
