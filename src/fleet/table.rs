//! All clients, within limits.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use super::{
    BundleVersions, Client, ClientBundle, ClientDetails, ClientError, ClientKey, Identity, Millis,
    Offer, OpaInstance, Poll, TagHash, WaitingPoll, client_bundle::Recorded,
};

/// Parts of the table that are locked on their own.
const SHARDS: usize = 256;
/// Clients of a shard that are compared for the one to remove from a full table.
const EVICTION_SAMPLE: usize = 64;

/// All clients, by key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientTable(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shards: Box<[Mutex<Shard>]>,
    bundles: RwLock<HashMap<Arc<str>, Arc<BundleVersions>>>,
    /// Clients × bundles.
    entries: AtomicUsize,
    max_entries: usize,
    retention: Millis,
    dropped: AtomicU64,
    /// What is to be sent to other replicas; `None` if there are none.
    changes: Option<Mutex<Changes>>,
}

type Shard = HashMap<ClientKey, Arc<Client>, BuildHasherDefault<KeyHasher>>;

/// What has changed since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Clients whose details have changed, once each.
    pub clients: HashMap<ClientKey, Arc<Client>>,
    /// What clients run, once each.
    pub bundles: Vec<Arc<ClientBundle>>,
}

/// Keys are hashes already.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(number);
        }
    }

    // The length, which all keys share.
    fn write_usize(&mut self, _: usize) {}
}

impl ClientTable {
    /// An empty table for at most `max_entries` clients × bundles, each for `retention` after it was
    /// last seen. `is_shared`: whether changes are kept for other replicas.
    pub fn new(max_entries: usize, retention: Millis, is_shared: bool) -> Self {
        Self(Arc::new(Inner {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            bundles: RwLock::default(),
            entries: AtomicUsize::new(0),
            max_entries,
            retention,
            dropped: AtomicU64::new(0),
            changes: is_shared.then(Mutex::default),
        }))
    }

    /// What a client runs of a bundle, from its first request for it on. `None` if the table is full of
    /// clients with held requests.
    pub fn client_bundle(
        &self,
        identity: &Identity<'_>,
        details: &ClientDetails,
        bundle: &str,
    ) -> Option<Arc<ClientBundle>> {
        self.client_bundle_of(identity.key(), details, bundle)
    }

    /// As [`Self::client_bundle`], for the client with this key.
    pub fn client_bundle_of(
        &self,
        key: ClientKey,
        details: &ClientDetails,
        bundle: &str,
    ) -> Option<Arc<ClientBundle>> {
        let versions = self.versions(bundle);
        let is_known = self.get(key).is_some_and(|client| client.has(&versions));
        let is_full = !is_known && self.len() >= self.0.max_entries;
        if is_full && !self.evict(key) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut shard = self.shard(key);
        let mut is_changed = false;
        let client = shard.entry(key).or_insert_with(|| {
            is_changed = true;
            Arc::new(Client::new(key, details.clone()))
        });
        is_changed |= client.update(details);
        let is_by_address = details.name.is_none();
        let (client_bundle, is_added) = client.add_bundle(&versions, is_by_address);
        if is_added {
            self.0.entries.fetch_add(1, Ordering::Relaxed);
        }
        let client = Arc::clone(client);
        drop(shard);
        if is_changed {
            self.change_client(client);
        }
        Some(client_bundle)
    }

    /// Records a request. Returns whether the table still has `client_bundle`; if not, it has to be
    /// looked up again.
    pub fn record_poll(&self, client_bundle: &Arc<ClientBundle>, poll: Poll, now: Millis) -> bool {
        match client_bundle.record_poll(poll, now) {
            Recorded::Unchanged => true,
            Recorded::Changed => {
                self.change_bundle(client_bundle);
                true
            }
            Recorded::Detached => false,
        }
    }

    /// Records a request that is held from now on.
    pub fn begin_waiting(&self, client_bundle: &Arc<ClientBundle>, now: Millis) -> WaitingPoll {
        client_bundle.begin_waiting(now)
    }

    /// A version that is about to be sent. It counts once it is complete.
    pub fn offer(&self, client_bundle: Arc<ClientBundle>, tag: TagHash) -> Offer {
        Offer::new(self.clone(), client_bundle, tag)
    }

    /// Records an error that a client's OPA reports. Returns whether it is a new one.
    pub fn record_error(&self, client_bundle: &Arc<ClientBundle>, error: ClientError) -> bool {
        let is_new = client_bundle.record_error(error);
        if is_new {
            self.change_bundle(client_bundle);
        }
        is_new
    }

