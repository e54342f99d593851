//! Merges the views of replicas: each tells the others of what has changed, and of the clients that it
//! still sees.
//!
//! Of two reports about a client and a bundle the later one counts. What a client runs and what its OPA
//! reports have times of their own, because the two may arrive at different replicas. Everything may be
//! lost and is then sent again: what a client runs with one of its next requests, and all of it every
//! [`HEARTBEAT`].

use std::sync::Arc;

use super::{
    BundleVersions, ClientBundle, ClientDetails, ClientKey, ClientTable, Millis, OpaInstance,
    TagHash, Version,
    client_bundle::Entered,
    table::Changes,
    wire::{
        Change, ClockOffset, Details, Encoded, Entry, Field, Opa, ServedVersion,
        changes_of_message, changes_of_record,
    },
};

/// How often a replica reports a client that it sees and of which nothing changes. Without a report a
/// client is silent after ten minutes.
const HEARTBEAT: Millis = 3 * 60 * 1000;

/// The part of one replica.
#[derive(Debug)]
pub struct Replication {
    table: ClientTable,
    /// The number of this replica.
    replica: u64,
}

/// Changes that are being written.
#[derive(Debug, Default)]
pub struct Outgoing {
    changes: Changes,
    versions: Vec<Arc<BundleVersions>>,
}

impl Replication {
    /// The part of the replica with this number, which is random.
    pub fn new(table: ClientTable, replica: u64) -> Self {
        Self { table, replica }
    }

    /// Takes at most `limit` changes of clients and of what they run, and leaves the others for the next
    /// call.
    pub fn take(&self, limit: usize) -> Outgoing {
        Outgoing {
            changes: self.table.take_changes(limit),
            versions: self.table.take_changed_versions(),
        }
    }

    /// The records and messages of changes.
    pub fn encode(&self, outgoing: &Outgoing, offset: ClockOffset) -> Encoded {
        let Changes { clients, bundles } = &outgoing.changes;
        let clients = clients.values().map(|client| {
            let key = client.key().to_array();
            Change::Client(key, Details::from(client.details()))
        });
        let versions = outgoing.versions.iter().flat_map(|bundle| {
            let name: Box<str> = (&**bundle.name()).into();
            let all = bundle.all().into_iter();
            all.map(move |(tag, version)| {
                Change::Version(name.clone(), tag.number(), ServedVersion::from(&*version))
            })
        });
        let bundles = bundles.iter().map(|one| {
            let (key, name) = (one.client().to_array(), &**one.bundle().name());
            Change::Bundle(key, name.into(), entry(one, offset))
        });
        Encoded::new(
            self.replica,
            versions.chain(clients).chain(bundles).collect(),
        )
    }

    /// Takes changes back that were not written.
    pub fn put_back(&self, outgoing: Outgoing) {
        for client in outgoing.changes.clients.into_values() {
            self.table.change_client(client);
        }
        for one in &outgoing.changes.bundles {
            self.table.change_bundle(one);
        }
        for bundle in outgoing.versions {
            bundle.set_changed();
        }
    }

    /// Reports the clients again that this replica has seen, and has not reported for a while.
    pub fn add_heartbeats(&self, now: Millis) {
        self.table.visit(|client| {
            for one in client.bundles() {
                if one.is_heartbeat_due(now, HEARTBEAT) {
                    self.table.change_bundle(&one);
                }
            }
        });
    }

    /// Reports everything again that this replica knows: the engine has lost it.
    pub fn add_everything(&self) {
        self.table.visit(|client| {
            self.table.change_client(Arc::clone(client));
            for one in client.bundles() {
                self.table.change_bundle(&one);
                one.bundle().set_changed();
            }
        });
    }

    /// Merges a message of another replica.
    pub fn merge_message(&self, message: &[u8], offset: ClockOffset) {
        for change in changes_of_message(message, self.replica) {
            self.merge(change, offset);
        }
    }

    /// Merges a record.
    pub fn merge_record(&self, key: &[u8], fields: &[Field], offset: ClockOffset) {
        for change in changes_of_record(key, fields) {
            self.merge(change, offset);
        }
    }

    fn merge(&self, change: Change, offset: ClockOffset) {
        match change {
            Change::Client(key, details) => {
                if let Some(key) = ClientKey::from_bytes(&key) {
                    self.table.merge_details(key, &details.into());
                }
            }
            Change::Version(bundle, tag, version) => {
                if let Some(tag) = TagHash::from_number(tag) {
                    self.table.versions(&bundle).merge(tag, version.into());
                }
            }
            Change::Bundle(key, bundle, entry) => {
                let key = ClientKey::from_bytes(&key);
                let known =
                    key.and_then(|key| self.table.merged_bundle(key, &bundle, entry.is_by_address));
                if let Some(known) = known {
                    known.lock().merge(entered(entry, offset));
                }
            }
        }
    }
}

