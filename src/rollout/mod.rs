//! Staged roll-out: a new version reaches a few clients first, and the others once these have activated it and
//! nothing speaks against it.
//!
//! All replicas follow one [`Plan`] for each bundle. It names two versions, *stable* and *candidate*, and the step
//! that decides which clients get the candidate. A plan changes by one pure function, [`next`], and which version a
//! request gets is another one, [`ActivePlan::decide`]. Neither does I/O: the gateway reads and writes plans, and
//! the server asks for decisions. A plan has digests and tags, never bytes, so nothing that stores it can make an
//! unverified version servable.
//!
//! | file | holds |
//! |---|---|
//! | `strategy` | the steps and criteria, as configured |
//! | `plan` | the plan, and how it is stored |
//! | `machine` | how a plan changes |
//! | `cohort` | which clients are in a step |
//! | `selection` | which version a request gets |
//! | `tally` | how the clients are doing |
//! | `progress` | what the leader observes of a step, and what follows from it |
//! | `check` | a check: a query with a range, what its results mean, and what the leader counts |
//! | `query_template` | the query of a check, with variables |
//! | `reconcile` | what a replica makes of the plan that it reads, and when it proposes a version |
//! | `metrics` | what is counted |
//! | `plan_watch` | how current the plans of this replica are |
//!
//! Times are milliseconds since 1970, by the clock of the engine unless said otherwise; they are passed in.

mod check;
mod cohort;
#[cfg(test)]
pub(crate) mod fixture;
mod machine;
mod metrics;
mod plan;
mod plan_watch;
mod progress;
mod query_template;
mod reconcile;
mod selection;
mod strategy;
mod tally;

pub use self::{
    check::{Check, CheckState, NoData, Outcome, Sample},
    cohort::{Cohort, Member, threshold_of},
    machine::{Context, Event, Operation, Operator, Unchanged, next},
    metrics::{Held, RolloutMetrics, RolloutSample},
    plan::{Cause, Phase, Plan, PlanError, Transition, Version},
    plan_watch::{LocalHalt, PlanWatch, Staged},
    progress::{Criteria, Progress, too_many_failures},
    query_template::{QueryTemplate, TemplateError, Variables, VersionText},
    reconcile::{Newest, Reconciled, proposal, reconcile, restored},
    selection::{ActivePlan, Availability, Decision, EngineState, Situation, Variant},
    strategy::{Halt, OnStableLost, Order, Rollback, Share, Step, Strategy, Tolerance},
    tally::{Standing, Tally, standing},
};

pub use crate::fleet::{Moves, Sending};

/// Milliseconds since 1970.
pub type Millis = u64;
