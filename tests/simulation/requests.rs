//! What a replica does with a request: the server's part.

use bundlegate::{
    fleet::Poll,
    rollout::{ActivePlan, Availability, Decision, Sending, Situation, Variant},
};

use crate::{
    engine::Process,
    never::Sent,
    replica::{Held, Request, VersionId, Why},
    time::{MILLI, Micros, SECOND},
    world::{Delivery, World},
};

/// How long a move away from a withdrawn version is delayed.
const REPLACE_DELAY: Micros = 500 * MILLI;

/// How a version comes to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Plan(Variant),
    Withdrawn(Variant),
    /// Without a plan.
    Newest,
}

impl World {
    pub(crate) fn receive(&mut self, replica: usize, request: Request) {
        let key = self.keys[request.identity as usize];
        let target = self.target(replica, &request);
        let tag = request.runs.map(|version| self.tag(version));
        let one = &mut self.replicas[replica];
        let bundle = one.bundle_of(request.identity, key);
        let poll = Poll {
            tag,
            is_current: tag.is_some() && target == request.runs,
        };
        let is_kept = one.table.record_poll(&bundle, poll, one.clock(self.now));
        assert!(is_kept, "the table has room");
        one.touch(request.identity);
        self.decide(replica, request);
    }

    /// The version that the server would send by the plan.
    fn target(&self, replica: usize, request: &Request) -> Option<VersionId> {
        let one = &self.replicas[replica];
        let Some(active) = one.plan.as_ref().filter(|_| !one.is_unaware) else {
            return one.newest;
        };
        let key = self.keys[request.identity as usize];
        let is_in_step = one.is_in_step(key);
        let runs = request.runs.map(|version| self.tag(version));
        let variant = active.variant(runs, is_in_step, one.is_halted());
        active.tag(variant).and_then(|tag| self.version_of(tag))
    }

    pub(crate) fn decide_again(&mut self, replica: usize, client: u32, number: u32) {
        let held = self.replicas[replica].held.get(&client).copied();
        if let Some(held) = held.filter(|held| held.request.number == number) {
            self.decide(replica, held.request);
        }
    }

    /// Decides about all requests that are held.
    pub(crate) fn wake(&mut self, replica: usize) {
        let held: Vec<_> = self.replicas[replica].held.values().copied().collect();
        for Held { request, .. } in held {
            self.decide(replica, request);
        }
    }

    /// Decides about the requests that wait for a reading.
    pub(crate) fn wake_confirming(&mut self, replica: usize, began: Micros) {
        let held = self.replicas[replica].held.values().copied();
        let held = held.filter(|held| held.why == Why::Confirm && held.request.at <= began);
        for Held { request, .. } in held.collect::<Vec<_>>() {
            self.decide(replica, request);
        }
    }

    pub(crate) fn expire(&mut self, replica: usize, client: u32, number: u32) {
        let held = self.replicas[replica].held.get(&client);
        if held.is_some_and(|held| held.request.number == number) {
            let held = held.map(|held| held.request);
            self.release(replica, client);
            if let Some(request) = held {
                self.check_unchanged(replica, &request);
            }
            self.reply_unchanged(client, false);
        }
    }

    fn release(&mut self, replica: usize, client: u32) {
        self.replicas[replica].held.remove(&client);
        self.replicas[replica].waiting.remove(&client);
    }

    fn decide(&mut self, replica: usize, request: Request) {
        let one = &self.replicas[replica];
        let Some(active) = one.plan.clone().filter(|_| !one.is_unaware) else {
            return self.decide_without_plan(replica, &request);
        };
        let situation = self.situation(replica, &active, &request);
        match active.decide(&situation) {
            Decision::Serve(variant) => self.serve(replica, &active, &request, variant),
            Decision::Replace(variant) => {
                let at = request.at + REPLACE_DELAY;
                if at <= self.now {
                    return self.send(replica, &active, &request, Cause::Withdrawn(variant));
                }
                self.hold(replica, &request, Why::Replace);
                self.expire_at(replica, &request, at);
            }
            Decision::Confirm(_) => {
                self.hold(replica, &request, Why::Confirm);
                self.replicas[replica].is_read_wanted = true;
                self.read_plans(replica);
            }
            Decision::Keep => self.keep(replica, &request),
            Decision::Absent => {
                self.release(replica, request.client);
                self.reply_unchanged(request.client, true);
            }
        }
    }

    fn situation(&self, replica: usize, active: &ActivePlan, request: &Request) -> Situation {
        let one = &self.replicas[replica];
        let of = |tag| {
            let version = Option::and_then(tag, |tag| self.version_of(tag));
            one.availability(version)
        };
        Situation {
            stable: of(Some(active.stable)),
            candidate: of(active.named_candidate),
            runs: request.runs.map(|version| self.tag(version)),
            is_in_step: one.is_in_step(self.keys[request.identity as usize]),
            is_halted: one.is_halted(),
            is_fresh: one.read.is_some_and(|began| began >= request.at),
            engine: one.engine,
        }
    }

