//! A replica: what the gateway does around the functions of `rollout`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bundlegate::{
    fleet::{
        ClientBundle, ClientDetails, ClientKey, ClientTable, ClockOffset, Outgoing, Replication,
        TagHash, WaitingPoll,
    },
    oci::Digest,
    rollout::{
        ActivePlan, Availability, EngineState, LocalHalt, Member, Millis, Operation, Plan,
        Progress, Standing, Tally, standing,
    },
};

use crate::{
    engine::{LogEntry, Position, Process},
    time::{Micros, SECOND, millis},
};

pub(crate) const BUNDLE: &str = "authz";
/// As in `gateway::fleet_sync`.
const HEARTBEAT_INTERVAL: Micros = 30 * SECOND;

/// As in `gateway::fleet_sync`: a smaller change of the difference between the clocks is none.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(1);

/// Clients from which on counting all of them each time would take too long.
const MANY: usize = 1000;
/// How often clients are examined again though nothing is new of them.
const RECOUNT_INTERVAL: Micros = 10 * SECOND;

/// The index of a version.
pub(crate) type VersionId = usize;

/// A replica of the gateway.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) process: Process,
    pub(crate) is_running: bool,
    /// A release, or a configuration, without the roll-out: it serves the newest version.
    pub(crate) is_unaware: bool,
    /// By how much its clock is ahead of the engine's.
    pub(crate) ahead: Millis,
    offset: ClockOffset,

    // Plans.
    pub(crate) plan: Option<Arc<ActivePlan>>,
    /// What it was when the plan was read, to compare by its address.
    pub(crate) stored: Option<Arc<Plan>>,
    /// When the last reading began whose result is in force.
    pub(crate) read: Option<Micros>,
    pub(crate) engine: EngineState,
    pub(crate) last_success: Micros,
    pub(crate) halt: LocalHalt,
    pub(crate) stage: Stage,
    pub(crate) is_tick_due: bool,
    pub(crate) is_read_wanted: bool,
    pub(crate) operation: Option<Operation>,
    /// Whether the held requests have not seen the plan yet.
    pub(crate) is_wake_due: bool,

    // The leader.
    pub(crate) is_leader: bool,
    pub(crate) progress: Progress,

    // Versions.
    /// The version that the reference named last.
    pub(crate) named: Option<VersionId>,
    pub(crate) newest: Option<VersionId>,
    /// The newest version of the plan that this replica has seen the reference name.
    pub(crate) seen_newest: Option<Digest>,
    pub(crate) steady_since: Micros,
    pub(crate) fetched: BTreeSet<VersionId>,
    pub(crate) fetching: BTreeSet<VersionId>,
    /// Versions that its policy revokes, and since when.
    pub(crate) revoked: BTreeMap<VersionId, Micros>,

    // Clients.
    pub(crate) table: ClientTable,
    replication: Replication,
    pub(crate) bundles: Vec<Option<Arc<ClientBundle>>>,
    pub(crate) held: BTreeMap<u32, Held>,
    /// Their marks in the table.
    pub(crate) waiting: BTreeMap<u32, WaitingPoll>,
    touched: Vec<u32>,
    outgoing: Option<(Outgoing, Vec<u32>)>,
    pub(crate) position: Position,
    pub(crate) next_heartbeat: Micros,
    pub(crate) is_exchanging: bool,
    standings: Standings,
    pub(crate) next_recount: Micros,
}

/// What the task that reads the plans is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Idle,
    /// It is reading; then it goes on if it is time to.
    Reading {
        began: Micros,
        is_tick: bool,
    },
    Restoring {
        began: Micros,
        is_tick: bool,
    },
    Writing,
    Leasing,
    Leading,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) client: u32,
    /// The number of the client's request: an earlier one is over.
    pub(crate) number: u32,
    pub(crate) identity: u32,
    pub(crate) at: Micros,
    pub(crate) deadline: Micros,
    pub(crate) runs: Option<VersionId>,
    /// Whether it is held without a change.
    pub(crate) is_long_poll: bool,
}

/// A request that is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) request: Request,
    pub(crate) why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// For a change.
    Change,
    /// For a reading of the plan.
    Confirm,
    /// For the end of the delay after which its client gets another version than the withdrawn one.
    Replace,
}

/// The standings of clients, as of when something last changed.
#[derive(Debug, Default)]
struct Standings {
    by_identity: Vec<Option<(Standing, bool)>>,
    involved: BTreeSet<u32>,
    failed: BTreeSet<u32>,
    stale: Vec<u32>,
    is_all_stale: bool,
    tally: Tally,
}

