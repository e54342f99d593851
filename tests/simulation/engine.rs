//! The engine: plans, the lease and the log of the fleet view, with what can happen to them.

use std::{collections::BTreeMap, sync::Arc};

use bundlegate::{
    fleet::Field,
    rollout::{Millis, Plan},
};

use crate::time::{MILLI, Micros, SECOND, millis};

/// After this time without an answer, a replica gives a command up.
pub(crate) const TIMEOUT: Micros = 500 * MILLI;
/// How long an answer takes.
const LATENCY: Micros = MILLI;
/// How long the leader stays the leader without renewing its lease.
const LEASE: Micros = 15 * SECOND;

/// Redis or Valkey.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) mode: Mode,
    /// Replicas that do not reach it.
    pub(crate) cut: Vec<bool>,
    plan: Option<Arc<Plan>>,
    /// Earlier plans, which a failover may bring back.
    past: Vec<Option<Arc<Plan>>>,
    lease: Option<(Process, Micros)>,
    note: Vec<u8>,
    log: Vec<Arc<LogEntry>>,
    /// Changes when entries were lost.
    incarnation: u32,
    records: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Commands that arrived while it was stopped. It executes them afterwards, unknown to the replicas.
    pub(crate) queued: Vec<(Process, Call)>,
    pub(crate) commands: Commands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Up,
    /// Connections are refused.
    Killed,
    /// It does not answer.
    Stopped,
    /// Answers take this long.
    Slow(Micros),
}

/// A replica between two restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) replica: usize,
    pub(crate) boot: u32,
}

/// What a command of a replica is about.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Read,
    Replace { expected: u64, plan: Box<Plan> },
    Restore(Box<Plan>),
    Lease { note: Vec<u8> },
    ReadLog(Position),
    WriteLog(Arc<LogEntry>),
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Plan(Option<Arc<Plan>>, Millis),
    Written(Arc<Plan>),
    Superseded(Option<Arc<Plan>>),
    Renewed,
    Taken(Vec<u8>),
    Held,
    LogWritten,
    Entries(Vec<Arc<LogEntry>>, Position),
    /// The log has lost entries: all records.
    Missed(Vec<(Vec<u8>, Vec<Field>)>, Position),
}

/// How far a replica has read the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    incarnation: u32,
    index: usize,
}

/// What one replica has written about its clients.
#[derive(Debug)]
pub(crate) struct LogEntry {
    pub(crate) writer: Process,
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) records: Vec<(Vec<u8>, Vec<Field>)>,
    /// The clients of which something has changed.
    pub(crate) touched: Vec<u32>,
    /// Whether it tells of others as well, of which nothing but the time has changed.
    pub(crate) is_heartbeat: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Commands {
    pub(crate) total: u64,
    per_second: Vec<u32>,
}

impl Position {
    /// A replica that has read nothing.
    pub(crate) const NONE: Self = Self {
        incarnation: u32::MAX,
        index: 0,
    };
}

impl Commands {
    fn count(&mut self, number: u64, now: Micros) {
        self.total += number;
        let second = (now / SECOND) as usize;
        if self.per_second.len() <= second {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += number as u32;
    }

    /// Those in the busiest second.
    pub(crate) fn peak(&self) -> u32 {
        self.per_second.iter().copied().max().unwrap_or_default()
    }
}

impl Engine {
    pub(crate) fn new(replicas: usize) -> Self {
        Self {
            mode: Mode::Up,
            cut: vec![false; replicas],
            plan: None,
            past: Vec::new(),
            lease: None,
            note: Vec::new(),
            log: Vec::new(),
            incarnation: 0,
            records: BTreeMap::new(),
            queued: Vec::new(),
            commands: Commands::default(),
        }
    }

    /// The plan that it has, for comparisons only.
    pub(crate) fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref()
    }