    /// Records what a client's OPA reports about itself. `None` if it has not asked for a bundle.
    pub fn record_opa(&self, key: ClientKey, opa: OpaInstance) -> Option<Arc<Client>> {
        let client = self.get(key)?;
        let details = ClientDetails {
            opa: Some(Arc::new(opa)),
            ..client.details()
        };
        if client.update(&details) {
            self.change_client(Arc::clone(&client));
        }
        Some(client)
    }

    /// The client with this key.
    pub fn get(&self, key: ClientKey) -> Option<Arc<Client>> {
        self.shard(key).get(&key).cloned()
    }

    /// The versions of a bundle, which is added if no client has asked for it yet.
    pub fn versions(&self, bundle: &str) -> Arc<BundleVersions> {
        let known = {
            let bundles = self.0.bundles.read();
            let bundles = bundles.unwrap_or_else(PoisonError::into_inner);
            bundles.get(bundle).cloned()
        };
        known.unwrap_or_else(|| {
            let mut bundles = self
                .0
                .bundles
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let known = bundles.entry(bundle.into());
            Arc::clone(known.or_insert_with(|| Arc::new(BundleVersions::new(bundle))))
        })
    }

    /// Calls `visit` for each client. Only a part of the table is locked at a time.
    pub fn visit(&self, mut visit: impl FnMut(&Arc<Client>)) {
        for shard in &self.0.shards {
            let clients: Vec<_> = lock(shard).values().cloned().collect();
            clients.iter().for_each(&mut visit);
        }
    }

    /// Removes clients that were not seen for the retention, and bundles for which `is_configured` is
    /// false.
    pub fn sweep(&self, is_configured: impl Fn(&str) -> bool, now: Millis) {
        let oldest = now.saturating_sub(self.0.retention);
        for shard in &self.0.shards {
            lock(shard).retain(|_, client| {
                self.retain_bundles(client, |one| {
                    let (seen, is_waiting) = one.last_seen();
                    (seen >= oldest || is_waiting) && is_configured(one.bundle().name())
                })
            });
        }
        let mut bundles = self
            .0
            .bundles
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        bundles.retain(|name, _| is_configured(name));
    }

    /// The clients × bundles that were removed or not added, because the table was full.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// The clients × bundles in the table.
    pub fn len(&self) -> usize {
        self.0.entries.load(Ordering::Relaxed)
    }

    /// Whether no client has asked for a bundle.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes what has changed since the last call, at most `limit` changes: clients first, so that others
    /// know a client before what it runs.
    pub(super) fn take_changes(&self, limit: usize) -> Changes {
        let Some(changes) = &self.0.changes else {
            return Changes::default();
        };
        let mut changes = lock(changes);
        let keys: Vec<_> = changes.clients.keys().take(limit).copied().collect();
        let clients = keys
            .iter()
            .filter_map(|key| changes.clients.remove_entry(key));
        let clients: HashMap<_, _> = clients.collect();
        let count = (limit - clients.len()).min(changes.bundles.len());
        let rest = changes.bundles.split_off(count);
        let bundles = std::mem::replace(&mut changes.bundles, rest);
        let taken = Changes { clients, bundles };
        drop(changes);
        for one in &taken.bundles {
            one.set_reported();
        }
        taken
    }

    /// The bundles of which a version was added since the last call.
    pub(super) fn take_changed_versions(&self) -> Vec<Arc<BundleVersions>> {
        let bundles = self.0.bundles.read();
        let bundles = bundles.unwrap_or_else(PoisonError::into_inner);
        let changed = bundles.values().filter(|bundle| bundle.take_changed());
        changed.cloned().collect()
    }

    /// Takes what another replica reports about a client, unless it is unknown here and the table is full.
    pub(super) fn merge_details(&self, key: ClientKey, details: &ClientDetails) {
        match self.get(key) {
            Some(client) => _ = client.update(details),
            None if self.len() < self.0.max_entries => {
                let client = || Arc::new(Client::new(key, details.clone()));
                self.shard(key).entry(key).or_insert_with(client);
            }
            None => {}
        }
    }

