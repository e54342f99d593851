//! Staged roll-outs as operators see them, and the operations that they ask for. The admin API shows and
//! requests; the gateway keeps the statuses up to date and carries the operations out.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Live;
use crate::rollout::{CheckState, Criteria, EngineState, Operation, Operator, Plan, Tally};

/// Requests that wait for the gateway; further ones wait to be queued.
const MAX_QUEUED: usize = 64;

/// What operators see of the roll-outs, and how they ask for changes. Cheap to clone; the default one has none.
#[derive(Debug, Clone, Default)]
pub struct Rollouts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Ordered by name.
    statuses: Live<Vec<RolloutStatus>>,
    /// `None` without a gateway that rolls anything out.
    requests: Option<mpsc::Sender<Queued>>,
}

type Queued = (RolloutRequest, oneshot::Sender<RolloutReply>);

/// The requests, as the gateway gets them.
#[derive(Debug)]
pub struct RolloutRequests(mpsc::Receiver<Queued>);

/// The roll-out of one bundle, as this replica knows it.
#[derive(Debug, Clone)]
pub struct RolloutStatus {
    /// The bundle's name.
    pub bundle: String,
    /// The plan; `None` until one is known.
    pub plan: Option<Arc<Plan>>,
    /// The clients of the plan's generation.
    pub tally: Tally,
    /// The criteria of the current step; only the leader observes them.
    pub criteria: Option<Criteria>,
    /// The checks, in the order of the strategy; only the leader evaluates them.
    pub checks: Vec<CheckState>,
    /// Whether this replica has halted the roll-out by itself.
    pub is_halted: bool,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Whether plans can be read and written.
    pub engine: EngineState,
}

/// An operation that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRequest {
    /// The bundle's name.
    pub bundle: String,
    /// What to do.
    pub operation: Operation,
    /// Who asks, and why.
    pub operator: Operator,
    /// The epoch of the plan that the operator has seen: nothing changes if it is another one by now.
    pub epoch: Option<u64>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum RolloutReply {
    /// This plan is in force.
    Changed(Arc<Plan>),
    /// The phase does not allow it, or the epoch has passed; in words.
    Conflict(String),
    /// The engine can't be read or written; in words. Nothing has changed.
    Unreachable(String),
    /// The engine can't be written, so this replica alone has halted the roll-out.
    HaltedHere,
    /// The bundle is not rolled out in steps.
    Unknown,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            statuses: Vec::new().into(),
            requests: None,
        }
    }
}

impl Rollouts {
    /// No roll-outs yet, and the requests of the operators.
    pub fn new() -> (Self, RolloutRequests) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        let inner = Inner {
            requests: Some(sender),
            ..Inner::default()
        };
        (Self(Arc::new(inner)), RolloutRequests(receiver))
    }

    /// Replaces all statuses.
    pub fn replace(&self, mut statuses: Vec<RolloutStatus>) {
        statuses.sort_by(|one, other| one.bundle.cmp(&other.bundle));
        self.0.statuses.replace(statuses);
    }

    /// The roll-out of a bundle; `None` if the bundle is not rolled out in steps.
    pub fn get(&self, bundle: &str) -> Option<RolloutStatus> {
        let statuses = self.0.statuses.current();
        let at = statuses.binary_search_by(|status| status.bundle.as_str().cmp(bundle));
        statuses.get(at.ok()?).cloned()
    }

    /// All roll-outs, ordered by the names of their bundles.
    pub fn all(&self) -> Arc<Vec<RolloutStatus>> {
        self.0.statuses.current()
    }

    /// Has the gateway carry out a request; `None` if the gateway shuts down. A request that was dropped
    /// while it was carried out may still take effect.
    pub(super) async fn operate(&self, request: RolloutRequest) -> Option<RolloutReply> {
        let Some(requests) = &self.0.requests else {
            return Some(RolloutReply::Unknown);
        };
        let (reply, replied) = oneshot::channel();
        requests.send((request, reply)).await.ok()?;
        replied.await.ok()
    }
}

impl RolloutRequests {
    /// Waits for a request. The operator may have gone when the reply is sent, which is no error. Never
    /// returns once all [`Rollouts`] are gone. Cancel-safe.
    pub async fn next(&mut self) -> (RolloutRequest, oneshot::Sender<RolloutReply>) {
        match self.0.recv().await {
            Some(queued) => queued,
            None => std::future::pending().await,
        }
    }
}
