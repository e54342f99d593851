//! Decides which clients get deltas.
//!
//! OPA asks for deltas whether or not it can take them: one with `persist: true` or with `signing` refuses every delta,
//! keeps its entity tag, and asks again. So a client that was sent a delta and then runs anything but the version it
//! leads to gets whole bundles from then on, for a day.
//!
//! A client with a name of its own is known by that. Others are known by their connection, where an earlier request
//! arrived on it, and else by their address, credential and `User-Agent`: OPA before 1.16 opens a connection for each
//! request. A request that was waiting when a delta was sent comes from another client than the one that got it. Other
//! clients that can't be told apart get a delta once, and then whole bundles.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use moka::sync::Cache;
use tokio::time::Instant;

use super::{holdout_tracker::ClientId, idle_connections::Slot};
use crate::fleet::{ClientKey, TagHash};

/// Clients that are remembered, in some 30 MB. For one that is forgotten, one more delta may come to nothing.
const MAX_CLIENTS: u64 = 1 << 18;
/// How long a client that has refused a delta gets whole bundles.
const REFUSED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a client is remembered after its last download.
const REMEMBERED_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Decides which clients get deltas.
#[derive(Debug)]
pub(super) struct DeltaGuard {
    clients: Cache<u64, Sent>,
    /// Whether a delta was ever sent: without one, nothing is remembered.
    is_used: AtomicBool,
    keys: RandomState,
}

/// A request that could be answered with a delta.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeltaRequest<'a> {
    pub(super) bundle: &'a str,
    /// When it arrived.
    pub(super) began: Instant,
    /// The version that the client runs, if it names one.
    pub(super) runs: Option<TagHash>,
    pub(super) client: &'a ClientId,
    /// The client's name in the fleet view, if it has told one.
    pub(super) name: Option<ClientKey>,
    pub(super) slot: &'a Slot,
}

/// What a client of a bundle was sent last.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The version that it should run.
    target: TagHash,
    at: Instant,
    /// When a delta has come to nothing.
    refused_at: Option<Instant>,
}

/// The keys of a client of a bundle.
struct Keys {
    /// Its own, as far as it can be told apart.
    own: u64,
    /// That of all clients that can't be told apart from it, if it may be one that has connected anew.
    shared: Option<u64>,
}

impl Sent {
    fn is_refused(self, now: Instant) -> bool {
        self.refused_at
            .is_some_and(|at| now.duration_since(at) < REFUSED_FOR)
    }
}

impl Default for DeltaGuard {
    fn default() -> Self {
        Self {
            clients: Cache::builder()
                .max_capacity(MAX_CLIENTS)
                .time_to_idle(REMEMBERED_FOR)
                .build(),
            is_used: AtomicBool::new(false),
            keys: RandomState::new(),
        }
    }
}

impl DeltaGuard {
    /// Whether the client may be sent a delta.
    pub(super) fn may_send(&self, request: DeltaRequest<'_>) -> bool {
        let Keys { own, shared } = self.keys_of(request);
        let known = self.clients.get(&own);
        let known = known.or_else(|| self.clients.get(&shared?));
        let now = Instant::now();
        match known {
            None => true,
            Some(sent) if sent.is_refused(now) => false,
            Some(sent) if request.runs == Some(sent.target) || request.began < sent.at => true,
            Some(sent) => {
                let refused = Sent {
                    refused_at: Some(now),
                    ..sent
                };
                for key in [Some(own), shared].into_iter().flatten() {
                    self.clients.insert(key, refused);
                }
                false
            }
        }
    }

    /// Whether a delta was ever sent. Without one, nothing has to be recorded.
    pub(super) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Records that the client is sent a version, as a delta or as a whole.
    pub(super) fn record(&self, request: DeltaRequest<'_>, target: TagHash, is_delta: bool) {
        if !is_delta && !self.is_used() {
            return;
        }
        // It has started. One without a name can't be told from others that go on.
        if request.runs.is_none() && request.name.is_none() {
            return;
        }
        self.is_used.store(true, Ordering::Relaxed);
        let Keys { own, shared } = self.keys_of(request);
        for key in [Some(own), shared].into_iter().flatten() {
            let known = self.clients.get(&key);
            if is_delta || known.is_some() {
                let sent = Sent {
                    target,
                    at: Instant::now(),
                    refused_at: known.and_then(|sent| sent.refused_at),
                };
                self.clients.insert(key, sent);
            }
        }
    }

