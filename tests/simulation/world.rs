//! The world: events in their order, clients, the registry and the balancer.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use bundlegate::{
    fleet::{ClientError, ClientKey, Identity, IdentitySource, TagHash},
    oci::Digest,
    rollout::{Operation, Strategy, Version},
};
use fastrand::Rng;

use crate::{
    engine::{Answer, Call, Engine, Mode, Process},
    figures::Figures,
    never::Never,
    replica::{BUNDLE, Replica, Request, VersionId, tag_hash, tag_of},
    time::{MILLI, MINUTE, Micros, SECOND},
};

/// Versions that may be pushed.
pub(crate) const VERSIONS: usize = 12;
/// How often the shared state is read and written.
pub(crate) const INTERVAL: Micros = 500 * MILLI;
const REGISTRY_INTERVAL: Micros = 30 * SECOND;
/// How long a long poll is held.
const LONG_POLL: Micros = 27 * SECOND;
/// How long a request without long polling is held for a reading of the plan.
pub(crate) const FIRST_WAIT: Micros = 5 * SECOND;

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) clients: u32,
    pub(crate) replicas: usize,
    pub(crate) minutes: u64,
    pub(crate) strategy: Strategy,
    pub(crate) bad: Bad,
    /// The version that is bad.
    pub(crate) bad_version: VersionId,
    /// The part of the clients that poll long, are OPA 0.70, post their status, and restart each minute.
    pub(crate) long_polls: f64,
    pub(crate) old: f64,
    pub(crate) status: f64,
    pub(crate) restarts: f64,
    pub(crate) balancer: Balancer,
    /// Without an answer of the engine for this time, clients with unknown tags get their version.
    pub(crate) grace: Micros,
    /// Replicas that do not know the roll-out.
    pub(crate) unaware: Vec<usize>,
    pub(crate) faults: Vec<(Micros, Fault)>,
}

/// What is wrong with the bad version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    Nothing,
    /// No client can activate it.
    All,
    /// Two percent of the clients can't activate it.
    Some,
    /// All activate it, and a check fails.
    Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balancer {
    Random,
    Turns,
}

/// What happens at a time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    Engine(Mode),
    /// The engine has lost everything.
    Wipe,
    /// Another node takes over that lacks this number of writes.
    FailOver(usize),
    /// A replica does not reach the engine, or reaches it again.
    Cut(usize, bool),
    /// A replica is away for this time.
    Restart(usize, Micros),
    /// A replica loses its disk and is away for this time.
    Replace(usize, Micros),
    /// The reference names this version.
    Push(VersionId),
    /// The policy revokes this version.
    Revoke(VersionId),
    /// An operator asks a replica.
    Operate(usize, Operation),
    Balancer(Balancer),
    /// The monitoring system does not answer, or answers again.
    Monitoring {
        is_down: bool,
    },
    /// A part of the clients runs a version that no plan knows.
    Stray(VersionId, f64),
}

/// The part of a replica that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Plans,
    Fleet,
}

#[derive(Debug)]
enum Event {
    Request {
        client: u32,
        number: u32,
    },
    Delivered(Delivery),
    Report {
        client: u32,
    },
    Expire {
        process: Process,
        client: u32,
        number: u32,
    },
    Decide {
        process: Process,
        client: u32,
        number: u32,
    },
    Tick(Process),
    FleetTick(Process),
    RegistryPoll(Process),
    Fetched(Process, VersionId),
    AtEngine {
        process: Process,
        lane: Lane,
        sent: Micros,
        is_given_up: bool,
        call: Box<Call>,
    },
    Answered {
        process: Process,
        lane: Lane,
        answer: Option<Box<Answer>>,
    },
    Started(usize),
    Revoked(usize, VersionId),
    CheckRevoked(Process, VersionId),
    Churn,
    Fault(Fault),
}

/// A version on its way to a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) process: Process,
    pub(crate) client: u32,
    pub(crate) number: u32,
    pub(crate) version: VersionId,
    /// Whether it is sent as the candidate.
    pub(crate) is_offer: bool,
}

