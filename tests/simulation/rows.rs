//! The rows of the table: one fault each, with thousands of clients.

use std::time::Duration;

use bundlegate::rollout::{
    Check, Halt, NoData, OnStableLost, Order, Phase, QueryTemplate, Rollback, Share, Step,
    Strategy, Tolerance,
};

use crate::{
    engine::Mode,
    figures::Row,
    time::{MINUTE, Micros, SECOND, seconds},
    world::{Bad, Balancer, Fault, Options, World},
};

/// A row of the table.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    change: fn(&mut Options),
    /// What must hold at the end.
    expect: fn(&World) -> bool,
}

pub(crate) const ROWS: &[Spec] = &[
    Spec {
        name: "good version",
        change: |it| it.minutes = 40,
        expect: |it| is_promoted(it, 1) && moved_at_most(it, 3),
    },
    Spec {
        name: "activation fails everywhere",
        change: |it| (it.bad, it.minutes) = (Bad::All, 12),
        expect: |it| is_rolled_back(it) && it.figures.exposed() == 0,
    },
    Spec {
        name: "the same, halting disabled",
        change: |it| {
            (it.bad, it.minutes) = (Bad::All, 8);
            it.strategy.max_failures = Tolerance::Clients(u32::MAX);
        },
        expect: |it| is_in_step(it, 0) && it.figures.exposed() == 0,
    },
    Spec {
        name: "fails on 2 % of the clients",
        change: |it| (it.bad, it.minutes) = (Bad::Some, 25),
        expect: is_rolled_back,
    },
    Spec {
        name: "the same, all OPA 0.70, periodic, no Status",
        change: |it| {
            (it.bad, it.minutes) = (Bad::Some, 25);
            (it.old, it.long_polls, it.status) = (1.0, 0.0, 0.0);
        },
        expect: is_rolled_back,
    },
    Spec {
        name: "activates, check out of range",
        change: |it| (it.bad, it.minutes) = (Bad::Check, 8),
        expect: is_rolled_back,
    },
    Spec {
        name: "one of two cut off, in turns",
        change: |it| {
            (it.bad, it.minutes, it.replicas) = (Bad::Check, 10, 2);
            // Fewer would often leave the step of 1 % empty.
            it.clients /= 2;
            (it.balancer, it.long_polls) = (Balancer::Turns, 1.0);
            it.faults.extend(cut(0, 100, 400));
        },
        expect: |it| is_rolled_back(it) && moved_at_most(it, 4),
    },
    Spec {
        name: "one of three cut off",
        change: |it| {
            (it.bad, it.minutes) = (Bad::Check, 15);
            it.faults.extend(cut(0, 100, 600));
        },
        expect: |it| is_rolled_back(it) && moved_at_most(it, 4),
    },
    Spec {
        name: "engine down 10 min in step 2",
        change: |it| {
            it.minutes = 60;
            it.faults.extend(down(500, 1100));
        },
        expect: |it| is_promoted(it, 1) && no_plan_between(it, 500, 1100),
    },
    Spec {
        name: "engine loses all data in step 2",
        change: |it| {
            it.minutes = 50;
            it.faults.push((700 * SECOND, Fault::Wipe));
        },
        expect: |it| is_promoted(it, 1) && !no_plan_between(it, 700, 702),
    },
    Spec {
        name: "second version in step 2",
        change: |it| {
            it.minutes = 60;
            it.faults.push((800 * SECOND, Fault::Push(2)));
        },
        expect: |it| is_promoted(it, 2) && moved_at_most(it, 6),
    },
    Spec {
        name: "all replicas restart in step 2",
        change: |it| {
            it.minutes = 45;
            let restart = |replica| (800 * SECOND, Fault::Restart(replica, 3 * SECOND));
            it.faults.extend((0..it.replicas).map(restart));
        },
        expect: |it| is_promoted(it, 1),
    },
    Spec {
        name: "one of two does not know the roll-out",
        change: |it| {
            (it.bad, it.minutes, it.replicas) = (Bad::Check, 12, 2);
            (it.clients, it.unaware) = (30, vec![0]);
            (it.balancer, it.long_polls) = (Balancer::Turns, 1.0);
        },
        expect: |it| is_rolled_back_at_all(it),
    },
    Spec {
        name: "engine down 20 min, grace 10 min, unknown tags",
        change: |it| {
            (it.minutes, it.grace) = (60, 10 * MINUTE);
            it.faults.extend(down(500, 1700));
            it.faults.push((550 * SECOND, Fault::Stray(9, 0.05)));
        },
        expect: |it| is_promoted(it, 1) && no_plan_between(it, 500, 1700),
    },
    Spec {
        name: "new replica, empty cache, engine up",
        change: |it| {
            it.minutes = 40;
            it.faults
                .push((700 * SECOND, Fault::Replace(0, 3 * SECOND)));
        },
        expect: |it| is_promoted(it, 1) && moved_at_most(it, 4),
    },
    Spec {
        name: "new replica, empty cache, engine down",
        change: |it| {
            it.minutes = 50;
            it.faults.extend(down(600, 1200));
            it.faults
                .push((700 * SECOND, Fault::Replace(0, 3 * SECOND)));
        },
        expect: |it| is_promoted(it, 1) && no_plan_between(it, 600, 1200),
    },
];