    /// What a client runs of a bundle that another replica reports. Its details may follow. `None` if
    /// it is unknown here and the table is full.
    pub(super) fn merged_bundle(
        &self,
        key: ClientKey,
        bundle: &str,
        is_by_address: bool,
    ) -> Option<Arc<ClientBundle>> {
        let versions = self.versions(bundle);
        let mut shard = self.shard(key);
        let known = shard.get(&key).is_some_and(|client| client.has(&versions));
        if !known && self.len() >= self.0.max_entries {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let unknown = || Arc::new(Client::new(key, ClientDetails::unknown()));
        let client = shard.entry(key).or_insert_with(unknown);
        let (client_bundle, is_added) = client.add_bundle(&versions, is_by_address);
        if is_added {
            self.0.entries.fetch_add(1, Ordering::Relaxed);
        }
        Some(client_bundle)
    }

    /// Removes a client from a full table: of a sample that depends on the key of the new one, the one
    /// that was not seen for the longest time. Returns whether there was one without held requests.
    fn evict(&self, new: ClientKey) -> bool {
        (0..SHARDS as u64).any(|offset| {
            let number = new.number().wrapping_add(offset);
            let mut shard = self.shard_of(number);
            let start = (number >> 32) as usize % shard.len().max(1);
            let sample = shard.iter().skip(start.saturating_sub(EVICTION_SAMPLE));
            let sample = sample.take(EVICTION_SAMPLE).filter(|(key, _)| **key != new);
            let idle = sample.filter_map(|(key, client)| match client.last_seen() {
                (_, true) => None,
                (seen, false) => Some((seen, *key)),
            });
            let oldest = idle.min().map(|(_, key)| key);
            let Some(removed) = oldest.and_then(|key| shard.remove(&key)) else {
                return false;
            };
            let (count, _) = removed.retain(|_| false);
            self.0.entries.fetch_sub(count, Ordering::Relaxed);
            self.0.dropped.fetch_add(count as u64, Ordering::Relaxed);
            true
        })
    }

    /// Returns whether the client has bundles left.
    fn retain_bundles(&self, client: &Client, is_kept: impl FnMut(&ClientBundle) -> bool) -> bool {
        let (removed, has_more) = client.retain(is_kept);
        self.0.entries.fetch_sub(removed, Ordering::Relaxed);
        has_more
    }

    pub(super) fn change_client(&self, client: Arc<Client>) {
        if let Some(changes) = &self.0.changes {
            lock(changes).clients.insert(client.key(), client);
        }
    }

    pub(super) fn change_bundle(&self, client_bundle: &Arc<ClientBundle>) {
        if let Some(changes) = &self.0.changes {
            let was_changed = std::mem::replace(&mut client_bundle.lock().is_changed, true);
            if !was_changed {
                lock(changes).bundles.push(Arc::clone(client_bundle));
            }
        }
    }

    fn shard(&self, key: ClientKey) -> MutexGuard<'_, Shard> {
        self.shard_of(key.number())
    }

