//! Evaluating checks.

use std::{collections::HashSet, sync::Arc};

use tokio::task::JoinSet;

use crate::{
    promql::PromqlClient,
    rollout::{Outcome, Plan, Variables, VersionText},
};

/// Checks that are evaluated at a time; others are evaluated at one of the next ticks.
const MAX_EVALUATIONS: usize = 8;

/// The evaluations of checks that are under way.
#[derive(Debug)]
pub(super) struct Evaluations {
    client: Option<Arc<PromqlClient>>,
    running: JoinSet<Evaluated>,
    keys: HashSet<CheckKey>,
}

/// A check of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CheckKey {
    pub(super) bundle: Arc<str>,
    pub(super) generation: u64,
    pub(super) step: usize,
    /// Its position in the strategy.
    pub(super) index: usize,
}

/// A check that was evaluated.
#[derive(Debug)]
pub(super) struct Evaluated {
    pub(super) key: CheckKey,
    pub(super) outcome: Outcome,
}

impl Evaluations {
    pub(super) fn new(client: Option<PromqlClient>) -> Self {
        Self {
            client: client.map(Arc::new),
            running: JoinSet::new(),
            keys: HashSet::new(),
        }
    }

    /// Begins to evaluate a check, unless that is under way.
    pub(super) fn begin(&mut self, key: CheckKey, plan: &Plan) {
        let check = plan.strategy.checks.get(key.index).cloned();
        let (Some(check), Some(candidate)) = (check, &plan.candidate) else {
            return;
        };
        if self.keys.len() >= MAX_EVALUATIONS || !self.keys.insert(key.clone()) {
            return;
        }
        let text = |version: &crate::rollout::Version| {
            (
                version.revision.clone().unwrap_or_default(),
                version.manifest.clone(),
            )
        };
        let (stable, candidate) = (text(&plan.stable), text(candidate));
        let percent = plan
            .strategy
            .steps
            .get(plan.step)
            .map(|step| step.share.percent());
        let query = check.query.render(&Variables {
            bundle: &key.bundle,
            stable: VersionText {
                revision: &stable.0,
                manifest: stable.1.as_str(),
            },
            candidate: VersionText {
                revision: &candidate.0,
                manifest: candidate.1.as_str(),
            },
            step: plan.step + 1,
            percent: percent.unwrap_or_default(),
        });
        let client = self.client.clone();
        self.running.spawn(async move {
            let result = match client {
                Some(client) => client
                    .query(&query)
                    .await
                    .map_err(|error| error.to_string()),
                None => Err("`prometheus` is not configured on this replica".to_owned()),
            };
            Evaluated {
                outcome: check.outcome(&result),
                key,
            }
        });
    }

    /// The next result; waits for as long as no check is being evaluated. Cancel-safe.
    pub(super) async fn next(&mut self) -> Evaluated {
        loop {
            match self.running.join_next().await {
                Some(Ok(evaluated)) => {
                    self.keys.remove(&evaluated.key);
                    return evaluated;
                }
                // It panicked or was ended.
                Some(Err(_)) => self.keys.clear(),
                None => return std::future::pending().await,
            }
        }
    }
}
