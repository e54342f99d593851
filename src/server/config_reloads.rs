//! Reloads of the configuration. The admin API requests and shows them, and the owner of the
//! configuration carries them out.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::status::milliseconds;

/// The reloads of a server's configuration. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ConfigReloads(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The number of requests so far.
    requested: watch::Sender<u64>,
    last: watch::Sender<Option<Concluded>>,
}

/// A reload that has ended, and the number of requests before it began.
#[derive(Debug, Clone)]
struct Concluded {
    requests: u64,
    outcome: Arc<ReloadOutcome>,
}

/// The result of reading the configuration.
#[derive(Debug, Clone)]
pub struct ReloadOutcome {
    /// When it was read.
    pub at: Timestamp,
    /// Why the configuration is refused; `None` if it is in force.
    pub refusal: Option<String>,
    /// The keys whose changes wait for the next start.
    pub restart_keys: Vec<String>,
}

/// The requests for reloads, as the owner of the configuration gets them.
#[derive(Debug)]
pub struct ReloadRequests {
    requested: watch::Receiver<u64>,
    reloads: ConfigReloads,
}

/// A reload that is under way.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Began(u64);

impl ConfigReloads {
    /// The requests from now on. There is one owner.
    pub fn requests(&self) -> ReloadRequests {
        ReloadRequests {
            requested: self.0.requested.subscribe(),
            reloads: self.clone(),
        }
    }

    /// The last reload; `None` if the configuration is not one that is read again.
    pub fn last(&self) -> Option<Arc<ReloadOutcome>> {
        let last = self.0.last.borrow();
        last.as_ref().map(|last| Arc::clone(&last.outcome))
    }

    /// Requests a reload, and waits for the outcome of one that began after this call. Any number
    /// of callers share one. Cancel-safe. The caller sets a deadline.
    pub(super) async fn reload(&self) -> Option<Arc<ReloadOutcome>> {
        let mut last = self.0.last.subscribe();
        let mut number = 0;
        self.0.requested.send_modify(|requests| {
            *requests += 1;
            number = *requests;
        });
        let is_new = |last: &Option<Concluded>| {
            let last = last.as_ref();
            last.is_some_and(|last| last.requests >= number)
        };
        // The channel can't be closed, because `self` holds its sender.
        let concluded = last.wait_for(is_new).await.ok()?;
        concluded.as_ref().map(|last| Arc::clone(&last.outcome))
    }
}

impl ReloadRequests {
    /// Waits for a request for which no reload has begun. Cancel-safe.
    pub async fn requested(&mut self) {
        // The channel can't be closed, because `self.reloads` holds its sender.
        let _ = self.requested.changed().await;
    }

    /// Notes that the configuration is about to be read.
    pub fn begin(&mut self) -> Began {
        Began(*self.requested.borrow_and_update())
    }

    /// Answers the requests from before [`Self::begin`].
    pub fn conclude(&self, Began(requests): Began, outcome: ReloadOutcome) {
        let outcome = Arc::new(outcome);
        let last = &self.reloads.0.last;
        last.send_replace(Some(Concluded { requests, outcome }));
    }
}

impl ReloadOutcome {
    /// The part of `/status`.
    pub(super) fn status(&self) -> Value {
        json!({
            "at": milliseconds(self.at),
            "refused": self.refusal,
            "restart_keys": self.restart_keys,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::{spawn, task::yield_now};

    use super::*;

    fn outcome(refusal: &str) -> ReloadOutcome {
        ReloadOutcome {
            at: Timestamp::UNIX_EPOCH,
            refusal: Some(refusal.to_owned()),
            restart_keys: Vec::new(),
        }
    }

    /// A reload that is under way may have read the file before the change that the caller means.
    #[tokio::test]
    async fn a_request_during_a_reload_gets_the_outcome_of_the_next_one() {
        let reloads = ConfigReloads::default();
        let mut requests = reloads.requests();
        assert!(reloads.last().is_none());
        let began = requests.begin();
        let callers = [(); 2].map(|()| {
            let reloads = reloads.clone();
            spawn(async move { reloads.reload().await.unwrap().refusal.clone() })
        });
        yield_now().await;
        requests.conclude(began, outcome("earlier"));
        requests.requested().await;
        let began = requests.begin();
        requests.conclude(began, outcome("later"));
        for caller in callers {
            assert_eq!(caller.await.unwrap().as_deref(), Some("later"));
        }
        assert!(!requests.requested.has_changed().unwrap());
    }
}