/// What other replicas get to know.
fn entry(one: &ClientBundle, offset: ClockOffset) -> Entry {
    let record = one.lock();
    let time = |own| offset.to_engine(own);
    let offered = record.offered.as_deref();
    let error = record.error.as_deref();
    Entry {
        is_by_address: one.is_by_address(),
        stamp: time(record.stamp),
        seen: time(record.seen),
        since: time(record.since),
        runs: record.runs.map(TagHash::number),
        without_tag: record.without_tag,
        interval: record.interval,
        shared_until: time(record.shared_until()),
        offered: offered.map(|one| (one.tag.number(), time(one.at), one.times)),
        error_changed: time(record.error_changed),
        error: error.map(|error| {
            let since = time(error.since);
            (error.code.clone(), error.message.clone(), since)
        }),
    }
}

/// What another replica reports, by the clock of this one.
fn entered(entry: Entry, offset: ClockOffset) -> Entered {
    let time = |engine| offset.to_own(engine);
    Entered {
        stamp: time(entry.stamp),
        seen: time(entry.seen),
        since: time(entry.since),
        runs: entry.runs.and_then(TagHash::from_number),
        without_tag: entry.without_tag,
        interval: entry.interval,
        shared_until: time(entry.shared_until),
        offered: entry
            .offered
            .and_then(|(tag, at, times)| Some((TagHash::from_number(tag)?, time(at), times))),
        error_changed: time(entry.error_changed),
        error: entry
            .error
            .map(|(code, message, since)| (code, message, time(since))),
    }
}

impl From<ClientDetails> for Details {
    fn from(details: ClientDetails) -> Self {
        let opa = details.opa.as_deref();
        Self {
            opa: opa.map(|opa| Opa {
                id: opa.id.clone(),
                version: opa.version.clone(),
                labels: opa.labels.clone(),
            }),
            name: details.name,
            credential: details.credential,
            address: details.address,
            agent: details.agent,
        }
    }
}

impl From<Details> for ClientDetails {
    fn from(details: Details) -> Self {
        let opa = details.opa.map(|opa| {
            Arc::new(OpaInstance {
                id: opa.id,
                version: opa.version,
                labels: opa.labels,
            })
        });
        Self {
            name: details.name,
            credential: details.credential,
            address: details.address,
            agent: details.agent,
            opa,
        }
    }
}

impl From<&Version> for ServedVersion {
    fn from(version: &Version) -> Self {
        Self {
            etag: version.etag.clone(),
            manifest: version.manifest.clone(),
            revision: version.revision.clone(),
            size: version.size,
        }
    }
}

