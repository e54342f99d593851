//! Plans and the lease of the leader.

use std::{collections::BTreeMap, time::Duration};

use bundlegate::shared::{
    Lease, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanWrite, SharedError, SharedState, StoredPlan,
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

async fn read(state: &SharedState, name: &str) -> Option<StoredPlan> {
    state.read_plans(&[name]).await.unwrap().plans.remove(0)
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
    let read = other.read_plans(&all).await.unwrap();
    assert_eq!(read.plans, expected);
    assert!(read.engine_time >= none.engine_time);
    assert_eq!(engine.command(&["PTTL", "{bundlegate}:plan:a"]), "-1");

    // More than one reply has, among them some that do not exist.
    let many: Vec<_> = (0..1300).map(|index| format!("many-{index}")).collect();
    for name in many.iter().step_by(10) {
        one.replace_plan(name, 0, 1, name.as_bytes()).await.unwrap();
    }
    let names: Vec<_> = many.iter().map(String::as_str).collect();
    let read = other.read_plans(&names).await.unwrap();
    let expected = many.iter().enumerate();
    let expected = expected.map(|(index, name)| (index % 10 == 0).then(|| plan(1, 1, name)));
    assert!(read.plans.into_iter().eq(expected));
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

/// What another program has written to the keys, and how it is reported. The connection stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_key_is_named_and_works_once_it_is_deleted() {
    let engine = Engine::start().await;
    let state = engine.state();
    state.replace_plan("good", 0, 0, b"g").await.unwrap();
    let connection = engine.command(&["CLIENT", "LIST", "TYPE", "normal"]);
    let connection = connection.split_whitespace().next().unwrap().to_owned();
    let (key, large) = ("{bundlegate}:plan:bad", "x".repeat(MAX_PLAN_BYTES + 1));
    for (command, reason) in [
        (["SET", key, "text"].as_slice(), "a key with another type"),
        (
            &["HSET", key, "epoch", "9", "rank", "1"],
            "a plan without content",
        ),
        (
            &["HSET", key, "epoch", "x", "rank", "1", "content", "c"],
            "a plan without an epoch",
        ),
        (
            &["HSET", key, "epoch", "9", "rank", "x", "content", "c"],
            "a plan without a rank",
        ),
        (
            &["HSET", key, "epoch", "9", "rank", "1", "content", &large],
            "a plan of 65537 bytes",
        ),
    ] {
        engine.command(command);
        for error in [
            state.read_plans(&["good", "bad"]).await.unwrap_err(),
            state.replace_plan("bad", 1, 0, b"c").await.unwrap_err(),
            state
                .restore_plan("bad", &plan(9, 0, "c"))
                .await
                .unwrap_err(),
        ] {
            let text = protocol(&error);
            assert!(text.contains(reason), "{text}");
            assert!(text.contains(&format!("delete the key {key:?}")), "{text}");
        }
        assert!(!state.is_up());
        // Other calls that succeed do not hide it.
        state.write(&batch(vec![], &["m"])).await.unwrap();
        assert!(!state.is_up());
        engine.command(&["DEL", key]);
        assert_eq!(state.read_plans(&["bad"]).await.unwrap().plans, [None]);
        let write = state.replace_plan("bad", 0, 1, b"c").await;
        assert_eq!(write, Ok(written(1, 1, "c")), "{reason}");
        assert!(state.is_up());
        engine.command(&["DEL", key]);
    }
    for key in ["{bundlegate}:lead", "{bundlegate}:lead-note"] {
        engine.command(&["HSET", key, "f", "v"]);
        let text = protocol(&state.lease(1, LEASE, b"").await.unwrap_err());
        assert!(text.contains(&format!("{key:?}")), "{text}");
        engine.command(&["DEL", key]);
        assert_eq!(state.lease(1, LEASE, b"").await, Ok(Lease::Taken(vec![])));
        engine.command(&["DEL", "{bundlegate}:lead"]);
    }
    let clients = engine.command(&["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.contains(&connection), "{connection} of {clients}");
}
