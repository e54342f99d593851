//! Random faults over an hour, one after another and at once. After a quarter of an hour without faults, all
//! replicas have one plan and all clients run what it demands.

use std::time::Duration;

use bundlegate::rollout::{Operation, Share, Step, Strategy};
use proptest::{
    prelude::{Just, any, prop, prop_oneof},
    sample::select,
    strategy::Strategy as Generator,
};

use crate::{
    engine::Mode,
    rows::{options, strategy},
    time::{MILLI, Micros, SECOND},
    world::{Bad, Balancer, Fault, Options, World},
};

const REPLICAS: usize = 3;
/// No fault begins after this time, and the last one ends at [`CALM`].
const LAST_FAULT: Micros = 2400 * SECOND;
const CALM: Micros = 2700 * SECOND;
/// When versions are pushed, in seconds; faults are further ones.
const PUSHES: [u64; 5] = [60, 500, 1000, 1500, 2000];
/// Versions that are pushed.
const PUSHED: usize = 5;

/// An hour of faults. Its `Debug` output is all that is needed to have the same one again.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) bad: Bad,
    pub(crate) bad_version: usize,
    pub(crate) max_failures: u32,
    pub(crate) faults: Vec<(Micros, Fault)>,
}

impl Schedule {
    /// Simulates it, and returns what must not have happened.
    pub(crate) fn run(&self) -> World {
        let options = Options {
            replicas: REPLICAS,
            minutes: 60,
            strategy: quick(self.max_failures),
            bad: self.bad,
            bad_version: self.bad_version,
            long_polls: 0.6,
            old: 0.3,
            faults: self.faults.clone(),
            ..options(self.seed, 40)
        };
        let mut world = World::run(options);
        world.check_converged();
        world
    }
}

/// Steps that take minutes, so that an hour has several roll-outs.
fn quick(max_failures: u32) -> Strategy {
    let step = |percent: f64, seconds: u64| Step {
        share: Share::from_percent(percent).expect("a percentage"),
        soak: Duration::from_secs(seconds),
        ..Step::default()
    };
    Strategy {
        steps: vec![step(20.0, 120), step(50.0, 60), step(100.0, 60)],
        max_failures: bundlegate::rollout::Tolerance::Clients(max_failures),
        deadline: Duration::from_secs(900),
        ..strategy()
    }
}

pub(crate) fn schedules() -> impl Generator<Value = Schedule> {
    let bad = select(vec![Bad::Nothing, Bad::All, Bad::Some, Bad::Check]);
    let faults = prop::collection::vec(fault(), 1..20);
    let pushes = prop::collection::vec(0..PUSHED, PUSHES.len());
    (any::<u32>(), bad, 1..PUSHED, 0..3_u32, pushes, faults).prop_map(
        |(seed, bad, bad_version, max_failures, pushes, faults)| {
            let mut faults = faults.concat();
            let pushes = PUSHES.into_iter().zip(pushes);
            faults.extend(pushes.map(|(at, version)| (at * SECOND, Fault::Push(version))));
            faults.sort_by_key(|(at, _)| *at);
            Schedule {
                seed: seed.into(),
                bad,
                bad_version,
                max_failures,
                faults,
            }
        },
    )
}

/// A fault, with its end.
fn fault() -> impl Generator<Value = Vec<(Micros, Fault)>> {
    // Most things happen while a version is being rolled out.
    let at = prop_oneof![
        0..LAST_FAULT / MILLI,
        (select(PUSHES.to_vec()), 0..300_000_u64).prop_map(|(push, after)| push * 1000 + after),
    ];
    let at = at.prop_map(|at| at * MILLI);
    let length = prop_oneof![1..20_u64, 20..900_u64].prop_map(|length| length * SECOND);
    (at, length, kind()).prop_map(|(at, length, kind)| {
        let end = (at + length).min(CALM);
        match kind {
            Fault::Engine(_) => vec![(at, kind), (end, Fault::Engine(Mode::Up))],
            Fault::Cut(replica, _) => vec![(at, kind), (end, Fault::Cut(replica, false))],
            Fault::Monitoring { .. } => {
                vec![(at, kind), (end, Fault::Monitoring { is_down: false })]
            }
            Fault::Restart(replica, _) => {
                vec![(at, Fault::Restart(replica, length.min(60 * SECOND)))]
            }
            Fault::Replace(replica, _) => {
                vec![(at, Fault::Replace(replica, length.min(60 * SECOND)))]
            }
            kind => vec![(at, kind)],
        }
    })
}

fn kind() -> impl Generator<Value = Fault> {
    let replica = || 0..REPLICAS;
    let slow = (100..1500_u64).prop_map(|latency| Fault::Engine(Mode::Slow(latency * MILLI)));
    let operations = vec![
        Operation::Promote { full: false },
        Operation::Promote { full: true },
        Operation::Pause,
        Operation::Resume,
        Operation::Abort,
        Operation::Retry,
    ];
    prop_oneof![
        2 => Just(Fault::Engine(Mode::Killed)),
        2 => Just(Fault::Engine(Mode::Stopped)),
        2 => slow,
        2 => Just(Fault::Monitoring { is_down: true }),
        1 => Just(Fault::Wipe),
        2 => (1..4_usize).prop_map(Fault::FailOver),
        3 => replica().prop_map(|replica| Fault::Cut(replica, true)),
        2 => replica().prop_map(|replica| Fault::Restart(replica, 0)),
        1 => replica().prop_map(|replica| Fault::Replace(replica, 0)),
        6 => (0..PUSHED).prop_map(Fault::Push),
        1 => (0..PUSHED).prop_map(Fault::Revoke),
        4 => (replica(), select(operations)).prop_map(|(at, operation)| Fault::Operate(at, operation)),
        1 => select(vec![Balancer::Random, Balancer::Turns]).prop_map(Fault::Balancer),
        1 => Just(Fault::Stray(9, 0.1)),
    ]
}