    fn shard_of(&self, number: u64) -> MutexGuard<'_, Shard> {
        lock(&self.0.shards[number as usize % SHARDS])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ClientState, Expected, IdentitySource, Sending, state_of},
        *,
    };

    const MINUTE: Millis = 60 * 1000;
    const NOW: Millis = 1_000 * MINUTE;

    struct Fleet(ClientTable);

    impl Fleet {
        fn new(max_entries: usize) -> Self {
            Self(ClientTable::new(max_entries, 60 * MINUTE, true))
        }

        fn client(&self, name: &str) -> Arc<ClientBundle> {
            let identity = match name.parse() {
                Ok(address) => IdentitySource::Address(address),
                Err(_) => IdentitySource::Name(name),
            };
            let identity = Identity {
                credential: None,
                source: identity,
            };
            let details = ClientDetails::new(&identity, [10, 0, 0, 1].into(), Some("OPA"));
            self.0.client_bundle(&identity, &details, "authz").unwrap()
        }

        /// A request of a client that runs a version, at a time. `new` is served.
        fn poll(&self, name: &str, tag: &str, now: Millis) -> Arc<ClientBundle> {
            let client = self.client(name);
            let poll = Poll {
                tag: (!tag.is_empty()).then(|| TagHash::of(tag)),
                is_current: tag == "new",
            };
            assert!(self.0.record_poll(&client, poll, now));
            client
        }

        fn download(&self, client: &Arc<ClientBundle>, now: Millis) {
            let offer = self.0.offer(Arc::clone(client), TagHash::of("new"));
            offer.complete(now);
        }
    }

    fn state(client: &ClientBundle, now: Millis) -> ClientState {
        let expected = Expected {
            tag: Some(TagHash::of("new")),
            since: NOW,
            candidate: None,
        };
        state_of(&client.facts(now), expected, now)
    }

    fn error(message: &str) -> ClientError {
        ClientError::new("bundle_error".into(), message.into(), NOW)
    }

    #[test]
    fn a_client_that_downloads_a_version_twice_and_goes_on_with_another_fails_until_it_runs_it() {
        let fleet = Fleet::new(100);
        let client = fleet.poll("opa-1", "old", NOW);
        fleet.download(&client, NOW);
        fleet.poll("opa-1", "old", NOW + 1);
        assert_eq!(state(&client, NOW + 1), ClientState::Changing);
        fleet.download(&client, NOW + 1);
        assert_eq!(state(&client, NOW + 1), ClientState::Failing);
        fleet.poll("opa-1", "new", NOW + 2);
        assert_eq!(state(&client, NOW + 2), ClientState::Current);
        assert_eq!(client.offered(), None);
        fleet.poll("opa-1", "", NOW + 3);
        assert_eq!(state(&client, NOW + 3), ClientState::Changing);
        fleet.poll("opa-1", "", NOW + 4);
        assert_eq!(state(&client, NOW + 4), ClientState::None);
    }

    #[test]
    fn an_error_is_over_once_the_client_runs_the_served_version_and_not_before() {
        let fleet = Fleet::new(100);
        let client = fleet.poll("opa-1", "old", NOW);
        assert!(fleet.0.record_error(&client, error("line 3")));
        assert!(!fleet.0.record_error(&client, error("line 3")));
        fleet.poll("opa-1", "old", NOW + 1);
        assert_eq!(state(&client, NOW + 1), ClientState::Failing);
        assert_eq!(client.error(), Some(error("line 3")));
        fleet.poll("opa-1", "new", NOW + 2);
        assert_eq!(state(&client, NOW + 2), ClientState::Current);
        // An error about something else, such as a failed download.
        assert!(fleet.0.record_error(&client, error("connection refused")));
        assert_eq!(state(&client, NOW + 3), ClientState::Failing);
        fleet.poll("opa-1", "new", NOW + 4);
        assert_eq!(state(&client, NOW + 4), ClientState::Current);
    }

    #[test]
    fn the_moves_of_a_client_are_limited_and_not_those_of_an_address_that_many_share() {
        let fleet = Fleet::new(100);
        for (name, is_limited) in [("10.0.0.1", false), ("opa-1", true)] {
            let client = fleet.poll(name, "new", NOW);
            let _held: Vec<_> = (0..9).map(|_| client.begin_waiting(NOW)).collect();
            let sending = |is_move| Sending {
                version: TagHash::of("stable"),
                is_candidate: false,
                is_move,
            };
            for time in 0..2 {
                assert!(client.may_be_sent(sending(true), NOW + time));
                client.record_move(sending(true), NOW + time);
            }
            assert_eq!(
                client.may_be_sent(sending(true), NOW + 5),
                !is_limited,
                "{name}"
            );
            assert!(
                client.may_be_sent(sending(false), NOW + 5),
                "one that runs nothing"
            );
        }
    }

    #[test]
    fn a_membership_is_computed_once_for_each_group_and_again_when_an_address_is_shared() {
        let fleet = Fleet::new(100);
        let client = fleet.poll("10.0.0.1", "new", NOW);
        let computed = std::cell::Cell::new(0);
        let is_member = |number, answer: fn(bool) -> bool| {
            client.is_member(
                number,
                || NOW,
                |is_shared| {
                    computed.set(computed.get() + 1);
                    answer(is_shared)
                },
            )
        };
        assert!(is_member(64, |_| true) && is_member(64, |_| false));
        assert_eq!(computed.get(), 1);
        assert!(!is_member(128, |_| false) && !is_member(128, |_| true));
        let _held: Vec<_> = (0..9).map(|_| client.begin_waiting(NOW)).collect();
        assert!(is_member(128, |is_shared| is_shared));
        assert_eq!(computed.get(), 3);
    }

    #[test]
    fn an_address_is_shared_by_held_requests_or_by_many_but_not_by_downloads() {
        let fleet = Fleet::new(100);
        for (name, is_shared) in [("10.0.0.1", true), ("opa-1", false)] {
            let client = fleet.poll(name, "new", NOW);
            let held: Vec<_> = (0..8).map(|_| client.begin_waiting(NOW)).collect();
            assert!(!client.facts(NOW).is_shared);
            let one_more = client.begin_waiting(NOW);
            assert_eq!(client.waiting(), 9);
            drop((held, one_more));
            assert_eq!(client.facts(NOW).is_shared, is_shared, "{name}");
            assert_eq!(client.waiting(), 0);
            assert!(!client.facts(NOW + 60 * MINUTE).is_shared);
        }
        for (name, tag, is_shared) in [
            ("10.0.0.2", "new", true),
            ("10.0.0.3", "old", false),
            ("opa-2", "new", false),
        ] {
            for number in 0..100 {
                fleet.poll(name, tag, NOW + number * 500);
            }
            let client = fleet.client(name);
            assert_eq!(client.facts(NOW + MINUTE).is_shared, is_shared, "{name}");
        }
        for number in 0..100 {
            fleet.poll("10.0.0.4", "new", NOW + number * 10_000);
        }
        assert!(!fleet.client("10.0.0.4").facts(NOW).is_shared);
    }

    #[test]
    fn the_interval_follows_longer_gaps_at_once_and_shorter_ones_slowly() {
        let fleet = Fleet::new(100);
        let client = fleet.poll("opa-1", "new", NOW);
        fleet.poll("opa-1", "new", NOW + 60_000);
        assert_eq!(client.facts(NOW).interval, 60_000);
        fleet.poll("opa-1", "new", NOW + 68_000);
        assert_eq!(client.facts(NOW).interval, 53_500);
        fleet.poll("opa-1", "new", NOW + 268_000);
        assert_eq!(client.facts(NOW).interval, 200_000);
    }

    #[test]
    fn a_client_is_removed_after_the_retention_or_with_its_bundle_and_found_again_afterwards() {
        let fleet = Fleet::new(100);
        let (gone, held) = (
            fleet.poll("opa-1", "new", NOW),
            fleet.poll("opa-2", "new", NOW),
        );
        let waiting = fleet.0.begin_waiting(&held, NOW);
        fleet.0.sweep(|_| true, NOW + 60 * MINUTE);
        assert_eq!(fleet.0.len(), 2);
        fleet.0.sweep(|_| true, NOW + 61 * MINUTE);
        assert_eq!(fleet.0.len(), 1);
        let poll = Poll {
            tag: None,
            is_current: false,
        };
        assert!(!fleet.0.record_poll(&gone, poll, NOW));
        assert!(fleet.0.record_poll(&held, poll, NOW));
        drop(waiting);
        fleet.0.sweep(|_| false, NOW);
        assert!(fleet.0.is_empty() && !fleet.0.record_poll(&held, poll, NOW));
        fleet.poll("opa-2", "new", NOW);
        assert_eq!(fleet.0.len(), 1);
    }

    #[test]
    fn a_full_table_forgets_clients_that_were_not_seen_for_long_and_counts_them() {
        let fleet = Fleet::new(1_000);
        let held = fleet.poll("held", "new", NOW);
        let _waiting = fleet.0.begin_waiting(&held, NOW);
        for number in 0..3_000 {
            fleet.poll(&format!("opa-{number}"), "new", NOW + number);
        }
        assert!(fleet.0.len() <= 1_000, "{}", fleet.0.len());
        assert_eq!(fleet.0.dropped() + fleet.0.len() as u64, 3_001);
        let mut newest = 0;
        fleet.0.visit(|client| {
            newest += u64::from(client.last_seen().0 > NOW + 1_500);
        });
        assert!(newest > 800, "{newest}");
        let poll = Poll {
            tag: None,
            is_current: false,
        };
        assert!(
            fleet.0.record_poll(&held, poll, NOW),
            "it has a held request"
        );
    }

    #[test]
    fn changes_are_taken_once_and_a_repeated_request_is_none() {
        let fleet = Fleet::new(100);
        let client = fleet.poll("opa-1", "old", NOW);
        fleet.poll("opa-1", "new", NOW + 1);
        let changes = fleet.0.take_changes(10);
        assert_eq!((changes.clients.len(), changes.bundles.len()), (1, 1));
        fleet.poll("opa-1", "new", NOW + 2);
        assert!(fleet.0.take_changes(10).bundles.is_empty());
        fleet.0.record_error(&client, error("line 3"));
        let opa = OpaInstance {
            version: Some("1.22.2".into()),
            ..OpaInstance::default()
        };
        fleet.0.record_opa(client.client(), opa.clone()).unwrap();
        fleet.0.record_opa(client.client(), opa.clone()).unwrap();
        let changes = fleet.0.take_changes(10);
        assert_eq!((changes.clients.len(), changes.bundles.len()), (1, 1));
        // A further request does not say what OPA reports.
        fleet.poll("opa-1", "new", NOW + 3);
        let known = fleet.0.get(client.client()).unwrap().details();
        assert_eq!(known.opa.as_deref(), Some(&opa));
    }
}
