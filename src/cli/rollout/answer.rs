//! The JSON of `/rollouts`. Unknown keys are ignored, so that the command understands newer gateways.

use std::collections::BTreeMap;

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

/// A roll-out.
#[derive(Debug, Deserialize)]
pub(super) struct Rollout {
    pub(super) bundle: String,
    /// `None` until the replica knows the plan.
    pub(super) phase: Option<String>,
    pub(super) step: Option<u64>,
    pub(super) steps: Option<u64>,
    pub(super) percent: Option<f64>,
    pub(super) since: Option<String>,
    pub(super) epoch: Option<u64>,
    pub(super) strategy: Option<String>,
    pub(super) stable: Option<Version>,
    pub(super) candidate: Option<Version>,
    pub(super) criteria: Option<Criteria>,
    #[serde(default)]
    pub(super) history: Vec<Transition>,
    #[serde(default)]
    pub(super) halted_here: bool,
    #[serde(default)]
    pub(super) leader: bool,
    pub(super) engine: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) manifest: String,
    pub(super) revision: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Criteria {
    pub(super) soak: Soak,
    pub(super) clients: Clients,
    #[serde(default)]
    pub(super) checks: Vec<Check>,
    pub(super) approval: Approval,
}

#[derive(Debug, Deserialize)]
pub(super) struct Soak {
    /// `None` of a replica that does not lead.
    pub(super) observed_s: Option<u64>,
    pub(super) required_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Clients {
    pub(super) offered: u64,
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    pub(super) outside: u64,
    pub(super) min: u64,
    pub(super) quorum_percent: f64,
    pub(super) tolerated: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
    pub(super) outcome: Option<String>,
    pub(super) value: Option<f64>,
    pub(super) reason: Option<String>,
    pub(super) at: Option<String>,
    pub(super) failures: Option<u64>,
    pub(super) max_failures: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Approval {
    pub(super) required: bool,
    pub(super) awaited: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Transition {
    pub(super) at: String,
    pub(super) to: String,
    pub(super) step: Option<u64>,
    pub(super) cause: String,
    pub(super) reason: String,
    pub(super) by: Option<String>,
}

const FOREIGN: &str = "rollout: the answer is not one of bundlegate; check --admin";

/// The roll-outs of `GET /rollouts`, ordered by the names of their bundles.
///
/// # Errors
/// When it is another document.
pub(super) fn read_all(document: &Value) -> anyhow::Result<Vec<Rollout>> {
    let rollouts = document.get("rollouts").map(BTreeMap::deserialize);
    match rollouts {
        Some(Ok(rollouts)) => Ok(BTreeMap::<String, Rollout>::into_values(rollouts).collect()),
        _ => bail!(FOREIGN),
    }
}

impl Rollout {
    /// Reads the document of one roll-out.
    ///
    /// # Errors
    /// When it is another document.
    pub(super) fn read(document: &Value) -> anyhow::Result<Self> {
        match Self::deserialize(document) {
            Ok(rollout) => Ok(rollout),
            Err(_) => bail!(FOREIGN),
        }
    }

    /// Whether only the approval of a person is missing.
    pub(super) fn awaits_approval(&self) -> bool {
        let criteria = self.criteria.as_ref();
        criteria.is_some_and(|criteria| criteria.approval.awaited == Some(true))
    }
}

impl Version {
    /// The revision, or else the beginning of the manifest's digest.
    pub(super) fn short(&self) -> String {
        match self.revision.as_deref().filter(|text| !text.is_empty()) {
            Some(revision) => revision.to_owned(),
            None => {
                let (_, hex) = self
                    .manifest
                    .split_once(':')
                    .unwrap_or(("", &self.manifest));
                hex.chars().take(12).collect()
            }
        }
    }
}