impl Replica {
    pub(crate) fn new(process: Process, ahead: Millis) -> Self {
        let table = ClientTable::new(1_000_000, 24 * 60 * 60 * 1000, true);
        let number = (process.replica as u64) << 32 | u64::from(process.boot);
        Self {
            process,
            is_running: true,
            is_unaware: false,
            ahead,
            offset: ClockOffset::default(),
            plan: None,
            stored: None,
            read: None,
            engine: EngineState::Down,
            last_success: 0,
            halt: LocalHalt::default(),
            stage: Stage::Idle,
            is_tick_due: false,
            is_read_wanted: false,
            operation: None,
            is_wake_due: false,
            is_leader: false,
            progress: Progress::default(),
            named: None,
            newest: None,
            seen_newest: None,
            steady_since: 0,
            fetched: BTreeSet::new(),
            fetching: BTreeSet::new(),
            revoked: BTreeMap::new(),
            replication: Replication::new(table.clone(), number + 1),
            table,
            bundles: Vec::new(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            touched: Vec::new(),
            outgoing: None,
            position: Position::NONE,
            next_heartbeat: 0,
            is_exchanging: false,
            standings: Standings::default(),
            next_recount: 0,
        }
    }

    /// The same after a restart: what is in `cache.directory` stays.
    pub(crate) fn restarted(&self) -> Self {
        let process = Process {
            boot: self.process.boot + 1,
            ..self.process
        };
        Self {
            is_unaware: self.is_unaware,
            plan: self.plan.clone(),
            stored: self.stored.clone(),
            named: self.newest,
            newest: self.newest,
            fetched: self.fetched.clone(),
            revoked: self.revoked.clone(),
            ..Self::new(process, self.ahead)
        }
    }

    /// Its clock.
    pub(crate) fn clock(&self, now: Micros) -> Millis {
        millis(now) + self.ahead
    }

    pub(crate) fn set_offset(&mut self, engine: Millis, now: Micros) {
        let offset = ClockOffset::new(engine, self.clock(now));
        if offset.differs_by(self.offset, MAX_CLOCK_ERROR) {
            self.offset = offset;
            // The times of the plan are others by this clock.
            self.touch_all();
        }
    }

    /// Whether it has halted the roll-out of its plan.
    pub(crate) fn is_halted(&self) -> bool {
        let plan = self.plan.as_ref();
        plan.is_some_and(|active| self.halt.is_set(active.plan.generation))
    }

    pub(crate) fn availability(&self, version: Option<VersionId>) -> Availability {
        match version {
            Some(version) if self.revoked.contains_key(&version) => Availability::Withdrawn,
            Some(version) if self.fetched.contains(&version) => Availability::Served,
            _ => Availability::Pending,
        }
    }

    pub(crate) fn is_in_step(&self, key: ClientKey) -> bool {
        let plan = self.plan.as_ref();
        plan.is_some_and(|active| active.cohort.contains(&member(key)))
    }

    /// What its table has of a client.
    pub(crate) fn bundle_of(&mut self, identity: u32, key: ClientKey) -> Arc<ClientBundle> {
        let index = identity as usize;
        if self.bundles.len() <= index {
            self.bundles.resize(index + 1, None);
        }
        let table = &self.table;
        let known = self.bundles[index].get_or_insert_with(|| {
            let details = ClientDetails {
                name: Some(format!("opa-{identity}").into()),
                credential: None,
                address: [10, 0, 0, 1].into(),
                agent: None,
                opa: None,
            };
            let found = table.client_bundle_of(key, &details, BUNDLE);
            found.expect("the table has room")
        });
        Arc::clone(known)
    }

    /// Something that the table says about a client has changed.
    pub(crate) fn touch(&mut self, identity: u32) {
        self.touched.push(identity);
        self.standings.stale.push(identity);
    }

    /// The step, the candidate or the generation has changed.
    pub(crate) fn touch_all(&mut self) {
        self.standings.is_all_stale = true;
    }

    /// Takes what others do not know yet.
    pub(crate) fn outgoing(&mut self, now: Micros) -> Option<Arc<LogEntry>> {
        let touched = std::mem::take(&mut self.touched);
        let is_heartbeat = self.next_heartbeat <= now;
        if is_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            self.replication.add_heartbeats(self.clock(now));
        }
        let outgoing = self.replication.take(usize::MAX >> 1);
        let encoded = self.replication.encode(&outgoing, self.offset);
        self.outgoing = Some((outgoing, touched.clone()));
        let entry = LogEntry {
            writer: self.process,
            messages: encoded.messages,
            records: encoded.records,
            touched,
            is_heartbeat,
        };
        (!entry.records.is_empty()).then(|| Arc::new(entry))
    }

    /// What was taken is written, or is written again with the next call.
    pub(crate) fn written(&mut self, is_written: bool) {
        let Some((outgoing, touched)) = self.outgoing.take() else {
            return;
        };
        if !is_written {
            self.replication.put_back(outgoing);
            self.touched.extend(touched);
            self.next_heartbeat = 0;
        }
    }

