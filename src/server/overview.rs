//! What operators see of the gateway at one time. `/status` is its JSON, and `/` its page.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::{CertificateInUse, ReloadOutcome, RolloutStatus, webhooks::WebhookStatus};
use crate::publish::{FallbackStatus, Status, TrustRootStatus, WithdrawnVersion};

/// The state of the gateway.
#[derive(Debug)]
pub(super) struct Overview {
    /// The time of this overview.
    pub(super) at: Timestamp,
    /// When the process began to serve.
    pub(super) since: Timestamp,
    pub(super) readiness: ReadinessState,
    /// The problem of the cache folder.
    pub(super) cache_problem: Option<Arc<str>>,
    /// The last reload; `None` if the configuration is not one that is read again.
    pub(super) reload: Option<Arc<ReloadOutcome>>,
    pub(super) certificates: Arc<Vec<CertificateInUse>>,
    pub(super) trust_roots: BTreeMap<String, TrustRootStatus>,
    /// Ordered by name.
    pub(super) bundles: Vec<BundleOverview>,
    pub(super) webhooks: BTreeMap<String, WebhookStatus>,
}

/// Whether load balancers send requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadinessState {
    Ready,
    /// The replica waits for the first versions of this many bundles.
    Waiting(usize),
    Draining,
}

/// The state of a bundle, with what the server counts.
#[derive(Debug)]
pub(super) struct BundleOverview {
    pub(super) name: String,
    pub(super) status: Status,
    /// Requests that are held.
    pub(super) waiters: i64,
    /// The pattern of a bundle that was added on demand.
    pub(super) pattern: Option<Arc<str>>,
    /// Why nothing is served, of a bundle that is withdrawn.
    pub(super) withdrawn: Option<Arc<str>>,
    pub(super) lost: Option<LostVersion>,
    pub(super) fallback: Option<FallbackStatus>,
    /// Of a bundle that is rolled out in steps.
    pub(super) rollout: Option<RolloutStatus>,
}

/// A version that was withdrawn.
#[derive(Debug)]
pub(super) struct LostVersion {
    pub(super) version: Arc<WithdrawnVersion>,
    /// The clients that still run it; `None` if they can't be recognised.
    pub(super) clients: Option<usize>,
}
