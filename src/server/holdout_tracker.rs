//! Counts clients that still run a withdrawn version, by the first tag in `If-None-Match`.
//!
//! Withdrawing a bundle stops its distribution, not its enforcement; the count shows how far a
//! withdrawal has got. Only requests for a withdrawn bundle are recorded, so a 200 or a 304 costs
//! nothing here.
//!
//! A client is identified by address, credential and `User-Agent`. Behind a proxy of
//! `server.trusted_proxies` the address is the one that the proxy forwards. A client can send any
//! `User-Agent`, so at most [`MAX_USER_AGENTS`] of them are distinguished for each address and
//! credential. Clients with the same identity count separately while their requests are held at
//! the same time, and otherwise as one. A client counts while its request is held and for
//! [`RETENTION`] afterwards, so clients that poll less often, or have not polled since the
//! withdrawal, are not counted.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{clients::Caller, if_none_match::IfNoneMatch};
use crate::publish::WithdrawnVersion;

/// How long a client counts after its last request. OPA polls every two minutes at most by default.
const RETENTION: Duration = Duration::from_secs(300);
/// Clients that are tracked for each bundle, in a few megabytes. Further ones are not counted.
const MAX_TRACKED_CLIENTS: usize = 1 << 16;
/// Values of `User-Agent` that are distinguished for each address and credential.
const MAX_USER_AGENTS: usize = 4;

/// The clients that still run a withdrawn version, by bundle. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct HoldoutTracker(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bundles: Mutex<HashMap<String, Holdouts>>,
    keys: RandomState,
}

/// The clients that run one withdrawn version.
#[derive(Debug)]
struct Holdouts {
    etag: String,
    clients: HashMap<Key, Activity>,
    /// Hashes of `User-Agent` by address and credential, in the order of their first request.
    user_agents: HashMap<u64, Vec<u32>>,
    /// The number of clients. A client counts once, or as often as it has held requests.
    total: usize,
    /// The count that was logged last.
    logged: usize,
}

/// A hash of address and credential, and the index of the `User-Agent`.
type Key = (u64, usize);

/// The identity of a client.
#[derive(Debug, Clone)]
pub(super) struct ClientId {
    pub(super) address: IpAddr,
    pub(super) caller: Caller,
    /// A hash of `User-Agent`. Each held request keeps it, so it is short.
    pub(super) user_agent: u32,
}

#[derive(Debug)]
struct Activity {
    waiting: u32,
    last: Instant,
}

/// A recorded request, which counts as held until this is dropped.
#[derive(Debug)]
pub(super) struct WaitGuard {
    tracker: HoldoutTracker,
    bundle: String,
    etag: String,
    client: Key,
}

impl HoldoutTracker {
    /// Records a request for a withdrawn bundle, if its client runs the withdrawn version.
    pub(super) fn record(
        &self,
        bundle: &str,
        lost: &WithdrawnVersion,
        if_none_match: IfNoneMatch<'_>,
        client_id: &ClientId,
    ) -> Option<WaitGuard> {
        let etag = lost.etag.as_deref()?;
        let base = self.0.keys.hash_one((client_id.address, &client_id.caller));
        let mut bundles = self.lock();
        if !if_none_match.is_current(etag) {
            // The client, or one with the same identity, runs another version now.
            let holdouts = bundles.get_mut(bundle)?;
            let client = holdouts.key(base, client_id.user_agent);
            if holdouts
                .clients
                .get(&client)
                .is_some_and(|client| client.waiting == 0)
            {
                holdouts.clients.remove(&client);
                holdouts.total -= 1;
            }
            return None;
        }
        let holdouts = bundles
            .entry(bundle.to_owned())
            .or_insert_with(|| Holdouts::new(etag));
        if holdouts.etag != etag {
            *holdouts = Holdouts::new(etag);
        }
        let client = holdouts.key(base, client_id.user_agent);
        if holdouts.clients.len() >= MAX_TRACKED_CLIENTS && !holdouts.clients.contains_key(&client)
        {
            return None;
        }
        holdouts.begin_wait(client, client_id.user_agent);
        holdouts.log_growth(bundle, lost);
        Some(WaitGuard {
            tracker: self.clone(),
            bundle: bundle.to_owned(),
            etag: etag.to_owned(),
            client,
        })
    }

