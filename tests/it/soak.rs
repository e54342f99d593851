//! An hour of trouble in compressed time: random combinations of the faults of registries, and
//! credentials that expire and are rotated.
//!
//! The gateway has the intervals and timeouts of production (a poll every 30 s, 15 s for an answer,
//! 300 s for a request) on a paused clock that jumps over the time in which nothing happens. An
//! hour takes some twenty seconds of a debug build, about 1:200. Nothing is scaled, so that
//! `Retry-After`, back-off, lifetimes of tokens and deadlines stay in proportion to each other, and
//! a busy machine makes the tests slower and no request late.
//!
//! `BUNDLEGATE_SOAK_HOURS` is the number of such hours, 1 by default, and `BUNDLEGATE_SOAK_SEED`
//! the seed of the first schedule; the next ones have the next numbers.

mod clients;
mod clock;
mod credentials;
mod model;
mod schedule;
mod world;

use std::{cell::RefCell, env, time::Duration};

use proptest::{
    strategy::Strategy as _,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use tokio::time::sleep;

use crate::{
    access::{Access, Scheme},
    credentials::{Store, Stored},
    faulty::FaultyRegistry,
};
use clock::{compressed, panics};
use schedule::{Schedule, schedules};
use world::{Options, World};

const HOUR: Duration = Duration::from_secs(3600);
/// Requests to the registry in a second, over a whole schedule. Three healthy bundles cause one in
/// ten seconds; clients that run another version cause a check every two seconds at most.
const MAX_REQUESTS_PER_SECOND: f64 = 8.0;

/// What a schedule has shown.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    schedules: usize,
    steps: usize,
    elapsed: Duration,
    requests: usize,
    answers: usize,
    recovery: Duration,
}

async fn run(schedule: &Schedule) -> Result<Figures, String> {
    let registry = FaultyRegistry::start().await;
    let mut credentials = None;
    let store = Store::new(Stored::PasswordFile, &registry, "robot:one");
    if schedule.tokens {
        registry.protect(Access::new(Scheme::Bearer, "robot:one"));
        registry.access(|access| {
            access.expires_in = Some(60.into());
            access.lifetime = Duration::from_secs(60);
        });
        credentials = Some(store.credentials());
    }
    let options = Options {
        referrers_api: schedule.referrers_api,
        poll: Duration::from_secs(30),
        pause: Duration::from_secs(5),
        credentials,
    };
    let panics_before = panics();
    let mut world = World::start(registry, options).await;
    for (step, pause) in &schedule.steps {
        world.apply(step).await?;
        sleep(*pause).await;
        world.shared.verdict()?;
    }
    world.finish().await?;
    let (elapsed, requests) = (world.shared.elapsed(), world.registry.count());
    let rate = requests as f64 / elapsed.as_secs_f64();
    if rate > MAX_REQUESTS_PER_SECOND {
        return Err(format!(
            "{requests} requests to the registry in {elapsed:?}"
        ));
    }
    if panics() > panics_before {
        return Err("a task has panicked".to_owned());
    }
    Ok(Figures {
        schedules: 1,
        steps: schedule.steps.len(),
        elapsed,
        requests,
        answers: world.shared.answers(),
        recovery: world.recovery,
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Runs the schedule with this number; when it fails, the shortest one that fails as well.
fn run_number(seed: u64) -> Figures {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 200,
        max_shrink_time: 180_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let tree = schedules().new_tree(&mut runner).unwrap();
    let figures = RefCell::new(Figures::default());
    let result = runner.run_one(tree, |schedule| {
        // The jitter of the product.
        fastrand::seed(seed);
        let ran = compressed(|| {}, run(&schedule)).map_err(|violations| {
            // Looking for a shorter schedule takes minutes.
            println!("{seed}: {} steps: {violations}", schedule.steps.len());
            TestCaseError::fail(violations)
        })?;
        *figures.borrow_mut() = ran;
        Ok(())
    });
    match result {
        Ok(_) => figures.into_inner(),
        Err(TestError::Fail(reason, schedule)) => panic!(
            "BUNDLEGATE_SOAK_SEED={seed}: {reason}\nthe shortest schedule found: {schedule:#?}"
        ),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_faults_for_an_hour_serve_no_other_bytes_and_leave_no_trace() {
    let total = HOUR * u32::try_from(number("BUNDLEGATE_SOAK_HOURS").unwrap_or(1)).unwrap();
    let first = number("BUNDLEGATE_SOAK_SEED").unwrap_or(1);
    let mut all = Figures::default();
    for seed in first.. {
        let figures = run_number(seed);
        if total > HOUR {
            println!("{seed}: {figures:?}");
        }
        all = Figures {
            schedules: all.schedules + 1,
            steps: all.steps + figures.steps,
            elapsed: all.elapsed + figures.elapsed,
            requests: all.requests + figures.requests,
            answers: all.answers + figures.answers,
            recovery: all.recovery.max(figures.recovery),
        };
        if all.elapsed >= total {
            break;
        }
    }
    println!("{all:?}");
}