/// An OPA.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) identity: u32,
    pub(crate) runs: Option<VersionId>,
    pub(crate) number: u32,
    polls_long: bool,
    is_old: bool,
    has_status: bool,
    is_frail: bool,
    tries: i32,
    turn: usize,
    pub(crate) moves: u32,
}

#[derive(Debug)]
struct Queued {
    at: Micros,
    sequence: u64,
    event: Event,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) now: Micros,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    pub(crate) rng: Rng,
    pub(crate) engine: Engine,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) clients: Vec<Client>,
    /// The keys of all identities that clients have had.
    pub(crate) keys: Vec<ClientKey>,
    pub(crate) versions: Vec<Version>,
    tags: Vec<TagHash>,
    pub(crate) registry: VersionId,
    /// Since when the monitoring system does not answer.
    pub(crate) monitoring_down: Option<Micros>,
    pub(crate) never: Never,
    pub(crate) figures: Figures,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl World {
    /// Runs a simulation to its end.
    pub(crate) fn run(options: Options) -> Self {
        let mut world = Self::new(options);
        let end = world.options.minutes * MINUTE;
        while let Some(Reverse(next)) = world.queue.pop() {
            if next.at >= end {
                break;
            }
            world.now = next.at;
            world.handle(next.event);
        }
        world.now = end;
        world
    }

    fn new(options: Options) -> Self {
        let processes = (0..options.replicas).map(|replica| Process { replica, boot: 0 });
        // The clocks of replicas differ.
        let mut replicas: Vec<_> = processes
            .map(|process| Replica::new(process, process.replica as u64 * 77_000))
            .collect();
        for replica in &mut replicas {
            replica.fetched.insert(0);
            (replica.named, replica.newest) = (Some(0), Some(0));
            replica.is_unaware = options.unaware.contains(&replica.process.replica);
        }
        let version = |index: VersionId| {
            let manifest = Digest::sha256(index.to_string().as_bytes());
            Version::new(manifest, &tag_of(index), &format!("v{}", index + 1))
        };
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            rng: Rng::with_seed(options.seed),
            engine: Engine::new(options.replicas),
            replicas,
            clients: Vec::new(),
            keys: Vec::new(),
            versions: (0..VERSIONS).map(version).collect(),
            tags: (0..VERSIONS).map(tag_hash).collect(),
            registry: 0,
            monitoring_down: None,
            never: Never::new(options.replicas),
            figures: Figures::new(options.clients),
            options,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for _ in 0..self.options.clients {
            let identity = self.new_identity();
            let options = &self.options;
            let mut is = |part: f64| self.rng.f64() < part;
            let client = Client {
                identity,
                runs: Some(0),
                number: 0,
                polls_long: is(options.long_polls),
                is_old: is(options.old),
                has_status: is(options.status),
                is_frail: is(0.02),
                tries: 0,
                turn: identity as usize,
                moves: 0,
            };
            self.clients.push(client);
            let at = self.between(SECOND, 60 * SECOND);
            self.at(
                at,
                Event::Request {
                    client: identity,
                    number: 0,
                },
            );
        }
        for replica in 0..self.replicas.len() {
            self.start(replica);
        }
        for (at, fault) in self.options.faults.clone() {
            self.at(at, Event::Fault(fault));
        }
        self.at(30 * SECOND, Event::Churn);
    }

    fn new_identity(&mut self) -> u32 {
        let index = self.keys.len() as u32;
        let name = format!("opa-{index}-{}", self.options.seed);
        let source = IdentitySource::Name(&name);
        self.keys.push(
            Identity {
                credential: None,
                source,
            }
            .key(),
        );
        index
    }

    /// The timers of a replica.
    fn start(&mut self, replica: usize) {
        let process = self.replicas[replica].process;
        let at = self.now + self.between(0, INTERVAL);
        self.at(at, Event::Tick(process));
        let at = self.now + self.between(0, INTERVAL);
        self.at(at, Event::FleetTick(process));
        // After a restart the registry is asked soon.
        let latest = if process.boot == 0 {
            REGISTRY_INTERVAL
        } else {
            3 * SECOND
        };
        let at = self.now + self.between(0, latest);
        self.at(at, Event::RegistryPoll(process));
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Queued {
            at,
            sequence,
            event,
        }));
    }

    pub(crate) fn between(&mut self, from: Micros, to: Micros) -> Micros {
        self.rng.u64(from..=to)
    }

    pub(crate) fn say(&mut self, text: impl FnOnce(&Self) -> String) {
        let text = text(self);
        self.figures.log.push((self.now, text));
    }

    /// The version with this tag.
    pub(crate) fn version_of(&self, tag: TagHash) -> Option<VersionId> {
        self.tags.iter().position(|known| *known == tag)
    }

    pub(crate) fn tag(&self, version: VersionId) -> TagHash {
        self.tags[version]
    }

    pub(crate) fn is_current(&self, process: Process) -> bool {
        let replica = &self.replicas[process.replica];
        replica.process == process && replica.is_running
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { client, number } => self.request(client, number),
            Event::Delivered(delivery) => self.delivered(&delivery),
            Event::Report { client } => self.report(client),
            Event::Expire {
                process,
                client,
                number,
            } if self.is_current(process) => {
                self.expire(process.replica, client, number);
            }
            Event::Decide {
                process,
                client,
                number,
            } if self.is_current(process) => {
                self.decide_again(process.replica, client, number);
            }
            Event::Tick(process) if self.is_current(process) => {
                self.at(self.now + INTERVAL, Event::Tick(process));
                self.tick(process.replica);
            }
            Event::FleetTick(process) if self.is_current(process) => {
                self.at(self.now + INTERVAL, Event::FleetTick(process));
                self.exchange(process.replica);
            }
            Event::RegistryPoll(process) if self.is_current(process) => {
                self.at(self.now + REGISTRY_INTERVAL, Event::RegistryPoll(process));
                self.replicas[process.replica].named = Some(self.registry);
                self.fetch(process.replica, self.registry);
                self.registry_named(process.replica);
            }
            Event::Fetched(process, version) if self.is_current(process) => {
                self.fetched(process.replica, version);
            }
            Event::AtEngine {
                process,
                lane,
                sent,
                is_given_up,
                call,
            } => {
                self.arrive_at_engine(process, lane, sent, is_given_up, *call);
            }
            Event::Answered {
                process,
                lane,
                answer,
            } if self.is_current(process) => match lane {
                Lane::Plans => self.plans_answered(process.replica, answer.map(|it| *it)),
                Lane::Fleet => self.fleet_answered(process.replica, answer.map(|it| *it)),
            },
            Event::Started(replica) => {
                self.replicas[replica].is_running = true;
                self.start(replica);
            }
            Event::Revoked(replica, version) => self.revoke(replica, version),
            Event::CheckRevoked(process, version) if self.is_current(process) => {
                self.check_revoked(process.replica, version);
            }
            Event::Churn => self.churn(),
            Event::Fault(fault) => self.fault(fault),
            // A process that has ended.
            _ => {}
        }
    }

    // Clients.

    fn request(&mut self, client: u32, number: u32) {
        if self.clients[client as usize].number != number {
            return;
        }
        let running: Vec<_> = self.replicas.iter().filter(|it| it.is_running).collect();
        let one = &mut self.clients[client as usize];
        one.turn += 1;
        let choice = match self.options.balancer {
            Balancer::Turns => one.turn,
            Balancer::Random => self.rng.usize(..),
        };
        let Some(replica) = (!running.is_empty()).then(|| running[choice % running.len()]) else {
            let at = self.now + self.between(SECOND, 5 * SECOND);
            self.at(at, Event::Request { client, number });
            return;
        };
        let replica = replica.process.replica;
        let one = &self.clients[client as usize];
        let wait = if one.polls_long {
            LONG_POLL
        } else {
            FIRST_WAIT
        };
        let request = Request {
            client,
            number,
            identity: one.identity,
            at: self.now,
            deadline: self.now + wait,
            runs: one.runs,
            is_long_poll: one.polls_long,
        };
        let process = self.replicas[replica].process;
        self.at(
            request.deadline,
            Event::Expire {
                process,
                client,
                number,
            },
        );
        self.receive(replica, request);
    }

    /// The request gets no new version: 304, or 404.
    pub(crate) fn reply_unchanged(&mut self, client: u32, is_absent: bool) {
        let one = &mut self.clients[client as usize];
        one.number += 1;
        let (number, polls_long) = (one.number, one.polls_long);
        let pause = match (polls_long, is_absent) {
            (true, false) => 2 * MILLI,
            (true, true) => self.between(2 * SECOND, 20 * SECOND),
            (false, _) => self.between(30 * SECOND, 60 * SECOND),
        };
        self.at(self.now + pause, Event::Request { client, number });
    }

    pub(crate) fn deliver(&mut self, delivery: Delivery) {
        let one = &mut self.clients[delivery.client as usize];
        one.number += 1;
        let number = one.number;
        let at = self.now + self.between(3 * MILLI, 30 * MILLI);
        self.at(at, Event::Delivered(Delivery { number, ..delivery }));
    }

    fn delivered(&mut self, delivery: &Delivery) {
        let Delivery {
            process,
            client,
            version,
            ..
        } = *delivery;
        if self.clients[client as usize].number != delivery.number {
            return;
        }
        if !self.is_current(process) {
            return self.ask_again(client, 100 * MILLI, 30 * SECOND);
        }
        self.figures.downloads += u64::from(version != 0);
        if delivery.is_offer {
            self.record_offer(delivery);
        }
        let one = &self.clients[client as usize];
        if !self.can_activate(one, version) {
            self.figures.first_bad.get_or_insert(self.now);
            if one.has_status {
                self.at(self.now + 50 * MILLI, Event::Report { client });
            }
            return self.failed(client);
        }
        self.clients[client as usize].tries = 0;
        self.activate(client, Some(version));
        let polls_long = self.clients[client as usize].polls_long;
        match polls_long {
            true => self.ask_again(client, 10 * MILLI, 10 * MILLI),
            false => self.ask_again(client, 30 * SECOND, 60 * SECOND),
        }
    }

    pub(crate) fn can_activate(&self, client: &Client, version: VersionId) -> bool {
        match self.options.bad {
            _ if version != self.options.bad_version => true,
            Bad::All => false,
            Bad::Some => !client.is_frail,
            Bad::Nothing | Bad::Check => true,
        }
    }

    /// A client can't activate what it was sent: see the pauses of OPA in the design, fact 10.
    fn failed(&mut self, client: u32) {
        let one = &mut self.clients[client as usize];
        one.tries += 1;
        let pause = (0.1 * 1.6_f64.powi(one.tries)).min(60.0);
        let pause = (pause * SECOND as f64) as Micros;
        match (one.is_old, one.polls_long) {
            (true, true) => self.ask_again(client, 25 * MILLI, 25 * MILLI),
            (true, false) => self.ask_again(client, 30 * SECOND, 60 * SECOND),
            (false, _) => self.ask_again(client, pause, pause),
        }
    }

    pub(crate) fn ask_again(&mut self, client: u32, from: Micros, to: Micros) {
        let one = &mut self.clients[client as usize];
        one.number += 1;
        let number = one.number;
        let at = self.now + self.between(from, to);
        self.at(at, Event::Request { client, number });
    }

    fn activate(&mut self, client: u32, version: Option<VersionId>) {
        let one = &mut self.clients[client as usize];
        let before = std::mem::replace(&mut one.runs, version);
        if before != version {
            one.moves += u32::from(before.is_some() && version.is_some());
            let bad = (self.options.bad != Bad::Nothing).then_some(self.options.bad_version);
            self.figures.ran(client, before, version, bad, self.now);
        }
    }

    fn record_offer(&mut self, delivery: &Delivery) {
        let identity = self.clients[delivery.client as usize].identity;
        let (key, tag) = (self.keys[identity as usize], self.tag(delivery.version));
        let replica = &mut self.replicas[delivery.process.replica];
        let bundle = replica.bundle_of(identity, key);
        let offer = replica.table.offer(bundle, tag);
        offer.complete(replica.clock(self.now));
        replica.touch(identity);
    }

    /// A status report arrives at any replica.
    fn report(&mut self, client: u32) {
        let identity = self.clients[client as usize].identity;
        let index = self.rng.usize(..self.replicas.len());
        let replica = &mut self.replicas[index];
        if !replica.is_running {
            return;
        }
        let found = replica.table.get(self.keys[identity as usize]);
        let Some(bundle) = found.and_then(|client| client.bundle(BUNDLE)) else {
            return;
        };
        let (code, message) = ("bundle_error", "rego_parse_error: a.rego:1");
        let error = ClientError::new(code.into(), message.into(), replica.clock(self.now));
        replica.table.record_error(&bundle, error);
        replica.touch(identity);
    }

    /// Clients restart, a fifth of them under another name.
    fn churn(&mut self) {
        self.at(self.now + 30 * SECOND, Event::Churn);
        let count = (self.options.restarts / 2.0 * f64::from(self.options.clients)) as u32;
        for _ in 0..count {
            let client = self.rng.u32(..self.options.clients);
            self.leave(client);
            self.activate(client, None);
            if self.rng.f64() < 0.2 {
                self.clients[client as usize].identity = self.new_identity();
            }
            self.clients[client as usize].tries = 0;
            self.ask_again(client, SECOND, 20 * SECOND);
        }
    }

    /// The client's connection ends.
    fn leave(&mut self, client: u32) {
        for replica in &mut self.replicas {
            replica.held.remove(&client);
            replica.waiting.remove(&client);
        }
    }

    // Commands of replicas.

    pub(crate) fn call(&mut self, replica: usize, lane: Lane, call: Call) {
        let process = self.replicas[replica].process;
        let latency = self.engine.latency();
        let is_given_up = latency * 2 > crate::engine::TIMEOUT;
        if is_given_up {
            let at = self.now + crate::engine::TIMEOUT;
            self.at(
                at,
                Event::Answered {
                    process,
                    lane,
                    answer: None,
                },
            );
        }
        let (sent, call) = (self.now, Box::new(call));
        let event = Event::AtEngine {
            process,
            lane,
            sent,
            is_given_up,
            call,
        };
        self.at(self.now + latency, event);
    }

    fn arrive_at_engine(
        &mut self,
        process: Process,
        lane: Lane,
        sent: Micros,
        is_given_up: bool,
        call: Call,
    ) {
        let is_reached = self.engine.is_reached_by(process.replica);
        let mut answer = None;
        let mut at = sent + crate::engine::TIMEOUT;
        if is_reached {
            answer = Some(Box::new(self.execute(process, call)));
            at = self.now + self.engine.latency();
        } else if self.engine.mode == Mode::Killed {
            at = self.now + MILLI;
        } else if self.engine.mode == Mode::Stopped && !self.engine.cut[process.replica] {
            self.engine.queued.push((process, call));
        }
        if !is_given_up {
            self.at(
                at,
                Event::Answered {
                    process,
                    lane,
                    answer,
                },
            );
        }
    }

    fn execute(&mut self, process: Process, call: Call) -> Answer {
        let answer = self.engine.execute(process, call, self.now);
        if let Answer::Written(plan) = &answer {
            let plan = std::sync::Arc::clone(plan);
            self.plan_written(process, &plan);
        }
        answer
    }

    pub(crate) fn expire_at(&mut self, replica: usize, request: &Request, at: Micros) {
        let process = self.replicas[replica].process;
        let (client, number) = (request.client, request.number);
        self.at(
            at,
            Event::Decide {
                process,
                client,
                number,
            },
        );
    }

    /// Fetches and verifies a version, unless the replica has it.
    pub(crate) fn fetch(&mut self, replica: usize, version: VersionId) {
        let one = &mut self.replicas[replica];
        if !one.fetched.contains(&version) && one.fetching.insert(version) {
            let process = one.process;
            let at = self.now + self.between(100 * MILLI, SECOND);
            self.at(at, Event::Fetched(process, version));
        }
    }

    // Faults.

    fn fault(&mut self, fault: Fault) {
        self.say(|_| format!("{fault:?}"));
        match fault {
            Fault::Engine(mode) => self.set_engine(mode),
            Fault::Wipe => self.engine.wipe(),
            Fault::FailOver(lost) => self.engine.fail_over(lost),
            Fault::Cut(replica, is_cut) => self.engine.cut[replica] = is_cut,
            Fault::Restart(replica, away) => self.restart(replica, away, false),
            Fault::Replace(replica, away) => self.restart(replica, away, true),
            Fault::Push(version) => self.registry = version,
            Fault::Revoke(version) => {
                for replica in 0..self.replicas.len() {
                    let at = self.now + self.between(0, SECOND);
                    self.at(at, Event::Revoked(replica, version));
                }
            }
            Fault::Operate(replica, operation) => self.operate(replica, operation),
            Fault::Monitoring { is_down } => {
                self.monitoring_down = is_down.then_some(self.now);
            }
            Fault::Balancer(balancer) => self.options.balancer = balancer,
            Fault::Stray(version, part) => {
                for client in 0..self.options.clients {
                    if self.rng.f64() < part {
                        self.leave(client);
                        self.activate(client, Some(version));
                        self.ask_again(client, 100 * MILLI, 30 * SECOND);
                    }
                }
            }
        }
    }

    fn set_engine(&mut self, mode: Mode) {
        let was_stopped = self.engine.mode == Mode::Stopped;
        self.engine.mode = mode;
        self.engine_changed();
        let queued = std::mem::take(&mut self.engine.queued);
        // A stopped engine that goes on reads what has arrived meanwhile.
        if was_stopped && matches!(mode, Mode::Up | Mode::Slow(_)) {
            for (process, call) in queued {
                self.execute(process, call);
            }
        }
    }

    fn restart(&mut self, replica: usize, away: Micros, loses_disk: bool) {
        let before = &self.replicas[replica];
        if !before.is_running {
            return;
        }
        let mut after = before.restarted();
        if loses_disk {
            (after.plan, after.stored) = (None, None);
            (after.named, after.newest) = (None, None);
            after.fetched.clear();
        }
        after.is_running = false;
        let held = std::mem::replace(&mut self.replicas[replica], after).held;
        self.never.restarted(replica, loses_disk);
        for client in held.into_keys() {
            self.ask_again(client, 100 * MILLI, 30 * SECOND);
        }
        self.at(self.now + away, Event::Started(replica));
    }

    fn revoke(&mut self, replica: usize, version: VersionId) {
        self.replicas[replica].revoked.insert(version, self.now);
        let process = self.replicas[replica].process;
        self.at(self.now + 2 * SECOND, Event::CheckRevoked(process, version));
        self.wake(replica);
    }

    /// The bad version's clients, as a check sees them a minute later.
    pub(crate) fn is_check_out_of_range(&self, candidate: Option<VersionId>) -> bool {
        self.options.bad == Bad::Check
            && candidate == Some(self.options.bad_version)
            && self
                .figures
                .bad_since
                .is_some_and(|since| since + MINUTE <= self.now)
    }

    /// What clients run at the end.
    pub(crate) fn running(&self) -> BTreeMap<Option<VersionId>, u32> {
        let mut running = BTreeMap::new();
        for client in &self.clients {
            *running.entry(client.runs).or_default() += 1;
        }
        running
    }
}