    /// The number of clients that still run the withdrawn version; `None` where its tag is
    /// unknown.
    pub(super) fn count(&self, bundle: &str, lost: &WithdrawnVersion) -> Option<usize> {
        let etag = lost.etag.as_deref()?;
        let mut bundles = self.lock();
        let Some(holdouts) = bundles
            .get_mut(bundle)
            .filter(|holdouts| holdouts.etag == etag)
        else {
            return Some(0);
        };
        holdouts.expire();
        Some(holdouts.total)
    }

    /// Removes the clients of a bundle that is no longer withdrawn.
    pub(super) fn clear(&self, bundle: &str) {
        self.lock().remove(bundle);
    }

    /// Removes the clients of bundles that are no longer configured.
    pub(super) fn retain(&self, is_configured: impl Fn(&str) -> bool) {
        self.lock().retain(|bundle, _| is_configured(bundle));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holdouts>> {
        self.0
            .bundles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holdouts {
    fn new(etag: &str) -> Self {
        Self {
            etag: etag.to_owned(),
            clients: HashMap::new(),
            user_agents: HashMap::new(),
            total: 0,
            logged: 0,
        }
    }

    fn key(&self, base: u64, user_agent: u32) -> Key {
        let user_agents = self.user_agents.get(&base).map_or(&[][..], Vec::as_slice);
        let known = user_agents.iter().position(|known| *known == user_agent);
        (
            base,
            known.unwrap_or(user_agents.len()).min(MAX_USER_AGENTS - 1),
        )
    }

    fn begin_wait(&mut self, client: Key, user_agent: u32) {
        let user_agents = self.user_agents.entry(client.0).or_default();
        if client.1 == user_agents.len() {
            user_agents.push(user_agent);
        }
        let waiting = self.clients.get(&client).map(|known| known.waiting);
        // A known client without a held request counts already.
        if waiting != Some(0) {
            self.total += 1;
        }
        self.clients.insert(
            client,
            Activity {
                waiting: waiting.unwrap_or_default() + 1,
                last: Instant::now(),
            },
        );
    }

    fn end_wait(&mut self, client: Key) {
        let Some(known) = self
            .clients
            .get_mut(&client)
            .filter(|known| known.waiting > 0)
        else {
            return;
        };
        *known = Activity {
            waiting: known.waiting - 1,
            last: Instant::now(),
        };
        if known.waiting > 0 {
            self.total -= 1;
        }
    }

    fn expire(&mut self) {
        let before = self.clients.len();
        self.clients
            .retain(|_, client| client.waiting > 0 || client.last.elapsed() <= RETENTION);
        self.total -= before - self.clients.len();
        let clients = &self.clients;
        self.user_agents.retain(|base, user_agents| {
            (0..user_agents.len()).any(|index| clients.contains_key(&(*base, index)))
        });
    }

    /// Logs a warning at 1, 2, 4, 8 … clients.
    fn log_growth(&mut self, bundle: &str, lost: &WithdrawnVersion) {
        let clients = self.total;
        if clients.is_power_of_two() && clients > self.logged {
            self.logged = clients;
            let manifest = &lost.manifest;
            tracing::warn!(bundle, %manifest, clients, "clients still run the version that was withdrawn");
        }
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut bundles = self.tracker.lock();
        if let Some(holdouts) = bundles
            .get_mut(&self.bundle)
            .filter(|holdouts| holdouts.etag == self.etag)
        {
            holdouts.end_wait(self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{oci::Digest, server::request_head::HeaderLines};

    fn lost(etag: &str) -> WithdrawnVersion {
        WithdrawnVersion {
            manifest: Digest::sha256(etag.as_bytes()),
            etag: Some(etag.to_owned()),
        }
    }

    fn ask(
        tracker: &HoldoutTracker,
        address: [u8; 4],
        user_agent: &'static str,
        runs: &'static str,
    ) -> Option<WaitGuard> {
        let user_agent = user_agent.bytes().map(u32::from).sum();
        let client_id = ClientId {
            address: address.into(),
            caller: Caller::anonymous(),
            user_agent,
        };
        tracker.record(
            "authz",
            &lost("\"a\""),
            IfNoneMatch::new(HeaderLines::single(Some(runs))),
            &client_id,
        )
    }

    fn holdouts(tracker: &HoldoutTracker) -> usize {
        tracker.count("authz", &lost("\"a\"")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_counts_once_and_until_its_retention_ends() {
        let tracker = HoldoutTracker::default();
        for _ in 0..3 {
            drop(ask(&tracker, [10, 0, 0, 1], "opa", "\"a\""));
            drop(ask(&tracker, [10, 0, 0, 2], "opa", "\"a\", \"b\""));
            drop(ask(&tracker, [10, 0, 0, 2], "another opa", "\"a\""));
        }
        assert_eq!(holdouts(&tracker), 3);
        advance(RETENTION / 2).await;
        drop(ask(&tracker, [10, 0, 0, 1], "opa", "\"a\""));
        advance(RETENTION / 2 + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&tracker), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_with_one_identity_count_separately_while_they_wait() {
        let tracker = HoldoutTracker::default();
        let waiting: Vec<_> = (0..5)
            .map(|_| ask(&tracker, [10, 0, 0, 1], "opa", "\"a\"").unwrap())
            .collect();
        advance(RETENTION * 3).await;
        assert_eq!(holdouts(&tracker), 5, "a held request does not expire");
        drop(waiting);
        assert_eq!(holdouts(&tracker), 1);
        advance(RETENTION + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&tracker), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_another_version_or_none_does_not_count() {
        let tracker = HoldoutTracker::default();
        for other in ["", "\"b\"", "\"b\", \"a\""] {
            assert!(
                ask(&tracker, [10, 0, 0, 1], "opa", other).is_none(),
                "{other}"
            );
            drop(ask(&tracker, [10, 0, 0, 1], "opa", "\"a\""));
            assert_eq!(holdouts(&tracker), 1);
            assert!(
                ask(&tracker, [10, 0, 0, 1], "opa", other).is_none(),
                "{other}"
            );
            assert_eq!(holdouts(&tracker), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_bundle_and_each_withdrawal_has_its_own_count() {
        let tracker = HoldoutTracker::default();
        let first = ask(&tracker, [10, 0, 0, 1], "opa", "\"a\"");
        let client_id = ClientId {
            address: [10, 0, 0, 1].into(),
            caller: Caller::anonymous(),
            user_agent: 0,
        };
        let second = tracker.record(
            "authz",
            &lost("\"b\""),
            IfNoneMatch::new(HeaderLines::single(Some("\"b\""))),
            &client_id,
        );
        assert_eq!(tracker.count("authz", &lost("\"b\"")), Some(1));
        drop(first);
        assert_eq!(
            tracker.count("authz", &lost("\"b\"")),
            Some(1),
            "a request of the first withdrawal changed the count of the second"
        );
        assert_eq!(tracker.count("other", &lost("\"b\"")), Some(0));
        tracker.clear("authz");
        assert_eq!(tracker.count("authz", &lost("\"b\"")), Some(0));
        drop(second);
        let unknown = WithdrawnVersion {
            etag: None,
            ..lost("\"b\"")
        };
        assert_eq!(tracker.count("authz", &unknown), None);
    }

    /// A client can send any `User-Agent`.
    #[tokio::test(start_paused = true)]
    async fn user_agents_behind_one_address_are_limited() {
        let tracker = HoldoutTracker::default();
        for user_agent in ["a", "b", "c", "d", "e", "f", "g", "a"] {
            drop(ask(&tracker, [10, 0, 0, 1], user_agent, "\"a\""));
        }
        assert_eq!(holdouts(&tracker), MAX_USER_AGENTS);
        assert!(ask(&tracker, [10, 0, 0, 1], "a", "\"b\"").is_none());
        assert_eq!(holdouts(&tracker), MAX_USER_AGENTS - 1);
        advance(RETENTION + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&tracker), 0);
        assert!(tracker.lock()["authz"].user_agents.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn tracked_clients_are_limited() {
        let tracker = HoldoutTracker::default();
        for number in 0..u32::try_from(MAX_TRACKED_CLIENTS).unwrap() + 10 {
            drop(ask(&tracker, number.to_be_bytes(), "opa", "\"a\""));
        }
        assert_eq!(holdouts(&tracker), MAX_TRACKED_CLIENTS);
    }
}