    fn keys_of(&self, request: DeltaRequest<'_>) -> Keys {
        let DeltaRequest {
            bundle,
            client,
            name,
            slot,
            ..
        } = request;
        if let Some(name) = name {
            let own = self.keys.hash_one((bundle, name));
            return Keys { own, shared: None };
        }
        let shared = (client.address, &client.caller, client.user_agent, bundle);
        let shared = self.keys.hash_one(shared);
        Keys {
            own: self.keys.hash_one((shared, slot.number())),
            shared: (!slot.had_earlier_request()).then_some(shared),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
    };

    use super::*;
    use crate::server::{
        Deadlines,
        clients::Caller,
        idle_connections::{IdleConnections, Limits},
    };

    struct Client {
        id: ClientId,
        name: Option<ClientKey>,
    }

    fn client(name: Option<&str>) -> Client {
        use crate::fleet::{Identity, IdentitySource};
        Client {
            id: ClientId {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                caller: Caller::anonymous(),
                user_agent: 0,
            },
            name: name.map(|name| {
                Identity {
                    credential: None,
                    source: IdentitySource::Name(name),
                }
                .key()
            }),
        }
    }

    fn connection() -> Arc<Slot> {
        IdleConnections::new(Limits::new(10, 10, Deadlines::default())).register()
    }

    /// A connection on which this is not the first request.
    fn kept_connection(connections: &IdleConnections) -> Arc<Slot> {
        let slot = connections.register();
        slot.record_request();
        slot.record_request();
        slot
    }

    fn ask(guard: &DeltaGuard, client: &Client, slot: &Slot, runs: &str, target: &str) -> bool {
        let request = DeltaRequest {
            bundle: "authz",
            began: Instant::now(),
            runs: Some(TagHash::of(runs)),
            client: &client.id,
            name: client.name,
            slot,
        };
        let is_delta = guard.may_send(request);
        guard.record(request, TagHash::of(target), is_delta);
        is_delta
    }

    #[test]
    fn a_client_that_applies_deltas_gets_them_and_one_that_does_not_gets_whole_bundles() {
        for name in [None, Some("opa-1")] {
            let (client, slot) = (client(name), connection());
            slot.record_request();
            slot.record_request();
            let guard = DeltaGuard::default();
            let ask = |runs, target| ask(&guard, &client, &slot, runs, target);
            assert!(ask("a", "b") && ask("b", "c") && ask("c", "a"));
            // It comes back with the same tag.
            assert!(!ask("c", "a"));
            assert!(!ask("a", "b") && !ask("b", "c"), "from then on");
        }
        let (client, slot, guard) = (client(Some("x")), connection(), DeltaGuard::default());
        let ask = |runs, target| ask(&guard, &client, &slot, runs, target);
        assert!(ask("a", "b"));
        assert!(!ask("z", "b"), "with another tag");
    }

    /// It gets the whole bundle, as it names no version.
    #[test]
    fn a_client_with_a_name_that_starts_again_gets_deltas_and_others_are_not_judged_by_a_start() {
        let (named, slot, guard) = (client(Some("x")), connection(), DeltaGuard::default());
        assert!(ask(&guard, &named, &slot, "a", "b"));
        let start = |client: &Client| {
            let request = DeltaRequest {
                bundle: "authz",
                began: Instant::now(),
                runs: None,
                client: &client.id,
                name: client.name,
                slot: &slot,
            };
            guard.record(request, TagHash::of("c"), false);
        };
        start(&named);
        assert!(ask(&guard, &named, &slot, "c", "d"));
        let unnamed = client(None);
        assert!(ask(&guard, &unnamed, &slot, "a", "b"));
        start(&unnamed);
        assert!(ask(&guard, &unnamed, &slot, "b", "c"));
    }

    /// It may have been a single failure.
    #[tokio::test(start_paused = true)]
    async fn a_day_later_a_client_gets_deltas_again_however_often_it_was_served_meanwhile() {
        let (client, slot, guard) = (client(Some("x")), connection(), DeltaGuard::default());
        assert!(ask(&guard, &client, &slot, "a", "b"));
        assert!(!ask(&guard, &client, &slot, "a", "b"));
        for _ in 0..23 {
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert!(!ask(&guard, &client, &slot, "b", "b"));
        }
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(ask(&guard, &client, &slot, "b", "c"));
    }

    #[test]
    fn a_client_that_connects_for_each_request_is_known_by_its_address() {
        let (client, guard) = (client(None), DeltaGuard::default());
        let connections = IdleConnections::new(Limits::new(100, 10, Deadlines::default()));
        let ask = |runs, target| {
            let slot = connections.register();
            slot.record_request();
            ask(&guard, &client, &slot, runs, target)
        };
        assert!(ask("a", "b") && ask("b", "c"));
        assert!(!ask("b", "c") && !ask("c", "d"));
    }

    /// Clients have connected anew, and wait for a change.
    #[test]
    fn clients_of_one_address_that_wait_for_the_same_change_all_get_the_delta() {
        let (client, guard) = (client(None), DeltaGuard::default());
        let connections = IdleConnections::new(Limits::new(100, 10, Deadlines::default()));
        let began = Instant::now();
        let send = |began| {
            let slot = connections.register();
            slot.record_request();
            let request = DeltaRequest {
                bundle: "authz",
                began,
                runs: Some(TagHash::of("a")),
                client: &client.id,
                name: None,
                slot: &slot,
            };
            let is_delta = guard.may_send(request);
            guard.record(request, TagHash::of("b"), is_delta);
            is_delta
        };
        for _ in 0..10 {
            assert!(send(began));
        }
        assert!(!send(Instant::now()), "one of them came back");
        assert!(!send(began), "and which of them is not known");
    }

    #[test]
    fn clients_of_one_address_that_keep_their_connections_are_told_apart() {
        let (client, guard) = (client(None), DeltaGuard::default());
        let connections = IdleConnections::new(Limits::new(100, 10, Deadlines::default()));
        let slots: Vec<_> = (0..10).map(|_| kept_connection(&connections)).collect();
        for slot in &slots {
            assert!(ask(&guard, &client, slot, "a", "b"));
        }
        assert!(!ask(&guard, &client, &slots[0], "a", "b"), "persist: true");
        for slot in &slots[1..] {
            assert!(ask(&guard, &client, slot, "b", "c"));
        }
    }
}
