//! Plans and the lease of the leader.

use std::{collections::BTreeMap, time::Duration};

use bundlegate::shared::{
    Lease, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanRead, PlanVersion, PlanWrite, SharedError,
    SharedState, StoredPlan,
};
use tokio::task::JoinSet;

use super::{Access as _, batch};
use crate::support::{Engine, poll_until};

const LEASE: Duration = Duration::from_secs(60);

fn plan(epoch: u64, rank: u8, content: impl AsRef<[u8]>) -> StoredPlan {
    StoredPlan {
        epoch,
        rank,
        content: content.as_ref().to_vec(),
    }
}

fn written(epoch: u64, rank: u8, content: impl AsRef<[u8]>) -> PlanWrite {
    PlanWrite::Written(plan(epoch, rank, content))
}

/// Reads plans of which no version is known.
async fn read_all(state: &SharedState, names: &[&str]) -> Vec<PlanRead> {
    let names: Vec<_> = names.iter().map(|name| (*name, None)).collect();
    state.read_plans(&names).await.unwrap().plans
}

/// Reads a plan that is absent or in order.
async fn read(state: &SharedState, name: &str) -> Option<StoredPlan> {
    match read_all(state, &[name]).await.remove(0) {
        PlanRead::Absent => None,
        PlanRead::Plan(plan) => Some(plan),
        other => panic!("{other:?}"),
    }
}

fn read_as(plan: Option<StoredPlan>) -> PlanRead {
    plan.map_or(PlanRead::Absent, PlanRead::Plan)
}

/// The text of an error that is no failure of the connection.
fn protocol(error: &SharedError) -> String {
    let text = error.to_string();
    assert!(matches!(error, SharedError::Protocol { .. }), "{text}");
    text
}

