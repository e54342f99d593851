//! The webhooks of a server, which are replaced while it runs: what is configured, and what was
//! received.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    telemetry::{self, SENTENCE_BYTES, cut},
    webhooks::{Listener, Webhook},
};

/// Notifications of one webhook a second, in the long run.
const MAX_PER_SECOND: f64 = 100.0;
/// Notifications of one webhook at a time: distribution sends one for each blob.
const BURST: f64 = 1000.0;
/// Bodies of one webhook that are read and parsed at a time. Each webhook has
/// permits of its own, because some senders are authenticated by their body alone: requests without
/// a valid signature must not delay the notifications of other webhooks.
const MAX_BODIES: usize = 32;
/// Between two log lines about refused notifications with one outcome.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The current webhooks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LiveWebhooks(Arc<RwLock<BTreeMap<String, Arc<Hook>>>>);

/// One webhook.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) webhook: Webhook,
    received: Arc<Received>,
}

/// What one webhook has received since it was configured.
#[derive(Debug)]
struct Received {
    bodies: Arc<Semaphore>,
    budget: Mutex<Budget>,
    record: Mutex<Record>,
}

/// A token bucket.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Record {
    events: BTreeMap<&'static str, u64>,
    /// When a refusal with this outcome was last logged.
    logged: BTreeMap<&'static str, Instant>,
    last_event: Option<Timestamp>,
    last_refusal: Option<(Timestamp, &'static str, String)>,
}

/// What operators see of a webhook.
#[derive(Debug)]
pub(super) struct WebhookStatus {
    pub(super) kind: &'static str,
    pub(super) listener: &'static str,
    pub(super) path: String,
    pub(super) authentication: &'static str,
    /// The number of events, by what became of them.
    pub(super) events: BTreeMap<&'static str, u64>,
    pub(super) last_event: Option<Timestamp>,
    /// When a notification was last refused, with the outcome and the reason.
    pub(super) last_refusal: Option<(Timestamp, &'static str, String)>,
}

/// What became of an event, or of a whole notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventOutcome {
    /// Bundles are checked.
    Matched,
    /// No bundle has this reference.
    Unmatched,
    /// The event is no push.
    Ignored,
    /// The request is not authentic.
    Unauthorized,
    /// The body is not what the sender documents, or too large.
    Malformed,
    /// The body did not arrive.
    Incomplete,
    /// There are too many notifications.
    Limited,
}

impl EventOutcome {
    pub(super) const ALL: [Self; 7] = [
        Self::Matched,
        Self::Unmatched,
        Self::Ignored,
        Self::Unauthorized,
        Self::Malformed,
        Self::Incomplete,
        Self::Limited,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Unmatched => "unmatched",
            Self::Ignored => "ignored",
            Self::Unauthorized => "unauthorized",
            Self::Malformed => "malformed",
            Self::Incomplete => "incomplete",
            Self::Limited => "limited",
        }
    }
}

impl LiveWebhooks {
    /// Replaces the webhooks. One that keeps its name keeps its counts.
    pub fn replace(&self, webhooks: impl IntoIterator<Item = Webhook>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let hooks = webhooks.into_iter().map(|webhook| {
            let known = current.get(&webhook.name);
            let received = known.map_or_else(Arc::default, |hook| Arc::clone(&hook.received));
            let name = webhook.name.clone();
            (name, Arc::new(Hook { webhook, received }))
        });
        *current = hooks.collect();
    }

    /// The webhook at a path of a listener.
    pub(super) fn find(&self, listener: Listener, path: &str) -> Option<Arc<Hook>> {
        let hooks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        hooks
            .values()
            .find(|hook| hook.webhook.listener == listener && hook.webhook.path == path)
            .cloned()
    }

    /// What operators see of the webhooks, by name.
    pub(super) fn statuses(&self) -> BTreeMap<String, WebhookStatus> {
        let hooks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let statuses = hooks
            .iter()
            .map(|(name, hook)| (name.clone(), hook.status()));
        statuses.collect()
    }

    /// Whether a webhook of this name is configured.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(name)
    }
}

impl From<Vec<Webhook>> for LiveWebhooks {
    fn from(webhooks: Vec<Webhook>) -> Self {
        let live = Self::default();
        live.replace(webhooks);
        live
    }
}

impl Hook {
    /// Waits for a permit to read a body.
    pub(super) async fn body_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.received.bodies).acquire_owned().await.ok()
    }

    /// Whether one more notification is within the limit of their rate.
    pub(super) fn admits(&self) -> bool {
        let budget = &self.received.budget;
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(Instant::now())
    }

    /// Records events.
    pub(super) fn record(&self, outcome: EventOutcome, count: u64) {
        let mut record = self.received.record();
        *record.events.entry(outcome.label()).or_default() += count;
        record.last_event = Some(telemetry::now());
    }

    /// Records a notification that is refused. Returns whether it is logged: a minute apart for each
    /// outcome, because every client of the listener can cause them.
    pub(super) fn record_refusal(&self, outcome: EventOutcome, message: &str) -> bool {
        let message = cut(message, SENTENCE_BYTES).into_owned();
        let mut record = self.received.record();
        *record.events.entry(outcome.label()).or_default() += 1;
        record.last_refusal = Some((telemetry::now(), outcome.label(), message));
        let now = Instant::now();
        let logged = record.logged.get(outcome.label());
        let is_logged = logged.is_none_or(|logged| now - *logged >= LOG_INTERVAL);
        if is_logged {
            record.logged.insert(outcome.label(), now);
        }
        is_logged
    }

    fn status(&self) -> WebhookStatus {
        let record = self.received.record();
        WebhookStatus {
            kind: self.webhook.kind.label(),
            listener: self.webhook.listener.label(),
            path: self.webhook.path.clone(),
            authentication: self.webhook.authentication.label(),
            events: record.events.clone(),
            last_event: record.last_event,
            last_refusal: record.last_refusal.clone(),
        }
    }
}

impl Default for Received {
    fn default() -> Self {
        let budget = Budget {
            left: BURST,
            at: Instant::now(),
        };
        Self {
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
            budget: Mutex::new(budget),
            record: Mutex::default(),
        }
    }
}

impl Received {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = now;
        self.left = (self.left + passed.as_secs_f64() * MAX_PER_SECOND).min(BURST);
        let is_within = self.left >= 1.0;
        if is_within {
            self.left -= 1.0;
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_admitted_and_then_a_hundred_a_second() {
        let mut budget = Budget {
            left: BURST,
            at: Instant::now(),
        };
        let mut admitted = || (0..2000).filter(|_| budget.take(Instant::now())).count();
        assert_eq!(admitted(), 1000);
        advance(Duration::from_secs(1)).await;
        assert_eq!(admitted(), 100);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(admitted(), 1000);
    }
}
