//! The state that replicas share, in a real Redis or Valkey.

mod plans;

use std::{
    fs,
    net::TcpListener,
    time::{Duration, SystemTime},
};

use bundlegate::{
    metrics::Metrics,
    shared::{
        Batch, Cursor, Endpoint, LogPosition, LogRead, MIN_LOG_LENGTH, Options, PlanWrite, Record,
        Servers, SharedError, SharedMetrics, SharedState,
    },
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::Instant};

use crate::support::{Ca, Engine, free_port, poll_until, sentinel};

const TIMEOUT: Duration = Duration::from_millis(500);
/// The permissions that the documentation of `bundlegate::shared` names.
const PERMISSIONS: &str = "~{bundlegate}:* +info +select +time +hset +pexpire +xadd +xrange \
                           +xrevrange +scan +hgetall +hmget +eval +get +set";

/// Access to an engine by the library.
trait Access {
    fn endpoint(&self) -> Endpoint;
    fn options(&self) -> Options;
    fn state(&self) -> SharedState;
}

impl Access for Engine {
    fn endpoint(&self) -> Endpoint {
        endpoint(self.port)
    }

    fn options(&self) -> Options {
        options(Servers::Address(self.endpoint()))
    }

    fn state(&self) -> SharedState {
        state(self.options())
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

fn options(servers: Servers) -> Options {
    Options {
        servers,
        tls: false,
        database: 0,
        username: None,
        password_file: None,
        extra_roots: Vec::new(),
        prefix: "bundlegate".to_owned(),
        timeout: TIMEOUT,
    }
}

fn state(options: Options) -> SharedState {
    let metrics = SharedMetrics::new(&Metrics::new()).unwrap();
    SharedState::new(options, metrics).unwrap()
}

fn record(key: &str, fields: &[(&str, &str)]) -> Record {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    Record {
        key: key.as_bytes().to_vec(),
        fields: fields.collect(),
    }
}

/// A batch whose records live for a minute.
fn batch(records: Vec<Record>, messages: &[&str]) -> Batch {
    Batch {
        records,
        ttl: Duration::from_secs(60),
        messages: messages
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect(),
    }
}

/// All records, ordered by key.
async fn records(state: &SharedState) -> Result<Vec<Record>, SharedError> {
    let (mut cursor, mut records) = (Some(Cursor::default()), Vec::new());
    while let Some(at) = cursor {
        let page = state.scan(at).await?;
        records.extend(page.records);
        cursor = page.next;
    }
    records.sort_by(|one, other| one.key.cmp(&other.key));
    records.dedup();
    Ok(records)
}

/// The messages after a position, the position after them, and whether there are more.
async fn messages(
    state: &SharedState,
    after: &LogPosition,
    limit: usize,
) -> (Vec<String>, LogPosition, bool) {
    match state.read_log(after, limit).await.unwrap() {
        LogRead::Messages {
            messages,
            position,
            more,
        } => {
            let messages = messages.into_iter();
            let messages = messages.map(|message| String::from_utf8(message).unwrap());
            (messages.collect(), position, more)
        }
        LogRead::Missed => panic!("missed"),
    }
}

/// Retries a write until the engine takes it.
async fn written(state: &SharedState, batch: &Batch) -> Duration {
    poll_until("a write", async || state.write(batch).await.ok())
        .await
        .1
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_reads_what_was_written_and_only_that() {
    let engine = Engine::start().await;
    let (one, other) = (engine.state(), engine.state());
    // A neighbour in the same engine, whose prefix is a pattern that matches ours.
    let neighbour = state(Options {
        prefix: "b*".to_owned(),
        ..engine.options()
    });
    engine.command(&["SET", "{bundlegate}:record:text", "of an operator"]);

    let start = other.end_of_log().await.unwrap();
    assert_eq!(other.end_of_log().await.unwrap(), start);
    assert_eq!(
        messages(&other, &start, 9).await,
        (vec![], start.clone(), false)
    );
    let a = record("a", &[("x", "1"), ("y", "\0\r\n")]);
    let engine_time = one
        .write(&batch(
            vec![a.clone(), record("none", &[])],
            &["m1", "m2", "m3"],
        ))
        .await
        .unwrap()
        .engine_time;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    assert!(now.abs_diff(engine_time) < Duration::from_secs(60));
    assert!(one.time().await.unwrap() >= engine_time);

    let (first, middle, more) = messages(&other, &start, 2).await;
    assert_eq!(
        (first, more),
        (vec!["m1".to_owned(), "m2".to_owned()], true)
    );
    let (rest, end, more) = messages(&other, &middle, 1).await;
    assert_eq!((rest, more), (vec!["m3".to_owned()], false));
    assert_eq!(other.end_of_log().await.unwrap(), end);
    assert_eq!(records(&other).await.unwrap(), [a]);
    // Fields that are not written stay.
    one.write(&batch(vec![record("a", &[("x", "2")])], &[]))
        .await
        .unwrap();
    let a = record("a", &[("x", "2"), ("y", "\0\r\n")]);
    assert_eq!(records(&other).await.unwrap(), [a]);
    assert_eq!(records(&neighbour).await.unwrap(), []);

    let many: Vec<_> = (0..3000)
        .map(|index| record(&format!("many-{index:04}"), &[("f", "v")]))
        .collect();
    one.write(&batch(many.clone(), &[])).await.unwrap();
    assert_eq!(records(&other).await.unwrap()[1..], many);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_expire_unless_they_are_written_again() {
    let engine = Engine::start().await;
    let state = engine.state();
    let short = Batch {
        ttl: Duration::from_millis(200),
        ..batch(
            vec![
                record("short", &[("f", "v")]),
                record("long", &[("f", "v")]),
            ],
            &["m"],
        )
    };
    state.write(&short).await.unwrap();
    let long = batch(vec![record("long", &[("g", "w")])], &[]);
    state.write(&long).await.unwrap();
    let left = record("long", &[("f", "v"), ("g", "w")]);
    poll_until("the end of a record", async || {
        (records(&state).await.unwrap() == [left.clone()]).then_some(())
    })
    .await;
    let ttl: i64 = engine
        .command(&["PTTL", "{bundlegate}:log"])
        .parse()
        .unwrap();
    assert!(ttl > 23 * 3_600_000, "{ttl}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_told_that_it_has_missed_something() {
    let mut engine = Engine::start().await;
    let state = engine.state();
    let start = state.end_of_log().await.unwrap();
    // The engine trims whole nodes of a hundred entries.
    let texts: Vec<_> = (0..MIN_LOG_LENGTH + 200).map(|_| "m").collect();
    state.write(&batch(vec![], &texts)).await.unwrap();
    assert_eq!(state.read_log(&start, 9).await, Ok(LogRead::Missed));
    let length: usize = engine
        .command(&["XLEN", "{bundlegate}:log"])
        .parse()
        .unwrap();
    assert!(
        (MIN_LOG_LENGTH..MIN_LOG_LENGTH + 200).contains(&length),
        "{length}"
    );

    for lost in ["FLUSHALL", "DEL {bundlegate}:log"] {
        state.write(&batch(vec![], &["m"])).await.unwrap();
        let end = state.end_of_log().await.unwrap();
        assert_eq!(messages(&state, &end, 9).await.0, [""; 0]);
        engine.command(&lost.split(' ').collect::<Vec<_>>());
        assert_eq!(state.read_log(&end, 9).await, Ok(LogRead::Missed), "{lost}");
        // Messages that follow do not hide it.
        state.write(&batch(vec![], &["m"])).await.unwrap();
        assert_eq!(state.read_log(&end, 9).await, Ok(LogRead::Missed), "{lost}");
    }

    let end = state.end_of_log().await.unwrap();
    engine.restart_empty().await;
    written(&state, &batch(vec![], &["m"])).await;
    assert_eq!(state.read_log(&end, 9).await, Ok(LogRead::Missed));
    let end = state.end_of_log().await.unwrap();
    assert_eq!(messages(&state, &end, 9).await.0, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_delays_no_call_beyond_the_timeout() {
    let engine = Engine::start().await;
    let metrics = Metrics::new();
    let state = SharedState::new(engine.options(), SharedMetrics::new(&metrics).unwrap()).unwrap();
    assert!(!state.is_up());
    state.time().await.unwrap();
    assert!(state.is_up());
    engine.process.signal("STOP");
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let state = state.clone();
        calls.spawn(async move {
            let mut longest = Duration::ZERO;
            let start = Instant::now();
            // Through several attempts to open a connection.
            while start.elapsed() < TIMEOUT * 4 {
                let call = Instant::now();
                let error = state.write(&batch(vec![], &["m"])).await.unwrap_err();
                longest = longest.max(call.elapsed());
                assert!(matches!(error, SharedError::TimedOut { .. }), "{error}");
                tokio::task::yield_now().await;
            }
            longest
        });
    }
    let longest = calls.join_all().await.into_iter().max().unwrap();
    println!("a call to an engine that hangs: {longest:?} with a timeout of {TIMEOUT:?}");
    assert!(longest < TIMEOUT * 2, "{longest:?}");
    assert!(!state.is_up());
    engine.process.signal("CONT");
    let after = written(&state, &batch(vec![], &["m"])).await;
    println!("written {after:?} after the engine goes on");
    assert!(state.is_up());
    let text = metrics.render().unwrap();
    for series in [
        r#"bundlegate_shared_commands_total{operation="time",outcome="ok"} 1"#,
        r#"bundlegate_shared_commands_total{operation="write",outcome="ok"} 1"#,
        r#"bundlegate_shared_commands_total{operation="write",outcome="timed_out"}"#,
        "bundlegate_shared_up 1",
    ] {
        assert!(text.contains(series), "{series}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_down_is_asked_once_in_a_while_and_used_once_it_is_back() {
    let mut engine = Engine::start().await;
    let metrics = Metrics::new();
    let state = SharedState::new(engine.options(), SharedMetrics::new(&metrics).unwrap()).unwrap();
    state.time().await.unwrap();
    engine.process.kill();
    let (mut longest, start) = (Duration::ZERO, Instant::now());
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(3) {
        let call = Instant::now();
        let error = state.time().await.unwrap_err();
        longest = longest.max(call.elapsed());
        let text = error.to_string();
        assert!(matches!(error, SharedError::Unreachable { .. }), "{text}");
        assert!(
            text.starts_with(&format!("127.0.0.1:{}", engine.port)),
            "{text}"
        );
        calls += 1;
        tokio::task::yield_now().await;
    }
    println!("{calls} calls to a closed port, the longest {longest:?}");
    assert!(longest < TIMEOUT * 2, "{longest:?}");
    let text = metrics.render().unwrap();
    let tried = r#"bundlegate_shared_commands_total{operation="time",outcome="unreachable"} "#;
    let tried = text.lines().find_map(|line| line.strip_prefix(tried));
    let tried: u32 = tried.unwrap().parse().unwrap();
    // At once, and after 0.1, 0.3, 0.7, 1.5 and 2.5 s; one may be the end of the old connection.
    assert!((4..=7).contains(&tried), "{tried} attempts");
    engine.restart_empty().await;
    let after = written(&state, &batch(vec![], &["m"])).await;
    println!("written {after:?} after the engine is ready");

    // A connection that the engine closes is replaced before the next call.
    engine.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    poll_until("a closed connection", async || {
        let clients = engine.command(&["CLIENT", "LIST"]);
        (clients.lines().count() == 1).then_some(())
    })
    .await;
    state.time().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_the_documented_permissions_and_a_password_may_change() {
    let engine = Engine::start().await;
    let (rules, folder) = (PERMISSIONS.split(' '), TempDir::new().unwrap());
    let user = ["ACL", "SETUSER", "gate", "reset", "on", ">s3cret"];
    engine.command(&user.into_iter().chain(rules).collect::<Vec<_>>());
    engine.command(&["CONFIG", "SET", "requirepass", "m4ster"]);
    let file = folder.path().join("password");
    fs::write(&file, "s3cret\n").unwrap();
    let options = Options {
        username: Some("gate".to_owned()),
        password_file: Some(file.clone()),
        database: 1,
        ..engine.options()
    };
    let state = state(options.clone());
    let a = record("a", &[("x", "1")]);
    state.write(&batch(vec![a.clone()], &["m"])).await.unwrap();
    let end = state.end_of_log().await.unwrap();
    assert_eq!(messages(&state, &end, 9).await.0, [""; 0]);
    assert_eq!(records(&state).await.unwrap(), [a]);
    plans::use_all_calls(&state).await;

    // What is refused, and how it is told.
    let refused = async |options: Options, expected: &str| {
        let error = self::state(options).time().await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SharedError::Refused { .. }), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(
            !text.contains("s3cret") && !text.contains("other"),
            "{text}"
        );
    };
    let anonymous = engine.options();
    refused(anonymous, "NOAUTH Authentication required.; set a password").await;
    let foreign = Options {
        prefix: "foreign".to_owned(),
        ..options.clone()
    };
    let error = self::state(foreign).end_of_log().await.unwrap_err();
    assert!(error.to_string().contains("NOPERM"), "{error}");
    fs::write(&file, "other").unwrap();
    refused(options.clone(), "the user or the password is wrong").await;
    fs::remove_file(&file).unwrap();
    refused(options, "password can't be read").await;

    // The connection stays, and the next one has the new password.
    state.time().await.unwrap();
    fs::write(&file, "n3w").unwrap();
    let authenticated = ["--no-auth-warning", "-a", "m4ster", "-n", "0"];
    let as_master = |arguments: &[&str]| engine.command(&[&authenticated, arguments].concat());
    as_master(&["ACL", "SETUSER", "gate", "resetpass", ">n3w"]);
    as_master(&["CLIENT", "KILL", "USER", "gate"]);
    written(&state, &batch(vec![], &["m"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_accepted_and_another_one_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let engine = Engine::with_tls(&ca).await;
    let roots = |ca: &Ca| {
        CertificateDer::pem_slice_iter(&fs::read(ca.file()).unwrap())
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
    };
    let with = |extra_roots| Options {
        tls: true,
        extra_roots,
        ..engine.options()
    };
    let state = state(with(roots(&ca)));
    written(&state, &batch(vec![record("a", &[("x", "1")])], &["m"])).await;
    assert_eq!(records(&state).await.unwrap().len(), 1);
    for extra_roots in [roots(&other), Vec::new()] {
        let error = self::state(with(extra_roots)).time().await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SharedError::Refused { .. }), "{text}");
        assert!(text.contains("TLS: invalid peer certificate"), "{text}");
    }
    // The wrong scheme, either way.
    let error = engine.state().time().await.unwrap_err();
    println!("without TLS to a port with TLS: {error}");
    let plain = Engine::start().await;
    let confused = self::state(Options {
        tls: true,
        extra_roots: roots(&ca),
        ..plain.options()
    });
    // Redis takes the handshake for the beginning of a command.
    println!(
        "with TLS to a port without: {}",
        confused.time().await.unwrap_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_leads_to_the_new_primary() {
    let folder = TempDir::new().unwrap();
    let mut primary = Engine::start().await;
    let source = primary.port.to_string();
    let replica = Engine::with(&["--replicaof", "127.0.0.1", &source]).await;
    let (mut sentinel, port) = sentinel(&folder, &primary, None).await;
    // One sentinel that never answers, and one that is gone.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nodes = [silent.local_addr().unwrap().port(), free_port(), port];
    let nodes = nodes.map(endpoint).to_vec();
    let servers = |master: &str| Servers::Sentinel {
        master: master.to_owned(),
        nodes: nodes.clone(),
    };
    let state = state(options(servers("main")));
    let a = record("a", &[("x", "1")]);
    state.write(&batch(vec![a.clone()], &["m"])).await.unwrap();
    state.replace_plan("p", 0, 0, b"1").await.unwrap();
    let end = state.end_of_log().await.unwrap();
    poll_until("replication", async || {
        (replica.command(&["XLEN", "{bundlegate}:log"]) == "1").then_some(())
    })
    .await;

    // A replica answers reads, but is not used.
    let error = self::state(replica.options()).time().await.unwrap_err();
    assert!(error.to_string().contains("it is no primary"), "{error}");
    let error = self::state(options(servers("unknown")))
        .time()
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("this sentinel knows no primary `unknown`"),
        "{text}"
    );

    let sees_replica = |line: &str| line.contains("+slave slave").then_some(());
    sentinel.line(sees_replica).await;
    primary.process.kill();
    let start = Instant::now();
    let b = record("b", &[("x", "2")]);
    written(&state, &batch(vec![b.clone()], &["m"])).await;
    println!("written {:?} after the primary ended", start.elapsed());
    assert_eq!(
        replica.command(&["HGET", "{bundlegate}:record:b", "x"]),
        "2"
    );
    assert_eq!(records(&state).await.unwrap(), [a, b]);
    // The new primary may lack what was written last.
    assert_eq!(state.read_log(&end, 9).await, Ok(LogRead::Missed));
    // It has seen no script before.
    let write = state.replace_plan("p", 1, 0, b"2").await.unwrap();
    assert!(matches!(write, PlanWrite::Written(plan) if plan.epoch == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_with_a_password_gets_it() {
    let folder = TempDir::new().unwrap();
    let primary = Engine::with(&["--requirepass", "s3cret"]).await;
    let (_sentinel, port) = sentinel(&folder, &primary, Some("s3cret")).await;
    let file = folder.path().join("password");
    fs::write(&file, "s3cret").unwrap();
    let servers = Servers::Sentinel {
        master: "main".to_owned(),
        nodes: vec![endpoint(port)],
    };
    let options = Options {
        password_file: Some(file.clone()),
        ..options(servers)
    };
    state(options.clone()).time().await.unwrap();
    fs::write(&file, "other").unwrap();
    let error = state(options).time().await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("the user or the password is wrong"), "{text}");
}