fn cut(replica: usize, from: Micros, to: Micros) -> [(Micros, Fault); 2] {
    let at = |at: Micros, is_cut| (at * SECOND, Fault::Cut(replica, is_cut));
    [at(from, true), at(to, false)]
}

fn down(from: Micros, to: Micros) -> [(Micros, Fault); 2] {
    let at = |at: Micros, mode| (at * SECOND, Fault::Engine(mode));
    [at(from, Mode::Killed), at(to, Mode::Up)]
}

fn is_promoted(world: &World, version: usize) -> bool {
    let plan = world.engine.plan();
    let is_idle = |plan: &bundlegate::rollout::Plan| {
        plan.phase == Phase::Idle && world.index_of(&plan.stable) == version
    };
    plan.is_some_and(|plan| is_idle(plan))
}

/// Rolled back, and no client runs the bad version.
fn is_rolled_back(world: &World) -> bool {
    is_rolled_back_at_all(world) && world.figures.is_gone()
}

fn is_rolled_back_at_all(world: &World) -> bool {
    let plan = world.engine.plan();
    plan.is_some_and(|plan| plan.phase == Phase::RolledBack)
}

fn is_in_step(world: &World, step: usize) -> bool {
    let plan = world.engine.plan();
    plan.is_some_and(|plan| plan.phase == Phase::Progressing && plan.step == step)
}

fn moved_at_most(world: &World, moves: u32) -> bool {
    world.clients.iter().all(|client| client.moves <= moves)
}

/// No plan was written between these seconds.
fn no_plan_between(world: &World, from: Micros, to: Micros) -> bool {
    let mut plans = world.figures.plans.iter();
    !plans.any(|(at, ..)| (from * SECOND..to * SECOND).contains(at))
}

/// The strategy of the table: 1, 10, 50 and 100 % with 5, 10, 10 and 5 minutes.
pub(crate) fn strategy() -> Strategy {
    let step = |percent: f64, minutes: u64| Step {
        share: Share::from_percent(percent).expect("a percentage"),
        soak: Duration::from_secs(60 * minutes),
        ..Step::default()
    };
    Strategy {
        name: "careful".to_owned(),
        steps: vec![step(1.0, 5), step(10.0, 10), step(50.0, 10), step(100.0, 5)],
        quorum: Share::from_percent(90.0).expect("a percentage"),
        min_clients: 1,
        max_failures: Tolerance::Clients(0),
        deadline: Duration::from_secs(2 * 60 * 60),
        on_deadline: Halt::Pause,
        on_failure: Halt::RollBack,
        on_stable_lost: OnStableLost::Promote,
        rollback: Rollback::Immediate,
        order: Order::Fixed,
        checks: vec![Check {
            name: "errors".to_owned(),
            query: QueryTemplate::parse("errors").expect("a query"),
            min: None,
            max: Some(0.0),
            every: Duration::from_secs(60),
            failures: 2,
            no_data: NoData::Inconclusive,
        }],
    }
}

pub(crate) fn options(seed: u64, clients: u32) -> Options {
    Options {
        seed,
        clients,
        replicas: 3,
        minutes: 45,
        strategy: strategy(),
        bad: Bad::Nothing,
        bad_version: 1,
        long_polls: 0.3,
        old: 0.2,
        status: 0.3,
        restarts: 0.05,
        balancer: Balancer::Random,
        grace: 10 * MINUTE,
        unaware: Vec::new(),
        faults: vec![(60 * SECOND, Fault::Push(1))],
    }
}

impl Spec {
    /// Simulates the row; an error has what went wrong.
    pub(crate) fn run(&self, seed: u64, clients: u32) -> (World, Result<(), String>) {
        let mut options = options(seed, clients);
        (self.change)(&mut options);
        let mut world = World::run(options);
        if world.options.unaware.is_empty() {
            world.check_converged();
        }
        let result = match world.never.violations.as_slice() {
            [] if (self.expect)(&world) => Ok(()),
            [] => Err(format!("{}, seed {seed}: unexpected end", self.name)),
            violations => Err(format!("{}, seed {seed}: {violations:#?}", self.name)),
        };
        (world, result)
    }
}

/// The figures of a simulation.
pub(crate) fn figures(world: &World) -> Row {
    let figures = &world.figures;
    let between = |from: Option<Micros>, to: Option<Micros>| {
        let (from, to) = from.zip(to)?;
        Some(seconds(to.saturating_sub(from)))
    };
    let begun = figures
        .plans
        .iter()
        .find(|(_, phase, ..)| *phase == Phase::Progressing);
    let promoted = figures
        .plans
        .iter()
        .rev()
        .find(|(_, phase, ..)| *phase == Phase::Idle);
    Row {
        exposed: figures.exposed(),
        halt: between(figures.first_bad, figures.halted),
        back: between(figures.halted, figures.gone()),
        moves: world
            .clients
            .iter()
            .map(|client| client.moves)
            .max()
            .unwrap_or_default(),
        downloads: figures.downloads,
        commands: world.engine.commands.total as f64 / seconds(world.now),
        peak: world.engine.commands.peak(),
        promoted: between(
            begun.map(|it| it.0),
            promoted
                .map(|it| it.0)
                .filter(|at| Some(*at) > begun.map(|it| it.0)),
        ),
    }
}
