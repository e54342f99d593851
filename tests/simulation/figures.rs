//! What a simulation measures.

use std::collections::BTreeMap;

use bundlegate::rollout::{Phase, Plan};

use crate::{replica::VersionId, time::Micros};

#[derive(Debug)]
pub(crate) struct Figures {
    /// What has happened, in words.
    pub(crate) log: Vec<(Micros, String)>,
    /// Clients by the version that they run.
    pub(crate) active: BTreeMap<Option<VersionId>, u32>,
    /// How often a version was activated.
    pub(crate) ever: BTreeMap<Option<VersionId>, u32>,
    exposed: Vec<bool>,
    /// When a client had the bad version first.
    pub(crate) first_bad: Option<Micros>,
    /// Since when any client runs it.
    pub(crate) bad_since: Option<Micros>,
    /// When the last client left it.
    gone: Option<Micros>,
    /// When the first replica halted, or the plan was rolled back.
    pub(crate) halted: Option<Micros>,
    /// Versions other than the first one that were sent completely.
    pub(crate) downloads: u64,
    /// The plans that were written: when, phase, step and stable version.
    pub(crate) plans: Vec<(Micros, Phase, usize, String)>,
}

/// The figures of a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Row {
    /// Clients that ran the bad version.
    pub(crate) exposed: u32,
    /// Seconds from the first client that had it to the halt.
    pub(crate) halt: Option<f64>,
    /// Seconds from the halt until no client ran it.
    pub(crate) back: Option<f64>,
    /// The most moves of one client.
    pub(crate) moves: u32,
    pub(crate) downloads: u64,
    /// Commands of the engine a second, and those of the busiest second.
    pub(crate) commands: f64,
    pub(crate) peak: u32,
    /// Seconds from the first candidate to the promotion.
    pub(crate) promoted: Option<f64>,
}

impl Figures {
    pub(crate) fn new(clients: u32) -> Self {
        Self {
            log: Vec::new(),
            active: BTreeMap::from([(Some(0), clients)]),
            ever: BTreeMap::new(),
            exposed: vec![false; clients as usize],
            first_bad: None,
            bad_since: None,
            gone: None,
            halted: None,
            downloads: 0,
            plans: Vec::new(),
        }
    }

    /// A client runs another version.
    pub(crate) fn ran(
        &mut self,
        client: u32,
        before: Option<VersionId>,
        after: Option<VersionId>,
        bad: Option<VersionId>,
        now: Micros,
    ) {
        *self.active.entry(before).or_default() -= 1;
        *self.active.entry(after).or_default() += 1;
        *self.ever.entry(after).or_default() += 1;
        if bad.is_none() {
            return;
        }
        if after == bad {
            self.exposed[client as usize] = true;
            self.first_bad.get_or_insert(now);
            self.bad_since.get_or_insert(now);
        }
        if before == bad && self.active[&bad] == 0 {
            self.bad_since = None;
            self.gone = Some(now);
        }
    }

    pub(crate) fn halted(&mut self, now: Micros) {
        self.halted.get_or_insert(now);
    }

    pub(crate) fn written(&mut self, now: Micros, plan: &Plan) {
        let stable = plan.stable.etag.clone();
        self.plans.push((now, plan.phase, plan.step, stable));
    }

    /// Clients that ran the bad version.
    pub(crate) fn exposed(&self) -> u32 {
        self.exposed.iter().filter(|exposed| **exposed).count() as u32
    }

    /// Whether no client runs it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.bad_since.is_none()
    }

    /// When the last client left it.
    pub(crate) fn gone(&self) -> Option<Micros> {
        self.gone.filter(|_| self.is_gone())
    }
}