    pub(crate) fn merge(&mut self, entry: &LogEntry) {
        if entry.writer == self.process {
            return;
        }
        for message in &entry.messages {
            self.replication.merge_message(message, self.offset);
        }
        self.standings.stale.extend(&entry.touched);
        if entry.is_heartbeat {
            // It says when clients were seen, which makes none of them involved.
            self.standings.stale.extend(&self.standings.involved);
        }
    }

    /// The log has lost entries.
    pub(crate) fn merge_records(&mut self, records: &[(Vec<u8>, Vec<bundlegate::fleet::Field>)]) {
        for (key, fields) in records {
            self.replication.merge_record(key, fields, self.offset);
        }
        self.replication.add_everything();
        self.next_heartbeat = 0;
        self.standings.is_all_stale = true;
    }

    /// Counts the clients of the plan. Of many, only those are examined again of which something has changed;
    /// [`Self::full_tally`] has the same result. Few are all examined, as the gateway does.
    pub(crate) fn tally(&mut self, keys: &[ClientKey], now: Micros) -> Tally {
        if keys.len() < MANY {
            return self.full_tally(keys, now);
        }
        if self.next_recount <= now {
            // A client may have become silent.
            self.next_recount = now + RECOUNT_INTERVAL;
            self.standings.stale.extend(&self.standings.involved);
        }
        let mut stale = std::mem::take(&mut self.standings.stale);
        if std::mem::take(&mut self.standings.is_all_stale) {
            stale.clear();
            stale.extend(0..keys.len() as u32);
        }
        // These may change by the mere passing of time.
        stale.extend(&self.standings.failed);
        self.standings.by_identity.resize(keys.len(), None);
        let mut is_changed = false;
        for identity in stale.drain(..) {
            let standing = self.standing_of(identity, keys, now);
            let standing = standing.filter(|(standing, _)| *standing != Standing::Uninvolved);
            is_changed |= self.standings.set(identity, standing);
        }
        self.standings.stale = stale;
        if is_changed {
            self.standings.count();
        }
        self.standings.tally
    }

    /// Counts all clients.
    pub(crate) fn full_tally(&mut self, keys: &[ClientKey], now: Micros) -> Tally {
        let mut tally = Tally::default();
        for identity in 0..keys.len() as u32 {
            if let Some((standing, is_in_step)) = self.standing_of(identity, keys, now) {
                tally.count(standing, is_in_step);
            }
        }
        tally
    }

    fn standing_of(
        &mut self,
        identity: u32,
        keys: &[ClientKey],
        now: Micros,
    ) -> Option<(Standing, bool)> {
        let active = self.plan.clone()?;
        let key = keys[identity as usize];
        let index = identity as usize;
        if self.bundles.len() <= index {
            self.bundles.resize(index + 1, None);
        }
        if self.bundles[index].is_none() {
            self.bundles[index] = self.table.get(key).and_then(|client| client.bundle(BUNDLE));
        }
        let bundle = self.bundles[index].as_ref()?;
        let clock = self.clock(now);
        let is_in_step = active.cohort.contains(&member(key));
        let began = self.offset.to_own(active.plan.began);
        let facts = bundle.facts(clock);
        let standing = standing(&active, &facts, is_in_step, began);
        if standing != Standing::Uninvolved {
            // Also one that is silent: it may come back.
            self.standings.involved.insert(identity);
        }
        // A client that is gone neither confirms the candidate nor keeps the others from it.
        let counts = standing == Standing::Failed || !facts.is_silent(clock);
        counts.then_some((standing, is_in_step))
    }
}

impl Standings {
    /// Returns whether that was another one before.
    fn set(&mut self, identity: u32, standing: Option<(Standing, bool)>) -> bool {
        let known = &mut self.by_identity[identity as usize];
        if std::mem::replace(known, standing) == standing {
            return false;
        }
        match standing {
            Some((Standing::Failed, _)) => self.failed.insert(identity),
            _ => self.failed.remove(&identity),
        };
        true
    }

    fn count(&mut self) {
        self.tally = Tally::default();
        for identity in &self.involved {
            if let Some((standing, is_in_step)) = self.by_identity[*identity as usize] {
                self.tally.count(standing, is_in_step);
            }
        }
    }
}

fn member(key: ClientKey) -> Member<'static> {
    Member {
        key,
        credential: None,
        name: None,
        is_shared: false,
    }
}

/// The tags of versions, by their index.
pub(crate) fn tag_of(version: VersionId) -> String {
    format!("tag-of-version-{}", version + 1)
}

pub(crate) fn tag_hash(version: VersionId) -> TagHash {
    TagHash::of(&tag_of(version))
}