/// Every call for plans and the lease, in an engine that has none.
pub(super) async fn use_all_calls(state: &SharedState) {
    let write = state.replace_plan("p", 0, 0, b"c").await;
    assert_eq!(write, Ok(written(1, 0, "c")));
    let write = state.restore_plan("p", &plan(1, 1, "d")).await;
    assert_eq!(write, Ok(written(2, 1, "d")));
    assert_eq!(read(state, "p").await, Some(plan(2, 1, "d")));
    let lease = state.lease(1, LEASE, b"").await;
    assert_eq!(lease, Ok(Lease::Taken(vec![])));
    assert_eq!(state.lease(1, LEASE, b"n").await, Ok(Lease::Renewed));
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_are_read_in_the_order_of_their_names() {
    let engine = Engine::start().await;
    let (one, other) = (engine.state(), engine.state());
    let before = one.time().await.unwrap();
    let none = one.read_plans(&[]).await.unwrap();
    assert!(none.plans.is_empty() && none.engine_time >= before);

    let long = "n".repeat(4096);
    let names = ["a", "", "*", "eu/shop {x}:plan:a", "ü\0\r\n\"", &long];
    let content: Vec<u8> = (0..=255).collect();
    for (rank, name) in (0..).zip(names) {
        let write = one.replace_plan(name, 0, rank, &content).await;
        assert_eq!(write, Ok(written(1, rank, &content)), "{name:?}");
    }
    let largest = vec![0xff; MAX_PLAN_BYTES];
    one.replace_plan("largest", 0, 0, &largest).await.unwrap();
    let mut expected: Vec<_> = (0..6).map(|rank| Some(plan(1, rank, &content))).collect();
    expected.extend([None, Some(plan(1, 0, &largest))]);
    let all: Vec<_> = names.into_iter().chain(["absent", "largest"]).collect();
    let all: Vec<_> = all.into_iter().map(|name| (name, None)).collect();
    let read = other.read_plans(&all).await.unwrap();
    let expected: Vec<_> = expected.into_iter().map(read_as).collect();
    assert_eq!(read.plans, expected);
    assert!(read.engine_time >= none.engine_time);
    assert_eq!(engine.command(&["PTTL", "{bundlegate}:plan:a"]), "-1");
}

/// More plans than one reply has, among them some that do not exist, in both kinds of replies.
#[tokio::test(flavor = "multi_thread")]
async fn many_plans_are_read_in_parts_and_only_what_has_changed() {
    let engine = Engine::start().await;
    let state = engine.state();
    let names: Vec<_> = (0..5000).map(|index| format!("many-{index}")).collect();
    let plans = names.iter().enumerate();
    let plans: Vec<_> = plans
        .map(|(index, name)| (index % 10 == 0).then(|| plan(1, 1, name)))
        .collect();
    for name in names.iter().step_by(10) {
        state
            .replace_plan(name, 0, 1, name.as_bytes())
            .await
            .unwrap();
    }
    let mut known: Vec<_> = names.iter().map(|name| (name.as_str(), None)).collect();
    let read = state.read_plans(&known).await.unwrap();
    assert!(
        read.plans
            .into_iter()
            .eq(plans.iter().cloned().map(read_as))
    );

    for ((_, version), plan) in known.iter_mut().zip(&plans) {
        *version = plan.as_ref().map(StoredPlan::version);
    }
    state.replace_plan("many-4990", 1, 2, b"x").await.unwrap();
    engine.command(&["DEL", "{bundlegate}:plan:many-10"]);
    let read = state.read_plans(&known).await.unwrap();
    let expected = (0..5000).map(|index| match index {
        4990 => PlanRead::Plan(plan(2, 2, "x")),
        10 => PlanRead::Absent,
        _ if index % 10 == 0 => PlanRead::Unchanged,
        _ => PlanRead::Absent,
    });
    assert!(read.plans.into_iter().eq(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_of_a_plan_is_read_only_if_the_version_is_another() {
    let engine = Engine::start().await;
    let state = engine.state();
    let PlanWrite::Written(stands) = state.replace_plan("p", 0, 1, b"c").await.unwrap() else {
        panic!("it was not written")
    };
    let version = stands.version();
    let known = async |known| {
        let read = state.read_plans(&[("p", known)]).await.unwrap();
        let reply = state.read_plans(&[("absent", known)]).await.unwrap();
        assert_eq!(reply.plans, [PlanRead::Absent]);
        read.plans
    };
    assert_eq!(known(Some(version)).await, [PlanRead::Unchanged]);
    let (epoch, digest) = (version.epoch, version.digest);
    for other in [
        None,
        Some(PlanVersion { epoch: 2, digest }),
        // A plan of another primary with this epoch.
        Some(plan(epoch, 1, "d").version()),
        Some(plan(epoch, 2, "c").version()),
    ] {
        assert_eq!(known(other).await, [PlanRead::Plan(stands.clone())]);
    }
    // Without the content, a plan is still found to be unchanged: the content is not read.
    engine.command(&["HDEL", "{bundlegate}:plan:p", "content"]);
    assert_eq!(known(Some(version)).await, [PlanRead::Unchanged]);
    let [PlanRead::Broken(text)] = &*known(None).await else {
        panic!("a plan without content was read")
    };
    assert!(text.starts_with("a plan without content"), "{text}");
    // Both kinds of writes store the version that they return.
    let write = state.replace_plan("p", 1, 3, b"new").await;
    let new = plan(2, 3, "new");
    assert_eq!(write, Ok(PlanWrite::Written(new.clone())));
    assert_eq!(known(Some(new.version())).await, [PlanRead::Unchanged]);
    let write = state.restore_plan("p", &plan(7, 3, "newer")).await;
    let newer = plan(8, 3, "newer");
    assert_eq!(write, Ok(PlanWrite::Written(newer.clone())));
    assert_eq!(known(Some(newer.version())).await, [PlanRead::Unchanged]);
}

/// Each writer replaces the newest plan that it knows until it has written 50.
#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_writers_one_gets_each_epoch() {
    const WRITES: usize = 50;
    let engine = Engine::start().await;
    let mut writers = JoinSet::new();
    for writer in 0..4_u8 {
        let state = engine.state();
        writers.spawn(async move {
            let (mut epoch, mut lost, mut mine) = (0, 0, BTreeMap::new());
            while mine.len() < WRITES {
                let write = state.replace_plan("p", epoch, writer, &[writer]).await;
                let next = match write.unwrap() {
                    PlanWrite::Written(plan) => {
                        assert_eq!(mine.insert(plan.epoch, writer), None);
                        plan.epoch
                    }
                    PlanWrite::Superseded(plan) => {
                        lost += 1;
                        plan.unwrap().epoch
                    }
                };
                assert!(next > epoch, "{next} after {epoch}");
                epoch = next;
            }
            (mine, lost)
        });
    }
    let results = writers.join_all().await;
    let lost: usize = results.iter().map(|(_, lost)| lost).sum();
    println!("{lost} writes lost against another writer");
    assert!(lost > 0);
    let epochs: BTreeMap<_, _> = results.into_iter().flat_map(|(mine, _)| mine).collect();
    assert!(epochs.keys().copied().eq(1..=4 * WRITES as u64));
    let (epoch, writer) = epochs.last_key_value().unwrap();
    let last = read(&engine.state(), "p").await;
    assert_eq!(last, Some(plan(*epoch, *writer, [*writer])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_restored_over_an_older_one_only() {
    let engine = Engine::start().await;
    let state = engine.state();
    let known = plan(10, 2, "known");
    let restored = written(11, 2, "known");
    // Epochs are compared as numbers, and ranks, too.
    for (index, (held, is_restored)) in [
        (None, true),
        (Some((9, 9)), true),
        (Some((2, 0)), true),
        (Some((10, 1)), true),
        (Some((10, 2)), false),
        (Some((10, 10)), false),
        (Some((11, 0)), false),
        (Some((100, 0)), false),
    ]
    .into_iter()
    .enumerate()
    {
        let name = index.to_string();
        if let Some((epoch, rank)) = held {
            state
                .restore_plan(&name, &plan(epoch - 1, rank, "held"))
                .await
                .unwrap();
        }
        let held = held.map(|(epoch, rank)| plan(epoch, rank, "held"));
        assert_eq!(read(&state, &name).await, held);
        let expected = match is_restored {
            true => restored.clone(),
            false => PlanWrite::Superseded(held.clone()),
        };
        let write = state.restore_plan(&name, &known).await.unwrap();
        assert_eq!(write, expected, "{held:?}");
        let stands = if is_restored {
            Some(plan(11, 2, "known"))
        } else {
            held
        };
        assert_eq!(read(&state, &name).await, stands);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_restore_a_plan_that_the_engine_has_lost() {
    let mut engine = Engine::start().await;
    let (one, other) = (engine.state(), engine.state());
    for epoch in 0..4 {
        one.replace_plan("p", epoch, 0, b"old").await.unwrap();
    }
    one.replace_plan("p", 4, 1, b"new").await.unwrap();
    // This replica has missed the last change.
    let (new, old) = (plan(5, 1, "new"), plan(4, 0, "old"));
    engine.command(&["FLUSHALL"]);
    assert_eq!(read(&other, "p").await, None);
    // Nor is a change of the lost plan a write of a new one.
    let lost = one.replace_plan("p", 5, 1, b"newer").await;
    assert_eq!(lost, Ok(PlanWrite::Superseded(None)));

    assert_eq!(
        other.restore_plan("p", &old).await,
        Ok(written(5, 0, "old"))
    );
    // One epoch with two contents: the rank decides.
    assert_eq!(one.restore_plan("p", &new).await, Ok(written(6, 1, "new")));
    let stands = PlanWrite::Superseded(Some(plan(6, 1, "new")));
    assert_eq!(one.restore_plan("p", &new).await, Ok(stands.clone()));
    assert_eq!(
        other.restore_plan("p", &plan(5, 0, "old")).await,
        Ok(stands)
    );

    engine.restart_empty().await;
    let new = plan(6, 1, "new");
    let restored = poll_until("a write", async || one.restore_plan("p", &new).await.ok());
    assert_eq!(restored.await.0, written(7, 1, "new"));
    assert_eq!(read(&other, "p").await, Some(plan(7, 1, "new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_has_the_lease_and_the_next_one_gets_its_note() {
    let engine = Engine::start().await;
    let (one, other) = (engine.state(), engine.state());
    assert_eq!(
        one.lease(1, LEASE, b"unread").await,
        Ok(Lease::Taken(vec![]))
    );
    assert_eq!(other.lease(2, LEASE, b"x").await, Ok(Lease::Held));
    assert_eq!(one.lease(1, LEASE, b"first").await, Ok(Lease::Renewed));
    let note = [b"\0\r\n".as_slice(), &vec![0xff; MAX_NOTE_BYTES - 3]].concat();
    let short = Duration::from_secs(1);
    assert_eq!(one.lease(1, short, &note).await, Ok(Lease::Renewed));
    assert_eq!(other.lease(2, LEASE, b"x").await, Ok(Lease::Held));
    let ttl: i64 = engine
        .command(&["PTTL", "{bundlegate}:lead-note"])
        .parse()
        .unwrap();
    assert!(ttl > 23 * 3_600_000, "{ttl}");

    let taken = poll_until("the end of the lease", async || {
        let lease = other.lease(2, LEASE, b"unread").await.unwrap();
        (lease != Lease::Held).then_some(lease)
    });
    assert_eq!(taken.await.0, Lease::Taken(note));
    assert_eq!(one.lease(1, LEASE, b"late").await, Ok(Lease::Held));
    assert_eq!(other.lease(2, LEASE, b"second").await, Ok(Lease::Renewed));

    // A holder whose last call had no result may have lost the note that it was to get.
    let restarted = engine.state();
    let taken = Lease::Taken(b"second".to_vec());
    assert_eq!(restarted.lease(2, LEASE, b"unread").await, Ok(taken));
    assert_eq!(restarted.lease(2, LEASE, b"").await, Ok(Lease::Renewed));
    engine.command(&["DEL", "{bundlegate}:lead"]);
    assert_eq!(
        restarted.lease(2, LEASE, b"unread").await,
        Ok(Lease::Taken(vec![]))
    );
    engine.command(&["FLUSHALL"]);
    assert_eq!(
        one.lease(1, LEASE, b"unread").await,
        Ok(Lease::Taken(vec![]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_takes_no_plan() {
    let (engine, primary) = (Engine::start().await, Engine::start().await);
    let state = engine.state();
    state.replace_plan("p", 0, 0, b"c").await.unwrap();
    engine.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    // Over the connection of before, and over a new one.
    for expected in ["READONLY", "it is no primary"] {
        let error = state.replace_plan("p", 1, 0, b"d").await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SharedError::Refused { .. }), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    assert!(!state.is_up());
    engine.command(&["REPLICAOF", "NO", "ONE"]);
    engine.command(&["FLUSHALL"]);
    let write = poll_until("a write", async || {
        state.replace_plan("p", 0, 0, b"d").await.ok()
    });
    assert_eq!(write.await.0, written(1, 0, "d"));
    assert!(state.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_sent() {
    let engine = Engine::start().await;
    let state = engine.state();
    let (large, note) = (vec![0; MAX_PLAN_BYTES + 1], vec![0; MAX_NOTE_BYTES + 1]);
    let errors = [
        state.replace_plan("p", 0, 0, &large).await.unwrap_err(),
        state
            .restore_plan("p", &plan(1, 0, &large))
            .await
            .unwrap_err(),
        state.lease(1, LEASE, &note).await.unwrap_err(),
    ];
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            "a plan has 65537 bytes; the limit is 65536",
            "a plan has 65537 bytes; the limit is 65536",
            "the note of the leader has 1048577 bytes; the limit is 1048576",
        ]
    );
    assert!(!state.is_up());
    assert_eq!(engine.command(&["DBSIZE"]), "0");
}

/// What another program has written to the key of a plan, and how it is reported: alone, and over the
/// same connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_plan_is_named_and_affects_no_other_one() {
    let engine = Engine::start().await;
    let state = engine.state();
    state.replace_plan("good", 0, 0, b"g").await.unwrap();
    let connection = connection(&engine);
    let (key, large) = ("{bundlegate}:plan:bad", "x".repeat(MAX_PLAN_BYTES + 1));
    let set = |fields: &[&'static str]| [&["HSET", key], fields].concat();
    for (command, reason) in [
        (vec!["SET", key, "text"], "a key with another type"),
        (set(&["epoch", "9", "rank", "1"]), "a plan without content"),
        (
            set(&["epoch", "x", "rank", "1", "content", "c"]),
            "a plan without an epoch",
        ),
        (
            set(&["epoch", "9", "rank", "x", "content", "c"]),
            "a plan without a rank",
        ),
        (
            set(&["epoch", "9", "rank", "1", "content", "c"]),
            "a plan without its digest",
        ),
        (
            set(&[
                "epoch",
                "9",
                "rank",
                "1",
                "digest",
                "0123456789abcdef",
                "content",
                "c",
            ]),
            "a plan without its digest",
        ),
        (
            vec!["HSET", key, "epoch", "9", "rank", "1", "content", &large],
            "a plan of 65537 bytes",
        ),
    ] {
        engine.command(&command);
        let all = read_all(&state, &["absent", "bad", "good"]).await;
        let expected =
            format!("{reason}; delete the key {key:?}, which another program has changed");
        let good = PlanRead::Plan(plan(1, 0, "g"));
        assert_eq!(
            all,
            [PlanRead::Absent, PlanRead::Broken(expected.clone()), good]
        );
        for error in [
            state.replace_plan("bad", 1, 0, b"c").await.unwrap_err(),
            state
                .restore_plan("bad", &plan(9, 0, "c"))
                .await
                .unwrap_err(),
        ] {
            let text = protocol(&error);
            assert!(text.ends_with(&expected), "{text}");
        }
        assert!(state.is_up());
        engine.command(&["DEL", key]);
        assert_eq!(read(&state, "bad").await, None);
        let write = state.replace_plan("bad", 0, 1, b"c").await;
        assert_eq!(write, Ok(written(1, 1, "c")), "{reason}");
        engine.command(&["DEL", key]);
    }
    assert_eq!(self::connection(&engine), connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_key_of_the_lease_is_named_and_makes_the_state_unusable() {
    let engine = Engine::start().await;
    let state = engine.state();
    state.lease(1, LEASE, b"").await.unwrap();
    let connection = connection(&engine);
    engine.command(&["DEL", "{bundlegate}:lead"]);
    for key in ["{bundlegate}:lead", "{bundlegate}:lead-note"] {
        engine.command(&["HSET", key, "f", "v"]);
        let text = protocol(&state.lease(1, LEASE, b"").await.unwrap_err());
        assert!(text.contains(&format!("{key:?}")), "{text}");
        // Other calls that succeed do not hide it.
        state.write(&batch(vec![], &["m"])).await.unwrap();
        assert!(!state.is_up());
        engine.command(&["DEL", key]);
        assert_eq!(state.lease(1, LEASE, b"").await, Ok(Lease::Taken(vec![])));
        assert!(state.is_up());
        engine.command(&["DEL", "{bundlegate}:lead"]);
    }
    assert_eq!(self::connection(&engine), connection);
}

/// The identifier of the only connection apart from that of the command, which is the oldest one.
fn connection(engine: &Engine) -> String {
    let clients = engine.command(&["CLIENT", "LIST", "TYPE", "normal"]);
    let id = clients.split_whitespace().next();
    id.unwrap_or_default().to_owned()
}