    /// How long a command takes to reach it, or its answer back.
    pub(crate) fn latency(&self) -> Micros {
        match self.mode {
            Mode::Slow(latency) => latency / 2,
            _ => LATENCY / 2,
        }
    }

    pub(crate) fn is_reached_by(&self, replica: usize) -> bool {
        matches!(self.mode, Mode::Up | Mode::Slow(_)) && !self.cut[replica]
    }

    /// It has lost everything.
    pub(crate) fn wipe(&mut self) {
        self.plan = None;
        self.past.clear();
        self.lease = None;
        self.note.clear();
        self.records.clear();
        self.log.clear();
        self.incarnation += 1;
    }

    /// Another node takes over, which lacks the last writes of plans and of the log.
    pub(crate) fn fail_over(&mut self, lost: usize) {
        let kept = self.past.len().saturating_sub(lost);
        if let Some(plan) = self.past.drain(kept..).next() {
            self.plan = plan;
        }
        let kept = self.log.len().saturating_sub(lost);
        self.log.truncate(kept);
        self.incarnation += 1;
    }

    /// Executes a command.
    pub(crate) fn execute(&mut self, process: Process, call: Call, now: Micros) -> Answer {
        self.commands.count(1, now);
        match call {
            Call::Read => Answer::Plan(self.plan.clone(), millis(now)),
            Call::Replace { expected, plan } => {
                let epoch = self.plan.as_ref().map_or(0, |plan| plan.epoch);
                match epoch == expected {
                    true => self.write(&plan, expected),
                    false => Answer::Superseded(self.plan.clone()),
                }
            }
            Call::Restore(plan) => {
                let is_later = self.plan.as_ref().is_none_or(|held| {
                    let of = |plan: &Plan| (plan.epoch, plan.phase.rank());
                    of(held) < of(&plan)
                });
                match is_later {
                    true => self.write(&plan, plan.epoch),
                    false => Answer::Superseded(self.plan.clone()),
                }
            }
            Call::Lease { note } => self.renew(process, note, now),
            Call::ReadLog(after) => self.read_log(after),
            Call::WriteLog(entry) => {
                for (key, fields) in &entry.records {
                    let record = self.records.entry(key.clone()).or_default();
                    record.extend(fields.iter().cloned());
                }
                self.log.push(entry);
                Answer::LogWritten
            }
        }
    }

    fn write(&mut self, plan: &Plan, epoch: u64) -> Answer {
        self.past.push(self.plan.take());
        let stored = Plan::from_bytes(epoch + 1, &plan.to_bytes());
        let stored = Arc::new(stored.expect("a plan is read as it was written"));
        self.plan = Some(Arc::clone(&stored));
        Answer::Written(stored)
    }

    fn renew(&mut self, process: Process, note: Vec<u8>, now: Micros) -> Answer {
        let holder = self.lease.filter(|(_, until)| *until > now);
        if holder.is_some_and(|(holder, _)| holder != process) {
            return Answer::Held;
        }
        self.lease = Some((process, now + LEASE));
        match holder {
            Some(_) => {
                self.note = note;
                Answer::Renewed
            }
            None => Answer::Taken(self.note.clone()),
        }
    }

    fn read_log(&self, after: Position) -> Answer {
        let is_complete = after.incarnation == self.incarnation;
        let start = after.index.min(self.log.len());
        let entries = self.log[start..].to_vec();
        let position = Position {
            incarnation: self.incarnation,
            index: self.log.len(),
        };
        match is_complete {
            true => Answer::Entries(entries, position),
            false => {
                let records = self.records.iter();
                let owned = |(key, fields): (&Vec<u8>, &BTreeMap<_, _>)| {
                    let fields = fields
                        .iter()
                        .map(|(name, value): (&Vec<u8>, &Vec<u8>)| (name.clone(), value.clone()));
                    (key.clone(), fields.collect())
                };
                Answer::Missed(records.map(owned).collect(), position)
            }
        }
    }
}