impl From<ServedVersion> for Version {
    fn from(version: ServedVersion) -> Self {
        Self {
            etag: version.etag,
            manifest: version.manifest,
            revision: version.revision,
            size: version.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{
        ClientError, ClientState, Expected, Identity, IdentitySource, Poll, state_of,
    };

    const NOW: Millis = 1_000_000_000;

    /// A replica whose clock is ahead of the engine's by so much.
    struct Replica {
        table: ClientTable,
        replication: Replication,
        ahead: Millis,
    }

    impl Replica {
        fn new(number: u64, ahead: Millis) -> Self {
            let table = ClientTable::new(100, 3_600_000, true);
            let replication = Replication::new(table.clone(), number);
            Self {
                table,
                replication,
                ahead,
            }
        }

        fn offset(&self) -> ClockOffset {
            ClockOffset::new(NOW, NOW + self.ahead)
        }

        fn client(&self, name: &str) -> Arc<ClientBundle> {
            let identity = Identity {
                credential: Some("canary"),
                source: IdentitySource::Name(name),
            };
            let details = ClientDetails::new(&identity, [10, 0, 0, 1].into(), Some("OPA"));
            self.table
                .client_bundle(&identity, &details, "authz")
                .unwrap()
        }

        /// A request at a time of the engine's clock.
        fn poll(&self, name: &str, tag: &str, at: Millis) -> Arc<ClientBundle> {
            let client = self.client(name);
            let poll = Poll {
                tag: Some(TagHash::of(tag)),
                is_current: tag == "new",
            };
            client.bundle().record(TagHash::of(tag), || Version {
                manifest: Some("sha256:m".into()),
                ..Version::unknown(tag)
            });
            assert!(self.table.record_poll(&client, poll, at + self.ahead));
            client
        }

        fn encoded(&self) -> Encoded {
            let outgoing = self.replication.take(1_000);
            self.replication.encode(&outgoing, self.offset())
        }

        fn merge_messages(&self, encoded: &Encoded) {
            for message in &encoded.messages {
                self.replication.merge_message(message, self.offset());
            }
        }

        fn state(&self, name: &str, at: Millis) -> ClientState {
            let expected = Expected {
                tag: Some(TagHash::of("new")),
                since: NOW,
                candidate: None,
            };
            let now = at + self.ahead;
            state_of(&self.client(name).facts(now), expected, now)
        }
    }

    #[test]
    fn a_client_that_one_replica_sees_is_the_same_at_another_one() {
        let (a, b) = (Replica::new(1, 0), Replica::new(2, 77_000));
        let client = a.poll("opa-1", "new", NOW);
        let opa = OpaInstance {
            version: Some("1.22.2".into()),
            labels: [("region".into(), "eu".into())].into(),
            ..OpaInstance::default()
        };
        a.table.record_opa(client.client(), opa.clone()).unwrap();
        let encoded = a.encoded();
        b.merge_messages(&encoded);
        // Its own messages tell a replica nothing.
        a.merge_messages(&encoded);
        let merged = b.table.get(client.client()).unwrap();
        let details = merged.details();
        assert_eq!(details.opa.as_deref(), Some(&opa));
        assert_eq!(details.credential.as_deref(), Some("canary"));
        assert_eq!(details.name.as_deref(), Some("opa-1"));
        let facts = merged.bundle("authz").unwrap().facts(NOW);
        assert_eq!(facts.seen, NOW + 77_000, "times are those of the own clock");
        let version = b.table.versions("authz").get(facts.runs.unwrap()).unwrap();
        assert_eq!(version.manifest.as_deref(), Some("sha256:m"));
        assert_eq!(b.state("opa-1", NOW), ClientState::Current);
        // What was merged is not reported again.
        let again = b.replication.take(1_000);
        assert!(again.changes.bundles.is_empty(), "{again:?}");
    }

    #[test]
    fn records_tell_a_new_replica_what_messages_told_the_others() {
        let (a, b) = (Replica::new(1, 0), Replica::new(2, 0));
        let keys: Vec<_> = ["opa-1", "opa-2", "opa-3"]
            .map(|name| a.poll(name, "old", NOW).client())
            .to_vec();
        let mut encoded = a.encoded();
        // In any order: what a client runs may come before its details.
        encoded.records.reverse();
        for (key, fields) in &encoded.records {
            b.replication.merge_record(key, fields, b.offset());
        }
        for key in keys {
            let client = b.table.get(key).unwrap();
            let names = ["opa-1", "opa-2", "opa-3"];
            assert!(names.contains(&client.details().name.as_deref().unwrap()));
            let runs = client.bundle("authz").unwrap().facts(NOW).runs;
            assert_eq!(runs, Some(TagHash::of("old")));
        }
        for (key, fields) in [
            (&b""[..], vec![]),
            (b"x", vec![]),
            (b"cshort", vec![(b"authz".to_vec(), vec![1, 2])]),
            (b"c123456789012", vec![(b"authz".to_vec(), vec![9, 9, 9])]),
            (b"vauthz", vec![(b"1".to_vec(), vec![1])]),
        ] {
            b.replication.merge_record(key, &fields, b.offset());
        }
        b.replication
            .merge_message(b"\x01\xff\xff\xff\xff\xff\xff", b.offset());
        assert_eq!(b.table.len(), 3);
    }

    /// A load balancer sends the requests of a client to either replica, and its reports to the other.
    #[test]
    fn the_later_report_counts_for_versions_and_for_errors() {
        let (a, b) = (Replica::new(1, 5_000), Replica::new(2, 0));
        let exchange = || {
            let (of_a, of_b) = (a.encoded(), b.encoded());
            a.merge_messages(&of_b);
            b.merge_messages(&of_a);
        };
        let client = a.poll("opa-1", "old", NOW);
        exchange();
        let offer = a.table.offer(client, TagHash::of("new"));
        offer.complete(NOW + 1 + a.ahead);
        exchange();
        let client = b.poll("opa-1", "old", NOW + 10);
        b.table.offer(client, TagHash::of("new")).complete(NOW + 11);
        assert_eq!(
            b.state("opa-1", NOW + 12),
            ClientState::Failing,
            "one download at each"
        );
        exchange();
        assert_eq!(a.state("opa-1", NOW + 12), ClientState::Failing);
        let at = NOW + 20 + a.ahead;
        let error = ClientError::new("bundle_error".into(), "policy.rego:3".into(), at);
        a.table.record_error(&a.client("opa-1"), error);
        // Before the report of the error arrives.
        b.poll("opa-1", "old", NOW + 21);
        exchange();
        for replica in [&a, &b] {
            assert!(replica.client("opa-1").error().is_some());
            assert_eq!(replica.state("opa-1", NOW + 22), ClientState::Failing);
        }
        b.poll("opa-1", "new", NOW + 30);
        exchange();
        for replica in [&a, &b] {
            assert_eq!(replica.client("opa-1").error(), None);
            assert_eq!(replica.state("opa-1", NOW + 31), ClientState::Current);
        }
    }

    #[test]
    fn of_two_changes_at_the_same_time_the_second_one_counts() {
        let (a, b) = (Replica::new(1, 0), Replica::new(2, 0));
        let client = a.poll("opa-1", "old", NOW);
        a.table.offer(client, TagHash::of("new")).complete(NOW);
        let first = a.encoded();
        a.poll("opa-1", "new", NOW);
        let second = a.encoded();
        b.merge_messages(&first);
        assert_eq!(b.state("opa-1", NOW), ClientState::Changing);
        b.merge_messages(&second);
        assert_eq!(b.state("opa-1", NOW), ClientState::Current);
        // A record may be older than the messages.
        for (key, fields) in &first.records {
            b.replication.merge_record(key, fields, b.offset());
        }
        assert_eq!(b.state("opa-1", NOW), ClientState::Current);
        // A replica whose clock is behind has the next request.
        b.poll("opa-1", "", NOW - 5);
        a.merge_messages(&b.encoded());
        assert_eq!(a.state("opa-1", NOW), b.state("opa-1", NOW));
    }

    #[test]
    fn what_was_not_written_is_taken_again_and_clients_that_are_seen_are_reported_again() {
        let a = Replica::new(1, 0);
        for number in 0..10 {
            a.poll(&format!("opa-{number}"), "new", NOW);
        }
        let outgoing = a.replication.take(14);
        let sizes = (
            outgoing.changes.clients.len(),
            outgoing.changes.bundles.len(),
        );
        assert_eq!((sizes, outgoing.versions.len()), ((10, 4), 1));
        assert_eq!(a.replication.take(100).changes.bundles.len(), 6);
        a.replication.put_back(outgoing);
        let outgoing = a.replication.take(7);
        let sizes = (
            outgoing.changes.clients.len(),
            outgoing.changes.bundles.len(),
        );
        assert_eq!((sizes, outgoing.versions.len()), ((7, 0), 1));
        let outgoing = a.replication.take(100);
        let sizes = (
            outgoing.changes.clients.len(),
            outgoing.changes.bundles.len(),
        );
        assert_eq!(sizes, (3, 4));
        a.poll("opa-1", "new", NOW + HEARTBEAT - 1);
        a.poll("opa-2", "new", NOW + HEARTBEAT);
        a.replication.add_heartbeats(NOW + HEARTBEAT);
        let outgoing = a.replication.take(100);
        assert_eq!(outgoing.changes.bundles.len(), 1);
        let held = a.table.begin_waiting(&a.client("opa-3"), NOW);
        a.replication.add_heartbeats(NOW + HEARTBEAT);
        assert_eq!(a.replication.take(100).changes.bundles.len(), 1);
        drop(held);
        a.replication.add_everything();
        let outgoing = a.replication.take(100);
        assert_eq!(
            (
                outgoing.changes.clients.len(),
                outgoing.changes.bundles.len()
            ),
            (10, 10)
        );
    }

    #[test]
    fn messages_and_records_are_small() {
        let a = Replica::new(1, 0);
        for number in 0..100 {
            a.poll(&format!("opa-{number}"), "new", 1_800_000_000_000 + number);
        }
        let encoded = a.encoded();
        let values = encoded.records.iter().filter(|(key, _)| key[0] == b'c');
        for (_, fields) in values {
            assert!(fields[0].1.len() <= 64, "{}", fields[0].1.len());
        }
        assert!(
            encoded
                .messages
                .iter()
                .all(|message| message.len() < 48 << 10)
        );
    }
}
