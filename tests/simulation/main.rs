//! Roll-outs with thousands of clients, several replicas and an engine in simulated time. Every decision is
//! made by the functions of `bundlegate::rollout`, and replicas share what they know of clients by the
//! program's own tables and messages. What surrounds them (requests, transfers, commands, restarts) is
//! simulated here, with what OPA does as it was measured.
//!
//! `SEEDS=20 CLIENTS=10000 cargo test --profile instructions --test simulation -- --nocapture` prints the
//! table. `TRACE=ROW` prints what happened in the rows with this text in their names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers too"
)]
#![allow(
    clippy::print_stdout,
    reason = "figures, for developers who ask for them"
)]

mod engine;
mod faults;
mod figures;
mod never;
mod plans;
mod replica;
mod requests;
mod rows;
mod time;
mod world;

use std::{
    env,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use figures::Row;
use proptest::{
    prop_assert,
    test_runner::{Config as ProptestConfig, RngAlgorithm, TestError, TestRng, TestRunner},
};
use rows::{ROWS, Spec};
use world::World;

/// Every row ends as it must, and nothing happens that never may.
#[test]
fn roll_outs_end_as_they_must_whatever_fails() {
    let (seeds, clients) = (number("SEEDS", 1), number("CLIENTS", 1000));
    let wanted = env::var("ROWS").unwrap_or_default();
    let rows: Vec<&Spec> = ROWS
        .iter()
        .filter(|row| row.name.contains(&wanted))
        .collect();
    let results = simulate(&rows, u64::from(seeds), clients);
    let mut failures = Vec::new();
    println!("{HEADER}");
    for (row, results) in rows.iter().zip(results) {
        let figures: Vec<_> = results.iter().map(|(row, _)| *row).collect();
        println!("{}", line(row.name, &figures));
        failures.extend(results.into_iter().filter_map(|(_, result)| result.err()));
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Nothing happens that never may, whatever fails at once. `CASES` and `SEED` select other schedules than
/// those of the suite; a schedule that fails is printed, and is all that is needed to have it again.
#[test]
fn nothing_happens_that_never_may_whatever_fails_at_once() {
    let config = ProptestConfig {
        cases: number("CASES", 10),
        max_shrink_iters: number("SHRINK", 100),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number("SEED", 23).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let result = TestRunner::new_with_rng(config, rng).run(&faults::schedules(), |schedule| {
        let world = schedule.run();
        if env::var_os("TRACE").is_some() {
            println!("## {schedule:?}");
            print_trace(&world);
        }
        let violations = world.never.violations;
        prop_assert!(violations.is_empty(), "{violations:#?}");
        Ok(())
    });
    if let Err(error) = result {
        if let TestError::Fail(_, schedule) = &error {
            print_trace(&schedule.run());
        }
        panic!("{error}");
    }
}

fn number(name: &str, default: u32) -> u32 {
    let set = env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

fn print_trace(world: &World) {
    for (at, text) in &world.figures.log {
        println!("   {:9.3} {text}", time::seconds(*at));
    }
    println!("   at the end: {:?}", world.running());
}

type Results = Vec<(Row, Result<(), String>)>;

/// Simulates each row with each seed, as many at a time as there are processors.
fn simulate(rows: &[&Spec], seeds: u64, clients: u32) -> Vec<Results> {
    let trace = env::var("TRACE").ok();
    let jobs: Vec<_> = (0..rows.len())
        .flat_map(|row| (1..=seeds).map(move |seed| (row, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Vec::new(); rows.len()]);
    let work = || {
        while let Some((row, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (world, result) = rows[*row].run(*seed, clients);
            let figures = rows::figures(&world);
            let mut results = results.lock().unwrap();
            if trace
                .as_ref()
                .is_some_and(|trace| rows[*row].name.contains(trace))
            {
                println!("## {}, seed {seed}", rows[*row].name);
                print_trace(&world);
            }
            results[*row].push((figures, result));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    results.into_inner().unwrap()
}

const HEADER: &str = "row: median (worst) | ran it | s to halt | s until none | moves | downloads | s to promotion | commands/s | busiest second";

/// Median and worst of each figure.
fn line(name: &str, figures: &[Row]) -> String {
    let column = |of: &dyn Fn(&Row) -> Option<f64>| {
        let mut values: Vec<_> = figures.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        match values.last() {
            Some(worst) => format!("{:.0} ({worst:.0})", values[values.len() / 2]),
            None => "-".to_owned(),
        }
    };
    let columns = [
        column(&|row| Some(row.exposed.into())),
        column(&|row| row.halt),
        column(&|row| row.back),
        column(&|row| Some(row.moves.into())),
        column(&|row| Some(row.downloads as f64)),
        column(&|row| row.promoted),
        column(&|row| Some(row.commands)),
        column(&|row| Some(row.peak.into())),
    ];
    format!("{name} | {}", columns.join(" | "))
}