    /// A replica that knows no plan serves the newest version to clients that run nothing. One that does
    /// not know of roll-outs serves it to all.
    fn decide_without_plan(&mut self, replica: usize, request: &Request) {
        let one = &self.replicas[replica];
        let newest = one
            .newest
            .filter(|newest| !one.revoked.contains_key(newest));
        match newest {
            Some(newest) if request.runs.is_none() || one.is_unaware => {
                match request.runs == Some(newest) {
                    true => self.keep(replica, request),
                    false => self.send_version(replica, request, newest, Cause::Newest),
                }
            }
            None if request.runs.is_none() => {
                self.release(replica, request.client);
                self.reply_unchanged(request.client, true);
            }
            _ => self.keep(replica, request),
        }
    }

    /// The client keeps what it runs.
    fn keep(&mut self, replica: usize, request: &Request) {
        match request.is_long_poll {
            true => self.hold(replica, request, Why::Change),
            false => {
                self.check_unchanged(replica, request);
                self.release(replica, request.client);
                self.reply_unchanged(request.client, false);
            }
        }
    }

    fn hold(&mut self, replica: usize, request: &Request, why: Why) {
        let key = self.keys[request.identity as usize];
        let now = self.now;
        let one = &mut self.replicas[replica];
        let held = Held {
            request: *request,
            why,
        };
        if one.held.insert(request.client, held).is_none() {
            let bundle = one.bundle_of(request.identity, key);
            let waiting = one.table.begin_waiting(&bundle, one.clock(now));
            one.waiting.insert(request.client, waiting);
        }
    }

    fn serve(&mut self, replica: usize, active: &ActivePlan, request: &Request, variant: Variant) {
        let runs = request.runs.map(|version| self.tag(version));
        let Some(tag) = active.tag(variant) else {
            return self.keep(replica, request);
        };
        if runs == Some(tag) {
            return self.keep(replica, request);
        }
        let key = self.keys[request.identity as usize];
        let sending = Sending {
            version: tag,
            is_candidate: variant == Variant::Candidate,
            is_move: runs.is_some(),
        };
        let one = &mut self.replicas[replica];
        let (bundle, now) = (one.bundle_of(request.identity, key), one.clock(self.now));
        if bundle.may_be_sent(sending, now) {
            return self.send(replica, active, request, Cause::Plan(variant));
        }
        let stable = self.version_of(active.stable);
        let has_stable = self.replicas[replica].availability(stable) == Availability::Served;
        match runs.is_none() && has_stable {
            true => self.send(replica, active, request, Cause::Plan(Variant::Stable)),
            false => self.keep(replica, request),
        }
    }

    fn send(&mut self, replica: usize, active: &ActivePlan, request: &Request, cause: Cause) {
        let (Cause::Plan(variant) | Cause::Withdrawn(variant)) = cause else {
            return;
        };
        let tag = active.tag(variant);
        if let Some(version) = tag.and_then(|tag| self.version_of(tag)) {
            self.send_version(replica, request, version, cause);
        }
    }

    fn send_version(
        &mut self,
        replica: usize,
        request: &Request,
        version: VersionId,
        cause: Cause,
    ) {
        self.release(replica, request.client);
        let is_offer = matches!(
            cause,
            Cause::Plan(Variant::Candidate) | Cause::Withdrawn(Variant::Candidate)
        );
        let (now, tag) = (self.replicas[replica].clock(self.now), self.tag(version));
        let is_move = request.runs.is_some();
        if cause != Cause::Newest {
            let key = self.keys[request.identity as usize];
            let bundle = self.replicas[replica].bundle_of(request.identity, key);
            let sending = Sending {
                version: tag,
                is_candidate: is_offer,
                is_move,
            };
            bundle.record_move(sending, now);
        }
        self.check_sent(&Sent {
            replica,
            request: *request,
            version,
            cause,
            is_offer,
        });
        let process: Process = self.replicas[replica].process;
        self.deliver(Delivery {
            process,
            client: request.client,
            number: 0,
            version,
            is_offer,
        });
    }

    /// An operator asks for something. Without the engine, only this replica follows.
    pub(crate) fn operate(&mut self, replica: usize, operation: bundlegate::rollout::Operation) {
        if self.replicas[replica].is_running {
            self.replicas[replica].operation = Some(operation);
            self.replicas[replica].is_read_wanted = true;
            self.read_plans(replica);
        }
    }
}

/// How soon a revocation is followed.
pub(crate) const REVOKED_WITHIN: Micros = 2 * SECOND;
